"""GT3, the null: trials whose effects are nothing but noise of targets, sources, pairs and prompts.

No model runs. The tables PLAN and TRIALS are what a study of a model without interference would leave: every
target has its own level and its own slope on interference, the slopes having mean zero over targets, every
source its own level. Rows that share a target or a source are therefore alike, which is what makes a regression
on rows, or on pairs as if they were independent, reject a true null far too often (validity document,
section 2.4). Noise of a prompt is drawn anew for every dose, so a choice of dose by its outcome pays.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from polysem.seeds import rng_for
from polysem.store.tables import PLAN, TRIALS
from polysem.worlds.linear import SITE

LABEL = "noise"
BASE = -4.0
"""log-odds before the edit"""


@dataclass(frozen=True)
class NoiseWorld:
    """A study of nothing."""

    plan: pa.Table
    trials: pa.Table


def noise_world(
    *,
    n_targets: int = 40,
    n_sources: int = 40,
    sources_per_target: int = 6,
    n_prompts: int = 6,
    doses: tuple[float, ...] = (0.1,),
    target_sd: float = 0.6,
    source_sd: float = 0.6,
    slope_sd: float = 1.0,
    pair_sd: float = 0.4,
    row_sd: float = 1.0,
    mean: float = 0.0,
    slope: float = 0.0,
    true_share: float = 0.0,
    true_effect: float = 0.0,
    common: float = 0.6,
    seed: int = 0,
) -> NoiseWorld:
    """The tables.

    Args:
        n_targets: targets.
        n_sources: sources that all targets draw from.
        sources_per_target: pairs of each target.
        n_prompts: half of each split.
        doses: absolute; KL grows with the square and stays coherent.
        target_sd, source_sd: of the levels of targets and sources, nats.
        slope_sd: of targets' own slopes on interference, nats per cosine.
        pair_sd, row_sd: of a pair, and of one prompt at one dose, nats.
        mean: a true mean effect, nats.
        slope: a true slope on interference, nats per cosine.
        true_share, true_effect: the first pairs have an effect of their own: how many of all, and nats.
        common: scale of the common mode of the cosines.
        seed: of everything.
    """
    rng = rng_for(seed, "noise world")
    cosines = _cosines(n_targets, n_sources, common, rng)
    target = np.repeat(np.arange(n_targets), sources_per_target)
    source = np.concatenate([rng.permutation(n_sources)[:sources_per_target] for _ in range(n_targets)])
    cosine = cosines[target, source]
    effect = mean + target_sd * rng.standard_normal(n_targets)[target]
    effect = effect + source_sd * rng.standard_normal(n_sources)[source]
    effect = effect + slope_sd * rng.standard_normal(n_targets)[target] * (cosine - cosine.mean())
    effect = effect + pair_sd * rng.standard_normal(len(target)) + slope * (cosine - cosine.mean())
    effect[: round(true_share * len(target))] += true_effect
    shape = (len(target), n_prompts, len(doses))
    odd = effect[:, None, None] + row_sd * rng.standard_normal(shape)
    return _tables(target, n_targets + source, cosine, odd, doses)


def _cosines(n_targets: int, n_sources: int, common: float, rng: np.random.Generator) -> np.ndarray:
    """Positive cosines with a common mode, below the duplicate threshold."""
    rows = rng.standard_normal((n_targets + n_sources, 32))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.column_stack([rows, np.abs(rng.normal(0, common, len(rows)))])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.abs(rows[:n_targets] @ rows[n_targets:].T)


def _tables(
    target: np.ndarray,
    source: np.ndarray,
    cosine: np.ndarray,
    odd: Float[np.ndarray, "pairs prompts doses"],
    doses: tuple[float, ...],
) -> NoiseWorld:
    """PLAN and TRIALS of both signs: the change in log-odds at +-dose is +-odd."""
    pair, prompt, dose, sign = (axis.ravel() for axis in np.indices((*odd.shape, 2)))
    signs = np.array([1.0, -1.0])[sign]
    signed = np.array(doses)[dose] * signs
    change = odd[pair, prompt, dose] * signs
    n = len(pair)
    ids = [f"{k:016x}" for k in range(n)]
    text = {"sae": LABEL, "site": str(SITE), "locus": "feature", "relation": "pair", "token_set": "in"}
    text |= {"dose_unit": "absolute", "positions": "last"}
    plan = {name: pa.repeat(pa.scalar(value), n) for name, value in text.items()}
    plan |= {
        "trial_id": pa.array(ids),
        "target": pa.array(target[pair], pa.int32()),
        "source": pa.array(source[pair], pa.int32()),
        "draw": pa.repeat(pa.scalar(0, pa.int32()), n),
        "recipe": pa.array([f'{{"feature":{s},"kind":"decoder"}}' for s in source[pair]]),
        "interference_bin": pa.array(np.minimum(4, (10 * cosine[pair]).astype(np.int8)), pa.int8()),
        "interference": pa.array(cosine[pair]),
        "similarity": pa.repeat(pa.scalar(0.1), n),
        "prompt_id": pa.array([f"prompt {p}" for p in prompt]),
        "dose": pa.array(signed),
        "split": pa.array(np.where(prompt % 2, "select", "confirm").tolist()),
        "block": pa.array([f"{LABEL}/{t}" for t in target[pair]]),
        "batch": pa.array(prompt, pa.int32()),
    }
    mass = 1 / (1 + np.exp(-(BASE + change)))
    base = np.full(n, 1 / (1 + np.exp(-BASE)))
    trials = {
        "trial_id": pa.array(ids),
        "status": pa.repeat(pa.scalar("ok"), n),
        "reason": pa.nulls(n, pa.string()),
        "cosine_base": pa.array(0.2 + 0 * change),
        "cosine_edit": pa.array(0.2 + 0.01 * change),
        "mass_base": pa.array(base),
        "mass_edit": pa.array(mass),
        "logodds_base": pa.array(BASE + 0 * change),
        "logodds_edit": pa.array(BASE + change),
        "kl": pa.array(signed**2 / 2),
        "rho": pa.nulls(n, pa.float64()),
        "top1_kept": pa.repeat(pa.scalar(True), n),
        "alignment": pa.array(cosine[pair]),
        "dose_absolute": pa.array(signed),
        "resid_norm": pa.repeat(pa.scalar(1.0), n),
        "dtype": pa.repeat(pa.scalar("float64"), n),
    }
    return NoiseWorld(
        PLAN.conform(pa.table({c.name: plan[c.name] for c in PLAN.columns})),
        TRIALS.conform(pa.table({c.name: trials[c.name] for c in TRIALS.columns})),
    )
