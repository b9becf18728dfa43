"""One verb per stage of a study."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polysem.cli.shell import Force, IgnoreVersions, Out, StudyFile, folder_for, result, verb
from polysem.errors import ConfigError

if TYPE_CHECKING:
    from polysem.store.stages import Stage

HELP = {
    "features": "What every feature fires on, writes and is called. Prints the stage's folder, as do the next five.",
    "pairs": "The map of all pairs: interference, gloss similarity, chance.",
    "plan": "Prompts, targets, sources, controls and doses: every trial, before any is run.",
    "trials": "Run the plan on the model.",
    "effects": "Effects with intervals.",
    "report": "The report as one HTML file. Prints its path.",
}


@verb
def _stage(
    stage: "Stage", study_file: Path, out: Path | None, force: bool, ignore_versions: bool, shard: str = ""
) -> None:
    part = _shard(shard)
    folder = folder_for(study_file, out)
    from polysem.cli.progress import reporter
    from polysem.study import run_study

    done = run_study(
        study_file,
        folder,
        reporter=reporter(),
        stages=[stage],
        shard=part,
        force=force,
        ignore_versions=ignore_versions,
    )
    result(done)


def _shard(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise ConfigError(f"--shard {text!r}: expected K/N, for example 17/64")
    return int(match[1]), int(match[2])


def _plain(stage: "Stage") -> Callable[..., None]:
    def command(
        study_file: StudyFile, out: Out = None, force: Force = False, ignore_versions: IgnoreVersions = False
    ) -> None:
        _stage(stage, study_file, out, force, ignore_versions)

    return command


def _trials(
    study_file: StudyFile,
    out: Out = None,
    shard: Annotated[
        str,
        typer.Option(
            "--shard", metavar="K/N", help="Every N-th part only, from the K-th; run them at the same time."
        ),
    ] = "",
    ignore_versions: IgnoreVersions = False,
) -> None:
    _stage("trials", study_file, out, False, ignore_versions, shard)


VERBS: dict[str, Callable[..., None]] = {
    **{name: _plain(name) for name in ("features", "pairs", "plan", "effects", "report")},
    "trials": _trials,
}
