"""Planned pairs looked at with the model: one concept twice stands apart, and what another measure finds related."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from polysem.act.arms import Arm, ArmsRequest
from polysem.act.base import Recipe
from polysem.act.snippets import Contexts, FiringContext
from polysem.config import PairsConfig, PlanConfig, parse_study
from polysem.pairs import map_pairs
from polysem.plan import make_plan
from polysem.plan.arms import control_arms, pair_arms
from polysem.plan.index import FeatureIndex
from polysem.plan.signals import apart_from, flagged_pairs, pair_signals
from polysem.plan.similarities import related_pairs, similarity_tables
from polysem.store.tables import GLOSSES, PAIRS, PARTNERS, PROMPTS
from polysem.types import Site
from polysem.worlds.tables import plain_sae
from polysem.worlds.tiny import tiny_model
from support.planted import LABEL, planted_study

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
    contexts = Contexts({f: [FiringContext([3 + f, 9, 12, 20 + f], 3)] for f in range(4)}, {}, {})
    return FeatureIndex(
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


def test_without_pairs_there_is_nothing_to_look_at(atlas):
    assert pair_signals(atlas, [], tiny_model("gpt2"), prompts(), seed=0).num_rows == 0


def test_a_flagged_pair_stands_apart_and_has_no_controls_of_its_own(planted):
    pairs, plan = PairsConfig(), PlanConfig(controls=("cosine_matched",), sources_per_bin=1)
    mapped = map_pairs(planted.sae, planted, config=pairs, label=LABEL)
    tables = {"pairs": mapped.pairs, "partners": mapped.partners}
    whole = FeatureIndex.of(
        LABEL,
        planted.sae,
        features=planted.features,
        embeddings=planted.embeddings[LABEL],
        contexts=planted.contexts,
        **tables,
    )
    request = ArmsRequest(whole, [1, 2], pairs, plan, 0)
    drawn = pair_arms(request)
    first = next(arm for arm in drawn if arm.relation == "pair")
    apart = apart_from(drawn, {(first.target, first.source)})
    before, after = (
        [*some, *control_arms(dataclasses.replace(request, arms=some))] for some in (drawn, apart)
    )
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


@pytest.fixture
def index(planted):
    mapped = map_pairs(planted.sae, planted, config=PairsConfig(), label=LABEL)
    return FeatureIndex.of(
        LABEL,
        planted.sae,
        features=planted.features,
        embeddings=planted.embeddings[LABEL],
        contexts=planted.contexts,
        pairs=mapped.pairs,
        partners=mapped.partners,
    )


def study_with(named, preset="strict"):
    return parse_study(
        f'preset = "{preset}"\n[model]\nref = "world:linear"\n[[saes]]\nref = "planted"\n[glosses]\nsimilarity = {named}'
    )


class Planted:
    """A measure that finds one pair of words related, and counts what it is asked."""

    source = "a test"

    def __init__(self, alike):
        self.alike = alike

    def compare(self, left, right):
        return np.array(
            [
                9.0 if {a, b} == self.alike else k / len(left)
                for k, (a, b) in enumerate(zip(left, right, strict=True))
            ]
        )


def test_a_pair_that_another_measure_finds_related_stands_apart(planted, index, monkeypatch):
    drawn = pair_arms(ArmsRequest(index, [0, 1, 2], PairsConfig(), PlanConfig(), 0))
    pair = next(arm for arm in drawn if arm.relation == "pair")
    words = {r["feature"]: r["text"] for r in planted.glosses.to_pylist()}
    measure = Planted({words[pair.target], words[pair.source]})
    cosine = Planted(set())
    monkeypatch.setattr(
        "polysem.plan.similarities.open_measure", lambda name: measure if "wordllama" in name else cosine
    )
    arms, tables = similarity_tables(index, study_with('["gloss:wordllama"]'), planted, drawn)
    assert [a for a in arms if a.relation == "related_pair"] == [pair._replace(relation="related_pair")]
    assert sum(a.relation == "pair" for a in arms) == sum(a.relation == "pair" for a in drawn) - 1
    table = tables["similarities"]
    assert related_pairs(table) == {(pair.target, pair.source)}
    own = [r for r in table.to_pylist() if r["place"] == 0]
    known = {(a.target, a.source): a.similarity for a in drawn if a.relation == "pair"}
    assert {
        (r["target"], r["source"]): pytest.approx(r["value"], abs=1e-6) for r in own if not r["random"]
    } == known
    assert {frozenset((r["target"], r["source"])) for r in own if r["random"]}.isdisjoint(
        map(frozenset, known)
    )
    assert {r["measure"] for r in table.to_pylist()} == {"gloss:minilm", "gloss:wordllama"}
    # the paper's preset goes by the gloss cosine alone
    arms, again = similarity_tables(index, study_with('["gloss:wordllama"]', "paper"), planted, drawn)
    assert arms == list(drawn)
    assert again["similarities"].equals(table)


def test_without_further_measures_nothing_is_asked(planted, index):
    drawn = pair_arms(ArmsRequest(index, [0, 1], PairsConfig(), PlanConfig(), 0))
    assert similarity_tables(index, study_with("[]"), planted, drawn) == (list(drawn), {})
    assert similarity_tables(index, study_with('["gloss:minilm"]'), planted, []) == ([], {})


def test_two_glosses_of_a_feature_are_two_halves(planted, index, monkeypatch):
    """No measure need be named: the agreement of the two glosses is known at no cost but their vectors."""
    rows = planted.glosses.to_pylist()
    second = [r | {"gloss_index": 1, "text": f"second {r['text']}"} for r in rows]
    twice = dataclasses.replace(planted, glosses=pa.Table.from_pylist(rows + second, schema=GLOSSES.arrow()))
    asked = []

    class Noted(Planted):
        def compare(self, left, right):
            asked.append({text.partition(" ")[0] == "second" for text in (*left, *right)})
            return super().compare(left, right)

    monkeypatch.setattr("polysem.plan.similarities.open_measure", lambda name: Noted(set()))
    drawn = pair_arms(ArmsRequest(index, [0, 1], PairsConfig(), PlanConfig(), 0))
    _, tables = similarity_tables(index, study_with("[]"), twice, drawn)
    assert set(tables["similarities"]["split"].to_pylist()) == {"glosses"}
    assert asked == [{False}, {False}, {True}]
