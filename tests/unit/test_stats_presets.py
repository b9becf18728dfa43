"""The paper's estimates beside the strict ones: every choice by hand, and both ends against what they must be."""

from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import statsmodels.api as sm
from scipy import stats

from polysem.config import EffectsConfig, parse_study
from polysem.errors import ConfigError
from polysem.paper.estimators import plain_ols, stars, welch
from polysem.paper.grid import Grid, effects_of, means_by_arm
from polysem.paper.presets import PaperEstimates
from polysem.stats import estimate, parse_group
from polysem.stats.arms import outcome_of
from polysem.store.tables import PRESETS
from support.synthetic import SyntheticStudy, synthetic_tables

CONFIG = EffectsConfig()
WORLD = SyntheticStudy(n_features=120, n_targets=6, n_prompts=6, doses=(0.1, 0.2), preset="both")


@pytest.fixture(scope="module")
def made():
    return synthetic_tables(WORLD)


@pytest.fixture(scope="module")
def both(made):
    return estimated(made, "both")


def estimated(made, preset):
    return estimate(
        made["plan"]["plan"], made["trials"]["trials"], config=CONFIG, seed=0, beside=[PaperEstimates(preset)]
    )


def walk(found, question, *, relation="pair", tokens="in", path="walk"):
    rows = [
        r
        for r in found.presets.to_pylist()
        if (r["question"], r["relation"], r["token_set"], r["path"]) == (question, relation, tokens, path)
    ]
    return sorted(rows, key=lambda r: r["step"])


def effect(found, contrast, **parts):
    parts = {"outcome": outcome_of(parts["tokens"]), "sae": "*"} | parts
    rows = [
        r
        for r in found.effects.to_pylist()
        if r["contrast"] == contrast and parts.items() <= parse_group(r["group"]).items()
    ]
    rows = [r for r in rows if "bin" in parts or "bin" not in parse_group(r["group"])]
    assert len(rows) == 1
    return rows[0]


@pytest.mark.parametrize("tokens", ["in", "out"])
@pytest.mark.parametrize(
    ("question", "contrast", "parts"),
    [
        ("slope_b", "slope_interference", {}),
        ("slope_a", "slope_interference", {}),
        ("mean", "mean_effect", {"relation": "pair"}),
        ("difference", "pair_minus_random_direction", {"bin": "all"}),
    ],
)
def test_a_walk_ends_at_the_row_of_the_effects_table(both, question, contrast, parts, tokens):
    last, row = walk(both, question, tokens=tokens)[-1], effect(both, contrast, tokens=tokens, **parts)
    assert last["choice"] == "errors"
    for name in ("estimate", "lo", "hi", "p"):
        assert last[name] == pytest.approx(row[name], rel=1e-9)
    assert (last["n_pairs"], last["n_targets"], last["unit"]) == (
        row["n_pairs"],
        row["n_targets"],
        row["unit"],
    )


def arrays(made, relation, tokens="in"):
    """Confirm trials of a relation as {(sae, target, source, draw, prompt): {dose: trial}}, and their plan rows."""
    outcome = {t["trial_id"]: t for t in made["trials"]["trials"].to_pylist()}
    cells, plans = {}, {}
    for p in made["plan"]["plan"].to_pylist():
        if (p["relation"], p["token_set"], p["split"]) == (relation, tokens, "confirm"):
            key = (p["sae"], p["target"], p["source"], p["draw"], p["prompt_id"])
            plans[key] = p
            trial = outcome[p["trial_id"]]
            if trial["status"] == "ok":
                cells.setdefault(key, {})[p["dose"]] = trial
    return cells, plans


def best_relative(cell):
    base = next(iter(cell.values()))["cosine_base"]
    return max([0.0, *(t["cosine_edit"] for t in cell.values())]) / base - 1


def test_the_papers_end_is_its_regression_done_by_another_program(made, both):
    """Best of the doses per prompt, ordinary least squares on trials: statsmodels on rows made by hand."""
    cells, plans = arrays(made, "pair")
    y = np.array([best_relative(c) for c in cells.values()])
    x = np.array(
        [[plans[k]["interference"], plans[k]["similarity"], "mlp" in k[0]] for k in cells], dtype=float
    )
    fitted = sm.OLS(y, sm.add_constant(x)).fit()
    row = walk(both, "slope_b")[0]
    assert row["choice"] == "paper"
    assert row["estimate"] == pytest.approx(fitted.params[1], rel=1e-9)
    assert row["se"] == pytest.approx(fitted.bse[1], rel=1e-9)
    assert row["p"] == pytest.approx(fitted.pvalues[1], rel=1e-6)
    assert (row["lo"], row["hi"]) == pytest.approx(tuple(fitted.conf_int()[1]), rel=1e-9)
    assert row["n_rows"] == len(y)


