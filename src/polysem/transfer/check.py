"""Where a transfer study stands, and whether its folder holds what it says; loads no model, sends nothing."""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from polysem.errors import StoreError
from polysem.store import io
from polysem.store.tables import TRANSFER
from polysem.transfer.config import TransferStudy, load_transfer
from polysem.transfer.effects import effects
from polysem.transfer.result import FOLDER, RERUN, read_transfer

STUDY = "transfer.toml"


class TransferStatus(NamedTuple):
    """State, as of a study's stages: absent, partial, fresh, stale; and why."""

    state: str
    reason: str


def transfer_status(out: Path) -> TransferStatus:
    """Where the transfer study of a folder stands.

    Raises:
        ConfigError: its transfer.toml is no transfer study.
    """
    study = load_transfer(out / STUDY)
    folder = out / FOLDER
    if not (folder / "manifest.json").is_file():
        kept = sum(1 for _ in (folder / "responses").rglob("*.json.gz"))
        parts = sum(1 for _ in (folder / "trials").glob("*.parquet"))
        if not kept and not parts:
            return TransferStatus("absent", "not begun")
        return TransferStatus("partial", f"{parts} parts, {kept} responses kept")
    manifest = io.read_json(folder / "manifest.json", rebuild=RERUN)
    if changed := _changed(study, manifest["study"]):
        return TransferStatus("stale", f"{', '.join(changed)} of transfer.toml changed")
    for file, wanted in manifest["outputs"].items():
        if not (folder / file).is_file():
            return TransferStatus("stale", f"{file} is missing")
        if io.sha256_of(folder / file) != wanted["sha256"]:
            return TransferStatus("stale", f"{file} is not the file that was written")
    missing = [s.name for s in TRANSFER if f"{s.name}.parquet" not in manifest["outputs"]]
    if missing:
        return TransferStatus("stale", f"made without the tables {', '.join(missing)}")
    return TransferStatus("fresh", "")


def _changed(study: TransferStudy, recorded: dict[str, object]) -> list[str]:
    now = study.model_dump(mode="json")
    return sorted(key for key in now.keys() | recorded.keys() if now.get(key) != recorded.get(key))


def verify_transfer(out: Path) -> list[str]:
    """Everything that is wrong with the folder of a transfer study, in words; empty if nothing is.

    Files against the hashes in the manifest, tables against their schemas, the study against the one that was
    run, and the effects against the trials from which they were computed.

    Raises:
        ConfigError: its transfer.toml is no transfer study.
    """
    status = transfer_status(out)
    if status.state != "fresh":
        return [f"transfer: {status.state}: {status.reason}"]
    try:
        tables = read_transfer(out)
    except StoreError as error:
        return [f"transfer: {str(error).splitlines()[0]}"]
    study = load_transfer(out / STUDY)
    again = effects(tables["transfer_trials"], study, noise={})
    # The noise floor comes from repeated baselines, which are in no table.
    kept, made = (_without(t, "noise_floor") for t in (tables["transfer_effects"], again))
    if not kept.equals(made):
        rows = sum(a != b for a, b in zip(kept.to_pylist(), made.to_pylist(), strict=False))
        return [f"transfer: {rows} of {kept.num_rows} effects do not follow from the trials"]
    return []


def _without(table: pa.Table, column: str) -> pa.Table:
    return table.drop_columns([column]).replace_schema_metadata(None)
