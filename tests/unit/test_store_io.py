"""Result files: whole or not at all, equal tables give equal bytes, and damage is named."""

import errno
import hashlib
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from polysem.errors import StoreError
from polysem.store import io
from polysem.store.schema import Column, Schema, group_codes

DOGS = Schema(
    "dogs",
    2,
    ("name",),
    (
        Column("name", pa.string(), "", "what it is called"),
        Column("weight", pa.float64(), "kg", "", nullable=True),
        Column("tricks", pa.list_(pa.string()), "", ""),
    ),
)
ROWS = [
    {"name": "rex", "weight": 31.5, "tricks": ["sit", "stay"]},
    {"name": "ada", "weight": None, "tricks": []},
    {"name": "bo", "weight": 4.25, "tricks": ["roll"]},
]
REBUILD = "polysem dogs"


def dogs(rows: list[dict] = ROWS) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=DOGS.arrow())


def test_a_table_comes_back_sorted_by_its_key(tmp_path: Path):
    digest = io.write_table(tmp_path / "dogs.parquet", dogs(), DOGS)
    back = io.read_table(tmp_path / "dogs.parquet", DOGS, rebuild=REBUILD)
    assert back.to_pylist() == sorted(ROWS, key=lambda row: row["name"])
    assert digest == hashlib.sha256((tmp_path / "dogs.parquet").read_bytes()).hexdigest()


def test_equal_tables_give_equal_bytes_however_they_were_made(tmp_path: Path):
    one = dogs()
    chunked = pa.concat_tables([dogs(ROWS[2:]), dogs(ROWS[:1]), dogs(ROWS[1:2])])
    sliced = pa.concat_tables([dogs(), dogs()]).slice(2, 3)
    encoded = (
        dogs().set_column(0, "name", dogs()["name"].dictionary_encode()).select(["tricks", "weight", "name"])
    )
    digests = {
        io.write_table(tmp_path / f"{n}.parquet", table, DOGS)
        for n, table in enumerate((one, chunked, sliced, encoded))
    }
    assert len(digests) == 1


def test_other_values_give_other_bytes(tmp_path: Path):
    changed = [{**ROWS[0], "weight": 31.500001}, *ROWS[1:]]
    assert io.write_table(tmp_path / "a", dogs(), DOGS) != io.write_table(tmp_path / "b", dogs(changed), DOGS)


def test_columns_and_rows_can_be_asked_for(tmp_path: Path):
    io.write_table(tmp_path / "dogs.parquet", dogs(), DOGS)
    some = io.read_table(
        tmp_path / "dogs.parquet", DOGS, rebuild=REBUILD, columns=["name"], where=pc.field("weight") > 10
    )
    assert some.to_pylist() == [{"name": "rex"}]
    assert io.count_rows(tmp_path / "dogs.parquet", DOGS, rebuild=REBUILD) == 3


def test_a_table_that_does_not_conform_is_not_written(tmp_path: Path):
    with pytest.raises(StoreError, match="repeated keys"):
        io.write_table(tmp_path / "dogs.parquet", pa.concat_tables([dogs(), dogs()]), DOGS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [0, 1, 20, -1, -9])
def test_a_truncated_table_is_an_error_that_names_file_and_command(tmp_path: Path, cut: int):
    path = tmp_path / "dogs.parquet"
    io.write_table(path, dogs(), DOGS)
    path.write_bytes(path.read_bytes()[:cut])
    for read in (io.read_table, io.count_rows):
        with pytest.raises(StoreError, match=r"dogs\.parquet.*truncated or damaged") as caught:
            read(path, DOGS, rebuild=REBUILD)
        assert caught.value.hint == REBUILD


def test_a_missing_table_is_an_error_that_names_file_and_command(tmp_path: Path):
    with pytest.raises(StoreError, match=r"dogs\.parquet is missing") as caught:
        io.read_table(tmp_path / "dogs.parquet", DOGS, rebuild=REBUILD)
    assert caught.value.hint == REBUILD


def test_another_schema_version_table_or_column_is_refused(tmp_path: Path):
    path = tmp_path / "dogs.parquet"
    io.write_table(path, dogs(), Schema("dogs", 1, DOGS.key, DOGS.columns))
    with pytest.raises(StoreError, match=r"dogs version 1, expected dogs version 2"):
        io.read_table(path, DOGS, rebuild=REBUILD)
    pq.write_table(pa.table({"name": ["rex"]}), path)
    with pytest.raises(StoreError, match="a parquet file of another program"):
        io.read_table(path, DOGS, rebuild=REBUILD)
    pq.write_table(dogs().drop_columns("tricks").replace_schema_metadata(DOGS.arrow().metadata), path)
    with pytest.raises(StoreError, match="columns tricks are not as table dogs declares"):
        io.read_table(path, DOGS, rebuild=REBUILD)


def test_arrays_come_back_and_are_the_same_file_in_any_order(tmp_path: Path):
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.zeros((0, 4), np.float32)}
    one = io.write_arrays(tmp_path / "one", arrays)
    two = io.write_arrays(tmp_path / "two", dict(reversed(arrays.items())))
    assert one == two
    back = io.read_arrays(tmp_path / "one", rebuild=REBUILD)
    assert list(back) == ["a", "b"]
    np.testing.assert_array_equal(back["b"], arrays["b"])
    assert back["a"].shape == (0, 4)


