"""Small SAEs with planted directions, written in the very files of every dialect.

`planted()` makes the weights, `WRITERS[dialect](folder, weights)` writes them as that dialect's own tools
would and returns the path
to load. What must come back is computed from `weights` by the rule of the dialect, never by polysem.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

D_IN, D_SAE, K = 16, 64, 6
LAYER = 1
COSINE = 0.4
"""between the decoder rows 0 and 1 of `planted()`"""


@dataclass(frozen=True)
class Weights:
    """Weights in our layout, and the facts that dialects write beside them."""

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    threshold: Tensor
    r_mag: Tensor
    b_mag: Tensor
    b_gate: Tensor
    k: int = K
    layer: int = LAYER
    hook: str = "hook_resid_post"
    model: str = "gpt2-small"

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    @property
    def hook_name(self) -> str:
        return f"blocks.{self.layer}.{self.hook}"


def planted(
    *,
    d_in: int = D_IN,
    d_sae: int = D_SAE,
    seed: int = 0,
    cosine: float = COSINE,
    decoder_norms: bool = False,
    **facts: Any,
) -> Weights:
    """Weights with tied encoder and decoder, and one pair of rows (0, 1) at a chosen cosine; row 2 is
    opposite to row 0.

    Args:
        d_in: activation width.
        d_sae: features.
        seed: of the random directions.
        cosine: between rows 0 and 1.
        decoder_norms: give the decoder rows norms between 0.5 and 2 instead of 1 (the encoder then no longer
        matches them).
        **facts: fields of `Weights` (k, layer, hook, model).
    """
    g = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=g), dim=-1)
    aside = torch.nn.functional.normalize(rows[1] - (rows[1] @ rows[0]) * rows[0], dim=0)
    rows[1] = cosine * rows[0] + (1 - cosine**2) ** 0.5 * aside
    rows[2] = -rows[0]
    norms = 0.5 + 1.5 * torch.rand(d_sae, generator=g) if decoder_norms else torch.ones(d_sae)

    def noise(n: int, scale: float) -> Tensor:
        return scale * torch.randn(n, generator=g)

    return Weights(
        W_enc=rows.T.contiguous(),
        W_dec=rows * norms[:, None],
        b_enc=noise(d_sae, 0.1),
        b_dec=noise(d_in, 0.3),
        threshold=0.1 + 0.4 * torch.rand(d_sae, generator=g),
        r_mag=noise(d_sae, 0.2),
        b_mag=noise(d_sae, 0.1),
        b_gate=noise(d_sae, 0.1),
        **facts,
    )


def inputs(weights: Weights, *, n: int = 40, seed: int = 1, mean: float = 0.5) -> Tensor:
    """Activations that the planted features explain: sparse sums of decoder rows, a common offset, a little
    noise. [n d_in]"""
    g = torch.Generator().manual_seed(seed)
    acts = torch.rand(n, weights.d_sae, generator=g) * (
        torch.rand(n, weights.d_sae, generator=g) < 2 / weights.d_sae
    )
    noise = 0.05 * torch.randn(n, weights.d_in, generator=g)
    return 3 * acts @ weights.W_dec + weights.b_dec + mean * torch.randn(n, 1, generator=g) + noise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)


def _standard(w: Weights, *extra: str) -> dict[str, Tensor]:
    return {name: getattr(w, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec", *extra)}


_SAELENS_TENSORS: dict[str, tuple[str, ...]] = {
    "standard": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "topk": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "jumprelu": ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"),
    "gated": ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"),
}


def write_saelens_v6(folder: Path, w: Weights, *, architecture: str = "standard", **settings: Any) -> Path:
    """As sae_lens 6 saves: nested `metadata`. `settings` go to the top level; `metadata` among them is
    merged."""
    metadata = {
        "sae_lens_version": "6.54.12",
        "sae_lens_training_version": "6.54.12",
        "model_name": w.model,
        "hook_name": w.hook_name,
        "model_class_name": "HookedTransformer",
        "hook_head_index": None,
        "context_size": 128,
        "seqpos_slice": [None],
        "prepend_bos": True,
        "dataset_path": "somebody/some-text",
        "model_from_pretrained_kwargs": {},
    }
    config = {
        "d_in": w.d_in,
        "d_sae": w.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **({"k": w.k, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {}),
        **{name: value for name, value in settings.items() if name != "metadata"},
        "metadata": {**metadata, **settings.get("metadata", {})},
        "architecture": architecture,
    }
    write_json(folder / "cfg.json", config)
    _save(
        folder / "sae_weights.safetensors",
        {name: getattr(w, name) for name in _SAELENS_TENSORS.get(architecture, ())},
    )
    return folder


def write_saelens_pre_v6(
    folder: Path, w: Weights, *, architecture: str = "standard", **settings: Any
) -> Path:
    """As sae_lens 3 to 5 saved: flat. The defaults are those of the Pythia `-sm` releases."""
    config = {
        "architecture": architecture,
        "d_in": w.d_in,
        "d_sae": w.d_sae,
        "dtype": "torch.float32",
        "device": "cpu",
        "model_name": w.model,
        "hook_name": w.hook_name,
        "hook_layer": w.layer,
        "hook_head_index": None,
        "activation_fn_str": "relu",
        "activation_fn_kwargs": {},
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "sae_lens_training_version": None,
        "prepend_bos": False,
        "dataset_path": "EleutherAI/the_pile_deduplicated",
        "dataset_trust_remote_code": True,
        "context_size": 128,
        "normalize_activations": "none",
        "neuronpedia_id": None,
        "model_from_pretrained_kwargs": {},
        **settings,
    }
    write_json(folder / "cfg.json", config)
    _save(
        folder / "sae_weights.safetensors",
        {name: getattr(w, name) for name in _SAELENS_TENSORS[architecture]},
    )
    _save(folder / "sparsity.safetensors", {"sparsity": torch.full((w.d_sae,), -3.0)})
    return folder


def write_openai_v5_pre_v6(folder: Path, w: Weights) -> Path:
    """As the OpenAI v5 SAEs were republished: declared `standard`, with a topk activation and layer norm."""
    return write_saelens_pre_v6(
        folder,
        w,
        activation_fn_str="topk",
        activation_fn_kwargs={"k": w.k},
        normalize_activations="layer_norm",
        context_size=64,
        dataset_path="Skylion007/openwebtext",
    )


def write_saelens_oldest(folder: Path, w: Weights, **settings: Any) -> Path:
    """As sae_lens 2 saved (gpt2-small-res-jb): `hook_point` names, runner fields, a scaling_factor of
    ones."""
    config = {
        "model_name": w.model,
        "hook_point": w.hook_name,
        "hook_point_layer": w.layer,
        "hook_point_head_index": None,
        "dataset_path": "Skylion007/openwebtext",
        "is_dataset_tokenized": False,
        "context_size": 128,
        "use_cached_activations": False,
        "d_in": w.d_in,
        "d_sae": w.d_sae,
        "n_batches_in_buffer": 128,
        "total_training_tokens": 300000000,
        "device": "cpu",
        "seed": 42,
        "dtype": "torch.float32",
        "b_dec_init_method": "geometric_median",
        "expansion_factor": w.d_sae // w.d_in,
        "l1_coefficient": 8e-05,
        "lr": 0.0004,
        "checkpoint_path": "checkpoints/abc",
        **settings,
    }
    write_json(folder / "cfg.json", config)
    _save(folder / "sae_weights.safetensors", {**_standard(w), "scaling_factor": torch.ones(w.d_sae)})
    return folder


def write_openai(folder: Path, w: Weights, *, activation: str = "TopK") -> Path:
    """As openai/sparse_autoencoder saves a state dict, under its own file names."""
    place = {
        "hook_attn_out": "resid_delta_attn",
        "hook_resid_mid": "resid_post_attn",
        "hook_mlp_out": "resid_delta_mlp",
        "hook_resid_post": "resid_post_mlp",
    }[w.hook]
    state = {
        "pre_bias": w.b_dec,
        "encoder.weight": w.W_enc.T.contiguous(),
        "latent_bias": w.b_enc,
        "decoder.weight": w.W_dec.T.contiguous(),
        "stats_last_nonzero": torch.zeros(w.d_sae, dtype=torch.long),
        "latents_activation_frequency": torch.zeros(w.d_sae, dtype=torch.long),
        "latents_mean_square": torch.zeros(w.d_sae),
        "activation": activation,
        **({"activation_state_dict": {"k": w.k, "postact_fn": "ReLU"}} if activation == "TopK" else {}),
    }
    path = folder / "gpt2-small" / f"{place}_v5_32k" / "autoencoders" / f"{w.layer}.pt"
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    return path


def write_gemma_scope(
    folder: Path, w: Weights, *, part: str = "res", lower_case: bool = False, embedding: bool = False
) -> Path:
    """As Gemma Scope publishes: `params.npz` alone, under names that say the rest."""
    names = _standard(w, "threshold")
    arrays = {(n.replace("W_", "w_") if lower_case else n): t.numpy() for n, t in names.items()}
    place = "embedding/width_4k/average_l0_6" if embedding else f"layer_{w.layer}/width_16k/average_l0_105"
    path = folder / f"gemma-scope-2b-pt-{part}" / place
    path.mkdir(parents=True)
    np.savez(path / "params.npz", **arrays)  # pyright: ignore[reportArgumentType]  (arrays by name)
    return path


def write_gemma_scope_2(folder: Path, w: Weights, *, config: bool = True) -> Path:
    """As Gemma Scope 2 publishes: lower-case names in safetensors, a configuration in some repositories."""
    path = folder / "gemma-scope-2-1b-pt" / "resid_post" / f"layer_{w.layer}_width_16k_l0_medium"
    _save(
        path / "params.safetensors", {n.replace("W_", "w_"): t for n, t in _standard(w, "threshold").items()}
    )
    if config:
        facts = {
            "architecture": "jump_relu",
            "model_name": "gemma-v3-1b-pt",
            "hf_hook_point_in": f"model.layers.{w.layer}.output",
            "affine_connection": False,
        }
        write_json(path / "config.json", facts)
    return path


def write_sparsify(folder: Path, w: Weights, *, hookpoint: str | None = None, **settings: Any) -> Path:
    """As sparsify's save_to_disk writes. The folder's name is the hookpoint; `config.json` of the run lies
    above it."""
    path = folder / "sae-run" / (hookpoint or f"layers.{w.layer}")
    config = {
        "activation": "topk",
        "expansion_factor": w.d_sae // w.d_in,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": w.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": w.d_in,
        **settings,
    }
    write_json(path / "cfg.json", config)
    write_json(
        path.parent / "config.json",
        {"model": "EleutherAI/pythia-70m-deduped", "ctx_len": 2048, "dataset": "EleutherAI/pile"},
    )
    tensors = {"encoder.weight": w.W_enc.T, "encoder.bias": w.b_enc, "W_dec": w.W_dec, "b_dec": w.b_dec}
    _save(path / "sae.safetensors", tensors)
    return path


def dictionary_state(w: Weights, dict_class: str) -> dict[str, Tensor]:
    """The state dict that `dict_class` of dictionary_learning would save."""
    linear = {"encoder.weight": w.W_enc.T.contiguous(), "decoder.weight": w.W_dec.T.contiguous()}
    matrix = {"W_enc": w.W_enc, "W_dec": w.W_dec, "b_enc": w.b_enc, "b_dec": w.b_dec}
    batch = {"k": torch.tensor(w.k, dtype=torch.int), "threshold": torch.tensor(0.25)}
    states = {
        "AutoEncoder": {**linear, "encoder.bias": w.b_enc, "bias": w.b_dec},
        "AutoEncoderNew": {**linear, "encoder.bias": w.b_enc, "decoder.bias": w.b_dec},
        "GatedAutoEncoder": {
            **linear,
            "decoder_bias": w.b_dec,
            "r_mag": w.r_mag,
            "gate_bias": w.b_gate,
            "mag_bias": w.b_mag,
        },
        "AutoEncoderTopK": {**linear, "encoder.bias": w.b_enc, "b_dec": w.b_dec, **batch},
        "BatchTopKSAE": {**linear, "encoder.bias": w.b_enc, "b_dec": w.b_dec, **batch},
        "MatryoshkaBatchTopKSAE": {
            **matrix,
            **batch,
            "group_sizes": torch.tensor([w.d_sae // 4, w.d_sae - w.d_sae // 4]),
        },
        "JumpReluAutoEncoder": {**matrix, "threshold": w.threshold},
    }
    return states[dict_class]


DICT_CLASSES = (
    "AutoEncoder",
    "AutoEncoderNew",
    "GatedAutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
)


def write_dictionary_learning(
    folder: Path, w: Weights, *, dict_class: str = "AutoEncoder", **trainer: Any
) -> Path:
    """As dictionary_learning's training loop leaves a folder: `ae.pt` and `config.json`."""
    facts = {
        "dict_class": dict_class,
        "activation_dim": w.d_in,
        "dict_size": w.d_sae,
        "layer": w.layer,
        "lm_name": "EleutherAI/pythia-70m-deduped",
        "submodule_name": f"resid_post_layer_{w.layer}",
        "k": w.k,
        "lr": 0.0003,
        "steps": 100,
        "seed": 0,
        **trainer,
    }
    write_json(folder / "config.json", {"trainer": facts, "buffer": {"ctx_len": 128, "d_submodule": w.d_in}})
    torch.save(dictionary_state(w, dict_class), folder / "ae.pt")
    return folder


