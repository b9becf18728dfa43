"""Chance levels against mpmath, known counts and simulation; BH against scipy on all p-values."""

import math

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from polysem.errors import ConfigError
from polysem.geometry import benjamini_hochberg, cosine_tail, covariance_null
from polysem.geometry.law import Population, cosine_law

mpmath = pytest.importorskip(
    "mpmath", reason="the reference for the Beta tail; torch brings it through sympy"
)


@pytest.mark.parametrize("d", [2, 3, 64, 300.7, 512, 768, 4096])
@pytest.mark.parametrize("c", [0.0, 1e-3, 0.05, 0.2, 0.3, 0.5, 0.9, 0.999])
def test_tail_agrees_with_mpmath(d, c):
    with mpmath.workdps(50):
        x = 1 - mpmath.mpf(c) ** 2
        exact = mpmath.betainc((mpmath.mpf(d) - 1) / 2, mpmath.mpf(1) / 2, 0, x, regularized=True)
        if exact < mpmath.mpf(10) ** -300:
            assert float(cosine_tail(c, d=d, two_sided=True)) < 1e-299
            return
        assert float(cosine_tail(c, d=d, two_sided=True)) == pytest.approx(float(exact), rel=1e-12)
        assert float(cosine_tail(c, d=d)) == pytest.approx(float(exact / 2), rel=1e-12)
        assert float(cosine_tail(-c, d=d)) == pytest.approx(float(1 - exact / 2), rel=1e-12)


def test_tail_closed_forms():
    # d = 3: the cosine is uniform on [-1, 1] (Archimedes); d = 2: arccos(c) / pi
    c = np.linspace(-1, 1, 41)
    np.testing.assert_allclose(cosine_tail(c, d=3), (1 - c) / 2, rtol=0, atol=1e-14)
    np.testing.assert_allclose(cosine_tail(c, d=2), np.arccos(c) / math.pi, rtol=0, atol=1e-9)
    assert cosine_tail(np.array([-1.0, -0.5, 0.5, 1.0]), d=1).tolist() == [1.0, 0.5, 0.5, 0.0]
    assert cosine_tail(np.array([-1.2, 1.2]), d=9).tolist() == [1.0, 0.0]
    with pytest.raises(ConfigError, match=r"at least 1, got 0\.5"):
        cosine_tail(0.1, d=0.5)


@pytest.mark.parametrize(("d", "expected", "within"), [(512, 1340, 10), (768, 6, 0.5)])
def test_chance_pairs_over_one_fifth_in_a_dictionary_of_32768(d, expected, within):
    """Counts that are known for these widths: about 1,340 pairs at d = 512, 6 at d = 768."""
    n = 32768
    assert n * (n - 1) / 2 * float(cosine_tail(0.2, d=d)) == pytest.approx(expected, abs=within)


def draws(n, d, *, power, shift, seed):
    """Unit rows: Gaussian with spectrum k^-power around a mean of length `shift` times the typical length."""
    rng = np.random.default_rng(seed)
    scale = np.arange(1, d + 1) ** (-power / 2)
    rows = rng.normal(size=(n, d)) * scale
    rows[:, -1] += shift * np.sqrt((scale**2).sum())
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_isotropic_rows_have_the_isotropic_null():
    null = covariance_null(draws(2000, 64, power=0, shift=0, seed=0))
    assert null.d_eff == pytest.approx(64, rel=0.005)
    assert null.mean == pytest.approx(0, abs=2e-4)
    assert 1 / null.variance == pytest.approx(64, rel=0.005)
    # without leaving out each row's cosine with itself d_eff would be 62; the law keeps the rows' own covariance, whose
    # noise makes its tail heavier than that of the population, by a fifth with 31 rows per dimension
    assert 1 < null.expected_above(0.4) / (null.n_pairs * float(cosine_tail(0.4, d=64))) < 1.25


