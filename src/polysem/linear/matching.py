"""Which features of one SAE are those of another of the same site: one to one, by the cosine of their directions.

The matching with the largest sum of cosines among those above the threshold (the Hungarian method inside each
group of features that could be exchanged for one another). 30 % matched between seeds is not unusual (arXiv
2501.16615). Cost: one product of the two dictionaries, in blocks; what is below the threshold is not kept.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from polysem.geometry.unit import unit_rows

MATCH = 0.7
"""cosine above which two features count as one"""
_BLOCK = 2048
"""rows of one product"""


@dataclass(frozen=True)
class Match:
    """Features of one SAE and those of the other that they became, in the order of the first."""

    first: Int[np.ndarray, " n"]
    second: Int[np.ndarray, " n"]
    cosine: Float[np.ndarray, " n"]
    share: float
    """of the features asked about that match above the threshold"""
    mean_max_cosine: float
    """mean over them of the best cosine, matched one to one or not"""


def match_features(
    first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"], *, threshold: float = MATCH
) -> Match:
    """One-to-one match of the rows of two decoders; no pair has a cosine below the threshold."""
    if not len(first) or not len(second):
        nothing = np.empty(0, dtype=np.int64)
        return Match(nothing, nothing, np.empty(0), share=0.0, mean_max_cosine=0.0)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a, b = unit_rows(first), unit_rows(second)
    rows, columns, cosines, best = [], [], [], []
    for start in range(0, len(a), _BLOCK):
        block = a[start : start + _BLOCK] @ b.T
        i, j = np.nonzero(block >= threshold)
        rows.append(i + start)
        columns.append(j)
        cosines.append(block[i, j])
        best.append(block.max(axis=1))
    i, j, c = (np.concatenate(part) for part in (rows, columns, cosines))
    # Rows and columns are the nodes of one graph; a component is a group whose members compete.
    n = len(a) + len(b)
    group = connected_components(coo_array((np.ones(len(i)), (i, len(a) + j)), shape=(n, n)), directed=False)[
        1
    ]
    order = np.argsort(group[i], kind="stable")
    ends = np.flatnonzero(np.diff(group[i][order])) + 1
    kept = [part[_assigned(i[part], j[part], c[part])] for part in np.split(order, ends) if len(part)]
    chosen = np.concatenate(kept) if kept else np.empty(0, dtype=np.int64)
    chosen = chosen[np.argsort(i[chosen])]
    return Match(
        first=i[chosen],
        second=j[chosen],
        cosine=c[chosen],
        share=len(chosen) / len(a),
        mean_max_cosine=float(np.concatenate(best).mean()),
    )


def _assigned(i: np.ndarray, j: np.ndarray, c: np.ndarray) -> Int[np.ndarray, " kept"]:
    """Which of the candidate pairs of one group are matched."""
    from scipy.optimize import linear_sum_assignment

    if len(c) == 1:
        return np.zeros(1, dtype=np.int64)
    row, column = (np.unique(v, return_inverse=True)[1] for v in (i, j))
    place = np.full((row.max() + 1, column.max() + 1), -1)
    place[row, column] = np.arange(len(c))
    weight = np.where(place >= 0, c[place], 0.0)
    found = place[linear_sum_assignment(weight, maximize=True)]
    return found[found >= 0]
