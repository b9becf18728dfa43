"""Neurons of the MLP (`mlp.hook_post`): the units behind the nonlinearity, which do have a basis of their own.

The paper's neurons are coordinates of the stream; these are what the word usually means. A neuron is made stronger or
weaker as a coordinate is (`neuron.py`), one layer's MLP at a time, and its tie to a target is the cosine of what it
writes into the SAE's site with the target's decoder row. What it writes is measured: one unit more of it changes the
MLP's output by its row of W_out exactly, whatever the family calls that weight.
Needs an SAE on the MLP's output, or on the stream behind it, of the same layer.
Cost of planning: one row of a forward pass over four tokens per neuron and SAE.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polysem.act.arms import Arm, ArmsRequest
from polysem.act.base import Realise, Recipe, Refused, SiteContext, decoder_row, length, unit
from polysem.act.neuron import Neuron, arms_by_share, rotation, turned_basis, unit_vector
from polysem.edits import Add
from polysem.errors import ConfigError, SiteError
from polysem.geometry.unit import unit_rows
from polysem.models.base import WhiteBoxModel
from polysem.saes.base import SAE
from polysem.types import Site

_ROWS = 256
_TOKENS = 4
"""of the row on which writes are measured, at the place where the stream is shortest"""
_LINEAR = 1e-2
"""relative; rounding in float32 is a thousandth of it, in bfloat16 as much"""
_BISECTIONS = 60
"""halvings of a right angle: to the last bit"""
_WRITTEN = ("hook_mlp_out", "hook_resid_post")


class MlpNeuron(Neuron):
    """The locus `mlp_neuron`."""

    steers = False
    neurons = "mlp"

    @property
    def kinds(self) -> Mapping[str, Realise]:
        """Unit vectors over the neurons, float64 [d_mlp]."""
        return {"mlp_neuron": mlp_coordinate, "rotated_mlp": rotated_mlp, "turned": turned_mlp}

    def arms(self, request: ArmsRequest) -> Sequence[Arm]:
        """Neurons by the cosine of what they write with the target's direction."""
        writes = request.writes["mlp_neuron"]
        along, real = unit_rows(writes), np.any(writes != 0, axis=1)
        found: list[Arm] = []
        for target in request.targets:
            row = request.index.sae.W_dec[target].detach().cpu().double().numpy()
            share = along @ row / np.linalg.norm(row)
            kinds = ("mlp_neuron", "rotated_mlp")
            found += arms_by_share(request, target, share, real, kinds, _no_gloss)
        return found

    def site(self, sae: SAE) -> Site:
        """The MLP neurons of the SAE's layer."""
        return neurons_of(sae)

    def writes(self, model: WhiteBoxModel | None, sae: SAE) -> Float[np.ndarray, "d_mlp d_in"]:
        return mlp_writes(model, sae)


MLP_NEURON = MlpNeuron()


def neurons_of(sae: SAE) -> Site:
    """The MLP neurons of the layer of an SAE."""
    return Site(sae.writes.layer, "mlp.hook_post")


def mlp_coordinate(recipe: Recipe, context: SiteContext) -> Float[np.ndarray, " d_mlp"]:
    """The unit vector of the recipe's neuron.

    Raises:
        MismatchError: if the model is not at hand, or its MLP has no such neuron.
    """
    site = neurons_of(context.sae)
    width = context.with_model("a neuron of an MLP").site_width(site)
    return unit_vector(recipe, width=width, where=site)


def turned_mlp(recipe: Recipe, context: SiteContext) -> Float[np.ndarray, " d_mlp"]:
    """A direction of a rotated basis of the neurons."""
    width = context.with_model("a neuron of an MLP").site_width(neurons_of(context.sae))
    return turned_basis(recipe, context, "mlp", width)


