"""How far the effect of a set of pushes is the sum of effects of its parts.

A set S of a pool of n pushes is a point of a factorial design, each push in or out with chance 1/2, and the change of logits
Z(S) a vector at each. In the Walsh basis its energy splits by order of interaction: SAR_k is the share above order k, of all
but the mean. The energy of order k is the mean over pairs of sets of K_k(d) <Z(S), Z(S')>, d the number of pushes in which
they differ and K_k the Krawtchouk polynomial. Over all 2^n sets this is exact; over sampled ones each pair must be of two
independent draws, or squares of noise would count as interaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from jaxtyping import Float, Int

from polysem.joint.bench import JointBench

PARTS = ("whole", "odd", "even")
EXACT = 6
"""pushes of a pool up to which all sets are run"""
ORDERS = 2


@dataclass(frozen=True)
class Energies:
    """Of one pool on one prompt."""

    above: Float[np.ndarray, " orders"]
    """energy of interactions above order 1, 2, ..."""
    total: float
    """of everything but the mean"""


def subsets(n: int, draws: int, rng: np.random.Generator) -> Int[np.ndarray, "m n"]:
    """All sets of a pool of at most EXACT pushes, or `draws` random ones; 1 where a push is in."""
    if n <= EXACT:
        return (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    return (rng.random((draws, n)) < 0.5).astype(np.int64)


def krawtchouk(distance: Int[np.ndarray, "..."], n: int, k: int) -> Float[np.ndarray, "..."]:
    """Sum over all sets T of k pushes of chi_T(S) chi_T(S'), S and S' differing in `distance` of n pushes."""
    table = [sum((-1) ** j * comb(d, j) * comb(n - d, k - j) for j in range(k + 1)) for d in range(n + 1)]
    return np.array(table, dtype=np.float64)[distance]


def energies(
    values: Float[np.ndarray, "m d"],
    sets: Int[np.ndarray, "m n"],
    low: Float[np.ndarray, "low d"] | None = None,
) -> Energies:
    """Energies by order.

    Args:
        values: the change that every set makes.
        sets: all of them where `low` is None, else independent draws.
        low: changes of all sets of one and of two (`low_sets`). Their part in every set is known, so that only what is left of
            the drawn ones has the error of a sample.
    """
    m, n = sets.shape
    distance = np.abs(sets[:, None] - sets[None]).sum(-1)
    weights = _pair_weights(m, exact=low is None)

    def orders(gram: Float[np.ndarray, "m m"]) -> Float[np.ndarray, " orders"]:
        return np.array([(krawtchouk(distance, n, k) * gram * weights).sum() for k in range(1, ORDERS + 1)])

    if low is None:
        total = float((values**2).sum() / m - (values.mean(0) ** 2).sum())
        return Energies(total - np.cumsum(orders(values @ values.T)), total)
    pairs = low_sets(n)[n:]
    one, two = low[:n], low[n:] - pairs @ low[:n]
    signs = 2.0 * sets - 1.0
    both = np.stack([signs[:, row > 0].prod(1) for row in pairs], axis=1)
    known = (one / 2 + pairs.T @ two / 4, two / 4)  # Walsh coefficients of what is known: w = (1 + chi) / 2
    rest = values - sets @ one - (sets @ pairs.T == 2) @ two
    cross = [2 * float(((chi @ c) * rest).sum() / m) for chi, c in zip((signs, both), known, strict=True)]
    energy = [float((c**2).sum()) + x for c, x in zip(known, cross, strict=True)]
    spread = float(((rest - rest.mean(0)) ** 2).sum() / (m - 1))
    left = spread - np.cumsum(orders(rest @ rest.T))
    return Energies(left + np.array([energy[1], 0.0]), sum(energy) + spread)


def low_sets(n: int) -> Int[np.ndarray, "low n"]:
    """All sets of one push, then all of two."""
    pairs = [[k in some for k in range(n)] for some in combinations(range(n), 2)]
    return np.concatenate([np.eye(n, dtype=np.int64), np.array(pairs, dtype=np.int64).reshape(-1, n)])


def _pair_weights(m: int, *, exact: bool) -> Float[np.ndarray, "m m"]:
    """Of the mean over pairs of sets: all of them, or those of two independent draws."""
    return np.full((m, m), 1 / m**2) if exact else (1 - np.eye(m)) / (m * (m - 1))


def pool_energies(
    bench: JointBench,
    lengths: Float[np.ndarray, " n_all"],
    places: Sequence[int],
    sets: Int[np.ndarray, "m n"],
    basis: Float[np.ndarray, "n n"],
) -> dict[str, Energies]:
    """Energies of one pool on one prompt, by part of the change.

    Args:
        bench: the prompt with all directions.
        lengths: of all directions.
        places: of the pool among them.
        sets: of the pool.
        basis: rows mix the pool's pushes; the identity for the pushes themselves.
    """
    m, n = sets.shape
    every = sets if n <= EXACT else np.concatenate([sets, low_sets(n)])
    rows = np.zeros((len(every), len(lengths)))
    rows[:, list(places)] = every @ basis * lengths[list(places)]
    changes = bench.changes(rows)
    seen = {part: changes.part(part) for part in PARTS}
    return {part: energies(z[:m], sets, z[m:] if n > EXACT else None) for part, z in seen.items()}


def sum_preserving(n: int, rng: np.random.Generator) -> Float[np.ndarray, "n n"]:
    """A random rotation that leaves the sum of all pushes what it is: other coordinates of the same span."""
    from polysem.seeds import random_rotation

    ones = np.ones((n, 1)) / np.sqrt(n)
    basis = np.concatenate([ones, np.linalg.svd(ones.T)[2][1:].T], axis=1)
    inner = np.eye(n)
    inner[1:, 1:] = random_rotation(n - 1, rng)
    return basis @ inner @ basis.T


@dataclass(frozen=True)
class SizesSeen:
    """Random sets of one size on one prompt."""

    missed: Float[np.ndarray, "parts draws"]
    """squared length of what the sum of single effects does not say"""
    moved: Float[np.ndarray, "parts draws"]
    """squared length of the change"""
    kl: Float[np.ndarray, " draws"]
    singles: Float[np.ndarray, " draws"]
    """sum of the KL of the pushes alone, nats"""
    kept: Float[np.ndarray, " draws"]


def sizes_seen(
    bench: JointBench, lengths: Float[np.ndarray, " n"], drawn: Sequence[Int[np.ndarray, "draws _"]]
) -> list[SizesSeen]:
    """Random sets of each size, beside the sums of their parts."""
    alone = bench.changes(np.diag(lengths))
    found = []
    for sets in drawn:
        inside = np.zeros((len(sets), len(lengths)))
        np.put_along_axis(inside, sets, 1.0, axis=1)
        seen = bench.changes(inside * lengths)
        missed = [((seen.part(p) - inside @ alone.part(p)) ** 2).sum(1) for p in PARTS]
        moved = [(seen.part(p) ** 2).sum(1) for p in PARTS]
        found.append(
            SizesSeen(
                np.stack(missed),
                np.stack(moved),
                seen.kl,
                inside @ alone.kl,
                seen.kept.astype(np.float64),
            )
        )
    return found
