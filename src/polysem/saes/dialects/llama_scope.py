"""Llama Scope (fnlp): `hyperparams.json` + `checkpoints/final.safetensors`.

JumpReLU with one threshold for all features; inputs were scaled to an average norm of sqrt(d_model). The
scale s = sqrt(d_model) / dataset_average_activation_norm.in is folded into the weights, and the threshold is
multiplied by it, as SAELens does.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from polysem.boundary.settings import setting
from polysem.boundary.tensors import read_safetensors
from polysem.errors import FormatError
from polysem.saes.names import declared_site
from polysem.saes.parts import SAEParts, fold_input_scale, take
from polysem.saes.source import WeightFiles, read_json

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
MODEL = "meta-llama/Llama-3.1-8B"
_NAMES = {
    "W_enc": "encoder.weight.T",
    "W_dec": "decoder.weight.T",
    "b_enc": "encoder.bias",
    "b_dec": "decoder.bias",
}


def load(source: WeightFiles) -> SAEParts:
    """Read a Llama Scope folder. Raises FormatError if a number that the fold needs is missing or not
    positive."""
    config_path, weights_path = source.path / CONFIG, source.path / WEIGHTS
    config = read_json(config_path)
    norms = setting(config, "dataset_average_activation_norm", dict, where=config_path, default={})
    norm = _positive(norms or {}, "in", where=f"{config_path}: dataset_average_activation_norm")
    jump = _positive(config, "jump_relu_threshold", where=str(config_path))
    d_model = _positive(config, "d_model", where=str(config_path))
    if config.get("hook_point_out", config.get("hook_point_in")) != config.get("hook_point_in"):
        raise FormatError(
            f"{config_path}: reads {config.get('hook_point_in')} and writes {config['hook_point_out']}: a "
            "transcoder; polysem needs an autoencoder of one site"
        )
    scale = math.sqrt(d_model) / norm
    raw = {
        name: t.float() for name, t in take(read_safetensors(weights_path), _NAMES, path=weights_path).items()
    }
    threshold = torch.full((raw["b_enc"].shape[0],), jump * scale)
    hook = setting(config, "hook_point_in", str, where=config_path)
    return SAEParts(
        dialect="llama-scope",
        weights=weights_path,
        configs=(config_path,),
        tensors={**fold_input_scale(raw, scale), "threshold": threshold},
        activation="jumprelu",
        site=declared_site(hook, model_id=MODEL) if hook else None,
        model_id=MODEL,
        declared={**config, "d_in": int(d_model), "d_sae": config.get("d_sae")},
        rules={"subtract_b_dec": False, "prepend_bos": True, "context_size": 1024},
    )


def _positive(config: Mapping[str, Any], key: str, *, where: str) -> float:
    value = setting(config, key, float, where=where)
    if value is None or not value > 0:
        raise FormatError(f"{where}: {key} is {value!r}, expected a positive number")
    return value
