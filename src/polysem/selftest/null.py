"""GT3, the null: how often estimates find what is not there, and whether the dose is chosen blindly."""

import math
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import EffectsConfig
from polysem.selftest.lines import Measured, at_least, between, exactly, near, rate
from polysem.selftest.runner import Scale
from polysem.stats.effects import estimate
from polysem.stats.rows import parse_group
from polysem.worlds.noise import NoiseWorld, noise_world

DOSES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
GRID_SD, GRID_SCALES, GRID_TARGETS = 0.02, (0.5, 1, 2, 4, 6, 8, 10, 12, 14, 15, 16, 17, 18, 19, 19.5, 20), 400
"""validity document, A1: sd of the log effect per unit of scale, and a grid of 32 signed scales up to 20"""


def dose(size: Scale) -> Iterator[Measured]:
    """The headline dose rests on select prompts alone, so choosing it earns nothing."""
    world = noise_world(doses=DOSES, seed=size.seed)
    scrambled = _with_other_confirm(world)
    same = _headline(world)["dose"] == _headline(NoiseWorld(world.plan, scrambled))["dose"]
    yield exactly("headline dose after other outcomes on confirm prompts", float(same), 1, unit="unchanged")
    n = size.of(24, 400)
    quiet = {"target_sd": 0.2, "source_sd": 0.2, "slope_sd": 0.0, "pair_sd": 0.1, "n_prompts": 4}
    means = np.array(
        [
            _headline(noise_world(doses=DOSES, n_targets=12, seed=1000 * size.seed + k, **quiet))["estimate"]
            for k in range(n)
        ]
    )
    error = float(means.std(ddof=1) / math.sqrt(n))
    yield near("mean effect at the headline dose", means.mean(), 0.0, 3 * error, error=error, unit="nats")
    yield at_least(
        "best of 32 signed scales, same prompts", _best_of_grid(size.seed), 0.4, unit="relative change"
    )


def _best_of_grid(seed: int) -> float:
    """What the best of a grid, chosen on the prompts it is reported on, makes of a direction without effect."""
    from polysem.seeds import rng_for

    per_unit = GRID_SD * rng_for(seed, "grid").standard_normal((GRID_TARGETS, len(GRID_SCALES)))
    scales = np.array(GRID_SCALES)
    change = np.exp(np.concatenate([per_unit * scales, -per_unit * scales], axis=1)) - 1
    return float(change.max(axis=1).mean())


def size(scale: Scale) -> Iterator[Measured]:
    """Share of true nulls that are rejected, and of intervals that cover, through the tables."""
    n = scale.of(60, 1000)
    rejected = covered = 0
    for k in range(n):
        row = _slope(noise_world(n_prompts=4, seed=10_000 * scale.seed + k))
        rejected += row["p"] < 0.05
        covered += row["lo"] <= 0 <= row["hi"]
    yield rate("rejections of a true null at 5 %", rejected, n, nominal=0.05, at=0.0135)
    yield rate("coverage of 95 % intervals", covered, n, nominal=0.95, at=0.0135)
    # One row per pair: the interval must not shrink when every prompt is there four times.
    few, many = (_slope(_repeated(noise_world(n_prompts=4, seed=scale.seed), times)) for times in (1, 4))
    ratio = (many["hi"] - many["lo"]) / (few["hi"] - few["lo"])
    yield between("width of the interval with every prompt four times", ratio, 0.999, 1.001, unit="of once")


def _repeated(world: NoiseWorld, times: int) -> NoiseWorld:
    """The world with every prompt `times` times: more rows, no more information."""
    plans, trials = [], []
    for k in range(times):
        for tables, table in ((plans, world.plan), (trials, world.trials)):
            ids = pa.array([f"{k:02x}{i[2:]}" for i in table["trial_id"].to_pylist()])
            table = table.set_column(table.column_names.index("trial_id"), "trial_id", ids)
            if "prompt_id" in table.column_names:
                prompts = pa.array([f"{p} {k}" for p in table["prompt_id"].to_pylist()])
                table = table.set_column(table.column_names.index("prompt_id"), "prompt_id", prompts)
            tables.append(table)
    return NoiseWorld(pa.concat_tables(plans), pa.concat_tables(trials))


def _slope(world: NoiseWorld) -> dict:
    return _row(world, "slope_interference")


def _headline(world: NoiseWorld) -> dict:
    return _row(world, "mean_effect")


def _row(world: NoiseWorld, contrast: str) -> dict:
    """The pooled log-odds row of a contrast, and its dose."""
    found = estimate(world.plan, world.trials, config=EffectsConfig(), seed=0).effects
    for row in found.filter(pc.equal(found["contrast"], contrast)).to_pylist():
        parts = parse_group(row["group"])
        if parts["outcome"] == "logodds" and parts["sae"] == "*" and "bin" not in parts:
            return row | {"dose": float(parts["dose"])}
    raise AssertionError(f"the effects table has no row {contrast}")


def _with_other_confirm(world: NoiseWorld) -> pa.Table:
    """The trials with other outcomes on confirm prompts: larger at the smallest dose."""
    confirm = pc.equal(world.plan["split"], "confirm")
    small = pc.less(pc.abs(world.plan["dose"]), DOSES[0] + 1e-9)
    moved = pc.add(world.trials["logodds_base"], pc.sign(world.plan["dose"]))
    moved = pc.add(moved, pc.multiply(pc.sign(world.plan["dose"]), 4.0))
    edited = pc.if_else(pc.and_(confirm, small), moved, world.trials["logodds_edit"])
    kl = pc.if_else(
        confirm, pc.multiply(pc.subtract(0.4, pc.abs(world.plan["dose"])), 1.0), world.trials["kl"]
    )
    table = world.trials
    for name, values in (("logodds_edit", edited), ("kl", kl)):
        table = table.set_column(table.column_names.index(name), name, values)
    return table
