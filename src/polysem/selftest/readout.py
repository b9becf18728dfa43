"""GT3: the planted readout LM through the whole pipeline.

Map, plan, trials and effects are made as for a real model; what they say is compared with what was planted.
Sources serve many targets, so a fixed effect of every source (the centring of section 2.1: it removes the part
that the softmax takes away) leaves the slope 1 - lambda.
"""

from collections.abc import Iterator

import numpy as np

from polysem.geometry.unit import unit_rows
from polysem.selftest.lines import Measured, at_least, at_most, exactly, near
from polysem.selftest.runner import RunSize
from polysem.selftest.studies import WorldStudy, study_of
from polysem.stats import regress
from polysem.worlds.readout import ReadoutWorld, readout_world

DOSE = 0.05
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0)
NORMAL_95 = 1.96
ROUNDING = 2e-6
"""nats: decoder rows are stored in float32"""


def pipeline(size: RunSize) -> Iterator[Measured]:
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
    estimate = made.effect("slope_interference")
    strong = rows["dose"] == max(rows["dose"])
    y, G, S, target = (rows[n][strong] for n in ("logodds", "interference", "similarity", "target"))
    dummies = (target[:, None] == np.unique(target)).astype(np.float64)
    plain = np.linalg.lstsq(np.column_stack([G, S, dummies]), y, rcond=None)[0][0]
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
    E = unit_rows(np.linalg.pinv(D).T)
    off = np.abs(found["enc_dec_ij"].to_numpy() - (E @ D.T)[i, j]).max()
    yield at_most("encoder reads decoder", off, 1e-5, unit="cosine", note="the encoder is the dual basis")


def compensation(size: RunSize) -> Iterator[Measured]:
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


def response(size: RunSize) -> Iterator[Measured]:
    """What the gradient says of the same worlds, through the tables of a study: linear response, the compensation
    index with its interval, and of what parts an effect is made."""
    for compensation in LAMBDAS if size.full else LAMBDAS[::2]:
        world = readout_world(compensation=compensation, seed=size.seed, n_prompts=2)
        made = study_of(
            world.parts,
            seed=size.seed,
            response=True,
            n_targets=size.of(16, 60),
            sources_per_bin=1,
            doses=(DOSE, 0.25),
            n_random=0,
        )
        whole = made.response["compensation"].to_pylist()
        index = next(row for row in whole if (row["band_lo"], row["band_hi"]) == (0.0, 1.0))
        yield near(
            f"compensation index at lambda {compensation:g}",
            index["estimate"],
            compensation,
            0.03,
            error=(index["hi"] - index["lo"]) / (2 * NORMAL_95),
            note=f"{index['n_targets']} targets, {index['n_sources']} sources",
        )
        if compensation <= 0.5:
            for dose in (DOSE, 0.25):
                seen, linear = _linear(made, dose)
                name = f"R2 of linear response at lambda {compensation:g}, dose {dose:g}"
                yield at_least(name, _r2(seen, linear), 0.99, note=f"{len(seen)} pairs")
        if compensation == 0:
            yield from _parts(world, made)


def _linear(made: WorldStudy, dose: float) -> tuple[np.ndarray, np.ndarray]:
    """(measured, predicted) effects of pairs at a dose, from the tables of the study."""
    rows = made.response["response"].to_pylist()
    linear = {
        (r["target"], r["source"]): r["linear"] for r in rows if r["relation"] == "pair" and r["dose"] == dose
    }
    seen = made.pair_effects()
    here = np.flatnonzero(seen["dose"] == dose)
    keys = [(int(seen["target"][k]), int(seen["source"][k])) for k in here]
    return seen["logodds"][here], np.array([linear[key] for key in keys])


def _parts(world: ReadoutWorld, made: WorldStudy) -> Iterator[Measured]:
    """The decomposition where all its parts are known: nothing follows the site, the encoder is the dual basis."""
    rows = made.response["decomposition"].to_pylist()
    target, source = (np.array([row[name] for row in rows]) for name in ("target", "source"))
    total, shared, direct, mediated = (
        np.array([row[name] for row in rows]) for name in ("total", "shared", "direct", "mediated")
    )
    D, scale = world.truth.directions, np.abs(total).max()
    along = world.truth.gram[target, source, None] * D[target]
    prompts = sorted(
        (row["prompt_id"], row["token_ids"][-1])
        for row in world.prompts.to_pylist()
        if row["split"] == "confirm"
    )
    last = [token for _, token in prompts[: rows[0]["n_prompts"]]]
    logits = (world.model.W_E[last] @ world.model.W_U.T).double().numpy()
    expected = world.truth.odd_effect_of(logits, rows[0]["dose"] * along, target)
    note = f"{len(rows)} pairs, effects to {scale:.2g} nats"
    unit = "of the largest effect"
    off = np.abs(shared - expected).max() / scale
    yield at_most("shared part against the softmax of G d_j", off, 0.01, unit=unit, note=note)
    yield at_most("direct less total effect", np.abs(direct - total).max() / scale, 1e-5, unit=unit)
    off = np.abs(mediated).max() / scale
    yield at_most(
        "effect through the target's latent", off, 1e-5, unit=unit, note="the encoder is blind to others"
    )


def within_sources(rows: dict[str, np.ndarray], regressor: np.ndarray) -> regress.Regression:
    """Log-odds on one regressor with a fixed effect of every source, two-way clustered."""
    columns = np.column_stack([rows["logodds"], regressor])
    y, x = regress.within(columns, rows["source"]).T
    clusters = np.column_stack([rows["target"], rows["source"]]).astype(np.int64)
    return regress.clustered_ols(y, x[:, None], clusters, level=0.95)


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
