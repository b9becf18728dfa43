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
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.act.arms import Arm, ArmsRequest
from polysem.act.base import UNMATCHED, Realise, Recipe, Refused, SiteContext, unit
from polysem.act.feature import FeatureDirection
from polysem.errors import MismatchError
from polysem.models.gradients import probe_gradient
from polysem.models.hf import HFModel
from polysem.vocabulary import RELATIONS

FIRING = 0.8
"""positions with an activation of at least this share of the text's largest count as firing"""
MIN_AGREEMENT = 0.99
"""cosine of the float32 and the float64 gradient"""

_doubles: "WeakKeyDictionary[HFModel, HFModel]" = WeakKeyDictionary()


class TokenGradient(FeatureDirection):
    """The locus `gradient`: added as the directions of features are."""

    @property
    def kinds(self) -> Mapping[str, Realise]:
        return {**super().kinds, "gradient": token_gradient, "gradient_sum": token_gradient}

    def arms(self, request: ArmsRequest) -> Sequence[Arm]:
        """Every feature as its token gradient in the best of its contexts; random directions as they are."""
        found: list[Arm] = []
        for arm in request.arms:
            carried = RELATIONS[arm.relation].carried
            if carried == "direction":
                found.append(arm)
            elif carried == "source":
                found.append(arm._replace(recipe=self._recipe(arm, request)))
        return found

    def _recipe(self, arm: Arm, request: ArmsRequest) -> str:
        contexts = [] if arm.source is None else request.index.contexts.by_feature.get(arm.source, [])
        if arm.source is None or not contexts:
            return UNMATCHED
        best, probe = contexts[0], request.plan.probe
        if request.plan.gradient_positions == "firing":
            at = best.firing(FIRING)
            tokens = " ".join(map(str, best.token_ids[: max(at) + 1]))
            places = " ".join(map(str, at))
            return Recipe.of(
                "gradient_sum", feature=arm.source, positions=places, probe=probe, tokens=tokens
            ).text
        tokens = " ".join(map(str, best.token_ids[: best.position + 1]))
        return Recipe.of(
            "gradient", feature=arm.source, position=best.position, probe=probe, tokens=tokens
        ).text


GRADIENT = TokenGradient()


def token_gradient(recipe: Recipe, context: SiteContext) -> Float[np.ndarray, " d_in"]:
    """The unit token gradient of a recipe: feature, probe, the tokens of a text and the position in it, or the positions
    over which gradients are summed, each with respect to its own embedding.

    Raises:
        Refused: `unstable_gradient` if float32 and float64 disagree, `zero_direction` if it vanishes.
        MismatchError: if the model cannot be differentiated, or the site is not as wide as the embedding.
    """
    model = context.model
    if not isinstance(model, HFModel):
        raise MismatchError(
            f"token gradients need a transformers model, got {type(model).__name__}",
            hint="leave the locus gradient out of plan.loci",
        )
    if context.sae.d_in != model.spec.d_model:
        raise MismatchError(
            f"a token gradient has {model.spec.d_model} coordinates, but {context.sae.reads} has {context.sae.d_in}",
            hint="leave the locus gradient out of plan.loci for this SAE",
        )
    tokens = torch.tensor([recipe.token_ids("tokens")], device=context.spec.device)
    if tokens.shape[1] > context.spec.n_ctx:
        raise Refused("prompt_too_long")
    if int(tokens.max()) >= context.spec.d_vocab:
        raise Refused("prompt_out_of_vocab")
    if recipe.text_of("probe") == "encoder":
        probe = context.sae.W_enc[:, recipe.integer("feature")].detach().double()
    else:
        probe = torch.ones(context.sae.d_in, dtype=torch.float64)
    positions = (
        recipe.token_ids("positions") if recipe.kind == "gradient_sum" else [recipe.integer("position")]
    )
    return guarded_gradient(model, tokens, context, positions, probe)


def guarded_gradient(
    model: HFModel,
    tokens: Int[Tensor, "1 pos"],
    context: SiteContext,
    positions: Sequence[int],
    probe: Float[Tensor, " d_in"],
) -> Float[np.ndarray, " d_model"]:
    """The unit sum over positions of the gradients in float64, if float32 gives the same.

    Raises:
        Refused: `unstable_gradient`, `zero_direction`, `non_finite_direction`.
    """
    found: list[np.ndarray] = []
    for m in (model, in_double(model)):
        each = [probe_gradient(m, tokens, context.sae.reads, at, probe).cpu().double() for at in positions]
        found.append(unit(torch.stack(each).sum(0).numpy()))
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
