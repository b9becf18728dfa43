"""One record for every sparse autoencoder, whatever dialect its file spoke.

Loaders transpose, fold and rename; nobody else does. The record keeps weights in float32 on the CPU unless
asked otherwise. Encode and decode go by the written rule of each activation and normalisation; the arithmetic
of an SAE lives here only.

    x -> centre -> normalise -> minus b_dec -> @ W_enc + b_enc -> activation        (encode)
    acts -> @ W_dec + b_dec -> undo the normalisation -> add back the mean          (decode)

The rules are those of SAELens 6 (sae_lens/saes/sae.py), which formats older dialects into the same form, plus
sparsify's groupmax. Weights say the device and the precision: inputs are moved to them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polysem.errors import ConfigError, MismatchError
from polysem.positions import StandIn
from polysem.store.result import Shown
from polysem.types import Site

Activation = Literal["relu", "topk", "jumprelu", "gated", "groupmax"]
Normalization = Literal["none", "layer_norm", "constant_norm_rescale"]

LAYER_NORM_EPS = 1e-5
"""added to the standard deviation when dividing by it, and not when multiplying back; as SAELens and OpenAI
do"""
MIN_DECODER_NORM = 1e-8
"""decoder rows of dead features may be zero; dividing by their norm must not make NaN"""


@dataclass(frozen=True)
class Provenance:
    """Where an SAE came from, as it goes into manifests."""

    ref: str
    revision: str
    """commit on the Hub, or sha256 of the weight file"""
    dialect: str
    files: tuple[tuple[str, str], ...] = ()
    """(file name, sha256) of every file read"""
    declared: dict[str, object] = field(default_factory=dict)
    """the source's own configuration, for the record"""
    measured: dict[str, float] = field(default_factory=dict)
    """what the fidelity gate saw at load: fvu, l0, n_tokens; empty if no model was given"""


@dataclass(frozen=True, repr=False)
class SAE(Shown):
    """A sparse autoencoder (or the parts of one that polysem uses). See formats: `docs/saes.md`."""

    W_enc: Float[Tensor, "d_in d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_out"]
    activation: Activation
    reads: Site
    """whose activations are encoded"""
    writes: Site
    """what decoder rows are directions of; of an autoencoder the site that it reads"""
    model_id: str | None
    """Hub id (or zoo reference) of the model whose activations it was trained on; None if the source does not
    say"""
    model_revision: str | None
    provenance: Provenance
    threshold: Float[Tensor, " d_sae"] | None = None
    k: int | None = None
    """active features of topk; number of groups of groupmax"""
    gate: tuple[Tensor, Tensor, Tensor] | None = None
    """(r_mag, b_mag, b_gate), each [d_sae], of a gated SAE; b_enc is then zero"""
    normalization: Normalization = "none"
    subtract_b_dec: bool = True
    """x - b_dec before encoding"""
    centre_input: bool = False
    """x - mean(x) before everything: SAEs trained on TransformerLens-centred residuals"""
    rescale_by_decoder_norm: bool = False
    """pre-activations times decoder norms before top-k, divided after"""
    prepend_bos: bool = True
    """whether rows begin with BOS: as it was trained, or as the study says"""
    bos_stand_in: StandIn = "none"
    """what its training tool puts in front where the tokenizer has no BOS"""
    context_size: int | None = None

    def facts(self) -> Mapping[str, object]:
        of = self.provenance
        where = str(self.reads) if self.reads == self.writes else f"{self.reads} -> {self.writes}"
        known = {
            "ref": of.ref,
            "site": where,
            "features": self.d_sae,
            "width": self.d_out,
            "rule": self.activation,
        }
        return {**known, **({} if self.k is None else {"k": self.k}), **of.measured}

    @property
    def d_in(self) -> int:
        """Width of what is read."""
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        """Width of what is written."""
        return self.W_dec.shape[1]

    @property
    def site(self) -> Site:
        """The one site of an autoencoder.

        Raises:
            MismatchError: if it reads one site and writes another.
        """
        if self.reads != self.writes:
            raise MismatchError(
                f"{self.provenance.ref} reads {self.reads} and writes {self.writes}; expected one site for both",
                hint="use an autoencoder of one site here",
            )
        return self.reads

    def at(self, site: Site) -> "SAE":
        """The same dictionary, reading at another site; an autoencoder writes there, too."""
        return replace(self, reads=site, writes=site if self.reads == self.writes else self.writes)

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        parts = (self.W_enc, self.W_dec, self.b_enc, self.b_dec, self.threshold, *(self.gate or ()))
        return sum(part.nbytes for part in parts if part is not None)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations, non-negative, in the units of the source's decoder rows (not folded to unit norm)."""
        return _activate(self, encoder_input(self, x) @ self.W_enc)

    def decode(
        self, acts: Float[Tensor, "*batch d_sae"], *, like: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """Reconstruction of the input, in the input's units.

        Args:
            acts: feature activations, as `encode` gives them.
            like: the input that was encoded. Required if the SAE normalises each input by its own scale. If
                the SAE centres its input, the mean of `like` is added back; without `like` the reconstruction
                is the centred one.

        Raises:
            ConfigError: if `like` is required and missing.
        """
        acts = _on(self, acts)
        if self.rescale_by_decoder_norm:
            acts = acts / decoder_norms(self)
        out = acts @ self.W_dec + self.b_dec
        if like is None:
            if self.normalization != "none":
                raise ConfigError(
                    f"decode of an SAE with {self.normalization} needs the input it was encoded from",
                    hint="sae.decode(acts, like=x)",
                )
            return out
        raw = _on(self, like)
        return _denormalize(self, out, _centre(self, raw)) + (raw - _centre(self, raw))

    def to(self, device: str) -> "SAE":
        """The same SAE with its weights on a torch device."""
        moved = {
            name: None if getattr(self, name) is None else getattr(self, name).to(device)
            for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
        }
        gate = None if self.gate is None else tuple(part.to(device) for part in self.gate)
        return replace(self, gate=gate, **moved)


def encoder_input(sae: SAE, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
    """What W_enc multiplies: centred, normalised, b_dec subtracted, where the SAE wants it."""
    inner = _normalize(sae, _centre(sae, _on(sae, x)))
    return inner - sae.b_dec if sae.subtract_b_dec else inner


def decoder_norms(sae: SAE) -> Float[Tensor, " d_sae"]:
    """Euclidean norm of each decoder row, kept above zero."""
    return sae.W_dec.norm(dim=-1).clamp(min=MIN_DECODER_NORM)


def decoder_rows(sae: SAE) -> Float[np.ndarray, "d_sae d_out"]:
    """The decoder in float64."""
    return sae.W_dec.detach().cpu().double().numpy()


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
