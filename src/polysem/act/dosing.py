"""Doses in nats: how strong an edit must be for the next-token distribution to move by a given KL.

To second order KL(p || p_alpha) = alpha^2 F / 2 with F = Var_p(J d), the Fisher metric pulled back to the site
(arXiv 2505.11611 has no such dose; it takes the best of 32 strengths). A first edit of any small strength
measures F; what is left of higher orders is removed by secant steps on log KL against log alpha, inside a
bracket, because KL saturates where a normalisation follows. Every row stands for itself: its steps depend on
its own measurements only.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

TOLERANCE = 0.02
"""relative distance of the measured KL from the asked one"""
MAX_STEPS = 12
"""measurements per row before it is given up"""
_LARGEST_STEP = np.log(8.0)
"""in log alpha: a secant through two noisy points may point anywhere"""

Measure = Callable[[Int[np.ndarray, " m"], Float[np.ndarray, " m"]], Float[np.ndarray, " m"]]
"""rows and their strengths -> KL in nats; NaN or infinite where the model gave no finite logits"""


class Doses(NamedTuple):
    """What was found for every row."""

    strength: Float[np.ndarray, " n"]
    """the last strength that was measured, positive"""
    kl: Float[np.ndarray, " n"]
    """its KL, nats"""
    reached: Bool[np.ndarray, " n"]
    """whether that is within TOLERANCE of what was asked"""
    steps: Int[np.ndarray, " n"]
    """measurements taken"""


def doses_at_kl(measure: Measure, wanted: Float[np.ndarray, " n"], start: Float[np.ndarray, " n"]) -> Doses:
    """The strength of every row at which its KL is the one wanted.

    Args:
        measure: what a strength does; called with rows that are not settled yet.
        wanted: KL in nats, positive.
        start: first strengths, positive.

    Returns:
        Rows that cannot get there (a direction without effect, or one that saturates below) are not `reached`.
    """
    n = len(wanted)
    x, goal = np.log(start), np.log(wanted)
    low, high = np.full(n, -np.inf), np.full(n, np.inf)
    last_x, last_y = np.full(n, np.nan), np.full(n, np.nan)
    kl, reached, steps = np.full(n, np.nan), np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int64)
    open_rows = np.arange(n)
    for step in range(MAX_STEPS):
        if not len(open_rows):
            break
        seen = np.asarray(measure(open_rows, np.exp(x[open_rows])), dtype=np.float64)
        kl[open_rows], steps[open_rows] = seen, step + 1
        reached[open_rows] = np.abs(seen - wanted[open_rows]) <= TOLERANCE * wanted[open_rows]
        left = ~reached[open_rows]
        open_rows, seen = open_rows[left], seen[left]
        if step + 1 == MAX_STEPS:
            break
        with np.errstate(divide="ignore", invalid="ignore"):
            y = np.where(np.isfinite(seen), np.log(np.maximum(seen, 0.0)), np.inf)
            here = x[open_rows]
            below = y < goal[open_rows]
            low[open_rows] = np.where(below, np.maximum(low[open_rows], here), low[open_rows])
            high[open_rows] = np.where(below, high[open_rows], np.minimum(high[open_rows], here))
            slope = (y - last_y[open_rows]) / (here - last_x[open_rows])
        # KL grows as the square of a small push; a slope that is not of that kind is not believed
        slope = np.where(np.isfinite(slope) & (slope > 0.25) & (slope < 8.0), slope, 2.0)
        finite = np.isfinite(y)
        move = np.where(finite, (goal[open_rows] - np.where(finite, y, 0.0)) / slope, -_LARGEST_STEP)
        move = np.where(y == -np.inf, _LARGEST_STEP, np.clip(move, -_LARGEST_STEP, _LARGEST_STEP))
        last_x[open_rows], last_y[open_rows] = here, np.where(finite, y, np.nan)
        x[open_rows] = _inside(here + move, low[open_rows], high[open_rows])
    return Doses(np.exp(x), kl, reached, steps)


def _inside(
    x: Float[np.ndarray, " m"], low: Float[np.ndarray, " m"], high: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """`x`, or the middle of its bracket where it lies outside."""
    closed = np.isfinite(low) & np.isfinite(high)
    middle = np.where(closed, (np.where(closed, low, 0.0) + np.where(closed, high, 0.0)) / 2, x)
    return np.where((x > low) & (x < high), x, np.where(closed, middle, np.clip(x, low, high)))
