"""The law of the cosine of two draws from Gaussian populations: its tails, by simulation, with their errors.

u and v are independent Gaussian vectors with given means and covariances; the law is that of their cosine. A plain
simulation sees nothing where a tail holds fewer than one pair in a million. Here each simulated pair gives a probability
instead of a yes or no: with s^2 = u'Su (u at length 1, S the covariance of v) the vector v = b + z g has a standard normal
z that is independent of b, g = Su / s, and u.v = m + s z, m = u.mean. So cos > c where m + s z > 0 and (m + s z)^2 >
c^2 |b + z g|^2: a quadratic inequality in z, whose Gaussian probability is exact (Rao-Blackwell: the same mean, less
variance, and no tail too far out).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.interpolate import PchipInterpolator
from scipy.special import ndtr, ndtri

from polysem.seeds import rng_for

GRID = np.linspace(0.0, 0.95, 20)
"""|cosines| at which tails are simulated; between them the normal quantile of the tail, nearly a line, is interpolated"""
BATCHES, DRAWS, SHIFTS = 8, 1024, 4
"""independent batches, whose spread gives the errors; vectors of each population in a batch; and how many of the second
meet each of the first: more vectors say more than more pairs of few"""
_LEAST, _TINY = 1e-300, float(np.finfo(np.float64).eps)
_FLAT = 1e-14
"""variance of unit rows along a direction below which they are equal there but for rounding"""
_DIGITS = 6
"""significant digits kept: far below the simulation's error, far above what a BLAS changes by its order of sums"""


@dataclass(frozen=True)
class Population:
    """Mean and covariance of the vectors of one population."""

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]


@dataclass(frozen=True)
class CosineLaw:
    """P(cos > c) and P(cos < -c) on `GRID`, each with its Monte-Carlo standard error."""

    above: Float[np.ndarray, " grid"]
    above_se: Float[np.ndarray, " grid"]
    below: Float[np.ndarray, " grid"]
    below_se: Float[np.ndarray, " grid"]

    def greater(self, c: Float[np.ndarray, "*shape"] | float) -> Float[np.ndarray, "*shape"]:
        """P(cos > c)."""
        c = np.asarray(c, np.float64)
        return np.where(c >= 0, _between(self.above, c), 1 - _between(self.below, -c))

    def less(self, c: Float[np.ndarray, "*shape"] | float) -> Float[np.ndarray, "*shape"]:
        """P(cos < c)."""
        c = np.asarray(c, np.float64)
        return np.where(c < 0, _between(self.below, -c), 1 - _between(self.above, c))

    def relative_se(self, c: float) -> float:
        """Monte-Carlo standard error of the tail beyond c, away from 0, relative to it."""
        tail, se = (self.above, self.above_se) if c >= 0 else (self.below, self.below_se)
        return float(np.interp(abs(c), GRID, se / np.maximum(tail, _LEAST)))


