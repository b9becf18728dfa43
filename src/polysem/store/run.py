"""A run folder: where every file of a study lies, and how its stages are written and read.

    study.toml     what was asked, verbatim; transfer.toml of a transfer study, which may lie beside it or alone
    origin.json    the folder that this file came from, which its relative paths follow
    STAGE/         one folder for every stage of `store.stages`: TABLE.parquet, or one file for each of its parts
    features/      also embeddings.safetensors
    trials/        part-KKKKK-of-NNNNN.parquet, each a run of whole batches
    atlas/         NN-TABLE.parquet, NN-gradients.safetensors, NN being the place of the SAE among the sorted labels
    report.html

Each stage folder (and `report/`, which holds nothing else) has a `manifest.json`; each part has a record
`part-KKKKK-of-NNNNN.json` beside it, written last: a part without a good record does not count. The number
of parts follows from the study and the plan, so the files do not depend on who wrote them, in what order,
or how often it was interrupted.
"""

import json
import math
import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from polysem.boundary.door import Door
from polysem.boundary.files import local_path
from polysem.boundary.runs import refuse_run_folder
from polysem.boundary.text import read_toml
from polysem.config import Study, parse_study
from polysem.errors import PolysemError, StoreError, typed
from polysem.places import Places, here
from polysem.store import io
from polysem.store.lock import WHOLE, locked
from polysem.store.manifest import (
    Manifest,
    Output,
    StageInputs,
    damaged_outputs,
    made_here,
    platform_facts,
    read_manifest,
)
from polysem.store.schema import Schema
from polysem.store.stages import REGISTRY, StageName, command
from polysem.store.tables import HOMES

BATCHES_PER_PART = 64
"""batches of the plan in one part of the trials: what a kill can cost, against what starting a part costs"""
REPORT = "report.html"
ORIGIN = "origin.json"

Arrays = Mapping[str, np.ndarray]
"""of one safetensors file, by name"""
SETTINGS = {"study.toml": "study", "transfer.toml": "the transfer study"}
"""files that say what is asked, and what each holds"""


@dataclass(frozen=True)
class Part:
    """Part `k` of `n` of a stage."""

    stage: StageName
    k: int
    n: int

    @property
    def record(self) -> str:
        return f"{self.stage}/part-{self.k:05d}-of-{self.n:05d}.json"

    def file(self, table: str) -> str:
        """The file of one of the part's tables, relative to the run folder."""
        return _part_file(self.stage, table, self.k, self.n)


_SETTINGS = Door("study", error=StoreError, missing=StoreError)
_FOLDER = Door("run folder", "choose another --out", StoreError, StoreError)


