"""Gemma Scope (`params.npz`, no configuration) and Gemma Scope 2 (`params.safetensors`, `config.json` where
somebody added one).

Rule of both: JumpReLU, no subtraction of b_dec, no normalisation. Layer, kind and model of Gemma Scope are
known only from the name of the repository and of the folder. Embedding SAEs were trained on unscaled
embeddings and are folded to the scaled ones that the model's `hook_embed` has.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from polysem.boundary.settings import setting
from polysem.boundary.tensors import read_npz, read_safetensors
from polysem.errors import FormatError
from polysem.saes.names import site_of_module
from polysem.saes.parts import SAEParts, check_tensors
from polysem.saes.source import WeightFiles, read_json
from polysem.types import Site

NPZ, SAFETENSORS = "params.npz", "params.safetensors"
_POINT = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
_POINT_2 = {"resid_post": "hook_resid_post", "attn_out": "attn.hook_z", "mlp_out": "hook_mlp_out"}
_RULES: Mapping[str, Any] = {"subtract_b_dec": False, "prepend_bos": True, "context_size": 1024}


def load_npz(source: WeightFiles) -> SAEParts:
    """Read a Gemma Scope archive. Without the names of the original folders the site must be given."""
    path = source.path if source.path.is_file() else source.path / NPZ
    _refuse_transcoder(source.label)
    tensors = _our_names(read_npz(path))
    release = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)", source.label)
    layer = re.search(r"layer_(\d+)", source.label)
    model = f"google/gemma-2-{release[1]}{'-it' if release[2] == 'it' else ''}" if release else None
    site = Site(int(layer[1]), _POINT[release[3]]) if release and layer else None
    if re.search(r"(^|/)embedding/", source.label):
        site, tensors = Site(None, "hook_embed"), _to_scaled_embeddings(tensors, path)
    return SAEParts(
        dialect="gemma-scope",
        weights=path,
        tensors=tensors,
        activation="jumprelu",
        site=site,
        model_id=model,
        rules=_RULES,
    )


def load_safetensors(source: WeightFiles) -> SAEParts:
    """Read a Gemma Scope 2 folder."""
    _refuse_transcoder(source.label)
    weights, config_path = source.path / SAFETENSORS, source.path / "config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise FormatError(f"{config_path}: architecture is {config['architecture']!r}, expected 'jump_relu'")
    tensors = _our_names(read_safetensors(weights))
    if config.get("affine_connection") or "affine_skip_connection" in tensors or "W_skip" in tensors:
        raise FormatError(
            f"{weights} has an affine connection beside its features: a transcoder; polysem needs an "
            "autoencoder"
        )
    model = setting(config, "model_name", str, where=config_path) or _gemma_3(source.label)
    return SAEParts(
        dialect="gemma-scope-2",
        weights=weights,
        configs=(config_path,) if config else (),
        tensors=tensors,
        activation="jumprelu",
        site=_site_2(config, source.label),
        model_id=_hub_name(model) if model else None,
        declared=config,
        rules=_RULES,
    )


def _our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """w_enc, wenc and W_enc are one name."""
    return {re.sub(r"^[wW]_?(enc|dec)$", r"W_\1", name): tensor for name, tensor in state.items()}


def _to_scaled_embeddings(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """For inputs s * x with s = sqrt(d_in): W_enc / s, W_dec * s, and b_dec * s, since the reconstruction
    must be s times as long."""
    if "W_dec" not in tensors:
        return dict(tensors)
    check_tensors(tensors, path)
    s = math.sqrt(tensors["W_dec"].shape[-1])
    folded = {name: tensors[name].float() * s for name in ("W_dec", "b_dec") if name in tensors}
    if "W_enc" in tensors:
        folded["W_enc"] = tensors["W_enc"].float() / s
    return {**tensors, **folded}


def _refuse_transcoder(label: str) -> None:
    if re.search(r"transcoder|(^|[/_-])clt", label):
        raise FormatError(
            f"{label} is a transcoder: it reads one site and writes another; polysem needs an autoencoder "
            "of one site",
            hint="polysem.saes.load_transcoders(folder) reads it; or use the -res, -mlp or -att SAEs of the same layer",
        )


def _site_2(config: Mapping[str, Any], label: str) -> Site | None:
    layer = re.search(r"layer_(\d+)", label)
    kind = re.search(r"(resid_post|attn_out|mlp_out)", label)
    if layer and kind:
        return Site(int(layer[1]), _POINT_2[kind[1]])
    module = setting(config, "hf_hook_point_in", str, where=label)
    return site_of_module(module, model_id="google/gemma-3") if module else None


def _gemma_3(label: str) -> str | None:
    match = re.search(r"gemma-scope-2-(\d+[mb])-(pt|it)", label)
    return f"gemma-3-{match[1]}-{match[2]}" if match else None


def _hub_name(name: str) -> str:
    spelled = name.replace("-v3", "-3").removeprefix("google/")
    return "google/" + (spelled.replace("-pt", "") if "270m" in spelled else spelled)
