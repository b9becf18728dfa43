"""Dialects that are one torch file without a configuration: OpenAI's native files, Goodfire, Qwen Scope.

What the files do not say (layer, place, model, k) is read from the names that their publishers gave to file
and repository.
"""

import re
from typing import Any

from polysem.boundary.settings import setting
from polysem.boundary.tensors import read_torch
from polysem.errors import FormatError
from polysem.saes.base import Activation
from polysem.saes.dialects import dictionary_learning
from polysem.saes.parts import SAEParts, take
from polysem.saes.source import WeightFiles
from polysem.types import Site

_OPENAI_PLACES = {
    "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_mlp": "hook_resid_post",
    "mlp_post_act": "mlp.hook_post",
}
_OPENAI_ACTIVATIONS: dict[str, Activation] = {"TopK": "topk", "ReLU": "relu"}

_OPENAI_RECORDS = (
    *("activation", "activation_state_dict", "stats_last_nonzero"),
    *("latents_activation_frequency", "latents_mean_square"),
)
"""beside the weights: the rule, and statistics of the training"""


def load(source: WeightFiles) -> SAEParts:
    """Read a single torch file, deciding by its keys whose it is.

    Raises:
        FormatError: if the keys are of none of the known publishers.
    """
    state = read_torch(source.path)
    if "pre_bias" in state:
        return _openai(source, state)
    if "encoder_linear.weight" in state:
        return _goodfire(source, state)
    if "W_enc" in state and "W_dec" in state and re.search(r"layer\d+\.sae\.pt$", source.path.name):
        return _qwen(source, state)
    if (alone := dictionary_learning.load_alone(source, state)) is not None:
        return alone
    raise FormatError(
        f"{source.path} has the keys {', '.join(sorted(map(str, state))[:12])}: not the format of OpenAI "
        "(pre_bias), Goodfire (encoder_linear.weight), Qwen Scope (layerN.sae.pt with W_enc, W_dec) or "
        "dictionary_learning (ae.pt)",
        hint="for dictionary_learning put the config.json of its training beside it, and name the folder",
    )


def _openai(source: WeightFiles, state: dict[str, Any]) -> SAEParts:
    """openai/sparse_autoencoder: layer norm if and only if the activation is TopK; trained with context 64
    and no BOS."""
    name = setting(state, "activation", str, where=source.path, default="ReLU") or "ReLU"
    if name not in _OPENAI_ACTIVATIONS:
        raise FormatError(
            f"{source.path}: activation is {name!r}, expected one of {', '.join(_OPENAI_ACTIVATIONS)}"
        )
    settings = setting(state, "activation_state_dict", dict, where=source.path) or {}
    if name == "TopK" and settings.get("postact_fn", "ReLU") != "ReLU":
        raise FormatError(f"{source.path}: postact_fn is {settings['postact_fn']!r}, expected 'ReLU'")
    place = re.search("|".join(_OPENAI_PLACES), source.label)
    layer = re.search(r"(\d+)\.pth?$", source.path.name)
    return SAEParts(
        dialect="openai",
        weights=source.path,
        tensors=take(
            state,
            {
                "W_enc": "encoder.weight.T",
                "W_dec": "decoder.weight.T",
                "b_enc": "latent_bias",
                "b_dec": "pre_bias",
            },
            path=source.path,
            besides=_OPENAI_RECORDS,
        ),
        activation=_OPENAI_ACTIVATIONS[name],
        site=Site(int(layer[1]), _OPENAI_PLACES[place[0]]) if place and layer else None,
        model_id="gpt2-small" if re.search(r"gpt-?2-small|gpt2", source.label) else None,
        declared={"activation": name, "activation_state_dict": dict(settings)},
        rules={
            "k": setting(settings, "k", int, where=source.path),
            "normalization": "layer_norm" if name == "TopK" else "none",
            "prepend_bos": False,
            "context_size": 64,
        },
    )


def _goodfire(source: WeightFiles, state: dict[str, Any]) -> SAEParts:
    """Goodfire: ReLU, no subtraction of the decoder bias; `Llama-3.1-8B-Instruct-SAE-l19.pth`."""
    match = re.search(r"(Llama-3\.\d-\d+B-Instruct)-SAE-l(\d+)", source.label)
    return SAEParts(
        dialect="goodfire",
        weights=source.path,
        tensors=take(
            state,
            {
                "W_enc": "encoder_linear.weight.T",
                "W_dec": "decoder_linear.weight.T",
                "b_enc": "encoder_linear.bias",
                "b_dec": "decoder_linear.bias",
            },
            path=source.path,
        ),
        activation="relu",
        site=Site(int(match[2]), "hook_resid_post") if match else None,
        model_id=f"meta-llama/{match[1]}" if match else None,
        rules={"subtract_b_dec": False},
    )


def _qwen(source: WeightFiles, state: dict[str, Any]) -> SAEParts:
    """Qwen Scope: both matrices transposed, TopK with k from the repository's name, no subtraction of the
    decoder bias."""
    repo = re.search(r"SAE-Res-([\w.-]+?)-W(\d+)K-L0_(\d+)", source.label)
    if repo is None:
        raise FormatError(
            f"{source.label}: Qwen Scope keeps model and k in the repository's name only; expected "
            "SAE-Res-MODEL-W32K-L0_50 in the path",
            hint="keep the file in a folder that is named like its repository",
        )
    layer = re.search(r"layer(\d+)\.sae\.pt$", source.path.name)
    return SAEParts(
        dialect="qwen-scope",
        weights=source.path,
        tensors=take(
            state,
            {"W_enc": "W_enc.T", "W_dec": "W_dec.T", "b_enc": "b_enc", "b_dec": "b_dec"},
            path=source.path,
        ),
        activation="topk",
        site=Site(int(layer[1]), "hook_resid_post") if layer else None,
        model_id=f"Qwen/{repo[1]}",
        rules={"k": int(repo[3]), "subtract_b_dec": False},
    )
