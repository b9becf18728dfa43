"""From what a dialect read to one checked `SAE`.

Dialects give `SAEParts`: named tensors in our layout and the rules that their format declares. Here, once for
all of them, shapes and values are checked, scales are folded, and weights become float32 and contiguous.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polysem.errors import FormatError, NumericsError
from polysem.saes.base import MIN_DECODER_NORM, SAE, Activation, Provenance
from polysem.saes.names import hub_id
from polysem.saes.source import WeightFiles
from polysem.store.io import sha256
from polysem.types import Site

_SHAPES = {
    "W_enc": ("d_in", "d_sae"),
    "W_dec": ("d_sae", "d_in"),
    "b_enc": ("d_sae",),
    "b_dec": ("d_in",),
    "threshold": ("d_sae",),
    "r_mag": ("d_sae",),
    "b_mag": ("d_sae",),
    "b_gate": ("d_sae",),
}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SPARE = frozenset({"b_enc"})
"""zero in gated SAEs of older files"""
_WRITTEN = (
    *("hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"),
    *("attn.hook_out", "mlp.hook_out"),
)
"""points of the stream, and of what is added to it"""
GATE = ("r_mag", "b_mag", "b_gate")
_NEEDED: dict[Activation, tuple[str, ...]] = {
    "relu": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "topk": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "groupmax": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "jumprelu": ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"),
    "gated": ("W_enc", "W_dec", "b_dec", *GATE),
}


@dataclass(frozen=True)
class SAEParts:
    """What a dialect's files say."""

    dialect: str
    weights: Path
    """the file that holds the tensors; errors name it"""
    tensors: Mapping[str, Tensor]
    """by our names and in our layout: W_enc [d_in d_sae], W_dec [d_sae d_in], b_enc, b_dec, threshold, r_mag,
    b_mag, b_gate"""
    activation: Activation
    site: Site | str | None
    """None if the files do not say; text where they name what is no hook point here, an error unless the user names the
    site"""
    model_id: str | None
    """as the files spell it"""
    configs: tuple[Path, ...] = ()
    """other files that were read"""
    declared: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, Any] = field(default_factory=dict)
    """fields of SAE: k, normalization, subtract_b_dec, centre_input, rescale_by_decoder_norm, prepend_bos,
    context_size"""


def take(
    state: Mapping[str, Any],
    names: Mapping[str, str],
    *,
    path: Path,
    besides: Collection[str] = (),
    square: bool = True,
) -> dict[str, Tensor]:
    """Tensors of a state dict under our names.

    Args:
        state: what the file holds.
        names: our name -> the file's name; a trailing `.T` transposes.
        path: the file, for errors.
        besides: what else the format has.
        square: what is read is also what is written, so that shapes must fit W_dec; a transcoder's need not.

    Raises:
        FormatError: if one is missing, or one is there that the format does not have; or one is no tensor, or is no matrix
            although it must be transposed; or as `check_tensors`.
    """
    missing = [name for name in (theirs.removesuffix(".T") for theirs in names.values()) if name not in state]
    if missing:
        raise FormatError(
            f"{path} lacks {', '.join(missing)}; expected "
            f"{', '.join(n.removesuffix('.T') for n in names.values())}, got "
            f"{', '.join(sorted(map(str, state)))}"
        )
    known = {theirs.removesuffix(".T") for theirs in names.values()} | set(besides)
    refuse_unread([str(name) for name in state if name not in known], path)
    found = {}
    for ours, theirs in names.items():
        tensor = state[theirs.removesuffix(".T")]
        if not isinstance(tensor, Tensor):
            raise FormatError(f"{path}: {theirs} is a {type(tensor).__name__}, expected a tensor")
        if theirs.endswith(".T") and tensor.ndim != 2:
            raise FormatError(f"{path}: {theirs} has shape {tuple(tensor.shape)}, expected a matrix")
        found[ours] = tensor.T if theirs.endswith(".T") else tensor
    (check_tensors if square else _check_kinds)(found, path)
    return found