class RunFolder:
    """The files of one study under one folder."""

    def __init__(self, root: Path):
        """Raises StoreError for what can be no path."""
        self.root = local_path(root, door=_FOLDER)

    @classmethod
    def open(cls, root: Path) -> "RunFolder":
        """An existing run folder. Raises StoreError where there is none."""
        found = cls(root)
        if not any(found.holds(file) for file in SETTINGS):
            refuse_run_folder(root, StoreError)
        return found

    def holds(self, file: str) -> bool:
        """Whether one of SETTINGS is there."""
        return (self.root / file).is_file()

    def study(self) -> Study:
        """The study that was asked for."""
        return parse_study(self.study_text(), origin=str(self.root / "study.toml"))

    def study_text(self) -> str:
        """Its file, verbatim. Raises StoreError where there is none."""
        path = self.root / "study.toml"
        if not path.is_file():
            refuse_run_folder(self.root, StoreError)
        return io.read_text(path, rebuild=f"polysem run STUDY.toml --out {typed(self.root)}")

    def places(self, moved: Mapping[str, str] | None = None) -> Places:
        """Where the inputs are: beside the file that the settings came from, or where that folder has been moved to
        together with this one.

        Args:
            moved: references that lie elsewhere now.
        """
        path = self.root / ORIGIN
        if not path.is_file():
            return replace(here(), moved=moved or {})
        origin = io.read_json(path, rebuild=f"polysem run STUDY.toml --out {typed(self.root)}")
        absolute, from_here = (local_path(str(origin.get(name))) for name in ("folder", "from_here"))
        beside = self.root / from_here
        return Places(beside if beside.is_dir() and not absolute.is_dir() else absolute, moved or {})

    def claim(
        self, settings: BaseModel, text: str, *, base: Path, file: str = "study.toml", force: bool = False
    ) -> None:
        """Make this the folder of a study: write its file if it differs, after making sure that nothing of another
        is there.

        Args:
            settings: the study.
            text: its file, which is kept verbatim.
            base: the folder that its relative paths follow.
            file: one of SETTINGS, which it becomes.
            force: write over another.

        Raises:
            StoreError: if the folder holds another study, or something else, and not `force`.
        """
        other = self.foreign(settings, file=file)
        if other and not force:
            raise StoreError(
                f"{self.root} is foreign: {other}",
                hint="choose another --out, or give --force to write this study over it"
                if file == "study.toml"
                else "choose another --out",
            )
        self._keep(file, text)
        # A run is gone on with by its own copy of the file, whose folder the paths do not follow.
        if base.resolve() != self.root.resolve() or not (self.root / ORIGIN).is_file():
            from_here = os.path.relpath(base.resolve(), self.root.resolve())
            origin = json.dumps({"folder": str(base.resolve()), "from_here": from_here}, indent=2)
            self._keep(ORIGIN, origin + "\n")

    def _keep(self, file: str, text: str) -> None:
        path = self.root / file
        if not path.is_file() or path.read_bytes() != text.encode():
            io.write_text(path, text)

    def foreign(self, settings: BaseModel, *, file: str = "study.toml") -> str:
        """Why the folder does not belong to a study; "" if it does, or is empty."""
        path = self.root / file
        if path.is_file():
            wanted = settings.model_dump(mode="json")
            try:
                seen = read_toml(path, door=_SETTINGS)
                model = seen.get("model", {}).get("ref")
            except (PolysemError, AttributeError):
                return ""  # an edit that went wrong is still this study's folder
            name = seen.get("name", type(settings).model_fields["name"].default)
            if name != wanted["name"]:
                return f"it holds {SETTINGS[file]} {name!r}, expected {SETTINGS[file]} {wanted['name']!r}"
            if "model" in wanted and model != wanted["model"]["ref"]:
                return f"it holds model {model!r}, expected model {wanted['model']['ref']!r}"
            return ""
        if file != "study.toml" or any(map(self.holds, SETTINGS)):
            return ""
        there = sorted(p.name for p in self.root.iterdir()) if self.root.is_dir() else []
        odd = [name for name in there if not name.startswith(".") and name not in {*REGISTRY, REPORT, ORIGIN}]
        return f"it is no run folder but holds {', '.join(odd[:3])}" if odd else ""

    @contextmanager
    def writing(self, shard: str = "") -> Generator[None, None, None]:
        """Be the only writer of the folder, or of one shard of its trials, while the block runs; leftovers
        of killed writers go.

        Raises:
            StoreError: if somebody else is writing.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot make {self.root}: {error.strerror}", hint="choose another --out"
            ) from error
        with locked(self.root, f"{WHOLE}-{shard}" if shard else WHOLE):
            if not shard:
                for leftover in sorted(self.root.rglob(f".*{io.TEMPORARY}")):
                    io.remove(leftover)
            yield

    def folder(self, stage: StageName) -> Path:
        return self.root / stage

    def manifest(self, stage: StageName) -> Manifest | None:
        """The manifest of a finished stage, or None."""
        return read_manifest(self.root, stage)

    def seen(self, stage: StageName) -> tuple[Manifest | None, str]:
        """The manifest of a stage; None where it is not finished, with the reason where it is damaged."""
        try:
            return self.manifest(stage), ""
        except StoreError as error:
            return None, str(error).splitlines()[0]

    # reading

    def table(
        self, name: str, *, columns: Sequence[str] | None = None, where: pc.Expression | None = None
    ) -> pa.Table:
        """A table by its name, from its file or from all its parts; sorted by its key if it is read whole.

        Args:
            name: a name of `store/tables`.
            columns: only these; None reads all.
            where: only rows for which this holds.

        Raises:
            StoreError: if a file is missing or not what it must be; the message names it and the
                command that rebuilds it.
        """
        stage, schema = self._home(name)
        rebuild = command(stage, self.root)
        files = [self.root / file for file in self.files(name)]
        parts = [io.read_table(file, schema, rebuild=rebuild, columns=columns, where=where) for file in files]
        if not parts:
            return schema.empty(columns)
        if len(parts) == 1:
            return parts[0]
        together = pa.concat_tables(parts)
        return schema.conform(together) if columns is None else together

    def tables(self, stage: StageName) -> dict[str, pa.Table]:
        """All tables of a stage, by name."""
        return {schema.name: self.table(schema.name) for schema in REGISTRY[stage].tables}

    def embeddings(self) -> Arrays:
        """Gloss embeddings by SAE label, each [n_features d_embed], rows in the order of `features`; read when
        they are asked for."""
        return io.Arrays(
            self.root / "features" / "embeddings.safetensors", rebuild=command("features", self.root)
        )

    def files(self, name: str) -> list[str]:
        """The files of a table of a finished stage, relative to the run folder, in order.

        Raises:
            StoreError: if the stage is not finished.
        """
        stage, schema = self._home(name)
        manifest = self.manifest(stage)
        if manifest is None:
            raise StoreError(
                f"{self.root / stage} holds no finished stage: there is no manifest.json",
                hint=command(stage, self.root),
            )
        parts = _part_file(stage, name, "*", "*")
        found = sorted(
            file for file in manifest.outputs if file == f"{stage}/{name}.parquet" or fnmatch(file, parts)
        )
        if not found and not schema.late:
            raise StoreError(
                f"{self.root / stage / 'manifest.json'} names no file of table {name}",
                hint=command(stage, self.root),
            )
        return found

    def _home(self, name: str) -> tuple[StageName, Schema]:
        if name not in HOMES:
            raise StoreError(f"there is no table {name!r}; expected one of {', '.join(HOMES)}")
        return HOMES[name]

    # writing

    def write(
        self, stage: StageName, made: Mapping[str, pa.Table | Arrays], *, part: Part | None = None
    ) -> dict[str, Output]:
        """Write what a stage made, or one part of it: its tables, and arrays under any other name. Gives the outputs.

        What the stage says about itself no longer holds from then on.
        """
        io.remove(self.root / stage / "manifest.json")
        schemas = {schema.name: schema for schema in REGISTRY[stage].tables}
        outputs: dict[str, Output] = {}
        for name in [*schemas, *(name for name in made if name not in schemas)]:
            file, value = part.file(name) if part else f"{stage}/{name}.parquet", made[name]
            if isinstance(value, pa.Table):
                digest, rows = io.write_table(self.root / file, value, schemas[name]), len(value)
            else:
                file = file.removesuffix(".parquet") + ".safetensors"
                digest, rows = io.write_arrays(self.root / file, value), sum(map(len, value.values()))
            outputs[file] = Output(digest, rows)
        return outputs

    def write_part(
        self,
        part: Part,
        made: Mapping[str, pa.Table | Arrays],
        *,
        made_from: StageInputs,
        facts: Mapping[str, Any],
        started: float,
    ) -> None:
        """Write one part of a stage, its record last."""
        outputs = self.write(part.stage, made, part=part)
        self._manifest(made_from, outputs, facts, started).write(self.root / part.record)

    def record(self, part: Part) -> Manifest:
        """The record of a part. Raises StoreError if there is none, or it is damaged."""
        return Manifest.read(self.root / part.record, rebuild=command(part.stage, self.root))

    def good_part(
        self, part: Part, made_from: StageInputs, *, ignore_versions: bool = False
    ) -> Manifest | None:
        """The record of a part if it was made from this and its files are as they were written."""
        try:
            record = self.record(part)
        except StoreError:
            return None  # a record that cannot be read vouches for nothing; the part is made again
        if record.made_from.differences(made_from, ignore_versions=ignore_versions):
            return None
        return None if any(damaged_outputs(self.root, record.outputs)) else record

    def finish(
        self,
        stage: StageName,
        made_from: StageInputs,
        outputs: Mapping[str, Output],
        *,
        parts: Sequence[Part],
        facts: Mapping[str, Any],
        started: float,
    ) -> None:
        """Write the manifest of a stage whose files are all there, and remove tables and parts that are not
        among them."""
        kept = {*outputs, *(part.record for part in parts)}
        for pattern in ("*.parquet", "part-*.json"):
            for path in sorted((self.root / stage).glob(pattern)):
                if f"{stage}/{path.name}" not in kept:
                    io.remove(path)
        records = {part.record: io.sha256(self.root / part.record) for part in parts}
        manifest = replace(self._manifest(made_from, outputs, facts, started), records=records)
        manifest.write(self.root / stage / "manifest.json")

    def _manifest(
        self, made_from: StageInputs, outputs: Mapping[str, Output], facts: Mapping[str, Any], started: float
    ) -> Manifest:
        return Manifest(made_from, dict(outputs), {**facts, "platform": platform_facts()}, made_here(started))


def trial_parts(plan: pa.Table) -> list[list[int]]:
    """The batches of every part of the trials, in order: a function of the plan alone."""
    batches = sorted(set(plan["batch"].to_pylist()))
    n = max(1, math.ceil(len(batches) / BATCHES_PER_PART))
    return [batches[k * BATCHES_PER_PART : (k + 1) * BATCHES_PER_PART] for k in range(n)]


def now() -> float:
    """Seconds since the epoch, for manifests only."""
    return time.time()


def _part_file(stage: StageName, table: str, k: int | str, n: int | str) -> str:
    """The name of a part's file; with "*" for k and n, a pattern of those of all parts."""
    known = REGISTRY[stage]
    numbers = {
        name: str(value).zfill(known.digits) if value != "*" else "*" for name, value in (("k", k), ("n", n))
    }
    return f"{stage}/{known.part_file.format(table=table, **numbers)}"
