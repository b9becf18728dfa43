"""A planted pair goes through the whole pipeline: mined, planned, steered, estimated; the truth is known in
closed form.

In the planted world a source at cosine c to its target moves the log-odds of the target's tokens by dose x
(gain c + own route), at every dose, where the routes have mean zero over sources. So the regression of
effect on interference has slope dose x gain.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from polysem.config import parse_study
from polysem.features import FeatureTable
from polysem.pairs import map_pairs
from polysem.plan import describe_plan, make_plan
from polysem.stats.effects import estimate
from polysem.stats.rows import parse_group
from polysem.store.tables import CLUSTERS
from polysem.trials import run_batches
from support.planted import LABEL, SIMILARITY, planted_study

GAIN = 4.0
DOSES = (0.05, 0.1)
COSINES = (0.05, 0.12, 0.15, 0.22, 0.25, 0.33, 0.35, 0.45, 0.5)
STUDY = """
name = "planted"
[model]
ref = "world:linear"
[[saes]]
ref = "planted"
label = "planted"
[plan]
n_targets = 8
sources_per_bin = 4
doses = [0.05, 0.1]
dose_unit = "absolute"
batch_rows = 48
"""


def run_study(*, seed=0, gain=GAIN, n_prompts=8, **changes):
    """The stages of a study over planted parts; `changes` are to the section `plan`."""
    planted = planted_study(
        cosines=COSINES, n_targets=8, n_plain=120, gain=gain, route=0.3, n_prompts=n_prompts, seed=seed
    )
    study = parse_study(STUDY)
    study = study.model_copy(update={"plan": study.plan.model_copy(update=changes)})
    features = FeatureTable(
        features=planted.features,
        glosses=planted.glosses,
        contexts=planted.contexts,
        clusters=CLUSTERS.empty(),
        embeddings=planted.embeddings,
    )
    pairs = map_pairs(planted.sae, features, config=study.pairs, label=LABEL)
    plan = make_plan(study, features, pairs, planted.prompts, planted.saes)
    batches = range(describe_plan(plan)["batches"])
    trials = run_batches(
        plan.plan, plan.prompts, features, planted.model, planted.saes, batches=list(batches)
    )
    effects = estimate(plan.plan, trials, config=study.effects, seed=study.seed)
    return planted, pairs, plan, trials, effects


@pytest.fixture(scope="module")
def whole():
    return run_study()


def effect(effects, contrast, **parts):
    """The one row of a contrast for the pooled SAEs, log-odds and input tokens."""
    wanted = {"outcome": "logodds", "tokens": "in", "sae": "*"} | parts
    rows = [
        row
        for row in effects.effects.to_pylist()
        if row["contrast"] == contrast
        and {k: v for k, v in parse_group(row["group"]).items() if k not in ("locus", "dose")} == wanted
    ]
    (row,) = rows
    return row


def test_the_pair_is_found(whole):
    planted, pairs, *_ = whole
    found = {(r["i"], r["j"]): r for r in pairs.pairs.to_pylist()}
    for (target, source), cosine in planted.cosine.items():
        if cosine >= 0.2:
            row = found[target, source]
            assert row["interference"] == pytest.approx(cosine, abs=1e-6)
            assert row["similarity"] == pytest.approx(SIMILARITY, abs=1e-6)
            assert not row["is_duplicate"]
        else:
            assert (target, source) not in found
    assert (0, planted.forbidden["unglossed"]) not in found


def test_the_pair_is_planned_and_nothing_forbidden_is(whole):
    planted, _, plan, _, _ = whole
    pair_rows = plan.plan.filter(pc.equal(plan.plan["relation"], "pair"))
    planned = set(zip(pair_rows["target"].to_pylist(), pair_rows["source"].to_pylist(), strict=True))
    assert {t for t, _ in planned} == set(planted.targets)
    assert {pair for pair, cosine in planted.cosine.items() if cosine >= 0.2} <= planned
    assert not {s for _, s in planned} & set(planted.forbidden.values())


def test_every_planned_trial_has_an_outcome(whole):
    _, _, plan, trials, effects = whole
    assert trials.num_rows == plan.plan.num_rows
    assert pc.unique(trials["status"]).to_pylist() == ["ok"]
    assert effects.missing["n_trials"].to_pylist()
    assert pc.sum(effects.missing["n_trials"]).as_py() == plan.plan.num_rows


def test_every_pair_moves_its_target_by_the_planted_effect(whole):
    planted, _, _, _, effects = whole
    rows = [r for r in effects.pair_effects.to_pylist() if r["relation"] in ("pair", "self")]
    own = [r for r in rows if (r["target"], r["source"]) in planted.cosine or r["relation"] == "self"]
    assert len(own) > 8 * 2 * 2 * 5
    for row in own:
        truth = row["dose"] * planted.effect[row["target"], row["source"]]
        assert row["logodds"] == pytest.approx(truth, abs=1e-6)  # W_dec is float32


def test_the_slope_is_estimated_within_its_interval(whole):
    _, _, _, _, effects = whole
    row = effect(effects, "slope_interference")
    dose = float(parse_group(row["group"])["dose"])
    assert dose in DOSES
    truth = dose * GAIN
    assert row["lo"] <= truth <= row["hi"]
    assert row["lo"] > 0
    assert row["hi"] - row["lo"] < truth / 2  # an interval that says something
    assert (row["n_targets"], row["n_missing"]) == (8, 0)


def test_controls_are_null_and_self(whole):
    _, _, _, _, effects = whole
    for relation in ("random_feature", "random_direction"):
        row = effect(effects, "mean_effect", relation=relation)
        assert row["lo"] <= 0 <= row["hi"]
    assert effect(effects, "pair_minus_random_feature", bin="4")["lo"] > 0


def test_a_world_without_gain_shows_nothing():
    """The same geometry, but targets' tokens do not read the target's direction: high cosine, no effect."""
    *_, effects = run_study(gain=0.0, n_prompts=4, doses=(0.1,))
    row = effect(effects, "slope_interference")
    assert row["lo"] <= 0 <= row["hi"]


def test_intervals_cover_the_truth_over_worlds():
    """Nominal 95 %: of 5 worlds at most 2 may miss (three or more have probability 0.001)."""
    missed = 0
    for seed in range(1, 6):
        *_, effects = run_study(seed=seed, n_prompts=4, doses=(0.1,), n_random=0)
        row = effect(effects, "slope_interference")
        truth = float(parse_group(row["group"])["dose"]) * GAIN
        missed += not row["lo"] <= truth <= row["hi"]
    assert missed <= 2


def test_the_order_of_prompts_changes_nothing(whole):
    planted, pairs, plan, _, _ = whole
    order = np.random.default_rng(0).permutation(planted.prompts.num_rows)
    again = make_plan(parse_study(STUDY), planted, pairs, planted.prompts.take(pa.array(order)), planted.saes)
    assert again.plan.equals(plan.plan)
    assert again.prompts.equals(plan.prompts)