@pytest.mark.parametrize(
    ("power", "shift", "n"), [(0, 0, 200), (0.5, 0.3, 1536), (0.8, 0, 1536), (0.5, 0.5, 800)]
)
def test_pairs_expected_are_those_of_simulated_gaussians(power, shift, n):
    """Gaussian vectors with the rows' own mean and covariance, all their pairs counted; far tails included."""
    rows = draws(n, 48, power=power, shift=shift, seed=7)
    null = covariance_null(rows)
    rng = np.random.default_rng(2)
    root = np.linalg.cholesky(np.cov(rows.T, bias=True) + 1e-12 * np.eye(48))
    counts = []
    for _ in range(12):
        v = rows.mean(axis=0) + rng.standard_normal((1500, 48)) @ root.T
        v /= np.linalg.norm(v, axis=1, keepdims=True)
        cosine = (v @ v.T)[np.triu_indices(1500, 1)]
        counts.append(
            [(cosine > c).mean() if c >= 0 else (cosine < c).mean() for c in (0.1, 0.33, 0.5, -0.3)]
        )
    mean, se = np.mean(counts, axis=0), np.std(counts, axis=0, ddof=1) / math.sqrt(12)
    for c, expected, error in zip((0.1, 0.33, 0.5, -0.3), mean, se, strict=True):
        both = math.hypot(error, null.expected_se(c) / null.n_pairs)
        assert null.expected_above(c) / null.n_pairs == pytest.approx(expected, abs=4 * both), c
        assert 0 < null.expected_se(c) / null.expected_above(c) < 0.2


def test_the_law_of_random_directions_is_the_beta_law():
    law = cosine_law(Population(np.zeros(64), np.eye(64) / 64))
    for c in (0.0, 0.03, 0.1, 0.28, 0.5):
        assert float(law.greater(c)) == pytest.approx(
            float(cosine_tail(c, d=64)), rel=0.005 + 4 * law.relative_se(c)
        )
        assert float(law.less(-c)) == pytest.approx(
            float(cosine_tail(c, d=64)), rel=0.005 + 4 * law.relative_se(-c - 1e-9)
        )
    assert float(law.greater(1.0)) == 0
    assert float(law.greater(-1.0)) == 1


def test_the_law_of_two_populations_does_not_depend_on_their_order():
    rng = np.random.default_rng(0)
    one, two = (rng.standard_normal((300, 12)) * np.linspace(1, 3, 12) + k for k in (0, 1))
    first, second = (Population(x.mean(axis=0), np.cov(x.T)) for x in (one, two))
    here, there = cosine_law(first, second), cosine_law(second, first)
    np.testing.assert_array_equal(here.above, there.above)
    cosine = (one / np.linalg.norm(one, axis=1)[:, None]) @ (two / np.linalg.norm(two, axis=1)[:, None]).T
    assert float(here.greater(0.3)) == pytest.approx((cosine > 0.3).mean(), rel=0.1)


@pytest.mark.parametrize(("power", "shift"), [(0, 0.5), (0.5, 0), (0.5, 0.3)])
def test_moments_are_those_of_the_pairs(power, shift):
    rows = draws(400, 48, power=power, shift=shift, seed=3)
    null = covariance_null(rows * np.linspace(0.1, 9, 400)[:, None])
    cosine = (rows @ rows.T)[np.triu_indices(400, 1)]
    mean = max(cosine.mean(), 0.0)  # |m|^2 is not negative
    assert null.mean == pytest.approx(mean, rel=1e-9)
    assert null.variance == pytest.approx((cosine**2).mean() - mean**2, rel=1e-9)
    assert null.d_eff == pytest.approx(1 / (cosine**2).mean(), rel=1e-9)
    assert null.mean_norm == pytest.approx(np.linalg.norm(rows.mean(axis=0)), rel=1e-9)


