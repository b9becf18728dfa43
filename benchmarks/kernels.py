"""Kernels of later stages: sums of two dictionaries that fire together, and one-to-one matching."""

from collections.abc import Iterator

from benchmarks.harness import Line, Point, Size, benchmark, curve, interleaved, peak_mb, require

# isort: split
import time
from dataclasses import replace

import numpy as np
import torch
from scipy.sparse import csr_matrix

from benchmarks.sweep import hook
from benchmarks.worlds import DOSES
from benchmarks.worlds import make_world as make_model_world
from polysem.corpus import TokenRows
from polysem.geometry.unit import unit_rows
from polysem.hierarchy.absorption import absorption
from polysem.hierarchy.firing import Fired, fired
from polysem.hierarchy.relations import candidates
from polysem.layers.coactivity import BLOCK, Coactivity, Firing, corpus_pass, fired_together
from polysem.layers.ends import Ends
from polysem.layers.weights import VirtualWeights, joint_histogram, virtual_weights
from polysem.replicate import assigned
from polysem.saes.base import SAE
from polysem.types import Site
from polysem.worlds.tables import plain_sae
from polysem.worlds.tree import tree_world

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


def all_pairs(a: Firing, b: Firing) -> list[np.ndarray]:
    """Counts, and the sums behind ERA and TWERA."""
    found = sums(a, b)
    return [found.both(), found.onto(), found.product()]


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

    found, expected = all_pairs(a, b), dense()
    require(np.array_equal(found[0], expected[0]), "co-firing counts differ")
    apart = max(float(np.abs(s - t).max()) for s, t in zip(found[1:], expected[1:], strict=True))
    require(apart < 1e-9, f"sums differ by {apart:.1e}")
    world, few = make_model_world("Pythia-70M", quick=size == "quick"), DOSES[::8]
    seconds = interleaved(
        {"ours": lambda: all_pairs(a, b), "dense": dense, "measured": lambda: hook(world, few)}, warm=False
    )
    what = f"co-firing, ERA and TWERA sums, {n:,} x {n:,}, {tokens:,} tokens, 1 % active"
    check = f"the same {int(found[0].sum()):,} counts; sums to {apart:.0e}"
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


