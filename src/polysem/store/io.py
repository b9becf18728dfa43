"""The only place that opens result files.

A file is written whole or not at all: into a temporary file of the same folder, flushed to the disk, then
put in place in one step. What is written twice from equal tables is equal byte for byte. What is read is
checked against its schema. Every failure is a StoreError that names the file and what to do next.
"""

import errno
import hashlib
import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from polysem.boundary.door import Door
from polysem.boundary.files import regular
from polysem.boundary.text import parse_json
from polysem.errors import StoreError
from polysem.profiling import counts_as
from polysem.progress import tracked
from polysem.store.schema import Schema

TEMPORARY = ".tmp"
"""suffix of files that are being written; none of them is ever read"""

SYNC = "POLYSEM_SYNC"
"""environment variable: 0 does not wait for the disk, which is safe when a process is killed, not when power fails"""

PIECE, SHOWN = 1 << 22, 64
"""bytes that are hashed at once, and pieces above which it is shown how far a file is"""
_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def replacing(path: Path) -> Generator[IO[bytes], None, None]:
    """A stream whose bytes become `path` when the block ends, and nothing if it does not.

    Raises:
        StoreError: if the file cannot be written, the disk being full included.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open(temporary) as stream:
            yield stream
            stream.flush()
            to_disk(stream.fileno())
        put_in_place(temporary, path)
    except OSError as error:
        _discard(temporary)
        raise _not_written(path, error) from error
    except BaseException:
        _discard(temporary)
        raise


def to_disk(descriptor: int) -> None:
    """Wait until the disk has what was written; not at all where POLYSEM_SYNC is 0."""
    if os.environ.get(SYNC, "1") != "0":
        os.fsync(descriptor)


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a written file its name, durably: after a crash there is the old file or the new one."""
    os.replace(temporary, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            to_disk(folder)
        finally:
            os.close(folder)


@counts_as("io")
def write_text(path: Path, text: str) -> str:
    """Write text as UTF-8; gives the sha256 of the file."""
    with replacing(path) as stream:
        stream.write(text.encode())
    return sha256(path)


@counts_as("io")
def read_text(path: Path, *, rebuild: str) -> str:
    """The text of a file. Raises StoreError if it is missing or not UTF-8."""
    _check_file(path, rebuild=rebuild)
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise _not_read(path, error, rebuild=rebuild) from error


def write_json(path: Path, value: Mapping[str, Any]) -> str:
    """Write a JSON object, keys sorted; gives the sha256 of the file."""
    return write_text(
        path, json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )


def read_json(path: Path, *, rebuild: str) -> dict[str, Any]:
    """The JSON object of a file.

    Args:
        path: the file.
        rebuild: the command that makes it, for the error's hint.

    Raises:
        StoreError: if it is missing, truncated, or no object.
    """
    text = read_text(path, rebuild=rebuild)
    try:
        value = parse_json(text, path, door=Door(hint=rebuild, error=StoreError, missing=StoreError))
    except StoreError as error:
        raise _not_read(path, error, rebuild=rebuild) from error
    if not isinstance(value, dict):
        raise StoreError(f"{path} holds a JSON {type(value).__name__}, expected an object", hint=rebuild)
    return cast("dict[str, Any]", value)


@counts_as("io")
def write_table(path: Path, table: pa.Table, schema: Schema) -> str:
    """Write a table as parquet, conformed to its schema; gives the sha256 of the file. Equal tables give
    equal bytes.

    Raises:
        StoreError: if the table does not conform, or cannot be written.
    """
    whole = schema.conform(table)
    with replacing(path) as stream:
        # Every choice that shapes the bytes is made here, so that defaults of another pyarrow do not make it.
        pq.write_table(
            whole,
            stream,
            version="2.6",
            compression="zstd",
            compression_level=3,
            use_dictionary=True,
            write_statistics=True,
            data_page_version="1.0",
            row_group_size=1 << 16,  # a dictionary's rows are read without those of the others
            data_page_size=1 << 20,
            store_schema=True,
        )
    return sha256(path)


@counts_as("io")
def read_table(
    path: Path,
    schema: Schema,
    *,
    rebuild: str,
    columns: Sequence[str] | None = None,
    where: pc.Expression | None = None,
) -> pa.Table:
    """The table of a parquet file, checked against its schema, or the columns and rows of it that are asked
    for.

    Args:
        path: the file.
        schema: what it must hold.
        rebuild: the command that makes it, for the error's hint.
        columns: names of columns; None reads all.
        where: which rows; None reads all.

    Raises:
        StoreError: if the file is missing, truncated, of another table or version, or has other columns.
    """
    try:
        with _opened(path) as stream:
            _check_schema(path, pq.read_schema(stream), schema, rebuild=rebuild)
            wanted = None if columns is None else list(columns)
            return pq.read_table(stream, columns=wanted, filters=where)
    except (OSError, pa.ArrowException) as error:
        raise _not_read(path, error, rebuild=rebuild) from error


def _opened(path: Path) -> pa.OSFile:
    # A native file, not Python's: Arrow reads in threads of its own, and one of them that lets go of a Python
    # object while the interpreter ends takes the process down ("terminate called without an active exception").
    return pa.OSFile(str(path))


@counts_as("io")
def count_rows(path: Path, schema: Schema, *, rebuild: str) -> int:
    """Rows of a parquet file, from its footer; its schema is checked as by `read_table`."""
    try:
        with _opened(path) as stream:
            file = pq.ParquetFile(stream)
            rows, seen = file.metadata.num_rows, file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise _not_read(path, error, rebuild=rebuild) from error
    _check_schema(path, seen, schema, rebuild=rebuild)
    return rows


@counts_as("io")
def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write named arrays as safetensors; gives the sha256 of the file."""
    from safetensors.numpy import save

    whole = save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})
    with replacing(path) as stream:
        stream.write(whole)
    return sha256(path)


@counts_as("io")
def read_arrays(path: Path, *, rebuild: str) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, by name. Raises StoreError if it is missing or truncated."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    _check_file(path, rebuild=rebuild)
    try:
        arrays = load(path.read_bytes())
    except (OSError, SafetensorError, ValueError) as error:
        raise _not_read(path, error, rebuild=rebuild) from error
    return {name: arrays[name] for name in sorted(arrays)}


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of a safetensors file, each read when it is asked for, and not kept."""

    def __init__(self, path: Path, *, rebuild: str):
        """Looks at names and sizes. Raises StoreError if the file is missing or truncated."""
        self._path, self._rebuild = path, rebuild
        with self._opened() as stream:
            self._names = sorted(stream.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        with self._opened() as stream:
            return stream.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @contextmanager
    def _opened(self) -> Generator[Any, None, None]:
        from safetensors import SafetensorError, safe_open

        _check_file(self._path, rebuild=self._rebuild)
        try:
            with safe_open(self._path, framework="numpy") as stream:  # pyright: ignore[reportUnknownVariableType]
                yield stream
        except (OSError, SafetensorError, ValueError) as error:
            raise _not_read(self._path, error, rebuild=self._rebuild) from error


@counts_as("io")
def sha256(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    _check_file(path, rebuild="put the file there, or run the same command again")
    return sha256_joined([path])


def sha256_joined(files: Sequence[Path]) -> str:
    """The sha256 of files one after the other, as of one; of large ones it is shown how far it is."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            pieces, n = iter(partial(stream.read, PIECE), b""), -(-path.stat().st_size // PIECE)
            for piece in tracked(pieces, total=n, label=f"reading {path.name}") if n > SHOWN else pieces:
                whole.update(piece)
    return whole.hexdigest()


def sha256_of(path: Path) -> str | None:
    """The sha256 of a file's content, or None where there is no such file."""
    try:
        return sha256(path)
    except FileNotFoundError:
        return None


@counts_as("io")
def sha256_tree(path: Path, *, suffixes: tuple[str, ...] = ()) -> str:
    """One sha256 for a file, or for the files below a folder, by relative name and content.

    Args:
        path: a file or a folder.
        suffixes: of a folder, only files with these count; () counts all. Hidden files never count.
    """
    if path.is_file():
        return sha256(path)
    whole = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path)
        if not any(part.startswith(".") for part in name.parts) and (not suffixes or file.suffix in suffixes):
            whole.update(f"{name.as_posix()}\0{sha256(file)}\n".encode())
    return whole.hexdigest()


def remove(path: Path) -> None:
    """Remove a file if it is there."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot remove {path}: {error.strerror}", hint="check the folder's permissions"
        ) from error


def _open(path: Path) -> IO[bytes]:
    return path.open("wb")


def _discard(temporary: Path) -> None:
    # The failure that led here is the one to tell; a temporary file that stays is never read.
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError) -> StoreError:
    if error.errno in _FULL:
        return StoreError(
            f"the disk is full: {path} was not written (the file that was there before, if any, is untouched)",
            hint="free some space, then run the same command again to continue",
        )
    return StoreError(
        f"cannot write {path}: {error.strerror or error}",
        hint="check the folder's permissions, or choose another --out",
    )


def _not_read(path: Path, error: Exception, *, rebuild: str) -> StoreError:
    if isinstance(error, FileNotFoundError):
        return StoreError(f"{path} is missing", hint=rebuild)
    what = str(error).strip().splitlines()
    seen = f"{path.stat().st_size} bytes" if path.is_file() else "no file"
    return StoreError(
        f"{path} ({seen}) cannot be read, it is truncated or damaged: {what[0] if what else type(error).__name__}",
        hint=rebuild,
    )


def _check_file(path: Path, *, rebuild: str) -> None:
    """Refuses what must not be opened: a device, a pipe, a folder, a link to nowhere. Raises StoreError."""
    try:
        there = path.exists()
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be looked at: {error}", hint=rebuild) from error
    if there or path.is_symlink():
        regular(path, door=Door(hint=rebuild, error=StoreError, missing=StoreError))


def _check_schema(path: Path, seen: pa.Schema, schema: Schema, *, rebuild: str) -> None:
    metadata = {k.decode(): v.decode() for k, v in (seen.metadata or {}).items()}
    name, version = metadata.get("polysem_table"), metadata.get("polysem_version")
    if (name, version) != (schema.name, str(schema.version)):
        found = f"{name} version {version}" if name else "a parquet file of another program"
        raise StoreError(
            f"{path} holds {found}, expected {schema.name} version {schema.version}", hint=rebuild
        )
    if not seen.equals(schema.arrow()):
        wanted = schema.arrow()
        names = sorted({*seen.names, *wanted.names})
        odd = [n for n in names if n not in seen.names or n not in wanted.names or not _same(seen, wanted, n)]
        raise StoreError(
            f"{path}: columns {', '.join(odd) or '(their order)'} are not as table {schema.name} declares them",
            hint=rebuild,
        )


def _same(one: pa.Schema, other: pa.Schema, name: str) -> bool:
    return one.field(name).equals(other.field(name))