@pytest.mark.parametrize(("power", "shift"), [(0, 0), (0, 0.5), (0.5, 0), (0.5, 0.3), (0.8, 0)])
def test_p_values_are_calibrated_on_fresh_draws_of_the_null(power, shift):
    """Independent pairs from the population: P(p <= a) = a, down to 1 in 1,000."""
    null = covariance_null(draws(3000, 64, power=power, shift=shift, seed=1))
    a, b = (draws(50_000, 64, power=power, shift=shift, seed=s) for s in (11, 12))
    p = null.p(np.einsum("nd,nd->n", a, b))
    z = null.z(np.einsum("nd,nd->n", a, b))
    # the mean of 3,000 rows, squared, is itself known to a few hundredths of a standard deviation
    assert z.mean() == pytest.approx(0, abs=0.06)
    assert z.std() == pytest.approx(1, abs=0.03)
    # relative error allowed: 4 binomial standard errors, and what the shape of the law may be off by
    # (rows of length 1 drawn from the covariance of such rows are a little less uneven than these)
    for level, shape in ((0.5, 0.05), (0.1, 0.2), (0.01, 0.4), (0.001, 0.9)):
        sampling = 4 * math.sqrt(level * (1 - level) / len(p)) / level
        assert (p <= level).mean() == pytest.approx(level, rel=shape + sampling), level


def test_null_of_orthogonal_and_of_equal_rows_stays_within_its_bounds():
    orthogonal = covariance_null(np.eye(16))
    assert orthogonal.d_eff == 16
    assert orthogonal.variance == pytest.approx(1 / 16, rel=1e-11)
    equal = covariance_null(np.ones((5, 3)))
    assert equal.mean == pytest.approx(1)
    assert np.abs(equal.z(np.array([1.0]))).max() < 1e-3
    assert equal.p(np.array([1.0]))[0] > 0.99
    with pytest.raises(ConfigError, match="two rows with a direction, got 1"):
        covariance_null(np.array([[1.0, 0], [0, 0]]))


def test_zero_rows_do_not_count():
    rows = draws(50, 8, power=0, shift=0.2, seed=5)
    assert covariance_null(np.concatenate([rows, np.zeros((9, 8))])) == covariance_null(rows)


def test_bh_equals_scipy_when_all_p_values_are_known():
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.uniform(size=500), rng.uniform(size=60) ** 6, [0.0, 0.01, 0.01]])
    np.testing.assert_allclose(benjamini_hochberg(p, n_tests=len(p)), false_discovery_control(p), rtol=1e-13)


@pytest.mark.parametrize("cut", [1e-4, 1e-2, 0.2])
def test_bh_on_the_tail_equals_bh_with_the_rest_at_one(cut):
    rng = np.random.default_rng(1)
    p = np.concatenate([rng.uniform(size=20_000), rng.uniform(size=800) ** 8])
    tail = p <= cut
    q = benjamini_hochberg(p[tail], n_tests=len(p))
    np.testing.assert_allclose(q, false_discovery_control(np.where(tail, p, 1.0))[tail], rtol=1e-12)
    full = false_discovery_control(p)[tail]
    assert (q >= full * (1 - 1e-12)).all()
    untested = p[~tail].min()
    agree = q <= untested
    assert agree.any()
    np.testing.assert_allclose(q[agree], full[agree], rtol=1e-12)
    for level in (untested, untested / 3):
        np.testing.assert_array_equal(q <= level, full <= level)


def test_bh_controls_the_false_discovery_rate_of_screened_cosines():
    """Null dictionaries, screened at |cos| >= 0.3: some q <= 0.1 in about 10 % of them, not more."""
    hits = 0
    for seed in range(150):
        rows = draws(60, 16, power=0, shift=0, seed=1000 + seed)
        cosine = (rows @ rows.T)[np.triu_indices(60, 1)]
        p = cosine_tail(cosine, d=16, two_sided=True)
        q = benjamini_hochberg(p[np.abs(cosine) >= 0.3], n_tests=len(p))
        hits += bool((q <= 0.1).any())
    assert 3 <= hits <= 30  # 15 expected; 4 binomial standard errors are 15


def test_bh_of_nothing_and_of_too_many():
    assert len(benjamini_hochberg(np.empty(0), n_tests=7)) == 0
    with pytest.raises(ConfigError, match="n_tests is 2, below the 3 p-values"):
        benjamini_hochberg(np.array([0.1, 0.2, 0.3]), n_tests=2)
