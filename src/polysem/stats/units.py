"""Is it the pool or just a pool? The pool-randomisation test, its max-T form over categories, and intervals.

A pool of tokens has a potency of its own, whatever its arm: trials that share a pool are not independent, and
sentences that share trials are not either. So the unit of the test is the pool. Under the null hypothesis the
treated pools are exchangeable with reference pools that were matched to them, and the rank of the treated one is
uniform: p = (1 + #{reference >= treated}) / (1 + references), exactly. The largest standardised statistic over
categories gives p values that hold for all of them together (Westfall and Young), whatever their dependence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from polysem.errors import ConfigError, NumericsError

MIN_REFERENCE = 19
"""with fewer reference pools no p value can reach 0.05"""
PERMUTATIONS = 9_999
"""random relabellings where there are several treated pools"""
LABELLINGS = 1_999
"""random relabellings inside strata"""


@dataclass(frozen=True)
class PoolTest:
    """The test in every category; arrays in the order of the rows given."""

    effect: Float[np.ndarray, " categories"]
    """mean of the treated pools minus mean of the reference pools"""
    lo: Float[np.ndarray, " categories"]
    hi: Float[np.ndarray, " categories"]
    p: Float[np.ndarray, " categories"]
    """one-sided: treated pools raise the outcome"""
    p_adj: Float[np.ndarray, " categories"]
    """the same, adjusted over all categories by max-T"""
    n_treated: int
    n_reference: int


def pool_test(
    treated: Float[np.ndarray, "categories treated"],
    reference: Float[np.ndarray, "categories reference"],
    *,
    level: float,
    rng: np.random.Generator,
) -> PoolTest:
    """The pool-randomisation test of each category, and all together.

    Args:
        treated: one number per treated pool: the mean over sentences of its paired effect.
        reference: the same of the matched reference pools.
        level: coverage of the intervals, which invert the test under a constant shift.
        rng: for relabellings, where there are several treated pools; one treated pool is enumerated.

    Raises:
        ConfigError: without a treated pool, or with fewer than 19 reference pools.
        NumericsError: if a number is not finite.
    """
    n_treated, n_reference = treated.shape[1], reference.shape[1]
    if not n_treated or n_reference < MIN_REFERENCE:
        raise ConfigError(
            f"{n_treated} treated and {n_reference} reference pools; expected at least 1 and {MIN_REFERENCE}",
            hint="raise pools.n_reference; 199 is the usual number",
        )
    whole = np.concatenate([treated, reference], axis=1)
    if not np.isfinite(whole).all():
        raise NumericsError(
            f"{int((~np.isfinite(whole)).sum())} of {whole.size} pool statistics are not finite; expected numbers",
            hint="a pool statistic needs every sentence: see the outcomes that are missing",
        )
    statistics = _relabelled(whole, n_treated, rng)
    # Spread over all pools, treated ones included: the same under every relabelling, so ranks stay exact.
    spread = whole.std(axis=1, ddof=1)
    scaled = statistics / np.where(spread > 0, spread, 1.0)[:, None]
    # Equal numbers reach relabellings along different sums; they must count as equal.
    slack = 1e-9 * np.maximum(1.0, np.abs(scaled).max())
    p = (scaled >= scaled[:, :1] - slack).mean(axis=1)
    p_adj = (scaled.max(axis=0)[None, :] >= scaled[:, :1] - slack).mean(axis=1)
    lo, hi = _interval(treated, reference, level=level)
    effect = treated.mean(axis=1) - reference.mean(axis=1)
    return PoolTest(effect, lo, hi, p, p_adj, n_treated, n_reference)


def spending(looks: Sequence[int]) -> Float[np.ndarray, " looks"]:
    """The share of the level that each look may spend: that of the reference pools which it adds.

    Args:
        looks: numbers of reference pools at which the test is looked at, rising; the last is all of them.

    Raises:
        ConfigError: looks that do not rise.
    """
    counts = np.array([0, *looks], dtype=float)
    if not len(looks) or not (np.diff(counts) > 0).all():
        raise ConfigError(
            f"looks at {', '.join(map(str, looks)) or 'nothing'} reference pools; expected rising numbers"
        )
    return np.diff(counts) / counts[-1]


@dataclass(frozen=True)
class LookedTest:
    """The pool test of a design that may be ended early."""

    test: PoolTest
    """at the last look: p and p_adj hold whenever the design was ended, and so do intervals"""
    now: Float[np.ndarray, " categories"]
    """adjusted p at the last look by itself, as if it were the only one: small where it is worth going on"""


def looked_pool_test(
    treated: Float[np.ndarray, "categories treated"],
    reference: Float[np.ndarray, "categories reference"],
    *,
    looks: Sequence[int],
    level: float,
    rng: np.random.Generator,
) -> LookedTest:
    """The pool test, looked at after some of the reference pools: valid at every look, whatever ends it.

    Each look k is the exact test on the first pools and may spend the share w_k of the level (`spending`; Lan and DeMets 1983,
    linear in the pools). p = min over the looks so far of p_k / w_k, at most 1: under the null hypothesis
    P(p <= u) <= sum of w_k u = u, so that ending for want of an effect, or for any other reason, costs nothing.

    Args:
        treated: as for `pool_test`.
        reference: of the pools that were asked, in the order in which they were.
        looks: of the whole design; those beyond the pools that were asked were not taken.
        level: coverage of the intervals, which spend what their look may.
        rng: as for `pool_test`.

    Raises:
        ConfigError: as `pool_test` and `spending`, or fewer pools than the first look has.
    """
    shares = spending(looks)
    taken = [(n, w) for n, w in zip(looks, shares.tolist(), strict=True) if n <= reference.shape[1]]
    if not taken:
        raise ConfigError(f"{reference.shape[1]} reference pools; the first look is at {looks[0]}")
    found: list[PoolTest] = []
    for n, share in taken:
        found.append(pool_test(treated, reference[:, :n], level=1 - (1 - level) * share, rng=rng))
    spent = np.array([share for _, share in taken])[:, None]
    p, p_adj = (
        np.minimum(1.0, (np.array([getattr(test, name) for test in found]) / spent).min(axis=0))
        for name in ("p", "p_adj")
    )
    last = found[-1]
    return LookedTest(replace(last, p=p, p_adj=p_adj), last.p_adj)


def _relabelled(
    whole: Float[np.ndarray, "categories pools"], n_treated: int, rng: np.random.Generator
) -> Float[np.ndarray, "categories labellings"]:
    """Mean of the treated minus mean of the rest, under the real labelling (first) and others; one relabelling
    holds for all categories, which keeps their dependence."""
    n = whole.shape[1]
    if n_treated == 1:
        labels = np.eye(n)
    else:
        labels = np.zeros((PERMUTATIONS + 1, n))
        labels[0, :n_treated] = 1
        chosen = rng.permuted(np.tile(np.arange(n, dtype=np.int64), (PERMUTATIONS, 1)), axis=1)[:, :n_treated]
        np.put_along_axis(labels[1:], chosen, 1.0, axis=1)
    inside = whole @ labels.T
    return inside / n_treated - (whole.sum(axis=1, keepdims=True) - inside) / (n - n_treated)


def _interval(
    treated: Float[np.ndarray, "categories treated"],
    reference: Float[np.ndarray, "categories reference"],
    *,
    level: float,
) -> tuple[Float[np.ndarray, " categories"], Float[np.ndarray, " categories"]]:
    """Shifts of the treated pools that the two-sided test does not reject."""
    from scipy.special import stdtrit

    n_treated, n = treated.shape[1], reference.shape[1]
    if n_treated == 1:
        # The treated pool less its shift takes any rank among n + 1 with equal chance; `out` ranks at either end
        # are given up. Where even one is too many, nothing bounds the shift.
        out = int(np.floor((1 - level) / 2 * (n + 1) + 1e-9))
        if out == 0:
            return np.full(len(treated), -np.inf), np.full(len(treated), np.inf)
        ranked = np.sort(reference, axis=1)
        return treated[:, 0] - ranked[:, n - out], treated[:, 0] - ranked[:, out - 1]
    both = (treated.var(axis=1, ddof=1) * (n_treated - 1) + reference.var(axis=1, ddof=1) * (n - 1)) / (
        n_treated + n - 2
    )
    reach = float(stdtrit(float(n_treated + n - 2), 0.5 + level / 2)) * np.sqrt(
        both * (1 / n_treated + 1 / n)
    )
    effect = treated.mean(axis=1) - reference.mean(axis=1)
    return effect - reach, effect + reach


def cell_means(
    values: Float[np.ndarray, " n"], at: tuple[Int[np.ndarray, " n"], ...], *, shape: tuple[int, ...]
) -> Float[np.ndarray, "..."]:
    """Mean of the values at each place of an array of `shape`; NaN where there is none.

    Args:
        at: their places, an array for each axis.
    """
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, at, values)
    np.add.at(count, at, 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class Share:
    """A mean over sentences with an interval that resamples sentences."""

    estimate: float
    lo: float
    hi: float
    n_sentences: int


def sentence_bootstrap(
    values: Float[np.ndarray, " sentences"], *, level: float, rng: np.random.Generator, draws: int = 2_000
) -> Share:
    """The mean over sentences, and the percentile interval over resampled sentences; NaN ends for fewer than two.

    Args:
        values: one number per sentence (trials of one sentence are averaged before); NaN for a sentence without
            any is left out.
    """
    values = values[~np.isnan(values)]
    _finite(values)
    n = len(values)
    if n < 2:
        return Share(float(values.mean()) if n else np.nan, np.nan, np.nan, n)
    means = values[rng.integers(0, n, (draws, n))].mean(axis=1)
    lo, hi = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Share(float(values.mean()), float(lo), float(hi), n)


def _finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise NumericsError(f"{int((~np.isfinite(values)).sum())} of {values.size} numbers are not finite")


@dataclass(frozen=True)
class StratifiedTest:
    """Treated against reference units of the same strata."""

    treated: float
    """mean over treated units that have references in their stratum"""
    estimate: float
    """mean of the strata's differences, weighted as the treated units lie; NaN without a common stratum"""
    lo: float
    hi: float
    p: float
    """one-sided: treated above; permutations inside strata"""
    n_treated: int
    n_reference: int
    n_alone: int
    """treated units without a reference in their stratum, which are left out"""


