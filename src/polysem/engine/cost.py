"""What the trials of a plan will take on this machine, from some of its batches run for real.

The trials of one SAE and locus in one part of the stage share what is made once (token sets, directions, covariances); the
rest goes by rows times tokens, and by the blocks left behind the edit. So at a few places of the plan, which differ in
locus and blocks left, batches are run as the stage runs them, one after the other, with a stopwatch: the median batch
gives the rate, and what all together took beyond it is charged once for every such stretch of a part. Nothing is written.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from polysem.engine.context import StudyContext
from polysem.errors import StoreError
from polysem.progress import SILENT, Reporter
from polysem.store.run import RunFolder, trial_parts
from polysem.store.stages import command
from polysem.types import Site

T = TypeVar("T")

_SECONDS = 10.0
"""of CPU at each place, after which no further batch is begun"""
_LEAST = 8
"""batches at each place, however long they take"""


@dataclass(frozen=True)
class Cost:
    """An estimate for one process, as it is run here (threads, device)."""

    batches: int
    rows: int
    """distinct (prompt, direction, dose): rows of forward passes"""
    token_rows: int
    """the same, times the tokens of each prompt"""
    seconds: float
    """wall time, the machine being as busy as it was when asked"""
    cpu_seconds: float
    sampled_batches: int
    by_sae: dict[str, float]
    """CPU seconds of each SAE's share"""

    def text(self) -> str:
        """One line."""
        rate = self.rows / max(self.seconds, 1e-9)
        return (
            f"trials: {self.rows} rows in {self.batches} batches, about {_duration(self.seconds)} "
            f"({_duration(self.cpu_seconds)} of CPU) in one process like this one: {rate:.0f} rows/s, from "
            f"{self.sampled_batches} batches; --workers N divides it by about N while there are cores; "
            f"SAEs take from {_duration(min(self.by_sae.values()))} "
            f"to {_duration(max(self.by_sae.values()))} of CPU"
        )


def estimate_cost(out: Path, *, sample: int = 4, reporter: Reporter = SILENT) -> Cost:
    """Time a few batches of a run folder's plan and say what all of them will take.

    Args:
        out: a run folder with a plan.
        sample: places of the plan.
        reporter: is told of them.

    Raises:
        StoreError: if there is no plan.
    """
    from polysem.trials import run_batches

    run = RunFolder.open(out)
    if run.manifest("plan") is None:
        raise StoreError(f"{out} has no plan to cost", hint=command("plan", out))
    plan, prompts = run.table("plan"), run.table("prompts")
    context = StudyContext(run.study(), run)
    stretches = _stretches(plan, prompts, context.model)

    def watched(batches: Sequence[int]) -> _Stopwatch:
        watch = _Stopwatch()
        some = (plan, prompts, context.features, context.model, context.dictionaries)
        run_batches(*some, batches=batches, reporter=watch)
        watch.stop()
        return watch

    places = _places(stretches, sample)
    samples: dict[str, list[_Sample]] = {}
    n_sampled = 0
    for place in reporter.track(places, total=len(places), label="cost"):
        watched(place.batches[:1])  # what a process pays once: loading, packing, probing
        watch = watched(place.batches)
        n_sampled += len(watch.laps)
        samples.setdefault(place.locus, []).append(_Sample.of(place, watch))
    rates = {locus: _per_block(seen) for locus, seen in samples.items()}
    once = {locus: np.mean([s.once for s in seen], axis=0) for locus, seen in samples.items()}
    by_sae: dict[str, Float[np.ndarray, "2"]] = {}
    for some in stretches:
        spent = once[some.locus] + sum(some.token_rows) * rates[some.locus](some.left)
        by_sae[some.sae] = by_sae.get(some.sae, np.zeros(2)) + spent
    wall, cpu = np.sum(list(by_sae.values()), axis=0)
    return Cost(
        batches=sum(len(some.batches) for some in stretches),
        rows=sum(some.rows for some in stretches),
        token_rows=sum(sum(some.token_rows) for some in stretches),
        seconds=float(wall),
        cpu_seconds=float(cpu),
        sampled_batches=n_sampled,
        by_sae={label: float(spent[1]) for label, spent in sorted(by_sae.items())},
    )


class _Stretch(NamedTuple):
    """The batches of one SAE and locus in one part of the trials."""

    sae: str
    locus: str
    left: int
    """blocks behind the edit"""
    batches: list[int]
    token_rows: list[int]
    """of each batch: rows times tokens of its prompt"""
    rows: int


