"""A finished transfer study, read back. Imports neither torch nor a model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from polysem.errors import StoreError
from polysem.store.manifest import damaged_outputs
from polysem.store.result import Result
from polysem.store.run import RunFolder
from polysem.store.stages import command

FOLDER, DEFENCE = "transfer", "defend"
"""stages, and their folders below the study's folder"""


@dataclass(frozen=True, repr=False)
class TransferFound(Result, Mapping[str, pa.Table]):
    """A finished transfer study: a mapping of its tables by name, each of which is an attribute, too."""

    figure = "polysem.report.figures_beside:transfer"

    folder: Path
    held: Mapping[str, pa.Table]

    def tables(self) -> Mapping[str, pa.Table]:
        return {"transfer_effects": self.held["transfer_effects"], **self.held}

    def facts(self) -> Mapping[str, object]:
        effects = self.held["transfer_effects"].select(["target", "contrast", "arm", "category"]).to_pylist()
        kinds = ("target", "contrast", "arm", "category")
        asked = {kind: ", ".join(dict.fromkeys(str(row[kind]) for row in effects)) for kind in kinds}
        return {**asked, "folder": self.folder}

    def __getitem__(self, name: str) -> pa.Table:
        return self.held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)

    def __getattr__(self, name: str) -> pa.Table:
        held = vars(self).get("held", {})  # it is not there yet while a copy is made
        if name not in held:
            raise AttributeError(f"a transfer study has no {name!r}; its tables are {', '.join(held)}")
        return held[name]

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.held})


def read_transfer(out: Path) -> TransferFound:
    """The tables of a finished transfer study.

    Raises:
        StoreError: if there is none, or a table is not what was written.
    """
    run = RunFolder(out)
    manifest = run.manifest(FOLDER)
    if manifest is None:
        raise StoreError(f"{out / FOLDER / 'manifest.json'} is missing", hint=command(FOLDER, out))
    if damaged := next(damaged_outputs(out, manifest.outputs), None):
        raise StoreError(f"{out}: {damaged}", hint=command(FOLDER, out))
    return TransferFound(out, run.tables(FOLDER))
