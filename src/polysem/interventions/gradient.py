"""Token gradients: what change of the input embedding would raise a probe of the site (arXiv 2505.11611, sec. 3.4).

The direction is the gradient of <a, v> with respect to the input embedding of the same token, a the activation at
the SAE's site on a token of a text that activates the feature. Like in the paper it is then added at the SAE's
site. Two probes v:

    encoder   the feature's own encoder column: the gradient of its pre-activation
    ones      all ones, as the paper's code has it: no feature enters, only the text

Where the writing weights of a model are centred, <a, 1> is zero for every input, and the gradient of `ones` is
rounding residue. Therefore every gradient is computed in float32 and in float64, and refused where their cosine is
below 0.99 (`unstable_gradient`).
"""

import copy
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.errors import MismatchError
from polysem.interventions.base import Bench, Recipe, Refused
from polysem.interventions.feature import unit
from polysem.models.gradients import probe_gradient
from polysem.models.hf import HFModel

PROBES = ("encoder", "ones")
MIN_AGREEMENT = 0.99
"""cosine of the float32 and the float64 gradient"""

_doubles: "WeakKeyDictionary[HFModel, HFModel]" = WeakKeyDictionary()


def token_gradient(recipe: Recipe, bench: Bench) -> Float[np.ndarray, " d_in"]:
    """The unit token gradient of a recipe: feature, probe, the tokens of a text and the position in it.

    Raises:
        Refused: `unstable_gradient` if float32 and float64 disagree, `zero_direction` if it vanishes.
        MismatchError: if the model cannot be differentiated, or the site is not as wide as the embedding.
    """
    model = bench.model
    if not isinstance(model, HFModel):
        raise MismatchError(
            f"token gradients need a transformers model, got {type(model).__name__}",
            hint="leave the locus gradient out of plan.loci",
        )
    if bench.sae.d_in != model.spec.d_model:
        raise MismatchError(
            f"a token gradient has {model.spec.d_model} coordinates, but {bench.sae.site} has {bench.sae.d_in}",
            hint="leave the locus gradient out of plan.loci for this SAE",
        )
    tokens = torch.tensor([recipe.token_ids("tokens")], device=bench.spec.device)
    if tokens.shape[1] > bench.spec.n_ctx:
        raise Refused("prompt_too_long")
    if int(tokens.max()) >= bench.spec.d_vocab:
        raise Refused("prompt_out_of_vocab")
    if recipe.text_of("probe") == "encoder":
        probe = bench.sae.W_enc[:, recipe.integer("feature")].detach().double()
    else:
        probe = torch.ones(bench.sae.d_in, dtype=torch.float64)
    return guarded_gradient(model, tokens, bench, recipe.integer("position"), probe)


def guarded_gradient(
    model: HFModel,
    tokens: Int[Tensor, "1 pos"],
    bench: Bench,
    position: int,
    probe: Float[Tensor, " d_in"],
) -> Float[np.ndarray, " d_model"]:
    """The unit gradient in float64, if float32 gives the same.

    Raises:
        Refused: `unstable_gradient`, `zero_direction`, `non_finite_direction`.
    """
    found = [
        unit(probe_gradient(m, tokens, bench.sae.site, position, probe).cpu().double().numpy())
        for m in (model, in_double(model))
    ]
    if float(found[0] @ found[1]) < MIN_AGREEMENT:
        raise Refused("unstable_gradient")
    return found[1]


def in_double(model: HFModel) -> HFModel:
    """The same model in float64; made once, and as large as two float32 copies."""
    if model.spec.dtype == "float64":
        return model
    if model not in _doubles:
        weights = copy.deepcopy(model.model).double()
        _doubles[model] = HFModel.from_parts(
            weights, model.tokenizer, ref=model.spec.ref, revision=model.spec.revision
        )
    return _doubles[model]
