"""What verbs share: how errors end, where progress goes, options that several have."""

import functools
import inspect
import json
import logging
import math
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec

import typer
from typer import Argument, Option

from polysem.boundary.door import brief
from polysem.errors import ConfigError, PolysemError

if TYPE_CHECKING:
    from polysem.engine.options import StageOptions
    from polysem.progress import Reporter

P = ParamSpec("P")
Engine = Literal["processes", "ray"]

FAILED, USAGE, INTERRUPTED = 1, 2, 130

StudyFile = Annotated[Path, Argument(metavar="STUDY.toml", help="The study file; `polysem init` prints one.")]
RunArgument = Annotated[Path, Argument(metavar="RUN", help="A run folder.")]
Out = Annotated[
    Path | None, Option("--out", metavar="DIR", help="Run folder; default runs/NAME of the study.")
]
Force = Annotated[bool, Option("--force", help="Take over a folder that holds another study.")]
AsJson = Annotated[bool, Option("--json", help="The result as JSON on stdout.")]
IgnoreVersions = Annotated[
    bool, Option("--ignore-versions", help="Keep what was made with other versions of packages.")
]
Workers = Annotated[
    int,
    Option(
        "--workers", metavar="N", min=0, help="Run the trials on N processes of one thread; 0: in this one."
    ),
]
Where = Annotated[Engine, Option("--engine", help="Where workers run: on this machine, or on a Ray cluster.")]
Shard = Annotated[
    str,
    Option(
        "--shard", metavar="K/N", help="Every N-th part of the trials only, from the K-th; for schedulers."
    ),
]


def numbers_of(text: str, option: str, example: str) -> tuple[int, ...]:
    """The whole numbers of an option, with commas between. Raises ConfigError."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):  # int() takes 1_000 and -1, too
        raise ConfigError(
            f"{option} {brief(text)}: expected whole numbers with commas", hint=f"{option} {example}"
        )
    return tuple(map(int, parts))


def asks(kind: "type[StageOptions]") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a verb of a function (study file, out, options, *, ignore_versions, as_json): every option of `kind` that is `asked`
    is one of its own. A tuple of numbers is written with commas, one of texts by giving the option again."""
    own = {one.metadata["flag"] or one.name: one for one in fields(kind) if one.metadata}  # type: ignore[arg-type]

    def made(function: Callable[..., None]) -> Callable[..., None]:
        @verb
        def asking(
            study_file: Path, out: Path | None, ignore_versions: bool, as_json: bool, **given: Any
        ) -> None:
            options = kind(**{one.name: _taken(given[flag], one, flag) for flag, one in own.items()})
            function(study_file, out, options, ignore_versions=ignore_versions, as_json=as_json)

        asking.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                _parameter("study_file", StudyFile),
                _parameter("out", Out, None),
                *(_option(flag, one) for flag, one in own.items()),
                _parameter("ignore_versions", IgnoreVersions, False),
                _parameter("as_json", AsJson, False),
            ]
        )
        return asking

    return made


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _option(flag: str, one: "Field[Any]") -> inspect.Parameter:
    kind, default = one.type, one.default
    if kind == tuple[str, ...]:
        kind, default = list[str] | None, None
    elif isinstance(default, tuple):
        kind, default = str, ",".join(f"{number:g}" for number in default)
    named = f"--{flag.replace('_', '-')}"
    option = Option(named, metavar=one.metadata["metavar"], help=one.metadata["help"])
    return _parameter(flag, Annotated[kind, option], default)  # type: ignore[valid-type]


def _taken(given: Any, one: "Field[Any]", flag: str) -> Any:
    """The value of a field, of what was typed."""
    if one.type == tuple[int, ...]:
        return numbers_of(given, f"--{flag}", "12,40")
    if one.type == tuple[float, ...]:
        try:
            return tuple(float(part) for part in given.split(",") if part.strip())
        except ValueError as error:
            raise ConfigError(f"--{flag} {given!r}: expected numbers with commas, as 0.05,0.5") from error
    return tuple(given or ()) if one.type == tuple[str, ...] else given


def shard_of(text: str) -> tuple[int, int] | None:
    """(K, N) of the option --shard."""
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None:
        raise ConfigError(f"--shard {text!r}: expected K/N, for example 17/64")
    return int(match[1]), int(match[2])


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


@contextmanager
def working(label: str) -> "Iterator[Reporter]":
    """A sign of life on a terminal around work that is no stage; gives what may be told of its steps."""
    from polysem.progress import Bars, on_stderr

    reporter = on_stderr()
    with reporter.stage(label) if isinstance(reporter, Bars) else nullcontext():
        yield reporter


def folder_for(study_file: Path, out: Path | None) -> Path:
    """`out`, or runs/NAME. The study is read either way, so that a wrong one ends before anything is made."""
    from polysem.config import load_study

    study = load_study(study_file)
    return out if out is not None else Path("runs") / study.name


def print_template(name: str, *, as_json: bool = False) -> None:
    """Print a file to begin with, one of those beside this module; or the settings in it as JSON."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    if as_json:
        print_json(tomllib.loads(text))
    else:
        print(text, end="")


def say(text: str) -> None:
    """A line of talk; none where the log is told to be quiet."""
    if logging.getLogger("polysem").level <= logging.WARNING:
        print(text, file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """A result as JSON; numbers that are not finite are null."""
    print(json.dumps(finite(value), indent=1, ensure_ascii=False, default=str))


def finite(value: object) -> object:
    """A value for JSON: numbers that are not finite are null."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: finite(own) for key, own in value.items()}
        case list() | tuple():
            return [finite(own) for own in value]
    return value


def result(made: object, *, as_json: bool = False, key: str = "path", **more: object) -> None:
    """The one line of stdout: what was made; or as JSON, under `key`, with what else is known of it."""
    if as_json:
        print_json({key: made, **more})
    else:
        print(made, flush=True)
