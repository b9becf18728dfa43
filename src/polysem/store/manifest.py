"""Manifests: what a stage was made from and what it made, and the comparison of the two with what is there
now.

A recipe is everything that decides a stage's bytes; its sha256 is the fingerprint. A manifest holds the
recipe, the hashes of the files made, what was found out while making them (`facts`: resolved device,
revisions, fidelity) and when and where that was (`made`). Only the recipe takes part in freshness; only
here may times and host names stand.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from polysem.config import Study
from polysem.errors import StoreError
from polysem.store import io
from polysem.store.stages import NEEDS, Stage, command, parameters
from polysem.store.tables import STAGES

FORMAT = 1
"""version of the manifest itself"""

State = Literal["absent", "partial", "fresh", "stale", "foreign"]
"""nothing there | begun | whole, and made from what is there now | made from something else | not of this
study"""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a stage writes."""

    stage: Stage
    schemas: dict[str, int]
    """table -> version of its schema"""
    parameters: dict[str, Any]
    """sections of the study"""
    sources: dict[str, str]
    """what is read from outside the run folder, with a hash of its content or the commit it is pinned to"""
    inputs: dict[str, str]
    """files of earlier stages -> sha256"""
    packages: dict[str, str]
    """distribution -> version"""

    @classmethod
    def of(
        cls, study: Study, stage: Stage, *, sources: Mapping[str, str], inputs: Mapping[str, str]
    ) -> "Recipe":
        """The recipe of a stage of a study with the packages installed here."""
        return cls(
            stage=stage,
            schemas={schema.name: schema.version for schema in STAGES.get(stage, ())},
            parameters=parameters(study, stage),
            sources=dict(sources),
            inputs=dict(inputs),
            packages={name: version_of(name) for name in NEEDS[stage].packages},
        )

    @property
    def fingerprint(self) -> str:
        """sha256 over the canonical JSON of the recipe."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, now: "Recipe", *, ignore_versions: bool = False) -> list[str]:
        """What is not as it was, in words; empty if the recipes are equal."""
        skipped = {"packages"} if ignore_versions else set()
        before, after = asdict(self), asdict(now)
        return [
            words
            for part in before
            if part not in skipped
            for words in _differences(part, before[part], after[part])
        ]


@dataclass(frozen=True)
class Output:
    """One file that a stage made."""

    sha256: str
    rows: int | None = None


@dataclass(frozen=True)
class Manifest:
    """The record of a finished stage, or of one part of it."""

    recipe: Recipe
    outputs: dict[str, Output]
    """file, relative to the run folder -> what it is"""
    facts: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def hashes(self) -> dict[str, str]:
        return {name: output.sha256 for name, output in self.outputs.items()}

    def write(self, path: Path) -> None:
        """Write the manifest as JSON."""
        whole = {
            "format": FORMAT,
            "fingerprint": self.recipe.fingerprint,
            "recipe": asdict(self.recipe),
            "outputs": {name: asdict(output) for name, output in self.outputs.items()},
            "facts": self.facts,
            "made": self.made,
        }
        io.write_json(path, whole)

    @classmethod
    def read(cls, path: Path, *, rebuild: str) -> "Manifest":
        """The manifest of a file.

        Raises:
            StoreError: if it is missing, damaged, of another format, or its fingerprint is not that of
                its recipe.
        """
        whole = io.read_json(path, rebuild=rebuild)
        if whole.get("format") != FORMAT:
            raise StoreError(
                f"{path} is a manifest of format {whole.get('format')!r}, expected {FORMAT}", hint=rebuild
            )
        try:
            manifest = cls(
                recipe=Recipe(**whole["recipe"]),
                outputs={name: Output(**output) for name, output in whole["outputs"].items()},
                facts=whole["facts"],
                made=whole["made"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{path} is no manifest of a stage: {error!r}", hint=rebuild) from error
        if manifest.recipe.fingerprint != whole.get("fingerprint"):
            raise StoreError(
                f"{path} was edited: its fingerprint {whole.get('fingerprint')!r} is not that of its recipe "
                f"({manifest.recipe.fingerprint})",
                hint=rebuild,
            )
        return manifest


@dataclass(frozen=True)
class StageStatus:
    """Where a stage stands, and why."""

    stage: Stage
    state: State
    reason: str


def damaged_outputs(root: Path, outputs: Mapping[str, Output]) -> Iterator[str]:
    """In words, every file of a manifest that is not what was written."""
    for name, output in outputs.items():
        seen = io.sha256_of(root / name)
        if seen is None:
            yield f"{name} is missing"
        elif seen != output.sha256:
            yield f"{name} is not the file that was written (sha256 {seen[:12]}…, recorded {output.sha256[:12]}…)"


def compare(
    root: Path, manifest: Manifest, now: Recipe, *, ignore_versions: bool = False
) -> tuple[State, str]:
    """Fresh, or stale with the reasons: what changed among the inputs, then what happened to the files."""
    reasons = manifest.recipe.differences(now, ignore_versions=ignore_versions)
    reasons += damaged_outputs(root, manifest.outputs)
    if not reasons:
        return "fresh", ""
    shown = reasons[:3] + ([f"and {len(reasons) - 3} more"] if len(reasons) > 3 else [])
    return "stale", "; ".join(shown)


def read_manifest(root: Path, stage: Stage) -> Manifest | None:
    """The manifest of a stage, or None where the stage is not finished. Raises StoreError if it is
    damaged."""
    path = root / stage / "manifest.json"
    return Manifest.read(path, rebuild=command(stage, root)) if path.exists() else None


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
        "system": platform.system(),
        "python": platform.python_version(),
        "pyarrow": version_of("pyarrow"),
    }


def _differences(path: str, before: Any, after: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
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
