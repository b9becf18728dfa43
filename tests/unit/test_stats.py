"""Effects from trials: by hand on small plans, and against a planted law on a whole synthetic study."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from polysem.config import EffectsConfig
from polysem.errors import MismatchError, NumericsError
from polysem.paper.presets import PaperEstimates
from polysem.stats import HYPOTHESES, POOLED, estimate, parse_group
from polysem.stats.effects import adjust
from polysem.stats.rows import group_label
from polysem.store.tables import PLAN, TRIALS
from support.synthetic import SyntheticStudy, synthetic_tables

CONFIG = EffectsConfig()
SITE = "blocks.1.hook_mlp_out"
REFUSED = {"status": "failed", "reason": "non_finite_logits"}


def planned(target, source, *, dose, prompt="p0", split="confirm", relation="pair", **other):
    row = {
        **{
            "sae": "A",
            "site": SITE,
            "locus": "feature",
            "relation": relation,
            "target": target,
            "source": source,
        },
        **{
            "draw": 0,
            "recipe": "{}",
            "interference_bin": 2 if relation == "pair" else -1,
            "interference": 0.25,
        },
        **{"similarity": 0.1, "prompt_id": prompt, "token_set": "in", "dose": dose, "dose_unit": "absolute"},
        **{"positions": "last", "split": split, "block": f"A/{target}", "batch": 0},
    }
    row |= other
    return row | {"trial_id": "/".join(map(str, row.values()))}


def outcome(plan_row, change, *, kl=0.01, base=-2.0, cosine=(0.2, 0.2), mass=(0.1, 0.1), **other):
    row = {
        **{"trial_id": plan_row["trial_id"], "status": "ok", "reason": None, "kl": kl, "dtype": "float32"},
        **{"cosine_base": cosine[0], "cosine_edit": cosine[1], "mass_base": mass[0], "mass_edit": mass[1]},
        **{"logodds_base": base, "logodds_edit": base + change, "alignment": 0.25},
        **{"beyond_base": base, "beyond_edit": base + change},
        **{"dose_absolute": plan_row["dose"], "resid_norm": 1.0},
    }
    if other.get("status"):
        row = dict.fromkeys(row) | {"trial_id": row["trial_id"], "dtype": "float32"} | other
    return row


def tables(rows):
    """Plan and trials of (planned row, outcome row or None) pairs."""
    plan = pa.Table.from_pylist([p for p, _ in rows], schema=PLAN.arrow())
    trials = pa.Table.from_pylist([o for _, o in rows if o], schema=TRIALS.arrow())
    return plan, trials


def run(rows, config=CONFIG):
    return estimate(*tables(rows), config=config, seed=0, beside=[PaperEstimates()])


def found(effects, contrast, **parts):
    """The one row of a contrast whose group has these parts and no bin or relation besides."""
    rows = [
        row
        for row in effects.effects.to_pylist()
        if row["contrast"] == contrast
        and parts.items() <= (group := parse_group(row["group"])).items()
        and not ({"bin", "relation"} & group.keys()) - parts.keys()
    ]
    assert len(rows) == 1, [r["group"] for r in rows]
    return rows[0]


def both_signs(target, source, plus, minus, *, dose=0.1, prompt="p0", **other):
    rows = [planned(target, source, dose=sign * dose, prompt=prompt, **other) for sign in (1, -1)]
    return [(rows[0], outcome(rows[0], plus)), (rows[1], outcome(rows[1], minus))]


def test_effect_is_the_odd_part_averaged_over_complete_confirm_prompts():
    incomplete = planned(1, 2, dose=-0.1, prompt="p2")
    rows = [
        *both_signs(1, 2, 0.5, -0.1, prompt="p0"),  # odd part .3
        *both_signs(1, 2, 0.3, 0.1, prompt="p1"),  # odd part .1
        (planned(1, 2, dose=0.1, prompt="p2"), outcome(planned(1, 2, dose=0.1, prompt="p2"), 99.0)),
        (incomplete, None),
        *both_signs(1, 2, 77.0, 0.0, prompt="s0", split="select"),
    ]
    effects = run(rows)
    (pair,) = effects.pair_effects.to_pylist()
    assert pair["logodds"] == pytest.approx(0.2, abs=1e-12)
    assert pair["logodds_se"] == pytest.approx(np.std([0.3, 0.1], ddof=1) / np.sqrt(2), abs=1e-12)
    assert (pair["n_prompts"], pair["dose"], pair["kl"]) == (2, 0.1, pytest.approx(0.01))
    row = found(effects, "mean_effect", outcome="logodds", relation="pair")
    assert (row["n_trials"], row["n_pairs"], row["n_prompts"], row["n_missing"]) == (4, 1, 2, 1)
    assert row["estimate"] == pytest.approx(0.2)
    assert (row["lo"], row["p"], row["p_equivalent"]) == (None, None, None)
    assert "no interval: only 1 pair" in row["note"]
    counts = {(m["status"], m["reason"]): m["n_trials"] for m in effects.missing.to_pylist()}
    assert counts == {("ok", ""): 7, ("absent", ""): 1}


def test_headline_dose_is_chosen_on_select_prompts_by_kl():
    rows = []
    for dose, select_kl, confirm_kl in ((0.1, 0.01, 0.5), (0.2, 0.09, 0.5), (0.4, 0.11, 0.0)):
        for target in range(4):
            for split, kl in (("select", select_kl), ("confirm", confirm_kl)):
                for sign in (1, -1):
                    row = planned(target, target + 10, dose=sign * dose, prompt=split, split=split)
                    rows.append((row, outcome(row, sign * dose * (target + 1), kl=kl)))
    assert {parse_group(g)["dose"] for g in run(rows).effects["group"].to_pylist()} == {"0.2"}
    strict = run(rows, EffectsConfig(max_kl=0.001))
    assert {parse_group(g)["dose"] for g in strict.effects["group"].to_pylist()} == {"0.1"}
    assert all(
        "no dose stays within a mean KL of 0.001 nats" in n for n in strict.effects["note"].to_pylist()
    )


def test_a_dose_that_breaks_the_model_is_not_the_headline():
    rows = []
    for dose in (0.1, 0.2):
        for target in range(4):
            for sign in (1, -1):
                row = planned(target, target + 10, dose=sign * dose, prompt="s", split="select")
                broken = dose == 0.2 and target == 3 and sign == 1
                rows.append((row, outcome(row, 0.0, **(REFUSED if broken else {}))))
                rows += [
                    (r := planned(target, target + 10, dose=sign * dose), outcome(r, sign * 0.1 * target))
                ]
    assert {parse_group(g)["dose"] for g in run(rows).effects["group"].to_pylist()} == {"0.1"}


def test_difference_is_within_targets():
    # Target 0 is easy (all effects +10) and has no control: between-target composition must not enter.
    rows = []
    for target, level in ((0, 10.0), (1, 1.0), (2, -1.0), (3, 0.5)):
        for k in range(3):
            change = level + 0.3 + 0.01 * k * target
            rows += both_signs(target, 100 + 10 * target + k, change, -change)
            if target:
                rows += both_signs(target, 200 + 10 * target + k, level, -level, relation="random_feature")
    row = found(run(rows), "pair_minus_random_feature", outcome="logodds", bin="all")
    expected = np.mean([np.mean([0.3 + 0.01 * k * t for k in range(3)]) for t in (1, 2, 3)])
    assert row["estimate"] == pytest.approx(expected, abs=1e-12)
    assert (row["n_pairs"], row["n_targets"], row["n_sources"]) == (18, 3, 18)
    assert "9 pairs against 9 controls" in row["note"]
    assert row["lo"] < expected < row["hi"]


def test_paper_models_use_the_positive_dose_and_relative_change():
    rng = np.random.default_rng(0)
    rows, A, B, x = [], [], [], []
    for target in range(12):
        for k in range(3):
            cosine, similarity, base = rng.uniform(0.1, 0.5), rng.uniform(0, 0.3), rng.uniform(0.1, 0.3)
            edit = base * (1 + 0.4 * cosine) + rng.normal(0, 0.01)
            for sign in (1, -1):
                row = planned(
                    target,
                    50 + (target + k) % 12,
                    dose=0.1 * sign,
                    interference=cosine,
                    similarity=similarity,
                )
                rows.append((row, outcome(row, 0.0, cosine=(base, edit if sign > 0 else 0.9))))
            A.append(edit)
            B.append((edit - base) / base)
            x.append([1, cosine, similarity, base])
    x = np.array(x)
    effects = run(rows)
    for name, y, design in (("paper_model_a", A, x), ("paper_model_b", B, x[:, :3])):
        row = found(effects, name, tokens="in")
        assert row["estimate"] == pytest.approx(
            np.linalg.lstsq(design, np.array(y), rcond=None)[0][1], rel=1e-9
        )
        assert "the paper's regression" in row["note"]


def test_degenerate_groups_are_said_in_words():
    rows = []
    for target in range(5):
        for source in (10, 11):
            rows += both_signs(target, source, 0.1 * target + source, 0.0)
    effects = run(rows)  # interference and similarity are constants here
    slope = found(effects, "slope_interference", outcome="logodds")
    assert (slope["estimate"], slope["lo"], slope["p"]) == (None, None, None)
    assert "interference does not vary" in slope["note"]
    agreement = found(effects, "sign_agreement", outcome="logodds")
    assert (agreement["estimate"], agreement["lo"], agreement["p"]) == (None, None, None)
    assert "no target has pairs of both signs of interference in one bin" in agreement["note"]
    mass = found(effects, "mean_effect", outcome="mass", relation="pair")
    assert (mass["estimate"], mass["lo"]) == (0.0, None)
    assert mass["note"].count("exactly zero") == 1


def test_constant_similarity_is_left_out_and_said():
    rows = []
    for target in range(6):
        for k in range(3):
            cosine = 0.1 * (k + 1) + 0.01 * target
            change = 2 * cosine + 0.05 * np.sin(7 * target + k)
            rows += both_signs(target, 10 + (target + k) % 6, change, -change, interference=cosine)
    effects = run(rows)
    slope = found(effects, "slope_interference", outcome="logodds")
    assert "similarity does not vary and is left out" in slope["note"]
    assert slope["lo"] < 2 < slope["hi"]
    assert found(effects, "slope_similarity", outcome="logodds")["estimate"] is None


def test_only_the_declared_hypotheses_are_adjusted_by_holm():
    rows = [
        {"contrast": c, "group": group_label(locus="feature", sae=POOLED, **parts), "p": p}
        for (c, parts), p in zip(HYPOTHESES, (0.01, 0.04, 0.03, None, 0.2), strict=True)
    ]
    rows.append({"contrast": "mean_effect", "group": "locus=feature; sae=*", "p": 0.001})
    adjusted = [row.get("p_adj") for row in adjust(rows, locus="feature")]
    # Holm of (.01, .04, .03, 1, .2): 5 x .01, then 4 x .03, then max(3 x .04, .12), then 2 x .2
    assert adjusted == [
        pytest.approx(0.05),
        pytest.approx(0.12),
        pytest.approx(0.12),
        None,
        pytest.approx(0.4),
        None,
    ]
    assert len(HYPOTHESES) <= 5


def test_foreign_trials_and_non_finite_outcomes_are_refused():
    good = both_signs(1, 2, 0.1, -0.1)
    plan, trials = tables(good)
    with pytest.raises(MismatchError, match="not in the plan"):
        estimate(plan.slice(0, 1), trials, config=CONFIG, seed=0)
    bad = good[0][1] | {"kl": float("nan")}
    with pytest.raises(NumericsError, match="no finite kl"):
        run([(good[0][0], bad)])
    twin = dict(good[0][0]) | {"trial_id": "twin"}
    with pytest.raises(MismatchError, match="twice"):
        run([good[0], (twin, outcome(twin, 0.1))])


def test_nothing_ran():
    effects = run([(planned(1, 2, dose=sign * 0.1), None) for sign in (1, -1)])
    assert effects.missing.to_pylist()[0]["status"] == "absent"
    assert effects.pair_effects.num_rows == effects.dose_response.num_rows == 0
    assert set(effects.effects["estimate"].to_pylist()) == {None}
    assert set(effects.effects["n_missing"].to_pylist()) == {2}
    assert "select prompt" in effects.effects["note"][0].as_py()


def test_dose_response_interval_is_clustered_by_target():
    import statsmodels.api as sm

    rng = np.random.default_rng(1)
    rows, y, group = [], [], []
    for target in range(6):
        for k in range(1 + target % 3):
            for prompt in ("p0", "p1"):
                change = float(target + rng.normal())
                row = planned(target, 10 + k, dose=0.1, prompt=prompt)
                rows.append((row, outcome(row, change, kl=0.02)))
                y.append(change)
                group.append(target)
    curve = [r for r in run(rows).dose_response.to_pylist() if r["sae"] == "A"]
    fit = sm.OLS(y, np.ones(len(y))).fit(
        cov_type="cluster", cov_kwds={"groups": np.array(group), "df_correction": True}, use_t=True
    )
    lo, hi = fit.conf_int()[0]
    (row,) = curve
    assert (row["dose"], row["n_trials"], row["n_targets"]) == (0.1, len(y), 6)
    assert [row["logodds"], row["lo"], row["hi"]] == pytest.approx([np.mean(y), lo, hi], rel=1e-9)


@pytest.fixture(scope="module")
def study():
    return synthetic_tables(SyntheticStudy(n_targets=10, n_prompts=4, doses=(0.2, 0.4), n_features=160))


@pytest.fixture(scope="module")
def effects(study):
    return estimate(study["plan"]["plan"], study["trials"]["trials"], config=CONFIG, seed=0, model="toy")


def test_planted_slope_is_inside_its_interval(effects):
    for tokens, share in (("in", 1.0), ("out", 0.6)):
        row = found(effects, "slope_interference", sae=POOLED, outcome="logodds", tokens=tokens)
        group = parse_group(row["group"])
        assert (group["dose"], group["model"]) == (
            "0.2",
            "toy",
        )  # KL = 2.5 x .2^2 / 2 = .05; .2 at the next dose
        assert row["lo"] < 3.0 * share * 0.2 < row["hi"]
        assert row["hi"] - row["lo"] < 0.5  # and the interval is no blank cheque


def test_counts_add_up(study, effects):
    plan = study["plan"]["plan"]
    assert sum(effects.missing["n_trials"].to_pylist()) == plan.num_rows
    row = found(effects, "mean_effect", sae=POOLED, outcome="logodds", tokens="in", relation="pair")
    size = pc.abs(plan["dose"])
    at = plan.filter(
        pc.and_(
            pc.and_(pc.equal(plan["relation"], "pair"), pc.equal(plan["token_set"], "in")),
            pc.and_(pc.equal(size, 0.2), pc.equal(plan["split"], "confirm")),
        )
    )
    trials = study["trials"]["trials"]
    failed = trials.filter(pc.not_equal(trials["status"], "ok"))["trial_id"]
    assert row["n_missing"] == pc.sum(pc.is_in(at["trial_id"], failed.combine_chunks())).as_py() > 0
    assert row["n_trials"] + row["n_missing"] <= at.num_rows
    assert row["n_targets"] == len(at.group_by(["sae", "target"]).aggregate([]))


def test_controls_are_null_and_pairs_are_not(effects):
    for relation in ("random_feature", "random_direction"):
        row = found(effects, "mean_effect", sae=POOLED, outcome="logodds", tokens="in", relation=relation)
        assert row["lo"] < 0.03
        assert row["hi"] > -0.03
    assert (
        found(effects, "mean_effect", sae=POOLED, outcome="logodds", tokens="in", relation="self")["lo"] > 0.3
    )
    assert (
        found(effects, "pair_minus_random_feature", sae=POOLED, outcome="logodds", tokens="in", bin="3")["lo"]
        > 0
    )


def test_random_directions_carry_their_realised_alignment(study, effects):
    table = effects.pair_effects
    own = table.filter(pc.equal(table["relation"], "random_direction"))
    assert own["source"].to_pylist() == [-1] * own.num_rows
    assert own["interference"].null_count == 0
    assert np.std(own["interference"].to_numpy()) == pytest.approx(0.05, rel=0.5)


def test_every_row_is_either_a_number_or_a_reason(effects):
    for row in effects.effects.to_pylist():
        numbers = [row[k] for k in ("estimate", "lo", "hi", "p")]
        if row["estimate"] is None:
            assert numbers == [None] * 4
            assert row["note"].startswith("not estimated:")
        elif row["lo"] is None:
            assert numbers[1:] == [None] * 3
            assert "no interval: " in row["note"]
        else:
            assert all(np.isfinite(numbers))
            assert row["lo"] <= row["estimate"] <= row["hi"]


def test_statistics_need_no_torch():
    import subprocess
    import sys

    heavy = "{'torch', 'transformers', 'statsmodels'}"
    code = f"import polysem.stats, sys, json; print(json.dumps(sorted({heavy} & set(sys.modules))))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == []
