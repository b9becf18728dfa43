"""Controls and the pairs that they were drawn for, the regression of record, prompts in the standard error, and what an
effect is at every locus: planted truth, by hand and by simulation."""

import numpy as np
import pyarrow as pa
import pytest

from polysem.seeds import rng_for
from polysem.stats import POOLED, estimate, parse_group
from polysem.stats.regress import clustered_ols, within
from polysem.store.tables import COVARIATES
from polysem.vocabulary import LOCI
from unit.test_stats import CONFIG, both_signs, found, outcome, planned, run, tables

BINS = (0.05, 0.15, 0.25, 0.35, 0.45)
REPLICATES = 500
SIZE = (0.028, 0.073)
"""nominal 5 % with 2.3 Monte-Carlo standard errors; at most this wide, no matter the direction"""


def world(*, geometry, identity, seed=0, n_targets=12):
    """Pairs in five bins, two matched controls each, three random features a target. The angle moves T by `geometry` per
    unit of cosine whoever it belongs to; a pair's own identity by `identity`. Bins differ in level, so that a control
    of another bin is the wrong one."""
    rng = rng_for(seed, "pairing")
    rows = []
    for target in range(n_targets):
        own = rng.normal(0, 0.3)
        for index, cosine in enumerate(BINS):
            source = 100 + (7 * target + index) % 40
            itself = identity + 0.03 * rng.standard_normal()
            for prompt in ("p0", "p1", "p2"):
                base = own + geometry * cosine + 0.02 * rng.standard_normal()
                change = base + itself
                at = {"prompt": prompt, "interference": cosine, "interference_bin": index}
                rows += both_signs(target, source, change, -change, **at)
                for draw in (2 * index, 2 * index + 1):
                    push = base + (0.1 if draw % 2 else -0.1)
                    at |= {"relation": "cosine_matched", "draw": draw, "interference_bin": -1}
                    rows += both_signs(
                        target, None, push, -push, pair_target=target, pair_source=source, **at
                    )
        for draw in range(3):
            for prompt in ("p0", "p1", "p2"):
                change = own + 0.02 * rng.standard_normal()
                at = {"prompt": prompt, "interference": 0.0, "relation": "random_feature", "draw": draw}
                rows += both_signs(target, 200 + (3 * target + draw) % 30, change, -change, **at)
    return run(rows)


@pytest.mark.parametrize(("geometry", "identity"), [(2.0, 0.0), (0.0, 0.5), (0.0, 0.0), (2.0, 0.5)])
def test_the_geometry_and_the_identity_effect_are_told_apart(geometry, identity):
    effects = world(geometry=geometry, identity=identity)
    parts = {"sae": POOLED, "outcome": "logodds", "tokens": "in"}
    angle = found(effects, "geometry_effect", **parts, bin="all")
    own = found(effects, "pair_minus_cosine_matched", **parts, bin="all")
    assert angle["estimate"] == pytest.approx(geometry * np.mean(BINS), abs=0.03)
    assert own["estimate"] == pytest.approx(identity, abs=0.02)
    for row, planted in ((angle, geometry), (own, identity)):
        assert row["lo"] < row["estimate"] < row["hi"]
        if planted:
            assert row["p_adj"] < 0.001
        else:
            assert row["p"] > 0.001
            assert row["p_adj"] is not None
    told = {r["contrast"]: r for r in effects.power.to_pylist() if r["token_set"] == "in"}
    assert {"geometry_effect", "pair_minus_cosine_matched"} <= told.keys()
    assert told["geometry_effect"]["smallest"] > 0


def test_a_bin_is_compared_with_the_controls_of_its_own_pairs():
    """No identity effect anywhere; the controls of all bins would give +-0.4 in the outer ones."""
    effects = world(geometry=2.0, identity=0.0)
    parts = {"sae": POOLED, "outcome": "logodds", "tokens": "in"}
    for index, cosine in enumerate(BINS):
        row = found(effects, "pair_minus_cosine_matched", **parts, bin=str(index))
        assert row["estimate"] == pytest.approx(0, abs=0.04)
        assert "12 pairs against 12 controls" in row["note"]
        angle = found(effects, "geometry_effect", **parts, bin=str(index))
        assert angle["estimate"] == pytest.approx(2.0 * cosine, abs=0.04)


def test_a_pair_without_its_control_is_left_out_and_other_controls_do_not_stand_in():
    rows = []
    for target in range(4):
        for source, change in ((10, 1.0), (11, 5.0)):
            rows += both_signs(target, source, change + 0.1 * target, 0.0)
        rows += both_signs(
            target, None, 0.4, 0.0, relation="cosine_matched", pair_target=target, pair_source=10
        )
    row = found(run(rows), "pair_minus_cosine_matched", outcome="logodds", bin="all")
    assert row["estimate"] == pytest.approx(np.mean([(1.0 + 0.1 * t - 0.4) / 2 for t in range(4)]))
    assert "4 pairs against 4 controls" in row["note"]


def test_a_swapped_target_is_compared_with_the_pair_whose_source_it_is():
    rows = []
    for target in range(5):
        rows += both_signs(target, 10 + target, 1.0 + target, 0.0)
        rows += both_signs(
            (target + 2) % 5, 10 + target, 0.5 * target, 0.0,
            relation="swapped_target", draw=target, pair_target=target, pair_source=10 + target,
        )  # fmt: skip
    row = found(run(rows), "pair_minus_swapped_target", outcome="logodds", bin="all")
    assert row["estimate"] == pytest.approx(np.mean([(1.0 + t - 0.5 * t) / 2 for t in range(5)]))


