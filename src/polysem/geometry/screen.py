"""Screens: a cheap product that never loses a pair, because its threshold is lowered by a proved margin.

Let c be the canonical cosine of unit rows u, v; u', v' what the screen multiplies; a = |u - u'|, b = |v - v'|
measured in float64. By Cauchy-Schwarz |c - u'.v'| <= a + b + a b. To that come the rounding of the sum
(gamma_d = d e / (1 - d e), e = 2^-24, whatever the order of summation; none for int8, whose int32 sum is
exact) and of the result (bf16: a factor 1 - 2^-8, which covers truncation). bf16 and int8 products are used
only after a probe on the device has shown that they sum as assumed: an int8 product that saturates, or a bf16
product that accumulates in bf16, fails it and fp32 takes its place, with the same pairs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from polysem.geometry.product import (
    EPS,
    Arithmetic,
    by_speed,
    full_precision,
    multiply,
    output,
    probe,
    sum_error,
)

if TYPE_CHECKING:
    from torch import Tensor

ScreenName = Literal["auto", "fp32", "bf16", "int8"]

_BF16_KEEP = 1 - 2.0**-8
_LEAST_ROWS = 32
"""CUDA's int8 product wants more than 16 rows"""
_PANEL_BYTES = 1 << 20
"""of int32 products that a CPU's second-level cache holds until they are looked at"""
_CACHED = 1 << 16
"""float32 entries that a CPU brings to a screen's arithmetic at a time: the passes over them stay in its cache"""
_WORTH_A_PROBE = 4096
"""rows below which a screen other than fp32 cannot pay"""


@dataclass(frozen=True)
class Quantised:
    """Rows in one screen's arithmetic, in blocks of a tile, padded with zero rows."""

    n: int
    d: int
    matrix: "Tensor"
    error: tuple[float, ...]
    """per block: largest distance of a unit row from what is multiplied"""
    scale: tuple[float, ...]
    """per block: what is multiplied is scale x unit row"""


