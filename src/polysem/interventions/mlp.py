"""Neurons of the MLP (`mlp.hook_post`): the units behind the nonlinearity, which do have a basis of their own.

The paper's neurons are coordinates of the stream; these are what the word usually means. A neuron is made stronger or
weaker as a coordinate is (`neuron.py`), one layer's MLP at a time, and its tie to a target is the cosine of what it
writes into the SAE's site with the target's decoder row. What it writes is measured: one unit more of it changes the
MLP's output by its row of W_out exactly, whatever the family calls that weight.
Needs an SAE on the MLP's output, or on the stream behind it, of the same layer.
Cost of planning: one row of a one-token forward pass per neuron and SAE.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polysem.config import PairsConfig, PlanConfig
from polysem.edits import Add, Clamp
from polysem.errors import ConfigError, MismatchError, SiteError
from polysem.interventions.arms import Arm
from polysem.interventions.atlas import Atlas
from polysem.interventions.base import KINDS, Bench, Prepared, Prompt, Push, Recipe, Refused
from polysem.interventions.feature import decoder_row, unit
from polysem.models.base import WhiteBoxModel
from polysem.saes.base import SAE
from polysem.seeds import rng_for
from polysem.types import Site

_ROWS = 256
_LINEAR = 1e-2
"""relative; rounding in float32 is a thousandth of it, in bfloat16 as much"""
_BISECTIONS = 60
"""halvings of a right angle: to the last bit"""
_WRITTEN = ("hook_mlp_out", "hook_resid_post")


class MlpNeuron:
    """The locus `mlp_neuron`."""

    steers = False

    def realise(self, recipe: Recipe, bench: Bench) -> np.ndarray:
        """The unit vector of the neuron, float64 [d_mlp]. Raises: Refused."""
        return KINDS[recipe.kind](recipe, bench)

    def prepare(self, pushes: Sequence[Push], prompt: Prompt, bench: Bench) -> Prepared:
        """One `Clamp` at `mlp.hook_post` with a row per push: h += dose <h, u> u."""
        rows, device = len(pushes), bench.spec.device
        dtype = torch.float64 if bench.spec.dtype == "float64" else torch.float32
        along = torch.as_tensor(np.stack([push.realised for push in pushes]), dtype=dtype).to(device)
        dose = torch.tensor([push.dose for push in pushes], dtype=dtype, device=device)
        nothing = torch.zeros(rows, dtype=dtype, device=device)
        edit = Clamp(
            site=site_of("mlp_neuron", bench.sae),
            reader=-dose[:, None] * along,
            writer=along,
            value=nothing,
            offset=nothing,
            mask=torch.as_tensor(prompt.edited).repeat(rows, 1).to(device),
        )
        tokens = torch.as_tensor(prompt.token_ids, dtype=torch.long).repeat(rows, 1)
        return Prepared(tokens=tokens.to(device), edits=[edit])


MLP_NEURON = MlpNeuron()


def site_of(locus: str, sae: SAE) -> Site:
    """Where a locus edits for an SAE: its own site, or the MLP neurons of its layer."""
    return Site(sae.site.layer, "mlp.hook_post") if locus == "mlp_neuron" else sae.site


def mlp_coordinate(recipe: Recipe, bench: Bench) -> Float[np.ndarray, " d_mlp"]:
    """The unit vector of the recipe's neuron.

    Raises:
        MismatchError: if the model is not at hand, or its MLP has no such neuron.
    """
    if bench.model is None:
        raise MismatchError("neurons of an MLP need the model", hint="give Bench(model=...)")
    width, n = bench.model.site_width(site_of("mlp_neuron", bench.sae)), recipe.integer("neuron")
    if not 0 <= n < width:
        raise MismatchError(
            f"plan: neuron {n} of {site_of('mlp_neuron', bench.sae)}, which is {width} wide",
            hint="polysem plan, with the model that is loaded now",
        )
    vector = np.zeros(width)
    vector[n] = 1.0
    return vector


def mlp_writes(model: WhiteBoxModel | None, sae: SAE) -> Float[np.ndarray, "d_mlp d_in"]:
    """What one unit more of each neuron adds to the SAE's site, float64.

    Raises:
        ConfigError: if there is no model, or the SAE is not behind the MLP of its layer.
        SiteError: if the model's family has no such neurons, or normalises what its MLP writes (Gemma).
    """
    if model is None or sae.site.point not in _WRITTEN:
        raise ConfigError(
            f"the locus mlp_neuron needs the model and an SAE at {' or '.join(_WRITTEN)}, got {sae.site}",
            hint="leave mlp_neuron out of plan.loci, or name another SAE",
        )
    neurons = site_of("mlp_neuron", sae)
    if neurons not in model.sites():
        raise SiteError(f"{model.spec.ref} has no site {neurons}", hint="leave mlp_neuron out of plan.loci")
    width = model.site_width(neurons)
    token = torch.zeros(1, 1, dtype=torch.long, device=model.spec.device)
    clean = model.capture(token, [sae.site])[sae.site][0, 0].double().cpu()
    parts = []
    for start in range(0, width, _ROWS):
        rows = torch.eye(width)[start : start + _ROWS].to(model.spec.device)
        mask = torch.ones(len(rows), 1, dtype=torch.bool, device=model.spec.device)
        seen = model.capture(token.expand(len(rows), 1), [sae.site], [Add(neurons, rows, mask)])[sae.site]
        parts.append(seen[:, 0].double().cpu() - clean)
    writes = torch.cat(parts)
    _check_linear(model, sae, token, clean, writes)
    return writes.numpy()


def _check_linear(
    model: WhiteBoxModel,
    sae: SAE,
    token: Tensor,
    clean: Float[Tensor, " d_in"],
    writes: Float[Tensor, "d_mlp d_in"],
) -> None:
    """Two units must write twice what one does; families that normalise what the MLP writes do not obey."""
    neurons, largest = site_of("mlp_neuron", sae), int(writes.norm(dim=1).argmax())
    twice = torch.zeros(1, len(writes), device=model.spec.device)
    twice[0, largest] = 2.0
    mask = torch.ones(1, 1, dtype=torch.bool, device=model.spec.device)
    seen = (
        model.capture(token, [sae.site], [Add(neurons, twice, mask)])[sae.site][0, 0].double().cpu() - clean
    )
    off = float((seen - 2 * writes[largest]).norm() / (2 * writes[largest]).norm())
    if off > _LINEAR:
        raise SiteError(
            f"{model.spec.ref} normalises what its MLP writes (two units of neuron {largest} are off by {off:.2g} from "
            f"twice one unit), so a neuron writes no fixed direction into {sae.site}",
            hint="leave mlp_neuron out of plan.loci for this model",
        )


def mlp_neuron_arms(
    atlas: Atlas, targets: Sequence[int], *, pairs: PairsConfig, plan: PlanConfig, seed: int
) -> list[Arm]:
    """Neurons by the cosine of what they write with the target's direction: the strongest as `self`, some of every
    interference bin as pairs, each with a rotated one. A neuron stands in the column `source` as d_sae + its number."""
    if atlas.mlp_writes is None:
        return []
    norms = np.linalg.norm(atlas.mlp_writes, axis=1, keepdims=True)
    writes = np.divide(atlas.mlp_writes, norms, out=np.zeros_like(atlas.mlp_writes), where=norms > 0)
    found: list[Arm] = []
    for target in targets:
        row = atlas.sae.W_dec[target].detach().cpu().double().numpy()
        share = writes @ row / np.linalg.norm(row)
        strongest = int(share.argmax())
        chosen: list[tuple[str, int, int]] = [("self", strongest, -1)]
        for index, (low, high) in enumerate(zip(pairs.bins, pairs.bins[1:], strict=False)):
            inside = np.flatnonzero(
                (share >= low) & (share < high) & (np.arange(len(share)) != strongest) & (norms[:, 0] > 0)
            )
            rng = rng_for(seed, "mlp_neuron", atlas.label, target, index)
            drawn = rng.choice(inside, min(plan.sources_per_bin, len(inside)), replace=False)
            chosen += [("pair", int(n), index) for n in sorted(drawn.tolist())]
        for relation, neuron, index in chosen:
            recipe = Recipe.of("mlp_neuron", neuron=neuron).text
            source, cosine = atlas.sae.d_sae + neuron, float(share[neuron])
            found.append(Arm(relation, target, source, 0, recipe, index, cosine, None))  # pyright: ignore[reportArgumentType]
            if relation == "pair":
                turned = Recipe.of("rotated_mlp", draw=0, neuron=neuron, seed=seed, target=target).text
                found.append(Arm("rotated", target, None, neuron, turned, -1, cosine, None))
    return found


def rotated_mlp(recipe: Recipe, bench: Bench) -> Float[np.ndarray, " d_mlp"]:
    """A random unit vector over the neurons whose output has the cosine with the target's direction that the output of
    the recipe's neuron has.

    Of the plane between the vector that writes most along the target and a random one that writes nothing along it,
    the angle is found by bisection: the cosine falls from its largest value to 0 on the way.

    Raises:
        Refused: `control_unmatched` if no vector of that plane has the cosine.
        MismatchError: if the model is not at hand, or its MLP has no such neuron.
    """
    writes = bench.mlp_writes
    target = unit(decoder_row(bench, recipe.integer("target")))
    own = unit(writes[int(mlp_coordinate(recipe, bench).argmax())])
    wanted = float(own @ target)
    along = unit(writes @ target)
    rng = rng_for(
        recipe.integer("seed"),
        "control",
        "rotated_mlp",
        bench.label,
        *(recipe.integer(a) for a in ("target", "neuron", "draw")),
    )
    across = rng.standard_normal(len(along))
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
