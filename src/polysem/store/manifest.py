"""Manifests: what a stage was made from and what it made, and the comparison of the two with what is there
now.

What a stage is made from is everything that decides its bytes; the sha256 of that is the fingerprint. A manifest holds
it, the hashes of the files made, what was found out while making them (`facts`: resolved device, revisions, fidelity,
processor) and when and where that was (`made`). Only what it is made from takes part in freshness; only here may times
and host names stand.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel

from polysem.boundary.door import Door, brief
from polysem.boundary.files import inside
from polysem.errors import StoreError, typed
from polysem.store import io
from polysem.store.stages import ORDER, REGISTRY, StageName, command, packages_of, parameters

FORMAT = 2
"""version of the manifest itself; what was written with another is not read"""
_CPUINFO = Path("/proc/cpuinfo")

State = Literal["absent", "partial", "fresh", "stale", "foreign"]
"""nothing there | begun | whole, and made from what is there now | made from something else | not of this
study"""


@dataclass(frozen=True)
class StageInputs:
    """Everything that decides what a stage writes."""

    stage: StageName
    schemas: dict[str, int]
    """table -> version of its schema"""
    parameters: dict[str, Any]
    """sections of the settings, and options of the command"""
    sources: dict[str, str]
    """what is read from outside the run folder, with a hash of its content or the commit it is pinned to"""
    inputs: dict[str, str]
    """files of earlier stages -> sha256"""
    packages: dict[str, str]
    """distribution -> version"""

    @classmethod
    def of(
        cls,
        settings: BaseModel,
        stage: StageName,
        *,
        sources: Mapping[str, str],
        inputs: Mapping[str, str],
        options: Mapping[str, Any] | None = None,
    ) -> "StageInputs":
        """What a stage is made from with these settings and the packages installed here."""
        return cls(
            stage=stage,
            schemas={schema.name: schema.version for schema in REGISTRY[stage].tables},
            parameters=parameters(settings, stage, options),
            sources=dict(sources),
            inputs=dict(inputs),
            packages={name: version_of(name) for name in packages_of(stage)},
        )

    @property
    def fingerprint(self) -> str:
        """sha256 over its canonical JSON."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, now: "StageInputs", *, ignore_versions: bool = False) -> list[str]:
        """What is not as it was, in words; empty if nothing differs."""
        skipped = {"packages"} if ignore_versions else set[str]()
        before, after = asdict(self), asdict(now)
        return [
            words
            for part in before
            if part not in skipped
            for words in _differences(part, before[part], after[part])
        ]


_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Output:
    """One file that a stage made."""

    sha256: str
    rows: int | None = None


@dataclass(frozen=True)
class Manifest:
    """The record of a finished stage, or of one part of it."""

    made_from: StageInputs
    outputs: dict[str, Output]
    """file, relative to the run folder -> what it is"""
    facts: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    records: dict[str, str] = field(default_factory=dict)
    """record of a part, relative to the run folder -> its sha256; empty for a stage of one part"""

    @property
    def hashes(self) -> dict[str, str]:
        return {name: output.sha256 for name, output in self.outputs.items()}

    def write(self, path: Path) -> None:
        """Write the manifest as JSON."""
        whole = {
            "format": FORMAT,
            "fingerprint": self.made_from.fingerprint,
            "made_from": asdict(self.made_from),
            "outputs": {name: asdict(output) for name, output in self.outputs.items()},
            "facts": self.facts,
            "made": self.made,
            "records": self.records,
        }
        io.write_json(path, whole)

    @classmethod
    def read(cls, path: Path, *, rebuild: str) -> "Manifest":
        """The manifest of a file.

        Raises:
            StoreError: if it is missing, damaged, of another format, or its fingerprint is not that of what it
                says it is made from.
        """
        whole = io.read_json(path, rebuild=rebuild)
        if whole.get("format") != FORMAT:
            raise StoreError(
                f"{path} was written by another version of polysem: it is a manifest of format {whole.get('format')!r}, "
                f"expected {FORMAT}",
                hint=rebuild,
            )
        try:
            manifest = cls(
                made_from=StageInputs(**whole["made_from"]),
                outputs={name: Output(**output) for name, output in whole["outputs"].items()},
                facts=dict(whole["facts"]),
                made=dict(whole["made"]),
                records=dict(whole.get("records", {})),
            )
            manifest.check(path, rebuild=rebuild)
            fingerprint = manifest.made_from.fingerprint
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise StoreError(f"{path} is no manifest of a stage: {error!r}", hint=rebuild) from error
        if fingerprint != whole.get("fingerprint"):
            raise StoreError(
                f"{path} was edited: its fingerprint {whole.get('fingerprint')!r} is not that of what it names "
                f"({fingerprint})",
                hint=rebuild,
            )
        return manifest

    def check(self, path: Path, *, rebuild: str) -> None:
        """Every file that it names lies in the run folder, before any is opened.

        Raises:
            StoreError: a path that leads out, a hash that is none, rows that are no number.
        """
        root, door = path.parent.parent, Door("manifest", rebuild, StoreError, StoreError)
        for name, digest in [*self.hashes.items(), *self.records.items()]:
            inside(root, name, door=door, where=path)
            if type(digest) is not str or not _SHA256.fullmatch(digest):
                raise door.refuse(path, f"the sha256 of {brief(name)} is {brief(digest)}")
        odd = next(
            (o.rows for o in self.outputs.values() if not (o.rows is None or type(o.rows) is int)), None
        )
        if odd is not None:
            raise door.refuse(path, f"a number of rows is {brief(odd)}")


