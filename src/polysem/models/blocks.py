"""The weights of a block of GPT-2, GPT-NeoX and the Llama kind, in one form.

A block is two reads of the stream (attention, MLP), each a norm and a linear map, and two writes to it.
Families differ in the norm, in how the query, key and value rows are packed, in rotary positions, in a gate,
and in whether both reads see the same stream (parallel) or the second sees what the first wrote. Blocks with
anything else (post-norms, soft caps, query norms other than Qwen's) are not described here, and run through
their own modules. Module names are those of `transformers` 4.56 to 5.x.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from polysem.models.clean import block_path
from polysem.models.hf import HFModel
from polysem.onednn import Gelu, Linear, packs

GELUS: dict[str, Gelu] = {
    "gelu": "none",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
"""activations that a linear map can carry out at its end; gelu_new is the tanh form, written out"""
_OTHERS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "swish": F.silu, "relu": F.relu}


@dataclass(frozen=True)
class Norm:
    """LayerNorm (`centred`) or RMSNorm over the last axis."""

    weight: Float[Tensor, " d"]
    bias: Float[Tensor, " d"] | None
    eps: float
    centred: bool

    def __call__(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        if self.centred:
            return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)

    def direction(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The part that is linear in x: norm(x) = direction(x) * scale(x) + bias."""
        return (x - x.mean(-1, keepdim=True) if self.centred else x) * self.weight

    def scale(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows 1"]:
        """1 / standard deviation, or 1 / root mean square."""
        if self.centred:
            return torch.native_layer_norm(x, (x.shape[-1],), None, None, self.eps)[2]
        return (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()

    def constant(self, linear: Linear) -> Float[Tensor, " n_out"]:
        """What `linear` gives for the norm's bias: its own bias included."""
        if self.bias is not None:
            return linear(self.bias[None])[0]
        return self.weight.new_zeros(1) if linear.bias is None else linear.bias


@dataclass(frozen=True)
class BlockModules:
    """One block."""

    norm1: Norm
    norm2: Norm
    query: Linear
    keyvalue: Linear
    """keys of all key heads, then values"""
    out: Linear
    up: Linear
    gate: Linear | None
    down: Linear
    activation: str
    heads: tuple[int, int]
    """query heads, key heads"""
    scale: float
    rotary: bool
    parallel: bool
    head_norms: tuple[Norm, Norm] | None = None
    """of queries and keys, over the width of a head"""


def blocks_of(model: HFModel) -> list[BlockModules] | None:
    """Every block of a model; None where its family or configuration is not described here."""
    config: Any = model.model.config
    describe = {"gpt2": _gpt2, "gpt_neox": _neox, "llama": _llama, "qwen2": _llama, "qwen3": _llama}
    if model.spec.family not in describe or model.spec.dtype != "float32":
        return None
    n_bytes = sum(p.numel() * p.element_size() for p in model.model.parameters())
    pack = packs(n_bytes) and model.spec.device == "cpu"
    layers = [model.model.get_submodule(block_path(model, k)) for k in range(model.spec.n_layers)]
    blocks = [describe[model.spec.family](layer, config, pack) for layer in layers]
    known = all(b.activation in GELUS or b.activation in _OTHERS for b in blocks)
    return blocks if known else None


def activate(name: str, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """The MLP's activation by its name in `transformers`."""
    return F.gelu(x, approximate=GELUS[name]) if name in GELUS else _OTHERS[name](x)


def _gpt2(layer: Any, config: Any, pack: bool) -> BlockModules:
    attn, mlp, d = layer.attn, layer.mlp, config.hidden_size
    packed, bias = attn.c_attn.weight.detach().T, attn.c_attn.bias.detach()
    d_head = d // config.num_attention_heads
    scale = d_head**-0.5 if config.scale_attn_weights else 1.0
    if config.scale_attn_by_inverse_layer_idx:
        scale /= attn.layer_idx + 1
    return BlockModules(
        norm1=_norm(layer.ln_1),
        norm2=_norm(layer.ln_2),
        query=Linear(packed[:d].contiguous(), bias[:d].contiguous(), pack=pack),
        keyvalue=Linear(packed[d:].contiguous(), bias[d:].contiguous(), pack=pack),
        out=_linear(attn.c_proj, pack),
        up=_linear(mlp.c_fc, pack),
        gate=None,
        down=_linear(mlp.c_proj, pack),
        activation=config.activation_function,
        heads=(config.num_attention_heads, config.num_attention_heads),
        scale=scale,
        rotary=False,
        parallel=False,
    )


def _neox(layer: Any, config: Any, pack: bool) -> BlockModules:
    attn, mlp, heads = layer.attention, layer.mlp, config.num_attention_heads
    fused = attn.query_key_value
    by_head = rearrange(fused.weight.detach(), "(h three d) w -> three (h d) w", h=heads, three=3)
    bias = (
        None
        if fused.bias is None
        else rearrange(fused.bias.detach(), "(h three d) -> three (h d)", h=heads, three=3)
    )
    return BlockModules(
        norm1=_norm(layer.input_layernorm),
        norm2=_norm(layer.post_attention_layernorm),
        query=Linear(by_head[0].contiguous(), None if bias is None else bias[0].contiguous(), pack=pack),
        keyvalue=Linear(
            by_head[1:].flatten(0, 1).contiguous(),
            None if bias is None else bias[1:].flatten().contiguous(),
            pack=pack,
        ),
        out=_linear(attn.dense, pack),
        up=_linear(mlp.dense_h_to_4h, pack),
        gate=None,
        down=_linear(mlp.dense_4h_to_h, pack),
        activation=config.hidden_act,
        heads=(heads, heads),
        scale=(config.hidden_size // heads) ** -0.5,
        rotary=True,
        parallel=config.use_parallel_residual,
    )


def _llama(layer: Any, config: Any, pack: bool) -> BlockModules:
    attn, mlp = layer.self_attn, layer.mlp
    key, value = attn.k_proj, attn.v_proj
    d_head = key.weight.shape[0] // config.num_key_value_heads
    bias = None if key.bias is None else torch.cat([key.bias.detach(), value.bias.detach()])
    head_norms = (_norm(attn.q_norm), _norm(attn.k_norm)) if hasattr(attn, "q_norm") else None
    return BlockModules(
        norm1=_norm(layer.input_layernorm),
        norm2=_norm(layer.post_attention_layernorm),
        query=_linear(attn.q_proj, pack),
        keyvalue=Linear(torch.cat([key.weight.detach(), value.weight.detach()]), bias, pack=pack),
        out=_linear(attn.o_proj, pack),
        up=_linear(mlp.up_proj, pack),
        gate=_linear(mlp.gate_proj, pack),
        down=_linear(mlp.down_proj, pack),
        activation=config.hidden_act,
        heads=(config.num_attention_heads, config.num_key_value_heads),
        scale=d_head**-0.5,
        rotary=True,
        parallel=False,
        head_norms=head_norms,
    )


def _norm(module: Any) -> Norm:
    centred = isinstance(module, nn.LayerNorm)
    eps = module.eps if centred else module.variance_epsilon
    bias = module.bias.detach() if centred and module.bias is not None else None
    return Norm(weight=module.weight.detach(), bias=bias, eps=eps, centred=centred)


def _linear(module: Any, pack: bool) -> Linear:
    weight = module.weight.detach()
    if not isinstance(module, nn.Linear):  # GPT-2's Conv1D is [in, out]
        weight = weight.T.contiguous()
    return Linear(weight, None if module.bias is None else module.bias.detach(), pack=pack)
