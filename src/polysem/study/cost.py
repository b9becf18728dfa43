"""What the trials of a plan will take on this machine, from a few of its batches run for real.

At a few places of the plan, which differ in how many blocks are left behind the edit, one batch is run alone,
then with the batches behind it: the difference is the time of batches, charged by rows times tokens of their
prompts; it is a part that is always there (norms, unembedding, readouts) and a part for every block left. What
one batch alone takes beyond that is what an SAE costs once in a part of the trials (its token sets, its
directions). Nothing is written.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from polysem.errors import StoreError
from polysem.progress import SILENT, Reporter
from polysem.store.run import RunFolder, trial_parts
from polysem.store.stages import command
from polysem.study.bench import Bench
from polysem.types import Site

_REPEATS = 3
_RUN = 4
"""batches at each place"""


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
    bench = Bench(run.study(), run)
    work = _work(plan, prompts, bench.model)
    places = _places(work, sample)
    runs = [work.slice(at, min(_RUN, work.num_rows - at)) for at in places]
    args = (plan, prompts, bench.features, bench.model, bench.saes)
    ticks = iter(
        reporter.track(range(2 * _REPEATS * len(runs)), total=2 * _REPEATS * len(runs), label="cost")
    )
    samples = [_sample(some, partial(run_batches, *args), ticks) for some in runs]
    rates = _per_block(samples)
    setup = np.mean([np.maximum(s.alone - s.charged_alone * rates(s.left), 0.0) for s in samples], axis=0)
    seconds = _by_sae(work, rates, setup, _beginnings(plan))
    token_rows, rows = (int(pc.sum(work[name]).as_py()) for name in ("token_rows", "rows"))
    wall, cpu = np.sum(list(seconds.values()), axis=0)
    return Cost(
        batches=work.num_rows,
        rows=rows,
        token_rows=token_rows,
        seconds=float(wall),
        cpu_seconds=float(cpu),
        sampled_batches=len({batch for some in runs for batch in some["batch"].to_pylist()}),
        by_sae={label: float(spent[1]) for label, spent in seconds.items()},
    )


class _Sample(NamedTuple):
    """What one place of the plan took; (wall, CPU) seconds."""

    left: int
    """blocks behind the edit"""
    alone: Float[np.ndarray, "2"]
    charged_alone: int
    """rows times tokens of the batch that was run alone"""
    rate: Float[np.ndarray, "2"]
    """of one row and token"""


def _places(work: pa.Table, sample: int) -> list[int]:
    """First rows of the places: quantiles of the plan in the order of blocks left, then of batches."""
    order = np.lexsort((np.arange(work.num_rows), work["left"].to_numpy()))
    chosen = order[np.linspace(0, len(order) - 1, min(sample, len(order))).round().astype(int)]
    # a place near the end of its SAE is moved, so that the batches behind it are of the same kind
    left = work["left"].to_numpy()
    last = np.array([at + np.argmax(np.append(left[at:], -1) != left[at]) for at in chosen])
    return sorted({int(max(at, 0)) for at in np.minimum(chosen, np.maximum(last - _RUN, 0))})


def _sample(some: pa.Table, run: Callable[..., object], ticks: Iterator[int]) -> _Sample:
    batches, tokens = some["batch"].to_pylist(), some["token_rows"].to_pylist()
    run(batches=batches)  # what a process pays once: loading, packing, probing
    alone = _least(lambda: run(batches=batches[:1]), ticks)
    every = _least(lambda: run(batches=batches), ticks)
    rest = sum(tokens[1:])
    rate = np.maximum(every - alone, 0.0) / rest if rest else alone / tokens[0]
    return _Sample(some["left"][0].as_py(), alone, tokens[0], rate)


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


def _by_sae(
    work: pa.Table, rates: Callable[..., np.ndarray], setup: np.ndarray, beginnings: dict[str, int]
) -> dict[str, Float[np.ndarray, "2"]]:
    spent = work["token_rows"].to_numpy()[:, None] * rates(work["left"].to_numpy())
    label = np.array(work["sae"].to_pylist())
    return {name: spent[label == name].sum(0) + setup * n for name, n in beginnings.items()}


def _least(run: Callable[[], object], ticks: Iterator[int]) -> Float[np.ndarray, "2"]:
    """The least (wall, CPU) seconds of a few runs."""
    found = []
    for _ in range(_REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
        next(ticks, None)
    return np.array(found).min(0)


def _beginnings(plan: pa.Table) -> dict[str, int]:
    """How many parts of the trials come to each SAE."""
    of_batch = dict(zip(plan["batch"].to_pylist(), plan["sae"].to_pylist(), strict=True))
    seen = [name for part in trial_parts(plan) for name in {of_batch[batch] for batch in part}]
    return {name: seen.count(name) for name in sorted(set(seen))}


def _work(plan: pa.Table, prompts: pa.Table, model: Any) -> pa.Table:
    """Every batch, by number: its SAE, the blocks behind its edit, its rows, and rows times tokens."""
    lengths = pa.table(
        {"prompt_id": prompts["prompt_id"], "length": pc.list_value_length(prompts["token_ids"])}
    )
    keys = ["batch", "sae", "site", "prompt_id"]
    rows = plan.group_by([*keys, "recipe", "dose"]).aggregate([])
    rows = rows.group_by(keys).aggregate([([], "count_all")])
    rows = rows.join(lengths, "prompt_id").sort_by("batch")
    count, n_layers = rows["count_all"], model.spec.n_layers
    from polysem.models.clean import first_block

    return pa.table(
        {
            "batch": rows["batch"],
            "sae": rows["sae"],
            "left": pa.array([n_layers - first_block(Site.parse(s)) for s in rows["site"].to_pylist()]),
            "rows": count,
            "token_rows": pc.multiply(count, pc.cast(rows["length"], pa.int64())),
        }
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
