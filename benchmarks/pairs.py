"""Pair mining and joint counts against the dense way and against one bare product, side by side in one
process.

    python benchmarks/pairs.py                      the sizes of docs/performance.md: 24,576 x 768, 384-d
    glosses python benchmarks/pairs.py --n 8192 --rounds 3  smaller
    python benchmarks/pairs.py --json               one JSON object a line

One thread; the contestants take turns in every round; the figure is the least CPU time of all rounds, which
stays within a few per cent on a busy machine where wall time does not. Every line carries its equality check
from the same run: pairs may differ from the dense float32 way only where the exact cosine is within 1e-6 of a
threshold. Memory is the peak of a process of its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

# Before numpy and torch: both read these when they are imported.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np
import pyarrow as pa
import torch

from polysem.geometry import JointCounts, count_joint, mine_pairs
from polysem.geometry.rows import canonical_cosines, prepare_rows

MIN_INTERFERENCE, MAX_SIMILARITY = 0.3, 0.25
BINS, THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0), (0.4, 0.3, 0.2, 0.15)
FLOAT32 = 1e-6
"""how far a float32 product may be from the exact cosine and still be forgiven a pair at the threshold"""


@dataclass(frozen=True)
class World:
    directions: torch.Tensor
    glosses: torch.Tensor


def make_world(n: int, d: int, d_gloss: int, *, topics: int = 1024, seed: int = 0) -> World:
    """Unit rows that share topic directions, and glosses with a common mean: about 0.04 % of pairs
    survive."""
    rng = torch.Generator().manual_seed(seed)

    def unit(rows: int, width: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(rows, width, generator=rng), dim=1)

    def mix(width: int, n_topics: int, most: float) -> torch.Tensor:
        share = torch.rand(n, 1, generator=rng) * most
        topic = unit(n_topics, width)[torch.randint(0, n_topics, (n,), generator=rng)]
        return (1 - share).sqrt() * unit(n, width) + share.sqrt() * topic

    directions = torch.nn.functional.normalize(mix(d, topics, 0.6), dim=1)
    glosses = 0.85**0.5 * mix(d_gloss, 300, 0.5) + 0.15**0.5 * unit(1, d_gloss)
    return World(directions, torch.nn.functional.normalize(glosses, dim=1))


def mine_ours(world: World) -> pa.Table:
    return mine_pairs(
        world.directions, world.glosses, min_interference=MIN_INTERFERENCE, max_similarity=MAX_SIMILARITY
    )


def mine_dense(world: World) -> torch.Tensor:
    """Both N x N matrices, masks, indices and values: what one would write without thinking of memory."""
    cosine, similarity = world.directions @ world.directions.T, world.glosses @ world.glosses.T
    pairs = torch.triu((cosine >= MIN_INTERFERENCE) & (similarity < MAX_SIMILARITY), diagonal=1).nonzero()
    values = cosine[pairs[:, 0], pairs[:, 1]], similarity[pairs[:, 0], pairs[:, 1]]
    assert len(values[0]) == len(values[1]) == len(pairs)
    return pairs


def bare_product(world: World) -> torch.Tensor:
    """One float32 product of all rows with all rows, panel by panel into one buffer; nothing is looked at."""
    rows = world.directions
    panel = torch.empty(512, len(rows))
    for start in range(0, len(rows), 512):
        block = rows[start : start + 512]
        torch.mm(block, rows.T, out=panel[: len(block)])
    return panel


def count_ours(world: World) -> JointCounts:
    return count_joint(world.directions, world.glosses, bins=BINS, similarity_thresholds=THRESHOLDS)


def count_dense(world: World) -> torch.Tensor:
    """Both matrices, one mask per bin and threshold, row sums."""
    cosine, similarity = world.directions @ world.directions.T, world.glosses @ world.glosses.T
    cosine.fill_diagonal_(-2)
    below = [similarity < threshold for threshold in THRESHOLDS]
    counts = []
    for low, high in zip(BINS[:-1], (*BINS[1:-1], 2.0), strict=True):
        inside = (cosine >= low) & (cosine < high)
        counts.append(torch.stack([(inside & mask).sum(dim=1) for mask in below], dim=1))
    return torch.stack(counts, dim=1)


def check_pairs(world: World, ours: pa.Table, dense: torch.Tensor) -> str:
    n = len(world.directions)
    mine = ours["i"].to_numpy().astype(np.int64) * n + ours["j"].to_numpy()
    theirs = (dense[:, 0] * n + dense[:, 1]).numpy()
    i, j = np.divmod(np.setxor1d(mine, theirs), n)
    gap = np.minimum(
        np.abs(canonical_cosines(prepare_rows(world.directions, name="d"), i, j) - MIN_INTERFERENCE),
        np.abs(canonical_cosines(prepare_rows(world.glosses, name="g"), i, j) - MAX_SIMILARITY),
    )
    if (gap > FLOAT32).any():
        raise SystemExit(f"pairs differ away from the thresholds: {len(i)} pairs, gaps up to {gap.max():.2e}")
    return f"{len(mine)} pairs; {len(i)} differ, all within {FLOAT32} of a threshold"


def check_counts(ours: JointCounts, dense: torch.Tensor) -> str:
    difference = int(np.abs(ours.partners - dense.numpy()).sum())
    total = int(dense.sum())
    if difference > 1e-4 * total:
        raise SystemExit(f"partner counts differ by {difference} of {total}: more than float32 edges explain")
    return f"{total} partners; {difference} differ (float32 of the dense way at bin edges)"


def least_cpu(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least CPU seconds of each, taking turns."""
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - start)
    return best