def refuse_unread(names: Collection[str], path: Path, *, hint: str | None = None) -> None:
    """A tensor that nobody reads may be half of the rule: raise FormatError, naming those."""
    if names:
        raise FormatError(
            f"{path} holds {', '.join(sorted(names))}, which this format does not have and nothing here reads",
            hint=hint
            or "an SAE in training form is saved again for use: sae.save_inference_model(folder) in SAELens",
        )


def assemble(parts: SAEParts, source: WeightFiles, *, site: Site | None) -> SAE:
    """The SAE of `parts`, checked.

    Args:
        parts: what the dialect read.
        source: where it was read from.
        site: overrides what the files say.

    Raises:
        FormatError: missing tensors, shapes that do not fit each other or the declared sizes, an impossible
            k, no site.
        NumericsError: NaN or infinity in a tensor.
    """
    tensors = {name: parts.tensors[name] for name in _needed(parts)}
    refuse_unread(set(parts.tensors) - set(tensors) - _SPARE, parts.weights)
    check_tensors(tensors, parts.weights)
    _check_sizes(parts, tensors["W_dec"], source)
    clean = {name: t.detach().to(torch.float32).contiguous() for name, t in tensors.items()}
    for name, tensor in clean.items():
        _check_numbers(parts, name, tensor)
    where = site or parts.site
    if isinstance(where, str):
        raise FormatError(
            f"{source.label}: the {parts.dialect} files declare {where!r}, which is no hook point or module path of ours",
            hint='name the site: load_sae(..., site="blocks.5.hook_resid_post"), or site = "..." in [[saes]]',
        )
    if where is None:
        raise FormatError(
            f"{source.label}: the {parts.dialect} files do not say which activations the SAE was trained on",
            hint='name the site: load_sae(..., site="blocks.5.hook_resid_post"), or site = "..." in [[saes]]',
        )
    rules = {**parts.rules, **({"centre_input": True} if source.entry and source.entry.centre_input else {})}
    if where.point not in _WRITTEN:
        rules["centre_input"] = (
            False  # centred writing weights change what is written to the stream, and nothing else
        )
    _check_k(parts, rules.get("k"), d_sae=clean["W_dec"].shape[0])
    context = rules.get("context_size")
    if context is not None and context < 2:
        raise FormatError(f"{source.label}: context size is {context}, expected at least 2 tokens")
    model = source.entry.model if source.entry else parts.model_id
    gated = parts.activation == "gated"
    return SAE(
        W_enc=clean["W_enc"],
        W_dec=clean["W_dec"],
        b_enc=torch.zeros(clean["W_dec"].shape[0]) if gated else clean["b_enc"],
        b_dec=clean["b_dec"],
        activation=parts.activation,
        reads=where,
        writes=where,
        model_id=hub_id(model) if model else None,
        model_revision=None,
        provenance=_provenance(parts, source),
        threshold=clean.get("threshold"),
        gate=(clean["r_mag"], clean["b_mag"], clean["b_gate"]) if gated else None,
        **rules,
    )


