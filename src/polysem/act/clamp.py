"""Clamping: a feature's activation is set to a value, as the SAE's own encoder reads it at every position.

h += decode(a with a_i := value) - decode(a), with a = encode(h): the change of the reconstruction is added, so what the
SAE does not explain stays in place, and normalisation, gating and top-k are the SAE's own. The value is the dose times
the largest activation seen of the feature; both signs are run, so that the odd part of an effect is that of writing the
value, whatever the activation was.
What earlier positions do cannot change the site at later ones before the edit, so one clean pass tells all that is to
be added.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polysem.act.arms import Arm, ArmsRequest
from polysem.act.base import (
    UNMATCHED,
    EditedPrompt,
    Forward,
    Intervention,
    Realise,
    Recipe,
    Refused,
    SiteContext,
    Steer,
    decoder_row,
    unit,
)
from polysem.config import PlanConfig
from polysem.edits import Add, Edit
from polysem.errors import NumericsError
from polysem.saes.base import SAE
from polysem.vocabulary import RELATIONS


class FeatureClamp(Intervention):
    """The locus `clamp`."""

    @property
    def kinds(self) -> Mapping[str, Realise]:
        """(feature, largest activation), float64 [2]."""
        return {"clamp": clamped_feature}

    def prepare(self, steers: Sequence[Steer], prompt: EditedPrompt, context: SiteContext) -> Forward:
        """An `Add` for every edited position, with a row per clamp."""
        sae, model = context.sae, context.with_model("clamping")
        tokens, _ = context.rows(len(steers), prompt)
        try:
            h = model.capture(tokens[:1], [sae.reads])[sae.reads][0]
        except NumericsError as error:
            raise Refused("non_finite_baseline") from error
        added = torch.stack([_added(steer, h, context) for steer in steers])
        added = added.to(device=context.spec.device, dtype=context.dtype)
        edits: list[Edit] = []
        for position in np.flatnonzero(prompt.edited).tolist():
            mask = torch.zeros(tokens.shape, dtype=torch.bool, device=context.spec.device)
            mask[:, position] = True
            edits.append(Add(sae.writes, added[:, position].contiguous(), mask))
        return Forward(tokens, edits)

    def arms(self, request: ArmsRequest) -> Sequence[Arm]:
        """Every feature as its clamping."""
        carried = [arm for arm in request.arms if RELATIONS[arm.relation].carried == "source"]
        return [arm._replace(recipe=self._recipe(arm, request)) for arm in carried]

    def _recipe(self, arm: Arm, request: ArmsRequest) -> str:
        largest = float("nan") if arm.source is None else float(request.index.max_act[arm.source])
        if arm.source is None or not 0 < largest < float("inf"):
            return UNMATCHED
        return Recipe.of("clamp", feature=arm.source, largest=largest).text

    def doses(self, plan: PlanConfig) -> tuple[tuple[float, ...], str]:
        return plan.clamps, "max_act"


CLAMP = FeatureClamp()


def clamped_feature(recipe: Recipe, context: SiteContext) -> Float[np.ndarray, " 2"]:
    """The recipe's feature, and the activation that a dose of 1 clamps it to.

    Raises:
        Refused: if the feature has no direction, or no positive activation is known.
        MismatchError: if the SAE has no such feature.
    """
    feature = recipe.integer("feature")
    unit(decoder_row(context, feature))
    largest = dict(recipe.arguments).get("largest")
    if not isinstance(largest, float) or not 0 < largest < float("inf"):
        raise Refused("no_activation")
    return np.array([feature, largest])


def _added(steer: Steer, h: Float[Tensor, "pos d_in"], context: SiteContext) -> Float[Tensor, "pos d_in"]:
    """What the clamp adds at every position."""
    value = steer.dose * float(steer.realised[1])
    return clamp_change(context.sae, h, [int(steer.realised[0])], value)


def clamp_change(
    sae: SAE, h: Float[Tensor, "pos d_in"], features: Sequence[int], value: float
) -> Float[Tensor, "pos d_out"]:
    """What sets features to a value, as the dictionary reads and writes them."""
    acts = sae.encode(h)
    nothing = sae.decode(torch.zeros_like(acts), like=h)
    added = torch.zeros_like(nothing)
    for feature in features:
        one = torch.zeros_like(acts)
        one[:, feature] = 1.0
        # decoding is affine in the activations: one unit of the feature, at every position in the input's own units
        added = added + (value - acts[:, feature, None]) * (sae.decode(one, like=h) - nothing)
    return added
