"""Doses in nats: how strong an edit must be for the next-token distribution to move by a given KL.

To second order KL(p || p_alpha) = alpha^2 F / 2 with F = Var_p(J d), the Fisher metric pulled back to the site
(arXiv 2505.11611 has no such dose; it takes the best of 32 strengths). A first edit of any small strength
measures F; what is left of higher orders is a smooth function of the signed strength, L = log(KL / alpha^2),
which the measurements along one line interpolate, both signs and all doses of it together. Steps stay inside a
bracket, because KL saturates where a normalisation follows. A line stands for itself: its steps depend on its
own measurements only.
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
"""in log alpha: a curve through noisy points may point anywhere"""
_POINTS = 4
"""measurements through which L is laid: those nearest to where the dose is looked for"""
_ROUNDS = 8
"""Newton steps for log KL(log alpha), with L as it is laid"""
_AHEAD = 1e-3
"""in log alpha, for its slope"""
_SLOPES = (0.25, 8.0)
"""of log KL against log alpha, which is 2 for a small push; another is not believed"""
_APART = 1e-4
"""of a strength; a point that is no farther from another says nothing new"""
_BEYOND = 0.3
"""how far L is followed beyond its points, as a share of how far they reach; behind that it stays as it is"""

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


def doses_at_kl(
    measure: Measure,
    wanted: Float[np.ndarray, " n"],
    start: Float[np.ndarray, " n"],
    *,
    signs: Float[np.ndarray, " n"] | None = None,
    lines: Int[np.ndarray, " n"] | None = None,
) -> Doses:
    """The strength of every row at which its KL is the one wanted.

    Args:
        measure: what a strength does; called with rows that are not settled yet.
        wanted: KL in nats, positive.
        start: first strengths, positive.
        signs: 1 or -1, which way along its line a row goes; None: 1.
        lines: rows with one number share a direction, and what is measured of one is known of all; None: none do.

    Returns:
        Rows that cannot get there (a direction without effect, or one that saturates below) are not `reached`.
    """
    n = len(wanted)
    x, goal = np.log(start), np.log(wanted)
    low, high = np.full(n, -np.inf), np.full(n, np.inf)
    signs = np.ones(n) if signs is None else signs
    known = _Lines(np.arange(n) if lines is None else lines)
    kl, reached, steps = np.full(n, np.nan), np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int64)
    open_rows = np.arange(n)
    for step in range(MAX_STEPS):
        if not n:
            break
        seen = np.asarray(measure(open_rows, np.exp(x[open_rows])), dtype=np.float64)
        kl[open_rows], steps[open_rows] = seen, step + 1
        reached[open_rows] = np.abs(seen - wanted[open_rows]) <= TOLERANCE * wanted[open_rows]
        known.add(open_rows, signs[open_rows] * np.exp(x[open_rows]), seen)
        left = ~reached[open_rows]
        open_rows, seen = open_rows[left], seen[left]
        if step + 1 == MAX_STEPS or not len(open_rows):
            break
        with np.errstate(divide="ignore", invalid="ignore"):
            y = np.where(np.isfinite(seen), np.log(np.maximum(seen, 0.0)), np.inf)
            here = x[open_rows]
            below = y < goal[open_rows]
            low[open_rows] = np.where(below, np.maximum(low[open_rows], here), low[open_rows])
            high[open_rows] = np.where(below, high[open_rows], np.minimum(high[open_rows], here))
        there = np.log(np.abs(known.at(open_rows, wanted[open_rows], signs[open_rows])))
        move = np.where(np.isfinite(y) & np.isfinite(there), there - here, -_LARGEST_STEP)
        move = np.where(y == -np.inf, _LARGEST_STEP, np.clip(move, -_LARGEST_STEP, _LARGEST_STEP))
        x[open_rows] = _inside(here + move, low[open_rows], high[open_rows])
    return Doses(np.exp(x), kl, reached, steps)


class _Lines:
    """What was measured along every line."""

    def __init__(self, lines: Int[np.ndarray, " n"]):
        _, of = np.unique(lines, return_inverse=True)
        n, order = len(of), np.argsort(of, kind="stable")
        counts = np.bincount(of, minlength=1)
        rank = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
        self._rows = np.full((len(counts), counts.max(initial=1)), n)  # row n is none
        self._rows[of[order], rank] = order
        self._of, self._n = of, n
        self._strength: list[Float[np.ndarray, " n1"]] = []
        self._log_f: list[Float[np.ndarray, " n1"]] = []

    def add(
        self, rows: Int[np.ndarray, " m"], strength: Float[np.ndarray, " m"], kl: Float[np.ndarray, " m"]
    ) -> None:
        """Note the KL of some rows at signed strengths."""
        at, log_f = np.full((2, self._n + 1), np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.log(kl) - 2 * np.log(np.abs(strength))
        good = np.isfinite(values)
        at[rows[good]], log_f[rows[good]] = strength[good], values[good]
        self._strength.append(at)
        self._log_f.append(log_f)

    def at(
        self, rows: Int[np.ndarray, " m"], wanted: Float[np.ndarray, " m"], signs: Float[np.ndarray, " m"]
    ) -> Float[np.ndarray, " m"]:
        """The signed strength at which KL = alpha^2 e^L(alpha) is the one wanted; NaN where nothing is known."""
        own = self._rows[self._of[rows]]
        a, log_f = (np.concatenate([seen[own] for seen in t], 1) for t in (self._strength, self._log_f))
        again = np.abs(a[:, :, None] - a[:, None, :]) <= _APART * np.abs(a[:, :, None])
        a = np.where(np.tril(again, -1).any(2), np.nan, a)
        guess = signs[:, None] * np.sqrt(wanted[:, None]) * np.exp(-log_f / 2)
        off = np.where(np.isfinite(a), np.abs(a - guess), np.inf)  # of each point from the dose it would give
        x = np.take_along_axis(guess, off.argmin(1)[:, None], 1)[:, 0]
        off = np.where(np.isfinite(a), np.abs(a - x[:, None]), np.inf)
        near = np.argsort(off, 1, kind="stable")[:, :_POINTS]
        a, log_f = np.take_along_axis(a, near, 1), np.take_along_axis(log_f, near, 1)
        there = np.isfinite(a)
        low, high = np.where(there, a, np.inf).min(1), np.where(there, a, -np.inf).max(1)
        beyond = np.where(there.any(1), _BEYOND * (high - low), 0.0)
        low, high, u = low - beyond, high + beyond, np.log(np.abs(x))
        for _ in range(_ROUNDS):
            here, ahead = (_through(np.clip(signs * np.exp(v), low, high), a, log_f) for v in (u, u + _AHEAD))
            slope = np.clip(2 + (ahead - here) / _AHEAD, *_SLOPES)
            u = u - np.clip((2 * u + here - np.log(wanted)) / slope, -0.5, 0.5)
        return signs * np.exp(u)


def _through(
    x: Float[np.ndarray, " m"], a: Float[np.ndarray, "m k"], y: Float[np.ndarray, "m k"]
) -> Float[np.ndarray, " m"]:
    """Values at `x` of the polynomials through points (a, y), a polynomial a row; NaN points are left out."""
    there = np.isfinite(a)
    pairs = there[:, :, None] & there[:, None, :] & ~np.eye(a.shape[1], dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = (x[:, None, None] - a[:, None, :]) / (a[:, :, None] - a[:, None, :])
    weights = np.where(pairs, factors, 1.0).prod(2)
    return np.where(there, weights * y, 0.0).sum(1)


def _inside(
    x: Float[np.ndarray, " m"], low: Float[np.ndarray, " m"], high: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """`x`, or the middle of its bracket where it lies outside."""
    closed = np.isfinite(low) & np.isfinite(high)
    middle = np.where(closed, (np.where(closed, low, 0.0) + np.where(closed, high, 0.0)) / 2, x)
    return np.where((x > low) & (x < high), x, np.where(closed, middle, np.clip(x, low, high)))
