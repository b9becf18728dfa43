"""The command tree. Each verb's module imports what it needs when it is called, so that help costs nothing."""

import logging
import sys
from typing import Annotated

import typer

from polysem.cli import atlas, defend, explore, inspect, panel, run, selftest, stages, start, transfer

app = typer.Typer(
    help="The instrument of record for polysemantic interference in language models.",
    epilog="Exit codes: 0 done; 1 failed, or verify found something; 2 wrong arguments or study file; 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def common(
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="More talk; -vv still more.")
    ] = 0,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=start.version),
    ] = False,
) -> None:
    """Options of every verb."""
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("polysem")
    logger.handlers = [handler]
    logger.setLevel([logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)])
    # warnings.warn of other libraries is talk too, and not the user's to act on
    logging.captureWarnings(verbose == 0)


class _Stderr(logging.Handler):
    """Writes to whatever stderr is at the time: a progress bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


app.command()(run.run)
app.command()(run.demo)
for name in ("features", "pairs", "plan", "trials", "response", "effects", "report"):
    app.command(name, help=stages.HELP[name])(stages.VERBS[name])
app.command()(atlas.atlas)
app.command()(inspect.status)
app.command()(inspect.verify)
app.command()(selftest.selftest)
app.command()(explore.explore)
app.command()(start.init)
app.command()(start.zoo)
app.command()(transfer.transfer)
app.command()(panel.judge)
app.command()(panel.explain)
app.command()(defend.defend)