def write_llama_scope(folder: Path, w: Weights, *, norm: float = 2.5, jump: float = 0.3) -> Path:
    """As Llama Scope publishes: `hyperparams.json` and `checkpoints/final.safetensors` in bfloat16."""
    path = folder / f"Llama3_1-8B-Base-L{w.layer}R-8x"
    facts = {
        "hook_point_in": w.hook_name,
        "hook_point_out": w.hook_name,
        "d_model": w.d_in,
        "d_sae": w.d_sae,
        "dataset_average_activation_norm": {"in": norm, "out": norm},
        "jump_relu_threshold": jump,
        "act_fn": "jumprelu",
    }
    write_json(path / "hyperparams.json", facts)
    tensors = {
        "encoder.weight": w.W_enc.T,
        "encoder.bias": w.b_enc,
        "decoder.weight": w.W_dec.T,
        "decoder.bias": w.b_dec,
    }
    _save(path / "checkpoints" / "final.safetensors", {n: t.to(torch.bfloat16) for n, t in tensors.items()})
    return path


def write_goodfire(folder: Path, w: Weights) -> Path:
    """As Goodfire publishes: one `.pth`, named after the model and the layer."""
    state = {
        "encoder_linear.weight": w.W_enc.T.contiguous(),
        "encoder_linear.bias": w.b_enc,
        "decoder_linear.weight": w.W_dec.T.contiguous(),
        "decoder_linear.bias": w.b_dec,
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "Llama-3.1-8B-Instruct-SAE-l19.pth")
    return folder / "Llama-3.1-8B-Instruct-SAE-l19.pth"


