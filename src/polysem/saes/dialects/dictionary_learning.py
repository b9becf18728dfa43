"""dictionary_learning (Marks, Karvonen, Mueller): `ae.pt` (a state dict) + `config.json` with `trainer` and
`buffer`.

Rules: dictionary_learning `dictionary.py` and `trainers/`. Loaders there scale AutoEncoder's decoder to unit
norm, and AutoEncoderNew reports features times their decoder norm; both are folded here. BatchTopK
dictionaries are used with their learned threshold.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from polysem.boundary.settings import setting
from polysem.boundary.tensors import read_torch
from polysem.errors import FormatError
from polysem.saes.base import Activation
from polysem.saes.parts import SAEParts, fold_decoder_norm, take
from polysem.saes.source import WeightFiles, read_json
from polysem.types import Site

WEIGHTS = "ae.pt"
logger = logging.getLogger(__name__)
_LINEAR = {"W_enc": "encoder.weight.T", "W_dec": "decoder.weight.T"}
_MATRIX = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
_BUFFERS = ("k", "threshold", "group_sizes")
"""of top-k classes, beside their weights"""
_SUBMODULES = (
    (r"resid_pre", "hook_resid_pre"),
    (r"resid_mid", "hook_resid_mid"),
    (r"resid", "hook_resid_post"),
    (r"mlp", "hook_mlp_out"),
    (r"att", "hook_attn_out"),
)


@dataclass(frozen=True)
class _Class:
    """How one dict_class is stored and computed."""

    activation: Activation
    names: Mapping[str, str]
    subtract_b_dec: bool = True
    fold: bool = False


_CLASSES = {
    "AutoEncoder": _Class("relu", {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "bias"}, fold=True),
    "AutoEncoderNew": _Class(
        "relu", {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "decoder.bias"}, subtract_b_dec=False, fold=True
    ),
    "GatedAutoEncoder": _Class(
        "gated",
        {**_LINEAR, "b_dec": "decoder_bias", "r_mag": "r_mag", "b_mag": "mag_bias", "b_gate": "gate_bias"},
    ),
    "AutoEncoderTopK": _Class("topk", {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "b_dec"}),
    "BatchTopKSAE": _Class("jumprelu", {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "b_dec"}),
    "MatryoshkaBatchTopKSAE": _Class("jumprelu", _MATRIX),
    "JumpReluAutoEncoder": _Class("jumprelu", {**_MATRIX, "threshold": "threshold"}, subtract_b_dec=False),
}
_BY_KEYS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"encoder.weight", "decoder.weight", "r_mag", "gate_bias", "mag_bias"}), "GatedAutoEncoder"),
    (frozenset({"encoder.weight", "encoder.bias", "decoder.weight", "b_dec"}), "AutoEncoderTopK"),
    (frozenset({"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}), "AutoEncoderNew"),
    (frozenset({"encoder.weight", "encoder.bias", "decoder.weight", "bias"}), "AutoEncoder"),
    (frozenset({"W_enc", "W_dec", "b_enc", "b_dec", "group_sizes"}), "MatryoshkaBatchTopKSAE"),
    (frozenset({"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}), "JumpReluAutoEncoder"),
)
"""keys of a state dict -> its class; the first that fits"""


def load(source: WeightFiles) -> SAEParts:
    """Read a dictionary_learning folder. Raises FormatError for an unknown dict_class or a config without its
    trainer."""
    config_path, weights_path = source.path / "config.json", source.path / WEIGHTS
    config = read_json(config_path)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict) or "dict_class" not in trainer:
        raise FormatError(f"{config_path} has no trainer.dict_class; expected one of {', '.join(_CLASSES)}")
    name = setting(trainer, "dict_class", str, where=config_path)
    if name not in _CLASSES:
        raise FormatError(
            f"{config_path}: trainer.dict_class is {name!r}, expected one of {', '.join(_CLASSES)}"
        )
    state = read_torch(weights_path)
    buffer = setting(config, "buffer", dict, where=config_path, default={}) or {}
    parts = _parts(name, state, _k(state, trainer, where=config_path), path=weights_path)
    return replace(
        parts,
        configs=(config_path,),
        site=_site(trainer),
        model_id=setting(trainer, "lm_name", str, where=config_path),
        declared={
            **trainer,
            **parts.declared,
            "d_in": trainer.get("activation_dim"),
            "d_sae": trainer.get("dict_size"),
        },
        rules={**parts.rules, "context_size": setting(buffer, "ctx_len", int, where=config_path)},
    )


def load_alone(source: WeightFiles, state: Mapping[str, Any]) -> SAEParts | None:
    """What the state dict of a lone `ae.pt` says by itself, as `from_pretrained` of dictionary_learning takes it; None if it
    has not the keys of one. Site and model are not in it.

    Raises:
        FormatError: if it is a top-k dictionary of which k is not told.
    """
    name = next((name for keys, name in _BY_KEYS if keys <= state.keys()), None)
    if name is None:
        return None
    k = _k(state, {}, where=source.path)
    if name == "AutoEncoderTopK" and k is None:
        raise FormatError(
            f"{source.path} is a top-k dictionary that does not hold its k",
            hint='write a config.json beside it: {"trainer": {"dict_class": "AutoEncoderTopK", "k": K}} with its K',
        )
    threshold = state.get("threshold")
    told = isinstance(threshold, Tensor) and threshold.numel() == 1 and bool(threshold.real >= 0)
    if name == "AutoEncoderTopK" and told:
        logger.warning(
            "%s holds k = %s and a threshold: AutoEncoderTopK and BatchTopKSAE have the same keys; top-k is taken. "
            'For the threshold write a config.json beside it: {"trainer": {"dict_class": "BatchTopKSAE"}}',
            *(source.path, k),
        )
    return _parts(name, state, k, path=source.path)


def _parts(name: str, state: Mapping[str, Any], k: int | None, *, path: Path) -> SAEParts:
    """What a state dict of a class says."""
    kind = _spelling(_CLASSES[name], state)
    tensors = take(state, kind.names, path=path, besides=_BUFFERS)
    activation = kind.activation
    if activation == "jumprelu" and "threshold" not in tensors:
        activation, tensors = _with_threshold(tensors, state, path)
    return SAEParts(
        dialect="dictionary_learning",
        weights=path,
        tensors=fold_decoder_norm(tensors) if kind.fold else tensors,
        activation=activation,
        site=None,
        model_id=None,
        declared={} if k is None else {"k": k},
        rules={"k": k if activation == "topk" else None, "subtract_b_dec": kind.subtract_b_dec},
    )


def _spelling(kind: _Class, state: Mapping[str, Any]) -> _Class:
    """BatchTopK and Matryoshka dictionaries come with nn.Linear names or with W_enc, W_dec, whichever their
    version had."""
    if kind.activation == "jumprelu" and "threshold" not in kind.names and "W_enc" in state:
        return _Class(kind.activation, _MATRIX, kind.subtract_b_dec)
    if kind.activation == "jumprelu" and "threshold" not in kind.names:
        bias = {"b_enc": "encoder.bias", "b_dec": "b_dec" if "b_dec" in state else "decoder.bias"}
        return _Class(kind.activation, {**_LINEAR, **bias}, kind.subtract_b_dec)
    return kind


def _with_threshold(
    tensors: dict[str, Tensor], state: Mapping[str, Any], path: Path
) -> tuple[Activation, dict[str, Tensor]]:
    """The scalar threshold, one per feature. An unset one (-1) leaves only top-k per token, which is said
    aloud."""
    threshold = state.get("threshold")
    if not (isinstance(threshold, Tensor) and threshold.numel() == 1 and threshold.is_floating_point()):
        raise FormatError(
            f"{path}: threshold is {threshold!r}, expected a scalar tensor of floating-point numbers"
        )
    if float(threshold) < 0:
        logger.warning(
            "%s: the threshold was never set (%g); using top-k per token instead", path, float(threshold)
        )
        return "topk", tensors
    return "jumprelu", {
        **tensors,
        "threshold": threshold.float().reshape(1).expand(tensors["b_enc"].shape[0]),
    }


def _k(state: Mapping[str, Any], trainer: Mapping[str, Any], *, where: Path) -> int | None:
    stored = state.get("k")
    if isinstance(stored, Tensor) and stored.numel() == 1:
        stored = stored.item()
        stored = int(stored) if isinstance(stored, float) and stored.is_integer() else stored
    return setting(trainer if stored is None else {"k": stored}, "k", int, where=where)


def _site(trainer: Mapping[str, Any]) -> Site | None:
    """By submodule_name (`resid_post_layer_4`, `mlp_out_layer_3`, `embed`) and layer; None if it says nothing
    we know."""
    name, layer = str(trainer.get("submodule_name") or ""), trainer.get("layer")
    if "embed" in name:
        return Site(None, "hook_embed")
    for pattern, point in _SUBMODULES:
        if re.search(pattern, name) and isinstance(layer, int):
            return Site(layer, point)
    return None
