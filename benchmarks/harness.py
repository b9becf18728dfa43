"""What every benchmark gives: lines with our figure, another's, their ratio, and what was found equal.

A benchmark is a generator of `Line`s (or of `Point`s of a growth curve) with the decorator `benchmark` (or
`curve`). Contestants take turns in one process with one thread; the figure is the least CPU time of at least
three rounds, which stays within a few per cent on a busy machine where wall time does not. A line without its
equality check cannot be made. Import this module before numpy and torch: they read the number of threads when
they are imported.
"""

import importlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
for _name in THREADS:
    os.environ[_name] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROUNDS = 3
"""least number of turns of each contestant"""

Size = Literal["full", "quick"]
"""quick: small inputs, to see that everything runs; no figure of it says anything"""


@dataclass(frozen=True)
class Line:
    """One comparison. `ratio` is other / ours: above 1 we are better."""

    name: str
    """what is done, with its sizes"""
    against: str
    ours: float
    other: float
    unit: str
    check: str
    """what was found equal in the same run, and how much of it"""
    must: float | None = None
    aim: float | None = None
    note: str = ""
    """why an aim is missed, from a profile"""
    floor: float | None = None
    """what ours cannot be below: its arithmetic at the rate that was measured in the same run"""

    def __post_init__(self) -> None:
        if not self.check:
            raise ValueError(f"{self.name}: a figure without an equality check is none")

    @property
    def ratio(self) -> float:
        return self.other / self.ours

    @property
    def possible(self) -> float | None:
        """The ratio at the floor; None where none was measured."""
        return None if self.floor is None else self.other / self.floor

    @property
    def verdict(self) -> Literal["aim", "beyond the machine", "must", "below", "no bar"]:
        """The highest bar that is reached; "beyond the machine" where the aim lies behind what is possible."""
        if self.aim is not None and self.ratio >= self.aim:
            return "aim"
        if self.aim is not None and self.possible is not None and self.possible < self.aim:
            return "beyond the machine"
        if self.must is None:
            return "no bar"
        return "must" if self.ratio >= self.must else "below"


@dataclass(frozen=True)
class Point:
    """One point of a growth curve."""

    curve: str
    axis: str
    """what `at` counts, or names"""
    at: float | str
    values: dict[str, float]
    """by name with its unit, as "ours, cpu s": columns of the curve's table"""


class CheckFailed(Exception):
    """Two ways of doing the same do not agree: there is no figure."""


class PeerMissing(Exception):
    """A peer is not installed."""


@dataclass(frozen=True)
class Benchmark:
    """A registered generator."""

    name: str
    """module.function"""
    run: Callable[[Size], Iterator[Line | Point]]
    is_curve: bool


REGISTRY: dict[str, Benchmark] = {}


def benchmark(run: Callable[[Size], Iterator[Line]]) -> Callable[[Size], Iterator[Line]]:
    """Registers a generator of lines."""
    return _register(run, is_curve=False)


def curve(run: Callable[[Size], Iterator[Point]]) -> Callable[[Size], Iterator[Point]]:
    """Registers a generator of the points of growth curves."""
    return _register(run, is_curve=True)


def _register(run: Any, *, is_curve: bool) -> Any:
    name = f"{run.__module__.rpartition('.')[2]}.{run.__name__}"
    REGISTRY[name] = Benchmark(name, run, is_curve)
    return run


def peer(module: str) -> Any:
    """The module of a peer.

    Raises:
        PeerMissing: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PeerMissing(f"{module} is not installed ({error}); `make bench` installs the peers") from error


def interleaved(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int = ROUNDS, warm: bool = True
) -> dict[str, float]:
    """Least CPU seconds of each contestant over rounds in which they take turns.

    Args:
        contestants: by name; what they give is dropped before the next one runs.
        rounds: turns of each.
        warm: run each once before, uncounted: first calls pay for page faults, caches and probes.
    """
    if warm:
        for run in contestants.values():
            run()
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - start)
    return best


def interleaved_commands(commands: Mapping[str, Sequence[str]], *, rounds: int = 5) -> dict[str, float]:
    """Least CPU seconds of each command, a fresh process every time, in turns; the first turn is not
    counted.

    Raises:
        CheckFailed: if a command fails.
    """
    best = dict.fromkeys(commands, float("inf"))
    for turn in range(rounds + 1):
        for name, command in commands.items():
            before = _children_seconds()
            done = subprocess.run(command, capture_output=True, text=True)
            spent = _children_seconds() - before
            if done.returncode:
                raise CheckFailed(f"{name}: exit code {done.returncode}: {done.stderr[-400:]}")
            if turn:
                best[name] = min(best[name], spent)
    return best


def shares(run: Callable[[], object], *, most: int = 6) -> str:
    """Where the CPU time of a call goes, by torch's profiler: the operators that take most of it, and what is
    spent outside of them, in Python and the profiler itself."""
    from torch.profiler import ProfilerActivity, profile

    run()
    start = time.process_time()
    run()
    whole = time.process_time() - start
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    spent = {
        event.key.partition("::")[2] or event.key: event.self_cpu_time_total for event in seen.key_averages()
    }
    inside = sum(spent.values()) / 1e6
    known = sorted(spent.items(), key=lambda item: -item[1])[:most]
    words = [f"{name} {100 * micros / 1e6 / max(inside, whole):.0f} %" for name, micros in known]
    outside = max(whole - inside, 0.0) / max(inside, whole)
    return f"profile: {', '.join(words)}, outside of operators {100 * outside:.0f} %"


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Peak(NamedTuple):
    """Memory of a process of its own, in MB (10^6 bytes)."""

    whole: float
    extra: float
    """the peak while it worked, beyond what it held when it began to"""


_STATUS = """
def status(name):
    return int(next(l for l in open('/proc/self/status') if l.startswith(name)).split()[1]) * 1024 / 1e6
"""


def peak_mb(setup: str, run: str) -> tuple[Peak, str]:
    """Peak resident memory of a fresh interpreter that runs `setup`, then `run`; and the last line it printed.

    Read from the kernel's high-water mark of that address space, which is reset before `run` (`ru_maxrss` of a
    child begins with the memory of the process that started it).
    """
    reset = (
        "\nbefore, held = status('VmHWM'), status('VmRSS')\nopen('/proc/self/clear_refs', 'w').write('5')\n"
    )
    tail = "\nprint(max(before, status('VmHWM')), status('VmHWM') - held)"
    done = subprocess.run(
        [sys.executable, "-c", _STATUS + setup + reset + run + tail], capture_output=True, text=True
    )
    if done.returncode:
        raise CheckFailed(f"exit code {done.returncode} of a process of its own: {done.stderr[-800:]}")
    *said, peaks = done.stdout.splitlines()
    return Peak(*map(float, peaks.split())), said[-1] if said else ""


def require(holds: bool, message: str) -> None:
    """Raises CheckFailed with the message if a check does not hold."""
    if not holds:
        raise CheckFailed(message)
