"""Relations of features: on a planted tree, where nothing is planted, and against scipy's exact tails."""

from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from polysem.errors import ConfigError, MismatchError
from polysem.hierarchy.firing import Fired, cofiring_tail, fired
from polysem.hierarchy.known import mean_code
from polysem.hierarchy.meta import meta_code, sparse_code
from polysem.hierarchy.relations import Kinship, between_levels, by_interference, relations_of
from polysem.store.tables import RELATIONS
from polysem.worlds.codes import codes_world
from polysem.worlds.tree import PlantedRelations, TreeWorld, planted_sae, tree_world


@pytest.fixture(scope="module")
def planted() -> tuple[TreeWorld, np.ndarray, Kinship]:
    world = tree_world(roots=6, absorbed=3)
    x, _ = world.sample(20_000, seed=1)
    return world, x, relations_of(world.wide, x, label="wide", narrow=[world.narrow])


def _found(made: Kinship, relation: str) -> set[tuple[int, int]]:
    rows = (r for r in made.relations.to_pylist() if r["relation"] == relation)
    return {
        (r["i"], r["j"]) if r["above"] is None else (r["above"], r["i"] + r["j"] - r["above"]) for r in rows
    }


@pytest.mark.parametrize(
    ("relation", "precision", "recall"),
    [("parent", 0.9, 0.9), ("split", 0.8, 0.8), ("absorbed", 0.7, 0.9), ("duplicate", 0.9, 1.0), ("antipodal", 1.0, 1.0), ("hedge", 0.8, 0.8)],
)  # fmt: skip
def test_a_planted_tree_is_found(planted, relation: str, precision: float, recall: float) -> None:
    world, _, made = planted
    true, found = getattr(world.truth, relation), _found(made, relation)
    assert len(found & true) >= precision * len(found)
    assert len(found & true) >= recall * len(true)


def test_the_rate_of_absorption_is_the_planted_one(planted) -> None:
    world, _, made = planted
    parents = {a for a, _ in world.truth.absorbed}
    rates = [r["rate"] for r in made.absorption.to_pylist() if r["feature"] in parents]
    assert len(rates) == 3
    assert abs(np.mean(rates) - world.truth.absorption) <= 0.05
    others = [r["rate"] for r in made.absorption.to_pylist() if r["feature"] not in parents and r["trusted"]]
    assert np.mean(others) <= 0.05


@pytest.mark.parametrize("seed", [0, 1])
def test_a_flat_world_has_no_relations(seed: int) -> None:
    """Independent features, pairs of them at a cosine of 0.45: no more than 5 % of the close pairs, and of the features, are
    given a relation."""
    world = tree_world(roots=0, absorbed=0, wholes=0, twice=0, signed=0, mixes=0, flat=80, seed=seed)
    x, _ = world.sample(20_000, seed=seed)
    made = relations_of(world.wide, x, label="flat", least=0.2).relations
    related = [r for r in made.to_pylist() if r["relation"] != "unrelated"]
    assert made.num_rows >= 40
    assert len(related) <= 0.05 * made.num_rows
    assert len({r[k] for r in related for k in "ij"}) <= 0.05 * 80


def test_dense_features_cover_others_and_are_no_parents() -> None:
    """Coverage alone would make every feature that is nearly always on a parent: it is not needed where the child fires more
    than others of its density, and fires there no more than by chance."""
    world = tree_world(roots=0, absorbed=0, wholes=0, twice=0, signed=0, mixes=0, flat=40)
    rng = np.random.default_rng(0)
    codes = (rng.random((8000, 40)) < np.where(np.arange(40) < 24, 0.93, 0.04)) * (
        0.5 + rng.random((8000, 40))
    )
    x = (codes @ world.directions).astype(np.float32)
    seen = fired(world.wide, x)
    share = np.asarray((seen.fires.T @ seen.fires).todense())[:24, 24:] / seen.count[None, 24:]
    assert (share >= 0.9).mean() > 0.8  # by coverage they are parents
    assert not _found(relations_of(world.wide, x, label="dense"), "parent")


def test_what_is_taken_away_raises_the_error_as_it_does_in_full(planted) -> None:
    world, x, _ = planted
    seen = fired(world.wide, x[:200])
    inputs = torch.from_numpy(x[:200])
    acts = world.wide.encode(inputs)
    full = (inputs - world.wide.decode(acts)).pow(2).sum(1)
    assert np.allclose(seen.error, (inputs - world.wide.decode(acts)).numpy(), atol=1e-5)
    tokens = np.arange(0, 200, 3)
    raises = seen.raises(tokens)
    for feature in (0, 7, 30):
        without = acts.clone()
        without[:, feature] = 0
        after = (inputs - world.wide.decode(without)).pow(2).sum(1)
        assert raises[feature] == pytest.approx(float((after - full)[tokens].mean()), abs=1e-5)