def test_the_papers_difference_is_welchs_of_improved_cases_and_one_random_vector(made, both):
    pairs, _ = arrays(made, "pair")
    randoms, _ = arrays(made, "isotropic")
    a = np.array([best_relative(c) for c in pairs.values()])
    b = np.array([best_relative(c) for k, c in randoms.items() if k[3] == 0])
    expected = stats.ttest_ind(a[a > 0], b[b > 0], equal_var=False)
    row = walk(both, "difference")[0]
    assert row["estimate"] == pytest.approx(a[a > 0].mean() - b[b > 0].mean(), rel=1e-9)
    assert row["p"] == pytest.approx(expected.pvalue, rel=1e-6)
    interval = expected.confidence_interval(0.95)
    assert (row["lo"], row["hi"]) == pytest.approx((interval.low, interval.high), rel=1e-9)
    mean = walk(both, "mean")[0]
    assert mean["estimate"] == pytest.approx(a[a > 0].mean(), rel=1e-9)


def test_steps_are_the_declared_changes_in_their_order(both):
    assert [r["choice"] for r in walk(both, "difference")] == [
        *("paper", "cases", "selection", "dose", "sign", "outcome", "draws", "control", "errors")
    ]
    assert [r["choice"] for r in walk(both, "slope_b")] == [
        *("paper", "selection", "dose", "sign", "outcome", "model", "errors")
    ]
    for question in ("slope_a", "slope_b", "difference", "mean"):
        first, alone = walk(both, question)[1], walk(both, question, path="alone")[0]
        numbers = ("choice", "estimate", "lo", "hi", "p", "n_rows")
        assert [first[n] for n in numbers] == [alone[n] for n in numbers]


def test_without_an_isotropic_arm_the_papers_difference_says_what_to_add(made):
    plan, trials = made["plan"]["plan"], made["trials"]["trials"]
    plan = plan.filter(pc.not_equal(plan["relation"], "isotropic"))
    trials = trials.filter(pc.is_in(trials["trial_id"], plan["trial_id"].combine_chunks()))
    rows = walk(estimate(plan, trials, config=CONFIG, seed=0, beside=[PaperEstimates("both")]), "difference")
    assert [r["estimate"] is None for r in rows] == [True] * 7 + [False] * 2
    assert "add 'isotropic' to plan.controls" in rows[0]["note"]


def test_optimism_is_the_difference_of_its_parts(both):
    for relation in ("pair", "isotropic", "random_feature"):
        rows = {r["choice"]: r for r in walk(both, "mean", relation=relation, path="optimism")}
        at = {name: row["estimate"] for name, row in rows.items()}
        assert at["optimism_per_prompt"] == pytest.approx(at["best_per_prompt"] - at["same_on_confirm"])
        assert at["optimism_per_pair"] == pytest.approx(at["best_on_select"] - at["same_on_confirm"])
        assert at["best_per_prompt"] > at["same_on_confirm"]  # the same cells with a freer choice


@pytest.mark.parametrize("preset", ["strict", "paper"])
def test_other_presets_are_parts_of_both(made, both, preset):
    found = estimated(made, preset)
    assert found.effects.equals(both.effects)
    assert found.pair_effects.equals(both.pair_effects)
    kept = [
        r
        for r in both.presets.to_pylist()
        if preset == "paper" and (r["path"] == "optimism" or (r["path"], r["step"]) == ("walk", 0))
    ]
    assert found.presets.to_pylist() == kept
    assert found.presets.schema.equals(PRESETS.arrow())


def test_the_order_of_trials_changes_no_bit(made, both):
    plan, trials = made["plan"]["plan"], made["trials"]["trials"]
    rng = np.random.default_rng(0)
    again = estimate(
        plan.take(rng.permutation(plan.num_rows)),
        trials.take(rng.permutation(trials.num_rows)),
        config=CONFIG,
        seed=0,
        beside=[PaperEstimates("both")],
    )
    assert again.presets.equals(both.presets)


