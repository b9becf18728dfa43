"""Gemma Scope transcoders (`params.npz`), those of Gemma Scope 2 with an affine skip (`params.safetensors`), and its
cross-layer ones (one file a layer).

Rule of all: JumpReLU; read behind the norm in front of the MLP, write what the MLP adds to the stream, behind its second
norm. A cross-layer file holds w_dec [f, L, d] for all L layers; what it would write below its own layer must be zero. All L
files are read: a missing last one is named, not left out.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from polysem.boundary.settings import setting
from polysem.boundary.tensors import read_npz, read_safetensors
from polysem.errors import FormatError, typed
from polysem.saes.parts import refuse_unread
from polysem.saes.source import read_json
from polysem.saes.transcoder import TranscoderSet, Writer, made_set, made_transcoder
from polysem.saes.transcoders.common import numbered, point, provenance
from polysem.types import Site

_FILES = ("params.npz", "params.safetensors")
_FILE = r"layer_?(\d+)\.safetensors$"
_KNOWN = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold", "affine_skip_connection"}
_READS, _WRITES = "pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"


def speaks(folder: Path) -> bool:
    """Whether a folder is one of Gemma Scope: a transcoder, a folder of them, or a cross-layer one."""
    places = [folder, *(one for one in folder.iterdir() if one.is_dir())]
    if any((place / name).is_file() for place in places for name in _FILES):
        return True
    files = [one for one in folder.iterdir() if re.search(_FILE, one.name)]
    return bool(files) and "w_enc" in read_safetensors(files[0])  # circuit-tracer's are in capitals


def load(ref: str, path: Path) -> TranscoderSet:
    """Read a file, a folder, or a folder of folders or files by layer. Raises FormatError."""
    if path.is_file() or any((path / name).is_file() for name in _FILES):
        return _single(ref, {_layer(path): path})
    files = numbered(path, _FILE)
    if files:
        return _cross(ref, path, files)
    folders: dict[int, Path] = {}
    for one in sorted(p for p in path.iterdir() if p.is_dir()):
        if (layer := _layer(one)) in folders:
            raise FormatError(
                f"{path} holds layer {layer} twice: {folders[layer].name} and {one.name}",
                hint="keep one width and sparsity in a folder",
            )
        folders[layer] = one
    return _single(ref, folders)


def _layer(path: Path) -> int:
    found = re.findall(r"layer_(\d+)", str(path.resolve()))
    if not found:
        raise FormatError(
            f"{path}: the layer is not in its name; expected a folder such as layer_12_width_16k_l0_small",
            hint=f"mv {typed(path)} layer_12",
        )
    return int(found[-1])


def _single(ref: str, places: dict[int, Path]) -> TranscoderSet:
    layers, files = [], []
    for layer, place in places.items():
        path = place if place.is_file() else next(p for n in _FILES if (p := place / n).is_file())
        config_path = path.parent / "config.json"
        config = read_json(config_path) if config_path.is_file() else {}
        state = _state(path)
        skip = state.get("affine_skip_connection")
        declared = setting(config, "affine_connection", bool, where=config_path)
        if declared is not None and declared != (skip is not None):
            raise FormatError(
                f"{config_path}: affine_connection is {declared}, but {path.name} "
                f"{'holds' if skip is not None else 'lacks'} affine_skip_connection",
                hint="fetch both files of the same folder",
            )
        files += [path, *([config_path] if config else [])]
        origin = provenance(ref, "gemma-scope-transcoder", files[-1:], config)
        writer = Writer(_point(config, "out", layer), state["w_dec"], state["b_dec"], skip)
        layers.append(
            made_transcoder(
                W_enc=state["w_enc"], b_enc=state["b_enc"], writers=[writer], activation="jumprelu",
                threshold=state["threshold"], reads=_point(config, "in", layer),
                model_id=_model(config, path), provenance=origin, context_size=1024,
            )
        )  # fmt: skip
    return made_set(layers, whole=False, provenance=provenance(ref, "gemma-scope-transcoder", files))


def _cross(ref: str, folder: Path, files: dict[int, Path]) -> TranscoderSet:
    origin = provenance(ref, "gemma-scope-2-clt", files.values())
    states = {layer: _state(path) for layer, path in files.items()}
    layers = []
    for layer, state in states.items():
        W_dec, skip = state["w_dec"], state.get("affine_skip_connection")
        if W_dec.ndim != 3 or W_dec.shape[1] != len(files):
            n = W_dec.shape[1] if W_dec.ndim == 3 else 0
            raise FormatError(
                f"{files[layer]}: w_dec has shape {tuple(W_dec.shape)} and so writes {n} layers, but files of "
                f"{len(files)} layers are here",
                hint=f"fetch the files of the layers {', '.join(map(str, range(len(files), n))) or 'that are missing'}",
            )
        below = W_dec[:, :layer].abs().sum(dim=(0, 2))
        if below.any():
            raise FormatError(
                f"{files[layer]}: w_dec writes layer {int(below.argmax())} (sum of sizes {float(below.max()):.3g}), below "
                f"its own layer {layer}; expected zeros there",
                hint="name the files by the layer that they read",
            )
        d_out = W_dec.shape[2]
        writers = [
            Writer(
                point(_WRITES, target), W_dec[:, target], state["b_dec"] if target == layer else W_dec.new_zeros(d_out),
                skip if target == layer else None,
            )
            for target in range(layer, len(files))
        ]  # fmt: skip
        layers.append(
            made_transcoder(
                W_enc=state["w_enc"], b_enc=state["b_enc"], writers=writers, activation="jumprelu",
                threshold=state["threshold"], reads=point(_READS, layer), model_id=_model({}, files[layer]),
                provenance=origin, context_size=1024,
            )
        )  # fmt: skip
    return made_set(layers, whole=True, provenance=origin)


def _state(path: Path) -> dict[str, Tensor]:
    read = read_npz(path) if path.suffix == ".npz" else read_safetensors(path)
    found = {name.lower().replace("wenc", "w_enc").replace("wdec", "w_dec"): t for name, t in read.items()}
    missing = sorted(_KNOWN - {"affine_skip_connection"} - set(found))
    if missing and "w_enc" in found:
        raise FormatError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(read))}")
    if "w_enc" in found:
        refuse_unread([name for name in found if name not in _KNOWN], path)
    return found


def _point(config: dict[str, Any], side: str, layer: int) -> Site:
    name = config.get(f"hf_hook_point_{side}")
    named = ".".join(str(name).split(".")[-2:]) if name else (_READS if side == "in" else _WRITES)
    return point(named, layer)


def _model(config: dict[str, Any], path: Path) -> str | None:
    declared = setting(config, "model_name", str, where=path)
    if declared:
        return declared
    first = re.search(r"gemma-scope-(\d+b)-(pt|it)-transcoders", str(path))
    if first:
        return f"google/gemma-2-{first[1]}{'-it' if first[2] == 'it' else ''}"
    second = re.search(r"gemma-scope-2-(\d+[mb])-(pt|it)", str(path))
    return f"google/gemma-3-{second[1]}-{second[2]}" if second else None
