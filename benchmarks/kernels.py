"""Kernels of later stages: sums of two dictionaries that fire together, and one-to-one matching."""

from collections.abc import Iterator

from benchmarks.harness import Line, Point, Size, benchmark, curve, interleaved, require

# isort: split
import time

import numpy as np

from polysem.layers.coactivity import Coactivity, Firing, fired_together
from polysem.replicate import assigned

DENSITY = 0.01
"""of the features of a dictionary, active on a token"""


def make_firing(n: int, tokens: int, seed: int) -> Firing:
    """Every feature fires at random on about one token in a hundred."""
    rng = np.random.default_rng(seed)
    count = rng.binomial(n, DENSITY, tokens)
    place = np.repeat(np.arange(tokens), count)
    feature = np.concatenate([rng.choice(n, size, replace=False) for size in count])
    return Firing((tokens // 64, 64, n), place, feature, rng.exponential(size=len(place)).astype(np.float32))


def sums(a: Firing, b: Firing) -> Coactivity:
    """What `Pass.between` gives, every token counted."""
    return fired_together(a, b, np.ones(a.shape[:2], dtype=bool))


@benchmark
def coactivity(size: Size) -> Iterator[Line]:
    """Co-firing counts and the sums behind ERA and TWERA, all pairs of two dictionaries, against dense products."""
    n, tokens = (4096, 8192) if size == "full" else (256, 1024)
    a, b = (make_firing(n, tokens, seed) for seed in (0, 1))

    def dense() -> list[np.ndarray]:
        x, y = (np.zeros((tokens, n)) for _ in range(2))
        x[a.place, a.feature], y[b.place, b.feature] = a.value, b.value
        fires_x, fires_y = ((m > 0).astype(np.float64) for m in (x, y))
        return [fires_x.T @ fires_y, x.T @ fires_y, x.T @ y]

    found, expected = sums(a, b), dense()
    require(np.array_equal(found.both, expected[0]), "co-firing counts differ")
    apart = max(
        float(np.abs(s - t).max()) for s, t in zip((found.onto, found.product), expected[1:], strict=True)
    )
    require(apart < 1e-9, f"sums differ by {apart:.1e}")
    seconds = interleaved({"ours": lambda: sums(a, b), "dense": dense}, warm=False)
    yield Line(
        f"co-firing, ERA and TWERA sums, {n:,} x {n:,}, {tokens:,} tokens, 1 % active",
        "dense float64 products",
        seconds["ours"],
        seconds["dense"],
        "cpu s",
        f"the same {int(found.both.sum()):,} counts; sums to {apart:.0e}",
    )


@curve
def matching(size: Size) -> Iterator[Point]:
    """One-to-one matching of two dictionaries, and the product of their rows that it begins with."""
    for n in (1024, 2048, 4096) if size == "full" else (128, 256):
        rng = np.random.default_rng(n)
        one = rng.standard_normal((n, 256))
        other = one[rng.permutation(n)] + rng.standard_normal((n, 256))
        a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, other))
        spent = []
        for run in (lambda a=a, b=b: assigned(a, b), lambda a=a, b=b: a @ b.T):
            begun = time.process_time()
            run()
            spent.append(time.process_time() - begun)
        values = {"matching, cpu s": spent[0], "its product, cpu s": spent[1]}
        yield Point("matching two dictionaries one to one, 256-d rows", "features", n, values)
