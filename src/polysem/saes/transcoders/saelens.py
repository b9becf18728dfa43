"""SAELens folders of the four transcoder kinds: `cfg.json` + `sae_weights.safetensors`.

Rule: sae_lens 6 `saes/transcoder.py`. Its `decode` leaves the skip out and its `forward` adds it: x @ W_skip^T.
"""

from pathlib import Path
from typing import Any

from polysem.boundary.settings import setting
from polysem.boundary.tensors import read_safetensors
from polysem.errors import FormatError
from polysem.saes.base import Activation
from polysem.saes.names import declared_site, hub_id
from polysem.saes.parts import take
from polysem.saes.source import read_json
from polysem.saes.transcoder import TranscoderSet, Writer, made_set, made_transcoder
from polysem.saes.transcoders.common import provenance
from polysem.types import Site

_KINDS: dict[str, Activation] = {
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}


def load(ref: str, path: Path) -> TranscoderSet:
    """Read a folder.

    Raises:
        FormatError: an architecture that is no transcoder, scaled activations, sites that are not said.
    """
    folder = path if path.is_dir() else path.parent
    config_path, weights = folder / "cfg.json", folder / "sae_weights.safetensors"
    raw = read_json(config_path)
    config = {**(setting(raw, "metadata", dict, where=config_path, default={}) or {}), **raw}
    kind = setting(config, "architecture", str, where=config_path, default="standard") or "standard"
    if kind not in _KINDS:
        raise FormatError(
            f"{config_path}: architecture is {kind!r}, expected one of {', '.join(_KINDS)}",
            hint=f"an autoencoder is read by load_sae({str(folder)!r})",
        )
    scaled = config.get("normalize_activations") or "none"
    if scaled != "none":
        raise FormatError(
            f"{config_path}: normalize_activations is {scaled!r}; expected none in a transcoder",
            hint="fold the scale into the weights where they were trained: fold_activation_norm_scaling_factor(c)",
        )
    names = {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
    jump = {"threshold": "threshold"} if _KINDS[kind] == "jumprelu" else {}
    skip = {"W_skip": "W_skip.T"} if "skip" in kind else {}
    found = take(read_safetensors(weights), names | jump | skip, path=weights, square=False)
    model = setting(config, "model_name", str, where=config_path)
    origin = provenance(ref, "saelens-transcoder", [config_path, weights], raw)
    writer = Writer(
        _site(config, "hook_name_out", model, config_path),
        found["W_dec"],
        found["b_dec"],
        found.get("W_skip"),
    )
    one = made_transcoder(
        W_enc=found["W_enc"], b_enc=found["b_enc"], writers=[writer], activation=_KINDS[kind],
        threshold=found.get("threshold"), reads=_site(config, "hook_name", model, config_path), model_id=model,
        provenance=origin, prepend_bos=bool(setting(config, "prepend_bos", bool, where=config_path, default=True)),
        context_size=setting(config, "context_size", int, where=config_path),
        subtract_b_dec=bool(setting(config, "apply_b_dec_to_input", bool, where=config_path, default=False)),
    )  # fmt: skip
    return made_set([one], whole=False, provenance=origin)


def _site(config: dict[str, Any], key: str, model: str | None, path: Path) -> Site:
    name = setting(config, key, str, where=path)
    site = declared_site(name, model_id=hub_id(model) if model else None) if name else None
    if not isinstance(site, Site):
        raise FormatError(
            f"{path}: {key} is {name!r}, expected a hook point such as blocks.5.mlp.hook_in",
            hint=f"write {key} into cfg.json",
        )
    return site