def mlp_writes(model: WhiteBoxModel | None, sae: SAE) -> Float[np.ndarray, "d_mlp d_in"]:
    """What one unit more of each neuron adds to the SAE's site, float64.

    Raises:
        ConfigError: if there is no model, or the SAE is not behind the MLP of its layer.
        SiteError: if the model's family has no such neurons, or normalises what its MLP writes (Gemma).
    """
    if model is None or sae.writes.point not in _WRITTEN:
        raise ConfigError(
            f"the locus mlp_neuron needs the model and an SAE at {' or '.join(_WRITTEN)}, got {sae.writes}",
            hint="leave mlp_neuron out of plan.loci, or name another SAE",
        )
    neurons = neurons_of(sae)
    if neurons not in model.sites():
        raise SiteError(f"{model.spec.ref} has no site {neurons}", hint="leave mlp_neuron out of plan.loci")
    width = model.site_width(neurons)
    tokens = torch.arange(_TOKENS, device=model.spec.device)[None]
    seen = model.capture(tokens, [sae.writes])[sae.writes][0].double().cpu()
    # a first token may be thousands of times as long as the others, and float32 rounds away what is added to it
    place = int(length(seen).argmin())
    clean = seen[place]
    parts: list[Tensor] = []
    for start in range(0, width, _ROWS):
        rows = torch.eye(width)[start : start + _ROWS].to(model.spec.device)
        mask = torch.zeros(len(rows), _TOKENS, dtype=torch.bool, device=model.spec.device)
        mask[:, place] = True
        edit = Add(neurons, rows, mask)
        seen = model.capture(tokens.expand(len(rows), -1), [sae.writes], [edit])[sae.writes]
        parts.append(seen[:, place].double().cpu() - clean)
    writes = torch.cat(parts)
    _check_linear(model, sae, tokens, place, clean, writes)
    return writes.numpy()


def _no_gloss(relation: str, neuron: int) -> None:
    """Neurons have none."""


def _check_linear(
    model: WhiteBoxModel,
    sae: SAE,
    tokens: Tensor,
    place: int,
    clean: Float[Tensor, " d_in"],
    writes: Float[Tensor, "d_mlp d_in"],
) -> None:
    """Two units must write twice what one does; families that normalise what the MLP writes do not obey."""
    neurons, largest = neurons_of(sae), int(length(writes).argmax())
    twice = torch.zeros(1, len(writes), device=model.spec.device)
    twice[0, largest] = 2.0
    mask = torch.zeros(1, _TOKENS, dtype=torch.bool, device=model.spec.device)
    mask[:, place] = True
    seen = model.capture(tokens, [sae.writes], [Add(neurons, twice, mask)])[sae.writes][0, place]
    wanted = 2 * writes[largest]
    off = float(length(seen.double().cpu() - clean - wanted) / length(wanted))
    if off > _LINEAR:
        raise SiteError(
            f"{model.spec.ref} normalises what its MLP writes (two units of neuron {largest} are off by {off:.2g} from "
            f"twice one unit), so a neuron writes no fixed direction into {sae.writes}",
            hint="leave mlp_neuron out of plan.loci for this model",
        )


def rotated_mlp(recipe: Recipe, context: SiteContext) -> Float[np.ndarray, " d_mlp"]:
    """A random unit vector over the neurons whose output has the cosine with the target's direction that the output of
    the recipe's neuron has.

    Of the plane between the vector that writes most along the target and a random one that writes nothing along it,
    the angle is found by bisection: the cosine falls from its largest value to 0 on the way.

    Raises:
        Refused: `control_unmatched` if no vector of that plane has the cosine.
        MismatchError: if the model is not at hand, or its MLP has no such neuron.
    """
    writes = context.once("mlp_writes", lambda: mlp_writes(context.model, context.sae))
    target = unit(decoder_row(context, recipe.integer("target")))
    own = unit(writes[int(mlp_coordinate(recipe, context).argmax())])
    wanted = float(own @ target)
    along = unit(writes @ target)
    across = rotation(recipe, context, "rotated_mlp").standard_normal(len(along))
    across = unit(across - (across @ along) * along)

    def cosine(angle: float) -> float:
        return float(unit((np.cos(angle) * along + np.sin(angle) * across) @ writes) @ target)

    low, high = (0.0, np.pi / 2) if wanted >= 0 else (np.pi / 2, np.pi)
    if not cosine(high) <= wanted <= cosine(low):
        raise Refused("control_unmatched")
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if cosine(middle) > wanted else (low, middle)
    return unit(np.cos(low) * along + np.sin(low) * across)
