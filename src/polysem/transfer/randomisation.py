"""Is it the pool or just a pool? The pool-randomisation test, its max-T form over categories, and intervals.

A pool of tokens has a potency of its own, whatever its arm: trials that share a pool are not independent, and
sentences that share trials are not either. So the unit of the test is the pool. Under the null hypothesis the
treated pools are exchangeable with reference pools that were matched to them, and the rank of the treated one is
uniform: p = (1 + #{reference >= treated}) / (1 + references), exactly. The largest standardised statistic over
categories gives p values that hold for all of them together (Westfall and Young), whatever their dependence.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from polysem.errors import ConfigError, NumericsError

MIN_REFERENCE = 19
"""with fewer reference pools no p value can reach 0.05"""
PERMUTATIONS = 9_999
"""random relabellings where there are several treated pools"""


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
        chosen = rng.permuted(np.tile(np.arange(n), (PERMUTATIONS, 1)), axis=1)[:, :n_treated]
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
    from scipy import stats

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
    reach = stats.t.ppf(0.5 + level / 2, n_treated + n - 2) * np.sqrt(both * (1 / n_treated + 1 / n))
    effect = treated.mean(axis=1) - reference.mean(axis=1)
    return effect - reach, effect + reach


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
        level: coverage.
        rng: draws the samples.
        draws: number of samples.
    """
    values = values[~np.isnan(values)]
    n = len(values)
    if n < 2:
        return Share(float(values.mean()) if n else np.nan, np.nan, np.nan, n)
    means = values[rng.integers(0, n, (draws, n))].mean(axis=1)
    lo, hi = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Share(float(values.mean()), float(lo), float(hi), n)
