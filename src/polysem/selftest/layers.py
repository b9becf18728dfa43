"""GT7: edges between layers of known kind are told apart by what they do, not by their weight; interference that training left
does what its closed form says; two hops written as one show."""

from collections.abc import Iterator

import numpy as np
import torch

from polysem.layers.coactivity import Pass, corpus_pass
from polysem.layers.ends import Ends, logit_columns
from polysem.layers.hops import hop_index
from polysem.layers.hypotheses import edge_interval
from polysem.layers.influence import pushed_later
from polysem.layers.weights import VirtualWeights, virtual_weights
from polysem.layers.worth import Readings, effectiveness, helpful_features, readings
from polysem.rank import auroc
from polysem.saes.transcoder import TranscoderSet
from polysem.seeds import rng_for
from polysem.selftest.lines import Measured, at_least, at_most, exactly, near, reported
from polysem.selftest.runner import RunSize
from polysem.worlds.chain import WRITES, chain_world, compiled, per_layer, trained
from polysem.worlds.edges import EdgesWorld, edges_world
from polysem.worlds.interference import interference_world

SURE = 3.0
"""standard errors beyond which the sign of helpfulness is judged"""


def planted(size: RunSize) -> Iterator[Measured]:
    """Effectiveness finds the circuit's edges where weights do not; helpfulness has its sign; ERA credits nobody wrongly."""
    told, twins, sized, harms, clear = [], [], [], [], []
    right, judged, wrong, push = 0, 0, 0, 0.0
    seeds = size.of(2, 12)
    for k in range(seeds):
        world = edges_world(seed=size.seed + k, n_rows=size.of(150, 400))
        source, target = Ends.of("first", world.source), Ends.of("neurons", world.target)
        seen = corpus_pass(world.model, world.rows, [source, target], {})
        weights = virtual_weights(source, target, None)
        columns = logit_columns(world.model, None)
        every = np.arange(target.encoder.d_sae)
        rng = rng_for(size.seed, "selftest layers", k)
        sources = list(range(source.encoder.d_sae))
        read = readings(world.model, seen, [(target, every)], columns, rng=rng)
        worth = effectiveness(seen, read, source, target, weights, sources=sources, targets=every)
        whole = weights.of(slice(None))
        real = np.zeros(whole.shape, dtype=bool)
        real[tuple(world.real.T)] = True
        equal = real.copy()
        equal[tuple(world.silent.T)] = True
        told.append(auroc(worth.nats, real))
        twins.append(auroc(worth.nats[equal], real[equal]))
        sized.append(auroc(np.abs(whole)[equal], real[equal]))
        harmful, silent = (worth.nats[tuple(some.T)] for some in (world.harmful, world.silent))
        harms.append(
            auroc(np.concatenate([harmful, silent]), np.arange(len(harmful) + len(silent)) < len(harmful))
        )
        clear += (harmful > 2 * silent.max()).tolist()
        good, seen_signs = _signs(world, seen, read, weights, rng)
        right, judged = right + good, judged + seen_signs
        both = seen.between("first", "neurons")
        wrong += int(((both.both() == 0) & (both.era(whole) != 0)).sum())
        tokens = torch.from_numpy(world.rows.tokens[:4].astype(np.int64))
        pushed = pushed_later(world.model, tokens, source, target, sources=sources, targets=every)
        push = max(
            push, float(np.abs(pushed.same.mean(1) - whole / weights.rows.norm(dim=1).numpy()[:, None]).max())
        )
    for name, found in (
        ("real edges against all others", told),
        ("against silent interference of equal weight", twins),
        ("harmful edges against silent ones", harms),
    ):
        note = f"{seeds} worlds, mean; the worst {min(found):.3f}"
        yield at_least(f"AUROC of effectiveness, {name}", float(np.mean(found)), 0.95, note=note)
    yield reported("AUROC of |weight|, against the same", float(np.mean(sized)), note=f"{seeds} seeds, mean")
    yield at_least(
        "harmful edges more than twice as effective as every silent one", float(np.mean(clear)), 0.75, unit="share",
        note=f"{len(clear)} edges; by weight alone none would stand out",
    )  # fmt: skip
    share = right / judged if judged else float("nan")
    yield at_least(
        f"sign of helpfulness beyond {SURE:g} standard errors", share, 0.95, note=f"{judged} edges"
    )
    yield exactly("edges that ERA credits although their ends never co-fire", wrong, 0)
    yield at_most("a push against the virtual weight, largest difference", push, 1e-3)


