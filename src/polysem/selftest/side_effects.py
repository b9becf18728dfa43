"""GT3, side effects: a readout LM in which every source drives a planted number of targets.

Directions stand in groups of known sizes. Either tokens read the directions themselves, so that pushing one moves its whole
group and crowding is why (a); or they read the dual basis and routes of their own, whose number follows density, as
crowding does without being why (b). What part of a push lies outside the dictionary is planted, too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from polysem.atlas import PromptResponse
from polysem.geometry.unit import unit_rows
from polysem.linear.response import membership, odds_cotangent
from polysem.rank import rank_correlation
from polysem.seeds import rng_for
from polysem.selftest.lines import Measured, at_least, between, near
from polysem.selftest.runner import RunSize
from polysem.side_effects.directions import Direction
from polysem.side_effects.forecast import PREDICTORS, Labelled, partial_correlation, predictors, screen_row
from polysem.side_effects.linear import linear_effects
from polysem.side_effects.push import Readout, push
from polysem.side_effects.scene import Scene
from polysem.worlds.linear import SITE, LinearWorld
from polysem.worlds.readout import replace_encoder
from polysem.worlds.tables import FeatureRow, feature_table, plain_sae, random_prompts

LABEL = "planted"
GROUPS = (1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14)
TOKENS, FILLERS, WIDTH, CLOSE, GAIN = 3, 300, 160, 0.8, 2.0
DOSE = 1e-3


@dataclass(frozen=True)
class Planted:
    """The parts of the world, and its truth."""

    scene: Scene
    directions: Float[np.ndarray, "n d"]
    reach: Int[np.ndarray, " n"]
    """targets that every source drives"""
    density: Float[np.ndarray, " n"]


def planted_world(*, causal: bool, seed: int, n_prompts: int = 8) -> Planted:
    """A world in which crowding is why a push reaches far (causal), or only goes with density, which is."""
    rng = rng_for(seed, "side effects", int(causal))
    size = np.repeat(GROUPS, GROUPS)
    group = np.repeat(np.arange(len(GROUPS)), GROUPS)
    n = len(size)
    axes = np.linalg.qr(rng.standard_normal((WIDTH, len(GROUPS) + n)))[0].T
    directions = unit_rows(np.sqrt(CLOSE) * axes[group] + np.sqrt(1 - CLOSE) * axes[len(GROUPS) :])
    dual = np.linalg.pinv(directions).T
    density = 1e-3 * np.exp(rng.standard_normal(n) + (0.0 if causal else 1.5 * np.log(size)))
    reach = size
    rows = GAIN * directions
    if not causal:
        level = np.log(density) + 0.5 * rng.standard_normal(n)
        reach = 1 + (19 * (level - level.min()) / np.ptp(level)).astype(int)
        drives = np.eye(n)
        for i in range(n):
            others = rng.permutation(np.delete(np.arange(n), i))
            drives[others[: reach[i] - 1], i] = 1.0
        rows = GAIN * drives @ dual
    tokens = 1 + np.arange(n * TOKENS).reshape(n, TOKENS)
    W_U = np.zeros((1 + n * TOKENS + FILLERS, WIDTH))
    W_U[tokens] = rows[:, None]
    W_E = unit_rows(rng.standard_normal(W_U.shape))
    model = LinearWorld(torch.tensor(W_E), torch.tensor(W_U))
    sae = replace_encoder(plain_sae(directions), dual)
    known = [FeatureRow(t.tolist(), t.tolist(), None, float(p)) for t, p in zip(tokens, density, strict=True)]
    table = feature_table(LABEL, known, site=SITE, W_dec=directions, embeddings=np.zeros((n, 4)))
    scene = Scene.of(
        model,
        sae,
        table.features,
        random_prompts(n_prompts, len(W_U), rng),
        label=LABEL,
        readout=(LABEL, sae),
    )
    return Planted(scene, directions, reach, density)


def exact_responses(scene: Scene) -> list[PromptResponse]:
    """Of the select prompts, from the weights: the last token's residual is read by the unembedding."""
    W_U = scene.model.W_U.double()
    inside = membership(scene.sets, len(W_U))
    found = []
    for k in np.flatnonzero(scene.select).tolist():
        logits = W_U @ scene.model.W_E[scene.prompts[k][-1]].double()
        p = logits.softmax(-1)
        centred = W_U - p @ W_U
        fisher = centred.T @ (p[:, None] * centred)
        gradients = odds_cotangent(logits, inside) @ W_U
        change = (W_U - W_U.mean(0)).numpy()
        found.append(PromptResponse(gradients.numpy(), np.eye(len(fisher)), fisher.numpy(), change, norm=1.0))
    return found


