"""All loci, controls and both presets through plan, trials and estimates on a real model; doses in nats are what was
asked for."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from polysem.config import CorpusConfig, PromptsConfig, parse_study
from polysem.features import FeatureTable
from polysem.models import load_model
from polysem.pairs import map_pairs
from polysem.paper.presets import PaperEstimates
from polysem.plan import describe_plan, make_plan
from polysem.positions import positions_of
from polysem.prompts import make_prompts
from polysem.saes import load_sae
from polysem.stats.effects import estimate
from polysem.stats.rows import parse_group
from polysem.store.tables import CLUSTERS
from polysem.trials import run_batches
from polysem.vocabulary import DOSE_UNITS

LABEL = "blocks.2.hook_resid_post"
LOCI = ("feature", "clamp", "gradient", "prompt", "neuron", "mlp_neuron")
CONTROLS = (
    *("random_feature", "random_direction", "isotropic", "cosine_matched", "high_attribution"),
    *("swapped_target", "frozen_decoder", "shuffled_gloss"),
)
STUDY = f"""
preset = "both"
[model]
ref = "zoo:gpt2"
[[saes]]
ref = "zoo:gpt2/{LABEL}"
[plan]
loci = {list(LOCI)}
controls = {list(CONTROLS)}
n_targets = 2
sources_per_bin = 1
n_random = 1
doses = [0.001, 0.01, 0.1]
dose_unit = "kl"
""".replace("'", '"')


@pytest.fixture(scope="module")
def whole():
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    from sklearn.feature_extraction.text import HashingVectorizer

    from polysem.registry import zoo_path

    study = parse_study(STUDY)
    model, sae = load_model("zoo:gpt2", device="cpu"), load_sae(f"zoo:gpt2/{LABEL}")
    folder = zoo_path("features", f"gpt2/{LABEL}")
    tables = {name: pq.read_table(folder / f"{name}.parquet") for name in ("features", "glosses", "contexts")}
    # words of the glosses instead of an embedder: the same glosses, in a second
    words = HashingVectorizer(n_features=256).transform(
        [g or "" for g in tables["features"]["gloss"].to_pylist()]
    )
    features = FeatureTable(
        **tables, clusters=CLUSTERS.empty(), embeddings={LABEL: words.toarray().astype(np.float32)}
    )
    prompts = make_prompts(
        PromptsConfig(n=4, length=14),
        CorpusConfig(n_tokens=100_000),
        model,
        positions=positions_of(model, sae),
        seed=0,
    )
    pairs = map_pairs(sae, features, config=study.pairs, label=LABEL)
    plan = make_plan(study, features, pairs, prompts, {LABEL: sae}, model=model)
    batches = list(range(describe_plan(plan)["batches"]))
    trials = run_batches(plan.plan, plan.prompts, features, model, {LABEL: sae}, batches=batches)
    effects = estimate(
        plan.plan,
        trials,
        config=study.effects,
        seed=0,
        beside=[PaperEstimates(study.preset)],
        similarities=plan.similarities,
    )
    return plan, trials, effects


def joined(whole):
    plan, trials, _ = whole
    order = pc.index_in(plan.plan["trial_id"], trials["trial_id"].combine_chunks())
    table = plan.plan
    for name in trials.column_names[1:]:
        table = table.append_column(name, trials[name].take(order))
    return table


def test_every_locus_and_control_has_outcomes(whole):
    table = joined(whole).filter(pc.equal(joined(whole)["status"], "ok"))
    seen = set(zip(table["locus"].to_pylist(), table["relation"].to_pylist(), strict=True))
    assert {locus for locus, _ in seen} == set(LOCI)
    assert {(locus, "pair") for locus in LOCI} <= seen
    assert {("feature", control) for control in CONTROLS} <= seen
    assert ("neuron", "rotated") in seen


def test_doses_in_nats_are_within_two_percent_for_99_percent_of_rows(whole):
    """Of all rows that ask for a KL; those that miss it are not among the outcomes but carry a reason."""
    table = joined(whole)
    asked = table.filter(pc.equal(table["dose_unit"], "kl"))
    reached = asked.filter(pc.equal(asked["status"], "ok"))
    wanted, seen = np.abs(reached["dose"].to_numpy()), reached["kl"].to_numpy()
    assert np.abs(seen / wanted - 1).max() <= 0.02
    tried = asked.filter(pc.is_in(asked["status"], pa.array(["ok", "failed"])))
    assert tried.num_rows > 1000
    assert reached.num_rows >= 0.99 * tried.num_rows
    left = asked.filter(pc.not_equal(asked["status"], "ok"))
    assert all(reason for reason in left["reason"].to_pylist())


def test_the_share_of_a_shift_keeps_its_bound(whole):
    table = joined(whole).filter(pc.equal(joined(whole)["status"], "ok"))
    rho = np.array([r for r in table["rho"].to_pylist() if r is not None])
    assert len(rho) > 1000
    assert np.abs(rho).max() <= 1.0


def test_the_own_direction_does_most_and_every_locus_is_estimated(whole):
    """On the tokens that the target writes; on those that activate it nothing says so."""
    _, _, effects = whole
    rows = [(parse_group(r["group"]), r) for r in effects.effects.to_pylist()]
    means = {
        (g["locus"], g["relation"]): r["estimate"]
        for g, r in rows
        if r["contrast"] == "mean_effect" and g["outcome"] == "logodds" and g["tokens"] == "out" and "bin" not in g
        and g["sae"] == "*"
    }  # fmt: skip
    assert means["feature", "self"] > means["feature", "pair"]
    assert means["clamp", "self"] > means["clamp", "pair"]
    assert {locus for locus, _ in means} == set(LOCI)


def test_both_presets_answer_every_question_at_every_locus(whole):
    """Both ends of every walk of the pairs are there, with a number or a reason; the paper's at its 32 strengths."""
    _, _, effects = whole
    rows = effects.presets.to_pylist()
    walks = {}
    for r in rows:
        if (r["relation"], r["path"]) == ("pair", "walk"):
            walks.setdefault((r["locus"], r["token_set"], r["question"]), []).append(r)
    questions = ("slope_a", "slope_b", "difference", "mean")
    assert set(walks) == {(locus, t, q) for locus in LOCI for t in ("in", "out") for q in questions}
    for walk in walks.values():
        walk.sort(key=lambda r: r["step"])
        assert walk[0]["choice"] == "paper"
        assert walk[-1]["choice"] == "errors"
        assert all(r["estimate"] is not None or "not estimated" in r["note"] for r in walk)
    assert {r["n_doses"] for r in rows if r["locus"] in ("feature", "gradient")} == {32}
    assert {r["n_doses"] for r in rows if r["locus"] == "neuron"} == {18}
    assert {r["n_doses"] for r in rows if r["locus"] == "prompt"} == {1}
    found = sum(
        walk[0]["estimate"] is not None and walk[-1]["estimate"] is not None for walk in walks.values()
    )
    assert found >= 0.75 * len(walks)


