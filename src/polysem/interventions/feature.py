"""Pushing along a feature's direction: h += dose * d / ||d|| at the SAE's site (arXiv 2505.11611, section 3).

The direction is the decoder row, because that is what the SAE writes for the feature. For SAEs that read
normalised activations the row lives in normalised coordinates; it is pushed as it stands, and doses in
units of the site's own norm stay comparable.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from polysem.edits import Add
from polysem.errors import MismatchError
from polysem.interventions.base import KINDS, Bench, Prepared, Prompt, Push, Recipe, Refused


class FeatureDirection:
    """The loci `feature` and `gradient`: all their directions, real and control, are added in the same way."""

    steers = True

    def realise(self, recipe: Recipe, bench: Bench) -> Float[np.ndarray, " d_in"]:
        """The unit direction of a recipe, float64. Raises: Refused."""
        return KINDS[recipe.kind](recipe, bench)

    def prepare(self, pushes: Sequence[Push], prompt: Prompt, bench: Bench) -> Prepared:
        """One `Add` at the SAE's site with a row per push; every row is the same prompt."""
        rows = len(pushes)
        vectors = np.stack([push.dose * push.realised for push in pushes])
        dtype = torch.float64 if bench.spec.dtype == "float64" else torch.float32
        edit = Add(
            site=bench.sae.site,
            vector=torch.as_tensor(vectors, dtype=dtype).to(bench.spec.device),
            mask=torch.as_tensor(prompt.edited).repeat(rows, 1).to(bench.spec.device),
        )
        tokens = torch.as_tensor(prompt.token_ids, dtype=torch.long).repeat(rows, 1)
        return Prepared(tokens=tokens.to(bench.spec.device), edits=[edit])


FEATURE = FeatureDirection()


def decoder_direction(recipe: Recipe, bench: Bench) -> Float[np.ndarray, " d_in"]:
    """The unit decoder row of the recipe's feature."""
    return unit(decoder_row(bench, recipe.integer("feature")))


def decoder_row(bench: Bench, feature: int) -> Float[np.ndarray, " d_in"]:
    """W_dec[feature] in float64, as the SAE stores it.

    Raises:
        MismatchError: if the SAE has no such feature.
    """
    if not 0 <= feature < bench.sae.d_sae:
        raise MismatchError(
            f"plan: feature {feature} of SAE {bench.label!r}, which has features 0 to {bench.sae.d_sae - 1}",
            hint="polysem plan, with the SAE that is loaded now",
        )
    return bench.sae.W_dec[feature].detach().cpu().double().numpy()


def unit(vector: Float[np.ndarray, " d_in"]) -> Float[np.ndarray, " d_in"]:
    """`vector` at norm 1.

    Raises:
        Refused: if it is zero or not finite.
    """
    if not np.isfinite(vector).all():
        raise Refused("non_finite_direction")
    # Scaling first keeps the squares of very small or large entries representable.
    largest = float(np.abs(vector).max())
    if largest == 0.0:
        raise Refused("zero_direction")
    scaled = vector / largest
    return scaled / np.linalg.norm(scaled)
