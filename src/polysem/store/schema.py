"""Schemas as objects: a table is a key, a version and columns with dtype, unit and meaning.

Everything that reads or writes a table checks it against its schema; the documentation page and the
explorer's column heads are generated from the same objects.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.errors import StoreError


def or_null(value: float) -> float | None:
    """For a table: null where there is no finite number."""
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class Column:
    """One column: `unit` is a physical or statistical unit, or "" for identifiers and text."""

    name: str
    dtype: pa.DataType
    unit: str
    meaning: str
    nullable: bool = False


@dataclass(frozen=True)
class Schema:
    """A table's columns in order, its key and its version."""

    name: str
    version: int
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    late: bool = False
    """whether a finished stage of before there was this table may lack it; it then has no rows"""

    def arrow(self) -> pa.Schema:
        """The arrow schema, with version and units in the field metadata."""
        fields = [
            pa.field(c.name, c.dtype, nullable=c.nullable, metadata={"unit": c.unit, "meaning": c.meaning})
            for c in self.columns
        ]
        return pa.schema(fields, metadata={"polysem_table": self.name, "polysem_version": str(self.version)})

    def empty(self, columns: Sequence[str] | None = None) -> pa.Table:
        """No rows; of these columns, None being all."""
        empty = self.arrow().empty_table()
        return empty if columns is None else empty.select(list(columns))

    def of_rows(self, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
        """The table of some rows, perhaps of none.

        Where a null may stand, one stands for what a row leaves out, and for a number that is not finite.

        Raises:
            StoreError: on an unknown column, and as `conform`.
        """
        wanted = {c.name for c in self.columns}
        open_ends = {c.name for c in self.columns if c.nullable and pa.types.is_floating(c.dtype)}
        rows = list(rows)
        unknown = sorted(set[str]().union(*rows) - wanted)
        if unknown:
            raise StoreError(f"table {self.name}: unknown columns {unknown}")
        finite = [
            {
                k: None if k in open_ends and v is not None and not math.isfinite(v) else v
                for k, v in row.items()
            }
            for row in rows
        ]
        return self.of(finite)

    def of(self, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
        """The table of some rows, as `conform` makes it; keys that are no columns are left out."""
        return self.conform(pa.Table.from_pylist(list(rows), schema=self.arrow()))

    def conform(self, table: pa.Table) -> pa.Table:
        """`table` cast to this schema, columns in order, rows sorted by key.

        Raises:
            StoreError: on a missing or unknown column, a null where none is allowed, a wrong type, or a
                repeated key.
        """
        wanted = [c.name for c in self.columns]
        missing = [n for n in wanted if n not in table.column_names]
        unknown = [n for n in table.column_names if n not in wanted]
        if missing or unknown:
            raise StoreError(f"table {self.name}: missing columns {missing}, unknown columns {unknown}")
        table = table.select(wanted)
        for c in self.columns:
            if not c.nullable and table.column(c.name).null_count:
                raise StoreError(f"table {self.name}: column {c.name!r} holds nulls but may not")
        try:
            table = table.cast(self.arrow())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise StoreError(f"table {self.name}: columns do not have the declared types: {error}") from error
        order = pc.sort_indices(table, [(k, "ascending") for k in self.key])
        if not np.array_equal(order.to_numpy(), np.arange(table.num_rows)):
            for k, name in enumerate(wanted):  # one after the other: of a large table two copies are much
                table = table.set_column(k, table.schema.field(k), table[name].take(order))
        table = table.combine_chunks()
        same = np.ones(max(table.num_rows - 1, 0), dtype=np.bool_)
        for name in self.key:
            same &= _same_as_next(table[name])
        if same.any():
            raise StoreError(f"table {self.name}: {same.sum()} repeated keys {self.key}")
        return table


def _same_as_next(column: pa.ChunkedArray) -> np.ndarray:
    """Whether a row holds what the next one does; two nulls do."""
    this, after = column.slice(0, max(len(column) - 1, 0)), column.slice(1)
    equal = pc.fill_null(pc.equal(this, after), False)
    return pc.or_(equal, pc.and_(pc.is_null(this), pc.is_null(after))).to_numpy()


def group_codes(table: pa.Table, columns: Iterable[str]) -> np.ndarray:
    """One number per row, equal where all columns are, in the order of their values, nulls last: [rows], int64. Strings of a large
    table are looked at once."""
    code = np.zeros(table.num_rows, dtype=np.int64)
    for name in columns:
        encoded = table[name].combine_chunks().dictionary_encode()
        order = pc.sort_indices(encoded.dictionary).to_numpy()
        rank = np.empty(len(order) + 1, dtype=np.int64)
        rank[order], rank[-1] = np.arange(len(order)), len(order)
        own = rank[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)] if table.num_rows else code
        # Made dense after every column, the product stays far below 2^63.
        code = np.unique(code * len(rank) + own, return_inverse=True)[1].astype(np.int64)
    return code
