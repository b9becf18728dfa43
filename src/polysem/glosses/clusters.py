"""Clusters of glosses: agglomerative, average linkage on cosine similarity, exact, without an N x N array.

For unit vectors the mean similarity between the members of two clusters is the dot product of the clusters'
mean vectors, so a cluster is one vector. Average linkage is reducible: the similarity of x to a union is a mean
of its similarities to the parts, so no merge brings anything nearer to x than it was. Therefore all pairs of
mutual nearest neighbours may be merged at once, in rounds, and the tree is the one that merging strictly by
similarity gives; and therefore a bound on similarities that held before a merge holds after it (`_Clusters`).

Equal vectors are one cluster from the start. Of the others, one pass of float32 products finds the nearest few
of each, float64 products decide among them, and a cluster is compared with all others again only when nothing on
its list is provably nearest. Memory O(N d) and one tile; time about one product of all pairs, O(N^2 d), in float32.
The linkage that the paper used is not stated (protocol 2.2).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from polysem.errors import ConfigError

_TILE = 1 << 22
"""products that are in memory at a time"""
_LISTED = 16
"""near clusters that each cluster remembers"""
_GROUPS = 8 * _LISTED
"""groups of columns whose maxima bound the largest products of a row from below"""
_CONTENDERS = 64
"""clusters a row, on average, between which float32 does not decide, up to which they are looked at one by one"""
_ROUNDING = 1e-12
"""far above the error of float64 dot products and weighted means of unit vectors, far below any difference that
means something"""


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
    first, place = _distinct(unit)
    merges = [(int(first[k]), n, 1.0) for n, k in enumerate(place.tolist()) if first[k] != n]
    clusters = _Clusters(unit[first], np.bincount(place), lowest=lowest)
    alive = np.arange(len(first))
    clusters.refresh(alive, alive)
    while alive.size > 1:
        alive = alive[clusters.similarity[alive] >= lowest]
        pairs = clusters.reciprocal_pairs(alive)
        if not pairs:
            break
        merges += [(int(first[a]), int(first[b]), float(clusters.similarity[a])) for a, b in pairs]
        alive = clusters.merge(pairs, alive)
    return merges


def _distinct(unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first row of each distinct vector, in the order of rows; number of the vector of every row)."""
    seen: dict[bytes, int] = {}
    # + 0.0 makes -0.0 and 0.0 the same bytes.
    place = np.array([seen.setdefault((row + 0.0).tobytes(), len(seen)) for row in unit], dtype=np.int64)
    return np.unique(place, return_index=True)[1], place