def test_arrays_may_be_views(tmp_path: Path):
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    io.write_arrays(tmp_path / "turned", {"x": turned})
    np.testing.assert_array_equal(io.read_arrays(tmp_path / "turned", rebuild=REBUILD)["x"], turned)


@pytest.mark.parametrize("cut", [0, 7, 30, -1])
def test_truncated_arrays_are_an_error(tmp_path: Path, cut: int):
    path = tmp_path / "x.safetensors"
    io.write_arrays(path, {"x": np.ones((3, 3), np.float32)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StoreError, match=r"x\.safetensors.*truncated or damaged"):
        io.read_arrays(path, rebuild=REBUILD)


def test_arrays_one_by_one_are_those_read_together(tmp_path):
    path = tmp_path / "a.safetensors"
    io.write_arrays(path, {"b": np.arange(6.0).reshape(2, 3), "a": np.zeros((0, 4), np.float32)})
    found = io.Arrays(path, rebuild=REBUILD)
    assert list(found) == ["a", "b"]
    assert "b" in found
    assert "c" not in found
    assert found.get("c") is None
    for name, array in io.read_arrays(path, rebuild=REBUILD).items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"a\.safetensors"):
        io.Arrays(path, rebuild=REBUILD)
    with pytest.raises(StoreError, match=r"a\.safetensors"):
        found["b"]
    path.unlink()
    with pytest.raises(StoreError, match=r"a\.safetensors"):
        io.Arrays(path, rebuild=REBUILD)


def test_json_is_canonical_and_damage_is_named(tmp_path: Path):
    path = tmp_path / "x.json"
    assert io.write_json(path, {"b": 1, "a": "ä"}) == io.write_json(tmp_path / "y.json", {"a": "ä", "b": 1})
    assert io.read_json(path, rebuild=REBUILD) == {"a": "ä", "b": 1}
    path.write_text("[1]")
    with pytest.raises(StoreError, match="holds a JSON list"):
        io.read_json(path, rebuild=REBUILD)
    path.write_text('{"a": ')
    with pytest.raises(StoreError, match=r"x\.json.*damaged"):
        io.read_json(path, rebuild=REBUILD)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "file"
    io.write_text(path, "old")

    def interrupted():
        with io.replacing(path) as stream:
            stream.write(b"half of the ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def full_disk(path: Path):
    """/dev/full takes no byte: the system's own ENOSPC."""
    path.write_bytes(b"")
    return open("/dev/full", "wb")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("kind", ["table", "text", "arrays"])
def test_a_full_disk_is_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    path = tmp_path / "file"
    io.write_text(path, "old")
    monkeypatch.setattr(io, "_open", full_disk)
    writes = {
        "table": lambda: io.write_table(path, dogs(), DOGS),
        "text": lambda: io.write_text(path, "new"),
        "arrays": lambda: io.write_arrays(path, {"x": np.ones(1000)}),
    }
    with pytest.raises(StoreError, match=r"the disk is full: .*file was not written") as caught:
        writes[kind]()
    assert "free some space" in str(caught.value.hint)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_no_space_is_noticed_wherever_the_system_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
):
    def fails(*_: object):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv(io.SYNC, "1")
    monkeypatch.setattr(os, call, fails)
    with pytest.raises(StoreError, match="the disk is full"):
        io.write_table(tmp_path / "file", dogs(), DOGS)
    assert list(tmp_path.iterdir()) == []


def test_a_file_over_the_size_limit_is_an_error(tmp_path: Path):
    big = {"x": np.random.default_rng(0).random(100_000)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StoreError, match=r"cannot write .*file"):
            io.write_arrays(tmp_path / "file", big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        io.write_text(tmp_path / "file" / "below", "x")


def test_tree_hashes_see_names_and_content_and_no_hidden_files(tmp_path: Path):
    for name in ("a/x.txt", "a/y.txt"):
        io.write_text(tmp_path / name, "1")
    before = io.sha256_tree(tmp_path)
    io.write_text(tmp_path / "a/.hidden", "1")
    assert io.sha256_tree(tmp_path) == before
    (tmp_path / "a/y.txt").rename(tmp_path / "a/z.txt")
    renamed = io.sha256_tree(tmp_path)
    io.write_text(tmp_path / "a/z.txt", "2")
    assert len({before, renamed, io.sha256_tree(tmp_path)}) == 3
    io.write_text(tmp_path / "a/big.bin", "x")
    assert io.sha256_tree(tmp_path, suffixes=(".txt",)) != io.sha256_tree(tmp_path)
    assert io.sha256_tree(tmp_path / "a/x.txt") == io.sha256(tmp_path / "a/x.txt")


def test_rows_that_hold_the_same_have_one_number_in_the_order_of_their_values_nulls_last():
    rows = [("b", 1), ("a", None), ("a", 2), ("b", 1), (None, 2), ("a", None)]
    table = pa.table({"x": [x for x, _ in rows], "n": pa.array([n for _, n in rows], pa.int32())})
    order = sorted(set(rows), key=lambda row: tuple((value is None, value or 0) for value in row))
    assert group_codes(table, ("x", "n")).tolist() == [order.index(row) for row in rows]
    assert group_codes(table.slice(0, 0), ("x",)).tolist() == []