def cosine_law(first: Population, second: Population | None = None) -> CosineLaw:
    """The law of the cosine of a draw from the first population and one from the second (None: the first again).

    The same populations give the same law, in either order. Cost: a second, and two eigenvalue decompositions of size d.
    """
    populations = sorted((first, first if second is None else second), key=lambda p: tuple(p.mean))
    roots = [_root(p.covariance) for p in populations]
    tails = np.empty((BATCHES, 2, len(GRID)))
    for batch in range(BATCHES):
        u, v = (
            p.mean + rng_for(0, "cosine law", batch, side).standard_normal((DRAWS, len(p.mean))) @ root
            for side, (p, root) in enumerate(zip(populations, roots, strict=True))
        )
        tails[batch] = _tails(u, v, populations[1])
    mean = tails.mean(axis=0)
    se = tails.std(axis=0, ddof=1) / np.sqrt(BATCHES)
    (above, below), (above_se, below_se) = (_rounded(a) for a in (mean, se))
    return CosineLaw(above, above_se, below, below_se)


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root, the only one that does not turn where eigenvalues are equal."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _tails(u: np.ndarray, v: np.ndarray, of_v: Population) -> np.ndarray:
    """Mean over the pairs of one batch of P(cos > c) and P(cos < -c), for every c of the grid [2, grid]."""
    u = u / np.maximum(np.linalg.norm(u, axis=1, keepdims=True), _LEAST)
    spread = u @ of_v.covariance
    square = np.einsum("nd,nd->n", u, spread)
    s = np.sqrt(np.where(square > _FLAT, square, 0.0))
    g = np.divide(spread, s[:, None], out=np.zeros_like(spread), where=s[:, None] > 0)
    m, gg = u @ of_v.mean, np.einsum("nd,nd->n", g, g)
    vv = np.einsum("nd,nd->n", v, v)
    parts = []
    for shift in range(SHIFTS):
        w, ww = np.roll(v, shift, axis=0), np.roll(vv, shift)
        along, gw = (np.einsum("nd,nd->n", x, w) for x in (u, g))
        z = np.divide(along - m, s, out=np.zeros_like(s), where=s > 0)
        parts.append((m, s, gg, gw - z * gg, np.maximum(ww - 2 * z * gw + z * z * gg, 0)))
    m, s, gg, bg, bb = (np.concatenate(x) for x in zip(*parts, strict=True))
    # For cos < -c the signs of u, hence of m and g, are turned.
    return np.array(
        [[_chance(c, sign * m, s, gg, sign * bg, bb).mean() for c in GRID] for sign in (1.0, -1.0)]
    )


def _chance(
    c: float, m: np.ndarray, s: np.ndarray, gg: np.ndarray, bg: np.ndarray, bb: np.ndarray
) -> np.ndarray:
    """P(m + s z > c |b + z g|) for a standard normal z.

    With q(z) = a z^2 + 2 h z + k, the difference of the squares: where m + s z = 0, q <= 0. So for a > 0 the event is
    everything beyond the larger root; for a < 0 it is what lies between the roots, if that is where m + s z > 0.
    """
    a, h, k = s * s - c * c * gg, m * s - c * c * bg, m * m - c * c * bb
    inside = h * h - a * k
    root = np.sqrt(np.maximum(inside, 0))
    far = -(h + np.where(h >= 0, root, -root))  # stable: no difference of like numbers
    with np.errstate(divide="ignore", invalid="ignore"):
        one, two = far / a, k / far
    one, two = (
        np.nan_to_num(one, posinf=np.inf, neginf=-np.inf),
        np.nan_to_num(two, posinf=np.inf, neginf=-np.inf),
    )
    low, high = np.minimum(one, two), np.maximum(one, two)
    up = ndtr(-high)
    # a < 0: between the roots
    between = np.where((inside > 0) & (m + s * high > 0), ndtr(-low) - up, 0.0)
    still = (k > 0) & (m > 0)  # nothing varies along u
    return np.where(s == 0, still, np.where(a > 0, up, between))


def _between(tail: Float[np.ndarray, " grid"], c: Any) -> Float[np.ndarray, "*shape"]:
    """The tail at c >= 0 from its values on the grid. Beyond the grid its logarithm goes on in a line in log(1 - c^2),
    as that of random directions does. Values at c < 0 have no meaning."""
    tail = np.clip(tail, _LEAST, 1 - _TINY)
    size = np.asarray(np.clip(c, 0.0, 1.0))
    here = ndtr(-PchipInterpolator(GRID, -ndtri(tail))(np.minimum(size, GRID[-1])))
    log, x = np.log(tail[-2:]), np.log1p(-(GRID[-2:] ** 2))
    with np.errstate(divide="ignore"):
        further = np.minimum(np.log1p(-(size**2)) - x[1], 0.0)
    slope = max((log[1] - log[0]) / (x[1] - x[0]), _TINY)
    return np.where(size <= GRID[-1], here, np.exp(log[1] + slope * further))


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.array([[float(f"{x:.{_DIGITS}g}") for x in row] for row in values])