def interference(size: RunSize) -> Iterator[Measured]:
    """Weights that training left between features that have nothing to do with each other: what they do is their closed form."""
    told, sized, apart, off, harms = [], [], [], [], []
    wrong = acting = pairs = 0
    seeds = size.of(1, 6)
    for k in range(seeds):
        world = interference_world(seed=size.seed + k, n_rows=size.of(120, 400))
        source, target = Ends.of("first", world.source), Ends.of("outputs", world.target)
        seen = corpus_pass(world.model, world.rows, [source, target], {})
        weights, every = virtual_weights(source, target, None), np.arange(len(world.b))
        read = readings(
            world.model, seen, [(target, every)], logit_columns(world.model, None),
            rng=rng_for(size.seed, "selftest interference", k),
        )  # fmt: skip
        worth = effectiveness(seen, read, source, target, weights, sources=every.tolist(), targets=every)
        saved, nats = world.saved()
        real = np.eye(len(every), dtype=bool)
        told.append(auroc(worth.nats, real))
        sized.append(auroc(np.abs(weights.of(slice(None))), real))
        off.append(float(np.abs(worth.nats - nats).max() / nats.max()))
        acts = np.isfinite(saved)
        wrong += int(((worth.acts > 0) != acts).sum())
        edges = np.argwhere(acts)
        found = helpful_features(
            world.model, seen, read, source, target, weights, edges=[(int(i), int(j)) for i, j in edges],
            n_events=len(seen.rows.tokens) * len(seen.rows.tokens[0]), rng=rng_for(size.seed, "selftest help", k),
        )  # fmt: skip
        mean = np.array([found.saved[found.edge == n].mean() for n in range(len(edges))])
        expected = saved[tuple(edges.T)]
        apart.append(float(np.abs(mean - expected).max()))
        between = edges[:, 0] != edges[:, 1]
        acting += int(between.sum())
        pairs += len(every) * (len(every) - 1)
        harms += (expected[between] < 0).tolist()
    note = f"{seeds} trained toys"
    yield at_most(
        "help of an edge against its closed form, largest difference",
        max(apart),
        1e-4,
        unit="nats",
        note=note,
    )
    yield at_most(
        "effectiveness against its closed form, largest difference over the largest", max(off), 1e-4
    )
    yield exactly("edges that act in one and not in the other", wrong, 0)
    yield reported(
        "AUROC of effectiveness, features onto themselves against others", float(np.mean(told)), note=note
    )
    yield reported("AUROC of |weight|, against the same", float(np.mean(sized)), note=note)
    yield reported(
        "interference that acts and raises the loss", float(np.mean(harms)) if harms else float("nan"), unit="share",
        note=f"{acting} of {pairs} weights between features act on any token",
    )  # fmt: skip


def hops(size: RunSize) -> Iterator[Measured]:
    """Two hops that a cross-layer transcoder writes as one show, and show the more the dearer activations are."""
    world = chain_world(seed=size.seed)
    site, axes = WRITES[1], world.axes

    def index(found: TranscoderSet) -> float:
        return float(hop_index(found, world.seen, site=site, directions=axes).mean())

    yield near("hop index, written hop by hop", index(compiled(world, ahead=False)), 0.0, 1e-6)
    yield near("hop index, written ahead", index(compiled(world, ahead=True)), 1.0, 1e-6)
    yield exactly("hop index, per-layer transcoders", index(per_layer(world)), 0.0)
    found, prices = [], (0.0, 0.3)
    for price in prices:
        made = trained(world, price=price, seed=size.seed, steps=size.of(800, 3000))
        error = sum(
            float((made.written(world.seen)[w] - y).square().sum() / y.square().sum())
            for w, y in zip(WRITES, world.written, strict=True)
        )
        found.append(index(made))
        yield reported(
            f"hop index, trained at a price of {price:g}", found[-1], note=f"squared error {error / 2:.3f}"
        )
    yield at_least("hop index, rise with the price of activations", found[1] - found[0], 0.2)


def _signs(
    world: EdgesWorld, seen: Pass, read: Readings, weights: VirtualWeights, rng: np.random.Generator
) -> tuple[int, int]:
    """Edges whose help has the planted sign, and edges whose help is beyond doubt."""
    edges = [*map(tuple, world.real.tolist()), *map(tuple, world.harmful.tolist())]
    source, target = Ends.of("first", world.source), Ends.of("neurons", world.target)
    found = helpful_features(
        world.model, seen, read, source, target, weights, edges=edges, n_events=20, rng=rng
    )
    good = judged = 0
    for k in range(len(edges)):
        one = edge_interval(found, k)
        if np.isfinite(one.se) and abs(one.value) > SURE * one.se:
            judged += 1
            good += (one.value > 0) == (k < len(world.real))
    return good, judged
