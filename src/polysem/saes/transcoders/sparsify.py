"""EleutherAI sparsify transcoders and clt-training: `HOOKPOINT/cfg.json` + `HOOKPOINT/sae.safetensors`, one or many.

Rule: x W_enc^T + b, ReLU, then top k; codes W_dec + b_dec + x W_skip^T. clt-training: decoder n of a layer's own (`W_decs.n`)
writes n layers on; active latents get `post_encs.n` added and are scaled by `post_enc_scales.n`; `normalize_io` scales what
is read by sqrt(d) / in_norm and all that is written to a layer by that layer's out_norm / sqrt(d).
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from polysem.boundary.settings import setting
from polysem.boundary.tensors import read_safetensors
from polysem.errors import FormatError, typed
from polysem.saes.base import Activation, Provenance
from polysem.saes.parts import refuse_unread
from polysem.saes.source import read_json
from polysem.saes.transcoder import Transcoder, TranscoderSet, Writer, made_set, made_transcoder
from polysem.saes.transcoders.common import point, provenance

_WEIGHTS, _CONFIG = "sae.safetensors", "cfg.json"
_PARTS = re.compile(r"^(W_dec|W_decs\.\d+|b_dec|b_decs\.\d+|W_skip|W_skips\.\d+|post_enc|post_encs\.\d+|post_enc_scale"
                    r"|post_enc_scales\.\d+|encoder\.weight|encoder\.bias|in_norm|out_norm)$")  # fmt: skip
_REFUSED = {
    "divide_cross_layer": "what other layers write is divided by their number",
    "secondary_target_tied": "targets share what the first one got",
    "signed": "latents may be negative",
}
_RULES: dict[str, Activation] = {"topk": "topk", "groupmax": "groupmax"}


class _Layer(NamedTuple):
    number: int
    folder: Path
    config: dict[str, Any]
    state: dict[str, Tensor]


def load(ref: str, path: Path) -> TranscoderSet:
    """Read a hookpoint's folder, or a folder of them.

    Raises:
        FormatError: an autoencoder, coalesced top-k, another rule that is not implemented, tensors that nobody reads.
    """
    folder = path if path.is_dir() else path.parent
    single = (folder / _WEIGHTS).is_file()
    places = [folder] if single else sorted(one for one in folder.iterdir() if (one / _WEIGHTS).is_file())
    layers = [_read(place) for place in places]
    run_path = (folder.parent if single else folder) / "config.json"
    run = read_json(run_path) if run_path.is_file() else {}
    model = setting(run, "model", str, where=run_path)
    files = [layer.folder / name for layer in layers for name in (_CONFIG, _WEIGHTS)]
    origin = provenance(ref, "sparsify-transcoder", files, run)
    out = {layer.number: _scale(layer, "out_norm") for layer in layers}
    made = [
        _made(layer, out, model, origin, setting(run, "ctx_len", int, where=run_path)) for layer in layers
    ]
    return made_set(made, whole=False, provenance=origin)


def _read(folder: Path) -> _Layer:
    path = folder / _CONFIG
    config = read_json(path)
    if not config.get("transcode"):
        raise FormatError(
            f"{path}: transcode is {config.get('transcode')!r}: an autoencoder",
            hint=f"load_sae({str(folder)!r})",
        )
    if config.get("coalesce_topk", "none") not in (None, "none"):
        raise FormatError(
            f"{path}: coalesce_topk is {config['coalesce_topk']!r}: which latents are active depends on other layers, so "
            "that a layer alone has no activations",
            hint='use a dictionary that was trained with coalesce_topk = "none"',
        )
    for key, why in _REFUSED.items():
        if config.get(key):
            raise FormatError(
                f"{path}: {key} is true: {why}; that is not implemented", hint="use another dictionary"
            )
    rule = setting(config, "activation", str, where=path, default="topk")
    if rule not in _RULES:
        raise FormatError(f"{path}: activation is {rule!r}, expected one of {', '.join(_RULES)}")
    match = re.search(r"(?:layers|h|blocks)[._](\d+)(?:\.mlp)?$", folder.name)
    if match is None:
        raise FormatError(
            f"{folder}: the name says no layer; expected e.g. layers.5.mlp",
            hint=f"mv {typed(folder)} layers.5.mlp",
        )
    state = read_safetensors(folder / _WEIGHTS)
    refuse_unread([name for name in state if not _PARTS.match(name)], folder / _WEIGHTS)
    return _Layer(int(match[1]), folder, config, state)


def _scale(layer: _Layer, name: str) -> float:
    """What an input (of in_norm) is multiplied with, or an output (of out_norm)."""
    if not layer.config.get("normalize_io"):
        return 1.0
    if name not in layer.state:
        raise FormatError(f"{layer.folder / _WEIGHTS} lacks {name}, although normalize_io is true")
    root = layer.state["encoder.weight"].shape[1] ** 0.5
    norm = float(layer.state[name].reshape(-1)[0])
    return root / norm if name == "in_norm" else norm / root


def _made(
    layer: _Layer, out: dict[int, float], model: str | None, origin: Provenance, context: int | None
) -> Transcoder:
    state, where = layer.state, layer.folder / _WEIGHTS
    if "encoder.weight" not in state or "encoder.bias" not in state:
        raise FormatError(
            f"{where} lacks encoder.weight or encoder.bias; it holds {', '.join(sorted(state))}"
        )
    into = _scale(layer, "in_norm")
    n_targets = max(1, setting(layer.config, "n_targets", int, where=where, default=0) or 0)
    writers = [_writer(layer, n, into, out) for n in range(n_targets) if layer.number + n in out or n == 0]
    return made_transcoder(
        W_enc=state["encoder.weight"].float().T * into, b_enc=state["encoder.bias"], writers=writers,
        activation=_RULES[str(layer.config.get("activation") or "topk")], k=setting(layer.config, "k", int, where=where),
        reads=point("mlp.hook_in", layer.number), model_id=model, provenance=origin, prepend_bos=False,
        context_size=context,
    )  # fmt: skip


def _writer(layer: _Layer, n: int, into: float, out: dict[int, float]) -> Writer:
    state, target = layer.state, layer.number + n
    scale = out[target]

    def part(single: str, many: str, *, tied: bool = False) -> Tensor | None:
        own = state.get(f"{many}.{n}")
        return own if own is not None else state.get(single) if n == 0 or tied else None

    W_dec = part("W_dec", "W_decs", tied=bool(layer.config.get("per_source_tied")))
    b_dec, skip = part("b_dec", "b_decs"), part("W_skip", "W_skips")
    if W_dec is None or b_dec is None or (layer.config.get("skip_connection") and skip is None):
        raise FormatError(
            f"{layer.folder / _WEIGHTS} lacks the decoder, bias or skip of target {n} (layer {target})",
            hint="download the file again",
        )
    gain = part("post_enc_scale", "post_enc_scales") if layer.config.get("post_encoder_scale") else None
    rows = W_dec.float() * scale if gain is None else W_dec.float() * gain.float()[:, None] * scale
    bonus = part("post_enc", "post_encs")
    return Writer(
        point("hook_mlp_out", target), rows, b_dec.float() * scale,
        None if skip is None else skip.float().T * into * scale,
        bonus if bonus is not None and bool(bonus.any()) else None,
    )  # fmt: skip
