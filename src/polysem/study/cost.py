"""What the trials of a plan will take on this machine, from a few of its batches run for real.

At a few places of the plan one batch is run alone, then with the batches behind it: the difference is the time
of batches, charged by rows times tokens of their prompts, and what one alone takes beyond that is what an SAE
costs once in a part of the trials (its token sets, its directions). Nothing is written.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float

from polysem.errors import StoreError
from polysem.progress import SILENT, Reporter
from polysem.store.run import RunFolder, trial_parts
from polysem.store.stages import command
from polysem.study.bench import Bench

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

    def text(self) -> str:
        """One line."""
        rate = self.rows / max(self.seconds, 1e-9)
        return (
            f"trials: {self.rows} rows in {self.batches} batches, about {_duration(self.seconds)} "
            f"({_duration(self.cpu_seconds)} of CPU) in one process like this one: {rate:.0f} rows/s, from "
            f"{self.sampled_batches} batches; --workers N divides it by about N while there are cores"
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
    work = _work(plan, prompts)
    last = max(work.num_rows - _RUN, 0)
    places = np.unique(np.linspace(0, last, min(sample, last + 1)).round().astype(int))
    runs = [range(int(at), min(int(at) + _RUN, work.num_rows)) for at in places]
    number, tokens = work["batch"].to_pylist(), work["token_rows"].to_pylist()
    firsts = [number[run[0]] for run in runs]
    followed = sorted({number[k] for run in runs for k in run})
    bench = Bench(run.study(), run)
    args = (plan, prompts, bench.features, bench.model, bench.saes)
    run_batches(*args, batches=followed)  # what a process pays once: loading, packing, probing
    ticks = iter(reporter.track(range(2 * _REPEATS), total=2 * _REPEATS, label="cost"))
    alone = _least(lambda: run_batches(*args, batches=firsts), ticks)
    every = _least(lambda: run_batches(*args, batches=followed), ticks)
    charged = [sum(tokens[k] for k in kept) for kept in ([r[0] for r in runs], {k for r in runs for k in r})]
    per_token = (every - alone) / (charged[1] - charged[0]) if charged[1] > charged[0] else alone / charged[0]
    setup = np.maximum(alone - per_token * charged[0], 0.0) / len(runs)
    token_rows, rows = (int(pc.sum(work[name]).as_py()) for name in ("token_rows", "rows"))
    seconds, cpu = per_token * token_rows + setup * _beginnings(plan)
    return Cost(
        batches=work.num_rows,
        rows=rows,
        token_rows=token_rows,
        seconds=float(seconds),
        cpu_seconds=float(cpu),
        sampled_batches=len(followed),
    )


def _least(run: Callable[[], object], ticks: Iterator[int]) -> Float[np.ndarray, "2"]:
    """The least (wall, CPU) seconds of a few runs."""
    found = []
    for _ in range(_REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
        next(ticks, None)
    return np.array(found).min(0)


def _beginnings(plan: pa.Table) -> int:
    """How often a part of the trials comes to an SAE."""
    of_batch = dict(zip(plan["batch"].to_pylist(), plan["sae"].to_pylist(), strict=True))
    return sum(len({of_batch[batch] for batch in part}) for part in trial_parts(plan))


def _work(plan: pa.Table, prompts: pa.Table) -> pa.Table:
    """Rows and row-tokens of every batch, by number."""
    lengths = pa.table(
        {"prompt_id": prompts["prompt_id"], "length": pc.list_value_length(prompts["token_ids"])}
    )
    rows = plan.group_by(["batch", "prompt_id", "recipe", "dose"]).aggregate([])
    rows = rows.group_by(["batch", "prompt_id"]).aggregate([([], "count_all")])
    rows = rows.join(lengths, "prompt_id").sort_by("batch")
    count = rows["count_all"]
    return pa.table(
        {
            "batch": rows["batch"],
            "rows": count,
            "token_rows": pc.multiply(count, pc.cast(rows["length"], pa.int64())),
        }
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
