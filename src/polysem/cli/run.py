"""`polysem run` and `polysem demo`: a whole study, from weights to report."""

from pathlib import Path
from typing import Annotated

import typer

from polysem.cli.shell import (
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

DEMO = Path(__file__).with_name("demo.toml")


@verb
def run(
    study_file: StudyFile,
    out: Out = None,
    shard: Shard = "",
    workers: Workers = 0,
    engine: Where = "processes",
    force: Force = False,
    ignore_versions: IgnoreVersions = False,
) -> None:
    """Run a study; what is finished and fresh is not done again. Prints the path of the report.

    With --shard only that part of the trials is run, of a study whose plan is made; run it once more without, to
    collect the shards and go on. With preset `paper` or `both` the paper's estimates are said beside the strict ones.
    """
    part, folder = shard_of(shard), folder_for(study_file, out)
    from polysem.cli.progress import reporter
    from polysem.study import run_study

    done = run_study(
        *(study_file, folder),
        reporter=reporter(),
        stages=["trials"] if part else None,
        shard=part,
        force=force,
        ignore_versions=ignore_versions,
        workers=workers,
        engine=engine,
    )
    if not part:
        from polysem.cli.presets import say_presets

        say_presets(folder)
    result(done)


@verb
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Run folder.")] = Path("runs/demo"),
    force: Force = False,
    ignore_versions: IgnoreVersions = False,
) -> None:
    """Run the study that is shipped with polysem, on the models of the zoo, offline. Prints the path of the report."""
    _run(DEMO, out, force=force, ignore_versions=ignore_versions)


def _run(study_file: Path, out: Path, *, force: bool, ignore_versions: bool) -> None:
    from polysem.cli.progress import reporter
    from polysem.study import run_study

    result(run_study(study_file, out, reporter=reporter(), force=force, ignore_versions=ignore_versions))
