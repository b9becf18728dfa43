"""Virtual weights of all pairs of two dictionaries, in blocks; how they lie beside co-firing; the strongest by the pair kernel."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.geometry import cosine_tail, pair_blocks
from polysem.layers.coactivity import BLOCK, Coactivity, Places
from polysem.layers.ends import Ends, ReadNorm

WEIGHT_EDGES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, np.inf)
"""of |weight|, in root mean squares over all pairs of the two dictionaries"""
LIFT_EDGES = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 20.0, np.inf)
"""of co-firing over chance; pairs that never co-fire stand apart"""
CHANCE = 1e-4
"""tail of random directions beyond which a cosine of row and column counts as strong"""

TOP = 0.99
"""quantile of |weight| from which weights count as the largest"""


@dataclass(frozen=True)
class VirtualWeights:
    """The factors of all weights from one dictionary to another."""

    rows: Float[Tensor, "n_i d"]
    """written before the target reads, summed over sites; pre-activation units a unit of activation"""
    raw: Float[Tensor, "n_j d"]
    """columns, no norm folded"""
    columns: Float[Tensor, "n_j d"]
    """columns that read the stream: the norm between folded, its scale frozen"""
    norm: str
    """what was folded, in words"""

    def of(self, i: Places, j: Places = slice(None)) -> Float[np.ndarray, "_m _k"]:
        """weight [m k], float64."""
        return (self.rows[i].double() @ self.columns[j].double().T).numpy()

    def unfolded(self, i: Int[np.ndarray, " m"], j: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """weight of some pairs with columns as they stand in the file."""
        return (self.rows[i].double() * self.raw[j].double()).sum(1).numpy()

    def cosine(self, i: Int[np.ndarray, " m"], j: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """cosine of row and column of some pairs; NaN where one is zero."""
        a, b = self.rows[i].double(), self.columns[j].double()
        size = a.norm(dim=1) * b.norm(dim=1)
        return torch.where(size > 0, (a * b).sum(1) / size, torch.nan).numpy()

    def strong(self, *, tail: float = CHANCE) -> tuple[float, Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
        """(least |cosine|, i, j) of the pairs whose row and column lie closer than chance, by the pair kernel."""
        least = _cosine_at(tail, self.rows.shape[1])
        given: Any = (self.columns.numpy(), None)
        blocks = list(
            pair_blocks(
                self.rows.numpy(),
                None,
                min_interference=least,
                max_similarity=None,
                against=given,
                signed=True,
            )
        )
        i, j = (
            np.concatenate([getattr(b, k) for b in blocks]) if blocks else np.empty(0, np.int32) for k in "ij"
        )
        return least, i, j


def virtual_weights(source: Ends, target: Ends, norm: ReadNorm | None) -> VirtualWeights:
    """The weights from one dictionary to another; `norm` stands between the stream and where the target reads."""
    own = source.written_before(target.reads)
    rows = torch.stack(list(own.values())).sum(0)
    raw = target.columns()
    folded = raw if norm is None else norm.fold(raw)
    kind = "none" if norm is None else f"{'layer' if norm.centres else 'rms'} norm, scale {norm.scale:.4g}"
    return VirtualWeights(rows.float(), raw.float(), folded.float(), kind)


@dataclass(frozen=True)
class Joint:
    """All pairs of features that fire, by |weight| and co-firing."""

    rms: float
    """root mean square of the weights"""
    counts: Int[np.ndarray, "n_weights n_lifts"]
    """pairs: rows are bins of WEIGHT_EDGES in root mean squares, the first column is of pairs that never co-fire, then bins of
    LIFT_EDGES"""
    top_never: float
    """share of the 1 % of largest weights whose ends never co-fire; NaN without pairs"""


def joint_histogram(weights: VirtualWeights, seen: Coactivity) -> Joint:
    """How weights lie beside co-firing, in blocks of sources."""
    live_i, live_j = np.flatnonzero(seen.fires_i), np.flatnonzero(seen.fires_j)
    n = len(live_i) * len(live_j)
    counts = np.zeros((len(WEIGHT_EDGES) - 1, len(LIFT_EDGES)), dtype=np.int64)
    if not n:
        return Joint(float("nan"), counts, float("nan"))
    own, read = (x[live].double() for x, live in ((weights.rows, live_i), (weights.columns, live_j)))
    rms = float(((own.T @ own) * (read.T @ read)).sum() / n) ** 0.5
    place, between = divmod((n - 1) * TOP, 1.0)
    most = n - int(place)  # from the lower neighbour of the quantile up
    largest, largest_never, least = np.empty(0), np.empty(0, dtype=bool), 0.0
    for start in range(0, len(live_i), BLOCK):
        i = live_i[start : start + BLOCK]
        size, lift = np.abs(weights.of(i, live_j)).ravel(), seen.lift(i, live_j).ravel()
        never = lift == 0
        w = np.searchsorted(WEIGHT_EDGES, size / rms, side="right") - 1
        column = np.where(never, 0, np.searchsorted(LIFT_EDGES, lift, side="right"))
        counts += np.bincount(w * len(LIFT_EDGES) + column, minlength=counts.size).reshape(counts.shape)
        kept = size >= least
        largest = np.concatenate([largest, size[kept]])
        largest_never = np.concatenate([largest_never, never[kept]])
        if len(largest) > most:
            least = float(np.partition(largest, -most)[-most])
            kept = largest >= least
            largest, largest_never = largest[kept], largest_never[kept]
    neighbours = np.sort(largest)[::-1][max(most - 2, 0) : most]
    top = largest_never[largest >= np.quantile(neighbours, between)]
    return Joint(rms, counts, float(top.mean()))


def _cosine_at(tail: float, d: int) -> float:
    """The |cosine| that random directions pass with this two-sided probability, by halving."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if float(cosine_tail(middle, d=d, two_sided=True)) > tail else (low, middle)
        )
    return high