@dataclass(frozen=True)
class Screen:
    """Rows against columns (which are rows of a matrix, too, and may be the same one), cut into blocks of
    `tile`."""

    arithmetic: Arithmetic
    tile: int
    rows: Quantised
    columns: Quantised
    buffer: "Tensor"
    """products of one tile, used again for every tile: fresh memory would cost page faults"""
    flags: "Tensor"
    """flags of one tile, used again alike"""

    def margin(self, row_block: int, column_block: int) -> float:
        """By how much a product (in units of cosine, before its own rounding) may fall short of the canonical
        cosine."""
        a, b = self.rows.error[row_block], self.columns.error[column_block]
        summed = 0.0 if self.arithmetic == "int8" else sum_error(self.rows.d) * (1 + a) * (1 + b)
        return a + b + a * b + summed + 4 * EPS

    def products(self, rows: slice, column_block: int) -> "Tensor":
        """Products of some rows (inside one block; more are added if they are few) with a block of columns (a
        multiple of 8). Valid until the next call."""
        stop = min(max(rows.stop, rows.start + _LEAST_ROWS), len(self.rows.matrix))
        first = column_block * self.tile
        last = min(first + self.tile, _round_up(self.columns.n, 8))
        left, right = self.rows.matrix[rows.start : stop], self.columns.matrix[first:last]
        out = self.buffer[: len(left) * (last - first)].view(len(left), last - first)
        with full_precision():
            return multiply(self.arithmetic, str(left.device))(left, right, out=out)

    def passing(self, rows: slice, column_block: int, *, threshold: float, signed: bool) -> "Tensor":
        """Flags [rows, columns] of the pairs whose cosine may be >= threshold (or <= -threshold, if
        `signed`). Valid until the next call."""
        import torch

        block = rows.start // self.tile
        lowered = threshold - self.margin(block, column_block)
        if self.arithmetic == "int8":
            cut = math.ceil(lowered * self.rows.scale[block] * self.columns.scale[column_block]) - 1
        elif self.arithmetic == "bf16":
            # Positive bf16 numbers are ordered as the integers of their bits; negative ones are negative
            # integers. One step down covers the rounding of the threshold itself.
            bits = torch.tensor(lowered * _BF16_KEEP).to(torch.bfloat16).view(torch.int16).item()
            cut = bits - 1 if lowered > 0 else -(2**15)
        else:
            cut = lowered - 4 * EPS
        on_cpu, n_seen, width = self.flags.device.type == "cpu", 0, 0
        for panel in self._panels(rows):
            product = self.products(panel, column_block)
            if self.arithmetic == "bf16":
                product = product.view(torch.int16)
            if signed:
                product = product.bitwise_and_(0x7FFF) if self.arithmetic == "bf16" else product.abs_()
            width = product.shape[1]
            start = (panel.start - rows.start) * width
            n_seen = start + product.numel()
            flags = self.flags[start:n_seen].view(product.shape)
            if on_cpu:
                np.greater_equal(product.numpy(), cut, out=flags.numpy())  # four times as fast as torch's
            else:
                torch.ge(product, cut, out=flags)
        return self.flags[:n_seen].view(-1, width)

    def _panels(self, rows: slice) -> Iterator[slice]:
        """Rows whose products are made and looked at together. int8 has the widest products and no packing of the columns
        that many rows would have to share: a CPU reads a panel of them back from its cache, and a tile from memory."""
        step = rows.stop - rows.start
        if self.arithmetic == "int8" and self.flags.device.type == "cpu":
            step = max(_PANEL_BYTES // (4 * min(self.tile, len(self.columns.matrix))), _LEAST_ROWS)
        for start in range(rows.start, rows.stop, step):
            yield slice(start, min(start + step, rows.stop))


def make_screen(
    unit: Float[np.ndarray, "n d"],
    other: Float[np.ndarray, "m d"] | None = None,
    *,
    name: ScreenName,
    tile: int,
    device: str,
    threshold: float,
) -> Screen:
    """The screen `name` over unit rows (float32), or the fastest that is safe here if `name` is "auto".

    A screen whose probe fails on the device, or whose margin leaves nothing of the threshold, is replaced by
    fp32.

    Args:
        unit: the rows.
        other: the columns, unit rows too; None: the rows themselves.
        name: arithmetic, or "auto".
        tile: rows and columns of a tile.
        device: torch device.
        threshold: least cosine that will be asked for.
    """
    import torch

    sides = [torch.from_numpy(side).to(device) for side in ((unit,) if other is None else (unit, other))]
    if name == "auto":
        worth = math.prod(len(side) for side in (sides[0], sides[-1])) >= _WORTH_A_PROBE**2
        order = by_speed(device) if worth else ("fp32",)
    else:
        order = (name,) if name == "fp32" or probe(name, device) else ("fp32",)
    # auto: a margin of half the threshold lets through many candidates to be decided exactly; a finer screen
    # is then the faster one. By name: as long as something is left (2 errors, their product, the sum's).
    largest = 0.25 if name == "auto" else 0.4
    for arithmetic in order:
        made = [_quantised(side, arithmetic, tile) for side in sides]
        if arithmetic == "fp32" or max(max(side.error) for side in made) < largest * threshold:
            return _screen(arithmetic, tile, made[0], made[-1])
    made = [_quantised(side, "fp32", tile) for side in sides]
    return _screen("fp32", tile, made[0], made[-1])


def _screen(arithmetic: Arithmetic, tile: int, rows: Quantised, columns: Quantised) -> Screen:
    """The screen of two quantised sides, with memory for one tile."""
    import torch

    device = str(rows.matrix.device)
    area = (min(tile, rows.n) + _LEAST_ROWS) * min(tile, _round_up(columns.n, 8))
    return Screen(
        arithmetic,
        tile,
        rows,
        columns,
        output(arithmetic, area, device),
        torch.empty(area, dtype=torch.bool, device=device),
    )


def _quantised(unit: "Tensor", arithmetic: Arithmetic, tile: int) -> Quantised:
    import torch

    n, d = unit.shape
    padded = _round_up(n, 8) + _LEAST_ROWS
    width = _round_up(d, 8) if arithmetic == "int8" else d
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[arithmetic]
    matrix = torch.zeros(padded, width, dtype=dtype, device=unit.device)
    step = max(_CACHED // max(d, 1), 1) if unit.device.type == "cpu" else tile
    errors, scales = [], []
    for start in range(0, n, tile):
        parts = unit[start : start + tile].split(step)
        scale, away = 1.0, 0.0
        if arithmetic == "int8":
            scale = 127.0 / max(*(float(part.abs().max()) for part in parts), 1e-30)
        for k, part in enumerate(parts):
            multiplied = part
            if arithmetic != "fp32":
                multiplied = (part * scale).round_() if arithmetic == "int8" else part.to(dtype).float()
                # a float less what it rounds to is exact; what is left is the rounding of the norm
                gaps = torch.addcmul(-multiplied, part, torch.tensor(scale, device=part.device))
                away = max(away, float(gaps.norm(dim=1).max()) / scale * (1 + d * EPS))
            matrix[start + k * step : start + k * step + len(part), :d] = multiplied
        # one float32 rounding of each unit row, of its product with the scale, and of its measured distance
        errors.append(away + 4 * EPS)
        scales.append(scale)
    return Quantised(n, d, matrix, tuple(errors), tuple(scales))


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
