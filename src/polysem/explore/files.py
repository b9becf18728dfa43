"""Which files hold a study's tables now: of finished stages from their manifests, of stages at work from the
records of their finished parts.

Only files that a manifest or a record names are ever opened, and these lie inside the run folder (`Manifest.check`). A part counts
while its stage is at work if it was made from the tables that are there now.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polysem.errors import StoreError
from polysem.seeds import short_hash
from polysem.store import io
from polysem.store.manifest import Manifest, read_manifest
from polysem.store.stages import ORDER, REGISTRY, StageName, command
from polysem.store.tables import STAGES

BESIDES = {stage: tables for stage, tables in STAGES.items() if stage not in ORDER}
"""stages that are made beside a study's -> their tables"""


@dataclass(frozen=True)
class StageFiles:
    """One stage as far as it is."""

    stage: str
    finished: bool
    n_parts: int
    """finished parts; of a finished stage too"""
    tables: dict[str, tuple[Path, ...]]
    """table -> its files, checked against its schema"""
    rows: dict[str, int]
    """table -> rows"""
    problems: dict[str, str]
    """table -> why it cannot be shown"""


def stage_files(root: Path) -> list[StageFiles]:
    """Every stage of a run folder, in the order in which a study runs."""
    known: dict[str, str] = {}
    there = (stage for stage in ORDER if not REGISTRY[stage].asked or (root / stage).is_dir())
    return [_stage(root, stage, known) for stage in there if stage != "report"]


def other_files(root: Path) -> list[StageFiles]:
    """What has been put into the run folder beside a study, as far as it is there."""
    known: dict[str, str] = {}
    begun = [stage for stage in BESIDES if (root / stage).is_dir()]
    found = [_stage(root, stage, known) for stage in begun]
    return [stage for stage in found if stage.finished or stage.problems]


def _stage(root: Path, stage: StageName, known: dict[str, str]) -> StageFiles:
    try:
        manifest = read_manifest(root, stage)
    except StoreError as error:
        return StageFiles(stage, False, 0, {}, {}, {stage: str(error).splitlines()[0]})
    records = list(_records(root, stage, known))
    names = set(manifest.outputs) if manifest else {file for r in records for file in r.outputs}
    known.update(manifest.hashes if manifest else {})
    return _of_stage(root, stage, manifest is not None, len(records), names)


def signature(root: Path) -> str:
    """Changes whenever a manifest or the record of a part does; costs a few directory listings."""
    marks = []
    for stage in (*ORDER, *BESIDES):
        for path in sorted([*(root / stage).glob("manifest.json"), *(root / stage).glob("part-*.json")]):
            try:
                seen = path.stat()
            except FileNotFoundError:
                continue  # a stage is being made anew
            marks.append(f"{stage}/{path.name}:{seen.st_mtime_ns}:{seen.st_size}")
    return short_hash(*marks)


def _of_stage(root: Path, stage: str, finished: bool, n_parts: int, names: set[str]) -> StageFiles:
    tables: dict[str, tuple[Path, ...]] = {}
    rows: dict[str, int] = {}
    problems: dict[str, str] = {}
    for schema in STAGES.get(stage, ()):
        stem = "part" if schema.name == "trials" else schema.name
        mine = [name for name in sorted(names) if _is_of(name, stage, stem)]
        if not mine:
            continue
        try:
            files = tuple((root / name).resolve() for name in mine)
            rows[schema.name] = sum(io.count_rows(f, schema, rebuild=command(stage, root)) for f in files)
            tables[schema.name] = files
        except StoreError as error:
            problems[schema.name] = str(error)
    return StageFiles(stage, finished, n_parts, tables, rows, problems)


def _is_of(name: str, stage: str, stem: str) -> bool:
    """Whether a file holds a table: `pairs/pairs.parquet`, `pairs/pairs-00000-of-00003.parquet`,
    `atlas/00-atlas_top.parquet`."""
    if not name.endswith(".parquet"):
        return False
    file = name.removeprefix(f"{stage}/").removesuffix(".parquet")
    return file == stem or file.startswith(f"{stem}-") or file[2:] == f"-{stem}"


def _records(root: Path, stage: StageName, known: dict[str, str]) -> Iterator[Manifest]:
    for path in sorted((root / stage).glob("part-*.json")):
        try:
            record = Manifest.read(path, rebuild=command(stage, root))
        except StoreError:
            continue  # a record that cannot be read vouches for nothing; the run makes the part again
        if all(known.get(file) == digest for file, digest in record.made_from.inputs.items()):
            yield record