def test_preset_is_a_key_of_the_study():
    text = '[model]\nref = "m"\n[[saes]]\nref = "s"\n'
    assert parse_study(text).preset == "strict"
    assert parse_study(f'preset = "both"\n{text}').preset == "both"
    with pytest.raises(
        ConfigError, match=r"preset.*'lenient'; expected one of strict, paper, both.*got 'lenient'"
    ):
        parse_study(f'preset = "lenient"\n{text}')


# one cell at a time

DOSES = np.array([-2.0, -1.0, 1.0, 2.0])


def grid(base, edit, *, confirm, arm=None, logodds=None, prompt=None):
    """A grid of cosines; log-odds are the same numbers unless given."""
    base, edit = np.array(base), np.array(edit)
    other = (base, edit) if logodds is None else (np.array(logodds[0]), np.array(logodds[1]))
    return Grid(
        np.zeros(len(base), dtype=int) if arm is None else np.array(arm),
        np.arange(len(base)) if prompt is None else np.array(prompt),
        np.array(confirm),
        DOSES,
        {"cosine": base, "logodds": other[0]},
        {"cosine": edit, "logodds": other[1]},
        np.full(len(base), 0.5),
    )


def chosen(g: Grid, **changes: Any):
    """Effects under the paper's choices, some changed."""
    choices: dict[str, Any] = {
        "outcome": "relative",
        "selection": "reported",
        "sign": "free",
        "start": "zero",
    }
    return effects_of(g, **(choices | {"dose": 1.0} | changes))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, [2.0, -0.5, 1.0]),  # .6 / .2; the best is below the baseline; a baseline below 0 is beaten by 0
        ({"start": "baseline"}, [2.0, 0.0, 0.5]),
        ({"outcome": "after"}, [0.6, 0.1, 0.0]),
        ({"outcome": "after", "start": "baseline"}, [0.6, 0.2, -0.05]),
        ({"selection": "select"}, [-0.5, -0.5, 0.5]),  # -2 is best on the select cell
        ({"selection": "fixed"}, [0.5, -0.5, -1.0]),
        ({"selection": "fixed", "dose": 2.0}, [2.0, -0.5, -1.0]),
        ({"selection": "fixed", "sign": "odd"}, [0.5, 0.0, -0.75]),
        ({"sign": "odd"}, [1.25, 0.0, 1.0]),
        ({"selection": "select", "sign": "odd"}, [0.5, 0.0, -0.75]),
        ({"outcome": "logodds", "sign": "odd", "selection": "fixed"}, [0.1, 0.0, -0.075]),
        ({"only_positive": True}, [2.0, -0.5, 1.0]),
    ],
)
def test_every_choice_by_hand(choice, expected):
    base = [0.2, 0.2, -0.1, 0.1]
    edit = [[0.1, 0.1, 0.3, 0.6], [0.1] * 4, [-0.05, -0.05, -0.2, -0.2], [0.9, 0.1, 0.1, 0.1]]
    g = grid(base, edit, confirm=[True, True, True, False])
    assert chosen(g, **choice).values == pytest.approx(expected)


def test_the_vectors_of_one_level_are_searched_together_and_the_best_of_each_prompt_is_reported():
    """Arms 0 and 1 are of one bin, 2 of another, 3 a control; two prompts."""
    best = [[2.0, 1.0], [3.0, 0.5], [0.7, 0.9], [0.4, 0.6]]
    edit = [[0.0, 0.0, 0.0, (1 + best[a][p]) * 0.1] for a in range(4) for p in range(2)]
    g = grid(
        [0.1] * 8, edit, confirm=[True] * 8, arm=[a for a in range(4) for _ in range(2)], prompt=[0, 1] * 4
    )
    level = np.array([7, 7, 2, -1])
    alone = chosen(g, start="baseline").values
    together = chosen(g, start="baseline", level=level).values
    assert alone == pytest.approx([v for row in best for v in row])
    nan = np.nan
    assert together == pytest.approx([nan, 1.0, 3.0, nan, 0.7, 0.9, 0.4, 0.6], nan_ok=True)
    # a strength that was chosen elsewhere is no search
    held = {"selection": "fixed", "dose": 2.0}
    assert chosen(g, **held, level=level).values == pytest.approx(chosen(g, **held).values)


