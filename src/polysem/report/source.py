"""What a report is made from: the study file, the manifests, and the tables that a run has so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import Study, parse_study
from polysem.errors import StoreError
from polysem.store import io
from polysem.store.manifest import Manifest, read_manifest
from polysem.store.run import RunFolder
from polysem.store.schema import Schema
from polysem.store.stages import ORDER, Stage
from polysem.store.tables import STAGES


@dataclass(frozen=True)
class Run:
    """A run folder as far as it is finished."""

    folder: Path
    study: Study
    study_text: str
    manifests: dict[Stage, Manifest]

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """The run of a folder.

        Raises:
            StoreError: if the folder holds no study, or a manifest is damaged.
            ConfigError: if the study is not one.
        """
        path = folder / "study.toml"
        if not path.is_file():
            raise StoreError(
                f"{folder} is no run folder: there is no study.toml in it",
                hint=f"polysem run STUDY.toml --out {folder}",
            )
        text = io.read_text(path, rebuild=f"polysem run STUDY.toml --out {folder}")
        manifests: dict[Stage, Manifest] = {}
        for stage in ORDER:
            if stage != "report" and (manifest := read_manifest(folder, stage)) is not None:
                manifests[stage] = manifest
        return cls(folder, parse_study(text, origin=str(path)), text, manifests)

    def absent(self) -> list[Stage]:
        """Stages that are not finished, in the order in which a study runs."""
        return [stage for stage in ORDER if stage != "report" and stage not in self.manifests]

    def table(
        self, name: str, *, columns: Sequence[str] | None = None, where: pc.Expression | None = None
    ) -> pa.Table:
        """A table of a finished stage, or the part of it that is asked for; without rows where the stage is
        not finished.

        Feature tables of many SAEs are larger than memory, so only the columns and rows that are shown are
        read.
        """
        stage, schema = _owner(name)
        wanted = list(columns) if columns is not None else [c.name for c in schema.columns]
        if stage not in self.manifests:
            return schema.empty().select(wanted)
        return RunFolder(self.folder).table(name, columns=columns, where=where)


def _owner(name: str) -> tuple[Stage, Schema]:
    for stage in ORDER:
        for schema in STAGES.get(stage, ()):
            if schema.name == name:
                return stage, schema
    raise ValueError(f"no table is named {name!r}")
