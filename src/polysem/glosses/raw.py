"""Rows of text files, whatever their wrapping: JSON lines, JSON, tables of cells, or delphi's folders of one text a feature.

A row is a dictionary and the place it stands at (`file:line`), so that every error names it. JSON may be a list of rows, a
map from feature to text, an SAEDashboard batch or a Neuronpedia feature; each becomes rows. What is JSON lines and what
JSON, and what separates the cells of a table, is told by the content; `boundary.text` parses.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polysem.boundary import text as foreign
from polysem.boundary.door import Door, brief
from polysem.boundary.files import read_bytes, unpack

log = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
DOOR = Door("file", "download the file again: it is cut or damaged")
_ANSWER = {
    "error",
    "message",
    "detail",
    "details",
    "status",
    "code",
    "statusCode",
    "documentation_url",
    "request_id",
    "requestId",
}
"""names of an error of a server in JSON"""
_DELPHI = re.compile(r"^(?P<module>.+?)_(?:latent|feature)_?(?P<feature>\d+)\.txt$")


class GlossRecord(NamedTuple):
    """One record of a file."""

    where: str
    """file and line, or file and position"""
    fields: dict[str, Any]


def suffix_of(name: str) -> str:
    """`.jsonl`, `.json`, `.csv` or `.tsv`, whether packed or not; "" for any other name."""
    plain = re.sub(r"\.(gz|zst)$", "", name.lower())
    if plain.endswith(".ndjson"):
        return ".jsonl"
    return next((s for s in SUFFIXES if plain.endswith(s)), ".txt" if is_delphi(plain) else "")


def is_delphi(name: str) -> bool:
    """Whether a file is named as delphi names the gloss of one latent: `layers.5.mlp_latent12.txt`."""
    return _DELPHI.match(name.lower()) is not None


def float32_of(value: object) -> np.ndarray:
    """Numbers of a file as float32; what is beyond its range becomes infinite, for the caller to refuse.

    Raises:
        TypeError, ValueError: the value is not made of numbers.
    """
    with np.errstate(over="ignore"):
        return np.asarray(value, dtype=np.float64).astype(np.float32)


def read_rows(path: Path, *, may_be_empty: bool = False) -> Iterator[GlossRecord]:
    """The rows of a file.

    Raises:
        UnknownReferenceError: there is no such file.
        FormatError: it is not readable as what its name says; names the file and the line.
    """
    return rows_of_bytes(read_bytes(path, door=DOOR), name=str(path), may_be_empty=may_be_empty)


def rows_of_bytes(content: bytes, *, name: str, may_be_empty: bool = False) -> Iterator[GlossRecord]:
    """The rows of a file's content; `name` gives the format and stands in errors. Logs how many lone surrogates it held."""
    suffix = suffix_of(name.rsplit("/", 1)[-1])
    if not suffix:
        raise DOOR.refuse(
            name,
            f"unknown kind of file; expected {', '.join(SUFFIXES)}, plain or with .gz or .zst",
            hint="give a file with one of these endings",
        )
    content = unpack(content, name, door=DOOR)
    if not content.strip():
        if may_be_empty:
            return iter(())
        raise DOOR.refuse(name, f"it is empty ({len(content)} bytes)")
    foreign.check_kind(content, name, door=DOOR)
    return _rows(content, name, suffix)


def _rows(content: bytes, name: str, suffix: str) -> Iterator[GlossRecord]:
    counts: Counter[str] = Counter()
    if suffix in (".csv", ".tsv"):
        for n, cells in foreign.table_rows(
            content, name, door=DOOR, delimiter="\t" if suffix == ".tsv" else ","
        ):
            yield GlossRecord(f"{name}:{n}", cells)
    elif suffix == ".txt":
        yield _delphi_row(foreign.decode(content, name, door=DOOR, western=True), name)
    else:
        text = foreign.decode(content, name, door=DOOR)
        if foreign.is_lines(text, named_lines=suffix == ".jsonl"):
            for n, value in foreign.json_lines(text, name, door=DOOR, counts=counts, pairs=_once):
                yield GlossRecord(f"{name}:{n}", _mapping(value, f"{name}:{n}"))
        else:
            yield from _json_rows(foreign.parse_json(text, name, door=DOOR, counts=counts, pairs=_once), name)
    for what, n in counts.items():
        log.warning("%s: %d %s by U+FFFD", name, n, what)


def _delphi_row(text: str, name: str) -> GlossRecord:
    """One text file of delphi: the gloss of the latent that the file is named after, plain or as a JSON string."""
    named = _DELPHI.match(name.rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".zst"))
    if named is None:
        raise DOOR.refuse(name, "expected a name like MODULE_latent12.txt")
    bare = text.strip()
    gloss = foreign.parse_json(bare, name, door=DOOR) if bare.startswith('"') and bare.endswith('"') else bare
    return GlossRecord(name, {"feature": named["feature"], "gloss": gloss, "module": named["module"]})


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its pairs. Raises ValueError where a name stands twice: one of the two would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"the name {brief(twice)} stands twice in one object; write a list of rows, or keep one of the two"
        )
    return found


def _json_rows(value: Any, name: str) -> Iterator[GlossRecord]:
    if isinstance(value, list):
        for position, item in enumerate(value):
            where = f"{name}[{position}]"
            yield GlossRecord(where, _mapping(item, where))
        return
    fields = _mapping(value, name)
    if set(fields) <= _ANSWER and {"error", "message", "detail"} & set(fields):
        raise DOOR.refuse(
            name, f"it is what a server said in place of the file: {brief(fields)}", hint="download it again"
        )
    if isinstance(fields.get("features"), list):
        shared = {key: item for key, item in fields.items() if key != "features"}
        for position, item in enumerate(fields["features"]):
            where = f"{name}[{position}]"
            yield GlossRecord(where, shared | _mapping(item, where))
    elif "index" in fields or "feature_index" in fields:
        yield GlossRecord(name, fields)
    else:
        yield from _map_rows(fields, name)


def _map_rows(fields: dict[str, Any], name: str) -> Iterator[GlossRecord]:
    """Rows of a map from feature to a text, to several texts, or to a record."""
    for key, item in fields.items():
        where = f"{name}[{key!r}]"
        if isinstance(item, dict):
            yield GlossRecord(where, item if "top_contexts" in item else {"feature": key} | item)
            continue
        for text in item if isinstance(item, list) else [item]:
            yield GlossRecord(where, {"feature": key, "gloss": text})


def _mapping(value: Any, where: str) -> dict[str, Any]:
    return foreign.json_object(value, where, door=DOOR)
