"""GT0: what must hold in any model, to rounding, whatever it has learnt.

Edits of nothing change no bit and hooks leave no trace; readouts move as the theory of softmax says they do
(validity document, sections 3.1 to 3.3); an SAE means the same on disk and in memory; a change of basis or of
batch changes nothing. On tiny random models of every family, in float64 where derivatives are compared.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polysem import readouts as r
from polysem.edits import Add, Edit, Scale
from polysem.errors import NumericsError
from polysem.models.hf import HFModel
from polysem.saes import load_sae
from polysem.saes.fidelity import measure
from polysem.seeds import rng_for
from polysem.selftest.lines import Measured, at_most, exactly
from polysem.selftest.runner import RunSize
from polysem.selftest.studies import study_of
from polysem.types import Site
from polysem.worlds.layer_norm import layer_norm_world, write_saelens_folder
from polysem.worlds.readout import readout_world
from polysem.worlds.tiny import TINY_FAMILIES, tiny_model

FLOAT64 = 1e-6
"""central differences at step 1e-4 in float64: truncation 1e-8, rounding 1e-11"""
STEP = 1e-4
SITE = Site(0, "hook_resid_post")
POS = 6
TARGETS = (3, 11, 29)
LAYER_NORM = ("gpt2", "gpt_neox")
RMS_NORM = tuple(name for name in TINY_FAMILIES if name not in LAYER_NORM)


@lru_cache(maxsize=1)
def tiny_models(seed: int) -> dict[str, HFModel]:
    """A tiny model of every family, float64."""
    small = {name: tiny_model(name, seed=seed) for name in TINY_FAMILIES}
    return {name: HFModel.from_parts(m.model.double(), m.tokenizer, ref=name) for name, m in small.items()}


def tiny_tokens(model: HFModel, seed: int, *, batch: int = 2) -> Tensor:
    """Random token ids, the same for every model."""
    ids = rng_for(seed, "identities", "tokens").integers(2, 48, size=(batch, POS))
    return torch.as_tensor(ids)


def edits(size: RunSize) -> Iterator[Measured]:
    """Edits that do nothing, hooks that are gone, exceptions inside."""
    changed = traces = after = hooks = 0
    plain = 0.0
    for model in tiny_models(size.seed).values():
        tokens = tiny_tokens(model, size.seed)
        before = model.logits(tokens)
        with torch.no_grad():
            own = model.model(tokens, use_cache=False).logits
        plain = max(plain, float((own - before).abs().max()))
        nothings = [e for site in model.sites() for e in _nothings(site, model.site_width(site), tokens)]
        for first in range(3):  # one kind of edit at all sites at once
            changed += int((model.logits(tokens, nothings[first::3]) != before).sum())
        _push(model, tokens, 1.0)
        traces += int((model.logits(tokens) != before).sum())
        try:
            _push(model, tokens, float("inf"))
        except NumericsError:
            after += int((model.logits(tokens) != before).sum())
        else:
            raise AssertionError(f"{model.spec.ref}: an infinite edit raised nothing")
        hooks += sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())
    yield exactly("values changed by an edit of zero, all sites", changed, 0, unit="logits")
    yield exactly("values changed after hooks are gone", traces, 0, unit="logits")
    yield exactly("values changed after an exception inside", after, 0, unit="logits")
    yield exactly("hooks left in modules", hooks, 0, unit="hooks")
    yield exactly("hooked minus plain transformers forward", plain, 0, unit="logits", note="largest, bits")


def _nothings(site: Site, width: int, tokens: Tensor) -> list[Edit]:
    mask = torch.ones(tokens.shape, dtype=torch.bool)
    zero, index = torch.zeros(len(tokens), width), torch.arange(len(tokens)) % width
    add = Add(site, zero, mask)
    nowhere = Add(site, zero + 1.0, ~mask)
    return [add, nowhere, Scale(site, index, torch.ones(len(tokens)), mask)]


def _push(model: HFModel, tokens: Tensor, dose: float) -> Tensor:
    mask = torch.ones(tokens.shape, dtype=torch.bool)
    vector = torch.full((len(tokens), model.spec.d_model), dose, dtype=torch.float64)
    return model.logits(tokens, [Add(SITE, vector, mask)])


def readouts(size: RunSize) -> Iterator[Measured]:
    """Section 3.1 and 3.3, by central differences of one push through every family."""
    worst: dict[str, float] = {}
    for model in tiny_models(size.seed).values():
        for name, error in _readout_errors(model, size.seed).items():
            worst[name] = max(worst.get(name, 0.0), error)
    limits = {
        "dl = E_T[dz] - E_notT[dz]": FLOAT64,
        "Dl = K_T(Dz) - K_notT(Dz)": 1e-9,
        "dc = Cov(s, dz)": FLOAT64,
        "dw = w (1 - w) dl": FLOAT64,
        "KL = a^2 F / 2": 1e-2,
        "rho = Corr(1_T, dz)": 1e-2,
        "|dl| within its bound": 1.0,
    }
    for name, limit in limits.items():
        unit = "share of the bound" if "bound" in name else "relative error"
        yield at_most(name, worst[name], limit, unit=unit, note="worst of all families")


def _readout_errors(model: HFModel, seed: int) -> dict[str, float]:
    """Relative error of every identity at one site and direction."""
    tokens = tiny_tokens(model, seed, batch=1)
    direction = torch.as_tensor(rng_for(seed, "push").standard_normal(model.spec.d_model))
    direction /= direction.norm()
    z = {a: _last(model, tokens, a * direction) for a in (0.0, STEP, -STEP, 1e-3, -1e-3, 0.5)}
    dz = (z[STEP] - z[-STEP]) / (2 * STEP)
    p, inside = z[0.0].softmax(-1), torch.zeros(len(z[0.0]), dtype=torch.bool)
    inside[list(TARGETS)] = True
    w = p[inside].sum()
    p_in, p_out = p * inside / w, p * ~inside / (1 - w)

    def slope(read: Callable[[np.ndarray], Any], a: float = STEP) -> float:
        return (float(read(z[a].numpy())) - float(read(z[-a].numpy()))) / (2 * a)

    odds = slope(lambda v: r.log_odds(v, TARGETS))
    mass = slope(lambda v: r.weighted_overlap(_softmax(v), TARGETS))
    W_E = model.W_E.numpy()
    cosine = slope(lambda v: r.weighted_cosine(_softmax(v), TARGETS, W_E))
    s = torch.as_tensor(r.target_similarity(TARGETS, W_E))
    covariance = float((p * s * dz).sum() - (p * s).sum() * (p * dz).sum())
    big = z[0.5] - z[0.0]
    exact = float((p_in * big.exp()).sum().log() - (p_out * big.exp()).sum().log())
    moved = float(r.log_odds(z[0.5].numpy(), TARGETS)) - float(r.log_odds(z[0.0].numpy(), TARGETS))
    fisher = float((p * dz**2).sum() - (p * dz).sum() ** 2)
    kl = sum(float(r.kl(z[0.0].numpy(), z[a].numpy())) for a in (1e-3, -1e-3)) / 2
    dw = mass * 1e-3
    rho = dw / float((2 * kl * w * (1 - w)).sqrt())
    corr = float((p_in * dz).sum() - (p * dz).sum()) * float(w) / float((fisher * w * (1 - w)) ** 0.5)
    return {
        "dl = E_T[dz] - E_notT[dz]": _relative(odds, float((p_in * dz).sum() - (p_out * dz).sum())),
        "Dl = K_T(Dz) - K_notT(Dz)": _relative(moved, exact),
        "dc = Cov(s, dz)": _relative(cosine, covariance),
        "dw = w (1 - w) dl": _relative(mass, float(w * (1 - w)) * odds),
        "KL = a^2 F / 2": _relative(kl, 0.5 * 1e-6 * fisher),
        "rho = Corr(1_T, dz)": _relative(rho, corr),
        "|dl| within its bound": abs(odds) * 1e-3 / float((2 * kl / (w * (1 - w))).sqrt()),
    }


def linear_response(size: RunSize) -> Iterator[Measured]:
    """Section 3.2: the gradient of the log-odds, dotted with a direction, is the derivative of the effect.

    transformers' RMS norms compute in float32 whatever the dtype of the model, so those families cannot be
    compared at the small step that float64 allows.
    """
    for kind, families, step, limit in (
        ("layer-norm families, float64", LAYER_NORM, STEP, FLOAT64),
        ("RMS-norm families, norms in float32", RMS_NORM, 1e-2, 1e-3),
    ):
        worst = max(_gradient_error(tiny_models(size.seed)[name], size.seed, step) for name in families)
        yield at_most(f"g . d, {kind}", worst, limit, unit="share of |g|")


def _gradient_error(model: HFModel, seed: int, step: float) -> float:
    """Largest |central difference - g . d| / |g| over two sites and four directions."""
    tokens = tiny_tokens(model, seed, batch=1)
    z = model.logits(tokens, last_only=True)[0, -1]
    inside = torch.zeros(len(z), dtype=torch.bool)
    inside[list(TARGETS)] = True
    p, worst = z.softmax(-1), 0.0
    weights = torch.where(inside, p / p[inside].sum(), -p / p[~inside].sum())
    for site in (SITE, Site(1, "hook_mlp_out")):
        g = model.vjp(tokens, site, weights[None])[0, -1]
        for k in range(4):
            d = torch.as_tensor(rng_for(seed, "lr", str(site), k).standard_normal(len(g)))
            d /= d.norm()
            up, down = (_last(model, tokens, a * d, site, last_only=True).numpy() for a in (step, -step))
            seen = (float(r.log_odds(up, TARGETS)) - float(r.log_odds(down, TARGETS))) / (2 * step)
            worst = max(worst, abs(seen - float(g @ d)) / float(g.norm()))
    return worst


def sae_on_disk(size: RunSize) -> Iterator[Measured]:
    """An SAE with layer-norm inputs, written as a SAELens folder and read back."""
    world = layer_norm_world(seed=size.seed)
    with tempfile.TemporaryDirectory() as folder:
        sae = load_sae(str(write_saelens_folder(Path(folder) / "sae", world.sae)))
    seen = measure(sae, world.activations)
    yield at_most("W_dec read back", float((sae.W_dec - world.sae.W_dec).abs().max()), 0.0, unit="weight")
    yield at_most("W_enc read back", float((sae.W_enc - world.sae.W_enc).abs().max()), 0.0, unit="weight")
    yield at_most("FVU with layer-norm inputs", seen.fvu, 1e-6, unit="share of variance", note="true value 0")
    codes = sae.encode(world.activations)
    off = float((codes - world.truth.codes).abs().max() / world.truth.codes.max())
    yield at_most("codes against truth", off, 1e-3, unit="relative error", note="float32")


def invariance(size: RunSize) -> Iterator[Measured]:
    """A rotated residual basis, another order of prompts, another batch size: the same effects."""
    plan = {"n_targets": 8, "sources_per_bin": 2, "doses": (0.1,), "n_random": 0}
    plain = study_of(readout_world(seed=size.seed).parts, seed=size.seed, **plan)
    turned = study_of(readout_world(seed=size.seed, rotation_seed=1).parts, seed=size.seed, **plan)
    batched = study_of(readout_world(seed=size.seed).parts, seed=size.seed, **plan, batch_rows=7)
    for name, other in (("basis rotated", turned), ("batch of 7 rows", batched)):
        same = plain.plan.plan["recipe"].equals(other.plan.plan["recipe"])
        if not same:
            raise AssertionError(f"{name}: the plan is another one")
        difference = plain.pair_effects()["logodds"] - other.pair_effects()["logodds"]
        # W_dec is float32: the rotated rows round differently
        limit = 1e-6 if name == "basis rotated" else 1e-12
        yield at_most(f"effects after {name}", float(np.abs(difference).max()), limit, unit="nats")


def _last(
    model: HFModel, tokens: Tensor, vector: Tensor, site: Site = SITE, *, last_only: bool = False
) -> Tensor:
    """Logits of the last position with a vector added at the last position or at all."""
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    mask[:, -1 if last_only else slice(None)] = True
    return model.logits(tokens, [Add(site, vector[None].double(), mask)], last_only=True)[0, -1]


def _softmax(logits: np.ndarray) -> np.ndarray:
    weight = np.exp(logits - logits.max())
    return weight / weight.sum()


def _relative(seen: float, expected: float) -> float:
    return abs(seen - expected) / abs(expected)
