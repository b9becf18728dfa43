"""The paper's test: Welch's t on 0/1 trials, as if trials were independent; and what it is worth.

`inflation` says how often it rejects where nothing is there.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from polysem.errors import ConfigError


@dataclass(frozen=True)
class Welch:
    """A difference of means with Welch's test."""

    difference: float
    t: float
    df: float
    p: float
    """two-sided; 1 where both samples are constant and equal"""


def welch(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n2"], *, design_effect: float = 1.0) -> Welch:
    """Welch's t of mean(a) - mean(b); variances are multiplied by `design_effect`.

    Args:
        a: trials of one arm; 0 or 1 for success.
        b: trials of the other.
        design_effect: variance of a mean over that of as many independent trials.

    Raises:
        ConfigError: with fewer than two trials in an arm.
    """
    if min(len(a), len(b)) < 2:
        raise ConfigError(f"Welch's test needs two trials in each arm, got {len(a)} and {len(b)}")
    va, vb = design_effect * a.var(ddof=1) / len(a), design_effect * b.var(ddof=1) / len(b)
    return _welch(float(a.mean() - b.mean()), float(va), float(vb), len(a), len(b))


def welch_of_rates(rate: float, other: float, *, n: int, design_effect: float = 1.0) -> Welch:
    """Welch's t of two success rates (in [0, 1]) from n trials each."""
    va, vb = (design_effect * r * (1 - r) / (n - 1) for r in (rate, other))
    return _welch(rate - other, va, vb, n, n)


def _welch(difference: float, va: float, vb: float, na: int, nb: int) -> Welch:
    from scipy import stats

    if va + vb == 0:
        equal = difference == 0
        return Welch(
            difference, 0.0 if equal else math.copysign(math.inf, difference), math.nan, float(equal)
        )
    t = difference / math.sqrt(va + vb)
    df = (va + vb) ** 2 / (va**2 / (na - 1) + vb**2 / (nb - 1))
    return Welch(difference, t, df, float(2 * stats.t.sf(abs(t), df)))


def inflation(
    *,
    sentences: int,
    trials: int,
    sentence_sd: float,
    pool_sd: float,
    rate: float,
    worlds: int,
    rng: np.random.Generator,
) -> float:
    """How often Welch's test on trials rejects at 0.05 where both arms are of one kind.

    Args:
        sentences: per arm, the same in both.
        trials: per sentence and arm.
        sentence_sd: spread over sentences of an arm's effect on log-odds.
        pool_sd: spread over pools; each arm has drawn one.
        rate: typical success rate.
    """
    centre = math.log(rate / (1 - rate))
    rejected = 0
    for _ in range(worlds):
        common = rng.normal(0, sentence_sd, sentences)
        arms = []
        for _ in range(2):
            z = centre + common + rng.normal(0, sentence_sd, sentences) + rng.normal(0, pool_sd)
            hits = rng.binomial(trials, 1 / (1 + np.exp(-z))).sum()
            arms.append(hits / (sentences * trials))
        rejected += welch_of_rates(arms[0], arms[1], n=sentences * trials).p <= 0.05
    return rejected / worlds


def sign_test(values: Iterable[float]) -> tuple[int, int, float]:
    """(positive, not zero, exact two-sided p) of how many values are above zero."""
    from scipy import stats

    kept = [v for v in values if v != 0]
    positive = sum(v > 0 for v in kept)
    return positive, len(kept), float(stats.binomtest(positive, len(kept)).pvalue) if kept else 1.0
