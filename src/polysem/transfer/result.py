"""A finished transfer study, read back. Imports neither torch nor a model."""

from pathlib import Path

import pyarrow as pa

from polysem.errors import StoreError
from polysem.store import io
from polysem.store.tables import TRANSFER

FOLDER = "transfer"
"""below the study's folder"""
DEFENCE = "defence"
"""... of `polysem defend`"""
RERUN = "polysem transfer STUDY.toml --out DIR"


def read_transfer(out: Path) -> dict[str, pa.Table]:
    """The tables of a finished transfer study, by name.

    Raises:
        StoreError: if there is none, or a table is not what was written.
    """
    folder = out / FOLDER
    manifest = io.read_json(folder / "manifest.json", rebuild=RERUN)
    for file, wanted in manifest["outputs"].items():
        if io.sha256_of(folder / file) != wanted["sha256"]:
            raise StoreError(f"{folder / file} is not the file that was written", hint=RERUN)
    return {s.name: io.read_table(folder / f"{s.name}.parquet", s, rebuild=RERUN) for s in TRANSFER}
