"""Two run folders, table by table: `python tests/compare_runs.py OLD NEW [--map FILE]`.

Rows are joined on the schema's key. Text and whole numbers must be equal, floats equal to the bit (NaN and null are equal
to themselves); the largest difference of a column that is not is said. Columns, rows and tables that only one run has are
listed. FILE is JSON and says what was renamed: {"columns": {"old": "new"}, "values": {"old": "new"}}.
Ends with 1 if a value differs, or rows are in one run only.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from polysem.store import tables
from polysem.store.schema import Schema

SCHEMAS = {schema.name: schema for schema in vars(tables).values() if isinstance(schema, Schema)}


def compare(
    old: Path, new: Path, renamed: Mapping[str, Mapping[str, str]] | None = None
) -> tuple[list[str], list[str]]:
    """(what differs, what is only in one of the runs or was renamed), a line each."""
    renamed = renamed or {}
    differs: list[str] = []
    said: list[str] = []
    before, after = _tables(old), _tables(new)
    for name in sorted(before | after):
        if name not in before or name not in after:
            said.append(f"{name}: only in the {'new' if name not in before else 'old'} run")
            continue
        a = _renamed(_read(before[name]), renamed)
        b = _read(after[name])
        for only, where in (
            (set(a.column_names) - set(b.column_names), "gone"),
            (set(b.column_names) - set(a.column_names), "new"),
        ):
            said += [f"{name}.{column}: {where}" for column in sorted(only)]
        common = [column for column in a.column_names if column in b.column_names]
        differs += [f"{name}: {line}" for line in _rows(name, a.select(common), b.select(common))]
    return differs, said


def _rows(name: str, a: pa.Table, b: pa.Table) -> Iterator[str]:
    schema = SCHEMAS.get(name.rpartition("/")[2])
    key = [c for c in (schema.key if schema else ()) if c in a.column_names] or [
        c for c in a.column_names if not pa.types.is_floating(a[c].type) and not pa.types.is_nested(a[c].type)
    ]
    if a.num_rows != b.num_rows:
        yield f"{a.num_rows} rows, now {b.num_rows}"
    places = {tuple(row.values()): k for k, row in enumerate(b.select(key).to_pylist())}
    at = [places.get(tuple(row.values())) for row in a.select(key).to_pylist()]
    lost = sum(place is None for place in at)
    if lost:
        yield f"{lost} of {a.num_rows} rows are gone (joined on {', '.join(key)})"
    kept = pa.array([place is not None for place in at], pa.bool_())
    a, b = a.filter(kept), b.take(pa.array([place for place in at if place is not None], pa.int64()))
    for column in a.column_names:
        x, y = a[column].to_pylist(), b[column].to_pylist()
        off = [(p, q) for p, q in zip(x, y, strict=True) if not _same(p, q)]
        if off:
            sizes = [abs(p - q) for p, q in off if isinstance(p, float) and isinstance(q, float)]
            largest = (
                f", largest difference {max(sizes):.3g}"
                if sizes
                else f", first {off[0][0]!r} now {off[0][1]!r}"
            )
            yield f"{column} differs in {len(off)} of {len(x)} rows{largest}"


def _same(p: Any, q: Any) -> bool:
    if isinstance(p, list) and isinstance(q, list):
        return len(p) == len(q) and all(map(_same, p, q))
    return p == q or (p != p and q != q)


def _tables(run: Path) -> dict[str, list[Path]]:
    """stage/table -> its files, parts of a table together."""
    found: dict[str, list[Path]] = {}
    for path in sorted(run.rglob("*.parquet")):
        name = path.stem.split("-0")[0] if "-of-" in path.stem else path.stem
        found.setdefault(str(path.relative_to(run).parent / name), []).append(path)
    return found


def _read(paths: list[Path]) -> pa.Table:
    return pa.concat_tables(
        [pq.read_table(path).replace_schema_metadata(None) for path in paths], promote_options="default"
    )


def _renamed(table: pa.Table, renamed: Mapping[str, Mapping[str, str]]) -> pa.Table:
    columns, values = renamed.get("columns", {}), renamed.get("values", {})
    for k, field in enumerate(table.schema):
        if pa.types.is_string(field.type) and values:
            new = [values.get(v, v) for v in table.column(k).to_pylist()]
            table = table.set_column(k, field, pa.array(new, pa.string()))
    return table.rename_columns([columns.get(name, name) for name in table.column_names])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--map", type=Path)
    asked = parser.parse_args()
    renamed = json.loads(asked.map.read_text(encoding="utf-8")) if asked.map else None
    differs, said = compare(asked.old, asked.new, renamed)
    sys.stdout.write("".join(f"{line}\n" for line in [*said, *differs, f"{len(differs)} differences"]))
    return 1 if differs else 0


if __name__ == "__main__":
    sys.exit(main())
