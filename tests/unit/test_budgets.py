"""Sizes of effects at one budget: a planted ratio comes back, noise is no strength, and what a push does to the site is
what was captured."""

import numpy as np
import pytest

from polysem.report.budgets import budgets_rows
from polysem.seeds import rng_for
from polysem.stats.budgets import _compared, sizes
from polysem.store.tables import BUDGETS

PAIRS, TARGETS, WORLDS = 60, 12, 200
COVERAGE = 0.88
"""of a nominal .95: a percentile bootstrap over 12 targets is short by some points"""


def world(ratio, seed, *, noise=0.1):
    """(effect, error, spent) of the same pairs at two loci, the first `ratio` times as large, with errors over prompts."""
    rng = rng_for(seed, "budgets")
    keys = [("s", k % TARGETS, k) for k in range(PAIRS)]
    shared = rng.standard_normal(PAIRS) + 0.5 * rng.standard_normal(TARGETS)[np.arange(PAIRS) % TARGETS]
    own = 0.3 * rng.standard_normal(PAIRS)
    x, y = ratio * (shared + own), shared
    sides = [[(float(v + noise * rng.standard_normal()), noise, 0.1) for v in values] for values in (x, y)]
    return *sides, keys


def compared(ratio, seed, **how):
    return _compared(*world(ratio, seed, **how), level=0.95, rng=rng_for(seed, "bootstrap"))


@pytest.mark.parametrize("ratio", [0.5, 3.0, 10.0])
def test_the_interval_covers_the_planted_ratio(ratio):
    truth = ratio * np.sqrt((1.25 + 0.09) / 1.25)
    found = [compared(ratio, seed) for seed in range(WORLDS)]
    assert np.median([f["ratio"] for f in found]) == pytest.approx(truth, rel=0.03)
    assert np.mean([f["lo"] <= truth <= f["hi"] for f in found]) >= COVERAGE


def test_noise_is_no_strength():
    rng = rng_for(0, "noise")
    error = np.full(4000, 0.5)
    effect = np.full(4000, 0.2) + error * rng.standard_normal(4000)
    assert np.sqrt(np.mean(effect**2)) > 0.5
    assert sizes(effect, error, np.ones((1, 4000)))[0] == pytest.approx(0.2, abs=0.05)
    nothing = [(0.1, 0.5, 0.1)] * 6
    found = _compared(nothing, nothing, [("s", k, 0) for k in range(6)], level=0.95, rng=rng)
    assert found["reference_size"] == 0.0
    assert "ratio" not in found
    assert "no larger than their noise" in found["note"]


def test_few_targets_have_a_ratio_without_an_interval():
    sides = [[(2.0, 0.1, 0.1)] * 4, [(1.0, 0.1, 0.1)] * 4]
    found = _compared(*sides, [("s", k % 2, k) for k in range(4)], level=0.95, rng=rng_for(0, "few"))
    assert found["ratio"] == pytest.approx(2.0, rel=0.01)
    assert "lo" not in found
    assert "2 targets" in found["note"]


def row(locus, budget, ratio, lo, hi, **more):
    made = {"locus": locus, "token_set": "in", "budget": budget, "reference": "feature", "at": 0.1}
    made |= {"ratio": ratio, "lo": lo, "hi": hi, "n_pairs": 9, "n_targets": 4, "level": 0.95}
    return made | more


def test_the_report_says_whether_ten_times_is_excluded():
    rows = [
        row("clamp", "nats", 9.0, 4.0, 12.0),
        row("gradient", "nats", 0.9, 0.7, 1.3),
        row("gradient", "norm", 0.8, 0.6, 1.2),
        row("prompt", "nats", 2.0, None, None, note="no interval: 2 targets, and 3 are needed"),
        row("neuron", "nats", None, None, None, n_pairs=0, n_targets=0, note="no pair"),
    ]
    found = budgets_rows(BUDGETS.of(rows).to_pylist())
    assert found["said"] == [
        "At 0.100 nats of KL, clamped features move the tokens that activate the target 9.000 times as much as feature "
        "directions do on the same 9 pairs (4.000 to 12.000): ten times as much is not excluded.",
        "At 0.100 nats of KL, token gradients move the tokens that activate the target 0.900 times as much as feature "
        "directions do on the same 9 pairs (0.700 to 1.300): ten times as much is excluded.",
        "At 0.100 nats of KL, prompt injections move the tokens that activate the target 2.000 times as much as feature "
        "directions do on the same 9 pairs (no interval).",
    ]
    assert [r["ratio"] for r in found["rows"]].count("–") == 1
