"""`polysem run` and `polysem demo`: a whole study, from weights to report."""

from pathlib import Path
from typing import Annotated

import typer

from polysem.cli.shell import Force, IgnoreVersions, Out, StudyFile, folder_for, result, verb

DEMO = Path(__file__).with_name("demo.toml")


@verb
def run(
    study_file: StudyFile, out: Out = None, force: Force = False, ignore_versions: IgnoreVersions = False
) -> None:
    """Run a study; what is finished and fresh is not done again. Prints the path of the report."""
    _run(study_file, folder_for(study_file, out), force=force, ignore_versions=ignore_versions)


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
