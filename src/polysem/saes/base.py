"""One record for every sparse autoencoder, whatever dialect its file spoke.

Loaders transpose, fold and rename; nobody else does. The record keeps weights in float32 on the CPU unless
asked otherwise.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from polysem.types import Site

Activation = Literal["relu", "topk", "jumprelu", "gated", "groupmax"]
Normalization = Literal["none", "layer_norm", "constant_norm_rescale"]


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


@dataclass(frozen=True)
class SAE:
    """A sparse autoencoder (or the parts of one that polysem uses). See formats: `docs/saes.md`."""

    W_enc: Float[Tensor, "d_in d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_in"]
    activation: Activation
    site: Site
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
    context_size: int | None = None

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        parts = (self.W_enc, self.W_dec, self.b_enc, self.b_dec, self.threshold, *(self.gate or ()))
        return sum(part.nbytes for part in parts if part is not None)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations in the units of the source's decoder rows (not folded to unit norm)."""
        from polysem.saes.codec import encode

        return encode(self, x)

    def decode(
        self, acts: Float[Tensor, "*batch d_sae"], *, like: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction. `like` is the input that was encoded: needed where the normalisation depends on the
        input."""
        from polysem.saes.codec import decode

        return decode(self, acts, like=like)

    def to(self, device: str) -> "SAE":
        """The same SAE with its weights on a torch device."""
        moved = {
            name: None if getattr(self, name) is None else getattr(self, name).to(device)
            for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
        }
        gate = None if self.gate is None else tuple(part.to(device) for part in self.gate)
        return replace(self, gate=gate, **moved)
