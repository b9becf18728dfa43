"""Clamping: a feature's activation is set to a value, as the SAE's own encoder reads it at every position.

h += decode(a with a_i := value) - decode(a), with a = encode(h): the change of the reconstruction is added, so what the
SAE does not explain stays in place, and normalisation, gating and top-k are the SAE's own. The value is the dose times
the largest activation seen of the feature; both signs are run, so that the odd part of an effect is that of writing the
value, whatever the activation was.
What earlier positions do cannot change the site at later ones before the edit, so one clean pass tells all that is to
be added.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polysem.edits import Add
from polysem.errors import MismatchError, NumericsError
from polysem.interventions.base import KINDS, Bench, Prepared, Prompt, Push, Recipe, Refused
from polysem.interventions.feature import decoder_row, unit


class FeatureClamp:
    """The locus `clamp`."""

    steers = False

    def realise(self, recipe: Recipe, bench: Bench) -> np.ndarray:
        """(feature, largest activation), float64 [2]. Raises: Refused."""
        return KINDS[recipe.kind](recipe, bench)

    def prepare(self, pushes: Sequence[Push], prompt: Prompt, bench: Bench) -> Prepared:
        """An `Add` for every edited position, with a row per push."""
        if bench.model is None:
            raise MismatchError(
                "clamping reads activations, but the bench has no model", hint="give Bench(model=...)"
            )
        dtype = torch.float64 if bench.spec.dtype == "float64" else torch.float32
        device, sae = bench.spec.device, bench.sae
        ids = torch.as_tensor(prompt.token_ids, dtype=torch.long, device=device)[None]
        try:
            h = bench.model.capture(ids, [sae.site])[sae.site][0]
        except NumericsError as error:
            raise Refused("non_finite_baseline") from error
        added = torch.stack([_added(push, h, bench) for push in pushes]).to(device=device, dtype=dtype)
        edits = []
        for position in np.flatnonzero(prompt.edited).tolist():
            mask = torch.zeros(len(pushes), len(prompt.token_ids), dtype=torch.bool, device=device)
            mask[:, position] = True
            edits.append(Add(sae.site, added[:, position].contiguous(), mask))
        return Prepared(tokens=ids.repeat(len(pushes), 1), edits=list(edits))


CLAMP = FeatureClamp()


def clamped_feature(recipe: Recipe, bench: Bench) -> Float[np.ndarray, " 2"]:
    """The recipe's feature, and the activation that a dose of 1 clamps it to.

    Raises:
        Refused: if the feature has no direction, or no positive activation is known.
        MismatchError: if the SAE has no such feature.
    """
    feature = recipe.integer("feature")
    unit(decoder_row(bench, feature))
    largest = dict(recipe.arguments).get("largest")
    if not isinstance(largest, float) or not 0 < largest < float("inf"):
        raise Refused("no_activation")
    return np.array([feature, largest])


def _added(push: Push, h: Float[Tensor, "pos d_in"], bench: Bench) -> Float[Tensor, "pos d_in"]:
    """What the clamp adds at every position."""
    sae, feature, value = bench.sae, int(push.realised[0]), push.dose * float(push.realised[1])
    acts = sae.encode(h)
    one = torch.zeros_like(acts)
    one[:, feature] = 1.0
    # decoding is affine in the activations: one unit of the feature, at every position in the input's own units
    written = sae.decode(one, like=h) - sae.decode(torch.zeros_like(acts), like=h)
    return (value - acts[:, feature, None]) * written
