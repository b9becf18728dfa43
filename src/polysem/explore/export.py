"""The explorer as a folder of static files: any file server shows everything of it but `live`.

Relations become one file per column (little-endian numbers; texts as a dictionary and codes), so that a page
reads only the columns that it sorts, filters or shows. The page asks them the same questions as the server.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from polysem.errors import StoreError, typed
from polysem.explore import documents, figures
from polysem.explore.book import Book, plain
from polysem.explore.query import Query, Sql
from polysem.explore.relations import Field, RunTable
from polysem.explore.server import ASSETS, page
from polysem.store import io

CHUNK = 64
"""features in one file"""
LEFT_OUT = ("contexts", "glosses", "clusters", "partners", "plan", "trials", "pair_effects")
"""tables that are not exported as such: what views show of them is in the records of features and in `steering`"""
_MARK = "polysem-export.json"
_NUMBERS: dict[str, tuple[str, pa.DataType, float]] = {
    "f64": ("<f8", pa.float64(), float("nan")),
    "i32": ("<i4", pa.int64(), -(2**31)),
    "u8": ("u1", pa.uint8(), 255),
}
"""kind of a column -> what is stored, what it is cast to, and what stands for a missing one"""


def export_static(book: Book, folder: Path) -> Path:
    """Write the export; gives the folder.

    Raises:
        StoreError: if the study has no table that can be shown, or the folder holds something else than an earlier export.
    """
    if not book.relations:
        why = next(iter(book.problems.values()), "no stage is finished").splitlines()[0]
        raise StoreError(
            f"{book.folder} holds nothing that can be exported: {why}",
            hint=f"polysem run {typed(book.folder)}/study.toml --out {typed(book.folder)}",
        )
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).is_file():
        raise StoreError(
            f"{folder} is not empty and holds no earlier export",
            hint="choose a new folder, or empty this one",
        )
    if folder.exists():
        shutil.rmtree(folder)
    names = [name for name in book.relations if name not in LEFT_OUT]
    overview = documents.overview(book)
    overview["relations"] = {name: overview["relations"][name] for name in names}
    overview["left_out"] = [name for name in book.relations if name in LEFT_OUT]
    overview["chunk"] = CHUNK
    io.write_text(folder / "index.html", page("static"))
    for name, (content, _) in ASSETS.items():
        if name != "index.html":
            with io.replacing(folder / "static" / name) as stream:
                stream.write(content)
    made = {name: make(book) for name, make in documents.DOCUMENTS.items()} | {"overview": overview}
    for name, document in made.items():
        io.write_text(folder / "data" / f"{name}.json", documents.as_json(document))
    for name in figures.SECTIONS:
        io.write_text(folder / "data" / "figures" / f"{name}.html", figures.section(book, name))
    place = {sae["label"]: k for k, sae in enumerate(overview["saes"])}
    for sae, i, j in figures.measured(book):
        file = folder / "data" / "figures" / "pair" / str(place[sae]) / f"{i}-{j}.html"
        io.write_text(file, figures.of_pair(book, sae, i, j))
    for name in names:
        _relation(book, book.relation(name), folder / "data" / "relations" / name)
    for k, sae in enumerate(overview["saes"]):
        for chunk, records in _features(book, sae["label"]):
            io.write_text(folder / "data" / "features" / str(k) / f"{chunk}.json", documents.as_json(records))
            drawn = figures.of_features(book, sae["label"], [r["feature"] for r in records])
            io.write_text(folder / "data" / "figures" / "feature" / str(k) / f"{chunk}.html", drawn)
    io.write_json(folder / _MARK, {"study": book.study.name, "version": book.version})
    return folder


def _features(book: Book, sae: str) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    found = book.ask(Sql("SELECT feature FROM names WHERE sae = ? ORDER BY feature", [sae]))
    by_chunk: dict[int, list[int]] = {}
    for row in found:
        by_chunk.setdefault(row["feature"] // CHUNK, []).append(row["feature"])
    for chunk, numbers in by_chunk.items():
        yield chunk, documents.features(book, sae, numbers)


def _relation(book: Book, relation: RunTable, folder: Path) -> None:
    schema, batches = book.batches(Query(relation).everything())
    folder.mkdir(parents=True, exist_ok=True)
    columns = [_Column.of(field, schema.field(field.name).type, folder) for field in relation.fields]
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        for column in columns:
            column.add(batch.column(column.name))
    described = {column.name: column.finish() for column in columns}
    io.write_text(folder / "columns.json", documents.as_json({"rows": rows, "columns": described}))


class _Column:
    """One column on its way into its file."""

    def __init__(self, name: str, kind: str, file: IO[bytes]):
        self.name, self.kind, self.file = name, kind, file
        self.codes: dict[str, int] = {}

    @classmethod
    def of(cls, field: Field, dtype: pa.DataType, folder: Path) -> "_Column":
        match field.kind:
            case "flag":
                kind = "u8"
            case "text" | "list":
                kind = field.kind
            case _:
                small = pa.types.is_integer(dtype) and dtype.bit_width <= 32
                kind = "i32" if small else "f64"
        return cls(field.name, kind, (folder / f"{field.name}.bin").open("wb"))

    def add(self, values: pa.Array) -> None:
        """Append values; a text or list that is missing has the code -1."""
        if self.kind in _NUMBERS:
            stored, cast, missing = _NUMBERS[self.kind]
            data = values.cast(cast).fill_null(missing).to_numpy(zero_copy_only=False)
        else:
            stored, data = "<i4", [self._code(v) for v in values.to_pylist()]
        self.file.write(np.asarray(data, dtype=stored).tobytes())

    def _code(self, value: Any) -> int:
        if value is None:
            return -1
        text = documents.as_json(plain(value)) if isinstance(value, list) else str(value)
        return self.codes.setdefault(text, len(self.codes))

    def finish(self) -> dict[str, Any]:
        """Close the file, write the dictionary; gives what the page must know."""
        self.file.close()
        if self.kind in ("text", "list"):
            values = [json.loads(v) for v in self.codes] if self.kind == "list" else list(self.codes)
            io.write_text(Path(self.file.name).with_suffix(".json"), documents.as_json(values))
        return {"type": self.kind}
