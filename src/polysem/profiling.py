"""Where a study's CPU time goes: seconds by stage and kind of work, and the arithmetic of its matrix products.

    with profiled() as seen:
        with seen.stage("trials"):
            run()                       functions marked @counts_as(...) keep their own time, callers what is left

Seconds are CPU seconds of this process, all of its threads; a kind inside another is taken out of it, so the kinds of a
stage add up to it. Outside of `profiled` a mark costs one comparison. Worker processes are not seen.
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, ParamSpec, TypeVar

Kind = Literal["model", "embedding", "io", "start-up", "statistics"]
P = ParamSpec("P")
T = TypeVar("T")

KINDS: dict[Kind, str] = {
    "model": "passes of the model and gradients",
    "embedding": "vectors of glosses",
    "io": "reading, writing and hashing files of the run folder",
    "start-up": "imports, and loading model and dictionaries",
    "statistics": "all else: harvesting, mining, planning, readouts, estimates, pages",
}
ROW = ("cpu_s", "waited_s", "products_s", *(f"{kind}_s" for kind in KINDS))
"""what a stage's row of a profile holds, seconds"""
START = "before the first stage"


class Profile:
    """What was counted."""

    def __init__(
        self, clock: Callable[[], float] = time.process_time, wall: Callable[[], float] = time.monotonic
    ):
        """Begin with what the process has used so far, its imports, as start-up."""
        self._clock, self._wall = clock, wall
        self.seconds: dict[str, dict[Kind, float]] = defaultdict(lambda: defaultdict(float))
        """CPU seconds, by stage and kind"""
        self.waited: dict[str, float] = defaultdict(float)
        """seconds of a stage in which no CPU worked for it, by stage: for the disk, a server, or other programs"""
        self.flops: dict[str, float] = defaultdict(float)
        """of the products of the model's linear maps, by stage"""
        self.after_stage: Callable[[], object] = lambda: None
        """called when a stage is done: what is kept then survives a run that is stopped later"""
        self._at, self._last = START, 0.0
        self._kinds: list[Kind] = ["start-up"]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What follows belongs to this stage."""
        self._turn()
        begun, used = self._wall(), self._last
        before, self._at = (self._at, self._kinds), name
        self._kinds = ["statistics"]
        try:
            yield
        finally:
            self._turn()
            self.waited[name] += max(0.0, self._wall() - begun - (self._last - used))
            self._at, self._kinds = before
        self.after_stage()

    @contextmanager
    def kind(self, kind: Kind) -> Iterator[None]:
        """What follows is work of this kind."""
        self._turn()
        self._kinds.append(kind)
        try:
            yield
        finally:
            self._turn()
            self._kinds.pop()

    def add_flops(self, n: float) -> None:
        """Floating-point operations of a product; those of the model alone are kept."""
        if self._kinds[-1] == "model":
            self.flops[self._at] += n

    def _turn(self) -> None:
        now = self._clock()
        self.seconds[self._at][self._kinds[-1]] += now - self._last
        self._last = now

    def table(self, rate: float, *, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The profile as JSON.

        Args:
            rate: of a bare product, operations a CPU second.
            earlier: the stages that this gave for an earlier run of the same folder, for those that this run did not make.
        """
        stages: dict[str, Any] = dict(earlier or {})
        stages |= {
            name: {
                "cpu_s": sum(kinds.values()),
                "waited_s": self.waited.get(name, 0.0),
                "products_s": self.flops.get(name, 0.0) / rate,
            }
            | {f"{kind}_s": kinds.get(kind, 0.0) for kind in KINDS}
            for name, kinds in self.seconds.items()
        }
        total = {key: sum(row[key] for row in stages.values()) for key in ROW}
        return {"product_rate": rate, "stages": stages, "total": total}


_active: Profile | None = None


@contextmanager
def profiled() -> Iterator[Profile]:
    """While entered, work is counted; not to be nested."""
    global _active
    _active = found = Profile()
    try:
        yield found
    finally:
        found._turn()
        _active = None


def stage(name: str) -> AbstractContextManager[None]:
    """What follows belongs to this stage, if somebody counts."""
    return nullcontext() if _active is None else _active.stage(name)


def counts_as(kind: Kind) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Marks a function whose time is of a kind, what it calls included unless that is marked too."""

    def marked(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def counted(*args: P.args, **kwargs: P.kwargs) -> T:
            if _active is None:
                return function(*args, **kwargs)
            with _active.kind(kind):
                return function(*args, **kwargs)

        return counted

    return marked


def add_product(rows: int, n_in: int, n_out: int) -> None:
    """A product [rows n_in] x [n_in n_out] was done."""
    if _active is not None:
        _active.add_flops(2.0 * rows * n_in * n_out)


def is_profiled() -> bool:
    """Whether somebody counts."""
    return _active is not None


def profile_lines(table: dict[str, Any]) -> list[str]:
    """The profile as text: a row for every stage, CPU seconds."""
    columns = ["cpu_s", "products_s", *(f"{kind}_s" for kind in KINDS), "waited_s"]
    names = ["all", "products", *KINDS, "waited"]
    rows = [*table["stages"].items(), ("total", table["total"])]
    wide = max(len(name) for name, _ in rows)
    share = table["total"]["products_s"] / max(table["total"]["cpu_s"], 1e-9)
    return [
        "CPU seconds".ljust(wide) + "".join(name.rjust(12) for name in names),
        *(name.ljust(wide) + "".join(f"{row[key]:12.1f}" for key in columns) for name, row in rows),
        f"products: the model's linear maps at the rate of a bare product here, "
        f"{table['product_rate'] / 1e9:.0f} GFLOP a CPU second; {share:.0%} of all",
    ]
