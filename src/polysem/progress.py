"""Progress as a seam: libraries report; bars on a terminal, a line that changes in a notebook, lines in a log draw it.

The doors of the Python session (`polysem.load_model` and the others) are `spoken`: to a person who waits they show what
goes on, to a script they show nothing.
"""

import functools
import inspect
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from html import escape
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

T = TypeVar("T")

EVERY_S = 15.0
"""seconds between plain lines of one bar"""
FRAME_S = 0.2
"""seconds between two states of a notebook's line"""
LONG_S = 2.0
"""a stage that took less leaves no line behind in a notebook"""


@runtime_checkable
class Reporter(Protocol):
    """Where long work says how far it is."""

    def track(self, items: Iterable[T], *, total: int, label: str, done: int = 0) -> Iterator[T]:
        """`items`, one by one, while a bar labelled `label` runs from `done` to `total`."""
        ...

    def stage(self, label: str) -> AbstractContextManager[None]:
        """One stage of a study."""
        ...


class Silent:
    """Says nothing."""

    def track(self, items: Iterable[T], *, total: int, label: str, done: int = 0) -> Iterator[T]:
        yield from items

    def stage(self, label: str) -> AbstractContextManager[None]:
        return nullcontext()


SILENT = Silent()


class Lines:
    """Plain lines, for logs and pipes."""

    @contextmanager
    def stage(self, label: str) -> Iterator[None]:
        started = time.monotonic()
        _say(f"{label} ...")
        yield
        _say(f"{label} done in {time.monotonic() - started:.1f} s")

    def track(self, items: Iterable[T], *, total: int, label: str, done: int = 0) -> Iterator[T]:
        started = last = time.monotonic()
        for n, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if now - last > EVERY_S and done + n < total:
                last = now
                _say(f"  {label} {_so_far(done, n, total, now - started)}")


class Bars:
    """Bars of rich on a terminal; entered while something runs."""

    def __init__(self) -> None:
        self._bars: Progress | None = None

    @contextmanager
    def stage(self, label: str) -> Iterator[None]:
        started = time.monotonic()
        with self.waiting(label) as console:
            yield
        console.print(f"{label} done in {time.monotonic() - started:.1f} s", highlight=False)

    @contextmanager
    def waiting(self, label: str) -> "Iterator[Console]":
        """A stage that leaves no line behind."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class SpeedColumn(ProgressColumn):
            def render(self, task: Any) -> Text:
                return Text(f"{task.speed:.3g}/s" if task.speed else "")

        console = Console(stderr=True)
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), SpeedColumn(),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console, transient=True) as bars:
            self._bars = bars
            task = bars.add_task(label, total=None)
            _shown.append(self)
            try:
                yield console
            finally:
                _shown.remove(self)
                bars.remove_task(task)
                self._bars = None

    def track(self, items: Iterable[T], *, total: int, label: str, done: int = 0) -> Iterator[T]:
        if self._bars is None:
            yield from items
            return
        bars = self._bars
        task: TaskID = bars.add_task(f"  {label}", total=total, completed=done)
        try:
            for item in items:
                yield item
                bars.advance(task)
        finally:
            bars.remove_task(task)


class Notebook:
    """One line below the cell, which changes while something runs; `show` is IPython's `display`, or what does the same."""

    def __init__(self, show: Callable[..., Any]):
        self._show = show
        self._line: Any = None
        self._stage = ""

    @contextmanager
    def stage(self, label: str) -> Iterator[None]:
        started, self._stage = time.monotonic(), label
        self._line = self._show(_Line(f"{label} …"), display_id=True)
        _shown.append(self)
        try:
            yield
        finally:
            _shown.remove(self)
            took = time.monotonic() - started
            self._line.update(_Line(f"{label}: {took:.1f} s" if took >= LONG_S else ""))
            self._line = None

    def track(self, items: Iterable[T], *, total: int, label: str, done: int = 0) -> Iterator[T]:
        started = last = time.monotonic()
        for n, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if self._line is not None and now - last > FRAME_S:
                last = now
                told = _so_far(done, n, total, now - started)
                self._line.update(_Line(f"{self._stage} · {label} {told}"))


_shown: list[Bars | Notebook] = []
"""what shows a person a stage now"""


def tracked(items: Iterable[T], *, total: int, label: str) -> Iterator[T]:
    """`items`, with a bar below the stage that is being shown, if one is: for what is deep below whoever has the reporter."""
    return _shown[-1].track(items, total=total, label=label) if _shown else iter(items)


def waiting(reporter: Reporter, label: str) -> AbstractContextManager[object]:
    """A sign of life on a terminal, gone when the block ends, around work between stages."""
    return reporter.waiting(label) if isinstance(reporter, Bars) else nullcontext()


def _so_far(done: int, n: int, total: int, took: float) -> str:
    """How far `n` more steps in `took` seconds have led, how fast, and how long the rest takes at that rate."""
    rate = n / took
    return f"{done + n}/{total} · {rate:.3g}/s · {max(0.0, (total - done - n) / rate):.0f} s left"


class _Line:
    """A line of small text, in a notebook and elsewhere."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<small>{escape(self.text)}</small>"


def on_stderr() -> Reporter:
    """What suits stderr; nothing where the log is told to be quiet."""
    if logging.getLogger("polysem").level > logging.WARNING:
        return SILENT
    return Bars() if sys.stderr.isatty() else Lines()


def for_session() -> Reporter:
    """What suits who waits: a notebook, a terminal, or nobody."""
    ipython: Any = sys.modules.get("IPython")
    if ipython is not None and hasattr(ipython.get_ipython(), "kernel"):
        return Notebook(ipython.display.display)
    return Bars() if sys.stderr.isatty() else SILENT


def spoken(function: Callable[..., T], label: str) -> Callable[..., T]:
    """`function`, which shows a person who waits that it works, and what it warns of; called by another of its kind, or
    where nobody waits, it is as it was. Without a label it tells of its stages itself."""
    takes = "reporter" in inspect.signature(function).parameters

    @functools.wraps(function)
    def told(*args: Any, **kwargs: Any) -> T:
        global _speaking
        reporter = SILENT if _speaking or "reporter" in kwargs else for_session()
        if isinstance(reporter, Silent):
            return function(*args, **kwargs)
        _speaking = True
        try:
            with _warnings(), reporter.stage(label) if label else nullcontext():
                return function(*args, **({"reporter": reporter} if takes else {}), **kwargs)
        finally:
            _speaking = False

    return told


_speaking = False


@contextmanager
def _warnings() -> Iterator[None]:
    """Warnings of ours on stderr, where nobody has said what is to become of them."""
    ours = logging.getLogger("polysem")
    if logging.getLogger().handlers or any(not isinstance(h, logging.NullHandler) for h in ours.handlers):
        yield
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("polysem: %(message)s"))
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