def test_choosing_among_the_papers_strengths_adds_to_directions_that_aim_at_nothing(whole):
    """On the reported prompts themselves the best strength cannot be worse than on average of its choice elsewhere."""
    rows = [
        r
        for r in whole[2].presets.to_pylist()
        if (r["locus"], r["relation"], r["path"]) == ("feature", "isotropic", "optimism")
    ]
    at = {(r["token_set"], r["choice"]): r["estimate"] for r in rows}
    for tokens in ("in", "out"):
        assert at[tokens, "best_per_prompt"] > 0
        assert at[tokens, "optimism_per_prompt"] >= 0
        assert at[tokens, "kl_of_best"] > 0


def test_the_paper_is_pushed_on_the_same_arms_everywhere_and_the_study_as_it_says(whole):
    table = whole[0].plan
    paper = pc.is_in(table["dose_unit"], pa.array([name for name, unit in DOSE_UNITS.items() if unit.paper]))
    columns = (table.filter(paper)[name].to_pylist() for name in ("locus", "positions"))
    no_bos = {(locus, "all_no_bos") for locus in ("feature", "gradient", "neuron")}
    assert set(zip(*columns, strict=True)) == no_bos | {("prompt", "all")}
    assert set(table.filter(pc.invert(paper))["positions"].to_pylist()) == {"all_but_first"}
    probes = {
        '"probe":"ones"' in recipe
        for recipe, p in zip(table["recipe"].to_pylist(), paper.to_pylist(), strict=True)
        if p and '"kind":"gradient_sum"' in recipe
    }
    assert probes == {True}


def test_planned_pairs_are_looked_at_and_neurons_have_degrees(whole):
    plan = whole[0]
    pairs = plan.plan.filter(pc.is_in(plan.plan["relation"], pa.array(["pair", "split_pair"])))
    pairs = pairs.filter(pc.equal(pairs["locus"], "feature"))
    wanted = set(zip(pairs["target"].to_pylist(), pairs["source"].to_pylist(), strict=True))
    assert (
        set(zip(plan.signals["target"].to_pylist(), plan.signals["source"].to_pylist(), strict=True))
        == wanted
    )
    flagged = plan.signals.filter(plan.signals["flagged"]).num_rows
    split = pairs.filter(pc.equal(pairs["relation"], "split_pair"))
    assert split.group_by(["target", "source"]).aggregate([]).num_rows == flagged
    assert plan.neurons.num_rows == 0, (
        "this feature table has no gloss clusters, so there is nothing to count"
    )
