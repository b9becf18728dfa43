"""Does the model undo interference? The readout-compensation index lambda.

If the readout of target j is (1 - lambda) d_j + lambda dual_j, with dual vectors dual_j . d_i = [i = j], then to
first order E_ij = (1 - lambda) G_ij a_j - B_i off the diagonal and E_jj = a_j - B_j, where B_i is what a push
of i does to all targets alike. lambda = 0: interference propagates in full; 1: cosine is high and nothing
happens. The estimate alternates between a_j = E_jj + B_j, a regression of E on G a with an effect of every
source, and B, until it stands still.

The interval is the one of `stats.regress`: targets, and groups of sources, are left out one at a time (two-way
jackknife, never less than either direction alone), and t has G* - 1 degrees of freedom, G* being the effective
number of targets or sources. Targets differ in lambda and, by far, in potency: few of them carry the estimate, and
percentiles of resamples are then too short (`docs/linear-response.md` has the rates).

With more features than dimensions nothing can compensate everything: for any readouts R with R_j . d_j = 1 the
mean square of R_j . d_i over i != j is at least (N - d) / (d (N - 1)), and its root is the floor of crosstalk
that is printed beside lambda. Cost: a few passes over the [targets, sources] matrix per target and group.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

_ITERATIONS = 500
_TOLERANCE = 1e-9
SOURCE_GROUPS = 50
"""sources are left out in at most so many groups, dealt at random"""


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
    df: float = float("nan")
    """degrees of freedom of t: effective clusters minus one"""


def compensation(
    effects: Float[np.ndarray, "targets sources"],
    cosines: Float[np.ndarray, "targets sources"],
    own: Int[np.ndarray, " targets"],
    *,
    level: float,
    rng: np.random.Generator,
    used: Bool[np.ndarray, "targets sources"] | None = None,
) -> Compensation:
    """lambda over the pairs `used` (None: all but the targets themselves).

    Args:
        effects: E_ij, nats for one common length of push, source i in columns; every target among the columns.
        cosines: G_ij.
        own: column of each target.
        rng: deals sources to groups.
    """
    from scipy.special import stdtrit

    n, m = effects.shape
    off = np.ones((n, m), dtype=bool)
    off[np.arange(n), own] = False
    mask = off if used is None else off & used
    counts = (int(mask.any(1).sum()), int(mask.any(0).sum()), int(mask.sum()))
    if counts[0] < 3 or counts[1] < 3:
        return _none(
            counts, f"only {counts[0]} targets and {counts[1]} sources have such pairs; 3 are needed"
        )
    if not (np.isfinite(effects).all() and np.isfinite(cosines).all()):
        return _none(counts, "some of the effects or cosines are not finite")
    world = _World(effects, cosines, own, off.astype(np.float64), mask.astype(np.float64))
    fit = _solve(world, rows=np.ones(n), columns=np.ones(m))
    if not np.isfinite(fit.slope):
        return _none(counts, "the estimate does not converge, or the cosines do not vary")
    groups = np.full(m, -1)
    seen = np.flatnonzero(mask.any(0))
    groups[seen[rng.permutation(len(seen))]] = np.arange(len(seen)) % min(SOURCE_GROUPS, len(seen))
    lacking = [(np.arange(n) == j, np.zeros(m, dtype=bool)) for j in np.flatnonzero(mask.any(1))]
    by_target = [_without(world, fit, *one) for one in lacking]
    by_source = [_without(world, fit, np.zeros(n, dtype=bool), groups == g) for g in range(groups.max() + 1)]
    if not np.isfinite([*by_target, *by_source]).all():
        return _none(counts, "the estimate rests on one target, or on one group of sources, alone")
    variances = [_jackknife(part, fit.slope) for part in (by_target, by_source)]
    largest = max(*variances, sum(variances) - fit.single)
    df = max(1.0, min(_effective(fit.weight.sum(1)), _effective(fit.weight.sum(0))) - 1)
    reach = float(stdtrit(df, 0.5 + level / 2) * np.sqrt(largest))
    estimate = 1 - fit.slope
    return Compensation(estimate, estimate - reach, estimate + reach, *counts, reason="", df=df)


def crosstalk_floor(n_features: int, d: int) -> float:
    """Smallest possible root mean square of R_j . d_i over i != j; 0 where there are no more features than
    dimensions."""
    if n_features <= d:
        return 0.0
    return float(np.sqrt((n_features - d) / (d * (n_features - 1))))


class _World(NamedTuple):
    """`off` weighs the cells that give B (all but the diagonal), `weights` those that give the slope."""

    effects: np.ndarray
    cosines: np.ndarray
    own: np.ndarray
    off: np.ndarray
    weights: np.ndarray


class _Fit(NamedTuple):
    slope: float
    shift: np.ndarray
    """B of every source"""
    weight: np.ndarray
    """[targets, sources]: squared regressor of every cell"""
    single: float
    """variance of the slope, were cells independent"""


def _solve(world: _World, *, rows: np.ndarray, columns: np.ndarray, start: np.ndarray | None = None) -> _Fit:
    """The fixed point, with targets and sources weighed; a slope of nan where there is none."""
    effects, cosines, own, _, _ = world
    off = world.off * rows[:, None]
    weights = world.weights * rows[:, None] * columns
    diagonal = effects[np.arange(len(own)), own]
    heavy = off.sum(0)
    seen = heavy > 0
    per_source = np.maximum(heavy, 1e-300)
    total = np.maximum(weights.sum(0), 1e-300)
    shift = np.zeros(effects.shape[1]) if start is None else start
    slope = np.nan
    for _ in range(_ITERATIONS):
        x = cosines * (diagonal + shift[own])[:, None]
        centred = x - (weights * x).sum(0) / total
        bottom = (weights * centred**2).sum()
        if not bottom > 0:
            break
        new = float((weights * centred * effects).sum() / bottom)
        moved = np.where(seen, -(off * (effects - new * x)).sum(0) / per_source, 0.0)
        still = abs(new - slope) <= _TOLERANCE and np.abs(moved - shift).max() <= _TOLERANCE * (
            1 + np.abs(moved).max()
        )
        slope, shift = new, moved
        if still:
            left = effects - (weights * effects).sum(0) / total - slope * centred
            single = float(((weights * centred * left) ** 2).sum() / bottom**2)
            return _Fit(slope, shift, weights * centred**2, single)
    return _Fit(float("nan"), shift, weights, float("nan"))


def _without(world: _World, fit: _Fit, rows: np.ndarray, columns: np.ndarray) -> float:
    """The slope without some targets or sources, beginning where the whole one ended."""
    kept = [(~part).astype(np.float64) for part in (rows, columns)]
    return _solve(world, rows=kept[0], columns=kept[1], start=fit.shift).slope


def _jackknife(left_out: list[float], slope: float) -> float:
    """(G - 1) / G x sum of (estimate without a cluster - estimate)^2."""
    g = len(left_out)
    return (g - 1) / g * float(((np.array(left_out) - slope) ** 2).sum())


def _effective(weights: np.ndarray) -> float:
    """Clusters that matter: (sum of weights)^2 / sum of their squares."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def _none(counts: tuple[int, int, int], reason: str) -> Compensation:
    nan = float("nan")
    return Compensation(nan, nan, nan, *counts, reason=reason)
