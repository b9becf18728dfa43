"""decode-clt (the package `clt`): `cfg.json` + one state dict, `model.safetensors` or `clt_checkpoint_*.safetensors`.

Rule: clt/models 0.0.1: x W^T + b, then ReLU, or JumpReLU (at or above exp(log_threshold)); decoders by
pair of layers, by source (its bias is added at every target) or by target (its bias once). Offset and scale of active features
belong to the target. `mean_std` scales what is read and what is written by the training activations' own means and deviations,
which lie with them in `norm_stats.json`; `sqrt_d_model` multiplies both by sqrt(d).
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polysem.boundary.settings import setting
from polysem.boundary.tensors import read_safetensors
from polysem.errors import FormatError
from polysem.saes.base import Activation
from polysem.saes.parts import refuse_unread
from polysem.saes.source import read_json
from polysem.saes.transcoder import TranscoderSet, Writer, made_set, made_transcoder
from polysem.saes.transcoders.common import point, provenance

CONFIG, STATS = "cfg.json", "norm_stats.json"
_MODEL = re.compile(r"(?:model|clt_checkpoint_(?:latest|\d+))\.safetensors")
_TYINGS = ("none", "per_source", "per_target")
_PAIR = re.compile(r"\.(\d+)->(\d+)(?:\.|$)")
_ONE_RUN = "keep one model's state dict beside the cfg.json that was written with it"
_EPSILON = 1e-6
"""that the package adds to deviations"""


class _Scale(NamedTuple):
    """x becomes (x - mean) / std."""

    mean: Tensor
    std: Tensor


def speaks(folder: Path) -> bool:
    """Whether a folder is one of decode-clt."""
    return (folder / CONFIG).is_file() and {"num_features", "num_layers", "d_model"} <= set(
        read_json(folder / CONFIG)
    )


def load(ref: str, path: Path) -> TranscoderSet:
    """Read a folder, or one state dict with its configuration beside it.

    Raises:
        FormatError: files that are missing, a top-k over layers or a batch, layers that are not there, tensors that nobody
            reads.
    """
    folder = path if path.is_dir() else path.parent
    where = folder / CONFIG
    config, weights = read_json(where), path if path.is_file() else _weights(folder)
    n, d, f = (_whole(config, key, where) for key in ("num_layers", "d_model", "num_features"))
    tying = setting(config, "decoder_tying", str, where=where, default="none")
    if tying not in _TYINGS:
        raise FormatError(
            f"{where}: decoder_tying is {tying!r}, expected one of {', '.join(_TYINGS)}",
            hint="set decoder_tying to what the run had: none where decoders are named by two layers (0->1) in the state dict, "
            "per_source or per_target where by one",
        )
    activation = _rule(config, where)
    left = dict(read_safetensors(weights))

    def part(name: str, *shape: int) -> Tensor:
        found = left.pop(name, None)
        if found is None or tuple(found.shape) != shape:
            raise FormatError(
                f"{weights}: {name} {'is missing' if found is None else f'has shape {tuple(found.shape)}'}, expected {shape} "
                f"by {CONFIG} (num_layers {n}, d_model {d}, num_features {f})",
                hint=_ONE_RUN,
            )
        return found.float()

    encoders = [
        (
            part(f"encoder_module.encoders.{i}.weight", f, d).T,
            part(f"encoder_module.encoders.{i}.bias_param", f),
        )
        for i in range(n)
    ]
    pairs = [(i, m) for i in range(n) for m in range(i, n)]
    names = {"none": "{0}->{1}", "per_source": "{0}", "per_target": "{1}"}[tying]
    ids = sorted({names.format(*pair) for pair in pairs})
    dec = "decoder_module."
    rows = {key: part(f"{dec}decoders.{key}.weight", d, f).T for key in ids}
    biases = {key: part(f"{dec}decoders.{key}.bias_param", d) for key in ids}
    asked = {key: bool(setting(config, key, bool, where=where, default=False)) for key in
             ("skip_connection", "enable_feature_offset", "enable_feature_scale")}  # fmt: skip
    tied = tying != "none"
    skips = [f"{i}->{m}" for i, m in pairs] if not tied else [str(m) for m in range(n)]
    skip = (
        {key: part(f"{dec}skip_weights.{key}", d, d).T for key in skips} if asked["skip_connection"] else {}
    )
    offset = (
        [part(f"{dec}feature_offset.{m}", f) for m in range(n)]
        if tied and asked["enable_feature_offset"]
        else []
    )
    gain = (
        [part(f"{dec}feature_scale.{m}", f) for m in range(n)]
        if tied and asked["enable_feature_scale"]
        else []
    )
    # "at or above" is "strictly above" the float before
    least = torch.full((n, f), -math.inf)
    threshold = (
        torch.nextafter(part("theta_manager.log_threshold", n, f).exp(), least)
        if activation == "jumprelu"
        else None
    )
    for name in left:
        ends = _PAIR.search(name)
        if ends and int(ends[2]) < int(ends[1]):
            raise FormatError(
                f"{weights}: {name} writes layer {ends[2]}, below its own layer {ends[1]}; expected no such tensor",
                hint="name decoders by the layer that they read, then the one that they write (0->2), and save the state dict "
                "without those below",
            )
    refuse_unread(left, weights, hint=_ONE_RUN)
    scales, read = _scales(config, folder, n, d)
    files = [where, weights, *([folder / STATS] if read else [])]
    origin, model = (
        provenance(ref, "decode-clt", files, config),
        setting(config, "model_name", str, where=where),
    )

    def writer(i: int, m: int) -> Writer:
        key, into, out = names.format(i, m), scales["inputs"][i], scales["targets"][m]
        own = rows[key] if not gain else rows[key] * gain[m][:, None]
        b_dec = biases[key] if i == m or tying != "per_target" else torch.zeros(d)
        beside = skip.get(f"{i}->{m}" if not tied else str(m)) if i == m or not tied else None
        if beside is not None:
            beside = beside / into.std[:, None]
            b_dec = b_dec - into.mean @ beside
        return Writer(
            point("hook_mlp_out", m), own * out.std, b_dec * out.std + (out.mean if i == m else 0.0),
            None if beside is None else beside * out.std, offset[m] if offset else None,
        )  # fmt: skip

    layers = []
    for i, (W_enc, b_enc) in enumerate(encoders):
        own = W_enc / scales["inputs"][i].std[:, None]
        layers.append(
            made_transcoder(
                W_enc=own, b_enc=b_enc - scales["inputs"][i].mean @ own, writers=[writer(i, m) for m in range(i, n)],
                activation=activation, threshold=None if threshold is None else threshold[i],
                reads=point("mlp.hook_in", i), model_id=model, provenance=origin, prepend_bos=False,
            )
        )  # fmt: skip
    return made_set(layers, whole=True, provenance=origin)


def _whole(config: dict[str, Any], key: str, where: Path) -> int:
    found = setting(config, key, int, where=where)
    if found is None or found < 1:
        raise FormatError(f"{where}: {key} is {found!r}, expected a positive integer")
    return found


def _weights(folder: Path) -> Path:
    found = sorted(one for one in folder.iterdir() if _MODEL.fullmatch(one.name))
    latest = [one for one in found if one.name == "clt_checkpoint_latest.safetensors"] or found
    if len(latest) != 1:
        raise FormatError(
            f"{folder} holds {len(found)} state dicts ({', '.join(one.name for one in found) or 'none'}), expected one: "
            "model.safetensors or clt_checkpoint_latest.safetensors",
            hint="give the path of one of them"
            if found
            else "copy model.safetensors of the run's last checkpoint here",
        )
    return latest[0]


def _rule(config: dict[str, Any], where: Path) -> Activation:
    """What activates. Raises FormatError for a rule under which a layer alone has no activations."""
    named = setting(config, "activation_fn", str, where=where, default="jumprelu")
    if named == "relu":
        return "relu"
    if named == "jumprelu":
        return "jumprelu"
    raise FormatError(
        f"{where}: activation_fn is {named!r}, whose choice is over all layers or a batch, so that a layer and token alone has "
        "no activations; expected relu or jumprelu",
        hint="convert it where it was trained: estimate_theta_posthoc(data), convert_to_jumprelu_inplace(), and save both files",
    )


def _scales(config: dict[str, Any], folder: Path, n: int, d: int) -> tuple[dict[str, list[_Scale]], bool]:
    """How the layers' inputs and targets were scaled, and whether a file said it."""
    where = folder / CONFIG
    how = setting(config, "normalization_method", str, where=where, default="none")
    if how in ("none", "sqrt_d_model"):
        size = 1.0 if how == "none" else d**-0.5
        return {
            side: [_Scale(torch.zeros(d), torch.full((d,), size))] * n for side in ("inputs", "targets")
        }, False
    if how not in ("mean_std", "auto", "estimated_mean_std"):
        raise FormatError(
            f"{where}: normalization_method is {how!r}, expected none, mean_std or sqrt_d_model",
            hint=f"set normalization_method to how the run scaled its activations: none, sqrt_d_model, or mean_std with {STATS} "
            "beside",
        )
    path = folder / STATS
    if not path.is_file():
        raise FormatError(
            f"{where}: normalization_method is {how!r}, and {STATS} with the means and deviations is not beside it",
            hint=f"copy {STATS} of the training activations to {path}",
        )
    stats = read_json(path)
    found: dict[str, list[_Scale]] = {}
    for side in ("inputs", "targets"):
        found[side] = [_scale(stats, str(layer), side, d, path) for layer in range(n)]
    return found, True


def _scale(stats: dict[str, Any], layer: str, side: str, d: int, path: Path) -> _Scale:
    own = stats.get(layer)
    of = own.get(side) if isinstance(own, dict) else None
    if not isinstance(of, dict):
        raise FormatError(f"{path} has no {side} of layer {layer}; expected mean and std of every layer")
    found = []
    for key in ("mean", "std"):
        value = setting(of, key, list, where=path)
        if value is None or len(value) != d or not all(isinstance(x, int | float) for x in value):
            raise FormatError(f"{path}: {side} of layer {layer}: expected mean and std of {d} numbers each")
        found.append(torch.tensor([float(x) for x in value], dtype=torch.float64).float())
    return _Scale(found[0], found[1] + _EPSILON)
