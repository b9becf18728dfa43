"""GT3, the traps: worlds in which a careless estimate is wrong, and the check that is there to catch it."""

from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc
import torch

from polysem.act.base import Recipe
from polysem.linear.decompose import RESEMBLANCE, clean_tokens, decompose, mean_direction, mean_of, split_push
from polysem.linear.response import membership
from polysem.rank import auroc
from polysem.selftest.lines import Measured, at_least, at_most, exactly, near, reported
from polysem.selftest.readout import NORMAL_95, within_sources
from polysem.selftest.runner import RunSize
from polysem.selftest.studies import WorldStudy, study_of
from polysem.stats import regress
from polysem.stats.reliability import instrumented, reliability
from polysem.worlds.gloss import gloss_world
from polysem.worlds.linear import SITE
from polysem.worlds.readout import ReadoutWorld, identity_pairs, readout_world


def duplicates(size: RunSize) -> Iterator[Measured]:
    """One concept under two wordings: the map flags it, the plan never draws it."""
    world = readout_world(duplicates=24, seed=size.seed)
    made = study_of(world.parts, seed=size.seed, n_targets=60, sources_per_bin=8, doses=(0.05,), n_random=0)
    table = made.pairs["readout"].pairs
    flags = dict(
        zip(
            zip(table["i"].to_pylist(), table["j"].to_pylist(), strict=True),
            table["is_duplicate"].to_pylist(),
            strict=True,
        )
    )
    planted = set(world.truth.duplicates)
    recall = sum(flags.get(pair, False) for pair in planted) / len(planted)
    yield at_least(
        "recall of the detector", recall, 0.95, note=f"{len(planted)} planted, half by angle alone"
    )
    G = world.truth.gram
    wrong = sum(1 for pair, flag in flags.items() if flag and pair not in planted and abs(G[pair]) <= 0.7)
    yield exactly("others flagged, |cosine| <= 0.7", wrong, 0, unit="pairs", note=f"of {len(flags)}")
    rows = made.pair_effects()
    drawn = {(min(t, s), max(t, s)) for t, s in zip(rows["target"], rows["source"], strict=True)}
    yield exactly(
        "duplicates drawn as sources", len(drawn & planted), 0, unit="pairs", note=f"of {len(drawn)}"
    )


def common_mode(size: RunSize) -> Iterator[Measured]:
    """Everything leans on one axis and nothing interferes: raw interference predicts, centred does not."""
    world = readout_world(compensation=1.0, axis_gain=8.0, n_prompts=2, seed=size.seed)
    made = study_of(
        world.parts, seed=size.seed, n_targets=size.of(40, 100), sources_per_bin=8, doses=(0.05,), n_random=0
    )
    rows = made.pair_effects()
    raw = made.effect("slope_interference")
    yield at_most("p of the raw slope", raw["p"], 1e-3, unit="probability", note="the trap is set")
    # In units of the slope that interference let through would have: dose x mean kappa.
    unit = rows["dose"][0] * world.truth.kappa.mean()
    fit = within_sources(rows, rows["interference"])
    yield reported("raw slope", raw["estimate"] / unit, unit="of full interference")
    yield near(
        "centred slope",
        fit.estimate[0] / unit,
        0.0,
        0.02,
        error=fit.se[0] / unit,
        unit="of full interference",
    )


def gloss_noise(size: RunSize) -> Iterator[Measured]:
    """Similarity with error hands its effect to interference, by the amount that theory says; a second gloss as an
    instrument takes it back."""
    world = gloss_world(n_targets=size.of(60, 200), n_sources=size.of(60, 200), seed=size.seed)
    truth, (first, second) = world.truth, world.similarity
    seen = reliability(first, second)
    yield near("reliability from two glosses", seen.r, truth.reliability, 0.03, unit="correlation")
    found = instrumented(world.effect, world.interference, first, second, world.clusters)
    yield near(
        "slope with one gloss", found.naive, truth.naive_bias, 0.03, unit="of gamma", note="the trap is set"
    )
    error = (found.hi - found.lo) / (2 * NORMAL_95)
    yield near(
        "slope, one gloss instrumented by the other", found.corrected, 0.0, 0.03, error=error, unit="of gamma"
    )
    design = np.column_stack([np.ones_like(first), world.interference, truth.similarity])
    fit = regress.clustered_ols(world.effect, design, world.clusters, level=0.95)
    error = float(fit.se[1])
    yield near("slope with the true similarity", fit.estimate[1], 0.0, 0.03, error=error, unit="of gamma")


def token_overlap(size: RunSize) -> Iterator[Measured]:
    """A source that moves a target only through a token that is also its own."""
    world = readout_world(leaks=12, leak_gain=6.0, compensation=1.0, seed=size.seed)
    flagged = wrong = 0
    shares, truths = [], []
    for target, source in world.truth.leaks:
        tokens = world.truth.tokens[target]
        own = world.truth.tokens[source].tolist()
        inside = membership([tokens.tolist()], world.model.spec.d_vocab)
        leaked = ~clean_tokens(inside, [own], world.model.W_E)[0, tokens].numpy()
        flagged += int(leaked[0])
        wrong += int(leaked[1:].sum())
        shares.append(_leakage(world, source, target, tokens[~leaked].tolist()))
        truths.append(_leakage_truth(world, source, tokens))
    n = len(world.truth.leaks)
    yield exactly("leaked tokens found", flagged, n, unit="tokens", note=f"similarity > {RESEMBLANCE}")
    yield exactly("clean tokens taken for leaked", wrong, 0, unit="tokens")
    off = np.abs(np.array(shares) - np.array(truths)).max()
    yield at_most("leakage share against truth", off, 0.05, note=f"mean share {np.mean(truths):.3f}")


