"""The command tree. Each verb's module imports what it needs when it is called, so that help costs nothing."""

import logging
import re
import sys
from typing import Annotated, Any

import typer
import typer.core
from typer import Option

from polysem.cli import beside, explore, publish, relations, replicate, scaling, selftest, study, train_sae
from polysem.store.stages import REGISTRY

_MATTER = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "pyarrow",
    "duckdb",
    "statsmodels",
)
"""packages whose version can change a number"""


class _Whole(typer.core.TyperGroup):
    """A group whose help says the first sentence of every verb, on as many lines as it needs."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [
            (name, _first_sentence(verb.help or ""))
            for name, verb in self.commands.items()
            if not verb.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _first_sentence(text: str) -> str:
    first = " ".join(text.split("\n\n")[0].split())
    return first.split(". ")[0].removesuffix(".") + "."


app = typer.Typer(
    cls=_Whole,
    help="The instrument of record for polysemantic interference in language models.",
    epilog="Exit codes: 0 done; 1 failed, or verify found something; 2 wrong arguments or study file; 130 interrupted.",
    no_args_is_help=True,
    context_settings={"max_content_width": 110},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    """Print the versions that can change a number, if they are asked for, and end."""
    if wanted:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        from polysem import __version__

        print(
            f"{__version__}\npython {platform.python_version()} on {platform.system()} {platform.machine()}"
        )
        for name in (*_MATTER, "polysem-zoo", "polysem-zoo-real"):
            try:
                print(f"{name} {version(name)}")
            except PackageNotFoundError:
                print(f"{name} is not installed")
        raise typer.Exit()


@app.callback()
def common(
    verbose: Annotated[int, Option("--verbose", "-v", count=True, help="More talk; -vv still more.")] = 0,
    quiet: Annotated[
        bool, Option("--quiet", "-q", help="Results and errors only: no progress, no warnings.")
    ] = False,
    version: Annotated[
        bool,
        Option(
            "--version", help="Print the versions that matter and exit.", is_eager=True, callback=_version
        ),
    ] = False,
) -> None:
    """Options of every verb, which may stand behind it, too."""
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("polysem")
    logger.handlers = [handler]
    spoken = [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    logger.setLevel(logging.ERROR if quiet else spoken)
    # warnings.warn of other libraries is talk too, and not the user's to act on
    logging.captureWarnings(verbose == 0)


class _Stderr(logging.Handler):
    """Writes to whatever stderr is at the time: a progress bar puts itself in its place. Every stage loads what it needs and
    warns of it; one warning is enough."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.getMessage().strip() and text not in self._said:
            self._said.add(text)
            print(text, file=sys.stderr)


def hoisted(arguments: list[str]) -> list[str]:
    """The command line with -v and -q in front of the verb, wherever they stand."""
    common = re.compile(r"-v+|-q|--verbose|--quiet")
    return sorted(arguments, key=lambda argument: common.fullmatch(argument) is None)


app.command()(study.run)
app.command()(study.demo)
for name, stage in REGISTRY.items():
    app.command(name, help=stage.help)((study.STAGES | beside.STAGES)[name])
for other in (
    study.check,
    study.compare,
    replicate.replicate,
    relations.relations,
    scaling.scaling,
    study.status,
    study.verify,
    selftest.selftest,
    explore.explore,
    study.init,
    study.zoo,
):
    app.command()(other)
app.command()(publish.push)
app.command("export-neuronpedia")(publish.export_neuronpedia)
app.command("train-sae")(train_sae.train_sae)
