"""Small transcoders in the very files of every dialect, and what they must write, by each dialect's own rule.

`WRITERS[dialect](folder, planted(...))` writes them as that dialect's tools would and gives the path. `Planted.written`
is plain matrix arithmetic on the planted weights, never polysem's.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

LAYERS, D, F, K = 3, 10, 24, 5


@dataclass
class Planted:
    """Weights in one layout: W_enc [L d f], W_dec[i][m] [f d] for m >= i, W_skip [L d_in d_out]."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: dict[tuple[int, int], Tensor]
    b_dec: Tensor
    W_skip: Tensor | None
    threshold: Tensor | None
    k: int | None = None
    bonus: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    gain: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    in_norm: Tensor | None = None
    out_norm: Tensor | None = None
    tied_bias: bool = False

    def codes(self, layer: int, x: Tensor) -> Tensor:
        pre = (x @ self.W_enc[layer] + self.b_enc[layer]).relu()
        if self.threshold is not None:
            return pre * (pre > self.threshold[layer])
        if self.k is None:
            return pre
        kept = torch.zeros_like(pre)
        return kept.scatter(-1, pre.topk(self.k, -1).indices, 1.0) * pre

    def written(self, xs: Tensor) -> Tensor:
        """[L n d] from what is read [L n d]."""
        out = torch.zeros_like(xs)
        for (i, m), rows in self.W_dec.items():
            x = xs[i] if self.in_norm is None else xs[i] * D**0.5 / self.in_norm[i]
            codes = self.codes(i, x)
            codes = codes + self.bonus.get((i, m), torch.zeros(F)) * (codes > 0)
            part = (codes * self.gain.get((i, m), torch.ones(F))) @ rows
            if i == m:
                part = part + self.b_dec[m]
                if self.W_skip is not None:
                    part = part + x @ self.W_skip[m]
            out[m] += part if self.out_norm is None else part * self.out_norm[m] / D**0.5
        return out


