"""Rows as directions: checked, with their norms, and the one canonical cosine of two of them.

A row's values are kept as given (float32 or float64; half types are widened, which is exact). The canonical
cosine is the dot product of the two rows, summed in float64 in the fixed order of `numpy.einsum`, times the
product of their inverse norms. It is symmetric, depends on the two rows alone, and its error is below (d + 4)
2^-53.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from polysem.errors import ConfigError, MismatchError, NumericsError

_BLOCK = 4096
"""rows widened to float64 at a time"""
_CACHED = 1 << 15
"""float64 entries worked on at a time: two such blocks stay in the second-level cache, where a pass over them costs a third"""


@dataclass(frozen=True)
class Rows:
    """Checked rows. Make it with `prepare_rows`."""

    name: str
    values: Float[np.ndarray, "n d"]
    inverse_norm: Float[np.ndarray, " n"]
    """1 / norm in float64; 0 for a zero row, which has no direction"""

    @property
    def n(self) -> int:
        return self.values.shape[0]

    @property
    def d(self) -> int:
        return self.values.shape[1]

    @property
    def live(self) -> Bool[np.ndarray, " n"]:
        """Rows that have a direction."""
        return self.inverse_norm > 0

    def take(self, index: Int[np.ndarray, " m"]) -> "Rows":
        """The rows of `index`, in its order; no copy if that is all of them."""
        if len(index) == self.n and np.array_equal(index, np.arange(self.n)):
            return self
        return Rows(self.name, self.values[index], self.inverse_norm[index])


def prepare_rows(matrix: Float[Any, "n d"], *, name: str) -> Rows:
    """Rows of a numpy array or torch tensor (any device, any float type), checked and with their norms.

    Args:
        matrix: the rows, not normalised; a zero row is allowed and has no direction. Never changed.
        name: what errors call the matrix.

    Raises:
        NumericsError: naming the row, column and value if an entry is NaN or infinite.
    """
    values = as_numpy(matrix)
    inverse = np.zeros(len(values))
    scaled = None
    step = _cached_rows(values.shape[1])
    for start in range(0, len(values), step):
        block = values[start : start + step].astype(np.float64)
        squares = np.einsum("nd,nd->n", block, block)
        finite = np.array(True) if np.isfinite(squares).all() else np.isfinite(block)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise NumericsError(
                f"{name}: row {start + row} holds {block[row, column]} at column {column}; "
                f"expected finite numbers",
                hint="check the file the rows were loaded from, or set the row to zeros to leave it out",
            )
        if values.dtype == np.float64 and _squares_overflow(block):
            scaled = values.copy() if scaled is None else scaled
            block = _to_unit_scale(block)
            scaled[start : start + step] = block
            squares = np.einsum("nd,nd->n", block, block)
        norm = np.sqrt(squares)
        np.divide(1.0, norm, out=inverse[start : start + step], where=norm > 0)
    return Rows(name, values if scaled is None else scaled, inverse)


@dataclass(frozen=True)
class GlossedRows:
    """Directions of features, and the embeddings of their glosses."""

    directions: Rows
    glosses: Rows | None
    device: str
    """where the directions were given, and products are made"""

    @classmethod
    def of(cls, directions: Any, embeddings: Any) -> "GlossedRows":
        """Checked rows of the two.

        Raises:
            NumericsError: as `prepare_rows`.
            MismatchError: if they differ in their number of rows.
        """
        rows = prepare_rows(directions, name="directions")
        glosses = None if embeddings is None else prepare_rows(embeddings, name="embeddings")
        if glosses is not None and glosses.n != rows.n:
            raise MismatchError(
                f"directions have {rows.n} rows and embeddings {glosses.n}; expected one embedding per feature",
                hint="give a zero row to features without a gloss",
            )
        return cls(rows, glosses, device_of(directions))

    def check_beside(self, other: "GlossedRows") -> None:
        """Raise MismatchError if cosines with rows of another matrix have no meaning."""
        for mine, theirs in ((self.directions, other.directions), (self.glosses, other.glosses)):
            if (mine is None) != (theirs is None):
                raise MismatchError(
                    "one of the two matrices has embeddings and the other has none; expected both or none"
                )
            if mine is not None and theirs is not None and mine.d != theirs.d:
                raise MismatchError(
                    f"{mine.name} of the two matrices are {mine.d} and {theirs.d} wide; expected one width",
                    hint="take dictionaries that write to one space, and glosses of one embedder",
                )


def device_of(matrix: Any) -> str:
    """The torch device of an array; "cpu" of a numpy array."""
    return "cpu" if isinstance(matrix, np.ndarray) else str(matrix.device)


def check_tile(tile: int) -> None:
    """Raise ConfigError unless `tile` is a positive multiple of 8."""
    if tile < 8 or tile % 8:
        raise ConfigError(
            f"tile must be a positive multiple of 8, got {tile}", hint="leave it at its default"
        )


def canonical_cosines(
    rows: Rows, i: Int[np.ndarray, " p"], j: Int[np.ndarray, " p"], *, other: Rows | None = None
) -> Float[np.ndarray, " p"]:
    """Cosines of rows i[p] with rows j[p] (of `other`, if given) in float64, each a function of its two rows
    only; nan if one is a zero row."""
    second = rows if other is None else other
    out = canonical_dots(rows.values, second.values, i, j)
    out *= rows.inverse_norm[i] * second.inverse_norm[j]
    np.clip(out, -1.0, 1.0, out=out)
    out[~(rows.live[i] & second.live[j])] = np.nan
    return out


def canonical_dots(
    left: Float[np.ndarray, "n d"],
    right: Float[np.ndarray, "m d"],
    i: Int[np.ndarray, " p"],
    j: Int[np.ndarray, " p"],
) -> Float[np.ndarray, " p"]:
    """Dot products of left[i[p]] with right[j[p]] in float64, each a function of its two rows only."""
    out = np.empty(len(i))
    step = min(_cached_rows(left.shape[1]), max(len(i), 1))
    a, b = (_Gathered(matrix, step) for matrix in (left, right))
    for start in range(0, len(i), step):
        part = slice(start, start + step)
        np.einsum("pd,pd->p", a.rows(i[part]), b.rows(j[part]), out=out[part])
    return out


class _Gathered:
    """Some rows of a matrix at a time in float64, in memory that is used again."""

    def __init__(self, matrix: Float[np.ndarray, "n d"], most: int):
        self._matrix = np.ascontiguousarray(matrix)
        self._given = np.empty((most, matrix.shape[1]), matrix.dtype)
        self._wide = None if matrix.dtype == np.float64 else np.empty(self._given.shape)

    def rows(self, index: Int[np.ndarray, " p"]) -> Float[np.ndarray, "p d"]:
        """The rows of `index`; valid until the next call."""
        # "clip" lets numpy write straight to `out`; twice as fast as indexing, whose rows are new memory each time
        given = np.take(self._matrix, index, axis=0, out=self._given[: len(index)], mode="clip")
        if self._wide is None:
            return given
        wide = self._wide[: len(index)]
        wide[:] = given
        return wide


def unit_blocks(rows: Rows) -> Iterator[tuple[int, Float[np.ndarray, "m d"]]]:
    """(first row, float64 rows of norm 1) block by block; zero rows stay zero."""
    for start in range(0, rows.n, _BLOCK):
        block = rows.values[start : start + _BLOCK].astype(np.float64)
        yield start, block * rows.inverse_norm[start : start + _BLOCK, None]


def unit_float32(rows: Rows) -> Float[np.ndarray, "n d"]:
    """All rows at norm 1, rounded once from float64 to float32: what the screens multiply."""
    unit = np.empty((rows.n, rows.d), np.float32)
    step = _cached_rows(rows.d)
    for start in range(0, rows.n, step):
        part = slice(start, start + step)
        unit[part] = rows.values[part].astype(np.float64) * rows.inverse_norm[part, None]
    return unit


def _cached_rows(d: int) -> int:
    """Rows of d entries that are worked on at a time."""
    return max(_CACHED // max(d, 1), 1)


def as_numpy(matrix: Any) -> np.ndarray:
    """An array or tensor (any device) as float64 if it is that, else as float32, into which half types go exactly."""
    if not isinstance(matrix, np.ndarray):
        tensor = matrix.detach()
        matrix = (tensor if tensor.element_size() >= 4 else tensor.float()).cpu().numpy()
    return np.ascontiguousarray(matrix, dtype=np.float64 if matrix.dtype == np.float64 else np.float32)


def _squares_overflow(block: np.ndarray) -> bool:
    """Whether squares of float64 entries would leave the range in which they are accurate."""
    largest = np.abs(block).max(axis=1, initial=0.0)
    largest = largest[largest > 0]
    return bool(len(largest)) and bool(largest.max() > 1e150 or largest.min() < 1e-150)


def _to_unit_scale(block: np.ndarray) -> np.ndarray:
    """Each row times a power of two, which is exact and leaves its direction alone."""
    _, exponent = np.frexp(np.abs(block).max(axis=1, initial=0.0))
    return np.ldexp(block, -exponent[:, None])
