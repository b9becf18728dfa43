"""Least squares with standard errors that survive shared targets, shared sources and shared features.

Rows that share a target, or a source, are not independent, so the unit of evidence is neither the row nor the
trial. Covariance: Cameron, Gelbach and Miller (2011), V = V_target + V_source - V_both; every variance is the
larger of V and the two one-way terms (V alone can be too small, even negative). Where a feature is a target
here and a source there, rows are also linked across roles, and V is the dyadic variance of Aronow, Samii and
Assenova (arXiv 1312.3398), which counts every two rows with a feature in common.

A few targets with extreme regressors make such variances too small and normal quantiles too short. Therefore
each term is by default the jackknife over its clusters (CV3; MacKinnon, Nielsen and Webb, arXiv 2406.08880),
and t has G* - 1 degrees of freedom, G* being the effective number of clusters (Carter, Schnepel and
Steigerwald, Review of Economics and Statistics 99, 2017). `crv1` gives the terms of Stata, R's sandwich and
statsmodels, with min(G) - 1; `docs/effects.md` has the error rates of both. Cost: one fit per cluster, from
sums.

What cannot be estimated is NaN, with the reason in words. An estimate without noise to judge it by stands,
without an interval, and says so.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

FEW_CLUSTERS = 10
"""with fewer clusters in either direction, cluster-robust intervals are known to be too short"""
_RANK_RTOL = 1e-9
"""singular values of the unit-column design below this, relative to the largest, are rounding"""
_RESIDUAL_RTOL = 1e-10
"""residuals below this, relative to the outcome, are rounding: there is nothing to judge noise by"""

Errors = Literal["two_way", "dyadic"]
"""two_way: rows are linked by their target or their source. dyadic: by any feature, in either role; both
columns of the clusters then name features in one numbering."""
Correction = Literal["jackknife", "crv1"]


@dataclass(frozen=True)
class Regression:
    """Coefficients in the order of the design's columns; all NaN where `reason` says why there are none."""

    estimate: Float[np.ndarray, " k"]
    se: Float[np.ndarray, " k"]
    lo: Float[np.ndarray, " k"]
    hi: Float[np.ndarray, " k"]
    p: Float[np.ndarray, " k"]
    df: Float[np.ndarray, " k"]
    """degrees of freedom of t"""
    reason: str
    """why nothing could be estimated; "" where it could"""
    remark: str
    """what weakens the interval, or why there is none; "" if nothing does"""


def clustered_ols(
    y: Float[np.ndarray, " n"],
    design: Float[np.ndarray, "n k"],
    clusters: Int[np.ndarray, "n 2"],
    *,
    level: float,
    errors: Errors = "two_way",
    correction: Correction = "jackknife",
) -> Regression:
    """y on the columns of `design` (constant included by the caller), with cluster-robust intervals.

    Fixed effects that were taken out beforehand (`within`) count as known.

    Args:
        y: outcome, finite.
        design: regressors, finite.
        clusters: any integers; rows with an equal number in column 0 share a target, in column 1 a source.
        level: of the intervals, in (0, 1).
        errors: which rows count as linked.
        correction: for the smallness of the sample.
    """
    n, k = design.shape
    if reason := _refusal(n, design):
        return _nothing(k, reason)
    estimate = np.linalg.lstsq(design, y, rcond=None)[0]
    groups = [len(np.unique(column)) for column in clusters.T]
    residual = y - design @ estimate
    if remark := _no_interval(y, residual, k, groups):
        return _nothing(k, "", estimate=estimate, remark=remark)
    ways = _ways(clusters, errors)
    term = {"jackknife": _jackknife, "crv1": _crv1}[correction]
    variances = {name: term(design, residual, members) for name, members in ways.items()}
    linked = variances["target"] + variances["source"] - variances["both"]
    if errors == "dyadic":
        linked = variances["feature"] - variances["dyad"]
    largest = [linked, variances["target"], variances["source"]]
    df = np.full(k, min(groups) - 1.0) if correction == "crv1" else degrees_of_freedom(design, clusters)
    return _with_intervals(estimate, np.sqrt(np.maximum.reduce(largest)), df=df, groups=groups, level=level)


def clustered_mean(
    y: Float[np.ndarray, " n"], clusters: Int[np.ndarray, "n 2"], *, level: float, errors: Errors = "two_way"
) -> Regression:
    """The mean of y with a cluster-robust interval: `clustered_ols` on a constant."""
    return clustered_ols(y, np.ones((len(y), 1)), clusters, level=level, errors=errors)


def degrees_of_freedom(
    design: Float[np.ndarray, "n k"], clusters: Int[np.ndarray, "n 2"]
) -> Float[np.ndarray, " k"]:
    """G* - 1 for every coefficient, at least 1: G* = (sum of the clusters' weights)^2 / sum of their squares, the
    smaller over targets and sources."""
    bread = np.linalg.inv(design.T @ design)
    ways = _ways(clusters, "two_way")
    effective = []
    for name in ("target", "source"):
        weights = np.einsum("ki,gij,kj->gk", bread, _squares(design, ways[name]), bread)
        effective.append(weights.sum(0) ** 2 / (weights**2).sum(0))
    return np.maximum(np.minimum(*effective) - 1, 1.0)


