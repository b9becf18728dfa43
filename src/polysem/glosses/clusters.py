"""Clusters of glosses: agglomerative, average linkage on cosine similarity, exact, without an N x N array.

For unit vectors the mean similarity between the members of two clusters is the dot product of the clusters'
mean vectors, so a cluster is one vector. Average linkage is reducible: merging two clusters that are each
other's nearest neighbour brings the result no nearer to any other cluster. Therefore all such pairs may be
merged at once, in rounds, and the tree is the one that merging strictly by similarity gives; a cluster whose
nearest neighbour is below the lowest cut never merges and is left aside.

Memory O(N d) and one tile; time about two all-pairs products, O(N^2 d), in matrix multiplications. The
linkage that the paper used is not stated (protocol 2.2).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from polysem.errors import ConfigError

_TILE_ROWS = 512


def gloss_clusters(
    embeddings: Float[np.ndarray, "n d"], cuts: Sequence[float] = (0.40, 0.30, 0.20, 0.15)
) -> dict[float, Int[np.ndarray, " n"]]:
    """Cluster numbers of every row at every cut.

    Args:
        embeddings: one vector per feature, of any length; rows of zeros are features without a gloss.
        cuts: cosine similarities; clusters merge while their mean similarity is at least the cut.

    Returns:
        For every cut an int32 array: clusters are numbered 0, 1, ... by their smallest member; -1 for rows
        of zeros.

    Raises:
        ConfigError: a cut outside (-1, 1], or embeddings that are not finite.
    """
    if not cuts or any(not -1 < cut <= 1 for cut in cuts):
        raise ConfigError(f"cuts must be similarities in (-1, 1], got {tuple(cuts)}")
    wide = np.asarray(embeddings, dtype=np.float64)
    if not np.isfinite(wide).all():
        raise ConfigError("embeddings of glosses hold numbers that are not finite")
    norms = np.linalg.norm(wide, axis=1)
    present = np.flatnonzero(norms > 0)
    unit = wide[present] / norms[present, None]
    merges = average_linkage(unit, lowest=min(cuts)) if present.size else []
    result = {}
    for cut in cuts:
        labels = np.full(len(wide), -1, dtype=np.int32)
        labels[present] = _labels(len(present), [(a, b) for a, b, similarity in merges if similarity >= cut])
        result[cut] = labels
    return result


def average_linkage(unit: Float[np.ndarray, "n d"], *, lowest: float) -> list[tuple[int, int, float]]:
    """All merges at a similarity of at least `lowest`.

    Args:
        unit: rows of length 1.
        lowest: merges below this similarity are not looked for.

    Returns:
        (a, b, similarity): a member of each of the two clusters that merge, and their mean similarity. A
        list in the order of rounds, not of similarities.
    """
    clusters = _Clusters(unit)
    merges: list[tuple[int, int, float]] = []
    alive = np.arange(len(unit))
    clusters.refresh(alive, alive)
    while alive.size > 1:
        alive = alive[clusters.similarity[alive] >= lowest]
        pairs = clusters.reciprocal_pairs(alive)
        if not pairs:
            break
        merges += [(a, b, float(clusters.similarity[a])) for a, b in pairs]
        alive = clusters.merge(pairs, alive)
    return merges


class _Clusters:
    """Mean vectors, sizes and nearest neighbours; a cluster lives on under its smaller index."""

    def __init__(self, unit: np.ndarray):
        self.means = unit.copy()
        self.sizes = np.ones(len(unit))
        self.nearest = np.full(len(unit), -1, dtype=np.int64)
        self.similarity = np.full(len(unit), -np.inf)

    def refresh(self, rows: np.ndarray, alive: np.ndarray) -> None:
        """Looks up the nearest living neighbour of `rows`; of equally near ones the smallest index."""
        means = self.means[alive]
        for first in range(0, len(rows), _TILE_ROWS):
            tile = rows[first : first + _TILE_ROWS]
            products = self.means[tile] @ means.T
            products[tile[:, None] == alive[None, :]] = -np.inf
            best = products.argmax(axis=1)
            self.nearest[tile] = alive[best]
            self.similarity[tile] = products[np.arange(len(tile)), best]

    def reciprocal_pairs(self, alive: np.ndarray) -> list[tuple[int, int]]:
        """Pairs a < b of mutual nearest neighbours; the nearest pair of all where rounding left none."""
        if not alive.size:
            return []
        mutual = alive[self.nearest[self.nearest[alive]] == alive]
        pairs = [(int(a), int(self.nearest[a])) for a in mutual if a < self.nearest[a]]
        if not pairs:
            a = int(alive[self.similarity[alive].argmax()])
            pairs = [(min(a, int(self.nearest[a])), max(a, int(self.nearest[a])))]
        return pairs

    def merge(self, pairs: list[tuple[int, int]], alive: np.ndarray) -> np.ndarray:
        """Merges the pairs, looks up neighbours where that changed them, and returns the living clusters."""
        a, b = (np.array(side) for side in zip(*pairs, strict=True))
        total = self.sizes[a] + self.sizes[b]
        self.means[a] = (self.means[a] * self.sizes[a, None] + self.means[b] * self.sizes[b, None]) / total[
            :, None
        ]
        self.sizes[a] = total
        gone = np.zeros(len(self.means), dtype=bool)
        touched = gone.copy()
        gone[b] = True
        touched[a] = touched[b] = True
        alive = alive[~gone[alive]]
        # A neighbour that did not merge is still the nearest: by reducibility no merged cluster came nearer.
        self.refresh(alive[touched[alive] | touched[self.nearest[alive]]], alive)
        return alive


def _labels(n: int, merges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Cluster numbers by smallest member, from pairs of members that belong together."""
    parent = list(range(n))

    def root(member: int) -> int:
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    for a, b in merges:
        first, second = sorted((root(a), root(b)))
        parent[second] = first
    roots = np.array([root(member) for member in range(n)], dtype=np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int32)
