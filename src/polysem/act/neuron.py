"""Neurons: a coordinate of the site made stronger or weaker (arXiv 2505.11611, section 3.6).

h += dose * <h, u> u with u a unit vector: for u = e_n this multiplies coordinate n by 1 + dose (dose -1 ablates
it, +1 doubles it). The paper's "neurons" are the coordinates of the residual stream, which are no privileged
basis; the control that says whether they are special is `rotated`: the same operation along a random unit vector
that has the same cosine with the target as the coordinate has.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float

from polysem.act.arms import Arm, ArmsRequest
from polysem.act.base import (
    EditedPrompt,
    Forward,
    Intervention,
    Realise,
    Recipe,
    SiteContext,
    Steer,
    decoder_row,
    unit,
)
from polysem.config import PlanConfig
from polysem.edits import Clamp
from polysem.errors import MismatchError
from polysem.geometry.unit import unit_rows
from polysem.models.base import WhiteBoxModel
from polysem.saes.base import SAE, decoder_rows
from polysem.seeds import random_rotation, rng_for


class Neuron(Intervention):
    """The locus `neuron`. A neuron stands in the plan's column `source` as d_sae + its number."""

    steers = True
    relative = True
    neurons = "coordinate"

    @property
    def kinds(self) -> Mapping[str, Realise]:
        return {"neuron": coordinate, "rotated": rotated_coordinate, "turned": turned_coordinate}

    def prepare(self, steers: Sequence[Steer], prompt: EditedPrompt, context: SiteContext) -> Forward:
        """One `Clamp` with a row per neuron: what it takes away is minus dose times the coordinate's distance from its
        centre (0, or the mean where the recipe says so)."""
        tokens, mask = context.rows(len(steers), prompt)
        along = torch.as_tensor(np.stack([steer.realised for steer in steers]), dtype=context.dtype)
        along = along.to(context.spec.device)
        dose = torch.tensor([steer.dose for steer in steers], dtype=along.dtype, device=along.device)
        nothing = torch.zeros_like(dose)
        centre = torch.tensor([steer.centre for steer in steers], dtype=along.dtype, device=along.device)
        site = self.site(context.sae)
        return Forward(tokens, [Clamp(site, -dose[:, None] * along, along, -dose * centre, nothing, mask)])

    def arms(self, request: ArmsRequest) -> Sequence[Arm]:
        """Coordinates by their share of the target's direction, and rotated ones of the same share. The similarity of
        a coordinate is that of the target with the feature, other than the target, that is most aligned with it."""
        index = request.index
        directions = unit_rows(decoder_rows(index.sae))
        found: list[Arm] = []
        for target, similarity in zip(request.targets, request.similarities, strict=True):
            others = np.where(index.usable[:, None], directions, -np.inf)
            others[target] = -np.inf
            gloss = similarity[others.argmax(axis=0)]

            def known(relation: str, neuron: int, gloss: np.ndarray = gloss) -> float | None:
                return (
                    1.0 if relation == "self" else None if np.isnan(gloss[neuron]) else float(gloss[neuron])
                )

            share = directions[target]
            found += arms_by_share(
                request, target, share, np.ones(len(share), bool), ("neuron", "rotated"), known
            )
        return found

    def doses(self, plan: PlanConfig) -> tuple[tuple[float, ...], str]:
        return (plan.doses, "kl") if plan.dose_unit == "kl" else (plan.factors, "factor")

    def writes(self, model: WhiteBoxModel | None, sae: SAE) -> Float[np.ndarray, "n d_in"]:
        """Each coordinate writes itself."""
        return np.eye(sae.d_out)


NEURON = Neuron()


