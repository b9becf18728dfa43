"""What is on the screen as a file: CSV that a spreadsheet takes for text, parquet, JSON lines."""

import csv
import io
import json
import tempfile
from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from polysem.explore.book import Book
from polysem.explore.query import Query

Format = Literal["csv", "parquet", "jsonl"]
MEDIA: dict[str, str] = {
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
    "jsonl": "application/x-ndjson",
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""what a spreadsheet may take for the beginning of a formula (CWE-1236), full-width forms included"""
_CHUNK = 1 << 18
_IN_MEMORY = 1 << 24


def rows_as(book: Book, query: Query, wanted: Format) -> Iterator[bytes]:
    """All rows of a query, whatever its page, as the bytes of a file.

    The first batch is read at once, so that what is wrong is raised here and not in the middle of a file.
    """
    schema, batches = book.batches(query.everything())
    match wanted:
        case "csv":
            return _csv(schema, batches)
        case "jsonl":
            return _jsonl(batches)
        case "parquet":
            return _parquet(schema, batches)


def cell(value: Any) -> str:
    """A value as the text of a CSV cell: a text that a spreadsheet could take for a formula gets an
    apostrophe in front."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        value = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        return repr(value)
    # Blanks in front are skipped by spreadsheets, so they do not hide a formula.
    return f"'{value}" if value.lstrip(" \u00a0").startswith(_FORMULA) else value


def _csv(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(schema.names)
    for batch in batches:
        columns = [column.to_pylist() for column in batch.columns]
        writer.writerows([cell(value) for value in row] for row in zip(*columns, strict=True))
        yield text.getvalue().encode("utf-8")
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode("utf-8")


def _jsonl(batches: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
    for batch in batches:
        lines = (json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) for row in batch.to_pylist())
        yield "".join(f"{line}\n" for line in lines).encode()


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and v - v != 0 else v for k, v in row.items()}


def _parquet(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
        file.seek(0)
        while chunk := file.read(_CHUNK):
            yield chunk
