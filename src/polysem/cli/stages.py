"""One verb per stage of a study."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polysem.cli.shell import (
    Engine,
    Force,
    IgnoreVersions,
    Out,
    Shard,
    StudyFile,
    Where,
    Workers,
    folder_for,
    result,
    shard_of,
    verb,
)

if TYPE_CHECKING:
    from polysem.store.stages import Stage

HELP = {
    "features": "What every feature fires on, writes and is called. Prints the stage's folder, as do the next six.",
    "pairs": "The map of all pairs: interference, gloss similarity, chance.",
    "plan": "Prompts, targets, sources, controls and doses: every trial, before any is run.",
    "trials": "Run the plan on the model.",
    "response": "Linear response, decomposition and readout compensation of what was run.",
    "effects": "Effects with intervals.",
    "report": "The report as one HTML file. Prints its path.",
}


@verb
def _stage(
    stage: "Stage",
    study_file: Path,
    out: Path | None,
    force: bool,
    ignore_versions: bool,
    shard: str = "",
    workers: int = 0,
    engine: Engine = "processes",
) -> None:
    part = shard_of(shard)
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
        workers=workers,
        engine=engine,
    )
    if stage == "plan":
        from polysem.cli.power import say_power

        say_power(folder)
    result(done)


def _plain(stage: "Stage") -> Callable[..., None]:
    def command(
        study_file: StudyFile, out: Out = None, force: Force = False, ignore_versions: IgnoreVersions = False
    ) -> None:
        _stage(stage, study_file, out, force, ignore_versions)

    return command


def _plan(
    study_file: StudyFile,
    out: Out = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Time a few batches, and say what the trials will take here.")
    ] = False,
    force: Force = False,
    ignore_versions: IgnoreVersions = False,
) -> None:
    _stage("plan", study_file, out, force, ignore_versions)
    if cost:
        from polysem.cli.progress import reporter
        from polysem.study.cost import estimate_cost

        print(estimate_cost(folder_for(study_file, out), reporter=reporter()).text())


def _trials(
    study_file: StudyFile,
    out: Out = None,
    shard: Shard = "",
    workers: Workers = 0,
    engine: Where = "processes",
    ignore_versions: IgnoreVersions = False,
) -> None:
    _stage("trials", study_file, out, False, ignore_versions, shard, workers, engine)


VERBS: dict[str, Callable[..., None]] = {
    **{name: _plain(name) for name in ("features", "pairs", "response", "effects", "report")},
    "plan": _plan,
    "trials": _trials,
}