def peak_mb(args: argparse.Namespace, which: str) -> float:
    """Peak memory of a fresh process that only makes the world, or makes it and does `which`."""
    shape = ["--n", str(args.n), "--d", str(args.d), "--d-gloss", str(args.d_gloss)]
    command = [sys.executable, __file__, *shape, "--peak", which]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def report(line: str, *, ours: float, other: float, unit: str, check: str, as_json: bool) -> None:
    ratio = other / ours
    if as_json:
        record = {"line": line, "ours": ours, "other": other, "ratio": ratio, "unit": unit, "check": check}
        print(json.dumps(record), flush=True)
    else:
        print(
            f"{line:44s} ours {ours:9.3f} {unit:5s} other {other:9.3f} {unit:5s} x{ratio:6.2f}   {check}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=24_576)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--d-gloss", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-memory", action="store_true", help="leave out the line on memory")
    parser.add_argument("--peak", choices=["nothing", "ours", "dense"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    world = make_world(args.n, args.d, args.d_gloss)
    if args.peak:
        {"nothing": lambda w: None, "ours": mine_ours, "dense": mine_dense}[args.peak](world)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    check = check_pairs(world, mine_ours(world), mine_dense(world))
    mining = least_cpu(
        {
            "ours": lambda: mine_ours(world),
            "dense": lambda: mine_dense(world),
            "bare": lambda: bare_product(world),
        },
        args.rounds,
    )
    shape = f"{args.n} x {args.d} + {args.d_gloss}"
    for other, line in (("dense", "dense torch masks"), ("bare", "one bare fp32 N x N")):
        report(
            f"mining {shape}, {line}",
            ours=mining["ours"],
            other=mining[other],
            unit="cpu_s",
            check=check,
            as_json=args.json,
        )
    check = check_counts(count_ours(world), count_dense(world))
    counting = least_cpu(
        {"ours": lambda: count_ours(world), "dense": lambda: count_dense(world)}, args.rounds
    )
    report(
        f"joint counts {shape}, dense masks",
        ours=counting["ours"],
        other=counting["dense"],
        unit="cpu_s",
        check=check,
        as_json=args.json,
    )
    if not args.no_memory:
        base = peak_mb(args, "nothing")
        ours, dense = (peak_mb(args, which) - base for which in ("ours", "dense"))
        report(
            f"extra memory {shape}, dense",
            ours=ours,
            other=dense,
            unit="MB",
            check="same pairs",
            as_json=args.json,
        )


if __name__ == "__main__":
    main()
