"""Pair mining and joint counts against the dense way, a range search and one bare product."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.harness import Line, Peak, Point, Size, benchmark, curve, interleaved, peak_mb, peer, require

# isort: split
import numpy as np
import pyarrow as pa
import torch

from polysem.geometry import JointCounts, count_joint, mine_pairs, pair_blocks
from polysem.geometry.product import by_speed, multiply, output
from polysem.geometry.rows import canonical_cosines, prepare_rows

torch.set_num_threads(1)

MIN_INTERFERENCE, MAX_SIMILARITY = 0.3, 0.25
BINS, THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0), (0.4, 0.3, 0.2, 0.15)
FLOAT32 = 1e-6
"""how far a float32 product may be from the exact cosine and still be forgiven a pair at the threshold"""


OF_MINING = (
    "a profile: two fifths are the screening product, a quarter deciding 120,000 pairs in float64 by two cosines each, a seventh "
    "bringing rows to unit length and to the screen's arithmetic with measured errors, an eighth looking through its tiles"
)


@dataclass(frozen=True)
class World:
    directions: torch.Tensor
    glosses: torch.Tensor

    @property
    def shape(self) -> str:
        n, d = self.directions.shape
        return f"{n:,} x {d} + {self.glosses.shape[1]}-d gloss"


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


def mine_faiss(world: World) -> torch.Tensor:
    """Exact range search of all rows, then the similarity of what it found, in chunks that stay in cache."""
    faiss = peer("faiss")
    faiss.omp_set_num_threads(1)
    rows, glosses = world.directions.numpy(), world.glosses.numpy()
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    # the search keeps what is strictly above
    limits, _, j = index.range_search(rows, float(np.nextafter(np.float32(MIN_INTERFERENCE), np.float32(0))))
    i = np.repeat(np.arange(len(rows)), np.diff(limits).astype(np.int64))
    i, j = i[i < j], j[i < j]
    chunks = [slice(k, k + 4096) for k in range(0, len(i), 4096)]
    similarity = [np.einsum("pd,pd->p", glosses[i[s]], glosses[j[s]]) for s in chunks]
    keep = np.concatenate(similarity) < MAX_SIMILARITY
    return torch.from_numpy(np.stack([i[keep], j[keep]], axis=1))


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


def check_pairs(world: World, ours: pa.Table, other: torch.Tensor) -> str:
    n = len(world.directions)
    mine = ours["i"].to_numpy().astype(np.int64) * n + ours["j"].to_numpy()
    i, j = np.divmod(np.setxor1d(mine, (other[:, 0] * n + other[:, 1]).numpy()), n)
    gap = np.minimum(
        np.abs(canonical_cosines(prepare_rows(world.directions, name="d"), i, j) - MIN_INTERFERENCE),
        np.abs(canonical_cosines(prepare_rows(world.glosses, name="g"), i, j) - MAX_SIMILARITY),
    )
    require(
        not (gap > FLOAT32).any(), f"{len(i)} pairs differ, up to {gap.max(initial=0):.2e} from a threshold"
    )
    return f"same {len(mine):,} pairs, but for {len(i)} within {FLOAT32:g} of a threshold"


def check_counts(ours: JointCounts, dense: torch.Tensor) -> str:
    difference, total = int(np.abs(ours.partners - dense.numpy()).sum()), int(dense.sum())
    require(difference <= 1e-6 * total, f"partner counts differ by {difference} of {total}")
    return f"same {total:,} partners, but for {difference} that float32 puts over a bin edge"


def screened(world: World) -> float:
    """CPU seconds of the fastest product here that can screen, over half of all pairs, tile by tile; every product looked at
    once, and nothing decided."""
    kind = by_speed("cpu")[0]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[kind]
    n = len(world.directions)
    side = min(2048, n)
    rows = (world.directions[:side] * 500).to(dtype)
    out, flags = output(kind, side * side, "cpu").view(side, side), torch.empty(side, side, dtype=torch.bool)

    def tile() -> None:
        torch.ge(multiply(kind, "cpu")(rows, rows, out=out), 10_000, out=flags)

    return interleaved({"tile": tile}, rounds=8)["tile"] * n * n / 2 / side**2


@benchmark
def pairs(size: Size) -> Iterator[Line]:
    """Mining against the dense way and the bare product."""
    world = make_world(24_576 if size == "full" else 4096, 768, 384)
    name = f"mining {world.shape}"
    check = check_pairs(world, mine_ours(world), mine_dense(world))
    seconds = interleaved(
        {
            "ours": lambda: mine_ours(world),
            "dense": lambda: mine_dense(world),
            "bare": lambda: bare_product(world),
        },
        warm=False,
    )
    floor = screened(world)
    for other, bars in (("dense", (13, 25)), ("bare", (7, 10))):
        against = "dense torch masks" if other == "dense" else "one bare fp32 torch.mm N x N"
        yield Line(
            name, against, seconds["ours"], seconds[other], "cpu s", check, *bars, note=OF_MINING, floor=floor
        )


@benchmark
def two_dictionaries(size: Size) -> Iterator[Line]:
    """Mining of one dictionary against another: beside the bare product of the two, and beside as many products of
    one dictionary with itself."""
    n = 16_384 if size == "full" else 2896
    both, square = make_world(2 * n, 768, 384), make_world(int(n * 2**0.5), 768, 384, seed=1)
    # two halves of one world, which share its topics: others would have no pair
    halves = zip(both.directions.split(n), both.glosses.split(n), strict=True)
    world, other = (World(*half) for half in halves)
    found = mine_two(world, other)
    cosine, similarity = world.directions @ other.directions.T, world.glosses @ other.glosses.T
    dense = int(((cosine >= MIN_INTERFERENCE) & (similarity < MAX_SIMILARITY)).sum())
    require(
        dense > 0 and abs(found.num_rows - dense) <= 2 + dense // 10_000,
        f"{found.num_rows} pairs, the dense way has {dense}",
    )
    check = f"same number of pairs, {found.num_rows:,}"
    panel = torch.empty(512, n)

    def bare() -> None:
        for start in range(0, n, 512):
            block = world.directions[start : start + 512]
            torch.mm(block, other.directions.T, out=panel[: len(block)])

    seconds = interleaved(
        {"ours": lambda: mine_two(world, other), "bare": bare, "square": lambda: mine_ours(square)},
        warm=False,
    )
    name = f"mining {n:,} against {n:,}, 768 + 384-d gloss"
    bare_s, floor = (
        seconds["bare"],
        2 * screened(world),
    )  # all pairs of two, where `screened` takes half of one's own
    yield Line(
        name, "one bare fp32 torch.mm N x M", seconds["ours"], bare_s, "cpu s", check, 3, 4.5, floor=floor
    )
    yield Line(
        name,
        f"mining {int(n * 2**0.5):,} by themselves",
        seconds["ours"],
        seconds["square"],
        "cpu s",
        check,
        0.9,
        1.0,
    )


def mine_two(world: World, other: World) -> pa.Table:
    return mine_pairs(
        world.directions,
        world.glosses,
        min_interference=MIN_INTERFERENCE,
        max_similarity=MAX_SIMILARITY,
        against=(other.directions, other.glosses),
    )


@benchmark
def range_search(size: Size) -> Iterator[Line]:
    """Mining against faiss."""
    world = make_world(24_576 if size == "full" else 4096, 768, 384)
    check = check_pairs(world, mine_ours(world), mine_faiss(world))
    seconds = interleaved({"ours": lambda: mine_ours(world), "faiss": lambda: mine_faiss(world)}, warm=False)
    name = f"mining {world.shape}"
    yield Line(
        name,
        "faiss range_search",
        seconds["ours"],
        seconds["faiss"],
        "cpu s",
        check,
        6,
        9,
        floor=screened(world),
    )


@benchmark
def wide_glosses(size: Size) -> Iterator[Line]:
    """Mining with embeddings of 3072 dimensions against the dense way."""
    world = make_world(24_576 if size == "full" else 2048, 768, 3072)
    check = check_pairs(world, mine_ours(world), mine_dense(world))
    seconds = interleaved({"ours": lambda: mine_ours(world), "dense": lambda: mine_dense(world)}, warm=False)
    yield Line(
        f"mining {world.shape}",
        "dense torch masks",
        seconds["ours"],
        seconds["dense"],
        "cpu s",
        check,
        20,
        30,
        note="what is beyond the product, a profile says, is bringing wide glosses to length 1 in float64, once",
    )


@benchmark
def memory(size: Size) -> Iterator[Line]:
    """Memory beyond the input, against the dense way, and of a large dictionary."""
    n = 24_576 if size == "full" else 4096
    (ours, found), (dense, expected) = (_peak(n, way) for way in ("mine_ours", "mine_dense"))
    require(abs(found - expected) <= 2, f"{found} pairs, the dense way has {expected}")
    check = f"same number of pairs, {found:,}"
    name = f"extra memory, mining {n:,} x 768"
    yield Line(name, "dense torch masks", ours.extra, dense.extra, "MB", check, 15, 30)
    n = 131_072 if size == "full" else 8192
    peak, found = _peak(n, "stream")
    name = f"peak memory, mining {n:,} x 768, all pairs over .3, rows and libraries included"
    # The bars are gigabytes, 3 and 2: as ratios to the 3 that it may be, 1 and 1.5.
    yield Line(name, "3 GB allowed", peak.whole, 3000, "MB", f"{found:,} pairs streamed in order", 1, 1.5)


def stream(world: World) -> int:
    """Number of pairs of a stream, checked for its order; what is streamed is dropped."""
    n, last, found = len(world.directions), -1, 0
    for block in pair_blocks(world.directions, None, min_interference=MIN_INTERFERENCE, max_similarity=None):
        key = block.i.astype(np.int64) * n + block.j
        require(bool((np.diff(key) > 0).all()) and key[0] > last, "the stream is out of order")
        last, found = int(key[-1]), found + len(key)
    return found


def _peak(n: int, way: str) -> tuple[Peak, int]:
    """Memory of a process that makes the world and mines it one way, and the pairs found."""
    width = 8 if way == "stream" else 384
    setup = f"from benchmarks import mining as m\nworld = m.make_world({n}, 768, {width})"
    peak, said = peak_mb(
        setup, f"found = m.{way}(world)\nprint(found if isinstance(found, int) else len(found))"
    )
    return peak, int(said)


@benchmark
def joint_counts(size: Size) -> Iterator[Line]:
    """Histogram and partner counts of all pairs against dense masks."""
    world = make_world(24_576 if size == "full" else 4096, 768, 384)
    check = check_counts(count_ours(world), count_dense(world))
    seconds = interleaved(
        {"ours": lambda: count_ours(world), "dense": lambda: count_dense(world)}, warm=False
    )
    yield Line(
        f"joint bin counts of all pairs, {world.shape}",
        "dense masks",
        seconds["ours"],
        seconds["dense"],
        "cpu s",
        check,
        10,
        14,
        note="a profile: as much time goes into the two float32 products as into counting their cells",
    )


@curve
def growth(size: Size) -> Iterator[Point]:
    """CPU time of mining and counting against the number of features."""
    for n in (4096, 8192, 16_384, 32_768, 65_536, 131_072) if size == "full" else (1024, 2048):
        world = make_world(n, 768, 384)
        seconds = interleaved({"mining": lambda w=world: mine_ours(w)}, rounds=1, warm=n <= 8192)
        values = {
            "mining, cpu s": seconds["mining"],
            "ns a pair": seconds["mining"] / (n * (n - 1) / 2) * 1e9,
        }
        if n <= 32_768:
            seconds = interleaved({"counts": lambda w=world: count_ours(w)}, rounds=1, warm=n <= 8192)
            values["joint counts, cpu s"] = seconds["counts"]
        yield Point("Mining and counting, 768-d rows and 384-d glosses", "features", n, values)
