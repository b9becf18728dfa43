"""GT3: the planted readout LM through the whole pipeline.

Map, plan, trials and effects are made as for a real model; what they say is compared with what was planted.
Sources serve many targets, so a fixed effect of every source (the centring of section 2.1: it removes the part
that the softmax takes away) leaves the slope 1 - lambda.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc
import torch

from polysem.selftest.lines import Measured, at_least, at_most, exactly, near
from polysem.selftest.runner import Scale
from polysem.selftest.studies import WorldStudy, study_of
from polysem.stats import regress
from polysem.worlds.linear import SITE
from polysem.worlds.readout import ReadoutWorld, readout_world

DOSE = 0.05
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0)
ROUNDING = 2e-6
"""nats: decoder rows are stored in float32"""


def pipeline(size: Scale) -> Iterator[Measured]:
    """Every pair is found at its cosine, every planned trial runs, every effect is the planted one."""
    world = readout_world(seed=size.seed)
    made = study_of(world.parts, seed=size.seed, n_targets=16, sources_per_bin=3, doses=(DOSE, 0.25))
    yield from _map_lines(world, made)
    # Few directions are orthogonal to a target in a world with a common mode: such controls are refused.
    bad = sum(reason not in (None, "control_unmatched") for reason in made.trials["reason"].to_pylist())
    yield exactly("matchable trials without an ok row", bad, 0, unit="trials")
    for relation in ("pair", "self"):
        rows = made.pair_effects(relation)
        truth = _truth(world, rows)
        off = np.abs(rows["logodds"] - truth).max()
        name = f"effect of every {relation}"
        yield at_most(
            name,
            off,
            ROUNDING,
            unit="nats",
            note=f"largest of {len(truth)}, effects to {np.abs(truth).max():.2g}",
        )
    rows = made.pair_effects()
    predicted = linear_response(world)[rows["target"], rows["source"]] * rows["dose"]
    largest = rows["dose"] == 0.25
    yield at_least("R2 of linear response at 0.25", _r2(rows["logodds"][largest], predicted[largest]), 0.99)
    estimate = made.effect("slope_interference")
    dose = max(rows["dose"])
    y, G = rows["logodds"][rows["dose"] == dose], rows["interference"][rows["dose"] == dose]
    S = rows["similarity"][rows["dose"] == dose]
    plain = np.linalg.lstsq(np.column_stack([np.ones_like(G), G, S]), y, rcond=None)[0][1]
    yield near("slope against normal equations", estimate["estimate"], plain, 1e-9, unit="nats per cosine")


def _map_lines(world: ReadoutWorld, made: WorldStudy) -> Iterator[Measured]:
    """The map against all pairs by brute force."""
    found = made.pairs["readout"].pairs
    i, j = found["i"].to_numpy(), found["j"].to_numpy()
    D = world.truth.directions
    G = D @ D.T
    S = _unlike(world)
    expected = {(a, b) for a, b in np.argwhere(np.triu((np.abs(G) >= 0.2) & (S < 0.3), 1)).tolist()}
    missed = len(expected ^ set(zip(i.tolist(), j.tolist(), strict=True)))
    yield exactly("pairs that the map has wrong", missed, 0, unit="pairs", note=f"of {len(expected)}")
    off = np.abs(found["interference"].to_numpy() - G[i, j]).max()
    yield at_most("interference against truth", off, 1e-6, unit="cosine")
    mean = D.mean(axis=0)
    centred = (D - mean) @ (D - mean).T
    centred /= np.sqrt(np.outer(np.diag(centred), np.diag(centred)))
    off = np.abs(found["interference_demeaned"].to_numpy() - centred[i, j]).max()
    yield at_most("interference without the common mode", off, 1e-6, unit="cosine")
    others = (G.sum(axis=1) - 1) / (len(G) - 1)
    off = np.abs(found["row_mean_i"].to_numpy() - others[i]).max()
    yield at_most("mean cosine of a row", off, 1e-6, unit="cosine")
    E = np.linalg.pinv(D).T
    E /= np.linalg.norm(E, axis=1, keepdims=True)
    off = np.abs(found["enc_dec_ij"].to_numpy() - (E @ D.T)[i, j]).max()
    yield at_most("encoder reads decoder", off, 1e-5, unit="cosine", note="the encoder is the dual basis")


def compensation(size: Scale) -> Iterator[Measured]:
    """Slope on centred interference / (alpha kappa) = 1 - lambda, in five worlds."""
    for compensation in LAMBDAS:
        world = readout_world(compensation=compensation, seed=size.seed, n_prompts=2)
        made = study_of(
            world.parts,
            seed=size.seed,
            n_targets=size.of(40, 100),
            sources_per_bin=8,
            doses=(DOSE,),
            n_random=0,
        )
        rows = made.pair_effects()
        fit = within_sources(rows, rows["dose"] * world.truth.kappa[rows["target"]] * rows["interference"])
        note = f"{len(rows['logodds'])} pairs; two-way clustered standard error"
        yield near(
            f"slope at lambda {compensation:g}",
            fit.estimate[0],
            1 - compensation,
            0.02,
            error=float(fit.se[0]),
            unit="logits per logit",
            note=note,
        )
        if compensation <= 0.5:
            seen = linear_response(world)[rows["target"], rows["source"]] * rows["dose"]
            yield at_least(
                f"R2 of linear response at lambda {compensation:g}", _r2(rows["logodds"], seen), 0.99
            )


def within_sources(rows: dict[str, np.ndarray], regressor: np.ndarray) -> regress.Regression:
    """Log-odds on one regressor with a fixed effect of every source, two-way clustered."""
    columns = np.column_stack([rows["logodds"], regressor])
    y, x = regress.within(columns, rows["source"]).T
    clusters = np.column_stack([rows["target"], rows["source"]]).astype(np.int64)
    return regress.clustered_ols(y, x[:, None], clusters, level=0.95)


def linear_response(world: ReadoutWorld) -> np.ndarray:
    """[target, source]: g_j . d_i, mean over confirm prompts, from the model's own gradient."""
    truth, total = world.truth, 0.0
    prompts = world.prompts.filter(pc.equal(world.prompts["split"], "confirm")).to_pylist()
    for prompt in prompts:
        tokens = torch.tensor([prompt["token_ids"]])
        p = world.model.logits(tokens, last_only=True)[0, -1].softmax(-1)
        inside = torch.zeros(len(truth.tokens), len(p), dtype=torch.bool)
        inside[torch.arange(len(truth.tokens))[:, None], torch.as_tensor(truth.tokens)] = True
        w = (inside * p).sum(-1, keepdim=True)
        cotangent = torch.where(inside, p / w, -p / (1 - w))
        rows = tokens.repeat(len(cotangent), 1)
        g = world.model.vjp(rows, SITE, cotangent)[:, -1].numpy()
        total = total + g @ truth.directions.T
    return np.asarray(total) / len(prompts)


def _truth(world: ReadoutWorld, rows: dict[str, np.ndarray]) -> np.ndarray:
    result = np.empty(len(rows["dose"]))
    for dose in np.unique(rows["dose"]):
        here = rows["dose"] == dose
        effect = world.truth.odd_effect(world.base_logits(), float(dose))
        result[here] = effect[rows["target"][here], rows["source"][here]]
    return result


def _unlike(world: ReadoutWorld) -> np.ndarray:
    E = next(iter(world.features.embeddings.values())).astype(np.float64)
    return (E @ E.T) / np.outer(np.linalg.norm(E, axis=1), np.linalg.norm(E, axis=1))


def _r2(seen: np.ndarray, predicted: np.ndarray) -> float:
    return float(1 - ((seen - predicted) ** 2).sum() / ((seen - seen.mean()) ** 2).sum())
