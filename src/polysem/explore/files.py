"""Which files hold a study's tables now: of finished stages from their manifests, of stages at work from the
records of their finished parts.

Only files that a manifest or a record names are ever opened, and only inside the run folder. A part counts
while its stage is at work if it was made from the tables that are there now.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from polysem.errors import StoreError
from polysem.store import io
from polysem.store.manifest import Manifest, read_manifest
from polysem.store.stages import ORDER, Stage, command
from polysem.store.tables import ATLAS, STAGES, TRANSFER

BESIDES = {"transfer": TRANSFER, "atlas": ATLAS}
"""folder -> tables of commands that are no stage of a study; their records name files relative to the folder"""
_RECORDS = {"transfer": "manifest.json", "atlas": "[0-9][0-9].json"}


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
    found = []
    for stage in ORDER:
        if stage == "report":
            continue
        try:
            manifest = read_manifest(root, stage)
        except StoreError as error:
            found.append(StageFiles(stage, False, 0, {}, {}, {stage: str(error).splitlines()[0]}))
            continue
        records = list(_records(root, stage, known))
        names = set(manifest.outputs) if manifest else {file for r in records for file in r.outputs}
        known |= manifest.hashes if manifest else {}
        found.append(_of_stage(root, stage, manifest is not None, len(records), names))
    return found


def other_files(root: Path) -> list[StageFiles]:
    """What other commands have put into the run folder, as far as it is there."""
    found = []
    for folder in BESIDES:
        records = sorted((root / folder).glob(_RECORDS[folder]))
        names: set[str] = set()
        problems: dict[str, str] = {}
        for record in records:
            try:
                outputs = io.read_json(record, rebuild=f"polysem {folder}").get("outputs", {})
            except StoreError as error:
                problems[folder] = str(error).splitlines()[0]
                continue
            names |= {f"{folder}/{name}" for name in outputs if isinstance(name, str)}
        if records:
            whole = _of_stage(root, folder, True, 0, names)
            found.append(replace(whole, problems={**whole.problems, **problems}))
    return found


def signature(root: Path) -> str:
    """Changes whenever a manifest or the record of a part does; costs a few directory listings."""
    marks = []
    for stage in (*ORDER, *BESIDES):
        kinds = ("manifest.json", "part-*.json", _RECORDS.get(stage, "manifest.json"))
        for path in sorted({path for kind in kinds for path in (root / stage).glob(kind)}):
            try:
                seen = path.stat()
            except FileNotFoundError:
                continue  # a stage is being made anew
            marks.append(f"{stage}/{path.name}:{seen.st_mtime_ns}:{seen.st_size}")
    return io_hash("\n".join(marks))


def io_hash(text: str) -> str:
    """A short name for a text, for comparing."""
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _of_stage(root: Path, stage: str, finished: bool, n_parts: int, names: set[str]) -> StageFiles:
    tables: dict[str, tuple[Path, ...]] = {}
    rows: dict[str, int] = {}
    problems: dict[str, str] = {}
    for schema in STAGES.get(stage) or BESIDES.get(stage, ()):
        stem = "part" if schema.name == "trials" else schema.name
        mine = [name for name in sorted(names) if _is_of(name, stage, stem)]
        if not mine:
            continue
        try:
            files = tuple(_inside(root, name, stage) for name in mine)
            rows[schema.name] = sum(io.count_rows(f, schema, rebuild=remake(stage, root)) for f in files)
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
    return file == stem or file.startswith(f"{stem}-") or (stage == "atlas" and file[2:] == f"-{stem}")


def remake(stage: str, root: object) -> str:
    """The command that makes what a folder holds."""
    match stage:
        case "transfer":
            return f"polysem transfer TRANSFER.toml --out {root}"
        case "atlas":
            return f"polysem atlas {root}/study.toml --out {root}"
        case _:
            return command(stage, root)  # pyright: ignore[reportArgumentType]  (the rest are stages)


def _inside(root: Path, name: str, stage: str) -> Path:
    path = (root / name).resolve()
    if not path.is_relative_to((root / stage).resolve()):
        raise StoreError(
            f"the manifest of {stage} names {name!r}, which lies outside {root / stage}",
            hint=remake(stage, root),
        )
    return path


def _records(root: Path, stage: Stage, known: dict[str, str]) -> Iterator[Manifest]:
    for path in sorted((root / stage).glob("part-*.json")):
        try:
            record = Manifest.read(path, rebuild=command(stage, root))
        except StoreError:
            continue  # a record that cannot be read vouches for nothing; the run makes the part again
        if all(known.get(file) == digest for file, digest in record.recipe.inputs.items()):
            yield record
