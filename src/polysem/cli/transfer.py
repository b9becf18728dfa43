"""`polysem transfer`: what two small models share, and whether it moves another."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from polysem.cli.shell import result, verb
from polysem.errors import ConfigError

TEMPLATE = Path(__file__).with_name("transfer.toml")


@verb
def transfer(
    study_file: Annotated[
        Path | None, typer.Argument(metavar="TRANSFER.toml", help="The transfer study; --init prints one.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder; default runs/NAME of the study.")
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say what would be sent and cost, and send nothing.")
    ] = False,
    init: Annotated[
        bool, typer.Option("--init", help="Print a transfer study with its keys, and end.")
    ] = False,
) -> None:
    """Run a transfer study; what was answered before is not asked again. Prints the path of its report."""
    if init:
        print(TEMPLATE.read_text(encoding="utf-8"), end="")
        return
    if study_file is None:
        raise ConfigError("no transfer study given", hint="polysem transfer --init > transfer.toml")
    from polysem.cli.progress import reporter
    from polysem.transfer.config import load_transfer
    from polysem.transfer.run import run_transfer

    folder = out if out is not None else Path("runs") / load_transfer(study_file).name
    done = run_transfer(study_file, folder, reporter=reporter(), say=_say, estimate_only=estimate)
    if not estimate:
        from polysem.report.transfer import write_transfer_report

        done = write_transfer_report(folder)
    result(done)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