def test_larger_bins_of_gradients_win_by_their_size_alone():
    """Nothing is planted: more vectors in a bin make its best larger, and equal budgets take that away."""
    rng = np.random.default_rng(0)
    n_prompts, sizes = 400, [1, 9]
    arms = [k for k, n in enumerate(sizes) for _ in range(n)]
    edit = np.exp(0.3 * rng.standard_normal((len(arms) * n_prompts, 4))) * 0.1
    g = grid(
        [0.1] * len(edit), edit, confirm=[True] * len(edit),
        arm=np.repeat(np.arange(len(arms)), n_prompts), prompt=np.tile(np.arange(n_prompts), len(arms)),
    )  # fmt: skip
    found = chosen(g, start="baseline", level=np.array(arms))
    means = [np.nanmean(found.values[np.array(arms)[found.arm] == k]) for k in (0, 1)]
    assert means[1] > 1.5 * means[0]
    equal = chosen(g, start="baseline")
    means = [equal.values[np.array(arms)[equal.arm] == k].mean() for k in (0, 1)]
    assert means[1] == pytest.approx(means[0], rel=0.1)


def test_a_missing_strength_is_no_candidate_and_a_missing_cell_no_number():
    g = grid(
        [0.1, 0.1, 0.1], [[np.nan, 0.2, np.nan, 0.1], [np.nan] * 4, [0.1] * 4], confirm=[True, True, False]
    )
    assert chosen(g).values == pytest.approx([1.0, np.nan], nan_ok=True)
    assert np.isnan(chosen(g, selection="fixed").values).all()
    assert np.isnan(chosen(g, sign="odd").values).all()
    unseen = grid([0.1, 0.1], [[0.2] * 4, [np.nan] * 4], confirm=[True, False])
    assert np.isnan(chosen(unseen, selection="select").values).all()


def test_means_count_only_what_is_there():
    g = grid([0.1, 0.1, 0.1], [[0.2] * 4, [np.nan] * 4, [0.4] * 4], confirm=[True] * 3, arm=[0, 0, 2])
    assert means_by_arm(chosen(g), 4) == pytest.approx([1.0, np.nan, 3.0, np.nan], nan_ok=True)


# the paper's statistics


def test_plain_least_squares_and_welch_are_the_textbooks():
    rng = np.random.default_rng(0)
    x, y = np.column_stack([np.ones(40), rng.standard_normal((40, 2))]), rng.standard_normal(40)
    ours, theirs = plain_ols(y, x, level=0.9), sm.OLS(y, x).fit()
    for mine, other in ((ours.estimate, theirs.params), (ours.se, theirs.bse), (ours.p, theirs.pvalues)):
        assert mine == pytest.approx(other, rel=1e-10)
    assert np.column_stack([ours.lo, ours.hi]) == pytest.approx(theirs.conf_int(0.1), rel=1e-10)
    a, b = rng.standard_normal(30), 2 * rng.standard_normal(17) + 1
    ours, theirs = welch(a, b, level=0.9), stats.ttest_ind(a, b, equal_var=False)
    assert (ours.p[0], ours.df[0]) == pytest.approx((theirs.pvalue, theirs.df), rel=1e-10)
    assert (ours.lo[0], ours.hi[0]) == pytest.approx(tuple(theirs.confidence_interval(0.9)), rel=1e-10)


def test_what_cannot_be_estimated_has_a_reason_and_no_number():
    empty, one = np.empty(0), np.ones(1)
    assert plain_ols(empty, np.empty((0, 2)), level=0.9).reason == "no trials with an outcome"
    twice = plain_ols(np.arange(4.0), np.ones((4, 2)), level=0.9)
    assert "cannot be told apart" in twice.reason
    assert np.isnan(twice.estimate).all()
    assert "too few" in plain_ols(np.arange(2.0), np.eye(2), level=0.9).reason
    assert "first arm has no trials" in welch(empty, one, level=0.9).reason
    single = welch(one, np.zeros(3), level=0.9)
    assert (single.estimate[0], single.remark) == (1.0, "no interval: one trial in an arm")
    assert np.isnan(single.p[0])
    assert "no variance" in welch(np.ones(3), np.zeros(3), level=0.9).remark
    assert "no variance" in plain_ols(np.ones(5), np.ones((5, 1)), level=0.9).remark


def test_stars_are_the_papers():
    marks = [stars(p) for p in (None, 0.0009, 0.001, 0.0099, 0.01, 0.049, 0.05)]
    assert marks == ["", "***", "**", "**", "*", "*", ""]