def test_a_feature_is_needed_where_the_error_is_larger_without_it(planted) -> None:
    world, x, _ = planted
    seen = fired(world.wide, x[:200])
    acts = world.wide.encode(torch.from_numpy(x[:200]))
    full = (torch.from_numpy(x[:200]) - world.wide.decode(acts)).pow(2).sum(1)
    for feature in range(0, world.wide.d_sae, 9):
        without = acts.clone()
        without[:, feature] = 0
        after = (torch.from_numpy(x[:200]) - world.wide.decode(without)).pow(2).sum(1)
        expected = ((after > full) & (acts[:, feature] > 0)).nonzero().ravel().numpy()
        assert np.array_equal(seen.needed(feature), expected)


def test_what_leaks_is_no_relation(monkeypatch) -> None:
    """128 independent features in 64 dimensions, read by the transpose of what is written: four in five of the firings are leaks,
    and look like absorption and common tokens to whom does not ask whether a feature is needed."""
    world = codes_world(n_features=128, d=64, n_pairs=24, seed=11)
    sae = replace(world.sae, b_enc=torch.full((128,), -0.3))
    x = world.sample(4000, torch.Generator().manual_seed(0))[0].numpy()
    shares = []
    for asks in (True, False):
        if not asks:
            monkeypatch.setattr(Fired, "needed", Fired.at)
        close = relations_of(sae, x, label="leaks", probes=40).relations.to_pylist()
        close = [r for r in close if abs(r["interference"]) >= 0.3]
        shares.append(np.mean([r["relation"] != "unrelated" for r in close]))
    assert shares[0] <= 0.05 < shares[1]


