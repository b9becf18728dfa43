"""The paper's strengths beside a study's own: what the preset adds to a plan, and what it leaves alone."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from polysem.act.base import Recipe, SiteContext
from polysem.act.gradient import GRADIENT
from polysem.act.snippets import Contexts, FiringContext
from polysem.config import parse_study
from polysem.models.gradients import probe_gradient
from polysem.pairs import map_pairs
from polysem.paper.blocks import nearest
from polysem.paper.strengths import PAPER_CHANGES, PAPER_SCALES, T_F_RATIO, T_F_TOKENS
from polysem.plan import make_plan
from polysem.plan.strengths import own_strengths, paper_strengths
from polysem.store.tables import CONTEXTS
from polysem.types import Site
from polysem.worlds.tables import plain_sae
from polysem.worlds.tiny import tiny_model
from support.planted import LABEL, planted_study

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
    assert set(paper["positions"].to_pylist()) == {"all_no_bos"}
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
    features = SimpleNamespace(
        features=planted.features,
        embeddings=planted.embeddings,
        contexts=contexts,
        glosses=planted.glosses,
        clusters=planted.clusters,
    )
    study = study_of('loci = ["gradient", "prompt"]\nsnippet_tokens = 2').model_copy(
        update={"preset": "both"}
    )
    table = plan_of(planted, study, features=features).plan
    probes = {
        (unit, Recipe.parse(r).text_of("probe"))
        for r, unit in distinct(table, "recipe", "dose_unit")
        if Recipe.parse(r).kind in ("gradient", "gradient_sum")
    }
    assert probes == {(study.plan.dose_unit, "encoder"), ("paper_scale", "ones")}
    kinds = {(unit, Recipe.parse(r).kind) for r, unit in distinct(table, "recipe", "dose_unit")}
    assert {(study.plan.dose_unit, "gradient"), ("paper_scale", "gradient_sum")} <= kinds
    positions = dict(distinct(table, "dose_unit", "positions"))
    assert positions["paper_scale"] == "all_no_bos"
    assert positions["paper_injection"] == "all"
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


def test_the_papers_gradient_is_summed_over_all_tokens_that_fire():
    context = FiringContext([9, 4, 7, 5], 2, (0.0, 8.5, 10.0, 7.9))
    assert context.firing(0.8) == [1, 2]
    assert FiringContext([9, 4], 1).firing(0.8) == [1]
    model, site = tiny_model("gpt2", d_model=16), Site.parse("blocks.0.hook_mlp_out")
    sae = plain_sae(np.random.default_rng(0).standard_normal((6, 16)), site=site)
    at = SiteContext("s", sae, model.spec, activations=lambda: np.empty((0, 16)), model=model)
    made = {
        kind: GRADIENT.realise(Recipe.of(kind, feature=3, probe="encoder", tokens="9 4 7", **where), at)
        for kind, where in (("gradient", {"position": 2}), ("gradient_sum", {"positions": "1 2"}))
    }
    tokens, probe = torch.tensor([[9, 4, 7]]), sae.W_enc[:, 3]
    each = [probe_gradient(model, tokens, site, k, probe).double().numpy() for k in (1, 2)]
    for vector, expected in ((made["gradient"], each[1]), (made["gradient_sum"], each[0] + each[1])):
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


def test_the_papers_tokens_are_the_five_best_with_half_the_largest_activation():
    best = FiringContext([1, 2, 3, 4, 5], 0, (10.0, 9.0, 8.0, 7.0, 4.9))
    other = FiringContext([2, 6, 7, 8], 1, (1.0, 9.5, 5.0, 5.1))
    contexts = Contexts({0: [best, other], 1: [FiringContext([3], 0)]}, {}, {})
    assert contexts.top_tokens(0, T_F_TOKENS, ratio=T_F_RATIO) == [1, 6, 2, 3, 4]
    assert contexts.top_tokens(0, 9, ratio=T_F_RATIO) == [1, 6, 2, 3, 4, 8, 7]
    assert contexts.top_tokens(1, 5, ratio=0.5) == []  # no activation is known


def test_of_neurons_the_nearest_tokens_to_the_strongest_are_read():
    embedding = np.array([[1.0, 0.0], [0.0, 0.0], [2.0, 0.2], [-1.0, 0.0], [0.5, 0.5], [0.0, 3.0]])
    assert nearest(embedding, 0, 3) == (0, 2, 4)
    assert 1 not in nearest(embedding, 0, 6)  # without an embedding


def test_what_the_paper_reads_stands_in_the_plan_and_the_strict_rows_read_their_own(planted):
    contexts = pa.Table.from_pylist(
        [
            {
                "sae": LABEL,
                "feature": f,
                "rank": 0,
                "max_value": 2.0,
                "position": 1,
                "token_ids": [f, f + 1, f + 2],
            }
            | {"tokens": ["a", "b", "c"], "values": [1.2, 2.0, 0.9], "source": ""}
            for f in range(planted.sae.d_sae)
        ],
        schema=CONTEXTS.arrow(),
    )
    parts = ("features", "embeddings", "glosses", "clusters")
    features = SimpleNamespace(contexts=contexts, **{name: getattr(planted, name) for name in parts})
    study = study_of('loci = ["feature"]', "both")
    table = plan_of(planted, study, features=features).plan
    for row in table.to_pylist():
        f = row["target"]
        of_paper = row["dose_unit"] == "paper_scale" and row["token_set"] == "in"
        assert row["reads"] == ([f + 1, f] if of_paper else None)
    assert len(set(table["trial_id"].to_pylist())) == table.num_rows
    strict = plan_of(planted, study_of('loci = ["feature"]'), features=features).plan
    assert set(strict["trial_id"].to_pylist()) <= set(table["trial_id"].to_pylist())
