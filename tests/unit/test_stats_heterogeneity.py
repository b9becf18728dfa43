"""Whether SAEs say the same: by hand, at the edges, and how often where there is nothing to tell apart."""

import numpy as np
import pytest

from polysem.seeds import rng_for
from polysem.stats.heterogeneity import between_saes, heterogeneity
from polysem.stats.rows import group_label


def test_by_hand():
    """Weights 4, 1, 1: mean .5, Q = 4 x .25 + .25 x 1 + 1 x 2.25 = 3.5 with 2 degrees of freedom."""
    found = heterogeneity(np.array([0.0, 1.0, 2.0]), np.array([0.5, 1.0, 1.0]), level=0.95)
    assert found.q == pytest.approx(4 * 0.25 + 0.25 + 2.25)
    assert found.p == pytest.approx(np.exp(-3.5 / 2))
    assert found.i2 == pytest.approx(1.5 / 3.5)
    tau2 = 1.5 / (6 - 18 / 6)
    assert found.tau**2 == pytest.approx(tau2)
    w = 1 / (np.array([0.25, 1.0, 1.0]) + tau2)
    assert found.mean == pytest.approx(w @ [0, 1, 2] / w.sum())
    assert found.i2_lo <= found.i2 <= found.i2_hi


def test_equal_estimates_have_none_and_two_have_no_interval_of_i2():
    same = heterogeneity(np.full(4, 0.3), np.full(4, 0.1), level=0.95)
    assert (same.q, same.i2, same.tau) == (pytest.approx(0), 0, 0)
    assert same.mean == pytest.approx(0.3)
    assert same.lo < 0.3 < same.hi
    two = heterogeneity(np.array([0.0, 1.0]), np.array([0.1, 0.1]), level=0.95)
    assert np.isnan(two.i2_lo)
    assert two.i2 > 0.9


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_q_is_honest_and_the_mean_is_covered(tau):
    rng = rng_for(0, "heterogeneity", str(tau))
    rejected, covered = [], []
    for _ in range(600):
        se = rng.uniform(0.3, 1.0, 5)
        y = 1 + tau * rng.standard_normal(5) + se * rng.standard_normal(5)
        found = heterogeneity(y, se, level=0.95)
        rejected.append(found.p < 0.05)
        covered.append(found.lo <= 1 <= found.hi)
    assert np.mean(covered) >= 0.93  # cautious where the SAEs are alike: t with 4 degrees of freedom
    if tau:
        assert np.mean(covered) <= 0.995
        assert np.mean(rejected) > 0.4
    else:
        assert 0.03 <= np.mean(rejected) <= 0.07


def row(sae, estimate, se):
    group = group_label(locus="feature", sae=sae, outcome="logodds", tokens="in", dose=0.1)
    keys = {"contrast": "slope_interference", "group": group, "locus": "feature", "token_set": "in"}
    return keys | {"estimate": estimate, "se": se, "level": 0.95, "unit": "nats"}


def test_only_the_same_group_of_other_saes_is_compared_and_a_single_one_says_so():
    rows = [row("*", 0.5, 0.1), row("A", 0.4, 0.1), row("B", 0.8, 0.1), row("C", None, None)]
    other = row("D", 9.0, 0.1)
    other["group"] = other["group"].replace("tokens=in", "tokens=out")
    (found,) = between_saes(rows[:1], [*rows, other])
    assert (found["n_saes"], found["estimate"]) == (2, 0.5)
    assert found["mean"] == pytest.approx(0.6)
    (alone,) = between_saes(rows[:1], rows[:2])
    assert (alone["n_saes"], alone["note"]) == (1, "only 1 of 1 SAEs have an interval of their own")
    (none,) = between_saes(rows[:1], rows[:1])
    assert none["note"] == "there is one SAE"


@pytest.mark.parametrize(("unit", "beyond"), [("share of pairs", False), ("nats", True)])
def test_a_pooled_share_has_its_interval_where_shares_can_be(unit, beyond):
    rows = [
        row(sae, value, 0.1) | {"unit": unit}
        for sae, value in (
            (
                "*",
                0.7,
            ),
            ("A", 0.6),
            ("B", 0.8),
        )
    ]
    (found,) = between_saes(rows[:1], rows)
    assert found["mean"] == pytest.approx(0.7)
    assert (found["hi"] > 1) == (found["lo"] < 0) == beyond
