"""Two processes of one thread each against one: trials of a plan, and how near the sweep is to its arithmetic.

The processes are loaded before they are timed. What counts is the CPU time of the one that is busy longest, while
both run: that is the wall time of a machine with nothing else to do, and it includes what they cost each other.
"""

import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from benchmarks.harness import Line, Size, benchmark, require

ROUNDS = 3
N_PRODUCTS = 60
PART = 7


class Helpers:
    """Loaded processes that do what they are told, at the same time."""

    def __init__(self, run: Path, n: int):
        command = [sys.executable, "-m", "benchmarks.workers", str(run)]
        pipe = subprocess.PIPE
        self._all = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(n)]
        self.loading = max(self._answer(process)["seconds"] for process in self._all)
        """CPU seconds until a process was ready"""

    def do(self, orders: Sequence[str]) -> tuple[float, list[dict]]:
        """One order for each of the first processes; the CPU seconds of the busiest, and the answers."""
        chosen = self._all[: len(orders)]
        for process, order in zip(chosen, orders, strict=True):
            told = cast(IO[str], process.stdin)
            told.write(order + "\n")
            told.flush()
        answers = [self._answer(process) for process in chosen]
        return max(answer["seconds"] for answer in answers), answers

    def close(self) -> None:
        for process in self._all:
            cast(IO[str], process.stdin).close()
            process.wait()

    def _answer(self, process: subprocess.Popen) -> dict:
        line = cast(IO[str], process.stdout).readline()
        require(bool(line), f"a process of the benchmark ended with {process.poll()}")
        return json.loads(line)


@benchmark
def two(size: Size) -> Iterator[Line]:
    """The same parts of the same plan; and the sweep alone, beside bare products."""
    with tempfile.TemporaryDirectory() as folder:
        run = _planned(Path(folder), size)
        helpers = Helpers(run, 2)
        try:
            yield from _trials(helpers)
            yield from _floor(helpers)
        finally:
            helpers.close()


def _trials(helpers: Helpers) -> Iterator[Line]:
    one, two, alone_s, both_s = [], [], [], []
    for _ in range(ROUNDS):
        one.append(helpers.do(["trials 1 1"]))
        two.append(helpers.do(["trials 1 2", "trials 2 2"]))
        alone_s.append(helpers.do(["product"])[0])
        both_s.append(helpers.do(["product", "product"])[0])
    slower = max(1.0, min(both_s) / min(alone_s))
    alone = one[0][1][0]["tables"]
    for _, answers in [*one, *two]:
        seen = {k: table for answer in answers for k, table in answer["tables"].items()}
        require(seen == alone, "tables of one and two workers differ")
    of_two, of_one = (min(seconds for seconds, _ in rounds) for rounds in (two, one))
    yield Line(
        "two workers on two cores, trials of a plan, Pythia-70M shape",
        "one worker, one thread",
        of_two,
        of_one,
        "cpu s of the busier",
        f"{len(alone)} tables, the same to the byte",
        1.8,
        1.95,
        floor=of_one / 2 * slower,
        note=f"a bare product takes {slower:.3f} times as long while another process makes one, too; loaded processes; loading takes each {helpers.loading:.1f} cpu s, at the same time",
    )


def _floor(helpers: Helpers) -> Iterator[Line]:
    rounds = [(helpers.do(["sweep", "sweep"]), helpers.do(["product", "product"])) for _ in range(ROUNDS)]
    swept = min(seconds for (seconds, _), _ in rounds)
    multiplied = min(seconds for _, (seconds, _) in rounds)
    facts = rounds[0][0][1]
    require(facts[0]["digest"] == facts[1]["digest"], "two sweeps of the same differ")
    n, floor = facts[0]["interventions"], facts[0]["floor"]
    rate = 2 * rounds[0][1][1][0]["operations"] / multiplied
    yield Line(
        "sweep on two cores, Pythia-70M shape, 12 tokens, mid layer, exact fp32",
        "its arithmetic at the rate of bare products on two cores",
        swept / (2 * n),
        floor / rate,
        "s an intervention",
        f"both processes give the same {n} values to the bit",
        0.5,
        0.75,
        note=f"{floor / 1e6:.0f} MFLOP an intervention; products of its size run at {rate / 1e9:.0f} GFLOP/s on two cores; "
        "where the rest goes: the sweep of one core, above",
    )


