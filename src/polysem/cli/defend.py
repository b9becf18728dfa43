"""`polysem defend`: what would notice or prevent the interventions of a transfer study."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from polysem.cli.shell import result, verb


@verb
def defend(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of a transfer study.")],
    n_clean: Annotated[int, typer.Option("--n-clean", metavar="N", help="Clean inputs.")] = 200,
) -> None:
    """Judge monitor, prompt filter and protected steering on a transfer study. Prints the path of the page."""
    from polysem.cli.progress import reporter
    from polysem.report.defence import write_defence_page
    from polysem.transfer.audit import defend as audit

    audit(
        out, n_clean=n_clean, say=lambda text: print(text, file=sys.stderr, flush=True), reporter=reporter()
    )
    result(write_defence_page(out))
