"""Several concepts in one feature: clusters of its contexts, after PRISM (arXiv 2506.15538).

Contexts are embedded and grouped by k-means, begun at Ward's clusters, k from 2 to 5 by the mean silhouette. One concept
is what no grouping beats: the best silhouette must exceed 99 % of those of as many contexts of as many features, each
less its feature's mean: contexts as they are, without groups. (A normal distribution of the feature's own spread, the
null of SigClust, found nothing in a dozen contexts: a dozen say too little of the spread of 384 numbers.) The score of
polysemanticity is 1 less the mean cosine between the concepts' mean vectors, 0 for one concept. Cost: a grouping of every
feature, and `DRAWS` for every number of contexts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from polysem.glosses.similarity import ByEmbedder, Item
from polysem.seeds import rng_for

MOST = 5
"""concepts that are looked for"""
DRAWS = 499
"""of contexts without groups"""
LEVEL = 0.99
"""of draws; with 0.98 of 199 draws 5.1 % of planted features of one concept counted as several (1 to 11 % with eight pools), with
this 2.6 % (1 to 5 %)"""
LEAST = 20
"""features from which contexts without groups can be drawn"""
_STEPS = 10


class Concepts(NamedTuple):
    """What the contexts of one feature are about."""

    labels: Int[np.ndarray, " n"]
    """concept of every context, the one with the most contexts first"""
    centroids: Float[np.ndarray, "k d"]
    """mean vectors, of length 1"""
    silhouette: float
    """of the best grouping into 2 or more; NaN where there are too few contexts for one"""
    limit: float
    """what it had to exceed; NaN where that is not known, and one concept is assumed"""

    @property
    def k(self) -> int:
        return len(self.centroids)

    @property
    def score(self) -> float:
        """1 - mean cosine between concepts; 0 for one."""
        if self.k < 2:
            return 0.0
        cosines = self.centroids @ self.centroids.T
        return float(1 - cosines[np.triu_indices(self.k, 1)].mean())


class Groupless:
    """Contexts without groups: of every feature of a pool, its contexts less the mean of their concept.

    At first every feature is taken for one concept; then those that exceed all draws are split, so that their several
    concepts do not pass for the spread of one.
    """

    def __init__(self, pool: Sequence[Float[np.ndarray, "_ d"]]):
        pool = [rows for rows in pool if len(rows) > 1]
        grouped = [_grouped(rows) for rows in pool] if len(pool) >= LEAST else []
        flat = [np.zeros(len(rows), dtype=np.int64) for rows in pool]
        self._drawn: dict[int, np.ndarray] = {}
        self._left = [_less_means(rows, labels) for rows, labels in zip(pool, flat, strict=True)]
        if grouped:
            split = [
                labels if best > self.limit(len(rows), level=1.0) else one
                for rows, (labels, best), one in zip(pool, grouped, flat, strict=True)
            ]
            self._left = [_less_means(rows, labels) for rows, labels in zip(pool, split, strict=True)]
            self._drawn = {}

    def limit(self, n: int, *, level: float = LEVEL) -> float:
        """What the silhouette of the best grouping of `n` of them stays under in a share of draws; NaN from a small
        pool."""
        if len(self._left) < LEAST:
            return float("nan")
        if n not in self._drawn:
            rng = rng_for(0, "groupless", n)
            self._drawn[n] = np.nan_to_num([_grouped(self._draw(n, rng))[1] for _ in range(DRAWS)], nan=-1.0)
        return float(np.quantile(self._drawn[n], level))

    def _draw(self, n: int, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
        """Contexts of `n` different features, or of all as often as need be."""
        turns = -(-n // len(self._left))
        features = np.concatenate([rng.permutation(len(self._left)) for _ in range(turns)])[:n]
        return np.stack([self._left[f][rng.integers(len(self._left[f]))] for f in features])


def _less_means(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rows less the mean of their group, as long as they were about its true centre."""
    k = int(labels.max()) + 1
    means = np.stack([rows[labels == c].mean(axis=0) for c in range(k)])
    return (rows - means[labels]) * np.sqrt(len(rows) / max(len(rows) - k, 1))


