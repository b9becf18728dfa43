"""Exact counts over all pairs, of one matrix or of two: the joint histogram of interference and similarity, and
partners of every row.

Both products are made tile by tile in float32, summed in chunks so that their error has a small proved bound;
a pair that lies closer to a bin edge than that bound is decided by the canonical cosines. Rows with a gloss
come first, so that tiles need both products or only one. Nothing larger than a tile, the histogram and the
partner counts is held.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from polysem.errors import ConfigError
from polysem.geometry.mine import flagged_any_width
from polysem.geometry.product import EPS, float32_product, full_precision, sum_error
from polysem.geometry.rows import GlossedRows, Rows, canonical_cosines, unit_float32
from polysem.progress import SILENT, Reporter

if TYPE_CHECKING:
    from torch import Tensor

_GRIDS = (40, 200, 1000)
"""cells per unit of cosine; the coarsest that holds all edges is used. All are multiples of the histogram's
40"""
_CELLS = 40
_SUM_CHUNK = 128
"""products summed in one float32 pass: bounds the error of a tile, costs a twentieth of its time"""
_STRIP = 64
"""rows of a tile that are binned together, so that they stay in the second-level cache"""
_CODE_ROUNDING = 1e-6
"""bound on what turning a cosine into a cell number in float32 adds: six roundings of numbers up to 2"""


@dataclass(frozen=True)
class JointCounts:
    """Exact counts over all pairs: i < j of one dictionary, or i of one and j of another."""

    edges: Float[np.ndarray, " cells_and_one"]
    """edges of the cells on both axes, -1 to 1; a cell holds its lower edge, the last one both"""
    histogram: Int[np.ndarray, "interference_cells similarity_cells"]
    """pairs of rows that both have a gloss"""
    interference: Int[np.ndarray, " interference_cells"]
    """all pairs of rows that have a direction"""
    partners: Int[np.ndarray, "n bins thresholds"]
    """per row: partners in each interference bin with similarity below each threshold; 0 for rows without a
    gloss"""
    glossed: Bool[np.ndarray, " n"]
    """rows that have a direction and a gloss"""
    partners_j: Int[np.ndarray, "m bins thresholds"]
    """the same for the rows of the other dictionary; `partners` itself where there is one"""
    glossed_j: Bool[np.ndarray, " m"]

    def above(self, threshold: float) -> int:
        """Pairs with cosine >= threshold (below it, if negative). `threshold` must be an edge.

        Raises:
            ConfigError: if it is none.
        """
        index = int(np.abs(self.edges - threshold).argmin())
        if abs(self.edges[index] - threshold) > 1e-12:
            raise ConfigError(
                f"threshold {threshold} is no edge of the histogram; edges are multiples of {1 / _CELLS}"
            )
        return int(self.interference[index:].sum() if threshold >= 0 else self.interference[:index].sum())


def count_joint(
    directions: Float[Any, "n_features d_model"],
    embeddings: Float[Any, "n_glosses d_embed"],
    *,
    bins: Sequence[float],
    similarity_thresholds: Sequence[float],
    against: tuple[Float[Any, "m_features d_model_j"], Float[Any, "m_glosses d_embed_j"]] | None = None,
    tile: int = 1024,
    reporter: Reporter = SILENT,
) -> JointCounts:
    """Joint histogram, interference histogram and partner counts over all pairs, in one pass.

    Args:
        directions: [n_features d_model], normalised inside; zero rows are left out.
        embeddings: [n_features d_embed]; a zero row means "no gloss".
        bins: rising edges of the interference bins; [a, b), the last one closed if it ends at 1.
        similarity_thresholds: a partner has similarity strictly below; any order, which the result keeps.
        against: directions and embeddings of another dictionary, whose rows are the j. None: pairs i < j.
        tile: rows and columns of a tile. The result does not depend on it.

    Raises:
        NumericsError: naming the row, if an entry is NaN or infinite.
        MismatchError: if directions and embeddings differ in their number of rows, or the two dictionaries in
            their widths.
        ConfigError: if an edge is outside [-1, 1] or no multiple of 0.001.
    """
    given = GlossedRows.of(directions, embeddings)
    left = right = _JointSide.of(given)
    if against is not None:
        others = GlossedRows.of(*against)
        given.check_beside(others)
        right = _JointSide.of(others)
    counter = _Counter(left, right, _cells(bins, similarity_thresholds), tile, given.device)
    spans, spans_j = left.spans(tile), right.spans(tile)
    tiles = [(a, b) for k, a in enumerate(spans) for b in (spans[k:] if counter.square else spans_j)]
    with full_precision():
        for a, b in reporter.track(tiles, total=len(tiles), label="all pairs"):
            counter.add_tile(a, b)
    return counter.result()


@dataclass(frozen=True)
class _JointSide:
    """Rows with a direction, of which the glossed come first."""

    rows: Rows
    glosses: Rows
    order: Int[np.ndarray, " m"]
    """their features"""
    glossed: Bool[np.ndarray, " n"]
    """of all features"""

    @classmethod
    def of(cls, given: GlossedRows) -> "_JointSide":
        rows, glosses = given.directions, given.glosses
        if glosses is None:
            raise ConfigError("joint counts need embeddings, got None", hint="count with gloss embeddings")
        glossed = rows.live & glosses.live
        order = np.concatenate([np.flatnonzero(glossed), np.flatnonzero(rows.live & ~glossed)])
        return cls(rows.take(order), glosses.take(order[: glossed.sum()]), order, glossed)

    def spans(self, tile: int) -> list[tuple[int, int]]:
        """Blocks of rows, none of which holds glossed and unglossed rows together."""
        cuts = [*range(0, self.glosses.n, tile), *range(self.glosses.n, self.rows.n, tile), self.rows.n]
        return list(pairwise(cuts))


@dataclass(frozen=True)
class _Cells:
    """The fine grid on which pairs are counted, and what its cells mean for partners."""

    grid: int
    """cells per unit of cosine"""
    bins: Float[np.ndarray, " edges"]
    thresholds: Float[np.ndarray, " thresholds"]
    """rising"""
    order: Int[np.ndarray, " thresholds"]
    """thresholds[order] are as the caller gave them"""
    partner: Int[np.ndarray, " fine_cells"]
    """partner cell of each fine cell: bin x (number of thresholds at or below the similarity); the last one
    means none"""

    @property
    def side(self) -> int:
        return 2 * self.grid

    @property
    def edges(self) -> np.ndarray:
        return _edges(self.grid)

    @property
    def n_partner(self) -> int:
        return (len(self.bins) - 1) * (len(self.thresholds) + 1) + 1


def _edges(grid: int) -> np.ndarray:
    return np.round(np.arange(-grid, grid + 1) / grid, 12)


def _cells(bins: Sequence[float], similarity_thresholds: Sequence[float]) -> _Cells:
    edges = np.array(sorted({*bins, *similarity_thresholds}), np.float64)
    if any(not a < b for a, b in pairwise(bins)) or len(bins) < 2:
        raise ConfigError(f"bins must be at least two rising edges, got {tuple(bins)}")
    if not (np.abs(edges) <= 1).all():
        raise ConfigError(f"bins and similarity thresholds must be cosines in [-1, 1], got {edges.tolist()}")
    for grid in _GRIDS:
        if (np.abs(edges * grid - np.round(edges * grid)) < 1e-9).all():
            break
    else:
        raise ConfigError(
            f"bins and similarity thresholds must be multiples of 0.001, got {edges.tolist()}",
            hint="round the edges",
        )
    lower = _edges(grid)[:-1]
    rising = np.sort(np.array(similarity_thresholds, np.float64))
    # 1e-9: an edge as written in a study and the grid's own may differ in their last bit
    interference = np.searchsorted(np.array(bins) - 1e-9, lower, side="right") - 1
    similarity = np.searchsorted(rising - 1e-9, lower, side="right")
    inside = (interference >= 0) & (interference < len(bins) - 1)
    n_none = (len(bins) - 1) * (len(rising) + 1)
    partner = np.where(inside[:, None], interference[:, None] * (len(rising) + 1) + similarity[None], n_none)
    position = np.searchsorted(rising, np.array(similarity_thresholds, np.float64))
    return _Cells(grid, np.array(bins, np.float64), rising, position, partner.ravel())


class _Counter:
    """Running counts over tiles."""

    def __init__(self, left: _JointSide, right: _JointSide, cells: _Cells, tile: int, device: str):
        import torch

        self.left, self.right, self.square = left, right, left is right
        self.cells, self.tile = cells, tile
        self._multiply = float32_product(device)
        chunks = [
            tuple(_chunks(unit_float32(part), device) for part in (side.rows, side.glosses))
            for side in ((left,) if self.square else (left, right))
        ]
        self._unit, self._gloss = zip(chunks[0], chunks[-1], strict=True)
        self._partner_cell = torch.from_numpy(
            np.append(cells.partner, cells.n_partner - 1).astype(np.int32)
        ).to(device)
        self._column = (torch.arange(tile, dtype=torch.int32) * cells.n_partner).to(device)
        area = min(tile, left.rows.n) * min(tile, right.rows.n)
        self._buffers = [torch.empty(area, device=device) for _ in range(3)]
        self.histogram = np.zeros(cells.side * cells.side, np.int64)
        self.interference = np.zeros(cells.side, np.int64)
        self.partners = np.zeros(left.glosses.n * cells.n_partner, np.int64)
        self.partners_j = self.partners
        if not self.square:
            self.partners_j = np.zeros(right.glosses.n * cells.n_partner, np.int64)

    def add_tile(self, a: tuple[int, int], b: tuple[int, int]) -> None:
        """Count the pairs i in a, j in b (i < j where the two matrices are one)."""
        first, second, scratch = self._buffers
        cosines, margin = self._products(self._unit, a, b, first, scratch), _margin(self.left.rows.d)
        both = a[1] <= self.left.glosses.n and b[1] <= self.right.glosses.n
        similarities = self._products(self._gloss, a, b, second, scratch) if both else None
        for start in range(0, a[1] - a[0], _STRIP):
            strip = slice(start, start + _STRIP)
            codes, near = _codes(cosines[strip], self.cells.grid, margin)
            if similarities is not None:
                other, near_other = _codes(similarities[strip], self.cells.grid, _margin(self.left.glosses.d))
                codes, near = codes.mul_(self.cells.side).add_(other), near.add_(near_other, alpha=2)
            if self.square and a == b:
                _drop_lower(codes, near, start, sentinel=self.cells.side ** (2 if both else 1))
            if both:
                self._add_joint(codes, near, a[0] + start, b[0])
            else:
                self._add_single(codes, near, a[0] + start, b[0])

    def _products(
        self,
        chunks: "tuple[list[Tensor], list[Tensor]]",
        a: tuple[int, int],
        b: tuple[int, int],
        out: "Tensor",
        scratch: "Tensor",
    ) -> "Tensor":
        """Cosines of two blocks of rows, summed in chunks that are then added: the error of a chunk, not of
        the whole sum. `out` and `scratch` are flat and large enough for any tile."""
        shape = a[1] - a[0], b[1] - b[0]
        total, part = (flat[: shape[0] * shape[1]].view(shape) for flat in (out, scratch))
        (first, first_j), *rest = zip(*chunks, strict=True)
        total = self._multiply(first[slice(*a)], first_j[slice(*b)], out=total)
        for chunk, chunk_j in rest:
            total.add_(self._multiply(chunk[slice(*a)], chunk_j[slice(*b)], out=part))
        return total

    def _add_joint(self, codes: "Tensor", near: "Tensor", i0: int, j0: int) -> None:
        """`near`: 1 where the interference is near an edge, 2 where the similarity is, 3 where both are."""
        import torch

        self.histogram += torch.bincount(codes.view(-1), minlength=len(self.histogram) + 1)[:-1].cpu().numpy()
        height, width = codes.shape
        n_partner = self.cells.n_partner
        cell = torch.index_select(self._partner_cell, 0, codes.view(-1)).view(height, width)
        by_row = torch.bincount((cell + self._column[:height, None]).view(-1), minlength=height * n_partner)
        by_column = torch.bincount((cell + self._column[:width]).view(-1), minlength=width * n_partner)
        self.partners[i0 * n_partner : (i0 + height) * n_partner] += by_row.cpu().numpy()
        self.partners_j[j0 * n_partner : (j0 + width) * n_partner] += by_column.cpu().numpy()
        side = self.cells.side
        for r, c in flagged_any_width(near.to(torch.int8)):
            was = codes[r, c].cpu().numpy().astype(np.int64)
            now, axes = np.stack(np.divmod(was, side)), near[r, c].cpu().numpy()
            i, j = r + i0, c + j0
            sides = (self.left.rows, self.right.rows), (self.left.glosses, self.right.glosses)
            for axis, (rows, others) in enumerate(sides):
                undecided = (axes & (axis + 1)) > 0
                cosines = canonical_cosines(rows, i[undecided], j[undecided], other=others)
                now[axis, undecided] = self._cell_of(cosines)
            now = now[0] * side + now[1]
            moved = now != was
            i, j, was, now = i[moved], j[moved], was[moved], now[moved]
            for sign, code in ((-1, was), (1, now)):
                np.add.at(self.histogram, code, sign)
                for partners, member in ((self.partners, i), (self.partners_j, j)):
                    np.add.at(partners, member * n_partner + self.cells.partner[code], sign)

    def _add_single(self, codes: "Tensor", near: "Tensor", i0: int, j0: int) -> None:
        import torch

        self.interference += torch.bincount(codes.view(-1), minlength=self.cells.side + 1)[:-1].cpu().numpy()
        for r, c in flagged_any_width(near.to(torch.int8)):
            np.add.at(self.interference, codes[r, c].cpu().numpy(), -1)
            cosines = canonical_cosines(self.left.rows, r + i0, c + j0, other=self.right.rows)
            np.add.at(self.interference, self._cell_of(cosines), 1)

    def _cell_of(self, cosine: np.ndarray) -> np.ndarray:
        return np.clip(np.searchsorted(self.cells.edges, cosine, side="right") - 1, 0, self.cells.side - 1)

    def result(self) -> JointCounts:
        cells, side = self.cells, self.cells.side
        fine = self.histogram.reshape(side, side)
        each = self.interference + fine.sum(axis=1)
        step = cells.grid // _CELLS
        coarse = fine.reshape(2 * _CELLS, step, 2 * _CELLS, step).sum(axis=(1, 3))
        partners = self._by_feature(self.partners, self.left)
        partners_j = partners if self.square else self._by_feature(self.partners_j, self.right)
        return JointCounts(
            _edges(_CELLS),
            coarse,
            each.reshape(-1, step).sum(axis=1),
            partners,
            self.left.glossed,
            partners_j,
            self.right.glossed,
        )

    def _by_feature(self, counts: np.ndarray, side: _JointSide) -> Int[np.ndarray, "n bins thresholds"]:
        cells = self.cells
        n_bins, n_levels = len(cells.bins) - 1, len(cells.thresholds) + 1
        levels = counts.reshape(-1, cells.n_partner)[:, :-1].reshape(-1, n_bins, n_levels)
        partners = np.zeros((len(side.glossed), n_bins, len(cells.thresholds)), np.int64)
        partners[side.order[: side.glosses.n]] = levels.cumsum(axis=2)[:, :, cells.order]
        return partners


def _chunks(unit: np.ndarray, device: str) -> "list[Tensor]":
    """Columns of unit rows in pieces of `_SUM_CHUNK`, each contiguous: oneDNN is slow on any other."""
    import torch

    starts = range(0, unit.shape[1], _SUM_CHUNK)
    return [torch.from_numpy(unit[:, k : k + _SUM_CHUNK].copy()).to(device) for k in starts]


def _margin(d: int) -> float:
    """Proved bound on |product - canonical cosine|, and on what binning adds.

    Chunk k errs by at most gamma_128 |u_k||v_k|, in all gamma_128 by Cauchy-Schwarz; adding the chunks errs
    by gamma of their number; the unit rows were rounded once each.
    """
    chunks = -(-d // _SUM_CHUNK)
    return 1.01 * (sum_error(min(d, _SUM_CHUNK)) + sum_error(chunks)) + 4 * EPS + _CODE_ROUNDING


def _codes(cosines: "Tensor", grid: int, margin: float) -> tuple["Tensor", "Tensor"]:
    """Cell numbers, and 1 for the pairs that lie within `margin` of an edge, else 0 (both int32: comparing
    into flags takes six times as long)."""
    import torch

    low = cosines.mul(grid).add_(grid * (1 - margin))
    # conversion truncates towards zero: what rounding put below -1 falls into the first cell
    code = low.to(torch.int32).clamp_(max=2 * grid - 1)
    high = low.add_(2 * grid * margin).to(torch.int32).clamp_(max=2 * grid - 1)
    return code, high.sub_(code)


def _drop_lower(codes: "Tensor", near: "Tensor", start: int, *, sentinel: int) -> None:
    """On a diagonal tile: pairs with j <= i go to the sentinel cell and are never near an edge."""
    import torch

    height, width = codes.shape
    row = torch.arange(start, start + height, device=codes.device)[:, None]
    lower = torch.arange(width, device=codes.device)[None] <= row
    codes.masked_fill_(lower, sentinel)
    near.masked_fill_(lower, 0)
