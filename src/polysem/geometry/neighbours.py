"""The k nearest neighbours of every row by cosine, exactly: among the other rows, from one pass over the upper
triangle, or among the rows of another matrix.

Every product says its canonical cosine up to a proved error. A row's floor is the k-th largest of what its
neighbours have at least; a pair that may reach the floor of either row is kept, and kept pairs are thinned
out after every row block, as floors rise, and whenever they are too many. At the end what is left is decided
by canonical cosines. So the result does not depend on arithmetic, tile or threads. Floors start from a row's own block. Cost: one product
in bfloat16 (or float32); memory: one tile and a few times n x k candidates.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int

from polysem.errors import ConfigError
from polysem.geometry.mine import flagged_any_width
from polysem.geometry.product import EPS, probe
from polysem.geometry.rows import GlossedRows, Rows, canonical_cosines, check_tile, unit_float32
from polysem.geometry.screen import Screen, make_screen

if TYPE_CHECKING:
    from torch import Tensor

_BF16 = 2.0**-8
_CAP = 1 << 22
"""directed pairs held beyond which they are decided at once: equal rows would all be held to the end"""


@dataclass(frozen=True)
class Neighbours:
    """Nearest first; equal cosines by index."""

    index: Int[np.ndarray, "n k"]
    """-1 where a row has fewer than k others with a direction"""
    cosine: Float[np.ndarray, "n k"]
    """canonical; nan where there is none"""


def nearest(
    directions: Float[Any, "n d"],
    *,
    k: int,
    among: Float[Any, "m d_j"] | None = None,
    signed: bool = False,
    screen: Literal["auto", "fp32", "bf16"] = "auto",
    tile: int = 2048,
) -> Neighbours:
    """The k nearest rows of every row: of the same matrix, or of `among`.

    Args:
        directions: [n d], numpy or torch on any device; normalised inside. A zero row has no neighbours and
            is nobody's.
        k: neighbours of each.
        among: rows of another matrix, in which neighbours are looked for. None: the other rows of `directions`.
        signed: nearest by |cosine|, opposite rows included; the cosine given keeps its sign.
        screen: arithmetic of the pass. The result does not depend on it.
        tile: rows and columns of a tile. The result does not depend on it.

    Raises:
        NumericsError: naming the row, if an entry is NaN or infinite.
        MismatchError: if the two matrices differ in their width.
        ConfigError: if k is below 1, or tile no multiple of 8.
    """
    if k < 1:
        raise ConfigError(f"neighbours must be at least 1, got {k}")
    check_tile(tile)
    given = GlossedRows.of(directions, None)
    rows, device = given.directions, given.device
    index, cosine = np.full((rows.n, k), -1, np.int32), np.full((rows.n, k), np.nan)
    kept = kept_others = np.flatnonzero(rows.live)
    live = others = rows.take(kept)
    if among is not None:
        beside = GlossedRows.of(among, None)
        given.check_beside(beside)
        kept_others = np.flatnonzero(beside.directions.live)
        others = beside.directions.take(kept_others)
    able = others.n - (among is None)
    if not len(kept) or able < 1:
        return Neighbours(index, cosine)
    # int8 would let through too many: its error is a multiple of the distance between neighbours
    name = ("bf16" if probe("bf16", device) else "fp32") if screen == "auto" else screen
    second = None if among is None else unit_float32(others)
    made = make_screen(unit_float32(live), second, name=name, tile=tile, device=device, threshold=1.0)
    held = _Nearest(live, others, made, min(k, able), signed)
    blocks = range(-(-live.n // tile))
    for block in blocks:
        held.start(block)
    for block in blocks:
        for column_block in range(block if held.square else 0, -(-others.n // tile)):
            held.add_tile(block, column_block)
        held.thin()
    row, other, value = held.decided()
    rank = np.arange(len(row)) - np.searchsorted(row, row, side="left")
    index[kept[row], rank], cosine[kept[row], rank] = kept_others[other], value
    return Neighbours(index, cosine)


class _Nearest:
    """Floors of rows, and the directed pairs (row, other) that may be among a row's k nearest."""

    def __init__(self, rows: Rows, others: Rows, screen: Screen, k: int, signed: bool):
        self.rows, self.others, self.screen, self.k, self.signed = rows, others, screen, k, signed
        self.square = others is rows
        self.floor = np.full(rows.n, -np.inf)
        """a lower bound of the k-th largest cosine (or |cosine|) of each row"""
        self._rounding = _BF16 if screen.arithmetic == "bf16" else 2 * EPS
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        """row, other, and the least and most that their cosine may be"""
        self._n = 0

    def start(self, block: int) -> None:
        """Floors of the rows of one block from one tile: their own block, or a block of the others."""
        column_block = block if self.square else block % -(-self.others.n // self.screen.tile)
        first, last, product = self._product(block, column_block)
        start, stop = self._columns(column_block)
        if stop - start - self.square < self.k:
            return
        product = product[: last - first, : stop - start].float()
        if self.square:
            product.fill_diagonal_(-2.0)
        kth = product.topk(self.k, dim=1).values[:, -1].double().cpu().numpy()
        self.floor[first:last] = kth - self._error(kth, block, column_block)

    def add_tile(self, block: int, column_block: int) -> None:
        """Keep the pairs of one tile that may reach a floor (i < j where the two matrices are one)."""
        first, last, product = self._product(block, column_block)
        start, stop = self._columns(column_block)
        product = product[: last - first, : stop - start]
        flags = product >= self._cut(self.floor[first:last], product, block, column_block)[:, None]
        if self.square:
            flags |= product >= self._cut(self.floor[start:stop], product, block, column_block)[None]
        for r, c in flagged_any_width(flags):
            i, j = r + first, c + start
            value = product[r, c].double().cpu().numpy()
            if self.square:
                above = i < j
                i, j, value = i[above], j[above], value[above]
            error = self._error(value, block, column_block)
            for one, other in ((i, j), (j, i)) if self.square else ((i, j),):
                able = value + error >= self.floor[one]
                low, high = value[able] - error[able], value[able] + error[able]
                self._parts.append((one[able], other[able], low, high))
                self._n += len(low)
            if self._n > _CAP:
                self.thin()

    def thin(self) -> None:
        """Raise floors by what is held, and drop what no longer reaches them."""
        row, other, low, high = self._all()
        order = np.lexsort((-low, row))
        rank = np.arange(len(row)) - np.searchsorted(row[order], row[order], side="left")
        kth = order[rank == self.k - 1]
        self.floor[row[kth]] = np.maximum(self.floor[row[kth]], low[kth])
        able = high >= self.floor[row]
        self._parts = [(row[able], other[able], low[able], high[able])]
        if able.sum() > _CAP // 2:
            row, other, value = self.decided()
            size = np.abs(value) if self.signed else value
            self._parts = [(row, other, size, size)]
        self._n = len(self._parts[0][0])

    def decided(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(row, other, cosine) of the k nearest, by row and nearest first."""
        row, other, _, _ = self._all()
        value = canonical_cosines(self.rows, row, other, other=self.others)
        order = np.lexsort((other, -np.abs(value) if self.signed else -value, row))
        rank = np.arange(len(row)) - np.searchsorted(row[order], row[order], side="left")
        order = order[rank < self.k]
        return row[order], other[order], value[order]

    def _all(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        row, other, low, high = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        return row, other, low, high

    def _columns(self, column_block: int) -> tuple[int, int]:
        start = column_block * self.screen.tile
        return start, min(start + self.screen.tile, self.others.n)

    def _product(self, block: int, column_block: int) -> "tuple[int, int, Tensor]":
        first, last = block * self.screen.tile, min((block + 1) * self.screen.tile, self.rows.n)
        product = self.screen.products(slice(first, last), column_block)
        return first, last, product.abs_() if self.signed else product

    def _error(self, value: np.ndarray, block: int, column_block: int) -> np.ndarray:
        """Bound on |product - canonical cosine|: the margin, and the rounding of the product."""
        return self.screen.margin(block, column_block) + 1.01 * self._rounding * np.abs(value)

    def _cut(self, floor: np.ndarray, product: "Tensor", block: int, column_block: int) -> "Tensor":
        """What products must reach: the floor less the error, and less what turning the cut into the
        products' type may add."""
        import torch

        lowest = floor - self.screen.margin(block, column_block)
        lowest = np.maximum(lowest - 3 * self._rounding * np.abs(np.maximum(lowest, -2)), -4)
        return torch.from_numpy(lowest).to(product.device, product.dtype)
