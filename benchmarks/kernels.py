"""Kernels of later stages: sums of two dictionaries that fire together, and one-to-one matching."""

from collections.abc import Iterator

from benchmarks.harness import Line, Point, Size, benchmark, curve, interleaved, peak_mb, require

# isort: split
import time

import numpy as np
from scipy.sparse import csr_matrix

from benchmarks.sweep import hook
from benchmarks.worlds import DOSES
from benchmarks.worlds import make_world as make_model_world
from polysem.hierarchy.firing import Fired
from polysem.hierarchy.relations import candidates
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
    world, few = make_model_world("Pythia-70M", quick=size == "quick"), DOSES[::8]
    seconds = interleaved(
        {"ours": lambda: sums(a, b), "dense": dense, "measured": lambda: hook(world, few)}, warm=False
    )
    what = f"co-firing, ERA and TWERA sums, {n:,} x {n:,}, {tokens:,} tokens, 1 % active"
    check = f"the same {int(found.both.sum()):,} counts; sums to {apart:.0e}"
    yield Line(what, "dense float64 products", seconds["ours"], seconds["dense"], "cpu s", check)
    yield Line(
        what,
        "one measured intervention (HF hook, batch 1, Pythia-70M shape, 12 tokens) a pair",
        seconds["ours"] / n**2,
        seconds["measured"] / len(few),
        "cpu s a pair",
        check,
        None,
        1000,
    )


def two_dictionaries(n: int, d: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows, and the same dealt anew with as much noise again."""
    rng = np.random.default_rng(n)
    one = rng.standard_normal((n, d))
    other = one[rng.permutation(n)] + rng.standard_normal((n, d))
    first, second = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, other))
    return first, second


@benchmark
def wide_matching(size: Size) -> Iterator[Line]:
    """Memory of matching dictionaries that are too wide for a matrix of all cosines."""
    n, small = (65_536, 4096) if size == "full" else (2048, 512)
    a, b = two_dictionaries(small)
    near, whole = assigned(a, b, near=64)[2], assigned(a, b)[2]
    short = 1 - np.abs(near).sum() / np.abs(whole).sum()
    require(short < 1e-3, f"candidates alone lose {short:.1e} of the sum of |cosine|")
    setup = f"from benchmarks import kernels as k\na, b = k.two_dictionaries({n})"
    peak, said = peak_mb(setup, "print(len(k.assigned(a, b, near=64)[0]))")
    require(int(said) == n, f"{said} of {n} rows are matched")
    yield Line(
        f"extra memory, matching {n:,} x 256 one to one, 64 candidates each",
        "the matrix of all cosines, float64",
        peak.extra,
        8e-6 * n**2,
        "MB",
        f"every row is matched; at {small:,} rows the sum of |cosine| is within {short:.0e} of the best there is",
    )


def sparse_firing(n: int, tokens: int = 20_000, d: int = 256) -> Fired:
    """Every token has some 64 of n features, drawn so that some fire often and most seldom; one in 16 mostly fires with another."""
    rng = np.random.default_rng(n)
    place = np.repeat(np.arange(tokens), 64)
    drawn = np.minimum((n * rng.random(len(place)) ** 2).astype(np.int64), n - 1)
    twin = (drawn % 2 == 0) & (drawn < n // 8) & (rng.random(len(drawn)) < 0.9)
    place, drawn = np.concatenate([place, place[twin]]), np.concatenate([drawn, drawn[twin] + 1])
    fires = csr_matrix((np.ones(len(place), np.float32), (place, drawn)), shape=(tokens, n))
    fires.sum_duplicates()
    fires.data[:] = 1
    rows = rng.standard_normal((n, d)).astype(np.float32)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    count = np.bincount(fires.indices, minlength=n).astype(np.int64)
    # an error along which nothing is needed less
    x = np.zeros((tokens, d), np.float32)
    return Fired(fires, fires, count, units, units, x, x, np.ones(tokens, np.float32))


@benchmark
def wide_relations(size: Size) -> Iterator[Line]:
    """Memory of finding pairs of features with a relation, in a dictionary too wide for a matrix of all pairs."""
    n, small = (65_536, 4096) if size == "full" else (2048, 512)
    seen = sparse_firing(small, tokens=2000, d=32)
    found = candidates(seen, 0.3)
    fires = seen.fires.toarray()
    together, cosine = fires.T @ fires, seen.units @ seen.units.T
    union = seen.count[:, None] + seen.count[None, :] - together
    live = np.outer(seen.count > 0, seen.count > 0)
    close = np.argwhere(np.triu(live & (np.abs(cosine) >= 0.3), 1))
    require(np.array_equal(np.stack([found["unrelated"][k] for k in "ij"], 1), close), "close pairs differ")
    met = together[close[:, 0], close[:, 1]]
    require(np.array_equal(found["unrelated"]["both"], met), "counts of co-firing differ")
    with np.errstate(divide="ignore", invalid="ignore"):
        same = np.argwhere(np.triu(live & (together / union > 0.3), 1))
    require(
        np.array_equal(np.stack([found["same_tokens"][k] for k in "ij"], 1), same),
        "pairs of the same tokens differ",
    )
    require(len(close) > 0 and len(same) > 0, "nothing was compared")
    setup = f"from benchmarks import kernels as k\nimport time\nseen = k.sparse_firing({n})"
    run = "begun = time.process_time()\nfound = k.candidates(seen, 0.3)\nprint(time.process_time() - begun)"
    peak, said = peak_mb(setup, run)
    yield Line(
        f"extra memory, pairs with a relation among {n:,} features, some 64 active on each of 20,000 tokens",
        "the matrix of all co-firing counts, float32",
        peak.extra,
        4e-6 * n**2,
        "MB",
        f"{float(said):.0f} cpu s; at {small:,} features the same {len(close):,} close pairs and {len(same):,} of the same tokens as dense "
        "products give, with the same counts",
    )


@curve
def matching(size: Size) -> Iterator[Point]:
    """One-to-one matching of two dictionaries, and the product of their rows that it begins with."""
    for n in (1024, 2048, 4096) if size == "full" else (128, 256):
        a, b = two_dictionaries(n)
        spent = []
        for run in (lambda a=a, b=b: assigned(a, b), lambda a=a, b=b: a @ b.T):
            begun = time.process_time()
            run()
            spent.append(time.process_time() - begun)
        values = {"matching, cpu s": spent[0], "its product, cpu s": spent[1]}
        yield Point("matching two dictionaries one to one, 256-d rows", "features", n, values)
