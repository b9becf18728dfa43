"""Which feature of one model is which of another: activations on the same text, aligned by characters.

Two tokenizers cut a text at different places. Between two places where both cut lies a segment; a feature's
activation on a segment is its largest on the tokens in it. With equal tokenizers segments are tokens. Features are
matched when each is the other's most correlated one over all segments, and the correlation is at least `min_r`
(after Lan et al., arXiv 2410.06981). Cost: one sparse product; memory: a block of columns times the other model's
features.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from polysem.errors import MismatchError
from polysem.transfer.source import SourceModel

BLOCK = 1024
"""features of the first model at a time"""
MIN_ACTIVE = 10
"""segments on which both features must be active: with fewer, large correlations come by chance"""


@dataclass(frozen=True)
class Matching:
    """Matched features, by rising number in the first model."""

    a: Int[np.ndarray, " m"]
    b: Int[np.ndarray, " m"]
    r: Float[np.ndarray, " m"]
    """correlation of activations over segments"""
    n_segments: int

    @property
    def m(self) -> int:
        return len(self.a)


def segments(
    ends_a: Int[np.ndarray, " tokens_a"], ends_b: Int[np.ndarray, " tokens_b"]
) -> tuple[Int[np.ndarray, " tokens_a"], Int[np.ndarray, " tokens_b"], int]:
    """The segment of every token of two tokenizations of one text, and how many segments there are.

    Args:
        ends_a: where each token ends, in characters, never falling; tokens that end inside one character (parts
            of its bytes) have equal ends.
        ends_b: the same of the other tokenizer.

    Tokens after the last common end get the number of segments, which is no segment: leave them out.
    """
    common = np.intersect1d(ends_a, ends_b)
    return np.searchsorted(common, ends_a), np.searchsorted(common, ends_b), len(common)


def max_by_segment(
    acts: sparse.csr_matrix, segment: Int[np.ndarray, " tokens"], n_segments: int
) -> sparse.csr_matrix:
    """Activations [n_segments d_sae]: the largest over the tokens of each segment.

    Args:
        acts: [tokens d_sae], not negative.
        segment: of each token; tokens of a number >= n_segments are left out.
        n_segments: rows of the result.
    """
    coo = acts.tocoo()
    rows, kept = segment[coo.row], segment[coo.row] < n_segments
    rows, columns, values = rows[kept], coo.col[kept], coo.data[kept]
    order = np.lexsort((values, columns, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    last = np.ones(len(rows), dtype=bool)
    last[:-1] = (rows[1:] != rows[:-1]) | (columns[1:] != columns[:-1])
    shape = (n_segments, _shape(acts)[1])
    return sparse.csr_matrix((values[last], (rows[last], columns[last])), shape=shape)


def match_features(
    acts_a: sparse.csr_matrix, acts_b: sparse.csr_matrix, *, min_r: float = 0.5, min_active: int = MIN_ACTIVE
) -> Matching:
    """Mutual nearest neighbours by correlation of activations.

    Args:
        acts_a: [segments d_sae_a], not negative.
        acts_b: [segments d_sae_b], on the same segments.
        min_r: least correlation.
        min_active: segments on which a feature must be active to take part.

    Raises:
        MismatchError: if the numbers of segments differ, or there are none.
    """
    n, n_b = _shape(acts_a)[0], _shape(acts_b)[0]
    if n != n_b or not n:
        raise MismatchError(
            f"activations on {n} and {n_b} segments; expected the same, at least one",
            hint="align both on the same text first: transfer.matching.segments",
        )
    live_a, live_b = (np.flatnonzero(n_active(acts) >= min_active) for acts in (acts_a, acts_b))
    x, y = (_standard(acts[:, live]) for acts, live in ((acts_a, live_a), (acts_b, live_b)))
    best_of_b = np.full(len(live_b), -np.inf)
    partner_of_b = np.full(len(live_b), -1)
    best_of_a = np.full(len(live_a), -np.inf)
    partner_of_a = np.full(len(live_a), -1)
    for start in range(0, len(live_a) if len(live_b) else 0, BLOCK):
        block = slice(start, min(start + BLOCK, len(live_a)))
        r = _correlations(x, y, block, n)
        partner_of_a[block] = r.argmax(axis=1)
        best_of_a[block] = r.max(axis=1)
        top, at = r.max(axis=0), r.argmax(axis=0)
        better = top > best_of_b
        best_of_b[better], partner_of_b[better] = top[better], at[better] + start
    index = np.arange(len(live_a))
    found = partner_of_a >= 0
    mutual = np.zeros(len(live_a), dtype=bool)
    mutual[found] = (partner_of_b[partner_of_a[found]] == index[found]) & (best_of_a[found] >= min_r)
    b = live_b[partner_of_a[mutual]].astype(np.int64)
    return Matching(live_a[mutual].astype(np.int64), b, np.minimum(best_of_a[mutual], 1.0), n)


def match_sources(a: SourceModel, b: SourceModel, *, min_r: float, min_active: int) -> Matching:
    """`match_features` of two models that were seen on one text."""
    in_a, in_b, n = segments(a.ends, b.ends)
    return match_features(
        max_by_segment(a.acts, in_a, n), max_by_segment(b.acts, in_b, n), min_r=min_r, min_active=min_active
    )


@dataclass(frozen=True)
class _Columns:
    """Activations with the moments of their columns."""

    acts: sparse.csc_matrix
    mean: Float[np.ndarray, " d"]
    sd: Float[np.ndarray, " d"]


def _standard(acts: sparse.csr_matrix) -> _Columns:
    wide = acts.astype(np.float64).tocsc()
    mean = np.asarray(wide.mean(axis=0)).ravel()
    second = np.asarray(wide.multiply(wide).mean(axis=0)).ravel()
    sd = np.sqrt(np.maximum(second - mean**2, 0.0))
    # A constant column correlates with nothing.
    return _Columns(wide, mean, np.where(sd > 0, sd, np.inf))


def _correlations(x: _Columns, y: _Columns, block: slice, n: int) -> Float[np.ndarray, "block d_b"]:
    product = np.asarray((x.acts[:, block].T @ y.acts).todense()) / n
    return (product - np.outer(x.mean[block], y.mean)) / np.outer(x.sd[block], y.sd)


def _shape(acts: Any) -> tuple[int, int]:
    return acts.shape


def n_active(acts: sparse.csr_matrix) -> Int[np.ndarray, " d"]:
    """Rows on which each column is above zero."""
    return np.asarray(sparse.csr_matrix(acts > 0).sum(axis=0)).ravel()
