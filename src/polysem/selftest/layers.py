"""GT7a: edges between layers of known kind are told apart by what they do, not by their weight."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float

from polysem.layers.coactivity import Pass, corpus_pass
from polysem.layers.ends import Ends, logit_columns
from polysem.layers.hypotheses import edge_interval
from polysem.layers.influence import pushed_later
from polysem.layers.weights import VirtualWeights, virtual_weights
from polysem.layers.worth import Readings, effectiveness, helpful_features, readings
from polysem.seeds import rng_for
from polysem.selftest.lines import Measured, at_least, at_most, exactly, reported
from polysem.selftest.runner import RunSize
from polysem.worlds.edges import EdgesWorld, edges_world

SURE = 3.0
"""standard errors beyond which the sign of helpfulness is judged"""


def planted(size: RunSize) -> Iterator[Measured]:
    """Effectiveness finds the circuit's edges where weights do not; helpfulness has its sign; ERA credits nobody wrongly."""
    told, twins, sized, acting = [], [], [], []
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
        acting.append(worth.nats[tuple(world.harmful.T)].min() / worth.nats[tuple(world.silent.T)].max())
        good, seen_signs = _signs(world, seen, read, weights, rng)
        right, judged = right + good, judged + seen_signs
        both = seen.between("first", "neurons")
        wrong += int(((both.both == 0) & (both.era(whole) != 0)).sum())
        tokens = torch.from_numpy(world.rows.tokens[:4].astype(np.int64))
        pushed = pushed_later(world.model, tokens, source, target, sources=sources, targets=every)
        push = max(
            push, float(np.abs(pushed.same.mean(1) - whole / weights.rows.norm(dim=1).numpy()[:, None]).max())
        )
    note = f"{seeds} seeds; the worst of them"
    yield at_least("AUROC of effectiveness, real edges against all others", min(told), 0.95, note=note)
    yield at_least(
        "AUROC of effectiveness, against interference of equal weight", min(twins), 0.95, note=note
    )
    yield reported("AUROC of |weight|, against the same", float(np.mean(sized)), note=f"{seeds} seeds, mean")
    least = "least effective harmful edge over the most effective silent one"
    yield at_least(least, min(acting), 2.0, note=f"{note}; they act, so effectiveness must say so")
    share = right / judged if judged else float("nan")
    yield at_least(
        f"sign of helpfulness beyond {SURE:g} standard errors", share, 0.95, note=f"{judged} edges"
    )
    yield exactly("edges that ERA credits although their ends never co-fire", wrong, 0)
    yield at_most("a push against the virtual weight, largest difference", push, 1e-3)


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


def auroc(score: Float[np.ndarray, "..."], positive: Bool[np.ndarray, "..."]) -> float:
    """Probability that a positive outranks a negative, ties a half."""
    from scipy.stats import rankdata

    ranks, label = rankdata(score.ravel()), positive.ravel()
    n = int(label.sum())
    return float((ranks[label].sum() - n * (n + 1) / 2) / (n * (len(label) - n)))
