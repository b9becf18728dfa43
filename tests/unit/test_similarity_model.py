"""The one-factor model of several measures of similarity, and what is told of pairs by it."""

import numpy as np
import pyarrow as pa
import pytest

from polysem.stats.reliability import instrumented
from polysem.stats.similarity import (
    LATENT,
    Latent,
    correlated,
    latent_similarity,
    loadings_between,
    one_factor,
    similarity_model,
)
from polysem.store.tables import SIMILARITIES
from polysem.worlds.gloss import gloss_world

LOADINGS = np.array([0.5, 0.8, 0.65, 0.3])
NAMES = ("gloss:minilm", "tokens:glove", "tokens:wordnet", "contexts:minilm")


def world(n=80, loadings=LOADINGS, seed=0):
    """Similarities of all pairs of n features: a true one, of vectors of meaning, and measures of it with noise."""
    rng = np.random.default_rng(seed)
    meaning = rng.standard_normal((n, 12))
    i, j = np.triu_indices(n, 1)
    true = (meaning[i] * meaning[j]).sum(axis=1)
    true = (true - true.mean()) / true.std()
    noise = rng.standard_normal((len(i), len(loadings)))
    z = loadings * true[:, None] + np.sqrt(1 - loadings**2) * noise
    return np.column_stack([i, j]), true, z


def table(nodes, z, *, random, limit=1.0, split="halves"):
    rows = []
    for place, name in enumerate(NAMES[: z.shape[1]]):
        for k, (a, b) in enumerate(nodes.tolist()):
            value = None if np.isnan(z[k, place]) else float(z[k, place])
            rows.append({"sae": "s", "target": a, "source": b, "measure": name, "place": place, "random": bool(random[k]),
                         "value": value, "half_1": None, "half_2": None, "limit": limit, "split": split, "made_by": "m"})  # fmt: skip
    return SIMILARITIES.of(rows)


def test_planted_loadings_are_recovered():
    nodes, true, z = world()
    found, ends = loadings_between(z, nodes, level=0.95, seed=0)
    np.testing.assert_allclose(found.loadings, LOADINGS, atol=0.05)
    assert (ends[0] < LOADINGS).all()
    assert (ends[1] > LOADINGS).all()
    seen = np.corrcoef(found.scores(z), true)[0, 1] ** 2
    assert found.reliability == pytest.approx(seen, abs=0.05)
    assert seen > (LOADINGS**2).max()  # together they know more than the best alone


def test_exact_correlations_give_exact_loadings_and_two_measures_share_one():
    exact = np.outer(LOADINGS, LOADINGS)
    np.fill_diagonal(exact, 1)
    np.testing.assert_allclose(one_factor(exact).loadings, LOADINGS, atol=1e-6)
    two = one_factor(np.array([[1, 0.36], [0.36, 1]]))
    np.testing.assert_allclose(two.loadings, 0.6)
    assert "two measures" in two.remark
    none = one_factor(np.array([[1, -0.2], [-0.2, 1]]))
    assert np.isnan(none.loadings).all()
    assert "nothing in common" in none.remark
    assert np.isnan(one_factor(np.eye(1)).loadings).all()


def test_an_unknown_measure_leaves_the_score_to_the_others():
    nodes, _, z = world()
    model, _ = loadings_between(z, nodes, level=0.95, seed=0)
    hidden = z.copy()
    hidden[:, 0] = np.nan
    assert np.isfinite(model.scores(hidden)).all()
    assert np.corrcoef(model.scores(hidden), model.scores(z))[0, 1] > 0.9
    assert np.isnan(model.scores(np.full((1, 4), np.nan))).all()


def test_few_pairs_or_a_constant_measure_are_not_correlated():
    nodes, _, z = world()
    assert np.isnan(correlated(z[:20])[1, 0])
    z[:, 2] = 3.0
    assert np.isnan(correlated(z)[2, 0])
    found, ends = loadings_between(z, nodes, level=0.95, seed=0)
    assert np.isnan(found.loadings).all()
    assert np.isnan(ends).all()


def test_pairs_are_unrelated_by_all_by_any_or_by_none():
    nodes, _, z = world(n=40)
    random = np.ones(len(z), dtype=bool)
    random[:4] = False
    z[:4] = [
        [0, 0, 0, 0],
        [0, 2, 0, 3],
        [2, 2, 2, 2],
        [0, 1, np.nan, np.nan],
    ]  # limit 1: at it the first is related
    found = Latent.of(table(nodes, z, random=random), level=0.95, seed=0)
    rows = sorted(latent_similarity(found).to_pylist(), key=lambda r: (r["target"], r["source"]))
    assert [r["unrelated_by_all"] for r in rows] == [True, False, False, True]
    assert [r["unrelated_by_any"] for r in rows] == [True, True, False, True]
    assert [r["n_known"] for r in rows] == [4, 4, 4, 2]
    assert rows[1]["related_by"] == "tokens:glove, contexts:minilm"
    told = {r["measure"]: r for r in similarity_model(found, level=0.95).to_pylist()}
    assert set(told) == {*NAMES, LATENT}
    assert told["tokens:glove"]["n_related"] == 2
    assert told[NAMES[0]]["r_own"] == 1.0
    assert told[LATENT]["reliability"] == pytest.approx(found.model.reliability)
    assert told[LATENT]["n_related"] == 2


def test_halves_give_the_reliability_of_the_whole():
    """Two halves with a correlation of r: the whole has 2 r / (1 + r), by Spearman and Brown."""
    nodes, true, z = world(loadings=np.array([0.9, 0.9]))
    rng = np.random.default_rng(1)
    made = table(nodes, z, random=np.ones(len(z), dtype=bool)).to_pylist()
    half = true[:, None] + rng.standard_normal((len(true), 2))
    for k, row in enumerate(made):
        row["half_1"], row["half_2"] = half[k % len(true)].tolist()
    order = {
        (r["target"], r["source"]): k
        for k, r in enumerate({"target": a, "source": b} for a, b in nodes.tolist())
    }
    for row in made:
        row["half_1"], row["half_2"] = half[order[row["target"], row["source"]]].tolist()
    found = Latent.of(SIMILARITIES.of(made), level=0.95, seed=0)
    for row in similarity_model(found, level=0.95).to_pylist()[:2]:
        if row["measure"] != LATENT:
            assert row["r_halves"] == pytest.approx(0.5, abs=0.04)
            assert row["reliability_halves"] == pytest.approx(2 / 3, abs=0.04)


def test_without_measures_nothing_is_told():
    assert Latent.of(SIMILARITIES.empty(), level=0.95, seed=0) is None
    assert similarity_model(None, level=0.95).num_rows == 0
    assert latent_similarity(None).num_rows == 0


def test_a_covariate_that_is_held_fixed_takes_its_own_effect():
    """The effect is all the covariate's, which interference goes along with: held fixed, interference has none left."""
    made = gloss_world(gamma=0.0, seed=3)
    held = made.interference + np.random.default_rng(0).standard_normal(len(made.effect))
    args = (made.effect + held, made.interference, *made.similarity, made.clusters)
    assert instrumented(*args).corrected > 0.8
    assert abs(instrumented(*args, held=held[:, None]).corrected) < 0.05


def test_the_table_is_that_of_its_schema():
    nodes, _, z = world(n=12)
    assert pa.types.is_int8(table(nodes, z, random=np.ones(len(z), bool))["place"].type)