def stratified_test(
    values: Float[np.ndarray, " n"],
    treated: Bool[np.ndarray, " n"],
    stratum: Int[np.ndarray, " n"],
    *,
    level: float,
    rng: np.random.Generator,
    permutations: int = LABELLINGS,
) -> StratifiedTest:
    """Permutation test of a difference inside strata; p = (1 + as large) / (1 + permutations).

    The interval is Student's, with one variance inside all strata. NaN where nothing can be compared.
    """
    _finite(values)
    common = [s for s in np.unique(stratum) if 0 < treated[stratum == s].sum() < (stratum == s).sum()]
    kept = np.isin(stratum, common)
    alone = int((treated & ~kept).sum())
    if not kept.any():
        return StratifiedTest(math.nan, math.nan, math.nan, math.nan, math.nan, 0, 0, alone)
    x, t, s = values[kept], treated[kept], np.searchsorted(common, stratum[kept])
    estimate = _difference(x, t[None, :], s)[0]
    labels = np.empty((permutations, len(t)), dtype=bool)
    for k in range(len(common)):
        at = np.flatnonzero(s == k)
        labels[:, at] = rng.permuted(np.tile(t[at], (permutations, 1)), axis=1)
    drawn = _difference(x, labels, s)
    slack = 1e-9 * max(1.0, float(np.abs(drawn).max()))
    p = (1 + int((drawn >= estimate - slack).sum())) / (1 + permutations)
    reach = _reach(x, t, s, level=level)
    return StratifiedTest(
        float(x[t].mean()), float(estimate), float(estimate - reach), float(estimate + reach), p,
        int(t.sum()), int((~t).sum()), alone,
    )  # fmt: skip


def _difference(x: np.ndarray, labels: np.ndarray, s: np.ndarray) -> Float[np.ndarray, " labellings"]:
    """Weighted difference of means under every labelling; all have as many treated units per stratum."""
    total = np.zeros(len(labels))
    n = labels[0].sum()
    for k in range(int(s.max()) + 1):
        at = s == k
        inside = labels[:, at]
        m, size = int(inside[0].sum()), int(at.sum())
        up = inside @ x[at]
        total += m / n * (up / m - (x[at].sum() - up) / (size - m))
    return total


def _reach(x: np.ndarray, t: np.ndarray, s: np.ndarray, *, level: float) -> float:
    from scipy.special import stdtrit

    residual, weight, cells = 0.0, 0.0, 0
    for k in range(int(s.max()) + 1):
        for side in (True, False):
            part = x[(s == k) & (t == side)]
            residual += float(((part - part.mean()) ** 2).sum())
            cells += 1
        m, size = int((t & (s == k)).sum()), int((s == k).sum())
        weight += (m / t.sum()) ** 2 * (1 / m + 1 / (size - m))
    df = len(x) - cells
    if df < 1:
        return math.inf
    return float(stdtrit(df, 0.5 + level / 2) * math.sqrt(residual / df * weight))