def check_tensors(tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Raise FormatError for a tensor (by our names) that is not of plain floating-point numbers, or does not fit W_dec; before
    anything is computed from them. What is missing is not asked."""
    decoder = tensors.get("W_dec")
    if decoder is not None and (decoder.ndim != 2 or 0 in decoder.shape):
        raise FormatError(f"{path}: W_dec has shape {tuple(decoder.shape)}, expected (d_sae, d_in)")
    sizes = {} if decoder is None else dict(zip(("d_sae", "d_in"), decoder.shape, strict=True))
    _check_kinds({name: tensor for name, tensor in tensors.items() if name in _SHAPES}, path)
    for name in [name for name in _SHAPES if name in tensors]:
        tensor = tensors[name]
        expected = tuple(sizes.get(axis) for axis in _SHAPES[name])
        if sizes and tuple(tensor.shape) != expected:
            raise FormatError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, expected {expected} (d_in "
                f"{sizes['d_in']}, d_sae {sizes['d_sae']} by W_dec)"
            )


def _check_kinds(tensors: Mapping[str, Tensor], path: Path | str) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise FormatError(
                f"{path}: {name} is stored as {tensor.dtype}, expected floating-point numbers of 16 bits or more",
                hint="quantised weights must be given back their scale first: save the SAE in float32",
            )


def fold_input_scale(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Weights for raw inputs from weights for inputs times `scale`: W_enc * s, W_dec / s, b_dec / s, the rest
    untouched; of those that are there."""
    factors = {"W_enc": scale, "W_dec": 1 / scale, "b_dec": 1 / scale}
    return {name: t * factors[name] if name in factors else t for name, t in tensors.items()}


def fold_decoder_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Decoder rows to unit norm; activations are multiplied by the old norms and the reconstruction stays.
    ReLU and JumpReLU only."""
    norms = tensors["W_dec"].float().norm(dim=-1).clamp(min=MIN_DECODER_NORM)
    folded = {name: tensors[name].float() * norms for name in ("b_enc", "threshold") if name in tensors}
    return {
        **tensors,
        **folded,
        "W_enc": tensors["W_enc"].float() * norms,
        "W_dec": tensors["W_dec"].float() / norms[:, None],
    }


def _needed(parts: SAEParts) -> tuple[str, ...]:
    needed = _NEEDED[parts.activation]
    missing = [name for name in needed if name not in parts.tensors]
    if missing:
        raise FormatError(
            f"{parts.weights} lacks {', '.join(missing)}; a {parts.activation} SAE has {', '.join(needed)}, "
            f"the file gives {', '.join(sorted(parts.tensors)) or 'nothing'}"
        )
    return needed


def _check_sizes(parts: SAEParts, decoder: Tensor, source: WeightFiles) -> None:
    for name, size in zip(("d_sae", "d_in"), decoder.shape, strict=True):
        registered = getattr(source.entry, name) if source.entry else None
        for declared, by in (
            (parts.declared.get(name), "configuration declares"),
            (registered, "registry of releases says"),
        ):
            if isinstance(declared, int) and declared > 0 and declared != size:
                raise FormatError(f"{parts.weights}: {name} is {size} by W_dec, but the {by} {declared}")


def _check_numbers(parts: SAEParts, name: str, tensor: Tensor) -> None:
    if name in ("W_enc", "W_dec") and not tensor.any():
        raise NumericsError(
            f"{parts.weights}: every value of {name} is 0; an SAE like that reconstructs nothing",
            hint="download the file again, or ask its author",
        )
    bad = sum(int((~block.isfinite()).sum()) for block in tensor.flatten().split(1 << 22))
    if bad:
        raise NumericsError(
            f"{parts.weights}: {name} holds {bad} values that are NaN or infinite, of {tensor.numel()}; "
            "expected none",
            hint="download the file again, or ask its author",
        )


def _check_k(parts: SAEParts, k: object, *, d_sae: int) -> None:
    if parts.activation not in ("topk", "groupmax"):
        return
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= d_sae:
        raise FormatError(f"{parts.weights}: k is {k!r}, expected an integer from 1 to d_sae = {d_sae}")
    if parts.activation == "groupmax" and d_sae % k:
        raise FormatError(f"{parts.weights}: groupmax needs d_sae = {d_sae} to be a multiple of k = {k}")


def _provenance(parts: SAEParts, source: WeightFiles) -> Provenance:
    files = tuple(sorted((path.name, sha256(path)) for path in (parts.weights, *parts.configs)))
    weight_hash = dict(files)[parts.weights.name]
    declared = dict(parts.declared)
    if source.entry and source.entry.neuronpedia:
        declared["neuronpedia"] = source.entry.neuronpedia
    return Provenance(
        ref=source.ref,
        revision=source.revision or weight_hash,
        dialect=parts.dialect,
        files=files,
        declared=declared,
    )
