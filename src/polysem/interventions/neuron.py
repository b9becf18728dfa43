"""Neurons: a coordinate of the site made stronger or weaker (arXiv 2505.11611, section 3.6).

h += dose * <h, u> u with u a unit vector: for u = e_n this multiplies coordinate n by 1 + dose (dose -1 ablates
it, +1 doubles it). The paper's "neurons" are the coordinates of the residual stream, which are no privileged
basis; the control that says whether they are special is `rotated`: the same operation along a random unit vector
that has the same cosine with the target as the coordinate has.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from polysem.edits import Clamp
from polysem.errors import MismatchError
from polysem.interventions.base import KINDS, Bench, Prepared, Prompt, Push, Recipe
from polysem.interventions.feature import decoder_row, unit
from polysem.seeds import rng_for


class Neuron:
    """The locus `neuron`."""

    steers = True

    def realise(self, recipe: Recipe, bench: Bench) -> np.ndarray:
        """The unit vector of a recipe, float64 [d_in]. Raises: Refused."""
        return KINDS[recipe.kind](recipe, bench)

    def prepare(self, pushes: Sequence[Push], prompt: Prompt, bench: Bench) -> Prepared:
        """One `Clamp` with a row per push: what it takes away is minus dose times the coordinate."""
        rows = len(pushes)
        dtype = torch.float64 if bench.spec.dtype == "float64" else torch.float32
        device = bench.spec.device
        along = torch.as_tensor(np.stack([push.realised for push in pushes]), dtype=dtype).to(device)
        dose = torch.tensor([push.dose for push in pushes], dtype=dtype, device=device)
        nothing = torch.zeros(rows, dtype=dtype, device=device)
        edit = Clamp(
            site=bench.sae.site,
            reader=-dose[:, None] * along,
            writer=along,
            value=nothing,
            offset=nothing,
            mask=torch.as_tensor(prompt.edited).repeat(rows, 1).to(device),
        )
        tokens = torch.as_tensor(prompt.token_ids, dtype=torch.long).repeat(rows, 1)
        return Prepared(tokens=tokens.to(device), edits=[edit])


NEURON = Neuron()


def coordinate(recipe: Recipe, bench: Bench) -> Float[np.ndarray, " d_in"]:
    """The unit vector of the recipe's neuron.

    Raises:
        MismatchError: if the site has no such coordinate.
    """
    n = recipe.integer("neuron")
    if not 0 <= n < bench.sae.d_in:
        raise MismatchError(
            f"plan: neuron {n} of {bench.sae.site}, which is {bench.sae.d_in} wide",
            hint="polysem plan, with the SAE that is loaded now",
        )
    vector = np.zeros(bench.sae.d_in)
    vector[n] = 1.0
    return vector


def rotated_coordinate(recipe: Recipe, bench: Bench) -> Float[np.ndarray, " d_in"]:
    """A random unit vector with the cosine that the recipe's neuron has with the target's direction: the image of
    the coordinate under a random rotation that leaves the target where it is.

    Raises:
        Refused: if the target has no direction.
    """
    target = unit(decoder_row(bench, recipe.integer("target")))
    cosine = float(coordinate(recipe, bench) @ target)
    rng = rng_for(
        recipe.integer("seed"),
        "control",
        "rotated",
        bench.label,
        *(recipe.integer(a) for a in ("target", "neuron", "draw")),
    )
    draw = rng.standard_normal(len(target))
    across = unit(draw - (draw @ target) * target)
    return unit(cosine * target + np.sqrt(max(0.0, 1 - cosine**2)) * across)