def arms_by_share(
    request: ArmsRequest,
    target: int,
    share: Float[np.ndarray, " n"],
    real: Bool[np.ndarray, " n"],
    kinds: tuple[str, str],
    similarity: Callable[[str, int], float | None],
) -> list[Arm]:
    """Neurons of one target: the one with the largest share of its direction as `self`, some of every interference bin
    as pairs, each of those with a rotated one.

    Args:
        request: bins, number of sources and seed.
        target: feature.
        share: cosine of what each neuron writes with the target's direction.
        real: neurons that may be a source.
        kinds: recipe kinds of a neuron and of a rotated one; the first also names the draws.
        similarity: (relation, neuron) -> gloss similarity.
    """
    own, bins = int(share.argmax()), request.pairs.bins
    chosen = [("self", own, -1)]
    real = real & (np.arange(len(share)) != own)
    for index, (low, high) in enumerate(pairwise(bins)):
        inside = np.flatnonzero((share >= low) & (share < high) & real)
        rng = rng_for(request.seed, kinds[0], request.index.label, target, index)
        drawn = rng.choice(inside, min(request.plan.sources_per_bin, len(inside)), replace=False)
        chosen += [("pair", n, index) for n in sorted(drawn.tolist())]
    found: list[Arm] = []
    for relation, neuron, index in chosen:
        cosine, source = float(share[neuron]), request.index.sae.d_sae + neuron
        plain = Recipe.of(kinds[0], neuron=neuron).text
        found.append(Arm(relation, target, source, 0, plain, index, cosine, similarity(relation, neuron)))
        if relation == "pair":
            turned = Recipe.of(kinds[1], draw=0, neuron=neuron, seed=request.seed, target=target).text
            arm = Arm("rotated", target, None, neuron, turned, -1, cosine, None)
            found.append(arm._replace(pair_target=target, pair_source=source))
    return found


def unit_vector(recipe: Recipe, *, width: int, where: object) -> Float[np.ndarray, " width"]:
    """The unit vector of the recipe's neuron.

    Raises:
        MismatchError: if `where`, which is `width` wide, has no such neuron.
    """
    n = recipe.integer("neuron")
    if not 0 <= n < width:
        raise MismatchError(
            f"plan: neuron {n} of {where}, which is {width} wide",
            hint="polysem plan STUDY.toml, with the model and the SAE that are loaded now",
        )
    vector = np.zeros(width)
    vector[n] = 1.0
    return vector


def coordinate(recipe: Recipe, context: SiteContext) -> Float[np.ndarray, " d_in"]:
    """The unit vector of the recipe's coordinate. Raises MismatchError if the site has none such."""
    return unit_vector(recipe, width=context.sae.d_out, where=context.sae.writes)


def turned_basis(recipe: Recipe, context: SiteContext, kind: str, width: int) -> Float[np.ndarray, " width"]:
    """The recipe's direction of the first rotated basis in which degrees are counted (`plan.degrees`)."""
    seed = recipe.integer("seed")
    rotation = context.once(
        f"rotation {kind} {seed}",
        lambda: random_rotation(width, rng_for(seed, "degrees", context.label, kind, 0)),
    )
    return rotation @ unit_vector(recipe, width=width, where=f"a rotated basis of {context.label}")


def turned_coordinate(recipe: Recipe, context: SiteContext) -> Float[np.ndarray, " d_in"]:
    """A direction of a rotated basis of the site."""
    return turned_basis(recipe, context, "coordinate", context.sae.d_out)


def rotation(recipe: Recipe, context: SiteContext, kind: str) -> np.random.Generator:
    """The generator of a rotated neuron's draw."""
    at = (recipe.integer(name) for name in ("target", "neuron", "draw"))
    return rng_for(recipe.integer("seed"), "control", kind, context.label, *at)


def rotated_coordinate(recipe: Recipe, context: SiteContext) -> Float[np.ndarray, " d_in"]:
    """A random unit vector with the cosine that the recipe's neuron has with the target's direction: the image of
    the coordinate under a random rotation that leaves the target where it is.

    Raises:
        Refused: if the target has no direction.
    """
    target = unit(decoder_row(context, recipe.integer("target")))
    cosine = float(coordinate(recipe, context) @ target)
    draw = rotation(recipe, context, "rotated").standard_normal(len(target))
    across = unit(draw - (draw @ target) * target)
    return unit(cosine * target + np.sqrt(max(0.0, 1 - cosine**2)) * across)