def labels(world: Planted) -> Labelled:
    """Every feature pushed on the confirm prompts, and its predictors."""
    scene = world.scene
    n = len(world.directions)
    linear = linear_effects(world.directions, exact_responses(scene), dose=DOSE)
    W_U = scene.model.W_U.double().numpy()
    known = predictors(scene.dictionary, W_U, scene.table, linear, np.arange(n))
    known = {name: np.nan_to_num(values) for name, values in known.items()}
    confirm = [scene.prompts[k] for k in np.flatnonzero(scene.confirm).tolist()]
    pushed = push(scene.model, confirm, scene.features(range(n)), sets=scene.sets, dose=DOSE)
    measured, every = scene.measured(pushed, np.arange(n)), np.arange(len(confirm))
    label, first, second = (
        np.array([measured.value("reach_sets", k, some) for k in range(n)])
        for some in (every, every[::2], every[1::2])
    )
    return Labelled(known, label, first, second, np.arange(n) % 10)


def planted(size: RunSize) -> Iterator[Measured]:
    """Reach is forecast where weights decide it, crowding is not blamed where they do not, and what no feature sees is seen."""
    told, blamed = [], []
    note = f"{sum(GROUPS)} features"
    for k in range(size.of(3, 20)):
        world = planted_world(causal=True, seed=size.seed + k)
        made = labels(world)
        forecast = made.told(made.label, PREDICTORS["weights and corpus"], rng_for(size.seed, "folds", k))
        told.append(rank_correlation(forecast, world.reach.astype(np.float64)))
    for k in range(size.of(3, 80)):
        world = planted_world(causal=False, seed=size.seed + k)
        made = labels(world)
        given = np.log(world.density)[:, None]
        blamed.append(partial_correlation(made.predictors["crowding"], made.label, given))
    worst = f"{note}, {len(told)} seeds; the worst of them"
    yield at_least("forecast reach against the planted", min(told), 0.9, note=worst)
    error = float(np.std(blamed) / np.sqrt(len(blamed)))
    reach = 0.05 if size.full else max(0.05, 3 * error)
    mean = float(np.mean(blamed))
    note = f"{note}, {len(blamed)} seeds"
    yield near("crowding where only density decides", mean, 0.0, reach, error=error, note=note)
    yield from _unseen(size)
    rng = rng_for(size.seed, "side effects", "screen")
    worlds = size.of(200, 500)
    p = np.array([_null_screen(rng) for _ in range(worlds)])
    share = float((p < 0.05).mean())
    slack = 0.0 if size.full else 0.02
    yield between(
        "screens that call a true null",
        share,
        0.03 - slack,
        0.07 + slack,
        error=(share * (1 - share) / worlds) ** 0.5,
    )


def _unseen(size: RunSize) -> Iterator[Measured]:
    """A known share of the push lies outside what the dictionary can say."""
    world = planted_world(causal=True, seed=size.seed)
    scene, rows = world.scene, world.directions
    outside = np.linalg.svd(rows)[2][len(rows) :]
    for share in (0.1, 0.5):
        mixed = np.sqrt(1 - share) * rows[:10] + np.sqrt(share) * outside[:10]
        pushed = push(
            scene.model, scene.prompts, [Direction(f"d{k}", "file", SITE, v) for k, v in enumerate(mixed)],
            sets=scene.sets[:1], dose=50.0, unit="coefficient", readout=Readout(LABEL, scene.dictionary, 1.0),
        )  # fmt: skip
        found = float(pushed.missed.mean() / pushed.moved.mean())
        yield near(f"unseen share of a push with {share:g} outside", found, share, 0.02)


def _null_screen(rng: np.random.Generator, n: int = 100, prompts: int = 6) -> float:
    """p of a screen whose forecast knows nothing; features and prompts have levels of their own."""
    outcome = rng.standard_normal((n, 1)) + rng.standard_normal(prompts) + rng.standard_normal((n, prompts))
    return screen_row(rng.standard_normal(n), rng.standard_normal(n), outcome)["p"]
