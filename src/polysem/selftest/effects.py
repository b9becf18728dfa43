"""GT3, what an effect is of: geometry or identity, the direct path or the model behind it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from polysem.geometry.unit import unit_rows
from polysem.linear.direct import promoted
from polysem.seeds import rng_for
from polysem.selftest.lines import Measured, at_least, at_most, near
from polysem.selftest.runner import RunSize
from polysem.selftest.studies import WorldStudy, study_of
from polysem.stats.effects import estimate
from polysem.stats.rows import parse_group
from polysem.types import Site
from polysem.worlds.readout import readout_world
from polysem.worlds.tables import FeatureRow, WorldTables, feature_table, plain_sae, random_prompts
from polysem.worlds.tiny import tiny_model

PLANTED = 0.3
"""nats"""
WORLDS = {"geometry": {"pair": PLANTED, "cosine_matched": PLANTED}, "identity": {"pair": PLANTED}}
"""what each relation does: where only the angle counts, directions at a pair's cosine do what the pair does; where only
the feature counts, they do nothing"""
N_FEATURES, WIDTH, VOCAB, TOP = 128, 32, 256, 8


def apart(size: RunSize) -> Iterator[Measured]:
    """The geometry effect and the identity effect, each present without the other, on the plan of a real study."""
    world = readout_world(seed=size.seed, n_prompts=2)
    made = study_of(
        world.parts,
        seed=size.seed,
        n_targets=size.of(24, 60),
        sources_per_bin=2,
        doses=(0.05,),
        controls=("random_feature", "cosine_matched"),
    )
    for name, planted in WORLDS.items():
        told = made._replace(effects=_told(made, planted, seed=size.seed))
        for what, contrast in (("geometry", "geometry_effect"), ("identity", "pair_minus_cosine_matched")):
            row = told.effect(contrast, bin="all")
            error = (row["hi"] - row["lo"]) / 4
            expected = PLANTED if what == name else 0.0
            yield near(
                f"{what} effect where there is only {name}",
                row["estimate"],
                expected,
                max(0.1, 3 * error),
                error=error,
                unit="nats",
                note=f"{row['n_pairs']} pairs and controls",
            )


def _told(made: WorldStudy, planted: dict[str, float], *, seed: int):
    """Effects of the same plan where every relation does what is planted, with noise of targets, arms and rows."""
    plan, rng = made.plan.plan, rng_for(seed, "told effects")
    row = {name: k for k, name in enumerate(plan["trial_id"].to_pylist())}
    at = [row[name] for name in made.trials["trial_id"].to_pylist()]
    arms = list(zip(*(plan[c].to_pylist() for c in ("relation", "target", "source", "draw")), strict=True))
    of_arm = {arm: 0.2 * rng.standard_normal() for arm in dict.fromkeys(arms)}
    of_target = {target: 0.3 * rng.standard_normal() for target in dict.fromkeys(plan["target"].to_pylist())}
    dose = plan["dose"].to_numpy()
    change = [
        np.sign(dose[k])
        * (
            planted.get(arms[k][0], 0.0)
            + of_arm[arms[k]]
            + of_target[arms[k][1]]
            + 0.1 * rng.standard_normal()
        )
        for k in at
    ]
    base = made.trials["logodds_base"].to_numpy(zero_copy_only=False)
    trials = made.trials.set_column(
        made.trials.column_names.index("logodds_edit"),
        "logodds_edit",
        pa.array(base + np.array(change), from_pandas=True),
    )
    return estimate(plan, trials, config=made.study.effects, seed=seed)


def dealt(size: RunSize) -> Iterator[Measured]:
    """Decoder rows dealt to features that have nothing to do with the model: cosine predicts what happens to the tokens
    that the rows promote through the unembedding, by linear algebra; beyond the direct path it predicts nothing."""
    n, yes, raw = size.of(8, 200), 0, 0
    for k in range(n):
        made = _dealt_study(10_000 * size.seed + k)
        rows: list[dict[str, Any]] = [r | parse_group(r["group"]) for r in made.effects.effects.to_pylist()]
        found = {r["outcome"]: r for r in rows if r["contrast"] == "slope_interference" and r["sae"] == "*"}
        yes += (found["beyond"]["p_adj"] or 1.0) < 0.05
        raw += (found["logodds"]["p"] or 1.0) < 0.05
    error = float(np.sqrt(0.05 * 0.95 / n))
    yield at_most(
        "'yes' to T-out beyond the direct path, decoder rows dealt anew",
        yes / n,
        0.06 if size.full else 0.06 + 3 * error,
        error=error,
        unit="share of runs",
        note=f"{yes} of {n}",
    )
    yield at_least(
        "the same of plain log-odds", raw / n, 0.25, unit="share of runs", note="what the direct path makes"
    )


def _dealt_study(seed: int) -> WorldStudy:
    model = tiny_model("gpt2", seed=seed, n_layers=3, d_model=WIDTH, vocab=VOCAB)
    rng = rng_for(seed, "dealt decoder")
    rows, site = unit_rows(rng.standard_normal((N_FEATURES, WIDTH))), Site(0, "hook_resid_post")
    sets = [promoted(model.W_U, torch.as_tensor(row), TOP) for row in rows]
    features = feature_table(
        "dealt",
        [FeatureRow(ids, ids, f"feature {k}") for k, ids in enumerate(sets)],
        site=site,
        W_dec=rows,
        embeddings=unit_rows(rng.standard_normal((N_FEATURES, 64))),
    )
    sae = replace(plain_sae(rows, site=site), model_id=model.spec.ref)
    prompts = random_prompts(8, VOCAB, rng)
    return study_of(
        WorldTables(model, {"dealt": sae}, features, prompts),
        seed=seed,
        n_targets=16,
        sources_per_bin=1,
        dose_unit="resid_norm",
        doses=(0.05,),
        token_sets=("out",),
        controls=(),
    )
