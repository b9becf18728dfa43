"""A run folder: where every file of a study lies, and how its stages are written and read.

    study.toml     what was asked, verbatim
    features/      features, glosses, contexts, clusters (.parquet); embeddings.safetensors
    pairs/         pairs, density, spectrum, partners: TABLE-KKKKK-of-NNNNN.parquet, one part per SAE by label
    plan/          plan, prompts (.parquet)
    trials/        part-KKKKK-of-NNNNN.parquet, each a run of whole batches
    effects/       effects, pair_effects, dose_response, missing (.parquet)
    report.html

Each stage folder (and `report/`, which holds nothing else) has a `manifest.json`; each part has a record
`part-KKKKK-of-NNNNN.json` beside it, written last: a part without a good record does not count. The number
of parts follows from the study and the plan, so the files do not depend on who wrote them, in what order,
or how often it was interrupted.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import Study, parse_study
from polysem.errors import ConfigError, StoreError
from polysem.store import io
from polysem.store.lock import WHOLE, locked
from polysem.store.manifest import (
    Manifest,
    Output,
    Recipe,
    damaged_outputs,
    made_here,
    platform_facts,
    read_manifest,
)
from polysem.store.schema import Schema
from polysem.store.stages import ORDER, Stage, command
from polysem.store.tables import STAGES

BATCHES_PER_PART = 64
"""batches of the plan in one part of the trials: what a kill can cost, against what starting a part costs"""
REPORT = "report.html"

_HOMES: dict[str, tuple[Stage, Schema]] = {
    schema.name: (stage, schema) for stage in ORDER for schema in STAGES.get(stage, ())
}


@dataclass(frozen=True)
class Part:
    """Part `k` of `n` of a stage."""

    stage: Stage
    k: int
    n: int

    @property
    def label(self) -> str:
        return f"{self.k:05d}-of-{self.n:05d}"

    @property
    def record(self) -> str:
        return f"{self.stage}/part-{self.label}.json"

    def file(self, table: str) -> str:
        """The file of one of the part's tables, relative to the run folder."""
        return f"{self.stage}/{'part' if table == 'trials' else table}-{self.label}.parquet"