def _leakage(world: ReadoutWorld, source: int, target: int, clean: list[int], dose: float = 0.05) -> float:
    """Leakage share as decompositions give it, mean over prompts."""
    D, d_vocab = torch.as_tensor(world.truth.directions), world.model.spec.d_vocab
    parts = split_push(dose * D[[source]], D[[target]], mean_direction(world.sae.W_dec))
    sets = [membership([ids], d_vocab) for ids in (world.truth.tokens[target].tolist(), clean)]
    found = []
    for prompt in world.prompts["token_ids"].to_pylist():
        pushed = torch.arange(len(prompt)) == len(prompt) - 1
        tokens = torch.tensor(prompt)
        found.append(
            decompose(
                world.model, tokens, site=SITE, pushed=pushed, parts=parts, inside=sets[0], clean=sets[1]
            )
        )
    return float(mean_of(found).leakage)


def _leakage_truth(world: ReadoutWorld, source: int, tokens: np.ndarray, dose: float = 0.05) -> float:
    """The same from the planted weights: softmax token by token."""
    shift = world.truth.W_U @ world.truth.directions[source]
    last = [ids[-1] for ids in world.prompts["token_ids"].to_pylist()]
    base = (world.model.W_E[last] @ world.model.W_U.T).numpy()
    effect = []
    for ids in (tokens, tokens[1:]):
        sides = []
        for signed in (dose, -dose):
            weight = np.exp(base + signed * shift)
            inside = weight[:, ids].sum(axis=1)
            sides.append(np.log(inside / (weight.sum(axis=1) - inside)))
        effect.append(float((sides[0] - sides[1]).sum()))
    return 1 - effect[1] / effect[0]


def identity(size: RunSize) -> Iterator[Measured]:
    """5 % of pairs have a route that is no part of the angle: only the contrast with directions of the same angle,
    the control `cosine_matched` of a study, sees it."""
    world = readout_world(route_share=0.05, route=1.0, seed=size.seed)
    made = study_of(
        world.parts,
        seed=size.seed,
        controls=("cosine_matched",),
        n_targets=size.of(24, 100),
        sources_per_bin=4,
        n_random=2,
        doses=(0.05,),
    )
    matched = _matched(made)
    pairs = made.pair_effects()
    keys = list(zip(pairs["target"].tolist(), pairs["source"].tolist(), strict=True))
    both = np.array([len(matched.get(key, ())) == 2 for key in keys])
    null = np.array([np.mean(matched[key]) for key, ok in zip(keys, both, strict=True) if ok])
    planted = identity_pairs(world.truth)[pairs["target"], pairs["source"]][both]
    effect, cosine = pairs["logodds"][both], np.abs(pairs["interference"][both])
    note = f"{planted.sum()} of {len(planted)} pairs have a route"
    yield at_least("share of pairs with both draws of their null", both.mean(), 0.99)
    yield at_least(
        "AUROC of effect minus its cosine-matched null", auroc(effect - null, planted), 0.95, note=note
    )
    G = world.truth.gram
    every = ~np.eye(len(G), dtype=bool)
    yield near(
        "AUROC of interference", auroc(np.abs(G)[every], identity_pairs(world.truth)[every]), 0.5, 0.05
    )
    # First order: what is left without a route is the matched null's own closed form, alpha g_j . (G_ij d_j + c_i).
    expected = _matched_null(world, pairs["target"][both], pairs["source"][both])
    off = np.abs(null - expected).max() / np.abs(effect).max()
    yield at_most(
        "cosine-matched null against its closed form",
        off,
        0.03,
        unit="of the largest effect",
        note="mean of two draws",
    )
    yield reported("AUROC of interference, drawn pairs", auroc(cosine, planted))


def _matched(made: WorldStudy) -> dict[tuple[int, int], list[float]]:
    """Effects of the cosine-matched directions of every pair (target, source): both draws."""
    plan = made.plan.plan
    plan = plan.filter(pc.equal(plan["relation"], "cosine_matched"))
    source = {
        (row["target"], row["draw"]): Recipe.parse(row["recipe"]).integer("source")
        for row in plan.select(["target", "draw", "recipe"]).to_pylist()
    }
    control, found = made.pair_effects("cosine_matched"), {}
    for target, draw, value in zip(*(control[n] for n in ("target", "draw", "logodds")), strict=True):
        found.setdefault((int(target), source[int(target), int(draw)]), []).append(float(value))
    return found


def _matched_null(
    world: ReadoutWorld, target: np.ndarray, source: np.ndarray, dose: float = 0.05
) -> np.ndarray:
    """alpha (softmax shift) of G_ij d_j + c_i, by the planted weights: nothing of the library but the basis."""
    truth = world.truth
    basis = mean_direction(world.sae.W_dec).numpy()
    vectors = []
    for j, i in zip(target, source, strict=True):
        d_j, d_i = truth.directions[j], truth.directions[i]
        rest = d_i - (d_i @ d_j) * d_j
        span = np.linalg.qr((basis - np.outer(basis @ d_j, d_j)).T)[0]
        vectors.append((d_i @ d_j) * d_j + span @ (span.T @ rest))
    return truth.odd_effect_of(world.base_logits(), dose * np.array(vectors), target)
