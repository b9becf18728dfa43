"""Dictionaries of one site: the matching by brute force, its nulls, and pairs that come back or do not."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from polysem import replicate as r
from polysem.errors import ConfigError, MismatchError
from polysem.geometry.unit import unit_rows
from polysem.linear.subspaces import principal_cosines, shared_spans, span
from polysem.saes.base import SAE, Provenance
from polysem.seeds import random_rotation, rng_for
from polysem.types import Site
from support.results import check_result

SITE = Site.parse("blocks.0.hook_resid_post")


def sae_of(decoder, *, encoder=None, ref="memory", **more) -> SAE:
    W = torch.as_tensor(np.asarray(decoder), dtype=torch.float32)
    E = W if encoder is None else torch.as_tensor(np.asarray(encoder), dtype=torch.float32)
    n, d = W.shape
    given = {"W_enc": E.T.contiguous(), "W_dec": W, "b_enc": torch.zeros(n), "b_dec": torch.zeros(d)}
    where = {"reads": SITE, "writes": SITE, "model_id": None, "model_revision": None}
    return replace(SAE(**given, activation="relu", **where, provenance=Provenance(ref, "0", "test")), **more)


def random_units(n, d, seed):
    return unit_rows(rng_for(seed, "units").standard_normal((n, d)))


@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 6), (6, 4)])
def test_the_assignment_is_the_best_of_all(n, m):
    a, b = random_units(n, 3, 0), random_units(m, 3, 1)
    cosine = np.abs(a @ b.T)
    cosine = cosine if n <= m else cosine.T
    best = max(
        cosine[range(min(n, m)), list(columns)].sum()
        for columns in itertools.permutations(range(max(n, m)), min(n, m))
    )
    i, j, found = r.assigned(a, b)
    assert np.abs(found).sum() == pytest.approx(best, abs=1e-12)
    np.testing.assert_allclose(found, (a[i] * b[j]).sum(axis=1), atol=1e-12)


def test_a_dictionary_in_another_order_with_other_signs_is_the_same(tmp_path):
    W = random_units(40, 16, 2)
    rng = rng_for(3, "order")
    order, sign = rng.permutation(40), np.where(rng.random(40) < 0.5, -1.0, 1.0)
    scaled = (sign * rng.uniform(0.5, 2, 40))[:, None] * W[order]
    found = r.replicate([sae_of(W, ref="a"), sae_of(scaled, ref="b")])
    (pair,) = found.pairs
    assert pair["pw_mcc"] == pytest.approx(1.0, abs=1e-6)
    assert order[pair["matching"]["second"]].tolist() == pair["matching"]["first"]
    assert pair["matched"] == [1.0, 1.0]
    assert all(s["same"] == 1.0 for s in pair["survival"])
    assert all(own.tolist() == pytest.approx([1.0] * 40) for own in found.stability)
    check_result(found, tmp_path)
    (two,) = found.tables()["replicates"].to_pylist()
    assert (two["first"], two["second"], two["n"]) == ("a", "b", 40)
    assert two["turned"] == pytest.approx(np.mean(pair["null"]["turned"]))
    assert found.tables()["stability"].num_rows == 80
    with pytest.raises(ConfigError, match="dictionaries number 1; expected one of 1"):
        found.plot(number_of=1)


def test_a_dictionary_turned_at_random_has_no_stable_features():
    """At most 1 % each of the two sides allows, on 2,000 features."""
    W = random_units(2000, 24, 4)
    turned = W @ random_rotation(24, rng_for(5, "turn"))
    (pair,) = r.replicate([sae_of(W, ref="a"), sae_of(turned, ref="b")]).pairs
    assert max(pair["matched"]) <= r.FALSE
    assert abs(pair["pw_mcc"] - np.mean(pair["null"]["turned"])) < 0.01
    assert sum(s["n"] for s in pair["survival"]) < 0.001 * 2000 * 1999 / 2


def test_dead_features_match_nothing():
    W = random_units(20, 8, 6)
    W[3] = 0
    found = r.replicate([sae_of(W, ref="a"), sae_of(W, ref="b")])
    assert np.isnan(found.stability[0][3])
    assert 3 not in found.pairs[0]["matching"]["first"]
    json.dumps(found.as_json(), allow_nan=False)


def test_an_encoder_that_reads_something_else_is_no_match():
    W = random_units(60, 32, 7)
    other = random_units(60, 32, 8)
    (pair,) = r.replicate([sae_of(W, ref="a"), sae_of(W, encoder=other, ref="b")]).pairs
    assert pair["pw_mcc"] == pytest.approx(1.0, abs=1e-6)
    assert max(pair["matched"]) < 0.1


def shares(first, second, seed):
    """|interference| at least 0.2: (seen, smallest, largest by chance) of every bin with 200 pairs or more."""
    found = r.survival(first, second, rng=rng_for(seed, "deals"))
    return [(s.same, s.chance, s.lo, s.hi) for s in found if s.low >= 0.2 and s.n >= 200]


def test_pairs_survive_by_regression_to_the_mean_where_rests_are_noise():
    """Rows of the second are 0.8 times those of the first plus noise: what survives lies among the deals, or nearly."""
    first, m = random_units(300, 12, 9), 0.8
    noise = rng_for(10, "noise").standard_normal(first.shape)
    noise = unit_rows(noise - (noise * first).sum(axis=1, keepdims=True) * first)
    for same, _, lo, hi in shares(first, m * first + np.sqrt(1 - m * m) * noise, 11):
        width = max(hi - lo, 0.02)
        assert lo - width <= same <= hi + width


def test_pairs_that_keep_their_angle_survive_beyond_regression_to_the_mean():
    """A dictionary turned a little: no row is quite its match, and every angle is as it was."""
    from scipy.linalg import expm

    first = random_units(300, 12, 9)
    skew = rng_for(14, "skew").standard_normal((12, 12))
    second = first @ expm(0.12 * (skew - skew.T))
    assert 0.5 < (first * second).sum(axis=1).mean() < 0.95
    for same, chance, _, hi in shares(first, second, 12):
        assert same > 0.999
        assert chance < hi < 0.9


def test_what_cannot_be_compared_is_refused():
    W = random_units(8, 4, 13)
    with pytest.raises(MismatchError, match="two or more"):
        r.replicate([sae_of(W)])
    elsewhere = Site.parse("blocks.1.hook_resid_post")
    with pytest.raises(MismatchError, match="one site"):
        r.replicate([sae_of(W, ref="a"), sae_of(W, ref="b", reads=elsewhere, writes=elsewhere)])
    with pytest.raises(MismatchError, match="one model"):
        r.replicate([sae_of(W, model_id="x"), sae_of(W, model_id="y")])


@pytest.mark.parametrize(("n", "m", "seed"), [(300, 300, 0), (250, 400, 1), (400, 250, 2)])
def test_few_candidates_give_the_assignment_of_all(n, m, seed):
    """Noisy copies of one dictionary, half of them lost: with 32 candidates a feature the sum is that of scipy's dense assignment;
    with 4 it is never above it, and every feature is still matched once."""
    base = random_units(max(n, m), 24, seed)
    noise = rng_for(seed, "noise").standard_normal((m, 24)) * 0.15
    a, b = (
        base[:n],
        unit_rows(np.where(np.arange(m)[:, None] % 2, base[:m] + noise, random_units(m, 24, seed + 50))),
    )
    best = np.abs(r.assigned(a, b)[2]).sum()
    i, j, found = r.assigned(a, b, near=32)
    assert np.abs(found).sum() == pytest.approx(best, abs=1e-9)
    np.testing.assert_allclose(found, (a[i] * b[j]).sum(axis=1), atol=1e-12)
    i, j, found = r.assigned(a, b, near=4)
    assert len(i) == len(set(i.tolist())) == len(set(j.tolist())) == min(n, m)
    assert 0.97 * best <= np.abs(found).sum() <= best + 1e-9


def test_large_dictionaries_hold_few_candidates(monkeypatch):
    a, b = sae_of(random_units(120, 16, 0), ref="a"), sae_of(random_units(120, 16, 1), ref="b")
    whole = r.matching(a, b).pw_mcc
    monkeypatch.setattr(r, "LARGEST", 100)
    monkeypatch.setattr(r, "NEAR", 40)
    assert r.matching(a, b).pw_mcc == pytest.approx(whole, abs=1e-9)
    assert r.replicate([a, b]).pairs[0]["pw_mcc"] == pytest.approx(whole, abs=1e-9)


def test_spans_and_angles_have_their_closed_forms():
    """Coordinate planes: a shared axis and one at right angles; 90 % of the squared length leaves the small axis out."""
    eye = np.eye(6)
    np.testing.assert_allclose(principal_cosines(eye[:2], eye[1:3]), [1, 0], atol=1e-12)
    turn = np.cos(0.3) * eye[0] + np.sin(0.3) * eye[5]
    np.testing.assert_allclose(np.arccos(principal_cosines(eye[:1], turn[None])), [0.3], atol=1e-9)
    assert len(span(np.diag([3.0, 3, 1]) @ eye[:3])) == 2
    assert len(span(np.diag([3.0, 3, 2]) @ eye[:3])) == 3


def test_spans_of_features_come_back_where_only_they_are_planted():
    """Eight planes of 6 of 64 dimensions with 20 features each, in a basis of its own in either dictionary, and every encoder at
    random: no feature is stable. The planes show; rows that have none do not, beyond what choosing the nearest gives."""
    rng = rng_for(20, "planes")
    planes = [span(rng.standard_normal((6, 64)), 6) for _ in range(8)]
    a, b = (unit_rows(np.concatenate([rng.standard_normal((20, 6)) @ p for p in planes])) for _ in range(2))
    other = [sae_of(rows, encoder=random_units(160, 64, k), ref=str(k)) for k, rows in enumerate((a, b))]
    found = r.replicate(other)
    near, whole = found.pairs[0]["spans"]
    assert max(found.pairs[0]["matched"]) < 0.05
    assert near["shared"] > max(near["hi"], near["drawn"]) + 0.2
    assert 4 <= near["rank"] <= 8
    assert whole["shared"] > whole["hi"]
    assert found.tables()["shared_spans"].num_rows == 2
    alone = shared_spans(random_units(160, 64, 21), random_units(160, 64, 22), rng=rng_for(23, "spans"))
    for one in alone:
        width = max(one.hi - one.lo, 0.01)
        assert one.lo - width <= one.shared <= one.hi + width
        assert one.drawn == pytest.approx(one.random, abs=0.03)
    assert shared_spans(a[:8], b, rng=rng_for(24, "spans")) == []