class RunFolder:
    """The files of one study under one folder."""

    def __init__(self, root: Path):
        self.root = root

    @classmethod
    def open(cls, root: Path) -> "RunFolder":
        """An existing run folder. Raises StoreError where there is none."""
        if not (root / "study.toml").is_file():
            raise StoreError(
                f"{root} is no run folder: it holds no study.toml",
                hint=f"polysem run STUDY.toml --out {root}",
            )
        return cls(root)

    def study(self) -> Study:
        """The study that was asked for."""
        path = self.root / "study.toml"
        text = io.read_text(path, rebuild=f"polysem run STUDY.toml --out {self.root}")
        return parse_study(text, origin=str(path))

    def claim(self, study: Study, text: str, *, force: bool = False) -> None:
        """Make this the folder of a study: write `study.toml` if it differs, after making sure that nothing
        of another is there.

        Raises:
            StoreError: if the folder holds another study, or something else, and not `force`.
        """
        other = self._other_than(study)
        if other and not force:
            raise StoreError(
                f"{self.root} is foreign: {other}",
                hint="choose another --out, or give --force to write this study over it",
            )
        path = self.root / "study.toml"
        if not path.is_file() or path.read_bytes() != text.encode():
            io.write_text(path, text)

    def foreign(self, study: Study) -> str:
        """Why the folder does not belong to a study; "" if it does, or is empty."""
        return self._other_than(study)

    def _other_than(self, study: Study) -> str:
        path = self.root / "study.toml"
        if not path.is_file():
            known = {*ORDER, REPORT}
            there = sorted(p.name for p in self.root.iterdir()) if self.root.is_dir() else []
            odd = [name for name in there if not name.startswith(".") and name not in known]
            return f"it is no run folder but holds {', '.join(odd[:3])}" if odd else ""
        try:
            mine = self.study()
        except ConfigError:
            return ""  # an edit of study.toml that went wrong is still this study's folder
        for name, seen, wanted in (
            ("study", mine.name, study.name),
            ("model", mine.model.ref, study.model.ref),
        ):
            if seen != wanted:
                return f"it holds {name} {seen!r}, expected {name} {wanted!r}"
        return ""

    @contextmanager
    def writing(self, shard: str = "") -> Iterator[None]:
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

    def folder(self, stage: Stage) -> Path:
        return self.root / stage

    def manifest(self, stage: Stage) -> Manifest | None:
        """The manifest of a finished stage, or None."""
        return read_manifest(self.root, stage)

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
        if len(parts) == 1:
            return parts[0]
        together = pa.concat_tables(parts)
        return schema.conform(together) if columns is None else together

    def tables(self, stage: Stage) -> dict[str, pa.Table]:
        """All tables of a stage, by name."""
        return {schema.name: self.table(schema.name) for schema in STAGES[stage]}

    def embeddings(self) -> Mapping[str, np.ndarray]:
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
        stage, _ = self._home(name)
        manifest = self.manifest(stage)
        if manifest is None:
            raise StoreError(
                f"{self.root / stage} holds no finished stage: there is no manifest.json",
                hint=command(stage, self.root),
            )
        stem = "part" if name == "trials" else name
        whole, part = f"{stage}/{stem}.parquet", f"{stage}/{stem}-"
        found = sorted(
            file
            for file in manifest.outputs
            if file == whole or (file.startswith(part) and file.endswith(".parquet"))
        )
        if not found:
            raise StoreError(
                f"{self.root / stage / 'manifest.json'} names no file of table {name}",
                hint=command(stage, self.root),
            )
        return found

    def _home(self, name: str) -> tuple[Stage, Schema]:
        if name not in _HOMES:
            raise StoreError(f"there is no table {name!r}; expected one of {', '.join(_HOMES)}")
        return _HOMES[name]

    # writing

    def begin(self, stage: Stage) -> None:
        """A stage is about to be made anew: what it says about itself no longer holds."""
        io.remove(self.root / stage / "manifest.json")

    def write_tables(self, stage: Stage, tables: Mapping[str, pa.Table]) -> dict[str, Output]:
        """Write the tables of a stage that has no parts; gives its outputs."""
        outputs = {}
        for schema in STAGES[stage]:
            file = f"{stage}/{schema.name}.parquet"
            digest = io.write_table(self.root / file, tables[schema.name], schema)
            outputs[file] = Output(digest, tables[schema.name].num_rows)
        return outputs

    def write_embeddings(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Output]:
        """Write the gloss embeddings; gives their output."""
        file = "features/embeddings.safetensors"
        digest = io.write_arrays(self.root / file, arrays)
        return {file: Output(digest, sum(len(a) for a in arrays.values()))}

    def write_part(
        self,
        part: Part,
        tables: Mapping[str, pa.Table],
        *,
        recipe: Recipe,
        facts: Mapping[str, Any],
        started: float,
    ) -> None:
        """Write one part of a stage, its record last."""
        outputs = {}
        for schema in STAGES[part.stage]:
            file = part.file(schema.name)
            digest = io.write_table(self.root / file, tables[schema.name], schema)
            outputs[file] = Output(digest, tables[schema.name].num_rows)
        self._manifest(recipe, outputs, facts, started).write(self.root / part.record)

    def good_part(self, part: Part, recipe: Recipe, *, ignore_versions: bool = False) -> Manifest | None:
        """The record of a part if it was made by this recipe and its files are as they were written."""
        path = self.root / part.record
        if not path.is_file():
            return None
        try:
            record = Manifest.read(path, rebuild=command(part.stage, self.root))
        except StoreError:
            return None  # a record that cannot be read vouches for nothing; the part is made again
        if record.recipe.differences(recipe, ignore_versions=ignore_versions):
            return None
        return None if any(damaged_outputs(self.root, record.outputs)) else record

    def finish(
        self,
        stage: Stage,
        recipe: Recipe,
        outputs: Mapping[str, Output],
        *,
        facts: Mapping[str, Any],
        started: float,
    ) -> None:
        """Write the manifest of a stage whose files are all there, and remove tables and parts that are not
        among them."""
        kept = {*outputs, *(_record_of(file) for file in outputs)}
        for pattern in ("*.parquet", "part-*.json"):
            for path in sorted((self.root / stage).glob(pattern)):
                if f"{stage}/{path.name}" not in kept:
                    io.remove(path)
        self._manifest(recipe, outputs, facts, started).write(self.root / stage / "manifest.json")

    def _manifest(
        self, recipe: Recipe, outputs: Mapping[str, Output], facts: Mapping[str, Any], started: float
    ) -> Manifest:
        return Manifest(recipe, dict(outputs), {**facts, "platform": platform_facts()}, made_here(started))


def trial_parts(plan: pa.Table) -> list[list[int]]:
    """The batches of every part of the trials, in order: a function of the plan alone."""
    batches = sorted(set(plan["batch"].to_pylist()))
    n = max(1, math.ceil(len(batches) / BATCHES_PER_PART))
    return [batches[k * BATCHES_PER_PART : (k + 1) * BATCHES_PER_PART] for k in range(n)]


def now() -> float:
    """Seconds since the epoch, for manifests only."""
    return time.time()


def _record_of(file: str) -> str:
    """The record of the part that a file belongs to; of a file without parts, a name that does not exist."""
    stage, _, name = file.partition("/")
    return f"{stage}/part-{name.removesuffix('.parquet')[-14:]}.json"