def write_qwen_scope(folder: Path, w: Weights) -> Path:
    """As Qwen Scope publishes: `layerN.sae.pt` in a repository whose name says model, width and k."""
    path = folder / f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{w.k}"
    path.mkdir(parents=True)
    state = {
        "W_enc": w.W_enc.T.contiguous(),
        "W_dec": w.W_dec.T.contiguous(),
        "b_enc": w.b_enc,
        "b_dec": w.b_dec,
    }
    torch.save(state, path / f"layer{w.layer}.sae.pt")
    return path / f"layer{w.layer}.sae.pt"


def _v6(architecture: str) -> Callable[[Path, Weights], Path]:
    return lambda folder, w: write_saelens_v6(folder, w, architecture=architecture)


def _dictionary(dict_class: str) -> Callable[[Path, Weights], Path]:
    return lambda folder, w: write_dictionary_learning(folder, w, dict_class=dict_class)


WRITERS: dict[str, Callable[[Path, Weights], Path]] = {
    "saelens-v6-standard": _v6("standard"),
    "saelens-v6-topk": _v6("topk"),
    "saelens-v6-jumprelu": _v6("jumprelu"),
    "saelens-v6-gated": _v6("gated"),
    "saelens-pre-v6": write_saelens_pre_v6,
    "saelens-pre-v6-openai": write_openai_v5_pre_v6,
    "saelens-oldest": write_saelens_oldest,
    "openai": write_openai,
    "gemma-scope": write_gemma_scope,
    "gemma-scope-2": write_gemma_scope_2,
    "sparsify": write_sparsify,
    "llama-scope": write_llama_scope,
    "goodfire": write_goodfire,
    "qwen-scope": write_qwen_scope,
    **{f"dictionary_learning-{name}": _dictionary(name) for name in DICT_CLASSES},
}
"""dialect -> writer(folder, weights) -> the path to give to load_sae"""