def planted(
    *,
    cross: bool = False,
    skip: bool = False,
    jump: bool = False,
    k: int | None = None,
    seed: int = 0,
    layers: int = LAYERS,
    d: int = D,
) -> Planted:
    """Random weights."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    W_dec = {(i, m): normal(F, d) for i in range(layers) for m in range(i, layers) if cross or m == i}
    return Planted(
        W_enc=normal(layers, d, F),
        b_enc=normal(layers, F),
        W_dec=W_dec,
        b_dec=normal(layers, d),
        W_skip=normal(layers, d, d) if skip else None,
        threshold=torch.rand(layers, F, generator=g) if jump else None,
        k=k,
    )


def save(path: Path, tensors: dict[str, Tensor | None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous().clone() for name, t in tensors.items() if t is not None}, path)


def write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_yaml(folder: Path, kind: str, **more: object) -> None:
    lines = [
        "# as circuit-tracer writes it",
        'model_name: "somebody/model"',
        f"model_kind: {kind}",
        *(f"{k}: {v}" for k, v in more.items()),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def circuit_tracer_plt(folder: Path, p: Planted, *, config: bool = True) -> Path:
    if config:
        more = {"activation": "topk", "k": p.k} if p.k else {}
        write_yaml(folder, "transcoder_set", feature_input_hook="mlp.hook_in", **more)
    for i in range(len(p.W_enc)):
        skip = None if p.W_skip is None else p.W_skip[i].T
        jump = None if p.threshold is None else p.threshold[i]
        tensors = {
            "W_enc": p.W_enc[i].T,
            "W_dec": p.W_dec[i, i],
            "b_enc": p.b_enc[i],
            "b_dec": p.b_dec[i],
            "W_skip": skip,
            "activation_function.threshold": jump,
        }
        save(folder / f"layer_{i}.safetensors", tensors)
    return folder


def circuit_tracer_clt(folder: Path, p: Planted) -> Path:
    write_yaml(
        folder,
        "cross_layer_transcoder",
        feature_input_hook="hook_resid_mid",
        feature_output_hook="hook_mlp_out",
    )
    n = len(p.W_enc)
    for i in range(n):
        jump = None if p.threshold is None else p.threshold[i]
        tensors = {
            f"W_enc_{i}": p.W_enc[i].T,
            f"b_enc_{i}": p.b_enc[i],
            f"b_dec_{i}": p.b_dec[i],
            f"threshold_{i}": jump,
        }
        save(folder / f"W_enc_{i}.safetensors", tensors)
        rows = torch.stack([p.W_dec[i, m] for m in range(i, n)], 1)
        save(folder / f"W_dec_{i}.safetensors", {f"W_dec_{i}": rows})
    return folder


def _gemma(p: Planted, i: int) -> dict[str, Tensor | None]:
    assert p.threshold is not None
    skip = None if p.W_skip is None else p.W_skip[i]
    return {
        "w_enc": p.W_enc[i],
        "w_dec": p.W_dec[i, i],
        "b_enc": p.b_enc[i],
        "b_dec": p.b_dec[i],
        "threshold": p.threshold[i],
        "affine_skip_connection": skip,
    }


def gemma_scope(folder: Path, p: Planted) -> Path:
    for i in range(len(p.W_enc)):
        place = folder / f"layer_{i}" / "width_16k" / "average_l0_5"
        place.mkdir(parents=True)
        arrays = {k.replace("w_", "W_"): t.numpy() for k, t in _gemma(p, i).items() if t is not None}
        np.savez(place / "params.npz", **arrays)
        (folder / f"layer_{i}" / "params.npz").write_bytes((place / "params.npz").read_bytes())
    return folder


def gemma_scope_2(folder: Path, p: Planted) -> Path:
    for i in range(len(p.W_enc)):
        place = folder / f"layer_{i}_width_16k_l0_small{'_affine' if p.W_skip is not None else ''}"
        save(place / "params.safetensors", _gemma(p, i))
        config = {
            "model_name": "google/gemma-3-1b-pt",
            "architecture": "jump_relu",
            "affine_connection": p.W_skip is not None,
        }
        hooks = {
            f"hf_hook_point_{s}": f"model.layers.{i}.{n}_feedforward_layernorm.output"
            for s, n in (("in", "pre"), ("out", "post"))
        }
        write_json(place / "config.json", config | hooks)
    return folder


def gemma_scope_2_clt(folder: Path, p: Planted) -> Path:
    n = len(p.W_enc)
    for i in range(n):
        rows = torch.stack([p.W_dec.get((i, m), torch.zeros(F, p.W_enc.shape[1])) for m in range(n)], 1)
        save(folder / f"params_layer_{i}.safetensors", _gemma(p, i) | {"w_dec": rows})
    return folder


def saelens(folder: Path, p: Planted, *, layer: int = 1) -> Path:
    """One layer's, in the architecture that its parts ask for."""
    kind = ("jumprelu_" if p.threshold is not None else "") + (
        "skip_transcoder" if p.W_skip is not None else "transcoder"
    )
    meta = {
        "model_name": "gpt2-small",
        "hook_name": f"blocks.{layer}.mlp.hook_in",
        "hook_name_out": f"blocks.{layer}.hook_mlp_out",
        "prepend_bos": True,
        "context_size": 64,
    }
    write_json(
        folder / "cfg.json",
        {
            "architecture": kind,
            "d_in": p.W_enc.shape[1],
            "d_sae": F,
            "d_out": p.W_enc.shape[1],
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": meta,
        },
    )
    tensors = {
        "W_enc": p.W_enc[layer],
        "W_dec": p.W_dec[layer, layer],
        "b_enc": p.b_enc[layer],
        "b_dec": p.b_dec[layer],
        "threshold": None if p.threshold is None else p.threshold[layer],
        "W_skip": None if p.W_skip is None else p.W_skip[layer].T,
    }
    save(folder / "sae_weights.safetensors", tensors)
    return folder


def sparsify(folder: Path, p: Planted, **config: object) -> Path:
    """Per-layer ones as sparsify saves them, cross-layer ones as clt-training does."""
    n = len(p.W_enc)
    cross = len(p.W_dec) > n
    for i in range(n):
        targets = [m for m in range(n) if (i, m) in p.W_dec]
        own = {
            "d_in": p.W_enc.shape[1],
            "transcode": True,
            "k": p.k,
            "activation": "topk",
            "skip_connection": p.W_skip is not None,
            **({"n_targets": len(targets), "post_encoder_scale": bool(p.gain)} if cross else {}),
            **({"normalize_io": True} if p.in_norm is not None else {}),
            **config,
        }
        write_json(folder / f"layers.{i}.mlp" / "cfg.json", own)
        tensors: dict[str, Tensor | None] = {"encoder.weight": p.W_enc[i].T, "encoder.bias": p.b_enc[i]}
        for m in targets:
            end = f"s.{m - i}" if cross else ""
            tensors |= {
                f"W_dec{end}": p.W_dec[i, m],
                f"b_dec{end}": p.b_dec[m] if m == i else torch.zeros_like(p.b_dec[m]),
                f"W_skip{end}": None
                if p.W_skip is None
                else (p.W_skip[i].T if m == i else torch.zeros_like(p.W_skip[i])),
                f"post_enc{end}": p.bonus.get((i, m), torch.zeros(F)),
            }
            if p.gain:
                tensors[f"post_enc_scale{end}"] = p.gain[i, m]
        if p.in_norm is not None and p.out_norm is not None:
            tensors |= {"in_norm": p.in_norm[i : i + 1], "out_norm": p.out_norm[i : i + 1]}
        save(folder / f"layers.{i}.mlp" / "sae.safetensors", tensors)
    write_json(folder / "config.json", {"model": "somebody/model", "ctx_len": 128})
    return folder


