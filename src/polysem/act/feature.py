"""Steering along a feature's direction: h += dose * d / ||d|| at the SAE's site (arXiv 2505.11611, section 3).

The direction is the decoder row, because that is what the SAE writes for the feature. For SAEs that read
normalised activations the row lives in normalised coordinates; it is added as it stands, and doses in
units of the site's own norm stay comparable.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import Float

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
from polysem.act.directions import at_cosine_direction
from polysem.config import PlanConfig
from polysem.edits import Add
from polysem.vocabulary import CONTROLS, attribute


class FeatureDirection(Intervention):
    """The locus `feature`: all its directions, real and control, are added in the same way."""

    steers = True
    adds = True

    @property
    def kinds(self) -> Mapping[str, Realise]:
        """Decoder rows, and what the controls bring."""
        return {"decoder": decoder_direction, "at_cosine": at_cosine_direction, **_of_controls()}

    def prepare(self, steers: Sequence[Steer], prompt: EditedPrompt, context: SiteContext) -> Forward:
        """One `Add` at the SAE's site with a row per steered row; every row is the same prompt."""
        tokens, mask = context.rows(len(steers), prompt)
        vectors = np.stack([steer.dose * steer.realised for steer in steers])
        added = torch.as_tensor(vectors, dtype=context.dtype).to(context.spec.device)
        return Forward(tokens, [Add(self.site(context.sae), added, mask)])

    def arms(self, request: ArmsRequest) -> Sequence[Arm]:
        """All that were drawn."""
        return request.arms

    def doses(self, plan: PlanConfig) -> tuple[tuple[float, ...], str]:
        return plan.doses, plan.dose_unit


FEATURE = FeatureDirection()


@cache
def _of_controls() -> Mapping[str, Realise]:
    return {control.kind: attribute(control.direction) for control in CONTROLS.values() if control.kind}


def decoder_direction(recipe: Recipe, context: SiteContext) -> Float[np.ndarray, " d_in"]:
    """The unit decoder row of the recipe's feature."""
    return unit(decoder_row(context, recipe.integer("feature")))
