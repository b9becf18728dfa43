"""The two ends of an edge: what a feature writes into the stream, and what another one reads out of it.

    weight[i, j] = sum over sites that i writes before j reads of  row_i[site] . column_j

A row is what one unit of activation adds; a column is what the pre-activation of j takes per unit of the stream. Where j
reads behind a norm its column is folded with the norm: gain times column, centred for a LayerNorm, and divided by the mean
scale of the corpus (frozen). Logits are read so behind the final norm, the mean of all logits left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from polysem.errors import MismatchError
from polysem.models.base import WhiteBoxModel
from polysem.models.hf import HFModel
from polysem.saes.base import SAE, decoder_norms, encoder_input
from polysem.saes.transcoder import Transcoder
from polysem.types import Site

STREAM = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")
"""points of a block that are of the stream or added to it, in the order of a forward pass"""
_READ_AT = {
    "hook_resid_pre": 0.0, "attn.hook_in": 0.5, "hook_resid_mid": 2.0, "mlp.hook_in": 2.5, "hook_resid_post": 4.0,
}  # fmt: skip
"""points that read the whole stream, on the same scale as the places in STREAM"""
_BEFORE = {"mlp.hook_in": ("hook_resid_mid", "hook_resid_pre"), "attn.hook_in": ("hook_resid_pre",)}
"""what a norm in front of a part reads: the first that the family has"""
_LARGE = 1e3
"""of a probe of +-1: the epsilon of a norm vanishes beside it"""


@dataclass(frozen=True)
class Ends:
    """The features of one dictionary."""

    label: str
    encoder: SAE
    rows: Mapping[Site, Float[Tensor, "d_sae d_model"]]
    """what one unit of activation writes, by site"""

    @classmethod
    def of(cls, label: str, dictionary: SAE | Transcoder) -> "Ends":
        """Of an autoencoder or a transcoder.

        Raises:
            MismatchError: a rule under which the pre-activation is not linear in the stream.
        """
        if isinstance(dictionary, Transcoder):
            sae, rows = dictionary.encoder, dictionary.W_dec
        else:
            sae, rows = dictionary, {dictionary.writes: dictionary.W_dec}
        if sae.normalization != "none" or sae.activation in ("gated", "groupmax"):
            raise MismatchError(
                f"{label} is {sae.activation} with normalization {sae.normalization}: what a feature reads is not linear in "
                "the stream; expected relu, topk or jumprelu without normalization",
                hint="leave this dictionary out of [[saes]]",
            )
        scale = decoder_norms(sae)[:, None] if sae.rescale_by_decoder_norm else 1.0
        return cls(label, sae, {site: (own / scale).detach() for site, own in rows.items()})

    @property
    def reads(self) -> Site:
        """Where activations come from."""
        return self.encoder.reads

    @property
    def order(self) -> list[Site]:
        """The written sites in the order of a forward pass."""
        return sorted(self.rows, key=_written_at)

    @property
    def first(self) -> Site:
        """The first site that is written."""
        return self.order[0]

    def columns(self) -> Float[Tensor, "d_sae d_in"]:
        """What a pre-activation takes per unit of what is read, no norm folded."""
        sae = self.encoder
        own = sae.W_enc.T.detach()
        own = own * decoder_norms(sae)[:, None] if sae.rescale_by_decoder_norm else own
        return own - own.mean(1, keepdim=True) if sae.centre_input else own

    def pre(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        """Pre-activations, on the scale of activations."""
        sae = self.encoder
        raw = encoder_input(sae, x) @ sae.W_enc + sae.b_enc
        return (raw * decoder_norms(sae) if sae.rescale_by_decoder_norm else raw).detach()

    def written_before(self, later: Site) -> dict[Site, Float[Tensor, "d_sae d_model"]]:
        """What is written before a site reads the stream."""
        place = _read_at(later)
        return {site: own for site, own in self.rows.items() if _written_at(site) < place}


def _written_at(site: Site) -> tuple[int, float]:
    layer = -1 if site.layer is None else site.layer
    return layer, float(STREAM.index(site.point)) if site.point in STREAM else -1.0


def _read_at(site: Site) -> tuple[int, float]:
    return (-1 if site.layer is None else site.layer), _READ_AT.get(site.point, -1.0)


def linked(source: Ends, target: Ends) -> bool:
    """Whether there are weights from one dictionary to another: the target reads the whole stream, in a later layer than that
    where the source first writes."""
    first, read = source.first, target.reads
    known = first.point in STREAM and read.point in _READ_AT and read.layer is not None
    return known and (first.layer if first.layer is not None else -1) < (read.layer or 0)


def why_not(source: Ends, target: Ends) -> str:
    """Why two dictionaries are not linked, in words; "" if they are."""
    if linked(source, target):
        return ""
    if target.reads.point not in _READ_AT:
        return f"{target.reads} is no reading of the whole stream"
    if source.first.point not in STREAM:
        return f"{source.first} is not written into the stream"
    return f"{target.reads} is in no later layer than {source.first}"


@dataclass(frozen=True)
class ReadNorm:
    """A norm with its scale frozen."""

    gain: Float[Tensor, " d"]
    centres: bool
    scale: float
    """mean over the corpus of what it divides by"""
    stream: Site | None
    """what it reads"""

    def fold(self, columns: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Columns that read the stream in front of the norm."""
        own = columns * self.gain
        own = own - own.mean(1, keepdim=True) if self.centres else own
        return own / self.scale


