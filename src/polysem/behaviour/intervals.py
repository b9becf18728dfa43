"""Intervals of means over prompts or documents, and of AUROCs; how often they hold the truth is measured in world GT8.

Means of skewed numbers (nats, delays) have Hall's transformed t (J. R. Statist. Soc. B 54, 1992, 221): at 16 exponential
numbers it holds the mean in 94 % of cases, the plain t in 91 %. AUROCs have DeLong's variance on the scale of the log-odds
with t quantiles: at 0.93 and 16 prompts it holds the truth in 95 %, without the log-odds in 87 %.
"""

import numpy as np
from jaxtyping import Float, Int

from polysem.side_effects.measures import MIN_PROMPTS, Estimate

LEVEL = 0.95


def mean_interval(x: Float[np.ndarray, " n"]) -> Estimate:
    """A mean and its 95 % interval, corrected for skewness; without an interval below three numbers, or where all are equal."""
    from scipy import stats

    n = len(x)
    mean = float(x.mean()) if n else np.nan
    if n < MIN_PROMPTS or not np.isfinite(x).all():
        return Estimate(mean)
    spread = float(x.std(ddof=1))
    se = spread / np.sqrt(n)
    if not spread > 0:
        return Estimate(mean, np.nan, np.nan, 0.0)
    skew = float((((x - mean) / spread) ** 3).mean()) / np.sqrt(n)
    far = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1))

    def back(t: float) -> float:
        return t if abs(skew) < 1e-9 else float(3 * (np.cbrt(1 + skew * (t - skew / 6)) - 1) / skew)

    return Estimate(mean, mean - se * back(far), mean - se * back(-far), se)


def within(told: Estimate, least: float = -np.inf, most: float = np.inf) -> Estimate:
    """The interval without what the mean cannot be: no truth lies there, so it is held as often as before."""
    lo, hi = (float(np.clip(end, least, most)) for end in (told.lo, told.hi))
    return told._replace(lo=lo, hi=hi)


def placements(
    clean: Float[np.ndarray, " n"], pushed: Float[np.ndarray, " m"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " n"]]:
    """(share of the clean below each pushed one, share of the pushed above each clean one), ties half: both have the AUROC as mean."""
    above = (pushed[:, None] > clean[None]) + 0.5 * (pushed[:, None] == clean[None])
    return above.mean(1), above.mean(0)


def auroc_interval(clean: Float[np.ndarray, " n"], pushed: Float[np.ndarray, " m"]) -> Estimate:
    """Chance that a pushed one scores above a clean one, of two samples that have nothing to do with each other."""
    over, under = placements(clean, pushed)
    parts = [float(part.var(ddof=1)) / len(part) if len(part) > 1 else np.nan for part in (over, under)]
    weights = [
        part**2 / (len(values) - 1) for part, values in zip(parts, (over, under), strict=True) if part > 0
    ]
    df = sum(parts) ** 2 / sum(weights) if weights else min(len(clean), len(pushed)) - 1.0
    return _on_log_odds(float(over.mean()), sum(parts), df, len(clean) * len(pushed))


def paired_placements(
    clean: Float[np.ndarray, " n"], pushed: Float[np.ndarray, " n"], folds: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """A number for each prompt, whose mean is the AUROC within folds and whose spread is that of its error: every prompt is there
    pushed and not pushed, and only scores of one fold are compared."""
    found = np.empty(len(clean))
    for fold in np.unique(folds):
        own = folds == fold
        over, under = placements(clean[own], pushed[own])
        found[own] = over + under - over.mean()
    return found


def paired_auroc(values: Float[np.ndarray, " n"]) -> Estimate:
    """AUROC and interval from `paired_placements`."""
    n = len(values)
    variance = float(values.var(ddof=1)) / n if n > 1 else np.nan
    return _on_log_odds(float(np.clip(values.mean(), 0.0, 1.0)), variance, n - 1.0, n * n)


def _on_log_odds(auroc: float, variance: float, df: float, pairs: int) -> Estimate:
    from scipy import stats

    if not np.isfinite(variance) or df < 1:
        return Estimate(auroc)
    # half a pair off the ends, and no less variance than independent pairs would have: else no width where all are told apart
    kept = float(np.clip(auroc, 0.5 / pairs, 1 - 0.5 / pairs))
    se = float(np.sqrt(max(variance, kept * (1 - kept) / pairs)))
    middle, far = np.log(kept / (1 - kept)), stats.t.ppf(0.5 + LEVEL / 2, df) * se / (kept * (1 - kept))
    lo, hi = (float(1 / (1 + np.exp(-np.clip(end, -700, 700)))) for end in (middle - far, middle + far))
    return Estimate(auroc, min(lo, auroc), max(hi, auroc), se)