@pytest.mark.parametrize(
    ("locus", "share"), [("feature", 0.5), ("prompt", 1.0), ("clamp", 1.0), ("neuron", 0.5)]
)
def test_an_effect_is_the_whole_of_what_was_done(locus, share):
    """Snippet against match and value against opposite are compared as a whole; +dose against -dose halves."""
    assert LOCI[locus].share == share
    assert ("half" in LOCI[locus].effect) == (share == 0.5)
    effects = run(both_signs(1, 2, 0.5, -0.1, locus=locus))
    assert effects.pair_effects["logodds"].to_pylist() == [pytest.approx(share * 0.6)]


def test_a_negative_coordinate_is_pushed_the_other_way():
    """Both prompts move T by +0.2 when pushed along what the neuron writes; on one the coordinate is negative."""
    rows = []
    for prompt, coordinate in (("p0", 3.0), ("p1", -2.0)):
        for sign in (1, -1):
            row = planned(1, 2, dose=0.1 * sign, prompt=prompt, locus="neuron")
            change = 0.2 * sign * np.sign(coordinate)
            rows.append((row, outcome(row, change) | {"coordinate": coordinate}))
    assert run(rows).pair_effects["logodds"].to_pylist() == [pytest.approx(0.2)]


def confounded(seed=0, n_targets=14):
    """The effect is attribution, which follows interference; interference itself does nothing. Targets differ in level, and
    those with larger cosines have larger levels."""
    rng = rng_for(seed, "confounded")
    rows, known = [], []
    for target in range(n_targets):
        for k in range(5):
            cosine = 0.02 * target + 0.3 * rng.random()
            attribution = 2 * cosine + 0.3 * rng.standard_normal()
            source = 100 + (5 * target + k) % 30
            change = attribution + target + 0.05 * rng.standard_normal()
            similarity = rng.uniform(0, 0.3)
            rows += both_signs(target, source, change, -change, interference=cosine, similarity=similarity)
            key = {"sae": "A", "target": target, "source": source, "token_set": "in"}
            known.append(
                key | {"attribution": attribution, "overlap": rng.random(), "frequency": -rng.random()}
            )
    return rows, pa.Table.from_pylist(known, schema=COVARIATES.arrow())


def test_the_regression_of_record_holds_attribution_and_targets_fixed():
    rows, known = confounded()
    effects = estimate(*tables(rows), config=CONFIG, seed=0, covariates=known)
    record = found(effects, "slope_interference", outcome="logodds", tokens="in")
    assert record["lo"] < 0 < record["hi"]
    assert record["hi"] - record["lo"] < 1
    assert "attribution + overlap + frequency + fixed effects of targets" in record["method"]
    alone = found(effects, "slope_interference_alone", outcome="logodds", tokens="in")
    assert alone["lo"] > 0  # 2 in truth, 20 more between targets
    assert alone["estimate"] == pytest.approx(2, abs=0.8)
    bare = found(run(rows), "slope_interference", outcome="logodds", tokens="in")
    assert "not known for every pair and left out: attribution, overlap, frequency" in bare["note"]


def test_without_similarity_there_is_a_slope_on_interference():
    rows, _ = confounded()
    rows = [(p | {"similarity": None}, o) for p, o in rows]
    slope = found(run(rows), "slope_interference", outcome="logodds", tokens="in")
    assert slope["p"] is not None
    assert "not known for every pair and left out: similarity" in slope["note"]


def study(rng, *, prompt_sd, slope, n=20, per_target=5, n_prompts=6):
    """Pair means, design, clusters and prompts' parts: prompts have a slope of their own on interference."""
    target = np.repeat(np.arange(n), per_target)
    source = np.concatenate([(t + 1 + rng.permutation(n - 1)[:per_target]) % n for t in range(n)])
    x = rng.standard_normal(len(target))
    y = 0.6 * rng.standard_normal(n)[target] + 0.6 * rng.standard_normal(n)[source]
    y = y + slope * x + 0.4 * rng.standard_normal(len(target))
    cells = y[:, None] + prompt_sd * rng.standard_normal(n_prompts) * x[:, None]
    cells = cells + 0.5 * rng.standard_normal(cells.shape)
    mean = cells.mean(axis=1)
    inside = [within(v[:, None], target) for v in (mean, x)]
    return (
        inside[0][:, 0],
        inside[1],
        np.column_stack([target, source + n]),
        (cells - mean[:, None]) / n_prompts,
    )


@pytest.mark.parametrize("prompt_sd", [0.0, 0.5])
@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_intervals_inside_targets_cover_with_prompts_as_a_sample(prompt_sd, slope):
    missed, fixed = [], []
    for replicate in range(REPLICATES):
        rng = rng_for(replicate, "prompts", str(prompt_sd), str(slope))
        y, X, clusters, prompts = study(rng, prompt_sd=prompt_sd, slope=slope)
        fit = clustered_ols(y, X, clusters, level=0.95, prompts=prompts)
        missed.append(not fit.lo[0] <= slope <= fit.hi[0])
        bare = clustered_ols(y, X, clusters, level=0.95)
        fixed.append(not bare.lo[0] <= slope <= bare.hi[0])
        assert fit.se[0] >= bare.se[0]
    assert SIZE[0] - 0.015 <= np.mean(missed) <= SIZE[1]
    if prompt_sd:
        assert np.mean(fixed) > 0.3  # what it is for


def test_every_row_says_what_it_is_clustered_by():
    effects = world(geometry=1.0, identity=0.0, n_targets=6)
    for row in effects.effects.to_pylist():
        nonlinear = row["contrast"] == "sign_agreement" or row["contrast"].startswith("paper_")
        assert (" and prompt," in row["method"]) == (not nonlinear), row["method"]
        assert parse_group(row["group"])["locus"] == "feature"
