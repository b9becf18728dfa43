"""Rank correlation of two orders of tokens: the right one, and the paper's.

The right one correlates ranks: token t's place in one order with its place in the other. The code released with
arXiv 2505.11611 correlates the two *lists of token ids* in those orders instead, which asks whether the id at
place k of one list resembles the id at place k of the other: swapping neighbours, which leaves the order all but
the same, destroys it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def rank_correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Spearman correlation of two scores of the same tokens, in [-1, 1]; ties get their mean rank; nan if
    either does not vary."""
    from scipy.stats import rankdata

    return _pearson(rankdata(a), rankdata(b))


def id_list_correlation(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """The paper's: Spearman correlation of the token ids listed by falling `a` with those listed by falling `b`.

    Not a rank correlation of tokens. Kept so that the paper's numbers can be made again.
    """
    first, second = (np.argsort(-values, kind="stable").astype(np.float64) for values in (a, b))
    return _pearson(first, second)


class SetRanks:
    """Both correlations of many rows of logits with the similarity to many target sets, as matrix products."""

    def __init__(self, similarity: Float[Tensor, "n_sets d_vocab"]):
        from scipy.stats import rankdata

        values = similarity.numpy()
        self._ranks = _standard(np.stack([rankdata(row) for row in values]))
        self._ids = _standard(np.argsort(-values, axis=1, kind="stable").astype(np.float64))

    def of(
        self, logits: Float[Tensor, "rows d_vocab"], sets: Sequence[int]
    ) -> tuple[Float[np.ndarray, "rows n_sets"], Float[np.ndarray, "rows n_sets"]]:
        """(rank correlation, the paper's) of every row with the chosen sets; rows are taken to have no ties."""
        order = torch.argsort(logits, dim=-1, descending=True, stable=True).numpy()
        n = order.shape[1]
        ranks = np.empty(order.shape)
        np.put_along_axis(ranks, order, np.broadcast_to(np.arange(n, 0, -1.0), order.shape), axis=1)
        chosen = list(sets)
        return (
            _standard(ranks) @ self._ranks[chosen].T,
            _standard(order.astype(np.float64)) @ self._ids[chosen].T,
        )


def _standard(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, norms, out=np.full_like(centred, np.nan), where=norms > 0)


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    return float((_standard(x[None])[0] * _standard(y[None])[0]).sum())
