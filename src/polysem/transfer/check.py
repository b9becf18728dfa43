"""Whether the effects of a transfer study follow from its trials; loads no model, sends nothing."""

from collections.abc import Iterator

import pyarrow as pa

from polysem.store.run import RunFolder
from polysem.transfer.config import load_transfer
from polysem.transfer.effects import effects
from polysem.transfer.result import read_transfer


def effects_follow(run: RunFolder) -> Iterator[str]:
    """The effects of a finished transfer study against the trials from which they were computed, in words.

    Raises:
        ConfigError: its transfer.toml is no transfer study.
        StoreError: a table is not what was written.
    """
    tables = read_transfer(run.root)
    again = effects(tables["transfer_trials"], load_transfer(run.root / "transfer.toml"), noise={})
    # The noise floor comes from repeated baselines, which are in no table.
    kept, made = (_without(t, "noise_floor") for t in (tables["transfer_effects"], again))
    if not kept.equals(made):
        rows = sum(a != b for a, b in zip(kept.to_pylist(), made.to_pylist(), strict=False))
        yield f"transfer: {rows} of {kept.num_rows} effects do not follow from the trials"


def _without(table: pa.Table, column: str) -> pa.Table:
    return table.drop_columns([column]).replace_schema_metadata(None)
