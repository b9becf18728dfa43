"""Controls: what else could have moved the target by as much.

- `self`: the target's own direction. What full alignment does.
- `random_feature`: another decoder row of the same SAE, matched on density decile and decoder norm, nearly
  orthogonal to the target. What any feature does.
- `random_direction`: v ~ N(0, Sigma), Sigma the covariance of the site's activations. What any direction
  that the model uses does.
- `isotropic`: a uniform random direction, the paper's only control. Mostly directions that the model never uses.
- `cosine_matched`: a random direction with the source's cosine to the target and its share of the common mode;
  only what is the source's own is replaced. Draws come in pairs of opposite sign. What closeness alone does: to
  first order the mean effect is that of G_ij d_j + c_i.
- `high_attribution`: another feature that promotes the target's tokens through the unembedding, at |cosine| below
  MAX_ALIGNMENT. What the direct path does without closeness.
- `swapped_target`: the pair's own push, read on the tokens of another target. What any push does to any token set.

Both signs of every push are run, so the sign flip is in every effect.

Sigma is that of the activations on the plan's own prompts, every position but the first (which in many
models is an attention sink whose norm would be most of the covariance). v = X' g / sqrt(n - 1), with X the
centred activations and g standard normal from the recipe's seed, has exactly that covariance without a d x
d matrix or its root; prompts and model are stored inputs, so every shard draws the same v. The draw lies in
the span of the n observed activations.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from polysem.interventions.base import Bench, Recipe, Refused
from polysem.interventions.feature import decoder_row, unit
from polysem.linear.decompose import split_push
from polysem.seeds import rng_for

MAX_ALIGNMENT = 0.05
"""|cosine| of a matched feature with the target: about one standard deviation of chance in 512 dimensions"""
N_DECILES = 10
POOL = 20
"""a matched feature is drawn from this many of its density decile that are nearest in decoder norm"""


def covariance_direction(recipe: Recipe, bench: Bench) -> Float[np.ndarray, " d_in"]:
    """One unit draw with the covariance of the site.

    Raises:
        Refused: `no_covariance` of fewer than two activations, `zero_direction` if they do not vary.
    """
    seen = bench.activations()
    if len(seen) < 2:
        raise Refused("no_covariance")
    if not np.isfinite(seen).all():
        raise Refused("non_finite_direction")
    rng = rng_for(
        recipe.integer("seed"), "control", bench.label, recipe.integer("target"), recipe.integer("draw")
    )
    centred = seen - seen.mean(axis=0)
    return unit(rng.standard_normal(len(seen)) @ centred)


def isotropic_direction(recipe: Recipe, bench: Bench) -> Float[np.ndarray, " d_in"]:
    """One uniform draw from the unit sphere."""
    rng = rng_for(
        recipe.integer("seed"),
        "control",
        "isotropic",
        bench.label,
        recipe.integer("target"),
        recipe.integer("draw"),
    )
    return unit(rng.standard_normal(bench.sae.d_in))


def cosine_matched_direction(recipe: Recipe, bench: Bench) -> Float[np.ndarray, " d_in"]:
    """G_ij d_j + c_i + s |rho_i| u: the source's shared and common part, and its own part turned to that of another
    feature u, orthogonal to the target and to the common mode. Draws 2k and 2k + 1 share u, with s = 1 and -1.

    Raises:
        Refused: if source or target has no direction, or no feature is left that differs.
    """
    target, source = (recipe.integer(name) for name in ("target", "source"))
    d_j, d_i = (unit(decoder_row(bench, feature)) for feature in (target, source))
    basis = bench.common_mode
    parts = split_push(torch.from_numpy(d_i)[None], torch.from_numpy(d_j)[None], basis)
    kept, own = (parts.shared + parts.common)[0].numpy(), float(parts.own[0].norm())
    draw = recipe.integer("draw")
    rng = rng_for(recipe.integer("seed"), "control", "cosine_matched", bench.label, target, source, draw // 2)
    forbidden, _ = np.linalg.qr(np.column_stack([d_j, basis.numpy().T]))
    for other in rng.permutation(bench.sae.d_sae)[:POOL].tolist():
        row = decoder_row(bench, other)
        across = row - forbidden @ (forbidden.T @ row)
        if other not in (target, source) and np.linalg.norm(across) > 1e-6 * max(np.linalg.norm(row), 1e-300):
            return unit(kept + (1 - 2 * (draw % 2)) * own * unit(across))
    raise Refused("control_unmatched")


def unmatched_control(recipe: Recipe, bench: Bench) -> Float[np.ndarray, " d_in"]:
    """A control that the plan could not match: planned, and refused, so that it is counted."""
    raise Refused("control_unmatched")


def matched_features(
    target: int,
    *,
    alignment: Float[np.ndarray, " d_sae"],
    norms: Float[np.ndarray, " d_sae"],
    deciles: Int[np.ndarray, " d_sae"],
    usable: Bool[np.ndarray, " d_sae"],
    rngs: Sequence[np.random.Generator],
) -> list[int | None]:
    """One matched feature per generator, none twice; None where no candidate is left.

    Candidates share the target's density decile and have |alignment| < MAX_ALIGNMENT; each draw is uniform
    over the POOL of them that are nearest in log decoder norm.

    Args:
        alignment: cosine of every decoder row with the target's.
        norms: norms of the decoder rows.
        deciles: density decile of every feature, as `density_deciles`.
        usable: features that may be drawn at all (neither dead nor dense).
    """
    fits = usable & (np.abs(alignment) < MAX_ALIGNMENT) & (deciles == deciles[target]) & (norms > 0)
    fits[target] = False
    candidates = np.flatnonzero(fits)
    if norms[target] > 0:
        distance = np.abs(np.log(norms[candidates]) - np.log(norms[target]))
        candidates = candidates[np.lexsort((candidates, distance))]
    chosen: list[int | None] = []
    for rng in rngs:
        pool = [int(c) for c in candidates if int(c) not in chosen][:POOL]
        chosen.append(pool[int(rng.integers(len(pool)))] if pool else None)
    return chosen


def density_deciles(density: Float[np.ndarray, " d_sae"]) -> Int[np.ndarray, " d_sae"]:
    """Decile (0 to 9) of each feature among those with a known density above zero; -1 where unknown or zero.

    Equal densities share a decile.
    """
    result = np.full(len(density), -1, dtype=np.int64)
    alive = np.isfinite(density) & (density > 0)
    if alive.any():
        edges = np.quantile(density[alive], np.linspace(0, 1, N_DECILES + 1)[1:-1])
        result[alive] = np.searchsorted(edges, density[alive], side="right")
    return result
