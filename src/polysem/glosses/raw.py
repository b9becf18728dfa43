"""Rows of text files, whatever their wrapping: JSON lines, JSON, CSV or TSV, each plain or gzipped.

A row is a dictionary and the place it stands at (`file:line`), so that every error names it. JSON lines are
split at byte 0x0A only: texts may hold U+2028 and U+0085, which `str.splitlines` would cut. JSON may be a
list of rows, a map from feature to text, an SAEDashboard batch or a Neuronpedia feature; each becomes rows.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polysem.errors import FormatError, UnknownReferenceError

GZIP_MAGIC = b"\x1f\x8b"
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")


class Row(NamedTuple):
    """One record of a file."""

    where: str
    """file and line, or file and position"""
    fields: dict[str, Any]


def suffix_of(name: str) -> str:
    """`.jsonl`, `.json`, `.csv` or `.tsv`, whether gzipped or not; "" for any other name."""
    plain = name.lower().removesuffix(".gz")
    return next((s for s in SUFFIXES if plain.endswith(s)), "")


def float32_of(value: object) -> np.ndarray:
    """Numbers of a file as float32; what is beyond its range becomes infinite, for the caller to refuse.

    Raises:
        TypeError, ValueError: the value is not made of numbers.
    """
    with np.errstate(over="ignore"):
        return np.asarray(value, dtype=np.float64).astype(np.float32)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file.

    Raises:
        UnknownReferenceError: there is no such file.
        FormatError: it is not readable as what its name says; names the file and the line.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UnknownReferenceError(f"no file {path}") from error
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from error
    return rows_of_bytes(content, name=str(path))


def rows_of_bytes(content: bytes, *, name: str) -> Iterator[Row]:
    """The rows of a file's content; `name` gives the format and stands in errors."""
    suffix = suffix_of(name)
    if not suffix:
        raise FormatError(f"{name}: unknown kind of file; expected {', '.join(SUFFIXES)}, plain or with .gz")
    content = _gunzip(content, name)
    if suffix == ".jsonl":
        return _json_lines(content, name)
    if suffix == ".json":
        return _json_rows(_loads(content, name, hint="check that the file is complete"), name)
    return _table_rows(content, name, delimiter="\t" if suffix == ".tsv" else ",")


def _gunzip(content: bytes, name: str) -> bytes:
    """Plain bytes. The first two decide, not the name: a web server may have unpacked a .gz on the way."""
    if not content.startswith(GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise FormatError(f"{name} is not whole: {error}", hint="download the file again") from error


def _loads(text: bytes, where: str, *, hint: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FormatError(f"{where} is not JSON: {error}", hint=hint) from error
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{where} is not UTF-8: byte {error.start} is {error.object[error.start]:#x}"
        ) from error


def _json_lines(content: bytes, name: str) -> Iterator[Row]:
    for number, line in enumerate(io.BytesIO(content.removeprefix(b"\xef\xbb\xbf")), start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        yield Row(
            where,
            _mapping(_loads(line, where, hint="download the file again: a line is cut or damaged"), where),
        )


def _json_rows(value: Any, name: str) -> Iterator[Row]:
    if isinstance(value, list):
        for position, item in enumerate(value):
            where = f"{name}[{position}]"
            yield Row(where, _mapping(item, where))
        return
    fields = _mapping(value, name)
    if isinstance(fields.get("features"), list):
        shared = {key: item for key, item in fields.items() if key != "features"}
        for position, item in enumerate(fields["features"]):
            where = f"{name}[{position}]"
            yield Row(where, shared | _mapping(item, where))
    elif "index" in fields or "feature_index" in fields:
        yield Row(name, fields)
    else:
        yield from _map_rows(fields, name)


def _map_rows(fields: dict[str, Any], name: str) -> Iterator[Row]:
    """Rows of a map from feature to a text, to several texts, or to a record."""
    for key, item in fields.items():
        where = f"{name}[{key!r}]"
        if isinstance(item, dict):
            yield Row(where, item if "top_contexts" in item else {"feature": key} | item)
            continue
        for text in item if isinstance(item, list) else [item]:
            yield Row(where, {"feature": key, "gloss": text})


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"{where}: expected a JSON object, got {type(value).__name__} {str(value)[:60]!r}")
    return value


def _table_rows(content: bytes, name: str, *, delimiter: str) -> Iterator[Row]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{name} is not UTF-8: byte {error.start} is {content[error.start]:#x}") from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        twice = sorted({column for column in header if header.count(column) > 1})
        if not header or twice:
            raise FormatError(f"{name}: no usable line of column names; repeated: {twice}, read: {header}")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{name}:{reader.line_num}"
            if len(cells) != len(header):
                raise FormatError(
                    f"{where}: {len(cells)} cells, expected {len(header)} ({', '.join(header)})"
                )
            yield Row(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise FormatError(f"{name}:{reader.line_num}: not a table: {error}") from error
