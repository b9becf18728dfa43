"""Permutation tests for matrices of pairs: is the effect of i on j related to a property of (i, j), or only to
i and j?

QAP: targets and sources are relabelled as wholes, so whatever all pairs of one target, or of one source, have
in common stays together in every draw; shuffling cells instead rejects true nulls half of the time. With
other regressors, double semi-partialling (Dekker, Krackhardt and Snijders, Psychometrika 72, 2007): what the
others leave of x is relabelled. The statistic is a t value with two-way clustered errors, which keeps the
test honest also where effects differ in spread from target to target (arXiv 2411.00947), or the classical t.
p = (1 + number of draws at least as extreme) / (1 + draws), so never 0 (Phipson and Smyth 2010).

QAP needs x for every (target, source) and cells that were not chosen by x. Where the pairs were chosen by x,
`permute_within` relabels sources within each target, which is what the choice leaves exchangeable.
"""

from dataclasses import dataclass
from math import lgamma, log
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from polysem.errors import MismatchError

Statistic = Literal["robust", "classical"]
_BATCH_CELLS = 200_000
"""numbers of one array at a time: a few of them stay in the processor's cache"""
_FILLED_RTOL = 1e-9
"""singular values of the cells that are filled in below this, relative to the largest, are rounding"""


@dataclass(frozen=True)
class Permutation:
    """The result of one permutation test; nan where `reason` says why there is none."""

    estimate: float
    """slope of y on x given the others, units of y per unit of x"""
    t: float
    p: float
    """two-sided"""
    draws: int
    reason: str


