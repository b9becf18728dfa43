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
_BATCH_CELLS = 2_000_000
"""numbers of one array at a time"""


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
        draws: relabellings.
        nodes: `one_set` if row k and column k are the same feature (one relabelling for both, the diagonal
            left out); `two_sets` relabels rows and columns independently.
        blocks: rows (of `one_set`: nodes) are relabelled inside their block only, e.g. their layer.
        statistic: what is compared.
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
    others = _others(given, n, m, fixed_effects=fixed_effects)
    left = _left_of(np.where(np.isfinite(x), x, 0.0), others, _everywhere(nodes, n, m))
    basis = np.linalg.qr(others[seen.ravel()])[0]
    outcome = y[seen]
    outcome = outcome - basis @ (basis.T @ outcome)
    relabel = _relabellings(groups, m, draws=draws, rng=rng, nodes=nodes)
    cells = np.argwhere(seen)
    first = _t_values(left[None, seen], outcome, basis, cells, (n, m), statistic)
    if not np.isfinite(first.t[0]):
        return Permutation(np.nan, np.nan, np.nan, draws, "x does not vary beyond what the others give")
    extreme, step = 0, max(1, _BATCH_CELLS // max(1, len(cells)))
    for start in range(0, draws, step):
        rows, columns = (part[start : start + step] for part in relabel)
        drawn = left[rows[:, cells[:, 0]], columns[:, cells[:, 1]]]
        t = _t_values(drawn, outcome, basis, cells, (n, m), statistic).t
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


@dataclass(frozen=True)
class _Fits:
    slope: np.ndarray
    t: np.ndarray


def _t_values(
    x: np.ndarray,
    y: np.ndarray,
    basis: np.ndarray,
    cells: np.ndarray,
    shape: tuple[int, int],
    statistic: Statistic,
) -> _Fits:
    """Slope and t of y on each row of x, both without what `basis` spans (y already is)."""
    x = x - (x @ basis) @ basis.T
    square = np.einsum("bc,bc->b", x, x)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (x @ y) / np.where(square > 1e-18 * len(y), square, np.nan)
        residual = y - slope[:, None] * x
        if statistic == "classical":
            df = x.shape[1] - basis.shape[1] - 1
            variance = np.einsum("bc,bc->b", residual, residual) / df / square
        else:
            variance = _two_way(x * residual, cells, shape) / square**2
        return _Fits(slope, slope / np.sqrt(variance))


def _two_way(scores: np.ndarray, cells: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Clustered by row and by column of the matrix, by the max rule of `regress`."""
    whole = np.zeros((len(scores), *shape))
    whole[:, cells[:, 0], cells[:, 1]] = scores
    rows, columns = ((whole.sum(axis) ** 2).sum(1) for axis in (2, 1))
    rows *= shape[0] / (shape[0] - 1)
    columns *= shape[1] / (shape[1] - 1)
    own = (scores**2).sum(1) * scores.shape[1] / (scores.shape[1] - 1)
    return np.maximum.reduce([rows + columns - own, rows, columns])


def _others(given: tuple[np.ndarray, ...], n: int, m: int, *, fixed_effects: bool) -> np.ndarray:
    columns = [np.ones(n * m), *(np.where(np.isfinite(g), g, 0.0).ravel() for g in given)]
    if fixed_effects:
        row, column = (axis.ravel() for axis in np.indices((n, m)))
        columns += [row == k for k in range(1, n)] + [column == k for k in range(1, m)]
    return np.column_stack(columns).astype(np.float64)


def _everywhere(nodes: str, n: int, m: int) -> Bool[np.ndarray, "n m"]:
    return ~np.eye(n, dtype=bool) if nodes == "one_set" else np.ones((n, m), dtype=bool)


def _left_of(x: np.ndarray, others: np.ndarray, where: np.ndarray) -> np.ndarray:
    """x minus its projection on the others, over all cells that a relabelling can bring in."""
    basis = np.linalg.qr(others[where.ravel()])[0]
    left = np.zeros_like(x)
    left[where] = x[where] - basis @ (basis.T @ x[where])
    return left


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
