"""Negative controls: who is drawn, from which geometry, and that nothing of the truth is left in it."""

import dataclasses

import numpy as np
import pyarrow.compute as pc
import pytest

from polysem.act.base import Recipe, SiteContext, intervention
from polysem.config import parse_study
from polysem.plan.index import FeatureIndex
from polysem.plan.negative import frozen_decoder, shuffled_glosses
from polysem.store.tables import CONTEXTS, PAIRS, PARTNERS
from polysem.vocabulary import RELATIONS
from support.arms import arms_of
from support.planted import LABEL, planted_study

STUDY = """
[model]
ref = "world:linear"
[[saes]]
ref = "planted"
[plan]
sources_per_bin = 2
controls = ["frozen_decoder", "shuffled_gloss"]
"""


@pytest.fixture(scope="module")
def planted():
    return planted_study(n_targets=6, n_plain=200)


@pytest.fixture(scope="module")
def atlas(planted):
    return FeatureIndex.of(
        LABEL, planted.sae, features=planted.features, embeddings=planted.embeddings[LABEL],
        pairs=PAIRS.empty(), partners=PARTNERS.empty(), contexts=CONTEXTS.empty(),
    )  # fmt: skip


def arms(atlas, targets=(0, 1, 2), seed=0, **changes):
    study = parse_study(STUDY)
    plan = study.plan.model_copy(update=changes)
    found = arms_of(atlas, targets, pairs=study.pairs, plan=plan, seed=seed)
    return [arm for arm in found if RELATIONS[arm.relation].role == "null"]


def of(found, relation):
    return [arm for arm in found if arm.relation == relation]


def test_frozen_pairs_lie_in_the_bins_of_the_frozen_cosine(planted, atlas):
    rows = frozen_decoder(atlas, seed=0)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0)
    bench = SiteContext(
        LABEL, planted.sae, planted.model.spec, activations=lambda: np.zeros((0, planted.sae.d_in))
    )
    edges = parse_study(STUDY).pairs.bins
    found = of(arms(atlas), "frozen_decoder")
    assert {a.interference_bin for a in found} >= {0, 1}
    for arm in found:
        pushed = intervention("feature").realise(Recipe.parse(arm.recipe), bench)
        assert np.array_equal(pushed, rows[arm.source])
        assert arm.interference == pytest.approx(float(rows[arm.source] @ rows[arm.target]), abs=1e-12)
        assert edges[arm.interference_bin] <= arm.interference < edges[arm.interference_bin + 1]
        assert arm.source != arm.target
        assert arm.source not in planted.forbidden.values()


def test_a_frozen_decoder_knows_nothing_of_the_real_one(planted, atlas):
    """Its cosines are those of random directions and do not go with the real ones."""
    rows = frozen_decoder(atlas, seed=0)
    real = planted.sae.W_dec.double().numpy()
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    upper = np.triu_indices(len(rows), 1)
    drawn, true = (rows @ rows.T)[upper], (real @ real.T)[upper]
    assert drawn.std() == pytest.approx(planted.sae.d_in**-0.5, rel=0.02)
    # 246 rows give about 30,000 pairs; their correlation has a standard error near 1 / 246 at most
    assert abs(np.corrcoef(drawn, true)[0, 1]) < 4 / len(rows)


def test_shuffled_glosses_are_the_same_glosses_elsewhere(planted, atlas):
    dealt = shuffled_glosses(atlas, seed=0)
    glossed = atlas.glossed
    assert np.array_equal(np.abs(dealt).max(axis=1) > 0, glossed)
    assert np.array_equal(np.sort(dealt, axis=0), np.sort(atlas.embeddings, axis=0))
    moved = (dealt[glossed] != atlas.embeddings[glossed]).any(axis=1)
    assert moved.mean() > 0.95
    bare = planted.forbidden["unglossed"]
    assert not dealt[bare].any()


def test_shuffled_pairs_obey_the_cut_of_the_shuffled_similarity(planted, atlas):
    dealt = shuffled_glosses(atlas, seed=0)
    found = of(arms(atlas), "shuffled_gloss")
    assert len(found) >= 3 * 2
    for arm in found:
        vectors = dealt[[arm.source, arm.target]].astype(np.float64)
        a, b = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        assert arm.similarity == pytest.approx(float(a @ b), abs=1e-6)
        assert arm.similarity < 0.3
        assert arm.interference == pytest.approx(
            float(atlas.alignments([arm.target])[0, arm.source]), abs=1e-12
        )
        assert arm.recipe == Recipe.of("decoder", feature=arm.source).text


def test_draws_depend_on_seed_and_target_only(atlas):
    some, more = arms(atlas, targets=(1,)), arms(atlas, targets=(0, 1, 2))
    assert set(some) < set(more)
    assert set(arms(atlas, seed=1)) != set(more)
    assert arms(atlas, controls=()) == []
    renamed = dataclasses.replace(atlas, label="other")
    assert not np.allclose(frozen_decoder(renamed, seed=0), frozen_decoder(atlas, seed=0))


def test_the_plan_holds_them_and_the_effects_table_their_slopes():
    """Through the whole pipeline on a planted world: pairs have a slope, the controls have rows and none."""
    from polysem.features import FeatureTable
    from polysem.pairs import map_pairs
    from polysem.plan import make_plan
    from polysem.stats.effects import estimate
    from polysem.store.tables import CLUSTERS
    from polysem.trials import run_batches

    planted = planted_study(cosines=(0.05, 0.15, 0.25, 0.35, 0.5), n_targets=8, n_plain=300, route=0.3)
    study = parse_study(
        STUDY.replace("[plan]", '[plan]\ndoses = [0.1]\ndose_unit = "absolute"\nn_targets = 8')
    )
    features = FeatureTable(
        features=planted.features, glosses=planted.glosses, contexts=planted.contexts,
        clusters=CLUSTERS.empty(), embeddings=planted.embeddings,
    )  # fmt: skip
    pairs = map_pairs(planted.sae, features, config=study.pairs, label=LABEL)
    plan = make_plan(study, features, pairs, planted.prompts, planted.saes)
    batches = sorted(set(plan.plan["batch"].to_pylist()))
    trials = run_batches(plan.plan, plan.prompts, features, planted.model, planted.saes, batches=batches)
    table = estimate(plan.plan, trials, config=study.effects, seed=0).effects
    rows = {
        (r["contrast"], r["group"]): r
        for r in table.filter(
            pc.match_substring(table["group"], "sae=*; outcome=logodds; tokens=in")
        ).to_pylist()
    }
    slope = next(r for (c, _), r in rows.items() if c == "slope_interference")
    assert slope["lo"] > 0
    for contrast, relation in (
        ("null_slope_interference", "frozen_decoder"),
        ("null_slope_similarity", "shuffled_gloss"),
    ):
        (row,) = [r for (c, g), r in rows.items() if c == contrast and f"relation={relation}" in g]
        assert row["n_pairs"] >= 16
        assert row["lo"] <= 0 <= row["hi"]
        assert "negative control" in row["note"]