def clt_training(folder: Path, p: Planted, **config: object) -> Path:
    """With everything that clt-training adds: post-encoder terms and scales, scaled input and output."""
    g = torch.Generator().manual_seed(9)
    p.bonus = {key: torch.rand(F, generator=g) for key in p.W_dec}
    p.gain = {key: torch.rand(F, generator=g) + 0.5 for key in p.W_dec}
    p.in_norm, p.out_norm = (torch.rand(len(p.W_enc), generator=g) + 2 for _ in range(2))
    return sparsify(folder, p, **config)


def decode_clt(
    folder: Path, p: Planted, *, tying: str = "none", norm: str = "none", **config: object
) -> Path:
    """As decode-clt's trainer leaves it: the state dict under its own names; the planted decoders' first of a tie counts."""
    n, d = len(p.W_enc), p.W_enc.shape[1]
    settings = {
        "num_features": F, "num_layers": n, "d_model": d, "model_name": "somebody/model", "normalization_method": norm,
        "activation_fn": "relu" if p.threshold is None else "jumprelu", "decoder_tying": tying,
        "skip_connection": p.W_skip is not None, "enable_feature_offset": tying != "none", "enable_feature_scale": tying != "none",
    }  # fmt: skip
    write_json(folder / "cfg.json", settings | config)
    g = torch.Generator().manual_seed(11)
    tensors: dict[str, Tensor | None] = {}
    for i in range(n):
        tensors |= {
            f"encoder_module.encoders.{i}.weight": p.W_enc[i].T,
            f"encoder_module.encoders.{i}.bias_param": p.b_enc[i],
        }
    pairs = sorted(p.W_dec) if tying == "none" else [(i, i) for i in range(n)]
    for i, m in pairs:
        key = f"{i}->{m}" if tying == "none" else str(i)
        tensors |= {
            f"decoder_module.decoders.{key}.weight": p.W_dec[i, m].T,
            f"decoder_module.decoders.{key}.bias_param": torch.randn(d, generator=g),
        }
        if p.W_skip is not None:
            tensors[f"decoder_module.skip_weights.{key}"] = p.W_skip[i].T * (1 + m - i)
        if tying != "none":
            tensors[f"decoder_module.feature_offset.{key}"] = torch.rand(F, generator=g)
            tensors[f"decoder_module.feature_scale.{key}"] = torch.rand(F, generator=g) + 0.5
    if p.threshold is not None:
        tensors["theta_manager.log_threshold"] = p.threshold.log()
    if norm == "mean_std":
        stats = {
            str(i): {side: {"mean": torch.randn(d, generator=g).tolist(), "std": (torch.rand(d, generator=g) + 0.5).tolist()}
                     for side in ("inputs", "targets")} for i in range(n)
        }  # fmt: skip
        write_json(folder / "norm_stats.json", stats)
    save(folder / "clt_checkpoint_latest.safetensors", tensors)
    return folder


WRITERS: dict[str, tuple[Callable[..., Path], dict]] = {
    "circuit-tracer PLT, relu": (circuit_tracer_plt, {}),
    "circuit-tracer PLT, jumprelu, skip": (circuit_tracer_plt, {"jump": True, "skip": True}),
    "circuit-tracer PLT, topk": (circuit_tracer_plt, {"k": K}),
    "circuit-tracer CLT, relu": (circuit_tracer_clt, {"cross": True}),
    "circuit-tracer CLT, jumprelu": (circuit_tracer_clt, {"cross": True, "jump": True}),
    "Gemma Scope": (gemma_scope, {"jump": True}),
    "Gemma Scope 2": (gemma_scope_2, {"jump": True}),
    "Gemma Scope 2, affine": (gemma_scope_2, {"jump": True, "skip": True}),
    "Gemma Scope 2 CLT, affine": (gemma_scope_2_clt, {"cross": True, "jump": True, "skip": True}),
    "sparsify, skip": (sparsify, {"k": K, "skip": True}),
    "clt-training": (clt_training, {"cross": True, "k": K, "skip": True}),
}
