"""Pairs that two models share: how many, how many by chance, and what fraction of the structure that is.

A pair of matched features passes in a model if its z-scored interference is at least a threshold and it is not one
concept twice. It is shared if it passes in both. Under a permuted matching the number of shared pairs has
expectation N_a N_b / P, exactly (P: pairs of matched features). From it:

    lift      = N_shared / expectation
    fraction  = (N_shared - expectation) / ((N_a + N_b) / 2 - expectation)      chance-corrected, 1 if all are

Pairs that share a feature are not independent. The variance is the dyadic cluster-robust one: residuals of pairs
with a common unit may be correlated. Units are the connected components of passing pairs where they are small (a
block of features stands or falls together), single features elsewhere. The interval of the fraction holds both the
normal one and Wilson's with the effective number of pairs that this variance implies.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from polysem.errors import MismatchError
from polysem.geometry import covariance_null
from polysem.geometry.unit import unit_rows

LARGE_COMPONENT = 0.05
"""share of all features above which a component is not one unit but as many as it has features"""
DUPLICATE = 0.7
"""above this |cosine| two features are likely one concept"""


@dataclass(frozen=True)
class SharedStructure:
    """Counts, expectation, lift and fraction with intervals."""

    m: int
    """matched features"""
    n_a: int
    """pairs that pass in the first model"""
    n_b: int
    n_shared: int
    expected: float
    """shared pairs under a permuted matching: exact expectation"""
    lift: float
    lift_lo: float
    lift_hi: float
    fraction: float
    lo: float
    hi: float
    p: float
    """one-sided, from permuted matchings"""
    level: float


def passing_pairs(
    directions: Float[np.ndarray, "d_sae d"],
    features: Int[np.ndarray, " m"],
    *,
    min_z: float,
    excluded: Bool[np.ndarray, "m m"] | None = None,
) -> Int[np.ndarray, "n 2"]:
    """Pairs (i < j, places in `features`) with z-scored interference of at least `min_z` that are no duplicates.

    Args:
        directions: decoder rows of the whole SAE.
        min_z: standard deviations of the covariance null.
        excluded: further pairs that do not pass (common tokens, like glosses).
    """
    chosen = unit_rows(directions)[features].astype(np.float64)
    cosines = chosen @ chosen.T
    null = covariance_null(directions[np.linalg.norm(directions, axis=1) > 0])
    passes = (null.z(cosines) >= min_z) & (np.abs(cosines) <= DUPLICATE)
    if excluded is not None:
        passes &= ~excluded
    i, j = np.nonzero(np.triu(passes, k=1))
    return np.column_stack([i, j]).astype(np.int64)


def shared_structure(
    pairs_a: Int[np.ndarray, "n_a 2"],
    pairs_b: Int[np.ndarray, "n_b 2"],
    *,
    m: int,
    level: float,
    rng: np.random.Generator,
    permutations: int = 999,
) -> SharedStructure:
    """How much of the interference structure of matched features two models share.

    Args:
        pairs_a: pairs (i < j) of matched features that pass in the first model.
        pairs_b: the same in the second, in the same numbering.

    Raises:
        MismatchError: if a pair is not i < j < m.
    """
    codes_a, codes_b = _codes(pairs_a, m), _codes(pairs_b, m)
    n_a, n_b, total = len(codes_a), len(codes_b), m * (m - 1) // 2
    shared = np.intersect1d(codes_a, codes_b)
    expected = n_a * n_b / total if total else math.nan
    if not n_a or not n_b:
        nan = math.nan
        return SharedStructure(m, n_a, n_b, 0, 0.0, nan, nan, nan, nan, nan, nan, nan, level)
    mean = (n_a + n_b) / 2
    fraction = (len(shared) - expected) / (mean - expected) if mean > expected else math.nan
    edges = _Edges(np.union1d(codes_a, codes_b), codes_a, codes_b, m)
    lo, hi = _fraction_interval(edges, fraction, expected=expected, level=level)
    lift_lo, lift_hi = _lift_interval(edges, len(shared), expected=expected, level=level)
    null = [_permuted(pairs_b, codes_a, m, rng) for _ in range(permutations)]
    p = (1 + sum(n >= len(shared) for n in null)) / (1 + permutations)
    lift = len(shared) / expected
    return SharedStructure(
        m, n_a, n_b, len(shared), expected, lift, lift_lo, lift_hi, fraction, lo, hi, p, level
    )


class _Edges:
    """Pairs that pass in either model, and the units that they touch."""

    def __init__(self, codes: np.ndarray, codes_a: np.ndarray, codes_b: np.ndarray, m: int):
        self.m = m
        self.in_a = np.isin(codes, codes_a).astype(float)
        self.in_b = np.isin(codes, codes_b).astype(float)
        i, j = codes // m, codes % m
        unit = _units(i, j, m)
        self.first, self.second = unit[i], unit[j]
        self.size = np.bincount(unit, minlength=int(unit.max()) + 1)
        self.n_units = len(np.unique(np.concatenate([self.first, self.second])))
        """units that any pair touches"""

    def variance(self, weights: Float[np.ndarray, " edges"]) -> float:
        """Dyadic cluster-robust variance of the sum of `weights`."""
        across = self.first != self.second
        sums = np.bincount(self.first, weights, minlength=len(self.size))
        sums += np.bincount(self.second[across], weights[across], minlength=len(self.size))
        # Pairs that do not pass carry what makes all weights sum to zero, spread evenly over features.
        centred = sums - sums.sum() * self.size / self.m
        own = float((weights[across] ** 2).sum())  # counted in both of its units
        n = self.n_units
        return max(float((centred**2).sum()) - own, 0.0) * (n / (n - 1) if n > 1 else math.inf)


def _units(i: np.ndarray, j: np.ndarray, m: int) -> Int[np.ndarray, " m"]:
    graph = sparse.coo_matrix((np.ones(len(i)), (i, j)), shape=(m, m))
    _, component = connected_components(graph, directed=False)
    size = np.bincount(component)
    alone = size[component] > max(LARGE_COMPONENT * m, 2)
    unit = np.where(alone, len(size) + np.arange(m), component)
    return np.unique(unit, return_inverse=True)[1]


def _fraction_interval(
    edges: _Edges, fraction: float, *, expected: float, level: float
) -> tuple[float, float]:
    """Wilson's interval with the effective number of pairs; [0, 1] where nothing can be said."""
    from scipy import stats

    if math.isnan(fraction):
        return math.nan, math.nan
    n_a, n_b = edges.in_a.sum(), edges.in_b.sum()
    mean, both = (n_a + n_b) / 2, edges.in_a * edges.in_b
    below = mean - expected
    per_a, per_b = expected / n_a, expected / n_b
    weights = (
        both / below
        + edges.in_a * (-per_a - fraction * (0.5 - per_a)) / below
        + edges.in_b * (-per_b - fraction * (0.5 - per_b)) / below
    )
    variance = edges.variance(weights)
    near = (min(max(fraction, 0.0), 1.0) * mean + 1) / (mean + 2)
    most = float(edges.n_units)
    n = most if variance == 0 else min(most, near * (1 - near) / variance)
    t = float(stats.t.ppf(0.5 + level / 2, max(edges.n_units - 1, 1)))
    lo, hi = _wilson(min(max(fraction, 0.0), 1.0), n, t)
    # Near 0 what varies is how many pairs are shared by chance, which no proportion knows of.
    reach = t * math.sqrt(variance)
    return max(0.0, min(lo, fraction - reach)), min(1.0, max(hi, fraction + reach))


