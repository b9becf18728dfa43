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

from polysem.geometry.unit import unit_rows
from polysem.seeds import rng_for
from polysem.store.tables import PLAN, TRIALS
from polysem.worlds.linear import SITE
from polysem.worlds.tables import filled

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
    negatives: bool = False,
    sign_effect: float = 0.0,
    seed: int = 0,
) -> NoiseWorld:
    """The tables.

    Args:
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
        negatives: as many pairs again whose cosine is negative, of other sources, for the question of signs.
        sign_effect: nats that a pair moves the way of its cosine's sign.
    """
    rng = rng_for(seed, "noise world")
    cosines = _cosines(n_targets, n_sources, common, rng)
    each = sources_per_target * (2 if negatives else 1)
    target = np.repeat(np.arange(n_targets), each)
    source = np.concatenate([rng.permutation(n_sources)[:each] for _ in range(n_targets)])
    cosine = cosines[target, source]
    if negatives:
        cosine[np.arange(len(cosine)) % 2 == 1] *= -1
    effect = mean + target_sd * rng.standard_normal(n_targets)[target]
    effect = effect + source_sd * rng.standard_normal(n_sources)[source]
    effect = effect + slope_sd * rng.standard_normal(n_targets)[target] * (cosine - cosine.mean())
    effect = effect + pair_sd * rng.standard_normal(len(target)) + slope * (cosine - cosine.mean())
    effect += sign_effect * np.sign(cosine)
    effect[: round(true_share * len(target))] += true_effect
    shape = (len(target), n_prompts, len(doses))
    odd = effect[:, None, None] + row_sd * rng.standard_normal(shape)
    return _tables(target, n_targets + source, cosine, odd, doses)


def _cosines(n_targets: int, n_sources: int, common: float, rng: np.random.Generator) -> np.ndarray:
    """Positive cosines with a common mode, below the duplicate threshold."""
    rows = rng.standard_normal((n_targets + n_sources, 32))
    rows = unit_rows(np.column_stack([unit_rows(rows), np.abs(rng.normal(0, common, len(rows)))]))
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
    ids = [f"{k:016x}" for k in range(len(pair))]
    plan = filled(
        PLAN,
        trial_id=ids,
        sae=LABEL,
        site=str(SITE),
        locus="feature",
        relation=np.where(cosine[pair] < 0, "negative_pair", "pair").tolist(),
        token_set="in",
        dose_unit="absolute",
        positions="last",
        target=target[pair],
        source=source[pair],
        source_sae=LABEL,
        draw=0,
        recipe=[f'{{"feature":{s},"kind":"decoder"}}' for s in source[pair]],
        interference_bin=np.minimum(4, (10 * np.abs(cosine[pair])).astype(np.int8)),
        interference=cosine[pair],
        similarity=0.1,
        prompt_id=[f"prompt {p}" for p in prompt],
        dose=signed,
        split=np.where(prompt % 2, "select", "confirm").tolist(),
        block=[f"{LABEL}/{t}" for t in target[pair]],
        batch=prompt,
    )
    trials = filled(
        TRIALS,
        trial_id=ids,
        status="ok",
        reason=None,
        cosine_base=0.2,
        cosine_edit=0.2 + 0.01 * change,
        mass_base=1 / (1 + np.exp(-BASE)),
        mass_edit=1 / (1 + np.exp(-(BASE + change))),
        logodds_base=BASE,
        logodds_edit=BASE + change,
        beyond_base=BASE,
        beyond_edit=BASE + change,
        kl=signed**2 / 2,
        rho=None,
        alignment=cosine[pair],
        dose_absolute=signed,
        resid_norm=1.0,
        dtype="float64",
    )
    return NoiseWorld(plan, trials)
