"""Planned pairs looked at with the model: one concept twice stands apart, and a second measure of similarity."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from polysem.config import PairsConfig, PlanConfig, parse_study
from polysem.interventions.arms import Arm, arms_of
from polysem.interventions.atlas import Atlas
from polysem.interventions.base import Recipe
from polysem.interventions.signals import flagged_pairs, pair_signals, second_texts
from polysem.interventions.snippets import Context, Contexts
from polysem.pairs import map_pairs
from polysem.plan import make_plan
from polysem.stats.glosses import gloss_reliability
from polysem.store.tables import GLOSSES, PAIRS, PARTNERS, PROMPTS, SIGNALS
from polysem.testing.planted import LABEL, plain_sae, planted_study
from polysem.testing.tiny import tiny_model
from polysem.types import Site

D = 16


@pytest.fixture(scope="module")
def planted():
    return planted_study()


@pytest.fixture(scope="module")
def atlas():
    """Feature 1 is nearly feature 0; feature 2 lies at a cosine of 0.3 to it, on other tokens."""
    rows = np.linalg.qr(np.random.default_rng(0).standard_normal((D, D)))[0][:4]
    rows[1] = 0.8 * rows[0] + 0.6 * rows[1]
    rows[2] = 0.3 * rows[0] + np.sqrt(1 - 0.09) * rows[2]
    sae = plain_sae(rows, site=Site.parse("blocks.0.hook_resid_post"))
    contexts = Contexts({f: [Context([3 + f, 9, 12, 20 + f], 3)] for f in range(4)}, {}, {})
    return Atlas(
        label="s", sae=sae, density=np.full(4, 0.01), embeddings=np.eye(4),
        tokens_in=[frozenset({k}) for k in range(4)], tokens_out=[frozenset({k}) for k in range(4)],
        mined=PAIRS.empty(), partners=PARTNERS.empty(), contexts=contexts,
    )  # fmt: skip


def arms(*pairs):
    return [Arm("pair", t, s, 0, Recipe.of("decoder", feature=s).text, 0, 0.5, 0.1) for t, s in pairs]


def prompts():
    row = {"prompt_id": "p", "text": "t", "token_ids": [0, 4, 8, 15], "source": "t", "split": "confirm"}
    return pa.Table.from_pylist([row], schema=PROMPTS.arrow())


def test_one_concept_twice_is_flagged_and_a_pair_at_an_angle_is_not(atlas):
    table = pair_signals(atlas, arms((0, 1), (0, 3), (0, 1)), tiny_model("gpt2"), prompts(), seed=0)
    rows = {(r["target"], r["source"]): r for r in table.to_pylist()}
    assert set(rows) == {(0, 1), (0, 3)}
    assert rows[0, 1]["interference"] == pytest.approx(0.8, abs=1e-6)
    assert rows[0, 3]["interference"] == pytest.approx(0.0, abs=1e-6)
    assert rows[0, 1]["flagged"]
    assert flagged_pairs(table) >= {(0, 1)}
    assert {r["measure_2"] for r in rows.values()} == {""}
    assert {r["similarity_2"] for r in rows.values()} == {None}


def test_without_pairs_there_is_nothing_to_look_at(atlas):
    assert pair_signals(atlas, [], tiny_model("gpt2"), prompts(), seed=0).num_rows == 0


def test_the_second_measure_is_the_cosine_of_the_second_vectors(atlas):
    second = np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0], [0.0, 2.0]])
    table = pair_signals(
        atlas, arms((0, 1), (0, 2), (3, 1)), tiny_model("gpt2"), prompts(), second=second, measure="m", seed=0
    )
    found = {(r["target"], r["source"]): r["similarity_2"] for r in table.to_pylist()}
    assert found[0, 1] == pytest.approx(0.6)
    assert found[3, 1] == pytest.approx(0.8)
    assert found[0, 2] is None  # no second gloss: not a number
    assert set(table["measure_2"].to_pylist()) == {"m"}


def test_second_glosses_are_those_of_the_sae():
    rows = [
        {"sae": sae, "feature": 4, "gloss_index": k, "text": f"{sae}{k}", "source": "t", "explainer": None}
        for sae in ("a", "b")
        for k in range(3)
    ]
    assert second_texts(pa.Table.from_pylist(rows, schema=GLOSSES.arrow()), "b") == {4: "b1"}


def test_a_flagged_pair_stands_apart_and_has_no_controls_of_its_own(planted):
    pairs, plan = PairsConfig(), PlanConfig(controls=("cosine_matched",), sources_per_bin=1)
    mapped = map_pairs(planted.sae, planted, config=pairs, label=LABEL)
    tables = {"pairs": mapped.pairs, "partners": mapped.partners}
    whole = Atlas.of(
        LABEL, planted.sae, features=planted.features, embeddings=planted.embeddings[LABEL], **tables
    )
    before = arms_of(whole, [1, 2], pairs=pairs, plan=plan, seed=0)
    first = next(arm for arm in before if arm.relation == "pair")
    apart = dataclasses.replace(whole, split=frozenset({(first.target, first.source)}))
    after = arms_of(apart, [1, 2], pairs=pairs, plan=plan, seed=0)
    assert [a for a in after if a.relation == "split_pair"] == [first._replace(relation="split_pair")]
    assert {a for a in before if a.relation == "pair"} - {a for a in after if a.relation == "pair"} == {first}
    n = [sum(a.relation == "cosine_matched" for a in some) for some in (before, after)]
    assert n[1] == n[0] - 2


def test_a_plan_without_a_model_looks_at_nothing(planted):
    study = parse_study('[model]\nref = "world:linear"\n[[saes]]\nref = "planted"\n[plan]\ndoses = [0.1]')
    pairs = map_pairs(planted.sae, planted, config=study.pairs, label=LABEL)
    made = make_plan(study, planted, pairs, planted.prompts, planted.saes)
    assert (made.signals.num_rows, made.neurons.num_rows) == (0, 0)
    assert "split_pair" not in set(made.plan["relation"].to_pylist())


def test_without_a_second_measure_there_is_no_row_on_reliability():
    assert gloss_reliability(SIGNALS.empty(), []).num_rows == 0
