"""What verbs share: how errors end, where progress goes, options that several have."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from polysem.errors import ConfigError, PolysemError

P = ParamSpec("P")

FAILED, USAGE, INTERRUPTED = 1, 2, 130

StudyFile = Annotated[
    Path, typer.Argument(metavar="STUDY.toml", help="The study file; `polysem init` prints one.")
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Run folder; default runs/NAME of the study.")
]
Force = Annotated[bool, typer.Option("--force", help="Take over a folder that holds another study.")]
IgnoreVersions = Annotated[
    bool, typer.Option("--ignore-versions", help="Keep what was made with other versions of packages.")
]


def verb(function: Callable[P, None]) -> Callable[P, None]:
    """A command whose deliberate errors end in one paragraph and an exit code; anything else is a bug and shows its traceback."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except ConfigError as error:
            raise _ended(error, USAGE) from None
        except PolysemError as error:
            raise _ended(error, FAILED) from None
        except KeyboardInterrupt:
            print("interrupted; run the same command again to continue", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None

    return guarded


def _ended(error: PolysemError, code: int) -> typer.Exit:
    print(f"error: {error}", file=sys.stderr)
    return typer.Exit(code)


def folder_for(study_file: Path, out: Path | None) -> Path:
    """`out`, or runs/NAME. The study is read either way, so that a wrong one ends before anything is made."""
    from polysem.config import load_study

    study = load_study(study_file)
    return out if out is not None else Path("runs") / study.name


def result(path: object) -> None:
    """The one line of stdout."""
    print(path)