def _wilson(share: float, n: float, t: float) -> tuple[float, float]:
    centre = (share + t * t / (2 * n)) / (1 + t * t / n)
    reach = t * math.sqrt(share * (1 - share) / n + t * t / (4 * n * n)) / (1 + t * t / n)
    # At the ends the limits are 0 and 1 exactly, which rounding must not move.
    return (max(0.0, centre - reach) if share > 0 else 0.0), (min(1.0, centre + reach) if share < 1 else 1.0)


def _lift_interval(edges: _Edges, n_shared: int, *, expected: float, level: float) -> tuple[float, float]:
    """On the log scale; without a shared pair, 0 and the exact Poisson limit."""
    from scipy import stats

    if n_shared == 0:
        return 0.0, float(stats.chi2.ppf(0.5 + level / 2, 2)) / 2 / expected
    both = edges.in_a * edges.in_b
    weights = both / n_shared - edges.in_a / edges.in_a.sum() - edges.in_b / edges.in_b.sum()
    t = float(stats.t.ppf(0.5 + level / 2, max(edges.n_units - 1, 1)))
    reach = t * math.sqrt(edges.variance(weights))
    lift = n_shared / expected
    return lift * math.exp(-reach), lift * math.exp(min(reach, 700.0))


def _permuted(pairs: np.ndarray, codes: np.ndarray, m: int, rng: np.random.Generator) -> int:
    """Shared pairs after the second model's features were matched at random."""
    moved = np.sort(rng.permutation(m)[pairs], axis=1)
    return int(np.isin(moved[:, 0] * m + moved[:, 1], codes).sum())


def _codes(pairs: np.ndarray, m: int) -> Int[np.ndarray, " n"]:
    if len(pairs) and not (
        (pairs[:, 0] < pairs[:, 1]).all() and pairs.min(initial=0) >= 0 and pairs.max(initial=0) < m
    ):
        raise MismatchError(f"pairs of matched features must be i < j < {m}; got {pairs[:3].tolist()} ...")
    return np.unique(pairs[:, 0] * m + pairs[:, 1])