class _Stopwatch:
    """A reporter that notes when each item was done, and hands out no more after `_SECONDS` of CPU."""

    def __init__(self) -> None:
        self.started = _now()
        self.laps: list[Float[np.ndarray, "2"]] = []
        """(wall, CPU) seconds of each item"""
        self.whole = np.zeros(2)
        """from the beginning to `stop`, what lies before the first item included"""

    def track(self, items: Iterable[T], *, total: int, label: str, done: int = 0) -> Iterator[T]:
        begun = _now()
        for item in items:
            yield item
            seen = _now()
            self.laps.append(seen - begun)
            begun = seen
            if len(self.laps) >= _LEAST and (seen - self.started)[1] > _SECONDS:
                return

    def stage(self, label: str) -> AbstractContextManager[None]:
        return nullcontext()

    def stop(self) -> None:
        """Everything is done."""
        self.whole = _now() - self.started


class _Sample(NamedTuple):
    """What one place of the plan took; (wall, CPU) seconds."""

    left: int
    once: Float[np.ndarray, "2"]
    """beyond the rate, of the stretch"""
    rate: Float[np.ndarray, "2"]
    """of one row and token"""

    @classmethod
    def of(cls, place: _Stretch, watch: _Stopwatch) -> "_Sample":
        charged = np.array(place.token_rows[: len(watch.laps)])
        rate = np.median(np.array(watch.laps) / charged[:, None], axis=0)
        return cls(place.left, np.maximum(watch.whole - charged.sum() * rate, 0.0), rate)


def _places(stretches: Sequence[_Stretch], sample: int) -> list[_Stretch]:
    """For every locus a share of the sample, at least two: quantiles by blocks left among its longer stretches."""
    chosen = []
    loci = sorted({some.locus for some in stretches})
    for locus in loci:
        mine = [some for some in stretches if some.locus == locus]
        longest = max(len(some.batches) for some in mine)
        able = sorted((s for s in mine if 2 * len(s.batches) >= longest), key=lambda s: (s.left, s.batches))
        n = min(max(2, sample // len(loci)), len(able))
        chosen += [able[k] for k in np.linspace(0, len(able) - 1, n).round().astype(int)]
    return chosen


def _per_block(
    samples: Sequence[_Sample],
) -> Callable[[Int[np.ndarray, "*n"] | int], Float[np.ndarray, "*n 2"]]:
    """Seconds of one row and token by blocks left: a line through the samples, never below the cheapest nor
    falling with depth."""
    left, rate = np.array([s.left for s in samples]), np.array([s.rate for s in samples])
    spread = left - left.mean()
    slope = np.maximum(spread @ rate / max((spread**2).sum(), 1e-9), 0.0)
    level = rate.mean(0) - slope * left.mean()
    floor = rate.min(0)

    def rates(blocks: Int[np.ndarray, "*n"] | int) -> Float[np.ndarray, "*n 2"]:
        return np.maximum(level + slope * np.asarray(blocks)[..., None], floor)

    return rates


def _now() -> Float[np.ndarray, "2"]:
    return np.array([time.perf_counter(), time.process_time()])


def _stretches(plan: pa.Table, prompts: pa.Table, model: Any) -> list[_Stretch]:
    """The whole plan, in its order."""
    from polysem.models.clean import first_block

    lengths = pa.table(
        {"prompt_id": prompts["prompt_id"], "length": pc.list_value_length(prompts["token_ids"])}
    )
    keys = ["batch", "sae", "locus", "site", "prompt_id"]
    work = plan.group_by([*keys, "recipe", "dose"]).aggregate([])
    work = work.group_by(keys).aggregate([([], "count_all")]).join(lengths, "prompt_id").sort_by("batch")
    part = {batch: k for k, batches in enumerate(trial_parts(plan)) for batch in batches}
    found: dict[tuple[int, str, str], _Stretch] = {}
    for row in work.to_pylist():
        left = model.spec.n_layers - first_block(Site.parse(row["site"]))
        key = part[row["batch"]], row["sae"], row["locus"]
        some = found.get(key, _Stretch(row["sae"], row["locus"], left, [], [], 0))
        some.batches.append(row["batch"])
        some.token_rows.append(row["count_all"] * row["length"])
        found[key] = some._replace(rows=some.rows + row["count_all"])
    return list(found.values())


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
