"""A study as something to ask: DuckDB over the parquet files that its manifests name.

The tables stay on disk; what is held in memory is one row per feature (its gloss), small aggregates, and the
pairs as long as they are not too many.
DuckDB may read the run folder and nothing else: no other path, no extension, no network. A study that is
still running is looked at again whenever a manifest or the record of a part has changed.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from polysem.boundary.door import brief
from polysem.config import Study
from polysem.errors import ConfigError, StoreError
from polysem.explore import derived
from polysem.explore.files import StageFiles, other_files, signature, stage_files
from polysem.explore.query import Query, Sql
from polysem.explore.relations import RunTable, of_schema
from polysem.store import io
from polysem.store.manifest import other_format
from polysem.store.run import RunFolder
from polysem.store.stages import command
from polysem.store.tables import HOMES

THREADS = 2
MEMORY = "640MB"
"""of DuckDB; the process stays below one gigabyte"""
IN_MEMORY = 2_000_000
"""pairs that are copied into memory (about 170 bytes each), where a question takes a tenth of the time; beyond
that they are read from parquet each time"""
_LOOK_EVERY = 1.0
"""seconds between two looks at a folder"""


class Book:
    """The tables of a run folder, open for reading."""

    def __init__(
        self, folder: Path, *, against: Path | None = None, threads: int = THREADS, memory: str = MEMORY
    ):
        """Open a run folder, and another to be compared with it.

        Raises:
            StoreError: if one is none, or one of another version of polysem.
            ConfigError: if its study.toml is no study.
        """
        import duckdb

        self.folder = folder
        self.study: Study = RunFolder.open(folder).study()
        self.against = against
        for one in (folder, against):
            if one is not None and (error := other_format(one)):
                raise error
        if against is not None:
            RunFolder.open(against)
        self.stages: list[StageFiles] = []
        self.others: list[StageFiles] = []
        """what commands beside the stages have made"""
        self.relations: dict[str, RunTable] = {}
        self.version = ""
        self._looked = 0.0
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str, str], int] = {}
        self._made: dict[tuple[str, str], Any] = {}
        config: dict[str, Any] = {
            "threads": threads,
            "memory_limit": memory,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "temp_directory": "",
        }
        self._connection = duckdb.connect(":memory:", config=config)
        inside = str(folder.resolve()).replace("'", "''")
        self._connection.execute(f"SET allowed_directories = ['{inside}']")
        # After this no statement can reach outside the allowed folder, nor undo it.
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")
        self.look(force=True)

    def close(self) -> None:
        """Let go of the files."""
        self._connection.close()

    def look(self, *, force: bool = False) -> str:
        """See what has changed in the folder since the last look; gives the version of what is there."""
        with self._lock:
            now = time.monotonic()
            if not force and now - self._looked < _LOOK_EVERY:
                return self.version
            self._looked = now
            seen = signature(self.folder)
            if seen != self.version:
                self._register()
                self._counts.clear()
                self._made.clear()
                self.version = seen
            return self.version

    @property
    def problems(self) -> dict[str, str]:
        """Tables that cannot be shown, and why."""
        return {name: why for stage in self._all() for name, why in stage.problems.items()}

    def _all(self) -> list[StageFiles]:
        return [*self.stages, *self.others]

    def has(self, table: str) -> bool:
        """Whether a stored table is there, whole or in part."""
        return any(table in stage.tables for stage in self._all())

    def table(
        self, name: str, *, columns: Sequence[str] | None = None, where: pc.Expression | None = None
    ) -> pa.Table:
        """A stored table as far as it is there, or the part of it that is asked for; without rows where it is not."""
        home, schema = HOMES[name]
        files = [f for s in self._all() for f in s.tables.get(name, ())]
        rebuild = command(home, self.folder)
        parts = [io.read_table(f, schema, rebuild=rebuild, columns=columns, where=where) for f in files]
        return pa.concat_tables(parts) if parts else schema.empty(columns)

    def relation(self, name: str) -> RunTable:
        """A relation by its name. Raises StoreError where there is none now."""
        if name in self.relations:
            return self._kept(self.relations[name])
        if name in self.problems:
            raise StoreError(self.problems[name])
        if name in HOMES:
            again = command(HOMES[name][0], self.folder)
            raise StoreError(f"the study holds no table {name} yet", hint=again)
        raise StoreError(f"there is no {name!r} to list; there are {', '.join(self.relations) or 'none'}")

    def _kept(self, relation: RunTable) -> RunTable:
        """An aggregate over all pairs is made when it is first asked for, and once."""
        if not relation.aggregate:
            return relation

        def make() -> RunTable:
            kept = f"{relation.base}_kept"
            self._run(Sql(f"CREATE OR REPLACE TABLE {kept} AS SELECT * FROM {relation.base}", []))
            return replace(relation, base=kept)

        return self.once(f"kept {relation.name}", make)

    def page(self, query: Query) -> tuple[list[dict[str, Any]], int]:
        """The rows of a page, and how many there are in all."""
        rows = self.ask(query.page())
        sql = query.count()
        key = (self.version, sql.text, repr(sql.values))
        if key not in self._counts:
            self._counts[key] = int(self.ask(sql)[0]["count_star()"])
        return rows, self._counts[key]

    def ask(self, sql: Sql) -> list[dict[str, Any]]:
        """Rows of a statement; a number that is not finite is None, as in JSON."""
        cursor = self._run(sql)
        names = [column[0] for column in cursor.description]
        with _said():
            rows = cursor.fetchall()
        return [dict(zip(names, (plain(v) for v in row), strict=True)) for row in rows]

    def batches(self, sql: Sql) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """All rows of a statement as record batches, one at a time; the first is read at once."""
        with _said():
            relation = self._connection.cursor().sql(sql.text, params=sql.values)
            reader = pa.RecordBatchReader.from_stream(relation)

        def read() -> Iterator[pa.RecordBatch]:
            with _said():
                yield from reader

        batches = read()
        first = list(islice(batches, 1))
        return reader.schema, chain(first, batches)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """A value that is made once for the tables as they are now."""
        key = (self.version, name)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _run(self, sql: Sql) -> Any:
        with _said():
            return self._connection.cursor().execute(sql.text, sql.values)

    def _register(self) -> None:
        self.stages, self.others = stage_files(self.folder), other_files(self.folder)
        cursor = self._connection.cursor()
        for (view,) in cursor.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall():
            cursor.execute(f'DROP VIEW IF EXISTS "{view}"')
        self.relations = {}
        for stage in self._all():
            for name, files in list(stage.tables.items()):
                listed = ", ".join("'" + str(file).replace("'", "''") + "'" for file in files)
                held = name == "pairs" and stage.rows[name] <= IN_MEMORY
                make = [f"CREATE OR REPLACE VIEW t_{name} AS SELECT * FROM read_parquet([{listed}])"]
                if held:
                    make.append(f"CREATE TABLE {name}_held AS SELECT * FROM t_{name}")
                    make.append(f"CREATE OR REPLACE VIEW t_{name} AS SELECT * FROM {name}_held")
                if self._can(cursor, stage, name, f"DROP TABLE IF EXISTS {name}_held", *make):
                    self.relations[name] = of_schema(HOMES[name][1])
        try:
            with _said():
                made = derived.register(cursor, self.relations, self.study)
        except StoreError:  # a table is damaged inside: which, only reading them all tells
            for stage in self._all():
                for name in self.relations.keys() & stage.tables.keys():
                    if not self._can(cursor, stage, name, f"SELECT max(hash(COLUMNS(*))) FROM t_{name}"):
                        del self.relations[name]
            made = derived.register(cursor, self.relations, self.study)
        self.relations |= made

    @staticmethod
    def _can(cursor: Any, stage: StageFiles, table: str, *statements: str) -> bool:
        """Whether statements about a table run; if not, it is a problem of its stage and is not shown."""
        try:
            with _said():
                for statement in statements:
                    cursor.execute(statement).fetchall()
        except StoreError as error:
            stage.problems[table] = str(error)
            del stage.tables[table], stage.rows[table]
            return False
        return True


@contextmanager
def _said() -> Iterator[None]:
    """What DuckDB may rightly refuse, in our words; a wrong statement is a bug and stays one."""
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise ConfigError(
            "this question needs more memory than the explorer may use", hint="add a filter"
        ) from error
    except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException):
        raise
    except (duckdb.Error, RuntimeError, pa.ArrowInvalid) as error:  # of a damaged file it says any of these
        raise StoreError(
            f"a table cannot be read: {brief(str(error).splitlines()[0])}",
            hint="if the study is running, try again in a moment; otherwise polysem verify RUN names the file",
        ) from error


def plain(value: Any) -> Any:
    """The value as JSON has it: a number that is not finite is None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value
