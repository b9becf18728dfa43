"""The paper's strengths beside a study's own: what the preset adds to a plan, and what it leaves alone."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from polysem.config import parse_study
from polysem.interventions.base import Recipe
from polysem.interventions.strengths import PAPER_CHANGES, PAPER_SCALES, own_strengths, paper_strengths
from polysem.pairs import map_pairs
from polysem.plan import make_plan
from polysem.store.tables import CONTEXTS
from polysem.testing.planted import LABEL, planted_study

STUDY = """
[model]
ref = "world:linear"
[[saes]]
ref = "planted"
[plan]
n_targets = 3
sources_per_bin = 1
n_random = 2
doses = [0.1, 0.2]
batch_rows = 7
{more}
"""
MORE = 'controls = ["random_feature", "random_direction", "cosine_matched"]\nloci = ["feature", "neuron"]'


def study_of(more, preset="strict"):
    return parse_study(STUDY.format(more=more)).model_copy(update={"preset": preset})


def plan_of(planted, study, features=None):
    pairs = map_pairs(planted.sae, planted, config=study.pairs, label=LABEL)
    return make_plan(study, features or planted, pairs, planted.prompts, planted.saes)


def distinct(table, *columns):
    return set(zip(*(table[c].to_pylist() for c in columns), strict=True))


@pytest.fixture(scope="module")
def planted():
    return planted_study()


@pytest.fixture(scope="module")
def tables(planted):
    found = {}
    for preset in ("strict", "paper", "both"):
        found[preset] = plan_of(planted, study_of(MORE, preset)).plan
    return found


def test_the_grids_are_the_papers():
    assert len(PAPER_SCALES) == 32
    assert {abs(s) for s in PAPER_SCALES} == {0.5, 1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 20}
    assert 0.0 not in PAPER_SCALES
    assert PAPER_CHANGES[0] == -1.0  # ablation
    assert PAPER_CHANGES[-1] == 19.0  # times 20
    assert len(PAPER_CHANGES) == 18


def test_a_strict_study_has_none_of_them(tables):
    assert paper_strengths(tables["strict"]).num_rows == 0
    assert own_strengths(tables["strict"]).num_rows == tables["strict"].num_rows


def test_the_papers_rows_are_on_the_same_arms_and_prompts_at_its_strengths_and_everywhere(tables):
    paper, own = paper_strengths(tables["both"]), own_strengths(tables["both"])
    assert set(paper["positions"].to_pylist()) == {"all"}
    assert set(own["positions"].to_pylist()) == {"all_but_first"}
    for locus, unit, doses in (
        ("feature", "paper_scale", PAPER_SCALES),
        ("neuron", "paper_factor", PAPER_CHANGES),
    ):
        mine = paper.filter(pc.equal(paper["locus"], locus))
        assert set(mine["dose_unit"].to_pylist()) == {unit}
        assert sorted(set(mine["dose"].to_pylist())) == list(doses)
        theirs = own.filter(pc.equal(own["locus"], locus))
        arms = ("relation", "target", "source", "draw", "prompt_id", "token_set")
        assert distinct(mine, *arms) < distinct(theirs, *arms) or locus == "neuron"
        pairs = [t.filter(pc.equal(t["relation"], "pair")) for t in (mine, theirs)]
        assert distinct(pairs[0], *arms) == distinct(pairs[1], *arms)
    assert "cosine_matched" not in set(paper["relation"].to_pylist())


def test_what_the_study_does_itself_is_the_same_trials_but_for_the_isotropic_arm(tables):
    """The paper's only control is added where the study does not name it; nothing else changes."""
    own = own_strengths(tables["both"])
    assert set(own["relation"].to_pylist()) - set(tables["strict"]["relation"].to_pylist()) == {"isotropic"}
    rest = own.filter(pc.not_equal(own["relation"], "isotropic"))
    assert set(rest["trial_id"].to_pylist()) == set(tables["strict"]["trial_id"].to_pylist())
    assert tables["paper"].drop_columns("batch").equals(tables["both"].drop_columns("batch"))


def test_no_trial_is_planned_twice_and_no_batch_mixes_ways(tables):
    table = tables["both"]
    assert len(pc.unique(table["trial_id"])) == table.num_rows
    ways = table.group_by("batch").aggregate(
        [("dose_unit", "count_distinct"), ("positions", "count_distinct")]
    )
    assert pc.max(ways["dose_unit_count_distinct"]).as_py() == 1
    assert pc.max(ways["positions_count_distinct"]).as_py() == 1


def test_gradients_and_snippets_are_the_papers(planted):
    """Its probe is the sum of all coordinates, its snippets stand between asterisks and have no opposite."""
    rows = [
        {"sae": LABEL, "feature": f, "rank": 0, "max_value": 1.0, "position": 3, "source": "t"}
        | {"token_ids": [5, 6, 7 + f, 8], "tokens": [" a", " b", " c", " d"], "values": [0.0, 0.0, 0.0, 1.0]}
        for f in range(planted.sae.d_sae)
    ]  # fmt: skip
    contexts = pa.Table.from_pylist(rows, schema=CONTEXTS.arrow())
    features = SimpleNamespace(features=planted.features, embeddings=planted.embeddings, contexts=contexts)
    study = study_of('loci = ["gradient", "prompt"]\nsnippet_tokens = 2').model_copy(
        update={"preset": "both"}
    )
    table = plan_of(planted, study, features=features).plan
    probes = {
        (unit, Recipe.parse(r).text_of("probe"))
        for r, unit in distinct(table, "recipe", "dose_unit")
        if Recipe.parse(r).kind == "gradient"
    }
    assert probes == {(study.plan.dose_unit, "encoder"), ("paper_scale", "ones")}
    forms = {
        (unit, Recipe.parse(r).text_of("form"), bool(np.sign(dose) > 0))
        for r, unit, dose in distinct(table, "recipe", "dose_unit", "dose")
        if Recipe.parse(r).kind == "snippet"
    }
    assert forms == {
        ("injection", "prefix", True),
        ("injection", "prefix", False),
        ("paper_injection", "wrapped", True),
    }
