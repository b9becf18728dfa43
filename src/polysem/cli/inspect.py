"""`polysem status` and `polysem verify`: what a run folder holds, and whether it holds what it says."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from polysem.cli.shell import FAILED, IgnoreVersions, verb

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


def _has_transfer(run: Path) -> bool:
    """Whether a transfer study is in the folder, alone or beside a study."""
    return (run / "transfer.toml").is_file()


def _transfer_alone(run: Path) -> bool:
    return _has_transfer(run) and not (run / "study.toml").is_file()


@verb
def status(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, one object per stage.")] = False,
    ignore_versions: IgnoreVersions = False,
) -> None:
    """Say of every stage whether it is absent, partial, fresh, stale or foreign, and why."""
    from polysem.store import RunFolder
    from polysem.study import study_status

    found = []
    if not _transfer_alone(run):
        stages = study_status(RunFolder.open(run).study(), run, ignore_versions=ignore_versions)
        found = [asdict(stage) for stage in stages]
    if _has_transfer(run):
        from polysem.transfer.check import transfer_status

        found.append({"stage": "transfer", **transfer_status(run)._asdict()})
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for stage in found:
        print(f"{stage['stage']:<9} {stage['state']:<8} {stage['reason']}".rstrip())


@verb
def verify(
    run: RunArgument,
    sample: Annotated[
        int, typer.Option("--sample", min=0, help="Batches of trials to run again; 0 runs none.")
    ] = 3,
) -> None:
    """Hash every file, check every table, look for trials that are missing, and run a sample of them again."""
    from polysem.cli.progress import reporter
    from polysem.study import verify_run

    findings = [] if _transfer_alone(run) else verify_run(run, sample=sample, reporter=reporter())
    if _has_transfer(run):
        from polysem.transfer.check import verify_transfer

        findings += verify_transfer(run)
    for finding in findings:
        print(finding)
    if findings:
        raise typer.Exit(FAILED)
    print(f"{run}: verified")
