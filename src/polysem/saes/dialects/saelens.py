"""SAELens folders: `cfg.json` + `sae_weights.safetensors`, in the v6 form, the flat form of 3.x to 5.x, and
the oldest form of 2.x.

Rules: sae_lens 6.54 `loading/pretrained_sae_loaders.py` (handle_pre_6_0_config,
read_sae_components_from_disk) and `saes/`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polysem.boundary.settings import setting
from polysem.boundary.tensors import read_safetensors
from polysem.errors import FormatError
from polysem.saes.base import Activation, Normalization
from polysem.saes.names import declared_site, hub_id
from polysem.saes.parts import SAEParts, check_tensors, fold_input_scale
from polysem.saes.source import WeightFiles, read_json

HOOKED = "HookedTransformer"
WEIGHTS = "sae_weights.safetensors"
_ACTIVATION: dict[str, Activation] = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
}
_NORMALIZATION: dict[str, Normalization] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}
_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}


def load(source: WeightFiles) -> SAEParts:
    """Read a SAELens folder.

    Raises:
        FormatError: a transcoder or another architecture that is no autoencoder of one site, a single-head
            SAE, an input normalisation without its factor, or files that are damaged.
    """
    config_path, weights_path = source.path / "cfg.json", source.path / WEIGHTS
    raw = read_json(config_path)
    where = str(config_path)
    form = _form(raw, where=where)
    config = _flatten(raw, form=form, where=where)
    activation = _activation(config, where=where)
    if config.get("hook_head_index") is not None:
        raise FormatError(
            f"{where}: hook_head_index is {config['hook_head_index']!r}; SAEs of one attention head are not "
            "supported"
        )
    tensors = _fold_finetuning(read_safetensors(weights_path), config, where=str(weights_path))
    normalization = _normalize_name(config.get("normalize_activations"))
    if normalization == "expected_average_only_in":
        tensors = fold_input_scale(tensors, _input_factor(config, source, where=where))
        normalization = "none"
    if normalization not in _NORMALIZATION:
        raise FormatError(
            f"{where}: normalize_activations is {normalization!r}; expected expected_average_only_in or one "
            f"of {', '.join(_NORMALIZATION)}"
        )
    hook = setting(config, "hook_name", str, where=where)
    model = setting(config, "model_name", str, where=where)
    hooked = setting(config, "model_class_name", str, where=where, default=HOOKED) == HOOKED
    kwargs = setting(config, "model_from_pretrained_kwargs", dict, where=where, default={}) or {}
    return SAEParts(
        dialect=f"saelens-{form}",
        weights=weights_path,
        configs=(config_path,),
        tensors=tensors,
        activation=activation,
        site=declared_site(hook, model_id=hub_id(model) if model else None) if hook else None,
        model_id=model,
        declared={**raw, "d_in": config.get("d_in"), "d_sae": config.get("d_sae")},
        rules={
            "k": config.get("k") if activation == "topk" else None,
            "normalization": _NORMALIZATION[normalization],
            "subtract_b_dec": setting(config, "apply_b_dec_to_input", bool, where=where, default=True),
            # A word to TransformerLens; other models of SAELens know neither it nor EOS in the place of BOS.
            "centre_input": hooked
            and setting(kwargs, "center_writing_weights", bool, where=where, default=False),
            "bos_stand_in": "eos" if hooked else "none",
            "rescale_by_decoder_norm": setting(
                config, "rescale_acts_by_decoder_norm", bool, where=where, default=False
            ),
            "prepend_bos": setting(config, "prepend_bos", bool, where=where, default=True),
            "context_size": setting(config, "context_size", int, where=where),
        },
    )


def _form(raw: Mapping[str, Any], *, where: str) -> str:
    metadata = setting(raw, "metadata", dict, where=where, default={}) or {}
    major = str(metadata.get("sae_lens_version") or raw.get("sae_lens_version") or "0").split(".")[0]
    if major.isdigit() and int(major) >= 6:
        return "v6"
    return "oldest" if "hook_point" in raw else "pre-v6"


def _flatten(raw: Mapping[str, Any], *, form: str, where: str) -> dict[str, Any]:
    """Settings under their v6 names, in one level. The top level wins over `metadata`."""
    config = {_RENAMED.get(key, key): value for key, value in raw.items() if key != "metadata"}
    config = {**(raw.get("metadata") or {}), **config}
    k = (setting(config, "activation_fn_kwargs", dict, where=where, default={}) or {}).get("k")
    if form != "v6" and config.get("activation_fn") == "topk" and k is not None:
        # OpenAI's SAEs were published as "standard" with a topk activation; read as ReLU they reconstruct
        # nothing.
        config["architecture"], config["k"] = "topk", k
    return config


def _activation(config: Mapping[str, Any], *, where: str) -> Activation:
    architecture = setting(config, "architecture", str, where=where, default="standard") or "standard"
    if "transcoder" in architecture:
        raise FormatError(
            f"{where}: architecture is {architecture!r}: a transcoder reads one site and writes another, so "
            "its reconstruction is not of its input; polysem needs an autoencoder of one site",
            hint="polysem.saes.load_transcoders(folder) reads it; or use the SAEs of the same layer, e.g. gemma-scope-2b-pt-mlp",
        )
    if architecture not in _ACTIVATION:
        raise FormatError(
            f"{where}: architecture is {architecture!r}, expected one of {', '.join(_ACTIVATION)}",
            hint="SAEs in training form (batchtopk, matryoshka): sae.save_inference_model(folder)",
        )
    function = config.get("activation_fn", "relu")
    if architecture != "topk" and function not in ("relu", None):
        raise FormatError(
            f"{where}: activation_fn is {function!r} in a {architecture} SAE, expected 'relu', or 'topk' "
            "with k"
        )
    return _ACTIVATION[architecture]


def _normalize_name(value: object) -> str:
    if isinstance(value, bool):
        return "expected_average_only_in" if value else "none"
    return "none" if value is None else str(value)


def _input_factor(config: Mapping[str, Any], source: WeightFiles, *, where: str) -> float:
    factor = config.get("norm_scaling_factor") or (source.entry.norm_scaling_factor if source.entry else None)
    if not isinstance(factor, int | float) or not factor > 0:
        raise FormatError(
            f"{where}: normalize_activations is expected_average_only_in, but the factor is not known "
            f"(norm_scaling_factor is {factor!r})",
            hint='add "norm_scaling_factor": sqrt(d_in) / mean norm of the training activations, to cfg.json',
        )
    return float(factor)


def _fold_finetuning(
    tensors: dict[str, Tensor], config: Mapping[str, Any], *, where: str
) -> dict[str, Tensor]:
    names = ("scaling_factor", "finetuning_scaling_factor")
    kept = {name: t for name, t in tensors.items() if name not in names}
    check_tensors(kept, where)
    factor = tensors.get("scaling_factor", tensors.get("finetuning_scaling_factor"))
    if factor is None or "W_dec" not in kept:
        return kept
    if factor.is_floating_point() and torch.allclose(factor.float(), torch.ones_like(factor.float())):
        return kept
    if not config.get("finetuning_scaling_factor"):
        raise FormatError(
            f"{where} holds a scaling_factor that is not one, but cfg.json does not set "
            "finetuning_scaling_factor"
        )
    if factor.shape != kept["W_dec"].shape[:1] or not factor.is_floating_point():
        raise FormatError(
            f"{where}: scaling_factor is {factor.dtype} of shape {tuple(factor.shape)}, expected floating-point numbers of "
            f"shape {tuple(kept['W_dec'].shape[:1])}"
        )
    return {**kept, "W_dec": kept["W_dec"] * factor[:, None]}