@dataclass(frozen=True)
class StageStatus:
    """Where a stage stands, and why."""

    stage: StageName
    state: State
    reason: str


def damaged_outputs(root: Path, outputs: Mapping[str, Output]) -> Iterator[str]:
    """In words, every file of a manifest that is not what was written."""
    yield from damaged_files(root, {name: output.sha256 for name, output in outputs.items()})


def damaged_files(root: Path, hashes: Mapping[str, str]) -> Iterator[str]:
    """In words, every file (relative name -> sha256) that is not there, or not what was written."""
    for name, recorded in hashes.items():
        try:
            seen = io.sha256_of(root / name)
        except StoreError as error:
            yield f"{name} cannot be read: {str(error).splitlines()[0]}"
            continue
        if seen is None:
            yield f"{name} is missing"
        elif seen != recorded:
            yield f"{name} is not the file that was written (sha256 {seen[:12]}…, recorded {recorded[:12]}…)"


def compare(
    root: Path, manifest: Manifest, now: StageInputs, *, ignore_versions: bool = False
) -> tuple[State, str]:
    """Fresh, or stale with the reasons: what changed among the inputs, then what happened to the files."""
    reasons = manifest.made_from.differences(now, ignore_versions=ignore_versions)
    reasons += damaged_outputs(root, manifest.outputs)
    if not reasons:
        return "fresh", ""
    shown = reasons[:3] + ([f"and {len(reasons) - 3} more"] if len(reasons) > 3 else [])
    return "stale", "; ".join(shown)


def read_manifest(root: Path, stage: StageName) -> Manifest | None:
    """The manifest of a stage, or None where the stage is not finished. Raises StoreError if it is
    damaged."""
    path = root / stage / "manifest.json"
    return Manifest.read(path, rebuild=command(stage, root)) if path.exists() else None


def other_format(root: Path) -> StoreError | None:
    """What is to be said of a run folder all of whose manifests are of another format; None of any other folder."""
    found: dict[StageName, object] = {}
    for stage in REGISTRY:
        path = root / stage / "manifest.json"
        if path.exists():
            try:
                found[stage] = io.read_json(path, rebuild=command(stage, root)).get("format")
            except StoreError:
                return None  # damage is a matter of its stage
    if not found or FORMAT in found.values():
        return None
    formats = ", ".join(sorted({repr(value) for value in found.values()}))
    first = next(iter(found))
    again = (
        f"polysem run {typed(root)}/study.toml --out {typed(root)}"
        if first in ORDER
        else command(first, root)
    )
    return StoreError(
        f"{root} was written by another version of polysem: its manifests are of format {formats}, expected {FORMAT}",
        hint=again,
    )


def version_of(distribution: str) -> str:
    """The installed version of a distribution, or "absent"."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def made_here(started: float) -> dict[str, Any]:
    """When and where: the only times and host names in a run folder.

    Args:
        started: `time.time()` at the beginning of the work.
    """
    now = time.time()
    stamp = "%Y-%m-%dT%H:%M:%SZ"
    return {
        "started": time.strftime(stamp, time.gmtime(started)),
        "finished": time.strftime(stamp, time.gmtime(now)),
        "seconds": round(now - started, 3),
        "host": platform.node(),
        "pid": os.getpid(),
    }


def platform_facts() -> dict[str, str]:
    """What of this machine can change the last bits of a number."""
    return {
        "machine": platform.machine(),
        "processor": processor(),
        "system": platform.system(),
        "python": platform.python_version(),
        "pyarrow": version_of("pyarrow"),
    }


def processor() -> str:
    """The model of this machine's processor, e.g. "AMD EPYC 7B13"; "" where the system does not say."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _differences(path: str, before: Any, after: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        before, after = cast("dict[str, Any]", before), cast("dict[str, Any]", after)
        for key in sorted(
            {*before, *after}
        ):  # a setting that came with a new version and is not used is no change
            yield from _differences(f"{path}.{key}", before.get(key), after.get(key))
    elif before != after:
        head, _, key = path.partition(".")
        yield _words(head, key, before, after)


def _words(part: str, key: str, before: Any, after: Any) -> str:
    part, _, inner = part.partition(".")
    key = ".".join(name for name in (inner, key) if name)
    was, now = _brief(before), _brief(after)
    match part:
        case "inputs":
            return (
                f"input {key} changed" if before and after else f"input {key} {'came' if after else 'went'}"
            )
        case "sources":
            return f"{key} changed: was {was}, is {now}"
        case "packages":
            return f"package {key} was {was}, is {now}"
        case "schemas":
            return f"schema of {key} was version {was}, is {now}"
        case _:
            return f"{key or part} was {was}, is {now}"


def _brief(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "…"
