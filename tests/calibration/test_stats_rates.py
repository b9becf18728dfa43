"""Error rates by simulation: what the default test rejects where there is nothing, and what its intervals cover.

The worlds are those in which naive tests fail: targets and sources have effects of their own (SD .6), pairs too
(.4), slopes differ from target to target (SD 1), and cosines share a common mode. True slope 0.
Rates are over 1,000 replicates; the band is .05 with two Monte-Carlo standard errors.
"""

import numpy as np
import pytest
from scipy.special import ndtr

from polysem.seeds import rng_for
from polysem.stats.multiple import adjust_p
from polysem.stats.permute import permute_within, qap
from polysem.stats.regress import clustered_ols

REPLICATES = 1000
SIZE = (0.037, 0.064)
ROWS = 15
"""prompts of a pair"""


def world(rng, *, slope, n=40, per_target=6, shared=False):
    """(y, design, clusters, sum of squares within pairs); `shared`: targets serve as sources too, with one
    effect in both roles."""
    target = np.repeat(np.arange(n), per_target)
    source = np.concatenate([(t + 1 + rng.permutation(n - 1)[:per_target]) % n for t in range(n)])
    common = np.abs(rng.normal(0, 0.6, (2, n)))
    cosine = common[0][target] * common[1][source] + 0.3 * rng.standard_normal(len(target))
    own = 0.6 * rng.standard_normal((2, n))
    if shared:
        own[1] = own[0]
    y = own[0][target] + own[1][source] + 0.4 * rng.standard_normal(len(target))
    y += rng.standard_normal(len(target)) / np.sqrt(ROWS)
    y += (slope + rng.standard_normal(n)[target]) * cosine
    clusters = np.column_stack([target, source if shared else source + n])
    return y, np.column_stack([np.ones(len(y)), cosine]), clusters


def rates(*, slope, shared=False):
    """Rejections of the true slope by ours and by least squares on rows."""
    ours, naive = [], []
    for replicate in range(REPLICATES):
        rng = rng_for(replicate, "rates", "shared" if shared else "crossed")
        y, X, clusters = world(rng, slope=slope, shared=shared)
        fit = clustered_ols(y, X, clusters, level=0.95, errors="dyadic" if shared else "two_way")
        ours.append(not fit.lo[1] <= slope <= fit.hi[1])
        if slope == 0:
            assert ours[-1] == (fit.p[1] < 0.05)
        # Least squares on all rows has the slope of the pair means; its residuals also hold the prompts' noise.
        n = len(y)
        residual = y - X @ fit.estimate
        squares = ROWS * residual @ residual + rng.chisquare(n * (ROWS - 1))
        variance = squares / (n * ROWS - 2) * np.linalg.inv(ROWS * X.T @ X)[1, 1]
        naive.append(abs(fit.estimate[1] - slope) > 1.96 * np.sqrt(variance))
    return float(np.mean(ours)), float(np.mean(naive))


@pytest.mark.parametrize("shared", [False, True])
def test_size_of_the_default_test(shared):
    ours, naive = rates(slope=0.0, shared=shared)
    assert SIZE[0] <= ours <= SIZE[1]
    assert naive > 0.4  # what the clusters are for


@pytest.mark.parametrize("shared", [False, True])
def test_an_interval_covers_a_slope_as_often_as_it_covers_none(shared):
    """The estimate moves along with the slope, and its errors stay: coverage is one minus the size above, replicate by replicate."""
    errors = "dyadic" if shared else "two_way"
    for replicate in range(20):
        flat, steep = (
            clustered_ols(
                *world(rng_for(replicate, "rates"), slope=slope, shared=shared), level=0.95, errors=errors
            )
            for slope in (0.0, 1.0)
        )
        np.testing.assert_allclose(steep.estimate - flat.estimate, [0, 1], atol=1e-9)
        np.testing.assert_allclose([steep.lo - flat.lo, steep.hi - flat.hi], [[0, 1]] * 2, atol=1e-9)


def matrix(rng, n):
    """Effects and cosines of all n x n pairs, both with effects of targets and of sources, unrelated."""
    node = rng.standard_normal((4, n))
    x = node[0][:, None] * 0.7 + node[1] * 0.7 + rng.standard_normal((n, n))
    y = node[2][:, None] * 0.7 + node[3] * 0.7 + rng.standard_normal((n, n))
    return y, x


