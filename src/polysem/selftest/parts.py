"""GT0, parts of an effect and gradients that are none: decompositions and the guard of the token gradient, on tiny
random models.

What a decomposition calls direct is compared with the definition, every later block held at its clean output; its
sums are compared with a total read from plain logits, by no function of the decomposition.
"""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polysem import readouts as r
from polysem.act.base import Recipe, Refused, SiteContext
from polysem.act.gradient import token_gradient
from polysem.edits import Add, Edit
from polysem.geometry.unit import unit_rows
from polysem.linear.decompose import Decomposition, decompose, mean_direction, split_push
from polysem.linear.response import membership
from polysem.models.hf import HFModel
from polysem.seeds import rng_for
from polysem.selftest.identities import SITE, TARGETS, tiny_models, tiny_tokens
from polysem.selftest.lines import Measured, at_most, exactly
from polysem.selftest.runner import RunSize
from polysem.types import Site
from polysem.worlds.tables import plain_sae
from polysem.worlds.tiny import tiny_model

ROWS, LATENTS, LENGTH = 3, 24, 0.3
GRADIENT_SITES = (Site(1, "hook_attn_out"), Site(1, "hook_mlp_out"))
WRITING = ("attn.c_proj", "mlp.c_proj")


def decomposition(size: RunSize) -> Iterator[Measured]:
    """Section 3.4 in float64: the parts of an effect add up to it, and the direct part is the direct part."""
    gaps: dict[str, float] = dict.fromkeys(
        ("shared + common + own", "direct + indirect", "mediated + remainder"), 0.0
    )
    frozen = 0.0
    for model in tiny_models(size.seed).values():
        tokens = tiny_tokens(model, size.seed, batch=1)[0]
        W = rng_for(size.seed, "parts", model.spec.ref).standard_normal((LATENTS, model.spec.d_model))
        unit = torch.as_tensor(unit_rows(W))
        pushed = torch.ones(len(tokens), dtype=torch.bool)
        pushed[0] = False
        push = (LENGTH * unit[:ROWS]).float().double()  # pushes are handed to the model in float32
        found = decompose(
            model,
            tokens,
            site=SITE,
            pushed=pushed,
            parts=split_push(push, unit[ROWS : 2 * ROWS], mean_direction(unit)),
            inside=membership([TARGETS] * ROWS, model.spec.d_vocab),
            sae=plain_sae(W, site=SITE),
            latents=torch.arange(ROWS, 2 * ROWS),
        )
        total = _odd(model, tokens, push, pushed, freeze=False)
        for name, gap in _gaps(found, total).items():
            gaps[name] = max(gaps[name], gap)
        direct = _odd(model, tokens, push, pushed, freeze=True)
        frozen = max(frozen, float((found.direct - direct).abs().max()))
    for name, gap in gaps.items():
        yield at_most(f"{name} against the total", gap, 1e-6, unit="nats", note="worst of all families")
    yield at_most(
        "direct effect against every later block held at its clean output", frozen, 1e-6, unit="nats"
    )


def _gaps(found: Decomposition, total: Tensor) -> dict[str, float]:
    sums = {
        "shared + common + own": found.shared + found.common + found.own,
        "direct + indirect": found.direct + found.indirect,
        "mediated + remainder": found.mediated + found.remainder,
    }
    return {name: float((value - total).abs().max()) for name, value in sums.items()}


def _odd(model: HFModel, tokens: Tensor, push: Tensor, pushed: Tensor, *, freeze: bool) -> Tensor:
    """Odd part of the change in log-odds, from plain logits."""
    sides = []
    for sign in (1.0, -1.0):
        edits: list[Edit] = [Add(SITE, sign * push, pushed.expand(len(push), -1))]
        if freeze:
            edits += _held(model, tokens.expand(len(push), -1), edits)
        z = model.logits(tokens.expand(len(push), -1), edits, last_only=True)[:, -1].numpy()
        sides.append(torch.as_tensor(np.asarray(r.log_odds(z, TARGETS))))
    return (sides[0] - sides[1]) / 2


def _held(model: HFModel, tokens: Tensor, edits: list[Edit]) -> list[Edit]:
    """Edits that put what every later block writes back to what it wrote without edits."""
    sites = [
        Site(layer, point)
        for layer in range((SITE.layer or 0) + 1, model.spec.n_layers)
        for point in ("hook_attn_out", "hook_mlp_out")
    ]
    clean = model.capture(tokens, sites)
    added: list[Edit] = []
    for site in sites:
        change = clean[site] - model.capture(tokens, [site], [*edits, *added])[site]
        for position in range(tokens.shape[1]):
            here = torch.zeros(tokens.shape, dtype=torch.bool)
            here[:, position] = True
            added.append(Add(site, change[:, position], here))
    return added


def _given(model: HFModel, site: Site, probe: str, seed: int) -> bool:
    """Whether the token gradient of a probe is given out; False where it is refused as unstable.

    Raises:
        AssertionError: if it is refused for another reason.
    """
    W = rng_for(seed, "token gradient").standard_normal((LATENTS, model.spec.d_model))
    bench = SiteContext("tiny", plain_sae(W, site=site), model.spec, lambda: np.zeros((0, len(W[0]))), model)
    ids = tiny_tokens(model, seed, batch=1)[0].tolist()
    text = " ".join(map(str, ids))
    recipe = Recipe.of("gradient", feature=3, position=len(ids) - 1, probe=probe, tokens=text)
    try:
        token_gradient(recipe, bench)
    except Refused as refusal:
        if refusal.reason != "unstable_gradient":
            raise AssertionError(f"{site}, {probe}: refused as {refusal.reason}") from refusal
        return False
    return True


def guard(size: RunSize) -> Iterator[Measured]:
    """The sum of a layer's coordinates has no gradient where writing weights are centred, as TransformerLens centres
    them: rounding is refused, gradients are not. Centring itself changes no prediction."""
    plain = tiny_model("gpt2", seed=size.seed)
    centred = _centred(plain)
    tokens = tiny_tokens(plain, size.seed)
    p, q = (model.logits(tokens).log_softmax(-1) for model in (plain, centred))
    yield at_most("log probabilities after centring", float((p - q).abs().max()), 1e-3, unit="nats")
    n = len(GRADIENT_SITES)
    for name, model, probe, expected in (
        ("gradients of all coordinates given out, centred", centred, "ones", 0),
        ("gradients of all coordinates given out, not centred", plain, "ones", n),
        ("gradients of a pre-activation given out, centred", centred, "encoder", n),
    ):
        given = sum(_given(model, site, probe, size.seed) for site in GRADIENT_SITES)
        yield exactly(name, given, expected, note=f"of {n} sites")


def _centred(model: HFModel) -> HFModel:
    """The same function, the mean over d_model taken out of all that attention and MLPs write: layer norm removes it
    anyway."""
    weights: Any = copy.deepcopy(model.model)
    with torch.no_grad():
        for block in weights.transformer.h:
            for name in WRITING:
                writer = block.get_submodule(name)  # Conv1D: [in, d_model]
                writer.weight -= writer.weight.mean(dim=1, keepdim=True)
                writer.bias -= writer.bias.mean()
    return HFModel.from_parts(weights, model.tokenizer, ref="centred", revision="centred")