def _planned(folder: Path, size: Size) -> Path:
    """A run folder with a plan; made in a process of its own, for its memory."""
    small = size == "quick"
    code = (
        "from pathlib import Path\nfrom benchmarks.grid import write_study\n"
        "from polysem.engine import run_study\n"
        f"study = write_study(Path({str(folder)!r}, 'grid'), 'Pythia-70M', d_sae=2048, n_saes=1,"
        f" n_targets={1 if small else 2}, n_prompts={4 if small else 16}, n_topics=64)\n"
        f"run_study(study, Path({str(folder)!r}, 'run'), stages=['features', 'pairs', 'plan'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    require(done.returncode == 0, f"no plan: {done.stderr[-800:]}")
    return folder / "run"


def even_parts(plan: Any) -> list[list[int]]:
    """An even number of parts of as many batches; a plan this small would be two or three of the store's."""
    batches = sorted(set(plan["batch"].to_pylist()))
    batches = batches[: len(batches) // (2 * PART) * 2 * PART]
    require(bool(batches), "the plan is too small")
    return [batches[k : k + PART] for k in range(0, len(batches), PART)]


def _helper(run: Path) -> None:
    """Load, say so, and do what stdin says, one line of JSON for each."""
    import hashlib

    import pyarrow as pa
    import torch

    from benchmarks import sweep, worlds
    from polysem.engine.context import StudyContext
    from polysem.models.sweep import Sweep
    from polysem.onednn import Linear
    from polysem.store.run import RunFolder
    from polysem.trials import run_batches

    torch.set_num_threads(1)
    folder = RunFolder(run)
    plan, prompts, bench = folder.table("plan"), folder.table("prompts"), StudyContext(folder.study(), folder)
    args = (plan, prompts, bench.features, bench.model, bench.saes)
    parts = even_parts(plan)
    run_batches(*args, batches=parts[0])
    world = worlds.make_world("Pythia-70M", n_directions=sweep.N_DIRECTIONS)
    engine = Sweep(world.model)
    width, rows = world.model.spec.d_model, len(worlds.DOSES) * world.prompts.shape[1]
    x, linear = torch.randn(rows, width), Linear(torch.randn(4 * width, width), None, pack=True)

    def digest(table: pa.Table) -> str:
        return hashlib.sha256(pickle.dumps(table.to_pydict())).hexdigest()

    def trials(k: str, n: str) -> dict:
        mine = range(int(k) - 1, len(parts), int(n))
        return {"tables": {str(j): digest(run_batches(*args, batches=parts[j])) for j in mine}}

    def swept() -> dict:
        found = torch.cat([sweep.ours(world, engine) for _ in range(4)])
        return {
            "digest": hashlib.sha256(found.numpy().tobytes()).hexdigest(),
            "interventions": len(found),
            "floor": sweep.flop_floor(world),
        }

    def product() -> dict:
        for _ in range(N_PRODUCTS):
            linear(x)
        return {"operations": N_PRODUCTS * 2 * rows * width * 4 * width}

    known: dict[str, Callable[..., dict]] = {"trials": trials, "sweep": swept, "product": product}
    print(json.dumps({"seconds": time.process_time()}), flush=True)
    for line in sys.stdin:
        order, *rest = line.split()
        started = time.process_time()
        answer = known[order](*rest)
        print(json.dumps({**answer, "seconds": time.process_time() - started}), flush=True)


if __name__ == "__main__":
    _helper(Path(sys.argv[1]))