class _Clusters:
    """Mean vectors, sizes and nearest neighbours; a cluster lives on under its smaller index.

    Every living cluster x has a list of near ones. Its contract: each other living cluster y is either on the list,
    with similarity(x, y) at most the largest ceiling of the entries that name y, or is not, with similarity(x, y)
    at most rest[x]. A ceiling is the similarity itself where the entry is settled. So a settled entry above all
    other ceilings and above rest[x] is the nearest neighbour, and x need not be compared with all the others.

    A merge of a and b keeps the contract: for x their union is no nearer than the nearer of the two, so the union
    takes over their entries with the ceiling max(ceiling, rest[x]); and for the union itself, what was on neither
    list is at most as near as the mean of the two rests, weighted by size.
    """

    def __init__(self, unit: np.ndarray, sizes: np.ndarray, *, lowest: float):
        n, d = unit.shape
        self.lowest = lowest
        # |fl(x . y) - x . y| <= (d + 3) 2^-24 |x||y| to first order, whatever the order of summation and with
        # x and y rounded to float32 first (Higham 2002, section 3.1); twice that covers the higher orders, and
        # thresholds rounded to float32.
        self.margin = (d + 3) * 2.0**-23
        self.means = unit.copy()
        self.narrow = unit.astype(np.float32)
        self.sizes = sizes.astype(np.float64)
        self.nearest = np.arange(n)
        self.similarity = np.full(n, -np.inf)
        self.listed = np.full((n, _LISTED), n, dtype=np.int32)  # n: no entry
        self.ceiling = np.full((n, _LISTED), -np.inf)
        self.settled = np.zeros((n, _LISTED), dtype=bool)
        self.rest = np.full(n, np.inf)

    def refresh(self, rows: np.ndarray, alive: np.ndarray) -> None:
        """Finds the nearest living neighbour of `rows`; of equally near ones the smallest index. Rows without a
        neighbour at `lowest` or above get the similarity -inf."""
        unknown = []
        while rows.size:
            # An open entry of the same ceiling as a settled one goes first.
            key = self.ceiling[rows] + np.where(self.settled[rows], 0.0, _ROUNDING)
            best = key.argmax(axis=1)
            top, rest = key[np.arange(len(rows)), best], self.rest[rows]
            far = np.maximum(top, rest) < self.lowest - _ROUNDING
            hidden = ~far & (top <= rest + _ROUNDING)
            settled = self.settled[rows, best]
            done = ~far & ~hidden & settled
            self.similarity[rows[far]] = -np.inf
            self.similarity[rows[done]] = top[done]
            tied = np.where(key[done] == top[done, None], self.listed[rows[done]], len(self.means))
            self.nearest[rows[done]] = tied.min(axis=1)
            unknown.append(rows[hidden])
            going = ~far & ~hidden & ~settled
            rows, best = rows[going], best[going]
            self._settle(rows, self.listed[rows, best])
        if unknown:
            self._scan(np.sort(np.concatenate(unknown)), alive)

    def _settle(self, rows: np.ndarray, others: np.ndarray) -> None:
        """Puts the similarity into all entries of `rows` that name `others`."""
        value = self._dots(rows, others)
        row, entry = np.nonzero(self.listed[rows] == others[:, None])
        self.ceiling[rows[row], entry] = value[row]
        self.settled[rows[row], entry] = True

    def _dots(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Similarities of pairs: the same number for (x, y) and (y, x), whatever else is asked for."""
        value = np.empty(len(rows))
        step = max(1, _TILE // self.means.shape[1])
        for k in range(0, len(rows), step):
            x, y = self.means[rows[k : k + step]], self.means[others[k : k + step]]
            value[k : k + step] = np.einsum("nd,nd->n", x, y)
        return value

    def _scan(self, rows: np.ndarray, alive: np.ndarray) -> None:
        """Compares `rows` with all living clusters: new lists, and the nearest neighbour."""
        narrow = self.narrow[alive]
        step = max(1, _TILE // max(1, alive.size))
        for k in range(0, len(rows), step):
            tile = rows[k : k + step]
            products = self.narrow[tile] @ narrow.T
            products[np.arange(len(tile)), np.searchsorted(alive, tile)] = -np.inf
            self._read(tile, alive, products)

    def _read(self, tile: np.ndarray, alive: np.ndarray, products: np.ndarray) -> None:
        """Lists and nearest neighbours of the rows of a tile from its float32 products."""
        floor, top = _floors(products)
        # What may be nearest is always kept; what is below every cut is not.
        floor = np.maximum(np.minimum(floor, top - 2 * self.margin), self.lowest - 2 * self.margin)
        flat = np.flatnonzero(products >= floor[:, None].astype(np.float32))
        row, column = np.divmod(flat, products.shape[1])
        value = products.ravel()[flat].astype(np.float64)
        contender = value >= (top - 2 * self.margin)[row]
        if np.count_nonzero(contender) <= _CONTENDERS * len(tile):
            self._decide(tile, row[contender], alive[column[contender]])
        else:
            self._decide_all(tile, alive)
        order = np.lexsort((column, -value, row))
        row, column, value = row[order], column[order], value[order]
        starts = np.searchsorted(row, np.arange(len(tile) + 1))
        rank = np.arange(len(row)) - starts[row]
        kept = rank < _LISTED
        self.listed[tile] = len(self.means)
        self.ceiling[tile] = -np.inf
        self.settled[tile] = False
        self.listed[tile[row[kept]], rank[kept]] = alive[column[kept]]
        self.ceiling[tile[row[kept]], rank[kept]] = value[kept] + self.margin
        # The largest product that is on no list.
        dropped = rank == _LISTED
        floor[row[dropped]] = value[dropped]
        self.rest[tile] = floor + self.margin

    def _decide(self, tile: np.ndarray, row: np.ndarray, others: np.ndarray) -> None:
        """The nearest of each row's contenders (ordered by row, then index), by float64 products."""
        self.similarity[tile] = -np.inf
        value = self._dots(tile[row], others)
        order = np.lexsort((others, -value, row))
        found, first = np.unique(row[order], return_index=True)
        self.nearest[tile[found]] = others[order][first]
        self.similarity[tile[found]] = value[order][first]

    def _decide_all(self, tile: np.ndarray, alive: np.ndarray) -> None:
        """The nearest of all, where float32 tells too few apart: one float64 product is then faster."""
        products = self.means[tile] @ self.means[alive].T
        products[np.arange(len(tile)), np.searchsorted(alive, tile)] = -np.inf
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
        share = self.sizes[a] / total
        both = self.means[a] * self.sizes[a, None] + self.means[b] * self.sizes[b, None]
        self.means[a] = both / total[:, None]
        self.narrow[a] = self.means[a]
        self.sizes[a] = total
        owner = np.arange(len(self.means) + 1, dtype=np.int32)
        owner[b] = a
        touched = np.zeros(len(self.means) + 1, dtype=bool)
        touched[a] = touched[b] = True
        alive = alive[owner[alive] == alive]
        bystanders = alive[~touched[alive]]
        row, entry = np.nonzero(touched[self.listed[bystanders]])
        row = bystanders[row]
        self.listed[row, entry] = owner[self.listed[row, entry]]
        self.ceiling[row, entry] = np.maximum(self.ceiling[row, entry], self.rest[row])
        self.settled[row, entry] = False
        self._join_lists(a, b, share, owner)
        # A neighbour that did not merge is still the nearest: by reducibility no merged cluster came nearer.
        self.refresh(alive[touched[alive] | touched[self.nearest[alive]]], alive)
        return alive

    def _join_lists(self, a: np.ndarray, b: np.ndarray, share: np.ndarray, owner: np.ndarray) -> None:
        """The lists of the unions of `a` and `b`, which live on as `a`: both lists, settled, and the nearest kept."""
        none = len(self.means)
        step = max(1, _TILE // (2 * _LISTED))
        self.rest[a] = share * self.rest[a] + (1 - share) * self.rest[b]
        for k in range(0, len(a), step):
            own = a[k : k + step]
            both = owner[np.concatenate([self.listed[own], self.listed[b[k : k + step]]], axis=1)]
            both[both == own[:, None]] = none
            both.sort(axis=1)
            both[:, 1:][both[:, 1:] == both[:, :-1]] = none
            row, entry = np.nonzero(both < none)
            value = np.full(both.shape, -np.inf)
            value[row, entry] = self._dots(own[row], both[row, entry])
            order = np.argsort(-value, axis=1, kind="stable")[:, : _LISTED + 1]
            best = np.take_along_axis(value, order, axis=1)
            self.listed[own] = np.take_along_axis(both, order[:, :_LISTED], axis=1)
            self.ceiling[own] = best[:, :_LISTED]
            self.settled[own] = self.listed[own] < none
            self.rest[own] = np.maximum(self.rest[own], best[:, _LISTED])


def _floors(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(at most the largest product of each row that its list has no room for, the largest of all), float64.

    The largest products of disjoint groups of columns are as many products of the row.
    """
    width = products.shape[1]
    if width <= _GROUPS:
        largest = products
    else:
        largest = products[:, :_GROUPS].copy()
        for k in range(_GROUPS, width, _GROUPS):
            part = products[:, k : k + _GROUPS]
            np.maximum(largest[:, : part.shape[1]], part, out=largest[:, : part.shape[1]])
    kth = max(largest.shape[1] - 1 - _LISTED, 0)
    ordered = np.partition(largest, kth, axis=1)
    return ordered[:, kth].astype(np.float64), largest.max(axis=1).astype(np.float64)


def _labels(n: int, merges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Cluster numbers by smallest member, from pairs of members that belong together."""
    a, b = np.array(merges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(n, n))
    found = connected_components(graph, directed=False)[1]
    _, first, place = np.unique(found, return_index=True, return_inverse=True)
    return first.argsort().argsort()[place].astype(np.int32)
