"""A dictionary of the dictionary: how much of what a feature writes do a few other features write together?

Every decoder row is coded by `ATOMS` other rows (orthogonal matching pursuit: the row that the rest leans on most, then all weights
anew with a ridge). In many dimensions four rows of many explain something of any direction; so beside it stands what four rows of
the same dictionary turned at random explain, and four rows drawn with its mean and covariance.
Cost: of every coded feature and atom a product with the dictionary, in blocks of `_CELLS` cosines, as often as there are draws and one.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from polysem.hierarchy.firing import Fired
from polysem.seeds import random_rotation, rng_for
from polysem.store.tables import META_CODE

ATOMS = 4
RIDGE = 1e-3
"""added to the squared length of atoms"""
MOST = 1024
"""features that are coded, evenly over their numbers"""
DRAWS = 3
_CELLS = 2**23


class SparseCode(NamedTuple):
    """Rows by a few others each."""

    atoms: Int[np.ndarray, "n k"]
    """in the order in which they were taken"""
    weights: Float[np.ndarray, "n k"]
    explained: Float[np.ndarray, " n"]
    """share of the squared length"""


def sparse_code(
    rows: Float[np.ndarray, "n d"],
    by: Float[np.ndarray, "m d"],
    *,
    own: Int[np.ndarray, " n"] | None = None,
    atoms: int = ATOMS,
    ridge: float = RIDGE,
) -> SparseCode:
    """Orthogonal matching pursuit of unit rows by other unit rows.

    Args:
        rows: what is coded.
        by: what codes them, more than `atoms`.
        own: of each row its place in `by`, which is not taken for it; None: all may be taken.
        atoms: taken for a row.
        ridge: added to the squared length of atoms when weights are found.
    """
    found, at_once = [], max(1, _CELLS // len(by))
    for start in range(0, len(rows), at_once):
        block = rows[start : start + at_once]
        every, rest = np.arange(len(block)), block
        taken, weights = np.empty((len(block), 0), np.int64), np.empty((len(block), 0))
        for _ in range(atoms):
            lean = np.abs(rest @ by.T)
            lean[every[:, None], taken] = -1
            if own is not None:
                lean[every, own[start : start + at_once]] = -1
            taken = np.column_stack([taken, lean.argmax(axis=1)])
            basis = by[taken]
            gram = basis @ basis.transpose(0, 2, 1) + ridge * np.eye(taken.shape[1])
            weights = np.linalg.solve(gram, basis @ block[:, :, None])[:, :, 0]
            rest = block - (weights[:, None, :] @ basis)[:, 0]
        found.append((taken, weights, 1 - (rest**2).sum(axis=1) / (block**2).sum(axis=1)))
    return SparseCode(*(np.concatenate(part) for part in zip(*found, strict=True)))


def meta_code(seen: Fired, *, label: str, most: int = MOST) -> pa.Table:
    """META_CODE of the features that fire; empty where there are too few to code one.

    Args:
        seen: the dictionary on a text.
        label: its name.
        most: features that are coded.
    """
    live = np.flatnonzero((np.abs(seen.units).max(axis=1) > 0) & (seen.count > 0))
    if len(live) <= ATOMS + 1:
        return META_CODE.empty()
    units = seen.units[live].astype(np.float64)
    at = np.unique(np.linspace(0, len(live) - 1, min(most, len(live))).astype(np.int64))
    rows, d = units[at], units.shape[1]
    code = sparse_code(rows, units, own=at)
    rng = rng_for(0, "meta", len(live), d)
    mean, root = units.mean(axis=0), np.linalg.cholesky(np.cov(units.T) + 1e-12 * np.eye(d))
    turned, drawn = np.zeros(len(at)), np.zeros(len(at))
    for _ in range(DRAWS):
        # Rows turned back among the others give what rows among the others turned would.
        turned += sparse_code(rows @ random_rotation(d, rng), units, own=at).explained / DRAWS
        others = mean + rng.standard_normal(units.shape) @ root.T
        others /= np.linalg.norm(others, axis=1, keepdims=True)
        drawn += sparse_code(rows, others, own=at).explained / DRAWS
    columns = (live[at], live[code.atoms], code.weights, code.explained, turned, drawn)
    return META_CODE.of_rows(
        {"sae": label, "feature": f, "atoms": a, "weights": w, "explained": e, "turned": t, "drawn": c}
        for f, a, w, e, t, c in zip(*(column.tolist() for column in columns), strict=True)
    )
