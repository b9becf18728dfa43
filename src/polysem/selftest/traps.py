"""GT3, the traps: worlds in which a careless estimate is wrong, and the check that is there to catch it."""

from collections.abc import Iterator

import numpy as np
import torch

from polysem import readouts as r
from polysem.edits import Add
from polysem.selftest.lines import Measured, at_least, at_most, exactly, near, reported
from polysem.selftest.readout import linear_response, within_sources
from polysem.selftest.runner import Scale
from polysem.selftest.studies import study_of
from polysem.stats import regress
from polysem.worlds.gloss import gloss_world
from polysem.worlds.linear import SITE
from polysem.worlds.readout import ReadoutWorld, identity_pairs, readout_world

LEAK_COSINE = 0.5
"""a target token nearer than this to a source's own token is leaked"""


def duplicates(size: Scale) -> Iterator[Measured]:
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


def common_mode(size: Scale) -> Iterator[Measured]:
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


def gloss_noise(size: Scale) -> Iterator[Measured]:
    """Similarity with error hands its effect to interference, by the amount that theory says."""
    world = gloss_world(n_targets=size.of(60, 200), n_sources=size.of(60, 200), seed=size.seed)
    truth = world.truth
    reliability = float(np.corrcoef(world.similarity)[0, 1])
    yield near("reliability from two glosses", reliability, truth.reliability, 0.03, unit="correlation")
    for name, S, expected in (
        ("slope with one gloss", world.similarity[0], truth.naive_bias),
        ("slope with the true similarity", truth.similarity, 0.0),
    ):
        design = np.column_stack([np.ones_like(S), world.interference, S])
        fit = regress.clustered_ols(world.effect, design, world.clusters, level=0.95)
        yield near(name, fit.estimate[1], expected, 0.03, error=float(fit.se[1]), unit="of gamma")


def token_overlap(size: Scale) -> Iterator[Measured]:
    """A source that moves a target only through a token that is also its own."""
    world = readout_world(leaks=12, leak_gain=6.0, compensation=1.0, seed=size.seed)
    flagged = wrong = 0
    shares, truths = [], []
    for target, source in world.truth.leaks:
        tokens = world.truth.tokens[target]
        near_source = r.target_similarity(world.truth.tokens[source].tolist(), world.model.W_E.numpy())[
            tokens
        ]
        leaked = near_source > LEAK_COSINE
        flagged += int(leaked[0])
        wrong += int(leaked[1:].sum())
        shares.append(_leakage(world, source, tokens, tokens[~leaked]))
        truths.append(_leakage_truth(world, source, tokens))
    n = len(world.truth.leaks)
    yield exactly("leaked tokens found", flagged, n, unit="tokens", note=f"similarity > {LEAK_COSINE}")
    yield exactly("clean tokens taken for leaked", wrong, 0, unit="tokens")
    off = np.abs(np.array(shares) - np.array(truths)).max()
    yield at_most("leakage share against truth", off, 0.05, note=f"mean share {np.mean(truths):.3f}")


def _leakage(
    world: ReadoutWorld, source: int, tokens: np.ndarray, clean: np.ndarray, dose: float = 0.05
) -> float:
    """1 - odd effect on the clean tokens / odd effect on all, mean over prompts, through the model."""
    push = torch.as_tensor(world.truth.directions[source])
    total, kept = 0.0, 0.0
    for prompt in world.prompts["token_ids"].to_pylist():
        rows = torch.tensor([prompt, prompt])
        mask = torch.zeros(rows.shape, dtype=torch.bool)
        mask[:, -1] = True
        edit = Add(SITE, torch.stack([dose * push, -dose * push]), mask)
        z = world.model.logits(rows, [edit], last_only=True)[:, -1].numpy()
        total += float(np.subtract(*np.asarray(r.log_odds(z, tokens.tolist()))))
        kept += float(np.subtract(*np.asarray(r.log_odds(z, clean.tolist()))))
    return 1 - kept / total


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


def identity(size: Scale) -> Iterator[Measured]:
    """5 % of pairs have a route that is no part of the angle: only the contrast with the same angle sees it.

    The contrast is the total effect minus the closed form of its cosine-matched null (section 3.6),
    alpha g_j . (G_ij d_j + c_i), with c_i the part of d_i along the mean direction.
    """
    world = readout_world(route_share=0.05, route=1.0, seed=size.seed)
    truth, dose = world.truth, 0.05
    effect = truth.odd_effect(world.base_logits(), dose)
    D = truth.directions
    mean = D.mean(axis=0) / np.linalg.norm(D.mean(axis=0))
    # c_ij: what of d_i - G_ij d_j lies along the part of the mean direction that is orthogonal to d_j.
    G, along = truth.gram, D @ mean
    free = 1 - along**2
    coefficient = (along[None, :] - G * along[:, None]) / free[:, None]
    g = dose * linear_response(world)
    g_mean = dose * _gradient_along(world, mean)
    null = G * np.diag(g)[:, None] + coefficient * (g_mean[:, None] - along[:, None] * np.diag(g)[:, None])
    pairs = ~np.eye(len(G), dtype=bool)
    planted = identity_pairs(truth)[pairs]
    yield at_least(
        "AUROC of effect minus its cosine-matched null", _auroc((effect - null)[pairs], planted), 0.95
    )
    yield near("AUROC of interference", _auroc(np.abs(G)[pairs], planted), 0.5, 0.05)


def _gradient_along(world: ReadoutWorld, direction: np.ndarray) -> np.ndarray:
    """g_j . direction, mean over confirm prompts: from the linear response to every feature, as long as the
    direction is in their span."""
    weights = np.linalg.lstsq(world.truth.directions.T, direction, rcond=None)[0]
    return linear_response(world) @ weights


def _auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive scores above a negative (ties count half)."""
    from scipy.stats import rankdata

    ranks = rankdata(score)
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))