def concepts_of(vectors: Float[np.ndarray, "n d"], groupless: Groupless) -> Concepts:
    """The concepts of one feature; the same vectors give the same ones.

    Args:
        vectors: of its contexts, of length 1, at least one.
        groupless: what contexts without groups are like.
    """
    labels, best = _grouped(vectors)
    limit = groupless.limit(len(vectors)) if np.isfinite(best) else float("nan")
    if not best > limit:
        labels = np.zeros(len(vectors), dtype=np.int64)
    order = np.argsort(-np.bincount(labels), kind="stable")
    labels = np.argsort(order)[labels]
    means = np.stack([vectors[labels == c].mean(axis=0) for c in range(len(order))]).astype(np.float64)
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    return Concepts(labels, means / np.where(norms > 0, norms, 1.0), best, limit)


def _grouped(points: Float[np.ndarray, "n d"]) -> tuple[Int[np.ndarray, " n"], float]:
    """The grouping with the best silhouette, and that; one group and NaN where none can be made."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist, squareform

    n = len(points)
    one = np.zeros(n, dtype=np.int64)
    if n < 4:
        return one, float("nan")
    apart = pdist(points)
    if not apart.any():
        return one, float("nan")
    distance, tree = squareform(apart), linkage(points, "ward")
    best = one, float("nan")
    for k in range(2, min(MOST, n // 2) + 1):
        labels = _k_means(points, fcluster(tree, k, "maxclust") - 1)
        value = _silhouette(distance, labels)
        if np.isfinite(value) and not value <= best[1]:
            best = labels, value
    return best


def _k_means(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Lloyd's steps from a grouping; groups that empty are dropped."""
    for _ in range(_STEPS):
        labels = np.unique(labels, return_inverse=True)[1]
        means = np.stack([points[labels == c].mean(axis=0) for c in range(labels.max() + 1)])
        new = ((points[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
        if np.array_equal(new, labels):
            break
        labels = new
    return np.unique(labels, return_inverse=True)[1]


def _silhouette(distance: np.ndarray, labels: np.ndarray) -> float:
    """Mean of (nearest other group - own) / the larger, 0 for a group of one (Rousseeuw 1987); NaN for one group."""
    member = (labels[:, None] == np.arange(labels.max() + 1)).astype(np.float64)
    size = member.sum(axis=0)
    if len(size) < 2:
        return float("nan")
    total = distance @ member
    own = size[labels]
    inner = np.divide(total[member > 0], own - 1, out=np.zeros(len(labels)), where=own > 1)
    outer = np.where(member > 0, np.inf, total / size).min(axis=1)
    larger = np.maximum(inner, outer)
    value = np.divide(outer - inner, larger, out=np.zeros(len(labels)), where=(larger > 0) & (own > 1))
    return float(value.mean())


class Senses:
    """Features by the nearest two of their concepts. The features of the first comparison are the pool of `Groupless`."""

    def __init__(self, embedder: str):
        self._texts = ByEmbedder(embedder)
        self._groupless = Groupless(())
        self._found: dict[tuple[str, ...], Concepts | None] = {}

    @property
    def source(self) -> str:
        """The embedder of the contexts."""
        return f"clusters of contexts, {self._texts.source}"

    def _vectors(self, contexts: Item) -> Float[np.ndarray, "n d"] | None:
        known = self._texts.vectors(contexts)
        rows = [known[text] for text in contexts if text in known]
        return np.stack(rows) if rows else None

    def concepts(self, contexts: Item) -> Concepts | None:
        """The concepts of a feature's contexts; None without any."""
        key = tuple(contexts)
        if key not in self._found:
            vectors = self._vectors(key)
            self._found[key] = None if vectors is None else concepts_of(vectors, self._groupless)
        return self._found[key]

    def between(self, left: Item, right: Item) -> Float[np.ndarray, "k_left k_right"] | None:
        """Cosines between the concepts of two features, the largest concepts first; None where either has none."""
        a, b = self.concepts(left), self.concepts(right)
        return None if a is None or b is None else a.centroids @ b.centroids.T

    def compare(self, left: Sequence[Item], right: Sequence[Item]) -> Float[np.ndarray, " n"]:
        """The largest cosine between concepts."""
        items = list(dict.fromkeys(tuple(item) for item in (*left, *right)))
        self._texts.vectors([text for item in items for text in item])  # all in one go
        if not self._found:
            pool = (self._vectors(item) for item in items)
            self._groupless = Groupless([rows for rows in pool if rows is not None])
        found = [self.between(a, b) for a, b in zip(left, right, strict=True)]
        return np.array([np.nan if f is None else f.max() for f in found], dtype=np.float64)
