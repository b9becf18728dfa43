"""Pairs of rows over a threshold of interference and under one of gloss similarity, all of them, exactly: of one
matrix (i < j), or of one with another.

Row blocks come in order; inside one, tiles of columns are screened, survivors decided canonically and sorted.
If the survivors of a row block outgrow the cap, the block is cut in half and done again, so that memory stays
bounded at any density: by the rows, one tile, the cap and one row's partners.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from polysem.errors import ConfigError
from polysem.geometry.rows import GlossedRows, Rows, canonical_cosines, check_tile, unit_float32
from polysem.geometry.screen import Screen, ScreenName, make_screen

PAIR_SCHEMA = pa.schema(
    [
        pa.field("i", pa.int32(), nullable=False),
        pa.field("j", pa.int32(), nullable=False),
        pa.field("interference", pa.float64(), nullable=False),
        pa.field("similarity", pa.float64()),
    ]
)
_CAP = 1 << 21
"""survivors held at a time by the stream of row blocks"""
_FLAG_WORDS = 1 << 15
"""words of eight flags that are unpacked at a time"""


@dataclass(frozen=True)
class PairBlock:
    """Pairs of consecutive first features, sorted by (i, j)."""

    i: Int[np.ndarray, " p"]
    j: Int[np.ndarray, " p"]
    interference: Float[np.ndarray, " p"]
    similarity: Float[np.ndarray, " p"]
    """cosine of the gloss embeddings; nan where a gloss is missing or none were given"""


def mine_pairs(
    directions: Float[Any, "n_features d_model"],
    embeddings: Float[Any, "n_glosses d_embed"] | None,
    *,
    min_interference: float,
    max_similarity: float | None,
    against: tuple[Float[Any, "m_features d_model_j"], Float[Any, "m_glosses d_embed_j"] | None]
    | None = None,
    signed: bool = False,
    screen: ScreenName = "auto",
    tile: int = 2048,
) -> pa.Table:
    """All pairs with cosine of directions >= min_interference and cosine of embeddings < max_similarity:
    i < j of one matrix, or row i of one with row j of another.

    Args:
        directions: [n_features d_model], numpy or torch on any device; normalised inside. A zero row has no
            direction: no pairs.
        embeddings: [n_features d_embed] of the same features; a zero row means "no gloss". None: no
            similarities.
        min_interference: least cosine, inclusive.
        max_similarity: gloss similarity must be strictly below; features without a gloss are then left out.
            None: pairs are kept whatever their similarity, which is null where a gloss is missing.
        against: directions and embeddings of another dictionary, whose rows are the j. None: pairs i < j.
        signed: keep cosine <= -min_interference too.
        screen: arithmetic of the first pass; "auto" takes the fastest that passes its probe. The result does
            not depend on it.
        tile: rows and columns of a tile. The result does not depend on it.

    Returns:
        Columns i, j (int32), interference, similarity (float64, cosines), sorted by (i, j). For results that
        do not fit in memory take `pair_blocks`.

    Raises:
        NumericsError: naming the row, if an entry is NaN or infinite.
        MismatchError: if directions and embeddings differ in their number of rows, or the two dictionaries in
            their widths.
        ConfigError: if a threshold is no cosine, or max_similarity is given without embeddings.
    """
    stream = pair_blocks(
        directions,
        embeddings,
        min_interference=min_interference,
        max_similarity=max_similarity,
        against=against,
        signed=signed,
        screen=screen,
        tile=tile,
    )
    return pa.Table.from_batches((_batch(block) for block in stream), schema=PAIR_SCHEMA).combine_chunks()


def pair_blocks(
    directions: Float[Any, "n_features d_model"],
    embeddings: Float[Any, "n_glosses d_embed"] | None,
    *,
    min_interference: float,
    max_similarity: float | None,
    against: tuple[Float[Any, "m_features d_model_j"], Float[Any, "m_glosses d_embed_j"] | None]
    | None = None,
    signed: bool = False,
    screen: ScreenName = "auto",
    tile: int = 2048,
    cap: int = _CAP,
) -> Iterator[PairBlock]:
    """The pairs of `mine_pairs` as a stream: blocks in order of i, sorted, at most `cap` pairs (or one
    feature's) each.

    Arguments and errors as in `mine_pairs`; they are checked before the first block is asked for.
    """
    for name, value in (("min_interference", min_interference), ("max_similarity", max_similarity)):
        if value is not None and not math.isfinite(value):
            raise ConfigError(
                f"{name} must be a finite number, got {value}", hint="the paper's are 0.2 and 0.3"
            )
    check_tile(tile)
    if embeddings is None and max_similarity is not None:
        raise ConfigError(
            f"max_similarity is {max_similarity} but embeddings are None: no similarity can be computed",
            hint="give gloss embeddings, or max_similarity=None",
        )
    given = GlossedRows.of(directions, embeddings)
    left = right = _Features.of(given, glossed=max_similarity is not None)
    if against is not None:
        others = GlossedRows.of(*against)
        given.check_beside(others)
        right = _Features.of(others, glossed=max_similarity is not None)
    job = _Job(left, right, min_interference, max_similarity, signed, cap)
    return _stream(job, screen, tile, given.device)


@dataclass(frozen=True)
class _Features:
    """The features of one matrix that can be members of a pair."""

    directions: Rows
    glosses: Rows | None
    index: Int[np.ndarray, " m"]
    """the feature of each row kept, rising"""

    @classmethod
    def of(cls, rows: GlossedRows, *, glossed: bool) -> "_Features":
        live, glosses = rows.directions.live, rows.glosses
        kept = np.flatnonzero(live & glosses.live if glossed and glosses is not None else live)
        return cls(rows.directions.take(kept), None if glosses is None else glosses.take(kept), kept)


@dataclass(frozen=True)
class _Job:
    """What decides a pair: everything but the way it is found."""

    left: _Features
    right: _Features
    """the same as `left` where pairs are i < j of one matrix"""
    min_interference: float
    max_similarity: float | None
    signed: bool
    cap: int

    @property
    def square(self) -> bool:
        return self.left is self.right


def _stream(job: _Job, screen_name: ScreenName, tile: int, device: str) -> Iterator[PairBlock]:
    n = job.left.directions.n
    if not n or job.right.directions.n < (2 if job.square else 1):
        return
    screen = make_screen(
        unit_float32(job.left.directions),
        None if job.square else unit_float32(job.right.directions),
        name=screen_name,
        tile=tile,
        device=device,
        threshold=job.min_interference,
    )
    for start in range(0, n, tile):
        yield from _row_block(job, screen, start, min(start + tile, n))


def _row_block(job: _Job, screen: Screen, start: int, stop: int) -> Iterator[PairBlock]:
    """Pairs whose first row is in [start, stop): one block, or two halves if there are too many."""
    parts: list[PairBlock] = []
    total = 0
    first = start // screen.tile if job.square else 0
    for column_block in range(first, -(-screen.columns.n // screen.tile)):
        for part in _tile_pairs(job, screen, slice(start, stop), column_block):
            parts.append(part)
            total += len(part.i)
            if total > job.cap and stop - start > 1:
                parts.clear()
                middle = (start + stop) // 2
                yield from _row_block(job, screen, start, middle)
                yield from _row_block(job, screen, middle, stop)
                return
    if total:
        yield _sorted(parts)


def _tile_pairs(job: _Job, screen: Screen, rows: slice, column_block: int) -> Iterator[PairBlock]:
    """Canonically decided pairs of one tile, in pieces of bounded size."""
    flags = screen.passing(rows, column_block, threshold=job.min_interference, signed=job.signed)
    for r, c in flagged(flags):
        i, j = r + rows.start, c + column_block * screen.tile
        inside = (i < rows.stop) & (j < screen.columns.n)
        if job.square:
            inside &= i < j
        part = _decide(job, i[inside], j[inside])
        if len(part.i):
            yield part


def flagged(flags: Any) -> Iterator[tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]]:
    """Row and column numbers of the set flags of a tile (columns a multiple of 8), in pieces.

    Eight flags are looked at as one word first: survivors are rare, and finding them has an eighth of the work.
    """
    import torch

    words, width = flags.contiguous().view(torch.int64).flatten(), flags.shape[1] // 8
    on_cpu = words.device.type == "cpu"
    # numpy compares four times as fast as torch
    found = torch.from_numpy(np.flatnonzero(words.numpy() != 0)) if on_cpu else words.nonzero().flatten()
    for start in range(0, len(found), _FLAG_WORDS):
        some = found[start : start + _FLAG_WORDS]
        which, bit = np.nonzero(words[some].cpu().numpy()[:, None].view(np.bool_))
        row, word = np.divmod(some.cpu().numpy()[which], width)
        yield row, word * 8 + bit


def flagged_any_width(flags: Any) -> Iterator[tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]]:
    """`flagged` for tiles of any width."""
    from torch.nn.functional import pad

    return flagged(flags if flags.shape[1] % 8 == 0 else pad(flags, (0, -flags.shape[1] % 8)))


def _decide(job: _Job, i: np.ndarray, j: np.ndarray) -> PairBlock:
    left, right = job.left, job.right
    interference = canonical_cosines(left.directions, i, j, other=right.directions)
    keep = interference >= job.min_interference
    if job.signed:
        keep |= interference <= -job.min_interference
    i, j, interference = i[keep], j[keep], interference[keep]
    if left.glosses is None or right.glosses is None:
        similarity = np.full(len(i), np.nan)
    else:
        similarity = canonical_cosines(left.glosses, i, j, other=right.glosses)
        if job.max_similarity is not None:
            keep = similarity < job.max_similarity
            i, j, interference, similarity = i[keep], j[keep], interference[keep], similarity[keep]
    return PairBlock(
        left.index[i].astype(np.int32), right.index[j].astype(np.int32), interference, similarity
    )


def _sorted(parts: list[PairBlock]) -> PairBlock:
    i, j = (np.concatenate([getattr(part, name) for part in parts]) for name in ("i", "j"))
    order = np.lexsort((j, i))
    interference, similarity = (
        np.concatenate([getattr(part, name) for part in parts])[order]
        for name in ("interference", "similarity")
    )
    return PairBlock(i[order], j[order], interference, similarity)


def _batch(block: PairBlock) -> pa.RecordBatch:
    similarity = pa.array(block.similarity, mask=np.isnan(block.similarity))
    columns = [pa.array(block.i), pa.array(block.j), pa.array(block.interference), similarity]
    return pa.RecordBatch.from_arrays(columns, schema=PAIR_SCHEMA)
