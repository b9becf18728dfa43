"""Transcoders: features that read at one site and write at one or several others, one record for every dialect.

    codes       = activation(x W_enc + b_enc)                                        (encode)
    part[site]  = codes W_dec[site] + b_dec[site] + x W_skip[site]                   (parts)
    written[m]  = sum of what every layer's transcoder writes at m                   (TranscoderSet.written)

A per-layer transcoder writes one site; a cross-layer one that of its own layer and of later ones. The encoder is an `SAE`,
so that activations, screens and tables know it; the arithmetic of writing is here. The rules of the dialects are folded into
this one by their loaders (`saes/transcoders/`): scales of input and output, post-encoder scales, transposes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from polysem.errors import FormatError, MismatchError, NumericsError
from polysem.saes.base import SAE, Activation, Provenance
from polysem.saes.names import hub_id, same_model
from polysem.types import Site


@dataclass(frozen=True)
class Writer:
    """What the features of a transcoder write at one site. `made_transcoder` checks that shapes fit each other, and says which
    does not."""

    site: Site
    W_dec: Float[Tensor, "..."]
    b_dec: Float[Tensor, "..."]
    W_skip: Float[Tensor, "..."] | None = None
    """x @ W_skip is added: the linear path beside the features"""
    bonus: Float[Tensor, "..."] | None = None
    """added to every active latent before it is decoded (clt-training's post_enc)"""

    def part(
        self, acts: Float[Tensor, "*batch d_sae"], x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_out"]:
        """What is written, in the units of the site."""
        codes = acts if self.bonus is None else acts + self.bonus * (acts > 0)
        out = codes @ self.W_dec + self.b_dec
        return out if self.W_skip is None else out + x.to(self.W_skip) @ self.W_skip


@dataclass(frozen=True)
class Transcoder:
    """One layer's features."""

    encoder: SAE
    """reads, and activates; its decoder is the first writer's"""
    writers: tuple[Writer, ...]
    """by layer, the first the own one"""

    @property
    def reads(self) -> Site:
        """Whose activations are encoded."""
        return self.encoder.reads

    @property
    def writes(self) -> tuple[Site, ...]:
        """Where its features write, by layer."""
        return tuple(writer.site for writer in self.writers)

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        return self.encoder.W_enc

    @property
    def W_dec(self) -> dict[Site, Float[Tensor, "d_sae d_out"]]:
        """Decoder rows by written site."""
        return {writer.site: writer.W_dec for writer in self.writers}

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations, as `SAE.encode`."""
        return self.encoder.encode(x)

    def parts(self, x: Float[Tensor, "*batch d_in"]) -> dict[Site, Float[Tensor, "*batch d_out"]]:
        """What it writes at each of its sites, from what it reads."""
        acts = self.encode(x)
        return {writer.site: writer.part(acts, x) for writer in self.writers}

    def face(self, site: Site) -> SAE:
        """The dictionary of what its features write at one site: the pair kernel's and steering's view of it.

        Raises:
            MismatchError: if it does not write there.
        """
        for writer in self.writers:
            if writer.site == site:
                return replace(self.encoder, W_dec=writer.W_dec, b_dec=writer.b_dec, writes=site)
        raise MismatchError(
            f"the transcoder of {self.reads} writes {', '.join(map(str, self.writes))}, not {site}",
            hint=f"ask for {self.writes[0]}",
        )

    def reading(self, point: str) -> "Transcoder":
        """The same, reading at another point of its layer."""
        return replace(self, encoder=replace(self.encoder, reads=Site(self.reads.layer, point)))


@dataclass(frozen=True)
class TranscoderSet:
    """Transcoders of one model, one a layer."""

    layers: tuple[Transcoder, ...]
    whole: bool
    """whether the dialect holds every layer of the model, so that fewer are an error"""
    provenance: Provenance

    @property
    def cross_layer(self) -> bool:
        """Whether features write beyond their own layer."""
        return any(len(one.writers) > 1 for one in self.layers)

    @property
    def model_id(self) -> str | None:
        """As the files say."""
        return self.layers[0].encoder.model_id

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every written site, by layer."""
        return tuple(sorted({site for one in self.layers for site in one.writes}))

    def written(
        self, read: Mapping[Site, Float[Tensor, "*batch d_in"]]
    ) -> dict[Site, Float[Tensor, "*batch d_out"]]:
        """What stands at every written site by the transcoders, from what stands where they read."""
        found: dict[Site, Tensor] = {}
        for one in self.layers:
            for site, part in one.parts(read[one.reads]).items():
                found[site] = found[site] + part if site in found else part
        return {site: found[site] for site in self.sites}


def made_transcoder(
    *,
    W_enc: Float[Tensor, "..."],
    b_enc: Float[Tensor, "..."],
    writers: Sequence[Writer],
    activation: Activation,
    reads: Site,
    model_id: str | None,
    provenance: Provenance,
    threshold: Float[Tensor, "..."] | None = None,
    k: int | None = None,
    prepend_bos: bool = True,
    context_size: int | None = None,
    subtract_b_dec: bool = False,
) -> Transcoder:
    """A transcoder from its tensors, W_enc [d_in d_sae], checked; they become float32 and contiguous.

    Raises:
        FormatError: shapes that do not fit each other, a k or a threshold that is missing, no writer.
        NumericsError: NaN or infinity, or a decoder of zeros alone.
    """
    where = f"{provenance.ref}, {reads}"
    if not writers:
        raise FormatError(f"{where}: no decoder at all; expected one for each written layer")
    d_in, d_sae = _matrix(W_enc, f"{where}: W_enc")
    expected = {"b_enc": (b_enc, (d_sae,)), "threshold": (threshold, (d_sae,))}
    for writer in writers:
        d_out = _matrix(writer.W_dec, f"{where}: W_dec of {writer.site}")[1]
        expected |= {
            f"W_dec of {writer.site}": (writer.W_dec, (d_sae, d_out)),
            f"b_dec of {writer.site}": (writer.b_dec, (d_out,)),
            f"W_skip of {writer.site}": (writer.W_skip, (d_in, d_out)),
            f"post_enc of {writer.site}": (writer.bonus, (d_sae,)),
        }
    for name, (tensor, shape) in {"W_enc": (W_enc, (d_in, d_sae)), **expected}.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise FormatError(
                f"{where}: {name} has shape {tuple(tensor.shape)}, expected {shape} (d_in {d_in}, d_sae {d_sae} by W_enc)",
                hint="a skip matrix maps what is read to what is written; of a square one the fidelity gate tells the side",
            )
        if not torch.isfinite(tensor).all():
            raise NumericsError(
                f"{where}: {name} holds NaN or infinity; expected neither", hint="download it again"
            )
    if not any(writer.W_dec.any() for writer in writers):
        raise NumericsError(
            f"{where}: every decoder value is 0; such features write nothing", hint="download it again"
        )
    if activation == "jumprelu" and threshold is None:
        raise FormatError(f"{where}: a JumpReLU transcoder without its threshold [d_sae]")
    if activation in ("topk", "groupmax") and not (isinstance(k, int) and 1 <= k <= d_sae):
        raise FormatError(f"{where}: k is {k!r}, expected an integer from 1 to d_sae = {d_sae}")
    own = tuple(
        Writer(w.site, _plain(w.W_dec), _plain(w.b_dec), _maybe(w.W_skip), _maybe(w.bonus)) for w in writers
    )
    encoder = SAE(
        W_enc=_plain(W_enc), W_dec=own[0].W_dec, b_enc=_plain(b_enc), b_dec=own[0].b_dec,
        activation=activation, reads=reads, writes=own[0].site, model_id=hub_id(model_id) if model_id else None,
        model_revision=None, provenance=provenance, threshold=_maybe(threshold), k=k,
        subtract_b_dec=subtract_b_dec, prepend_bos=prepend_bos, context_size=context_size,
    )  # fmt: skip
    return Transcoder(encoder, own)


def made_set(layers: Sequence[Transcoder], *, whole: bool, provenance: Provenance) -> TranscoderSet:
    """A set from its layers, in order.

    Raises:
        FormatError: no layer, or a gap.
        MismatchError: files of different models.
    """
    layers = sorted(layers, key=lambda one: one.reads)
    numbers = [one.reads.layer for one in layers]
    if not layers:
        raise FormatError(f"{provenance.ref} holds no transcoder")
    if len(set(numbers)) < len(numbers) or (whole and numbers != list(range(len(numbers)))):
        raise FormatError(
            f"{provenance.ref} holds the layers {', '.join(map(str, numbers))}; expected each from 0 on, once",
            hint="fetch the files of the layers between again",
        )
    first = layers[0].encoder
    for one in layers[1:]:
        other = one.encoder
        ids = (first.model_id, other.model_id)
        if other.d_in != first.d_in or (ids[0] and ids[1] and not same_model(ids[0], ids[1])):
            raise MismatchError(
                f"{provenance.ref}: layer {first.reads.layer} is of {ids[0] or 'a model'}, width {first.d_in}, "
                f"layer {other.reads.layer} of {ids[1] or 'a model'}, width {other.d_in}; expected one model",
                hint="keep the files of each model in a folder of their own",
            )
    return TranscoderSet(tuple(layers), whole, provenance)


def _matrix(tensor: Tensor, name: str) -> tuple[int, int]:
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise FormatError(f"{name} is {tuple(tensor.shape)} of {tensor.dtype}, expected a matrix of floats")
    return tensor.shape[0], tensor.shape[1]


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32).contiguous()


def _maybe(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _plain(tensor)
