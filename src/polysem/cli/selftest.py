"""`polysem selftest`: is the instrument right? Worlds with known truth, one line per number."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from polysem.cli.shell import FAILED, AsJson, verb

if TYPE_CHECKING:
    from polysem.selftest import Line


@verb
def selftest(
    full: Annotated[
        bool, Option("--full/--quick", help="The sizes of the published table (up to an hour), or minutes.")
    ] = False,
    as_json: AsJson = False,
    world: Annotated[
        list[str] | None, Option(metavar="GT0", help="Only this world; may be repeated.")
    ] = None,
    seed: Annotated[int, Option(min=0, help="Root of everything random.")] = 0,
    out: Annotated[
        Path | None,
        Option(metavar="DIR", help="Also write selftest.json, validation.md and its picture there."),
    ] = None,
) -> None:
    """Measure worlds whose truth is known; exit code 1 if a line does not hold."""
    from polysem.progress import on_stderr
    from polysem.selftest import run, to_json

    show = None if as_json else _show
    with on_stderr().stage("selftest"):
        verdict = run(full=full, seed=seed, worlds=world or (), on_line=show)
    if out is not None:
        _write(out, to_json(verdict), verdict)
    if as_json:
        print(to_json(verdict), end="")
    else:
        print(f"{sum(line.held is True for line in verdict.lines)} lines hold, {len(verdict.broken)} do not")
    if not verdict.held:
        raise typer.Exit(FAILED)


def _show(line: "Line") -> None:
    from polysem.selftest.record import number

    word = {True: "ok", False: "FAIL", None: "--"}[line.held]
    error = f" ± {number(line.error)}" if line.error is not None else ""
    print(
        f"{word:<4} {line.world} {line.name:<62} {number(line.value) + error:<22} {line.expected:<22} {line.unit}"
    )
    if line.held is False and line.note:
        print(f"       {line.note}")
    sys.stdout.flush()


def _write(out: Path, text: str, verdict: object) -> None:
    from polysem.report.worlds import recovery
    from polysem.selftest import Verdict, to_markdown
    from polysem.selftest.record import CURVE_PICTURE, curve_points
    from polysem.store import io

    assert isinstance(verdict, Verdict)
    io.write_text(out / "selftest.json", text)
    io.write_text(out / "validation.md", to_markdown(verdict))
    if points := curve_points(verdict):
        kinds: dict[str, list[tuple[float, float]]] = {}
        for mcc, precision, sae in points:
            kinds.setdefault(sae.partition(" ")[0], []).append((mcc, precision))
        io.write_text(out / CURVE_PICTURE, str(recovery(kinds)))
