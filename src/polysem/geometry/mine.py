"""Pairs of rows over a threshold of interference and under one of gloss similarity, all of them, exactly.

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

from polysem.errors import ConfigError, MismatchError
from polysem.geometry.rows import Rows, canonical_cosines, prepare_rows, unit_float32
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
    signed: bool = False,
    screen: ScreenName = "auto",
    tile: int = 2048,
) -> pa.Table:
    """All pairs i < j with cosine of directions >= min_interference and cosine of embeddings <
    max_similarity.

    Args:
        directions: [n_features d_model], numpy or torch on any device; normalised inside. A zero row has no
            direction: no pairs.
        embeddings: [n_features d_embed] of the same features; a zero row means "no gloss". None: no
            similarities.
        min_interference: least cosine, inclusive.
        max_similarity: gloss similarity must be strictly below; features without a gloss are then left out.
            None: pairs are kept whatever their similarity, which is null where a gloss is missing.
        signed: keep cosine <= -min_interference too.
        screen: arithmetic of the first pass; "auto" takes the fastest that passes its probe. The result does
            not depend on it.
        tile: rows and columns of a tile. The result does not depend on it.

    Returns:
        Columns i, j (int32), interference, similarity (float64, cosines), sorted by (i, j). For results that
        do not fit in memory take `pair_blocks`.

    Raises:
        NumericsError: naming the row, if an entry is NaN or infinite.
        MismatchError: if directions and embeddings differ in their number of rows.
        ConfigError: if a threshold is no cosine, or max_similarity is given without embeddings.
    """
    stream = pair_blocks(
        directions,
        embeddings,
        min_interference=min_interference,
        max_similarity=max_similarity,
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
    signed: bool = False,
    screen: ScreenName = "auto",
    tile: int = 2048,
    cap: int = _CAP,
) -> Iterator[PairBlock]:
    """The pairs of `mine_pairs` as a stream: blocks in order of i, sorted, at most `cap` pairs (or one
    feature's) each.

    Arguments and errors as in `mine_pairs`; they are checked before the first block is asked for.
    """
    unit, gloss, kept = _checked(directions, embeddings, min_interference, max_similarity, tile)
    device = "cpu" if isinstance(directions, np.ndarray) else str(directions.device)
    job = _Job(unit, gloss, kept, min_interference, max_similarity, signed, cap)
    return _stream(job, screen, tile, device)


@dataclass(frozen=True)
class _Job:
    """What decides a pair: everything but the way it is found."""

    directions: Rows
    glosses: Rows | None
    features: Int[np.ndarray, " m"]
    """the feature of each row kept, rising"""
    min_interference: float
    max_similarity: float | None
    signed: bool
    cap: int


def _checked(
    directions: Any, embeddings: Any, min_interference: float, max_similarity: float | None, tile: int
) -> tuple[Rows, Rows | None, np.ndarray]:
    for name, value in (("min_interference", min_interference), ("max_similarity", max_similarity)):
        if value is not None and not math.isfinite(value):
            raise ConfigError(
                f"{name} must be a finite number, got {value}", hint="the paper's are 0.2 and 0.3"
            )
    if tile < 8 or tile % 8:
        raise ConfigError(
            f"tile must be a positive multiple of 8, got {tile}", hint="leave it at its default, 2048"
        )
    rows = prepare_rows(directions, name="directions")
    if embeddings is None:
        if max_similarity is not None:
            raise ConfigError(
                f"max_similarity is {max_similarity} but embeddings are None: no similarity can be computed",
                hint="give gloss embeddings, or max_similarity=None",
            )
        kept = np.flatnonzero(rows.live)
        return rows.take(kept), None, kept
    glosses = prepare_rows(embeddings, name="embeddings")
    if glosses.n != rows.n:
        raise MismatchError(
            f"directions have {rows.n} rows and embeddings {glosses.n}; expected one embedding per feature",
            hint="give a zero row to features without a gloss",
        )
    kept = np.flatnonzero(rows.live if max_similarity is None else rows.live & glosses.live)
    return rows.take(kept), glosses.take(kept), kept


def _stream(job: _Job, screen_name: ScreenName, tile: int, device: str) -> Iterator[PairBlock]:
    n = job.directions.n
    if n < 2:
        return
    screen = make_screen(
        unit_float32(job.directions),
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
    for column_block in range(start // screen.tile, -(-screen.n // screen.tile)):
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
        inside = (i < j) & (i < rows.stop) & (j < screen.n)
        part = _decide(job, i[inside], j[inside])
        if len(part.i):
            yield part


def flagged(flags: Any) -> Iterator[tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]]:
    """Row and column numbers of the set flags of a tile (columns a multiple of 8), in pieces.

    Eight flags are looked at as one word first: survivors are rare, and `nonzero` then has an eighth of the
    work.
    """
    import torch

    words = flags.contiguous().view(torch.int64).nonzero()
    grouped = flags.view(flags.shape[0], -1, 8)
    for start in range(0, len(words), _FLAG_WORDS):
        row, word = words[start : start + _FLAG_WORDS].unbind(1)
        which, bit = grouped[row, word].nonzero().unbind(1)
        yield row[which].cpu().numpy(), (word[which] * 8 + bit).cpu().numpy()


def flagged_any_width(flags: Any) -> Iterator[tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]]:
    """`flagged` for tiles of any width."""
    from torch.nn.functional import pad

    return flagged(flags if flags.shape[1] % 8 == 0 else pad(flags, (0, -flags.shape[1] % 8)))


def _decide(job: _Job, i: np.ndarray, j: np.ndarray) -> PairBlock:
    interference = canonical_cosines(job.directions, i, j)
    keep = interference >= job.min_interference
    if job.signed:
        keep |= interference <= -job.min_interference
    i, j, interference = i[keep], j[keep], interference[keep]
    if job.glosses is None:
        similarity = np.full(len(i), np.nan)
    else:
        similarity = canonical_cosines(job.glosses, i, j)
        if job.max_similarity is not None:
            keep = similarity < job.max_similarity
            i, j, interference, similarity = i[keep], j[keep], interference[keep], similarity[keep]
    return PairBlock(
        job.features[i].astype(np.int32), job.features[j].astype(np.int32), interference, similarity
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
