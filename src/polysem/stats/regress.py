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
sums. What a design and its clusters decide by themselves is worked out once for all outcomes that follow (`Layout`).

Prompts are a sample too, shared by all pairs, and averaging over them hides that they are. An estimate is a weighted sum
of the effects, so it has a value for every prompt; the variance of those, less what targets and sources already account
for (the three-way formula, V_prompt - V_target,prompt - V_source,prompt + V_cell, if above zero), is added, and degrees
of freedom are combined after Satterthwaite.

What cannot be estimated is NaN, with the reason in words. An estimate without noise to judge it by stands,
without an interval, and says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from scipy.sparse import csr_array

FEW_CLUSTERS = 10
"""with fewer clusters in either direction, cluster-robust intervals are known to be too short"""
_RANK_RTOL = 1e-9
"""singular values of the unit-column design below this, relative to the largest, are rounding"""
_ROUNDING = 1e-9
"""of the length of a regressor: less than this of it is rounding"""
_MANY = 64
"""columns from which on one sparse product adds them up faster than column by column, in the same order, to the same bits"""
_KEPT_ROWS = 20_000
"""designs of more rows are not kept: their memory would be felt, and the fit takes longer than what it saves"""
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

    @classmethod
    def of(
        cls,
        estimate: Float[np.ndarray, " k"],
        se: Float[np.ndarray, " k"],
        df: Float[np.ndarray, " k"],
        *,
        level: float,
        remark: str = "",
    ) -> "Regression":
        """Estimates with Student's intervals and two-sided p values; none where a standard error is not above zero."""
        from scipy.special import stdtr, stdtrit

        if not (se > 0).all():
            se = np.where(se > 0, se, np.nan)
            remark = "; ".join(filter(None, (remark, "no interval: the clusters' errors cancel")))
        reach = stdtrit(df, 0.5 + level / 2) * se
        p = 2 * stdtr(df, -np.abs(estimate / se))
        return cls(estimate, se, estimate - reach, estimate + reach, p, df, "", remark)

    @classmethod
    def none(cls, k: int, reason: str) -> "Regression":
        """No estimate of any of k coefficients, and why."""
        nan = np.full(k, np.nan)
        return cls(nan, nan, nan, nan, nan, nan, reason, "")

    @classmethod
    def bare(cls, estimate: Float[np.ndarray, " k"], remark: str) -> "Regression":
        """Estimates with nothing to judge them by, and why."""
        return replace(cls.none(len(estimate), ""), estimate=estimate, remark=remark)

    def shifted(self, by: float) -> "Regression":
        """The same with `by` added to every estimate and interval; p stays that of the unshifted one."""
        return replace(self, estimate=self.estimate + by, lo=self.lo + by, hi=self.hi + by)