def test_relabelling_nodes_is_honest_where_shuffling_cells_is_not():
    n, draws, ours, shuffled = 16, 199, [], []
    for replicate in range(REPLICATES):
        rng = rng_for(replicate, "qap")
        y, x = matrix(rng, n)
        ours.append(qap(y, x, draws=draws, rng=rng, fixed_effects=True).p <= 0.05)
        r = np.corrcoef(y.ravel(), x.ravel())[0, 1]
        shuffled.append(abs(np.arctanh(r)) * np.sqrt(n * n - 3) > 1.96)
    assert 0.029 <= np.mean(ours) <= 0.071  # three Monte-Carlo standard errors; the rate over 3,000 is .055
    assert np.mean(shuffled) > 0.15


def test_relabelling_respects_blocks_and_finds_what_is_there():
    rng = rng_for(0, "blocks")
    blocks = np.array([1, 0, 1, 1, 0, 2])
    for row in permute_within(blocks, draws=50, rng=rng):
        assert sorted(row) == list(range(6))
        assert (blocks[row] == blocks).all()
    seen = {tuple(r) for r in permute_within(np.zeros(3, int), draws=400, rng=rng)}
    assert len(seen) == 6
    y, x = matrix(rng, 14)
    found = qap(y + 0.5 * x, x, draws=999, rng=rng, fixed_effects=True)
    assert found.p == 1 / 1000
    assert found.estimate == pytest.approx(0.5, abs=0.25)
    masked = np.where(rng.random(y.shape) < 0.4, np.nan, y + 0.5 * x)
    assert qap(masked, x, draws=999, rng=rng).p < 0.05


@pytest.mark.parametrize("holes", [0, 1, 9, 60])
def test_fixed_effects_of_rows_and_columns_are_those_of_their_dummies(holes):
    """Whether few cells are missing, which are filled in, or many."""
    rng = rng_for(holes, "dummies")
    n, m = 9, 14
    y, x, z = rng.standard_normal((3, n, m))
    y.ravel()[rng.permutation(n * m)[:holes]] = np.nan
    row, column = (axis.ravel() for axis in np.indices((n, m)))
    dummies = [row == k for k in range(n)] + [column == k for k in range(1, m)]
    seen = np.isfinite(y).ravel()
    X = np.column_stack([x.ravel(), z.ravel(), *dummies])[seen].astype(float)
    fit, rest = np.linalg.lstsq(X, y.ravel()[seen], rcond=None)[:2]
    variance = rest[0] / (len(X) - X.shape[1]) * np.linalg.inv(X.T @ X)[0, 0]
    found = qap(y, x, given=(z,), draws=19, rng=rng, fixed_effects=True, statistic="classical")
    np.testing.assert_allclose([found.estimate, found.t], [fit[0], fit[0] / variance**0.5], rtol=1e-9)


def test_permutations_that_cannot_reach_the_level_are_refused_in_words():
    rng = rng_for(0, "few")
    y, x = matrix(rng, 8)
    assert "at least 19" in qap(y, x, draws=9, rng=rng).reason
    assert "only 6 relabellings" in qap(y[:3, :3], x[:3, :3], draws=99, rng=rng, nodes="one_set").reason
    assert "does not vary" in qap(y, np.ones((8, 8)), draws=99, rng=rng).reason


def test_holm_keeps_the_family_and_bh_the_share():
    """Five true nulls: some claim in at most 5 % of studies. A tenth of 200 pairs real: false share at most 5 %."""
    rng = rng_for(0, "family")
    p = rng.random((REPLICATES, 5))
    assert np.mean([(adjust_p(row, method="holm") < 0.05).any() for row in p]) <= SIZE[1]
    shares = []
    for _ in range(200):
        z = rng.standard_normal(200)
        z[:20] += 4.0
        claimed = adjust_p(2 * ndtr(-np.abs(z)), method="bh") <= 0.05
        shares.append(claimed[20:].sum() / max(1, claimed.sum()))
    assert np.mean(shares) <= 0.06