def within(values: Float[np.ndarray, "n k"], groups: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n k"]:
    """`values` minus the mean of their group: what is left after a fixed effect of every group."""
    _, code, size = np.unique(groups, return_inverse=True, return_counts=True)
    return values - _sums(values, code)[code] / size[code, None]


def _with_intervals(
    estimate: np.ndarray, se: np.ndarray, *, df: np.ndarray, groups: list[int], level: float
) -> Regression:
    from scipy.special import stdtr, stdtrit

    reach = stdtrit(df, 0.5 + level / 2) * se
    remark = ""
    if min(groups) < FEW_CLUSTERS:
        remark = f"few clusters ({groups[0]} targets, {groups[1]} sources): the interval may be too short"
    return Regression(
        estimate=estimate,
        se=se,
        lo=estimate - reach,
        hi=estimate + reach,
        p=2 * stdtr(df, -np.abs(estimate / se)),
        df=df,
        reason="",
        remark=remark,
    )


def shifted(regression: Regression, by: float) -> Regression:
    """The same regression with `by` added to every estimate and interval; p stays that of the unshifted one."""
    return replace(
        regression, estimate=regression.estimate + by, lo=regression.lo + by, hi=regression.hi + by
    )


class _Members(NamedTuple):
    """Clusters that may overlap: `rows[m]` belongs to cluster `cluster[m]`."""

    rows: np.ndarray
    cluster: np.ndarray


def _ways(clusters: np.ndarray, errors: Errors) -> dict[str, _Members]:
    """Every way in which rows are grouped."""
    rows = np.arange(len(clusters))
    target, source = (np.unique(column, return_inverse=True)[1] for column in clusters.T)
    both = np.unique(target * (int(source.max()) + 1) + source, return_inverse=True)[1]
    ways = {"target": target, "source": source, "both": both}
    found = {name: _Members(rows, code) for name, code in ways.items()}
    if errors == "two_way":
        return found
    code = np.unique(clusters, return_inverse=True)[1].reshape(clusters.shape)
    low, high = code.min(axis=1), code.max(axis=1)
    once = low != high  # a row of a feature with itself is in that feature's cluster once
    found["feature"] = _Members(np.concatenate([rows, rows[once]]), np.concatenate([low, high[once]]))
    dyad = np.unique(low[once] * (int(code.max()) + 1) + high[once], return_inverse=True)[1]
    # Rows that share both features are in two clusters together, and must count once.
    found["dyad"] = _Members(rows[once], dyad)
    return found


def _crv1(design: np.ndarray, residual: np.ndarray, members: _Members) -> np.ndarray:
    """Diagonal of the clustered covariance, times G / (G - 1) x (n - 1) / (n - k)."""
    n, k = design.shape
    scores = _sums((design * residual[:, None])[members.rows], members.cluster)
    influence = scores @ np.linalg.inv(design.T @ design)
    return _factor(len(scores)) * (n - 1) / (n - k) * np.einsum("gi,gi->i", influence, influence)


def _jackknife(design: np.ndarray, residual: np.ndarray, members: _Members) -> np.ndarray:
    """(G - 1) / G x sum over clusters of (estimate without it - estimate)^2."""
    scores = _sums((design * residual[:, None])[members.rows], members.cluster)
    squares = _squares(design, members)
    # Without cluster g the estimate moves by -(X'X - X_g'X_g)^-1 X_g'u_g; the generalised inverse serves
    # where a coefficient rests on one cluster alone.
    left = np.linalg.pinv(design.T @ design - squares, rcond=_RANK_RTOL, hermitian=True)
    moves = np.einsum("gij,gj->gi", left, scores)
    return np.einsum("gi,gi->i", moves, moves) / _factor(len(scores))


def _squares(design: np.ndarray, members: _Members) -> np.ndarray:
    """X_g'X_g of every cluster."""
    k = design.shape[1]
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), k * k)
    return _sums(products[members.rows], members.cluster).reshape(-1, k, k)


def _factor(g: int) -> float:
    return g / (g - 1) if g > 1 else 1.0


def _sums(values: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Sum of the rows of each code; codes are 0 .. G - 1, each present."""
    g = int(code.max(initial=-1)) + 1
    return np.column_stack([np.bincount(code, weights=column, minlength=g) for column in values.T])


def _refusal(n: int, design: np.ndarray) -> str:
    k = design.shape[1]
    if n == 0:
        return "no pairs with an outcome"
    if k > 1 and n < k + 2:
        return f"too few pairs: {n} for {k} coefficients"
    norms = np.linalg.norm(design, axis=0)
    if not norms.all():
        return "a regressor does not vary"
    singular = np.linalg.svd(design / norms, compute_uv=False)
    if singular[-1] <= _RANK_RTOL * singular[0]:
        return "the regressors cannot be told apart: one is a combination of the others"
    return ""


def _no_interval(y: np.ndarray, residual: np.ndarray, k: int, groups: list[int]) -> str:
    """Why an estimate has nothing to be judged by; "" if it has."""
    if len(y) < k + 2:
        return f"no interval: only {len(y)} {'pair' if len(y) == 1 else 'pairs'}"
    for name, number in zip(("target", "source"), groups, strict=True):
        if number < 2:
            return (
                f"no interval: only one {name}, so nothing says how much effects vary from {name} to {name}"
            )
    if not y.any():
        return "no interval: no variance, every effect is exactly zero"
    if np.linalg.norm(residual) <= _RESIDUAL_RTOL * np.linalg.norm(y):
        return "no interval: no variance, the outcome does not vary beyond what the regressors give"
    return ""


def _nothing(
    k: int, reason: str, *, estimate: Float[np.ndarray, " k"] | None = None, remark: str = ""
) -> Regression:
    nan = np.full(k, np.nan)
    return Regression(
        nan if estimate is None else estimate, nan, nan, nan, nan, df=nan, reason=reason, remark=remark
    )
