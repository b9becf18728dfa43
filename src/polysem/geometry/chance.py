"""How large a cosine is by chance: exactly for random directions, and from the rows' own first two moments.

Isotropic null. For independent uniform unit vectors in d dimensions cos^2 ~ Beta(1/2, (d-1)/2), hence
P(cos > c) = I_{1-c^2}((d-1)/2, 1/2) / 2 for c >= 0 (Muirhead 1982, thm 1.5.7).

Covariance null: two independent draws u, v of one population of unit vectors with mean m and second moment C
= E u u^T (about zero, trace 1). Without any further assumption E[u.v] = |m|^2 and E[(u.v)^2] = tr C^2, which
give z-scores exact in mean and variance. The tail needs a law: that of Gaussian vectors with the mean and covariance
of the rows, simulated (`law.py`), since an uneven spectrum makes far tails heavier than the isotropic law of the same
variance. The rows' own covariance holds their sampling noise, too: where they are few (n = 8 d) and truly isotropic,
its tail is heavier than theirs, so a count above it says the more.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import betainc, betaincc

from polysem.errors import ConfigError
from polysem.geometry.law import CosineLaw, Population, cosine_law
from polysem.geometry.rows import Rows, prepare_rows, unit_blocks

_DIGITS = 12
"""significant digits kept of moments, so that the order in which a BLAS sums does not reach tables"""
_TINY = float(np.finfo(np.float64).eps)


def cosine_tail(
    c: Float[np.ndarray, "*shape"] | float, *, d: float | int, two_sided: bool = False
) -> Float[np.ndarray, "*shape"]:
    """P(cos > c) of two random unit vectors in d dimensions, or P(|cos| > |c|) if `two_sided`.

    Args:
        c: cosines; beyond [-1, 1] the tail is 0 or 1.
        d: dimensions, at least 1; need not be whole (an effective dimension).

    Raises:
        ConfigError: if d < 1.
    """
    if not d >= 1:
        raise ConfigError(f"dimensions must be at least 1, got {d}", hint="give the width of the site")
    c = np.asarray(c, np.float64)
    size = np.minimum(np.abs(c), 1.0)
    if d == 1:
        both = np.where(size < 1, 1.0, 0.0)
    else:
        # I_{1-c^2}(a, 1/2) = 1 - I_{c^2}(1/2, a): each form where its argument keeps its digits
        half = (d - 1) / 2
        near_one = betainc(half, 0.5, (1 - size) * (1 + size))
        both = np.where(size < 0.5, betaincc(0.5, half, size * size), near_one)
    if two_sided:
        return both
    return np.where(c >= 0, both / 2, 1 - both / 2)


@dataclass(frozen=True)
class CovarianceNull:
    """Moments of the cosine of two independent draws from the population that the rows are a sample of."""

    n_pairs: int
    """pairs of rows with a direction"""
    d: int
    mean: float
    """expected cosine |m|^2, estimated without the pairs (i, i); not below 0"""
    variance: float
    """variance of the cosine, estimated alike; not below its least value (1 - mean)^2 / d"""
    d_eff: float
    """(tr C)^2 / tr C^2 without the pairs (i, i); not above d"""
    mean_norm: float
    """norm of the mean unit row, the shared mean direction; of two populations the root of |m_i . m_j|"""
    law: CosineLaw = field(repr=False, compare=False)
    """of Gaussian vectors with the rows' mean and covariance"""

    def z(self, c: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Cosines in standard deviations from the expected cosine."""
        return (c - self.mean) / math.sqrt(self.variance)

    def p(self, c: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Two-sided chance of a cosine at least as far from the expected one."""
        far = np.abs(c - self.mean)
        return np.minimum(self.law.greater(self.mean + far) + self.law.less(self.mean - far), 1.0)

    def expected_above(self, c: float) -> float:
        """Expected number of pairs with cosine above c (below c, if c is negative)."""
        return self.n_pairs * float(self.law.greater(c) if c >= 0 else self.law.less(c))

    def expected_se(self, c: float) -> float:
        """Monte-Carlo standard error of `expected_above`."""
        return self.expected_above(c) * self.law.relative_se(c)


def covariance_null(directions: Float[Any, "n d"]) -> CovarianceNull:
    """The covariance null of a set of rows; zero rows are left out.

    The plain moments of a sample count each row with itself: N^2 tr C^2 = sum over all (i, k) of cos^2, N of
    them 1. Without these they are unbiased, so that N = 8 d isotropic rows give d_eff = d and not 8/9 of it.
    No population of unit vectors has d_eff above d, nor a variance below (1 - mean)^2 / d (Cauchy-Schwarz on
    the spectrum): the estimates stay inside.

    Raises:
        ConfigError: if fewer than two rows have a direction.
    """
    rows = prepare_rows(directions, name="directions")
    return covariance_null_of(rows.take(np.flatnonzero(rows.live)))


def covariance_null_of(rows: Rows, other: Rows | None = None) -> CovarianceNull:
    """`covariance_null` of rows that were checked already and all have a direction.

    With `other`, u is drawn from one population and v from another: E[u.v] = m.m' and E[(u.v)^2] = tr C C', and
    no pair is a row with itself, so the plain moments over all pairs are the estimates.
    """
    n, m, d = rows.n, rows.n if other is None else other.n, rows.d
    if min(n, m) < (2 if other is None else 1):
        raise ConfigError(
            f"a covariance null needs two rows with a direction, got {n}", hint="check the decoder"
        )
    total, second = _moments(rows)
    population, population_j = _population(total, second, n), None
    if other is None:
        inner, off = float(total @ total), n * (n - 1)
        mean = max((inner - n) / off, 0.0)
        about_zero = max((float(np.einsum("ab,ab->", second, second)) - n) / off, 1 / d, mean * mean)
        least = (1 - mean) ** 2 / d
    else:
        total_j, second_j = _moments(other)
        population_j = _population(total_j, second_j, m)
        inner = float(total @ total_j)
        mean, least = inner / (n * m), 0.0
        about_zero = max(float(np.einsum("ab,ab->", second, second_j)) / (n * m), mean * mean, _TINY)
    return CovarianceNull(
        n_pairs=n * (n - 1) // 2 if other is None else n * m,
        d=d,
        mean=_rounded(mean),
        variance=_rounded(max(about_zero - mean * mean, least, _TINY)),
        d_eff=_rounded(1 / about_zero),
        mean_norm=_rounded(
            math.sqrt(abs(inner)) / math.sqrt(n * m) if other is not None else math.sqrt(inner) / n
        ),
        law=cosine_law(population, population_j),
    )


def _population(total: Float[np.ndarray, " d"], second: Float[np.ndarray, "d d"], n: int) -> Population:
    mean = total / n
    return Population(mean, second / n - np.outer(mean, mean))


def _moments(rows: Rows) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Sum of the unit rows, and of their products with themselves."""
    total, second = np.zeros(rows.d), np.zeros((rows.d, rows.d))
    for _, unit in unit_blocks(rows):
        total += unit.sum(axis=0)
        second += unit.T @ unit
    return total, second


def benjamini_hochberg(p: Float[np.ndarray, " m"], *, n_tests: int) -> Float[np.ndarray, " m"]:
    """Benjamini-Hochberg q-values over `n_tests` hypotheses, of which the p-values of m are known and the
    others count as 1.

    That is exact BH for p' = p where the pair was screened in and p' = 1 elsewhere. As p' >= p, p' is a valid
    p-value whatever the screen looked at, so q <= alpha controls the false discovery rate as BH always does.

    Against BH on all p-values, were they known: q here is never smaller. If no untested p lies below a tested
    one (a screen on |cos| under a symmetric null), tested ranks are the same, and an untested hypothesis with
    p-value p_u lowers a q at most to n_tests p_u / rank >= p_u, since its rank is at most n_tests. So the two
    agree wherever q is at most the smallest untested p, and reject the same hypotheses at any level up to it.

    Raises:
        ConfigError: if n_tests is below the number of p-values.
    """
    if n_tests < len(p):
        raise ConfigError(f"n_tests is {n_tests}, below the {len(p)} p-values given")
    order = np.argsort(p, kind="stable")
    rising = p[order]
    rank = np.searchsorted(rising, rising, side="right")
    stepped = np.minimum.accumulate((rising * (n_tests / np.maximum(rank, 1)))[::-1])[::-1]
    q = np.empty(len(p))
    q[order] = np.minimum(stepped, 1.0)
    return q


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
