"""circuit-tracer's folders: a set of per-layer transcoders, or a cross-layer one; and Qwen3's, which have no config.yaml.

Rule: circuit_tracer/transcoder 0.5: x W_enc^T + b_enc, ReLU, or JumpReLU (strictly above) where a threshold lies beside, or
TopK by config.yaml; column k of W_dec_i writes layer i + k; x @ W_skip^T of a per-layer one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from polysem.boundary.door import Door
from polysem.boundary.settings import setting
from polysem.boundary.tensors import read_safetensors
from polysem.boundary.text import read_yaml
from polysem.errors import FormatError
from polysem.saes.base import Activation
from polysem.saes.parts import take
from polysem.saes.transcoder import Transcoder, TranscoderSet, Writer, made_set, made_transcoder
from polysem.saes.transcoders.common import numbered, point, provenance

CONFIG = "config.yaml"
_DOOR = Door("configuration", "download the file again", missing=FormatError)
_PLT, _CLT = "transcoder_set", "cross_layer_transcoder"
_READS = {_PLT: "mlp.hook_in", _CLT: "hook_resid_mid"}
"""circuit-tracer's own defaults"""


def load(ref: str, folder: Path) -> TranscoderSet:
    """Read a folder.

    Raises:
        FormatError: files that are missing or damaged, a kind that is neither, transcoders that lie elsewhere.
    """
    path = folder / CONFIG
    config = read_yaml(path, door=_DOOR) if path.is_file() else {}
    cross = numbered(folder, r"^W_enc_(\d+)\.safetensors$")
    kind = setting(config, "model_kind", str, where=path, default=_CLT if cross else _PLT)
    if kind not in _READS:
        raise FormatError(f"{path}: model_kind is {kind!r}, expected {_PLT} or {_CLT}")
    if config.get("transcoders") and not numbered(folder, r"^layer_(\d+)\.safetensors$"):
        raise FormatError(
            f"{path} names transcoders that lie elsewhere: {config['transcoders'][0]}, ...",
            hint=f"fetch each as {folder}/layer_N.safetensors",
        )
    reads = setting(config, "feature_input_hook", str, where=path, default=_READS[kind]) or _READS[kind]
    writes = setting(config, "feature_output_hook", str, where=path, default="hook_mlp_out") or "hook_mlp_out"
    model = setting(config, "model_name", str, where=path)
    made = _cross if kind == _CLT else _per_layer
    return made(ref, folder, config, reads, writes, model)


def _per_layer(
    ref: str, folder: Path, config: Mapping[str, Any], reads: str, writes: str, model: str | None
) -> TranscoderSet:
    files = numbered(folder, r"^layer_(\d+)\.safetensors$")
    if not files:
        raise FormatError(f"{folder} holds no layer_N.safetensors", hint="fetch the files of the layers")
    origin = provenance(ref, "circuit-tracer-plt", _with_config(files.values(), folder), config)
    layers = []
    for layer, path in files.items():
        state = read_safetensors(path)
        threshold = state.get("activation_function.threshold", state.get("threshold"))
        names = {"W_enc": "W_enc.T", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
        skip = {"W_skip": "W_skip.T"} if "W_skip" in state else {}
        besides = ("activation_function.threshold", "threshold", "k")
        found = take(state, names | skip, path=path, besides=besides, square=False)
        activation, k = _rule(config, threshold, state.get("k"), folder / CONFIG)
        writer = Writer(point(writes, layer), found["W_dec"], found["b_dec"], found.get("W_skip"))
        layers.append(
            made_transcoder(
                W_enc=found["W_enc"], b_enc=found["b_enc"], writers=[writer], activation=activation, k=k,
                threshold=threshold if activation == "jumprelu" else None,
                reads=point(reads, layer), model_id=model, provenance=origin,
            )
        )  # fmt: skip
    return made_set(layers, whole=True, provenance=origin)


def _rule(
    config: Mapping[str, Any], threshold: Tensor | None, k: Tensor | None, path: Path
) -> tuple[Activation, int | None]:
    named = setting(config, "activation", str, where=path)
    if named == "topk":
        own = setting(config, "k", int, where=path) or (None if k is None else int(k))
        return "topk", own
    if named not in (None, "relu", "jump_relu", "jumprelu"):
        raise FormatError(f"{path}: activation is {named!r}, expected relu, jump_relu or topk")
    if named != "relu" and threshold is not None:
        return "jumprelu", None
    return "relu", None


def _cross(
    ref: str, folder: Path, config: Mapping[str, Any], reads: str, writes: str, model: str | None
) -> TranscoderSet:
    encoders = numbered(folder, r"^W_enc_(\d+)\.safetensors$")
    decoders = numbered(folder, r"^W_dec_(\d+)\.safetensors$")
    if not encoders or set(encoders) != set(decoders):
        raise FormatError(
            f"{folder} holds W_enc of {len(encoders)} layers and W_dec of {len(decoders)}; expected the same layers",
            hint="fetch the missing files",
        )
    origin = provenance(
        ref, "circuit-tracer-clt", _with_config([*encoders.values(), *decoders.values()], folder), config
    )
    raw = {layer: _encoder(path, layer) for layer, path in encoders.items()}
    layers: list[Transcoder] = []
    for layer, path in decoders.items():
        own = raw[layer]
        (W_dec,) = take(read_safetensors(path), {"W_dec": f"W_dec_{layer}"}, path=path, square=False).values()
        if W_dec.ndim != 3 or W_dec.shape[1] != len(raw) - layer:
            raise FormatError(
                f"{path}: W_dec_{layer} has shape {tuple(W_dec.shape)}, expected (d_sae, {len(raw) - layer}, d_out): "
                f"one column for each of the layers {layer} to {len(raw) - 1} whose files are here",
                hint="fetch the files of the last layers" if W_dec.ndim == 3 else "download the file again",
            )
        # a layer's bias belongs to what is written there, and is counted once: with its own features
        writers = [
            Writer(
                point(writes, layer + n), W_dec[:, n], own["b_dec"] if n == 0 else own["b_dec"].new_zeros(W_dec.shape[2])
            )
            for n in range(W_dec.shape[1])
        ]  # fmt: skip
        threshold = own.get("threshold")
        layers.append(
            made_transcoder(
                W_enc=own["W_enc"], b_enc=own["b_enc"], writers=writers, reads=point(reads, layer),
                activation="relu" if threshold is None else "jumprelu", threshold=threshold,
                model_id=model, provenance=origin,
            )
        )  # fmt: skip
    return made_set(layers, whole=True, provenance=origin)


def _encoder(path: Path, layer: int) -> dict[str, Tensor]:
    state = read_safetensors(path)
    names = {"W_enc": f"W_enc_{layer}.T", "b_enc": f"b_enc_{layer}", "b_dec": f"b_dec_{layer}"}
    jump = {"threshold": f"threshold_{layer}"} if f"threshold_{layer}" in state else {}
    return take(state, names | jump, path=path, square=False)


def _with_config(files: Any, folder: Path) -> list[Path]:
    return [*files, *([folder / CONFIG] if (folder / CONFIG).is_file() else [])]
