"""What a report is made from: the study file, the manifests, and the tables that a run has so far."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import Study
from polysem.store.manifest import Manifest, read_manifest
from polysem.store.result import Result
from polysem.store.run import RunFolder
from polysem.store.stages import ORDER, StageName, order_of
from polysem.store.tables import HOMES, STAGES
from polysem.transfer.result import TransferFound, read_transfer


@runtime_checkable
class Tables(Protocol):
    """Tables by name with the study that they are of: a run's, or those of a session."""

    @property
    def study(self) -> Study: ...
    def table(
        self, name: str, *, columns: Sequence[str] | None = None, where: pc.Expression | None = None
    ) -> pa.Table: ...


@dataclass(frozen=True, repr=False)
class Run(Result):
    """A run folder as far as it is finished. Every finished table is an attribute, too: `run.pairs`, `run.effects`."""

    figure = "polysem.report.figures:study"
    folder: Path
    study: Study
    study_text: str
    manifests: dict[StageName, Manifest]

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """The run of a folder.

        Raises:
            StoreError: if the folder holds no study, or a manifest is damaged.
            ConfigError: if the study is not one.
        """
        run = RunFolder(folder)
        found = {stage: run.manifest(stage) for stage in ORDER if stage != "report"}
        manifests = {stage: manifest for stage, manifest in found.items() if manifest is not None}
        return cls(run.root, run.study(), run.study_text(), manifests)

    def tables(self) -> Mapping[str, pa.Table]:
        """Every table of the finished stages, read when it is asked for."""
        return _Finished(self)

    def facts(self) -> Mapping[str, object]:
        done = ", ".join(self.manifests) or "nothing yet"
        return {
            "study": self.study.name,
            "model": self.study.model.ref,
            "finished": done,
            "folder": self.folder,
        }

    def __getattr__(self, name: str) -> pa.Table:
        if name.startswith("_") or name not in self.tables():
            raise AttributeError(f"a Run has no {name!r}; its tables are {', '.join(self.tables())}")
        return self.table(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.tables()})

    def finished(self, stage: StageName) -> bool:
        """Whether a stage is finished: of the study, or made beside it.

        Raises:
            StoreError: if its manifest is damaged.
        """
        beside = stage not in ORDER and read_manifest(self.folder, stage) is not None
        return beside or stage in self.manifests

    def absent(self) -> list[StageName]:
        """Stages that are not finished, in the order in which a study runs."""
        return [stage for stage in order_of(self.study) if stage != "report" and stage not in self.manifests]

    def table(
        self, name: str, *, columns: Sequence[str] | None = None, where: pc.Expression | None = None
    ) -> pa.Table:
        """A table of a finished stage, or the part of it that is asked for; without rows where the stage is
        not finished.

        Feature tables of many SAEs are larger than memory, so only the columns and rows that are shown are
        read.
        """
        stage, schema = HOMES[name]
        if not self.finished(stage):
            return schema.empty(columns)
        return RunFolder(self.folder).table(name, columns=columns, where=where)


class _Finished(Mapping[str, Any]):
    """The tables of a run; the effects first, where there are some: they are what it was made for."""

    def __init__(self, run: Run):
        self._run = run
        names = [schema.name for stage in STAGES if run.finished(stage) for schema in STAGES[stage]]
        self._names = sorted(names, key=lambda name: name != "effects")

    def __getitem__(self, name: str) -> pa.Table:
        if name not in self._names:
            raise KeyError(name)
        return self._run.table(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_run(path: str | Path) -> Run | TransferFound:
    """A run folder, finished or not, or that of a finished transfer study: tables as attributes, data frames and figures.
    Tables of what was made beside a study (atlas, side effects, layers ...) are among them.

    Raises:
        StoreError: if the folder holds no study, or a manifest is damaged.
        ConfigError: if the study is not one.
    """
    folder = Path(path)
    if not (folder / "study.toml").is_file() and (folder / "transfer.toml").is_file():
        return read_transfer(folder)
    return Run.open(folder)


def where(table: pa.Table, **parts: object) -> pa.Table:
    """The rows whose columns have these values."""
    for name, value in parts.items():
        table = table.filter(pc.equal(table[name], value))
    return table
