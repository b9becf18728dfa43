"""Two-way clustered least squares against its definition, against statsmodels, and in a null world."""

import numpy as np
import pytest

from polysem.seeds import rng_for
from polysem.stats.regress import FEW_CLUSTERS, clustered_mean, clustered_ols, sums, within

EXACT = 1e-10
"""float64 sums of a few hundred terms, taken in another order"""


def crossed(seed, *, n_targets=14, n_sources=17, per_target=5):
    rng = rng_for(seed, "crossed")
    target = np.repeat(np.arange(n_targets), per_target)
    source = np.concatenate([rng.permutation(n_sources)[:per_target] for _ in range(n_targets)])
    x = rng.standard_normal((len(target), 2))
    y = 0.5 * x[:, 0] + rng.standard_normal(n_targets)[target] + rng.standard_normal(n_sources)[source]
    design = np.column_stack([np.ones(len(y)), x])
    return y + rng.standard_normal(len(y)), design, np.column_stack([target, source])


def brute_force(y, design, same, factor):
    """(X'X)^-1 [sum over all a, b with same[a, b] of u_a u_b x_a x_b'] (X'X)^-1, one pair of rows at a
    time."""
    bread = np.linalg.inv(design.T @ design)
    u = y - design @ (bread @ design.T @ y)
    meat = np.zeros((design.shape[1], design.shape[1]))
    for a in range(len(y)):
        for b in range(len(y)):
            if same[a, b]:
                meat += u[a] * u[b] * np.outer(design[a], design[b])
    return factor * bread @ meat @ bread


