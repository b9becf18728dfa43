"""A finished transfer study, read back. Imports neither torch nor a model."""

from pathlib import Path

import pyarrow as pa

from polysem.errors import StoreError
from polysem.store.manifest import damaged_outputs
from polysem.store.run import RunFolder
from polysem.store.stages import command

FOLDER, DEFENCE = "transfer", "defend"
"""stages, and their folders below the study's folder"""


def read_transfer(out: Path) -> dict[str, pa.Table]:
    """The tables of a finished transfer study, by name.

    Raises:
        StoreError: if there is none, or a table is not what was written.
    """
    run = RunFolder(out)
    manifest = run.manifest(FOLDER)
    if manifest is None:
        raise StoreError(f"{out / FOLDER / 'manifest.json'} is missing", hint=command(FOLDER, out))
    if damaged := next(damaged_outputs(out, manifest.outputs), None):
        raise StoreError(f"{out}: {damaged}", hint=command(FOLDER, out))
    return run.tables(FOLDER)
