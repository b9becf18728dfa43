"""The directions of controls: what else could have moved the target by as much.

- `self`: the target's own direction. What full alignment does.
- `random_feature`: another decoder row of the same SAE, matched on density decile and decoder norm, nearly
  orthogonal to the target. What any feature does.
- `random_direction`: v ~ N(0, Sigma), Sigma the covariance of the site's activations. What any direction
  that the model uses does.
- `isotropic`: a uniform random direction, the paper's only control. Mostly directions that the model never uses.
- `cosine_matched`: a random direction with the source's cosine to the target and its share of the shared mean direction;
  only what is the source's own is replaced. Draws come in pairs of opposite sign. What closeness alone does: to
  first order the mean effect is that of G_ij d_j + c_i.
- `high_attribution`: another feature that promotes the target's tokens through the unembedding, at |cosine| below
  0.05. What the direct path does without closeness.
- `swapped_target`: the pair's own push, read on the tokens of another target. What any push does to any token set.

Both signs of every push are run, so the sign flip is in every effect.

Sigma is that of the activations on the plan's own prompts, every position but the first (which in many
models is an attention sink whose norm would be most of the covariance). v = X' g / sqrt(n - 1), with X the
centred activations and g standard normal from the recipe's seed, has exactly that covariance without a d x
d matrix or its root; prompts and model are stored inputs, so every shard draws the same v. The draw lies in
the span of the n observed activations.
"""

import numpy as np
import torch
from jaxtyping import Float

from polysem.act.base import Recipe, Refused, SiteContext, decoder_row, length, unit
from polysem.linear.decompose import split_push
from polysem.seeds import rng_for

_OTHERS = 20
"""features that are tried for the part of a cosine-matched direction that is another's own"""


def covariance_direction(recipe: Recipe, context: SiteContext) -> Float[np.ndarray, " d_in"]:
    """One unit draw with the covariance of the site.

    Raises:
        Refused: `no_covariance` of fewer than two activations, `zero_direction` if they do not vary.
    """
    seen = context.activations()
    if len(seen) < 2:
        raise Refused("no_covariance")
    if not np.isfinite(seen).all():
        raise Refused("non_finite_direction")
    rng = rng_for(
        recipe.integer("seed"), "control", context.label, recipe.integer("target"), recipe.integer("draw")
    )
    centred = seen - seen.mean(axis=0)
    return unit(rng.standard_normal(len(seen)) @ centred)


def isotropic_direction(recipe: Recipe, context: SiteContext) -> Float[np.ndarray, " d_in"]:
    """One uniform draw from the unit sphere."""
    rng = rng_for(
        recipe.integer("seed"),
        "control",
        "isotropic",
        context.label,
        recipe.integer("target"),
        recipe.integer("draw"),
    )
    return unit(rng.standard_normal(context.sae.d_out))


def cosine_matched_direction(recipe: Recipe, context: SiteContext) -> Float[np.ndarray, " d_in"]:
    """G_ij d_j + c_i + s |rho_i| u: the source's shared and common part, and its own part turned to that of another
    feature u, orthogonal to the target and to the shared mean direction. Draws 2k and 2k + 1 share u, with s = 1 and -1.

    Raises:
        Refused: if source or target has no direction, or no feature is left that differs.
    """
    target, source = (recipe.integer(name) for name in ("target", "source"))
    d_j, d_i = (unit(decoder_row(context, feature)) for feature in (target, source))
    basis = context.mean_direction
    parts = split_push(torch.as_tensor(d_i)[None], torch.as_tensor(d_j)[None], basis)
    kept, own = (parts.shared + parts.common)[0].numpy(), float(length(parts.own[0]))
    draw = recipe.integer("draw")
    rng = rng_for(
        recipe.integer("seed"), "control", "cosine_matched", context.label, target, source, draw // 2
    )
    forbidden, _ = np.linalg.qr(np.column_stack([d_j, basis.numpy().T]))
    for other in rng.permutation(context.sae.d_sae)[:_OTHERS].tolist():
        row = decoder_row(context, other)
        across = row - forbidden @ (forbidden.T @ row)
        if other not in (target, source) and np.linalg.norm(across) > 1e-6 * max(np.linalg.norm(row), 1e-300):
            return unit(kept + (1 - 2 * (draw % 2)) * own * unit(across))
    raise Refused("control_unmatched")


def at_cosine_direction(recipe: Recipe, context: SiteContext) -> Float[np.ndarray, " d_in"]:
    """c d_j + s sqrt(1 - c^2) u: at the cosine that the recipe names, with u the part of another feature's row that is
    orthogonal to the target. Draws 2k and 2k + 1 share u, with s = 1 and -1.

    Raises:
        Refused: if the target has no direction, or no feature is left that differs.
    """
    target, cosine, draw = recipe.integer("target"), recipe.number("cosine"), recipe.integer("draw")
    d_j = unit(decoder_row(context, target))
    rng = rng_for(
        recipe.integer("seed"), "control", "at_cosine", context.label, target, repr(cosine), draw // 2
    )
    for other in rng.permutation(context.sae.d_sae)[:_OTHERS].tolist():
        row = decoder_row(context, other)
        across = row - (row @ d_j) * d_j
        if other != target and np.linalg.norm(across) > 1e-6 * max(np.linalg.norm(row), 1e-300):
            return unit(cosine * d_j + (1 - 2 * (draw % 2)) * np.sqrt(max(0.0, 1 - cosine**2)) * unit(across))
    raise Refused("control_unmatched")


def frozen_direction(recipe: Recipe, context: SiteContext) -> Float[np.ndarray, " d_in"]:
    """The row of the frozen decoder that stands in for the recipe's feature."""
    feature, seed = recipe.integer("feature"), recipe.integer("seed")
    return frozen_row(feature, context.sae.d_out, seed=seed, label=context.label)


def frozen_target(recipe: Recipe, target: int, context: SiteContext) -> Float[np.ndarray, " d_in"]:
    """The row of the frozen decoder that stands in for the target's own."""
    return frozen_row(target, context.sae.d_out, seed=recipe.integer("seed"), label=context.label)


def frozen_row(feature: int, d_in: int, *, seed: int, label: str) -> Float[np.ndarray, " d_in"]:
    """One row, of norm 1, of the frozen decoder of an SAE: a function of seed, SAE and feature."""
    return unit(rng_for(seed, "frozen", label, feature).standard_normal(d_in))
