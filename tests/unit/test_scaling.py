"""Curves over widths: a known exponent comes back, chance is what random rows have, capacity is shared out."""

import numpy as np
import pytest

from polysem.errors import ConfigError
from polysem.scaling import at_matched, capacity, chance_close, geometry, power_fit, random_rows, rows_of


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0])
def test_a_known_exponent_comes_back(exponent: float) -> None:
    """Closed form with noise of 1 % of the curve's range, five widths and three seeds: within 0.05, and inside the interval."""
    rng = np.random.default_rng(3)
    width = np.repeat([768.0, 1536, 3072, 6144, 12288], 3)
    seed = np.tile([0.0, 1, 2], 5)
    clean = 0.2 + 3 * width**-exponent
    exact = power_fit(width, clean, seed)
    assert (exact.a, exact.b, exact.c) == pytest.approx((0.2, 3, exponent), rel=1e-3)
    noisy = power_fit(width, clean + 0.003 * np.ptp(clean) * rng.standard_normal(15), seed)
    assert abs(noisy.c - exponent) <= 0.05
    assert noisy.lo <= exponent <= noisy.hi


def test_a_measure_that_one_dictionary_does_not_have_has_no_curve() -> None:
    width = np.array([8.0, 16.0, 32.0])
    found = power_fit(width, np.array([0.5, np.nan, 0.1]), np.zeros(3))
    assert np.isnan([found.a, found.b, found.c, found.residual]).all()
    assert found.note == "unknown of 1 of 3: no curve"
    flat = power_fit(width, np.zeros(3), np.zeros(3))
    assert flat.note == "the same at every width: no curve"
    assert np.isnan([flat.c, flat.lo, flat.hi]).all()
    with pytest.raises(ConfigError, match="2 widths"):
        power_fit(width[:2], np.ones(2), np.zeros(2))


def test_seeds_that_have_no_exponent_bound_none() -> None:
    """Either seed alone is a step at the first width or a line, so a zero spread of their exponents would say nothing."""
    width, seed = np.tile([1.0, 2, 4, 8], 2), np.repeat([0.0, 1], 4)
    step = np.array([0.0, 1, 1, 1])
    made = power_fit(width, np.concatenate([step, step]), seed)
    assert "no such curve" in made.note
    assert np.isnan([made.lo, made.hi]).all()
    line = power_fit(width, np.concatenate([np.log(width[:4]), np.log(width[:4]) ** 1.5]), seed)
    assert np.isnan(line.lo)
    assert line.note


def test_random_rows_are_what_the_null_says() -> None:
    for n, d in ((600, 24), (900, 48)):
        made = geometry(random_rows(n, d, seed=1))
        assert made.close == pytest.approx(chance_close(d), rel=0.1)
        assert made.rms == pytest.approx(d**-0.5, rel=0.02)
        # C_i = 1 / (1 + (n - 1) / d) where all directions are alike
        assert made.capacity == pytest.approx(d / (n - 1 + d), rel=0.02)


def test_capacity_is_shared_out() -> None:
    """sum C_i <= d, with equality for a tight frame; and C_i by its definition."""
    assert np.allclose(capacity(np.eye(7)), 1)
    rng = np.random.default_rng(0)
    for n, d in ((5, 9), (40, 6), (300, 20)):
        rows = rng.standard_normal((n, d))
        brute = (rows**2).sum(1) ** 2 / ((rows @ rows.T) ** 2).sum(1)
        assert np.allclose(capacity(rows), brute, atol=1e-12)
        assert capacity(rows).sum() <= min(n, d) + 1e-6
    assert capacity(np.concatenate([np.eye(6), -np.eye(6)])).sum() == pytest.approx(6, abs=1e-6)


def test_geometry_counts_pairs_as_brute_force_does() -> None:
    units = random_rows(50, 8, seed=0)
    cosine = np.abs(units @ units.T)[~np.eye(50, dtype=bool)].reshape(50, 49)
    made = geometry(units)
    assert made.close == pytest.approx((cosine >= 0.3).mean())
    assert made.largest == pytest.approx(cosine.max(1).mean())
    assert made.rms == pytest.approx(np.sqrt((cosine**2).mean()))


def test_what_stands_beside_has_the_widths_that_were_measured() -> None:
    beside = rows_of([{"width": 10}, {"width": 20}], {0: random_rows(20, 6, seed=0)})
    assert [(r["kind"], r["width"]) for r in beside] == [("random", 10), ("thinned", 10), ("random", 20)]


def test_matched_values_are_told_inside_the_family_only() -> None:
    x, y = np.array([0.3, 0.1, 0.2]), np.array([3.0, 1.0, 2.0])
    assert at_matched(x, y, 0.15) == pytest.approx(1.5)
    assert np.isnan(at_matched(x, y, 0.35))
    with pytest.raises(ConfigError, match="three widths"):
        power_fit(np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.zeros(2))
