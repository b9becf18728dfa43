"""Does the model undo interference? The readout-compensation index lambda.

If the readout of target j is (1 - lambda) d_j + lambda dual_j, with dual vectors dual_j . d_i = [i = j], then to
first order E_ij = (1 - lambda) G_ij a_j - B_i off the diagonal and E_jj = a_j - B_j, where B_i is what a push
of i does to all targets alike. lambda = 0: interference propagates in full; 1: cosine is high and nothing
happens. The estimate alternates between a_j = E_jj + B_j, a regression of E on G a with an effect of every
source, and B, until it stands still; the interval resamples targets and sources.

With more features than dimensions nothing can compensate everything: for any readouts R with R_j . d_j = 1 the
mean square of R_j . d_i over i != j is at least (N - d) / (d (N - 1)), and its root is the floor of crosstalk
that is printed beside lambda. Cost: a few passes over the [targets, sources] matrix per draw.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

_ITERATIONS = 500
_TOLERANCE = 1e-9
DRAWS = 400


@dataclass(frozen=True)
class Compensation:
    """lambda with its interval; nan where `reason` says why there is none."""

    estimate: float
    lo: float
    hi: float
    n_targets: int
    n_sources: int
    n_pairs: int
    reason: str


def compensation(
    effects: Float[np.ndarray, "targets sources"],
    cosines: Float[np.ndarray, "targets sources"],
    own: Int[np.ndarray, " targets"],
    *,
    level: float,
    rng: np.random.Generator,
    used: Bool[np.ndarray, "targets sources"] | None = None,
    draws: int = DRAWS,
) -> Compensation:
    """lambda over the pairs `used` (None: all but the targets themselves).

    Args:
        effects: E_ij, nats for one common length of push, source i in columns; every target among the columns.
        cosines: G_ij.
        own: column of each target.
        level: of the interval.
        draws: resamples of targets and sources.
    """
    n, m = effects.shape
    off = np.ones((n, m), dtype=bool)
    off[np.arange(n), own] = False
    mask = off if used is None else off & used
    counts = (int(mask.any(1).sum()), int(mask.any(0).sum()), int(mask.sum()))
    if counts[0] < 3 or counts[1] < 3:
        return _none(
            counts, f"only {counts[0]} targets and {counts[1]} sources have such pairs; 3 are needed"
        )
    weights = mask.astype(np.float64)
    estimate = _solve(effects, cosines, own, off.astype(np.float64), weights)
    if not np.isfinite(estimate):
        return _none(counts, "the estimate does not converge, or the cosines do not vary")
    drawn = np.empty(draws)
    for k in range(draws):
        rows = rng.multinomial(n, np.full(n, 1 / n)).astype(np.float64)
        columns = rng.multinomial(m, np.full(m, 1 / m)).astype(np.float64)
        drawn[k] = _solve(
            effects, cosines, own, off * np.outer(rows, np.ones(m)), weights * np.outer(rows, columns)
        )
    failed = int((~np.isfinite(drawn)).sum())
    if failed > draws // 20:
        return _none(counts, f"{failed} of {draws} resamples do not converge")
    lo, hi = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Compensation(estimate, float(lo), float(hi), *counts, reason="")


def crosstalk_floor(n_features: int, d: int) -> float:
    """Smallest possible root mean square of R_j . d_i over i != j; 0 where there are no more features than
    dimensions."""
    if n_features <= d:
        return 0.0
    return float(np.sqrt((n_features - d) / (d * (n_features - 1))))


def _solve(
    effects: np.ndarray, cosines: np.ndarray, own: np.ndarray, off: np.ndarray, weights: np.ndarray
) -> float:
    """1 - s at the fixed point. `off` weighs the cells that give B (all but the diagonal), `weights` those that
    give the slope."""
    diagonal = effects[np.arange(len(own)), own]
    heavy = off.sum(0)
    seen = heavy > 0
    per_source = np.maximum(heavy, 1e-300)
    total = np.maximum(weights.sum(0), 1e-300)
    shift, slope = np.zeros(effects.shape[1]), np.nan
    for _ in range(_ITERATIONS):
        x = cosines * (diagonal + shift[own])[:, None]
        centred = x - (weights * x).sum(0) / total
        bottom = (weights * centred**2).sum()
        if not bottom > 0:
            return float("nan")
        new = float((weights * centred * effects).sum() / bottom)
        moved = np.where(seen, -(off * (effects - new * x)).sum(0) / per_source, 0.0)
        still = abs(new - slope) <= _TOLERANCE and np.abs(moved - shift).max() <= _TOLERANCE * (
            1 + np.abs(moved).max()
        )
        slope, shift = new, moved
        if still:
            return 1 - slope
    return float("nan")


def _none(counts: tuple[int, int, int], reason: str) -> Compensation:
    nan = float("nan")
    return Compensation(nan, nan, nan, *counts, reason=reason)