def terms(y, design, clusters):
    n, k = design.shape
    same = [c[:, None] == c[None, :] for c in clusters.T]
    both = same[0] & same[1]
    sizes = [len(np.unique(clusters[:, 0])), len(np.unique(clusters[:, 1])), len(np.unique(clusters, axis=0))]
    factors = [g / (g - 1) * (n - 1) / (n - k) for g in sizes]
    return [brute_force(y, design, s, f) for s, f in zip((*same, both), factors, strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_standard_errors_are_the_formula(seed):
    y, design, clusters = crossed(seed)
    v_target, v_source, v_both = terms(y, design, clusters)
    expected = np.maximum.reduce([np.diag(v) for v in (v_target + v_source - v_both, v_target, v_source)])
    fit = clustered_ols(y, design, clusters, level=0.9, correction="crv1")
    np.testing.assert_allclose(fit.se, np.sqrt(expected), rtol=EXACT)
    np.testing.assert_allclose(fit.estimate, np.linalg.lstsq(design, y, rcond=None)[0], rtol=EXACT)
    assert fit.df.tolist() == [13.0] * 3


def test_repeated_cells_are_counted_once():
    # Two rows of one (target, source): the intersection term is then no longer White's.
    y, design, clusters = crossed(7)
    y, design, clusters = (
        np.tile(y, 2) + np.linspace(0, 1, 140),
        np.tile(design, (2, 1)),
        np.tile(clusters, (2, 1)),
    )
    v_target, v_source, v_both = terms(y, design, clusters)
    expected = np.maximum.reduce([np.diag(v) for v in (v_target + v_source - v_both, v_target, v_source)])
    np.testing.assert_allclose(
        clustered_ols(y, design, clusters, level=0.9, correction="crv1").se, np.sqrt(expected), rtol=EXACT
    )


def test_max_rule_takes_the_larger_one_way_variance():
    # Negative correlation inside sources: their term is smaller than White's, so CGM alone would shrink the target's term.
    rng = rng_for(0, "max rule")
    source = np.repeat(np.arange(30), 2)
    target = np.tile(np.arange(20), 3)
    y = np.tile([1.0, -1.0], 30) + 0.01 * rng.standard_normal(60) + rng.standard_normal(20)[target]
    design = np.ones((60, 1))
    clusters = np.column_stack([target, source])
    v_target, v_source, v_both = (v[0, 0] for v in terms(y, design, clusters))
    assert v_target + v_source - v_both < v_target
    fit = clustered_ols(y, design, clusters, level=0.95, correction="crv1")
    assert fit.se[0] == pytest.approx(np.sqrt(v_target), rel=EXACT)


def test_agrees_with_statsmodels_own_two_way_results():
    import statsmodels.api as sm
    from scipy import stats

    y, design, clusters = crossed(3)
    theirs = sm.OLS(y, design).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    one_way = [
        sm.OLS(y, design).fit(cov_type="cluster", cov_kwds={"groups": c}).bse for c in clusters.T.copy()
    ]
    ours = clustered_ols(y, design, clusters, level=0.95, correction="crv1")
    se = np.maximum.reduce([theirs.bse, *one_way])
    np.testing.assert_allclose(ours.se, se, rtol=EXACT)
    t = stats.t(df=13)
    np.testing.assert_allclose(ours.p, 2 * t.sf(np.abs(theirs.params / se)), rtol=1e-8)
    np.testing.assert_allclose(ours.hi - ours.lo, 2 * t.ppf(0.975) * se, rtol=1e-8)


def refits(y, design, members):
    """Estimates without each cluster, refitted; `members`: rows of each cluster."""
    fits = []
    for rows in members:
        left = np.setdiff1d(np.arange(len(y)), rows)
        fits.append(np.linalg.lstsq(design[left], y[left], rcond=None)[0])
    return np.array(fits)


@pytest.mark.parametrize("errors", ["two_way", "dyadic"])
def test_default_standard_errors_are_the_jackknife_refitted(errors):
    y, design, clusters = crossed(
        5
    )  # targets 0-13 and sources 0-16: numbers are shared, and rows (3, 3) exist
    whole = np.linalg.lstsq(design, y, rcond=None)[0]

    def term(keys):
        members = [[i for i, k in enumerate(keys) if g in k] for g in sorted({g for k in keys for g in k})]
        g = len(members)
        return (g - 1) / g * ((refits(y, design, members) - whole) ** 2).sum(0)

    target, source = term([(t,) for t, _ in clusters]), term([(s,) for _, s in clusters])
    linked = target + source - term([((t, s),) for t, s in clusters])
    if errors == "dyadic":
        linked = term([{t, s} for t, s in clusters]) - term(
            [(frozenset((t, s)),) if t != s else () for t, s in clusters]
        )
    expected = np.maximum.reduce([linked, target, source])
    fit = clustered_ols(y, design, clusters, level=0.95, errors=errors)
    np.testing.assert_allclose(fit.se**2, expected, rtol=1e-9)


def test_degrees_of_freedom_are_those_of_the_clusters_that_matter():
    # Balanced: as many as there are. One target with all the variation of x: one.
    clusters = np.column_stack([np.repeat(np.arange(12), 12), np.tile(np.arange(12), 12)])
    y = rng_for(0, "df").standard_normal(144)
    fit = clustered_mean(y, clusters, level=0.95)
    assert fit.df[0] == pytest.approx(11)
    x = np.where(clusters[:, 0] == 0, clusters[:, 1] - 5.5, 0.01 * clusters[:, 1])
    fit = clustered_ols(y, np.column_stack([np.ones(144), x]), clusters, level=0.95)
    assert fit.df[1] == 1


def _own(n):
    return np.column_stack([np.arange(n)] * 2)


@pytest.mark.parametrize(
    ("y", "design", "clusters", "words"),
    [
        (np.empty(0), np.empty((0, 1)), np.empty((0, 2), int), "no pairs"),
        (np.arange(3.0), np.column_stack([np.ones(3), np.arange(3.0)]), _own(3), "too few pairs"),
        (np.arange(6.0), np.ones((6, 2)), _own(6), "cannot be told apart"),
        (np.arange(6.0), np.column_stack([np.ones(6), np.zeros(6)]), _own(6), "does not vary"),
    ],
)
def test_what_cannot_be_estimated_is_words_and_no_number(y, design, clusters, words):
    fit = clustered_ols(y, design, clusters, level=0.95)
    assert words in fit.reason
    for values in (fit.estimate, fit.se, fit.lo, fit.hi, fit.p):
        assert np.isnan(values).all()


@pytest.mark.parametrize(
    ("y", "clusters", "words"),
    [
        (np.arange(6.0), np.column_stack([np.zeros(6, int), np.arange(6)]), "only one target"),
        (np.arange(6.0), np.column_stack([np.arange(6), np.zeros(6, int)]), "only one source"),
        (np.full(1, 0.3), _own(1), "only 1 pair"),
        (np.arange(2.0), _own(2), "only 2 pairs"),
        (np.ones(6), _own(6), "no variance"),
        (np.zeros(6), _own(6), "exactly zero"),
    ],
)
def test_without_noise_to_judge_by_the_mean_stands_alone(y, clusters, words):
    fit = clustered_mean(y, clusters, level=0.95)
    assert fit.estimate[0] == pytest.approx(y.mean())
    assert fit.reason == ""
    assert fit.remark.startswith("no interval: ")
    assert words in fit.remark
    for values in (fit.se, fit.lo, fit.hi, fit.p, fit.df):
        assert np.isnan(values).all()


def test_few_clusters_are_remarked():
    y, design, clusters = crossed(1, n_targets=FEW_CLUSTERS - 1)
    assert "few clusters (9 targets" in clustered_ols(y, design, clusters, level=0.95).remark
    y, design, clusters = crossed(1, n_targets=FEW_CLUSTERS)
    assert clustered_ols(y, design, clusters, level=0.95).remark == ""


def test_within_removes_group_means():
    values = np.array([[1.0], [3.0], [10.0], [20.0], [30.0]])
    np.testing.assert_allclose(
        within(values, np.array([5, 5, 2, 2, 2]))[:, 0], [-1.0, 1.0, -10.0, 0.0, 10.0], atol=1e-12
    )
    # Frisch-Waugh-Lovell: demeaned regression = regression with a dummy of every group.
    y, design, clusters = crossed(2)
    dummies = (clusters[:, :1] == np.unique(clusters[:, 0])).astype(float)
    full = np.linalg.lstsq(np.column_stack([design[:, 1:], dummies]), y, rcond=None)[0][:2]
    demeaned = clustered_ols(
        within(y[:, None], clusters[:, 0])[:, 0], within(design[:, 1:], clusters[:, 0]), clusters, level=0.95
    )
    np.testing.assert_allclose(demeaned.estimate, full, rtol=1e-9)


def test_sums_of_many_columns_are_those_of_one_by_one_to_the_bit():
    """Many columns go through one sparse product, which adds rows up in the same order."""
    rng = np.random.default_rng(0)
    values, code = (
        rng.standard_normal((300, 200)),
        np.unique(rng.integers(0, 40, 300), return_inverse=True)[1],
    )
    together = sums(values, code)
    assert np.array_equal(together, np.column_stack([sums(values[:, [k]], code) for k in range(200)]))
    np.testing.assert_allclose(together[3], values[code == 3].sum(axis=0), atol=1e-12)
