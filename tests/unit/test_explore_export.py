"""The export: the files hold what the server answers."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from polysem.errors import StoreError
from polysem.explore import Book, export_static
from polysem.explore.documents import feature
from polysem.explore.query import Query
from support.synthetic import SyntheticStudy, synthetic_run

WORLD = SyntheticStudy(n_features=80, n_targets=3, n_prompts=4, doses=(0.1,), sources_per_bin=1)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return Book(synthetic_run(tmp_path_factory.mktemp("run"), WORLD))


@pytest.fixture(scope="module")
def folder(book, tmp_path_factory):
    return export_static(book, tmp_path_factory.mktemp("out") / "export")


@pytest.mark.parametrize("name", ["pairs", "steering", "features", "effects", "hubs", "missing"])
def test_columns_hold_what_the_server_answers(book, folder, name):
    relation = book.relation(name)
    rows, total = book.page(Query.parse(relation, limit=1000))
    described = json.loads((folder / "data" / "relations" / name / "columns.json").read_text())
    assert described["rows"] == total
    for field in relation.fields:
        kind = described["columns"][field.name]["type"]
        raw = (folder / "data" / "relations" / name / f"{field.name}.bin").read_bytes()
        values = np.frombuffer(raw, {"f64": "<f8", "u8": "u1"}.get(kind, "<i4"))
        assert len(values) == total
        if kind in ("text", "list"):
            words = json.loads((folder / "data" / "relations" / name / f"{field.name}.json").read_text())
            read = [None if v < 0 else words[v] for v in values]
        elif kind == "u8":
            read = [None if v == 255 else bool(v) for v in values]
        elif kind == "i32":
            read = [None if v == -(2**31) else int(v) for v in values]
        else:
            read = [None if np.isnan(v) else float(v) for v in values]
        assert read[:1000] == [row[field.name] for row in rows], field.name


def test_records_of_features_are_those_of_the_server(book, folder):
    chunk = json.loads((folder / "data" / "features" / "0" / "1.json").read_text())
    assert [r["feature"] for r in chunk] == list(range(64, 80))
    assert chunk[3] == feature(book, WORLD.saes[0], 67)


def test_the_page_of_an_export_carries_its_policy(folder):
    page = (folder / "index.html").read_text()
    assert "default-src 'none'" in page
    assert 'content="static"' in page
    assert "unsafe" not in page


def test_an_export_replaces_an_export_and_nothing_else(book, folder, tmp_path):
    export_static(book, folder)
    (tmp_path / "thesis.tex").write_text("five years")
    with pytest.raises(StoreError, match="is not empty"):
        export_static(book, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "five years"


def test_a_study_without_a_table_to_show_is_not_exported(tmp_path):
    """Nothing made yet, or every table of another version: an empty page would say that there is nothing to see."""
    run = synthetic_run(tmp_path / "run", WORLD)
    for table in run.glob("*/*.parquet"):
        old = pq.read_table(table)
        meta = {**(old.schema.metadata or {}), b"polysem_version": b"0"}
        pq.write_table(old.replace_schema_metadata(meta), table)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "study.toml").write_text((run / "study.toml").read_text())
    for folder, why in ((run, "holds features version 0"), (bare, "no stage is finished")):
        with pytest.raises(StoreError, match=f"nothing that can be exported: .*{why}") as caught:
            export_static(Book(folder), tmp_path / "site")
        assert caught.value.hint == f"polysem run {folder}/study.toml --out {folder}"
    assert not (tmp_path / "site").exists()


def test_equal_tables_give_equal_exports(book, folder, tmp_path):
    again = export_static(book, tmp_path / "again")
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((folder / f).read_bytes() == (again / f).read_bytes() for f in files)