def norm_before(model: WhiteBoxModel, site: Site) -> ReadNorm | None:
    """The norm between the stream and a reading site, its scale 1 until `with_scale`; None where there is none."""
    known = set(model.sites())
    stream = next(
        (Site(site.layer, p) for p in _BEFORE.get(site.point, ()) if Site(site.layer, p) in known), None
    )
    if stream is None or not isinstance(model, HFModel):
        return None
    return ReadNorm(norm_gain(model, model.tap(site).path), model.spec.norm == "layer", 1.0, stream)


def final_norm(model: WhiteBoxModel) -> ReadNorm | None:
    """The norm in front of the unembedding, its scale 1 until `with_scale`; None for worlds, which have none."""
    if not isinstance(model, HFModel):
        return None
    last = Site(model.spec.n_layers - 1, "hook_resid_post")
    return ReadNorm(norm_gain(model, model.anatomy.final_norm), model.spec.norm == "layer", 1.0, last)


def norm_gain(model: HFModel, path: str) -> Float[Tensor, " d"]:
    """The gain of a norm module, by what it makes of +-1 and of 0: whatever it calls its weight, and adds to it."""
    module = model.model.get_submodule(path)
    weight = next(module.parameters())
    signs = torch.ones(weight.shape[0], dtype=weight.dtype, device=weight.device)
    signs[1::2] = -1.0
    with torch.no_grad():
        made = module(torch.stack([_LARGE * signs, torch.zeros_like(signs)])[None])[0].float()
    return ((made[0] - made[1]) * signs.float()).cpu()


def with_scale(norm: ReadNorm, stream: Float[Tensor, "n d"]) -> ReadNorm:
    """The norm with the mean scale of what stands in the stream."""
    x = stream.double()
    x = x - x.mean(1, keepdim=True) if norm.centres else x
    return replace(norm, scale=float(x.pow(2).mean(1).sqrt().mean()))


def logit_columns(model: WhiteBoxModel, norm: ReadNorm | None) -> Float[Tensor, "d_vocab d"]:
    """What each logit, less the mean of all, takes of the stream behind the last block."""
    W_U = model.W_U.detach().float().cpu()
    centred = W_U - W_U.mean(0)
    return centred if norm is None else norm.fold(centred)


def summed(
    rows: Mapping[Site, Float[Tensor, "d_sae d"]], which: Sequence[int] | Tensor
) -> Float[Tensor, "n d"]:
    """Rows of some features, over all sites."""
    index = torch.as_tensor(which, dtype=torch.long)
    return torch.stack([own[index] for own in rows.values()]).sum(0)
