"""Rank correlation of two orders of tokens, the right one and the paper's; and how well a score tells two groups apart.

The right correlation correlates ranks: token t's place in one order with its place in the other. The code released with
arXiv 2505.11611 correlates the two *lists of token ids* in those orders instead, which asks whether the id at
place k of one list resembles the id at place k of the other: swapping neighbours, which leaves the order all but
the same, destroys it.
"""

import numpy as np
from jaxtyping import Bool, Float


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


def auroc(score: Float[np.ndarray, "..."], positive: Bool[np.ndarray, "..."]) -> float:
    """Chance that a positive scores above a negative, ties counted half."""
    from scipy.stats import rankdata

    ranks, label = rankdata(score.ravel()), positive.ravel()
    n = int(label.sum())
    return float((ranks[label].sum() - n * (n + 1) / 2) / (n * (len(label) - n)))


def _standard(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, norms, out=np.full_like(centred, np.nan), where=norms > 0)


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    return float((_standard(x[None])[0] * _standard(y[None])[0]).sum())