def wide_firing(n: int, tokens: int, seed: int, active: int = 64) -> Firing:
    """The same number of features on every token."""
    rng = np.random.default_rng(seed)
    feature = np.sort(
        (rng.integers(n, size=(tokens, 1)) + np.cumsum(rng.integers(1, n // active, (tokens, active)), 1))
        % n,
        1,
    )
    value = rng.exponential(size=feature.size).astype(np.float32)
    return Firing((tokens // 64, 64, n), np.repeat(np.arange(tokens), active), feature.ravel(), value)


def random_weights(n: int, d: int = 256) -> VirtualWeights:
    """Rows and columns at random."""
    g = torch.Generator().manual_seed(n)
    rows, columns = torch.randn(n, d, generator=g), torch.randn(n, d, generator=g)
    return VirtualWeights(rows, columns, columns, "none")


@benchmark
def wide_coactivity(size: Size) -> Iterator[Line]:
    """Memory of all that `polysem layers` counts over all pairs of two dictionaries, too wide for matrices of all pairs."""
    n, tokens, small = (16_384, 49_984, 2048) if size == "full" else (1024, 2048, 512)
    a, b, weights = wide_firing(small, 4096, 0), wide_firing(small, 4096, 1), random_weights(small)
    found = joint_histogram(weights, sums(a, b))
    x, y = (np.zeros((4096, small)) for _ in range(2))
    x[a.place, a.feature], y[b.place, b.feature] = a.value, b.value
    both, weight = (x > 0).T.astype(np.float64) @ (y > 0), np.abs(weights.of(slice(None)))
    require(int(found.counts[:, 0].sum()) == int((both == 0).sum()), "pairs that never co-fire differ")
    top = float((both == 0)[weight >= np.quantile(weight, 0.99)].mean())
    require(found.top_never == top, f"of the largest weights {found.top_never} never co-fire, dense {top}")
    setup = (
        f"from benchmarks import kernels as k\nn = {n}\na, b = (k.wide_firing(n, {tokens}, seed) for seed in (0, 1))\n"
        "weights = k.random_weights(n)"
    )
    peak, said = peak_mb(setup, "print(k.joint_histogram(weights, k.sums(a, b)).counts.sum())")
    require(int(said) == n**2, f"{said} of {n**2} pairs are counted")
    yield Line(
        f"extra memory, weights and co-firing of all pairs, {n:,} x {n:,}, {tokens:,} tokens, 64 active",
        "three matrices of all pairs (counts, sums of ERA and TWERA), float64",
        peak.extra,
        24e-6 * n**2,
        "MB",
        f"every pair is counted; at {small:,} features those that never co-fire, of all and of the largest 1 % of weights, are the dense ones",
        must=6.5,
    )


ACTIVE = 64
"""features of a dictionary on a token, in the mean"""


def dictionary(x: torch.Tensor, n: int, site: Site) -> SAE:
    """Random unit rows, and one bias with which `ACTIVE` of them fire on these inputs in the mean."""
    rng = np.random.default_rng(site.layer)
    sae = plain_sae(unit_rows(rng.standard_normal((n, x.shape[-1]))), site=site)
    some = (x.flatten(0, 1)[:256] @ sae.W_enc).flatten()
    return replace(sae, b_enc=torch.full((n,), -float(np.quantile(some.numpy(), 1 - ACTIVE / n))))


@benchmark
def era_pass(size: Size) -> Iterator[Line]:
    """One pass over a corpus with ERA of all pairs of two dictionaries, against running the model on the same tokens."""
    n, n_rows = (4096, 32) if size == "full" else (256, 4)
    world = make_model_world("GPT-2", pos=64, n_prompts=n_rows, quick=size == "quick")
    sites = [Site(layer, "hook_resid_post") for layer in (5, 11)]
    stream = world.model.capture(world.prompts, sites)
    a, b = (Ends.of(str(site), dictionary(stream[site], n, site)) for site in sites)
    rows = TokenRows(world.prompts.numpy().astype(np.int32), ("text",), np.zeros(1, dtype=np.int64), 0)

    def ours() -> np.ndarray:
        seen, weights = corpus_pass(world.model, rows, [a, b], {}), virtual_weights(a, b, None)
        both, blocks = seen.between(a.label, b.label), range(0, n, BLOCK)
        return np.concatenate([both.era(weights.of(i), i) for i in (slice(k, k + BLOCK) for k in blocks)])

    seen = corpus_pass(world.model, rows, [a, b], {})
    x, y = (one.encoder.encode(stream[one.reads])[torch.from_numpy(seen.counted)].double() for one in (a, b))
    dense = (x.T @ (y > 0).double() / len(x) * (a.encoder.W_dec.double() @ b.encoder.W_enc.double())).numpy()
    apart = float(np.abs(ours() - dense).max() / np.abs(dense).max())
    require(apart < 1e-4, f"ERA is {apart:.1e} of its largest from the dense one")
    fired = float((x > 0).sum() / len(x))
    seconds = interleaved(
        {"ours": ours, "forward": lambda: [world.model.logits(t) for t in world.prompts.split(32)]},
        warm=False,
    )
    yield Line(
        f"one pass and ERA of all pairs, {n:,} x {n:,}, {world.prompts.numel():,} tokens, {fired:.0f} active, GPT-2 shape, blocks 5 and 11",
        "the model's own forward pass of these tokens",
        seconds["ours"],
        seconds["forward"],
        "cpu s",
        f"ERA of every pair is that of dense float64 products to {apart:.0e} of the largest",
        must=0.67,
        aim=1,
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


def sparse_firing(n: int, tokens: int = 20_000, d: int = 256, active: int = 64) -> Fired:
    """Every token has some 64 of n features, drawn so that some fire often and most seldom; one in 16 mostly fires with another."""
    rng = np.random.default_rng(n)
    place = np.repeat(np.arange(tokens), active)
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


def leaning_firing(n: int, tokens: int = 60_000, d: int = 768) -> Fired:
    """Sparse firing of features in blocks of 32, each a possible child of the others (cosine 0.3), and activations that they write."""
    seen = sparse_firing(n, tokens, d, active=16)
    common = np.repeat(np.random.default_rng(0).standard_normal((n // 32, d)).astype(np.float32), 32, axis=0)
    units = 0.7**0.5 * seen.units + 0.3**0.5 * common / np.linalg.norm(common, axis=1, keepdims=True)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    return replace(seen, units=units, rows=units, x=np.asarray(seen.fires @ units))


@benchmark
def wide_absorption(size: Size) -> Iterator[Line]:
    """Memory and time of asking features for absorption, in a dictionary too wide for its activations to be held dense."""
    n, tokens, probes = (65_536, 60_000, 256) if size == "full" else (2048, 4000, 16)
    world = tree_world(roots=6, absorbed=3)
    made = absorption(fired(world.wide, world.sample(20_000, seed=1)[0]))
    pairs = set(zip(made.parent.tolist(), made.child.tolist(), strict=True))
    require(world.truth.absorbed <= pairs, "a planted absorption is not found")
    setup = f"from benchmarks import kernels as k\nimport time\nseen = k.leaning_firing({n}, {tokens})"
    run = (
        f"begun = time.process_time()\nmade = k.absorption(seen, most={probes})\n"
        "print(time.process_time() - begun, len(made.f1), int((made.f1 >= 0.8).sum()))"
    )
    peak, said = peak_mb(setup, run)
    spent, asked, good = said.split()
    require(int(good) > 0, "no probe is good enough: children were not looked at")
    yield Line(
        f"extra memory, {asked} of {n:,} features asked for absorption on {tokens:,} tokens, 768-d, 31 possible children each",
        "the activations of all tokens and features, float32",
        peak.extra,
        4e-6 * n * tokens,
        "MB",
        f"{1000 * float(spent) / int(asked):.0f} cpu ms a feature; the probe of {good} is good enough; a planted tree's absorbed pairs are "
        "all found",
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
