"""EleutherAI sparsify (eai-sparsify): `HOOKPOINT/cfg.json` + `HOOKPOINT/sae.safetensors`, and `config.json`
at the repository's root.

Rule: sparsify `sparse_coder.py` and `fused_encoder.py`: x - b_dec, linear, ReLU, then top k (or the maximum
of each of k groups). W_dec is stored [d_sae d_in] already.
"""

from pathlib import Path
from typing import Any

from polysem.boundary.settings import setting
from polysem.boundary.tensors import read_safetensors
from polysem.errors import FormatError
from polysem.saes.base import Activation
from polysem.saes.names import hub_id, site_of_module
from polysem.saes.parts import SAEParts, take
from polysem.saes.source import WeightFiles, read_json

WEIGHTS = "sae.safetensors"
_ACTIVATION: dict[str, Activation] = {"topk": "topk", "groupmax": "groupmax"}


def load(source: WeightFiles) -> SAEParts:
    """Read a sparsify folder; its name is the hookpoint. Raises FormatError for transcoders, skip connections
    and signed top-k."""
    config_path, weights_path = source.path / "cfg.json", source.path / WEIGHTS
    config = read_json(config_path)
    _refuse_unsupported(config, config_path)
    run_path, run = _run_config(source.path)
    model = setting(run, "model", str, where=run_path or source.path)
    d_in = setting(config, "d_in", int, where=config_path, default=0) or 0
    expansion = setting(config, "expansion_factor", int, where=config_path, default=0) or 0
    d_sae = setting(config, "num_latents", int, where=config_path, default=0) or d_in * expansion
    context = setting(run, "ctx_len", int, where=run_path or source.path)
    tensors = take(
        read_safetensors(weights_path),
        {"W_enc": "encoder.weight.T", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"},
        path=weights_path,
    )
    return SAEParts(
        dialect="sparsify",
        weights=weights_path,
        configs=(config_path, run_path) if run_path else (config_path,),
        tensors=tensors,
        activation=_activation(config, config_path),
        site=_site(source.path.name, model),
        model_id=model,
        declared={**config, "d_in": d_in, "d_sae": d_sae},
        # sparsify trains on chunks of documents joined by EOS; a chunk does not begin with BOS.
        rules={"k": config.get("k"), "prepend_bos": False, "context_size": context},
    )


def _site(name: str, model: str | None):
    try:
        return site_of_module(name, model_id=hub_id(model) if model else None)
    except FormatError:
        return None


def _run_config(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    path = folder.parent / "config.json"
    return (path, read_json(path)) if path.is_file() else (None, {})


def _refuse_unsupported(config: dict[str, Any], path: Path) -> None:
    for key, why in (
        ("transcode", "a transcoder writes another site than it reads"),
        ("skip_connection", "its reconstruction has a part that no feature carries"),
        ("signed", "negative activations have no place in an interference map"),
    ):
        if config.get(key):
            raise FormatError(f"{path}: {key} is true: {why}; polysem needs a plain autoencoder of one site")


def _activation(config: dict[str, Any], path: Path) -> Activation:
    name = setting(config, "activation", str, where=path, default="topk")
    if name not in _ACTIVATION:
        raise FormatError(f"{path}: activation is {name!r}, expected one of {', '.join(_ACTIVATION)}")
    return _ACTIVATION[name]
