"""Encode and decode, by the written rule of each activation and normalisation; the only place where the
arithmetic of an SAE lives.

    x -> centre -> normalise -> minus b_dec -> @ W_enc + b_enc -> activation        (encode)
    acts -> @ W_dec + b_dec -> undo the normalisation -> add back the mean          (decode)

The rules are those of SAELens 6 (sae_lens/saes/sae.py), which formats older dialects into the same form, plus
sparsify's groupmax.
Weights say the device and the precision: inputs are moved to them.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from polysem.errors import ConfigError
from polysem.saes.base import SAE

LAYER_NORM_EPS = 1e-5
"""added to the standard deviation when dividing by it, and not when multiplying back; as SAELens and OpenAI
do"""
MIN_DECODER_NORM = 1e-8
"""decoder rows of dead features may be zero; dividing by their norm must not make NaN"""


def encode(sae: SAE, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
    """Feature activations, non-negative, in the units of the source's decoder rows."""
    return _activate(sae, encoder_input(sae, x) @ sae.W_enc)


def encoder_input(sae: SAE, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
    """What W_enc multiplies: centred, normalised, b_dec subtracted, where the SAE wants it."""
    inner = _normalize(sae, _centre(sae, _on(sae, x)))
    return inner - sae.b_dec if sae.subtract_b_dec else inner


def decode(
    sae: SAE, acts: Float[Tensor, "*batch d_sae"], *, like: Float[Tensor, "*batch d_in"] | None = None
) -> Float[Tensor, "*batch d_in"]:
    """Reconstruction of the input, in the input's units.

    Args:
        sae: the SAE.
        acts: feature activations, as `encode` gives them.
        like: the input that was encoded. Required if the SAE normalises each input by its own scale. If the
        SAE centres its
            input, the mean of `like` is added back; without `like` the reconstruction is the centred one.

    Raises:
        ConfigError: if `like` is required and missing.
    """
    acts = _on(sae, acts)
    if sae.rescale_by_decoder_norm:
        acts = acts / decoder_norms(sae)
    out = acts @ sae.W_dec + sae.b_dec
    if like is None:
        if sae.normalization != "none":
            raise ConfigError(
                f"decode of an SAE with {sae.normalization} needs the input it was encoded from",
                hint="sae.decode(acts, like=x)",
            )
        return out
    raw = _on(sae, like)
    return _denormalize(sae, out, _centre(sae, raw)) + (raw - _centre(sae, raw))


def decoder_norms(sae: SAE) -> Float[Tensor, " d_sae"]:
    """Euclidean norm of each decoder row, kept above zero."""
    return sae.W_dec.norm(dim=-1).clamp(min=MIN_DECODER_NORM)


def _on(sae: SAE, x: Tensor) -> Tensor:
    return x.to(device=sae.W_enc.device, dtype=sae.W_enc.dtype)


def _centre(sae: SAE, x: Tensor) -> Tensor:
    return x - x.mean(dim=-1, keepdim=True) if sae.centre_input else x


def _normalize(sae: SAE, x: Tensor) -> Tensor:
    match sae.normalization:
        case "none":
            return x
        case "layer_norm":
            centred = x - x.mean(dim=-1, keepdim=True)
            return centred / (centred.std(dim=-1, keepdim=True) + LAYER_NORM_EPS)
        case "constant_norm_rescale":
            return x * (sae.d_in**0.5 / x.norm(dim=-1, keepdim=True))


def _denormalize(sae: SAE, out: Tensor, x: Tensor) -> Tensor:
    match sae.normalization:
        case "none":
            return out
        case "layer_norm":
            return out * x.std(dim=-1, keepdim=True) + x.mean(dim=-1, keepdim=True)
        case "constant_norm_rescale":
            return out * (x.norm(dim=-1, keepdim=True) / sae.d_in**0.5)


def _activate(sae: SAE, product: Tensor) -> Tensor:
    """Activations from x @ W_enc, biases not yet added."""
    if sae.activation == "gated":
        return _gated(sae, product)
    pre = product + sae.b_enc
    if sae.rescale_by_decoder_norm:
        pre = pre * decoder_norms(sae)
    match sae.activation:
        case "relu":
            return torch.relu(pre)
        case "topk":
            return _scatter_relu(pre, *torch.topk(pre, _k(sae), dim=-1, sorted=False))
        case "groupmax":
            groups = torch.relu(pre).unflatten(-1, (_k(sae), -1))
            values, best = groups.max(dim=-1)
            return torch.zeros_like(groups).scatter_(-1, best[..., None], values[..., None]).flatten(-2)
        case "jumprelu":
            if sae.threshold is None:
                raise ConfigError("a jumprelu SAE needs `threshold` [d_sae], got None")
            return torch.relu(pre) * (pre > sae.threshold)


def _scatter_relu(pre: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    """Top k first, then ReLU: a token may have fewer than k active features."""
    return torch.zeros_like(pre).scatter_(-1, indices, torch.relu(values))


def _gated(sae: SAE, product: Tensor) -> Tensor:
    if sae.gate is None:
        raise ConfigError("a gated SAE needs `gate` (r_mag, b_mag, b_gate), got None")
    r_mag, b_mag, b_gate = sae.gate
    return (product + b_gate > 0) * torch.relu(product * r_mag.exp() + b_mag)


def _k(sae: SAE) -> int:
    if sae.k is None:
        raise ConfigError(f"a {sae.activation} SAE needs `k`, got None")
    return sae.k