def test_pairs_block_by_block_are_those_of_dense_counts(monkeypatch) -> None:
    """A dictionary of several blocks: every written pair, its cosine and how often it meets."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((150, 12))
    sae = planted_sae(rows / np.linalg.norm(rows, axis=1, keepdims=True), 0.4 * rows)
    x = rng.standard_normal((400, 12)).astype(np.float32)
    monkeypatch.setattr("polysem.hierarchy.relations.BLOCK", 16)
    made = relations_of(sae, x, label="dense", probes=1).relations
    on = (sae.encode(torch.from_numpy(x)) > 0).double().numpy()
    units = sae.W_dec.double().numpy()
    cosine, both = units @ units.T, on.T @ on
    close = {
        (i, j)
        for i, j in np.argwhere(np.triu(np.abs(cosine) >= 0.3, 1)).tolist()
        if on[:, i].any() and on[:, j].any()
    }
    i, j = (made[name].to_numpy() for name in ("i", "j"))
    assert close <= set(zip(i.tolist(), j.tolist(), strict=True))
    assert np.array_equal(made["both"].to_numpy(), both[i, j])
    assert np.allclose(made["interference"].to_numpy(), cosine[i, j], atol=1e-6)
    assert np.array_equal(made["fires_i"].to_numpy(), on.sum(0)[i])


def test_two_directions_of_one_cause_are_on_the_same_tokens() -> None:
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((24, 24)))[0]
    present = rng.random((3000, 24)) < 0.05
    present[:, 1] = present[:, 0] & (rng.random(3000) < 0.9)
    x = (present * (0.5 + rng.random(present.shape))) @ directions
    made = relations_of(planted_sae(directions, directions), x.astype(np.float32), label="twins")
    assert _found(made, "same_tokens") == {(0, 1)}


@settings(deadline=None)
@given(st.integers(1, 60), st.data())
def test_tails_are_scipys(n: int, data) -> None:
    a, b = (data.draw(st.integers(0, n)) for _ in range(2))
    both = data.draw(st.integers(max(0, a + b - n), min(a, b)))
    law = hypergeom(n, a, b)
    for above, expected in ((True, law.sf(both - 1)), (False, law.cdf(both))):
        got = cofiring_tail(np.array([both]), n, np.array([a]), np.array([b]), above=above)[0]
        assert got == pytest.approx(float(expected), rel=1e-9, abs=1e-12)


def test_levels_follow_a_hierarchy_or_are_dealt_without(planted) -> None:
    """Latents put in order of their depth: every parent lies further in. In any other order as many do as chance says."""
    world, _, made = planted
    parents = [
        (r["above"], r["i"] + r["j"] - r["above"])
        for r in made.relations.to_pylist()
        if r["relation"] == "parent"
    ]
    below = {child for _, child in parents}
    roots = [a for a in {a for a, _ in parents} if a not in below]
    middle = [a for a in {a for a, _ in parents} if a in below]
    n = world.wide.d_sae
    leaves = [f for f in range(n) if f not in {*roots, *middle}]
    rng, seen = np.random.default_rng(0), []
    for order, ordered in (
        ([*roots, *middle, *leaves], True),
        *((rng.permutation(n).tolist(), False) for _ in range(20)),
    ):
        place = {f: k for k, f in enumerate(order)}
        turned = [{k: r[k] for k in r} for r in made.relations.to_pylist()]
        for r in turned:
            i, j = sorted((place[r["i"]], place[r["j"]]))
            r |= {"i": i, "j": j, "above": None if r["above"] is None else place[r["above"]]}
        levels = [len(roots), len(roots) + len(middle)]
        found = between_levels(
            RELATIONS.of_rows(turned), levels, label="wide", alive=np.ones(n, dtype=bool)
        ).to_pylist()
        mine = [r for r in found if r["relation"] == "parent"]
        assert sum(r["n_pairs"] for r in mine) == len(parents)
        assert sum(r["n_expected"] for r in mine) == pytest.approx(len(parents))
        if ordered:
            assert all(r["n_pairs"] == 0 for r in mine if r["above"] >= r["below"])
        else:
            means = [[r[k] for r in mine if r["above"] < r["below"]] for k in ("n_pairs", "n_expected")]
            seen.append([sum(m) for m in means])
    inner, chance = np.mean(seen, axis=0)
    assert inner == pytest.approx(chance, rel=0.2)


@pytest.mark.parametrize("levels", [[8, 8], [0, 8], [100_000], [9, 3]])
def test_levels_that_do_not_rise_are_an_error(planted, levels: list[int]) -> None:
    world, x, _ = planted
    with pytest.raises(ConfigError, match="sizes that rise"):
        relations_of(world.wide, x[:50], label="wide", levels=levels)


def test_pairs_are_counted_by_interference(planted) -> None:
    _, _, made = planted
    counts = by_interference(made.relations)
    assert sum(v for row in counts for v in row.values() if isinstance(v, int)) == made.relations.num_rows


def test_a_wider_dictionary_is_no_narrow_one(planted) -> None:
    world, x, _ = planted
    with pytest.raises(MismatchError, match="expected fewer"):
        relations_of(world.narrow, x, label="a", narrow=[world.wide])
    with pytest.raises(ConfigError, match="no activations of"):
        relations_of(world.wide, x[:0], label="a")


def test_planted_relations_are_whole() -> None:
    truth = tree_world().truth
    assert isinstance(truth, PlantedRelations)
    assert [len(getattr(truth, name)) for name in ("parent", "split", "absorbed")] == [114, 6, 2]


def test_a_code_without_a_ridge_is_sklearns() -> None:
    """Four rows of 60 for each of 40 others; and blocks of two give the same."""
    from sklearn.linear_model import orthogonal_mp

    rng = np.random.default_rng(3)
    by = rng.standard_normal((60, 12))
    by /= np.linalg.norm(by, axis=1, keepdims=True)
    rows = rng.standard_normal((40, 12))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = sparse_code(rows, by, ridge=0.0)
    expected = orthogonal_mp(by.T, rows.T, n_nonzero_coefs=4).T
    dense = np.zeros_like(expected)
    np.put_along_axis(dense, found.atoms, found.weights, axis=1)
    np.testing.assert_allclose(dense, expected, atol=1e-9)
    np.testing.assert_allclose(found.explained, 1 - ((rows - expected @ by) ** 2).sum(1), atol=1e-9)
    own = sparse_code(by[:7], by, own=np.arange(7))
    assert (own.atoms != np.arange(7)[:, None]).all()
    assert [len(set(row)) for row in own.atoms.tolist()] == [4] * 7


def test_features_built_of_features_are_explained_by_them(monkeypatch) -> None:
    """Half of the rows are sums of three of the other half; rows at random are explained as chance says."""
    rng = np.random.default_rng(4)
    monkeypatch.setattr("polysem.hierarchy.meta._CELLS", 50_000)
    parts = rng.standard_normal((100, 64)) / 8
    built = np.array([parts[rng.choice(100, 3, replace=False)].sum(0) for _ in range(100)]) / np.sqrt(3)
    means = []
    for rows in (np.concatenate([parts, built]), rng.standard_normal((800, 32))):
        units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        x = rng.standard_normal((100, rows.shape[1])).astype(np.float32)
        means.append(meta_code(fired(planted_sae(units, units), x), label="rows"))
    whole, chance = (mean_code(table) for table in means)
    late = means[0].filter(pc.greater_equal(means[0]["feature"], 100))
    assert mean_code(late)["explained"] > 0.9
    assert whole["explained"] > max(whole["turned"], whole["drawn"]) + 0.2
    assert abs(chance["explained"] - chance["turned"]) < 0.02
    assert abs(chance["explained"] - chance["drawn"]) < 0.02
