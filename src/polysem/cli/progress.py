"""Progress on stderr: bars on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")

EVERY_S = 15.0
"""seconds between plain lines of one bar"""


class Lines:
    """Plain lines, for logs and pipes."""

    @contextmanager
    def stage(self, label: str) -> Iterator[None]:
        started = time.monotonic()
        _say(f"{label} ...")
        yield
        _say(f"{label} done in {time.monotonic() - started:.1f} s")

    def track(self, items: Iterable[T], *, total: int, label: str, done: int = 0) -> Iterator[T]:
        last = time.monotonic()
        for n, item in enumerate(items, start=done + 1):
            yield item
            if time.monotonic() - last > EVERY_S and n < total:
                last = time.monotonic()
                _say(f"  {label} {n}/{total}")


class Bars:
    """Bars of rich; entered while something runs."""

    def __init__(self) -> None:
        self._bars: Progress | None = None

    @contextmanager
    def stage(self, label: str) -> Iterator[None]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(),
        )  # fmt: skip
        started = time.monotonic()
        with Progress(*columns, console=console, transient=True) as bars:
            self._bars = bars
            task = bars.add_task(label, total=None)
            try:
                yield
            finally:
                bars.remove_task(task)
                self._bars = None
        console.print(f"{label} done in {time.monotonic() - started:.1f} s", highlight=False)

    def track(self, items: Iterable[T], *, total: int, label: str, done: int = 0) -> Iterator[T]:
        if self._bars is None:
            yield from items
            return
        bars = self._bars
        task = bars.add_task(f"  {label}", total=total, completed=done)
        try:
            for item in items:
                yield item
                bars.advance(task)
        finally:
            bars.remove_task(task)


def reporter() -> Lines | Bars:
    """What suits stderr."""
    return Bars() if sys.stderr.isatty() else Lines()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