def clustered_ols(
    y: Float[np.ndarray, " n"],
    design: Float[np.ndarray, "n k"],
    clusters: Int[np.ndarray, "n 2"],
    *,
    level: float,
    errors: Errors = "two_way",
    correction: Correction = "jackknife",
    prompts: Float[np.ndarray, "n prompts"] | None = None,
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
        prompts: what every prompt adds to its row's outcome: (value there - mean) / number of prompts of the row, 0 where
            the row has no such prompt; each row sums to 0. Without it prompts count as fixed.
    """
    k = design.shape[1]
    made = layout_of(design, clusters, errors)
    if reason := made.reason if np.isfinite(y).all() else refusal(y, design):
        return Regression.none(k, reason)
    estimate = made.inverse @ y
    residual = y - design @ estimate
    if remark := _no_interval(y, residual, k, made.groups):
        return Regression.bare(estimate, remark)
    if correction == "jackknife":
        variances = {name: way.jackknife(design, residual) for name, way in made.ways.items()}
    else:
        variances = {name: _crv1(design, residual, way) for name, way in made.ways.items()}
    linked = variances["target"] + variances["source"] - variances["both"]
    if errors == "dyadic":
        linked = variances["feature"] - variances["dyad"]
    largest = [linked, variances["target"], variances["source"]]
    df = np.full(k, min(made.groups) - 1.0) if correction == "crv1" else made.df
    few = f"few clusters ({made.groups[0]} targets, {made.groups[1]} sources): the interval may be too short"
    remark = few if min(made.groups) < FEW_CLUSTERS else ""
    variance = np.maximum.reduce(largest)
    if prompts is not None:
        variance, df = _with_prompts(variance, df, made, prompts)
    return Regression.of(estimate, np.sqrt(variance), df, level=level, remark=remark)


def _with_prompts(
    variance: np.ndarray, df: np.ndarray, made: "Layout", prompts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Variance and degrees of freedom with prompts as a third way of clustering."""
    n = int((prompts != 0).any(axis=0).sum())
    if n < 2:
        return variance, df
    extra = np.zeros_like(variance)
    for k, weights in enumerate(made.inverse):
        moves = weights[:, None] * prompts
        linked = sum(float(((made.ways[who].adds @ moves) ** 2).sum()) for who in ("target", "source"))
        whole, cells = float((moves.sum(axis=0) ** 2).sum()), float((moves**2).sum())
        extra[k] = max(0.0, n / (n - 1) * (whole - linked + cells))
    both = variance + extra
    with np.errstate(divide="ignore", invalid="ignore"):
        combined = both**2 / (variance**2 / df + extra**2 / (n - 1))
    return both, np.where(extra > 0, combined, df)


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
    return layout_of(design, clusters, "two_way").df


def within(values: Float[np.ndarray, "n k"], groups: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n k"]:
    """`values` minus the mean of their group: what is left after a fixed effect of every group."""
    _, code, size = np.unique(groups, return_inverse=True, return_counts=True)
    return values - sums(values, code)[code] / size[code, None]


def varies(x: Float[np.ndarray, " n"]) -> bool:
    """Whether numbers differ by more than rounding; never where there are none."""
    return bool(len(x) and np.ptp(x) > 1e-12 * np.abs(x).max())


def tells(x: Float[np.ndarray, " n"], others: Sequence[np.ndarray]) -> bool:
    """Whether x varies beyond what the others give; rounding does not count."""
    if not varies(x) or float(np.linalg.norm(x)) <= _ROUNDING * max(1.0, float(np.abs(x).max(initial=0.0))):
        return False
    if not others:
        return True
    basis = np.column_stack(others)
    rest = x - basis @ np.linalg.lstsq(basis, x, rcond=None)[0]
    return bool(np.linalg.norm(rest) > _ROUNDING * np.linalg.norm(x))


def independent(columns: Sequence[np.ndarray]) -> list[int]:
    """Which columns vary beyond what those before them give."""
    kept: list[int] = []
    for k, column in enumerate(columns):
        if tells(column, [columns[j] for j in kept]):
            kept.append(k)
    return kept


class _Members(NamedTuple):
    """Clusters that may overlap: `rows[m]` belongs to cluster `cluster[m]`."""

    rows: np.ndarray
    cluster: np.ndarray


@dataclass(frozen=True)
class _Way:
    """One way in which the rows of a design are grouped."""

    design: np.ndarray
    members: _Members

    @cached_property
    def squares(self) -> np.ndarray:
        """X_g'X_g of every cluster."""
        n, k = self.design.shape
        products = (self.design[:, :, None] * self.design[:, None, :]).reshape(n, k * k)
        return sums(products[self.members.rows], self.members.cluster).reshape(-1, k, k)

    @cached_property
    def without(self) -> np.ndarray:
        """(X'X - X_g'X_g)^-1 of every cluster; the generalised inverse serves where a coefficient rests on one alone."""
        left = self.design.T @ self.design - self.squares
        if left.shape[1] == 1:
            return np.divide(1.0, left, out=np.zeros_like(left), where=left != 0)
        return np.linalg.pinv(left, rcond=_RANK_RTOL, hermitian=True)

    @cached_property
    def adds(self) -> "csr_array":
        """What adds up the rows of every cluster, in their order."""
        from scipy.sparse import csr_array

        cluster, rows = self.members.cluster, self.members.rows
        order = np.argsort(cluster, kind="stable")
        bounds = np.searchsorted(cluster[order], np.arange(int(cluster.max(initial=-1)) + 2))
        shape = (len(bounds) - 1, len(self.design))
        return csr_array((np.ones(len(rows)), rows[order], bounds), shape=shape)

    def scores(self, design: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """X_g'u_g of every cluster."""
        return sums((design * residual[:, None])[self.members.rows], self.members.cluster)

    def jackknife(self, design: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """(G - 1) / G x sum over clusters of (estimate without it - estimate)^2."""
        scores = self.scores(design, residual)
        # Without cluster g the estimate moves by -(X'X - X_g'X_g)^-1 X_g'u_g.
        moves = np.einsum("gij,gj->gi", self.without, scores)
        return np.einsum("gi,gi->i", moves, moves) / _factor(len(scores))


@dataclass(frozen=True)
class Layout:
    """What a design and its clusters decide whatever the outcome is."""

    design: np.ndarray
    clusters: np.ndarray
    errors: Errors

    @cached_property
    def reason(self) -> str:
        """Why nothing can be regressed on the design; "" if it can."""
        return refusal(np.zeros(len(self.design)), self.design)

    @cached_property
    def inverse(self) -> np.ndarray:
        """[k n]"""
        return np.linalg.pinv(self.design, rcond=float(np.finfo(float).eps) * max(self.design.shape))

    @cached_property
    def groups(self) -> list[int]:
        """Number of targets and of sources."""
        return [int(self.ways[who].members.cluster.max()) + 1 for who in ("target", "source")]

    @cached_property
    def ways(self) -> dict[str, _Way]:
        return {name: _Way(self.design, way) for name, way in _ways(self.clusters, self.errors).items()}

    @cached_property
    def df(self) -> np.ndarray:
        """See `degrees_of_freedom`."""
        bread = np.linalg.inv(self.design.T @ self.design)
        effective: list[np.ndarray] = []
        for who in ("target", "source"):
            weights = np.einsum("ki,gij,kj->gk", bread, self.ways[who].squares, bread)
            effective.append(weights.sum(0) ** 2 / (weights**2).sum(0))
        return np.maximum(np.minimum(*effective) - 1, 1.0)


def layout_of(design: Float[np.ndarray, "n k"], clusters: Int[np.ndarray, "n 2"], errors: Errors) -> Layout:
    """The layout; that of a design that was asked for lately is kept."""
    design, clusters = np.ascontiguousarray(design, np.float64), np.ascontiguousarray(clusters, np.int64)
    if len(design) > _KEPT_ROWS:
        return Layout(design, clusters, errors)
    return _kept(design.tobytes(), design.shape, clusters.tobytes(), errors)


@lru_cache(maxsize=256)
def _kept(design: bytes, shape: tuple[int, int], clusters: bytes, errors: Errors) -> Layout:
    numbers = np.frombuffer(clusters, np.int64).reshape(-1, 2)
    return Layout(np.frombuffer(design, np.float64).reshape(shape), numbers, errors)


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


def _crv1(design: np.ndarray, residual: np.ndarray, way: _Way) -> np.ndarray:
    """Diagonal of the clustered covariance, times G / (G - 1) x (n - 1) / (n - k)."""
    n, k = design.shape
    scores = way.scores(design, residual)
    influence = scores @ np.linalg.inv(design.T @ design)
    return _factor(len(scores)) * (n - 1) / (n - k) * np.einsum("gi,gi->i", influence, influence)


def _factor(g: int) -> float:
    return g / (g - 1) if g > 1 else 1.0


def sums(values: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Sum of the rows of each code, one after the other; codes are 0 .. G - 1, each present."""
    g = int(code.max(initial=-1)) + 1
    if values.shape[1] > _MANY:
        from scipy.sparse import csr_array

        order = np.argsort(code, kind="stable")
        bounds = np.searchsorted(code[order], np.arange(g + 1))
        return csr_array((np.ones(len(code)), order, bounds), shape=(g, len(code))) @ values
    summed = [np.bincount(code, weights=column, minlength=g) for column in values.T]
    return np.column_stack([np.empty((g, 0)), *summed])


def refusal(y: Float[np.ndarray, " n"], design: Float[np.ndarray, "n k"]) -> str:
    """Why y cannot be regressed on the design; "" if it can."""
    n, k = design.shape
    if n == 0:
        return "no pairs with an outcome"
    if not (np.isfinite(y).all() and np.isfinite(design).all()):
        return "some of the numbers are not finite"
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
    if explained(y, residual):
        return "no interval: no variance, the outcome does not vary beyond what the regressors give"
    return ""


def explained(y: Float[np.ndarray, " n"], residual: Float[np.ndarray, " n"]) -> bool:
    """Whether residuals are rounding: there is nothing to judge noise by."""
    return bool(np.linalg.norm(residual) <= _RESIDUAL_RTOL * np.linalg.norm(y))