def qap(
    y: Float[np.ndarray, "targets sources"],
    x: Float[np.ndarray, "targets sources"],
    *,
    given: tuple[Float[np.ndarray, "targets sources"], ...] = (),
    draws: int,
    rng: np.random.Generator,
    nodes: Literal["two_sets", "one_set"] = "two_sets",
    blocks: Int[np.ndarray, " targets"] | None = None,
    statistic: Statistic = "robust",
    fixed_effects: bool = False,
    alpha: float = 0.05,
) -> Permutation:
    """Whether y depends on x.

    Args:
        y: effects; nan where a cell was not measured (it is then left out of every draw).
        x: the property of pairs; finite where it is ever needed, that is everywhere but on the diagonal of
            `one_set`.
        given: other properties that may explain y, finite where y is.
        nodes: `one_set` if row k and column k are the same feature (one relabelling for both, the diagonal
            left out); `two_sets` relabels rows and columns independently.
        blocks: rows (of `one_set`: nodes) are relabelled inside their block only, e.g. their layer.
        fixed_effects: take out a fixed effect of every row and column first.
        alpha: the smallest p that is asked for; fewer draws or possible relabellings than 1 / alpha give none.

    Raises:
        MismatchError: if the shapes differ, or `one_set` is not square.
    """
    n, m = y.shape
    seen = np.isfinite(y)
    if any(a.shape != y.shape for a in (x, *given)) or (nodes == "one_set" and n != m):
        raise MismatchError(f"matrices of shapes {[a.shape for a in (y, x, *given)]}; expected one shape")
    if nodes == "one_set":
        seen &= ~np.eye(n, dtype=bool)
    groups = np.zeros(n, dtype=np.int64) if blocks is None else blocks
    reason = _too_few(groups, m, draws=draws, alpha=alpha, nodes=nodes)
    if min(seen.any(axis=1).sum(), seen.any(axis=0).sum()) < 2:
        reason = "effects of only one target or one source are known; at least two of each are needed"
    if reason:
        return Permutation(np.nan, np.nan, np.nan, draws, reason)
    x = np.where(np.isfinite(x), x, 0.0)
    left = _Others(given, _everywhere(nodes, n, m), fixed_effects=fixed_effects).taken_out(x[None])[0]
    others = _Others(given, seen, fixed_effects=fixed_effects)
    outcome = others.taken_out(y[None])[0]
    relabel = _relabellings(groups, m, draws=draws, rng=rng, nodes=nodes)
    first = _t_values(left[None], outcome, others, statistic)
    if not np.isfinite(first.t[0]):
        return Permutation(np.nan, np.nan, np.nan, draws, "x does not vary beyond what the others give")
    extreme, step = 0, max(1, _BATCH_CELLS // max(1, n * m))
    for start in range(0, draws, step):
        rows, columns = (part[start : start + step] for part in relabel)
        drawn = left[rows[:, :, None], columns[:, None, :]]
        t = _t_values(drawn, outcome, others, statistic).t
        extreme += int((np.abs(t) >= np.abs(first.t[0]) * (1 - 1e-12)).sum())
    return Permutation(
        estimate=float(first.slope[0]),
        t=float(first.t[0]),
        p=(1 + extreme) / (1 + draws),
        draws=draws,
        reason="",
    )


def permute_within(
    blocks: Int[np.ndarray, " n"], *, draws: int, rng: np.random.Generator
) -> Int[np.ndarray, "draws n"]:
    """Row numbers rearranged at random inside each block, once per draw."""
    order = np.argsort(blocks, kind="stable")
    # Rows sorted by (block, random key) fill the places of their block: every rearrangement is equally likely.
    keys = rng.random((draws, len(blocks)))
    ranked = np.lexsort((keys, np.broadcast_to(blocks, keys.shape)), axis=1)
    result = np.empty((draws, len(blocks)), dtype=np.int64)
    result[:, order] = ranked
    return result


class _Others:
    """What else may explain numbers of the seen cells: a constant or effects of all rows and columns, and given ones."""

    def __init__(self, given: tuple[np.ndarray, ...], seen: np.ndarray, *, fixed_effects: bool):
        n, m = seen.shape
        self.seen, self.count = seen, int(seen.sum())
        given = tuple(np.where(np.isfinite(g), g, 0.0) for g in given)
        self.rank = len(given) + (n + m - 1 if fixed_effects else 1)
        self._unseen = np.argwhere(~seen)
        # Effects of rows and columns are means where every cell is there. Where few are not, these are filled in so
        # that nothing is left of them; where many are not, the effects are columns like others.
        self._means = fixed_effects and len(self._unseen) <= n + m
        if self._means:
            row, column = self._unseen.T
            same = (row[:, None] == row) - 1 / n, (column[:, None] == column) - 1 / m
            self._fill: np.ndarray = np.linalg.pinv(same[0] * same[1], rcond=_FILLED_RTOL, hermitian=True)
            columns = [self._centred(g[None])[0][seen] for g in given]
        else:
            columns = [np.ones(self.count), *(g[seen] for g in given)]
            if fixed_effects:
                row, column = (axis[seen] for axis in np.indices((n, m)))
                columns += [row == k for k in range(1, n)] + [column == k for k in range(1, m)]
        self._basis = np.linalg.qr(np.column_stack([np.empty((self.count, 0)), *columns]))[0]

    def taken_out(self, x: np.ndarray) -> np.ndarray:
        """What they leave of each matrix; 0 where a cell is not seen. [matrices n m]"""
        if self._means:
            x = self._centred(x)
        if self._basis.shape[1] or not self._means:
            cells = x[:, self.seen]
            x = np.zeros(x.shape)
            x[:, self.seen] = cells - (cells @ self._basis) @ self._basis.T
        return x

    def _centred(self, x: np.ndarray) -> np.ndarray:
        x = np.where(self.seen, x, 0.0)
        row, column = self._unseen.T
        if len(row):
            x[:, row, column] = -_double_centred(x)[:, row, column] @ self._fill
        x = _double_centred(x)
        x[:, row, column] = 0.0
        return x


def _double_centred(x: np.ndarray) -> np.ndarray:
    rows, columns = x.mean(axis=2, keepdims=True), x.mean(axis=1, keepdims=True)
    return x - rows - (columns - columns.mean(axis=2, keepdims=True))


@dataclass(frozen=True)
class _Fits:
    slope: np.ndarray
    t: np.ndarray


def _t_values(x: np.ndarray, y: np.ndarray, others: _Others, statistic: Statistic) -> _Fits:
    """Slope and t of y on each matrix x, both without what the others explain (y already is)."""
    x = others.taken_out(x)
    square = np.einsum("bij,bij->b", x, x)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.einsum("bij,ij->b", x, y) / np.where(square > 1e-18 * others.count, square, np.nan)
        residual = y - slope[:, None, None] * x
        if statistic == "classical":
            df = others.count - others.rank - 1
            variance = np.einsum("bij,bij->b", residual, residual) / df / square
        else:
            variance = _two_way(np.multiply(x, residual, out=residual), others.count) / square**2
        return _Fits(slope, slope / np.sqrt(variance))


def _two_way(scores: np.ndarray, count: int) -> np.ndarray:
    """Clustered by row and by column of the matrix, by the max rule of `regress`; `count` cells are seen."""
    _, n, m = scores.shape
    rows = (scores.sum(2) ** 2).sum(1) * n / (n - 1)
    columns = (scores.sum(1) ** 2).sum(1) * m / (m - 1)
    own = np.einsum("bij,bij->b", scores, scores) * count / (count - 1)
    return np.maximum.reduce([rows + columns - own, rows, columns])


def _everywhere(nodes: str, n: int, m: int) -> Bool[np.ndarray, "n m"]:
    return ~np.eye(n, dtype=bool) if nodes == "one_set" else np.ones((n, m), dtype=bool)


def _relabellings(
    groups: np.ndarray, m: int, *, draws: int, rng: np.random.Generator, nodes: str
) -> tuple[np.ndarray, np.ndarray]:
    rows = permute_within(groups, draws=draws, rng=rng)
    if nodes == "one_set":
        return rows, rows
    return rows, permute_within(np.zeros(m, dtype=np.int64), draws=draws, rng=rng)


def _too_few(groups: np.ndarray, m: int, *, draws: int, alpha: float, nodes: str) -> str:
    if draws + 1 < 1 / alpha:
        return f"{draws} draws cannot give p <= {alpha:g}; at least {int(np.ceil(1 / alpha)) - 1} are needed"
    sizes = np.unique(groups, return_counts=True)[1]
    possible = sum(lgamma(s + 1) for s in sizes) + (lgamma(m + 1) if nodes == "two_sets" else 0.0)
    if possible < log(1 / alpha):
        return f"only {np.exp(possible):.0f} relabellings exist; p <= {alpha:g} cannot be reached"
    return ""
