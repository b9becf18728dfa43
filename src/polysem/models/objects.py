"""Models that are in memory already: of transformers, TransformerLens (both kinds) or nnsight.

None of these libraries is imported: an object is recognised by the module and name of its classes, and its weights are
the reference. A `HookedTransformer` holds them in a layout of its own; they are put back into that of `transformers`, and
the two must give the same logits. Weights that TransformerLens has folded or centred are another basis of the residual
stream, in which SAEs of the raw model do not fit: they are named and refused.

Source of the layouts: transformer_lens 3.9, `pretrained/weight_conversions/`.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polysem.boundary.files import exists
from polysem.errors import ConfigError, MismatchError, UnknownReferenceError
from polysem.models.base import quiet_transformers
from polysem.models.hf import HFModel

log = logging.getLogger(__name__)

LOGITS = 1e-3
"""nats by which log-probabilities of a HookedTransformer and of the same weights in transformers may differ; on the zoo they
differ by 2e-5 at most"""
CENTRED = 1e-5
"""mean of a row over its root mean square, below which it was centred; raw rows have 1e-3 and more"""
_RAW = (
    "load it without processing: HookedTransformer.from_pretrained_no_processing(NAME), or "
    "TransformerBridge.boot_transformers(NAME) without enable_compatibility_mode()"
)
Found = tuple[Any, Any]
"""a model of transformers and its tokenizer"""


def model_of(given: object, *, tokenizer: Any = None) -> HFModel:
    """The model of an object in memory. It is taken over: its parameters are frozen, its mode is set to evaluation.

    Args:
        given: a causal LM of transformers, a HookedTransformer or TransformerBridge, an nnsight LanguageModel, or what
            `load_model` gave.
        tokenizer: of transformers; None: the one that the object carries.

    Raises:
        UnknownReferenceError: if it is none of these, or of an unknown family.
        MismatchError: if its weights are folded or centred, are not there, are an adapter's or no language model's; or if
            the tokenizer does not fit.
        ConfigError: if there is no tokenizer.
    """
    if isinstance(given, HFModel):
        return given
    kinds = {(base.__module__.partition(".")[0], base.__name__) for base in type(given).__mro__}
    unwrap = next((of for kind, of in _KINDS.items() if kind in kinds), None)
    if unwrap is None:
        raise UnknownReferenceError(
            f"a {_name(given)} is no model that is known here; expected a reference (text or Path) or an object of "
            "transformers, TransformerLens or nnsight",
            hint="give the transformers model inside it, with tokenizer=...",
        )
    model, own = unwrap(given)
    if tokenizer is None and own is None:
        raise ConfigError(
            f"a {_name(given)} carries no tokenizer",
            hint="load_model(model, tokenizer=AutoTokenizer.from_pretrained(NAME))",
        )
    _check(model)
    with quiet_transformers():
        loaded = HFModel.from_parts(model, own if tokenizer is None else tokenizer, revision=digest(model))
    if loaded.spec.dtype in ("float16", "bfloat16"):
        log.warning(
            "the model in memory holds its weights in %s, and small effects drown in its rounding; next: model.float()",
            loaded.spec.dtype,
        )
    written = str(model.config.name_or_path)
    hub = written.count("/") == 1 and not exists(Path(written))
    loaded.spec = replace(loaded.spec, named=written if hub else "")
    return loaded


def digest(model: Any) -> str:
    """sha256 over the names and values of a model's parameters."""
    found = hashlib.sha256()
    for name, value in sorted(model.named_parameters(), key=lambda item: item[0]):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _name(given: object) -> str:
    return f"{type(given).__module__.partition('.')[0]}.{type(given).__name__}".removeprefix("builtins.")


def _check(model: Any) -> None:
    if any(parameter.is_meta for parameter in model.parameters()):
        raise MismatchError(
            f"the weights of this {type(model).__name__} are not in memory (they are on the meta device)",
            hint="load them: in nnsight LanguageModel(NAME, dispatch=True)",
        )
    if model.get_output_embeddings() is None:
        raise MismatchError(
            f"a {type(model).__name__} predicts no tokens; expected a causal language model",
            hint="load it with AutoModelForCausalLM.from_pretrained(NAME)",
        )


def _adapter(given: Any) -> Found:
    raise MismatchError(
        f"a {_name(given)} is a model with an adapter beside its weights; expected one set of weights",
        hint="model.merge_and_unload()",
    )


def _nnsight(given: Any) -> Found:
    # `_module` since 0.5; the names of what is wrapped answer to no `vars` of their own
    name = "_module" if "_module" in vars(given) else "_model"
    return vars(given)[name], given.tokenizer


def _bridge(given: Any) -> Found:
    if given._weights_processed:
        raise MismatchError(
            "the weights of this TransformerBridge were processed (enable_compatibility_mode folds norms and centres): "
            "its residual stream is another than the model's",
            hint=_RAW,
        )
    return given.original_model, given.tokenizer


def _hooked(given: Any) -> Found:
    cfg, weights = given.cfg, given.state_dict()
    done = _processing(cfg, weights)
    if done:
        raise MismatchError(
            f"the weights of this HookedTransformer were processed ({', '.join(done)}): its residual stream is another than "
            "the model's, and SAEs and directions of the one do not fit the other",
            hint=_RAW,
        )
    architecture = str(cfg.original_architecture)
    if architecture not in _LAYOUTS:
        raise UnknownReferenceError(
            f"a HookedTransformer of {architecture} is not read here; expected one of {', '.join(_LAYOUTS)}",
            hint="give the transformers model that it was made from, with tokenizer=..., or a TransformerBridge",
        )
    model = _LAYOUTS[architecture](cfg, weights)
    model.config.name_or_path = str(cfg.model_name)
    _agree(given, model)
    return model, given.tokenizer


def _processing(cfg: Any, weights: Mapping[str, Tensor]) -> list[str]:
    """Names of what was done to the weights, as TransformerLens calls it. Centring an unembedding moves all logits of a
    position alike, and folding value biases moves them into another bias: both leave every distribution and the residual
    stream as they are, and are let pass."""
    done = ["fold_ln"] if str(cfg.normalization_type).endswith("Pre") else []
    rows = weights["embed.W_E"].double()
    scale = rows.pow(2).mean(dim=1).sqrt().clamp(min=1e-30)
    if float((rows.mean(dim=1).abs() / scale).max()) < CENTRED:
        done.append("center_writing_weights")
    return done


def _agree(given: Any, model: Any) -> None:
    """Raise MismatchError if the two do not predict the same."""
    rows = torch.randint(0, given.cfg.d_vocab, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen, own = (
            call(rows.to(next(part.parameters()).device)).float().cpu().log_softmax(-1)
            for part, call in ((given, given), (model, lambda tokens: model(input_ids=tokens).logits))
        )
    apart = float((seen - own).abs().max())
    if not apart <= LOGITS * (1 if model.dtype == torch.float32 else 100):
        raise MismatchError(
            f"this HookedTransformer and its weights in transformers differ by {apart:.2g} nats; expected at most {LOGITS}: "
            "it was configured or changed in a way that transformers has not",
            hint="give the transformers model that it was made from, with tokenizer=...",
        )


Get = Callable[[str], Tensor]


def _heads(block: Get, name: str, *, groups: bool = False) -> Tensor:
    """[d_head n_heads, d_model] of a TransformerLens W_Q, W_K or W_V [n_heads, d_model, d_head]."""
    return block(f"attn.{'_' if groups else ''}W_{name}").permute(0, 2, 1).flatten(0, 1)


def _gpt2(cfg: Any, weights: Mapping[str, Tensor]) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=cfg.d_vocab, n_positions=cfg.n_ctx, n_embd=cfg.d_model, n_layer=cfg.n_layers, n_head=cfg.n_heads,
        n_inner=cfg.d_mlp, activation_function=cfg.act_fn, layer_norm_epsilon=cfg.eps, tie_word_embeddings=False,
    )  # fmt: skip

    def block(get: Get) -> dict[str, Tensor]:
        qkv = torch.cat([_heads(get, name) for name in "QKV"])
        return {
            "attn.c_attn.weight": qkv.T,
            "attn.c_attn.bias": torch.cat([get(f"attn.b_{name}").flatten() for name in "QKV"]),
            "attn.c_proj.weight": get("attn.W_O").flatten(0, 1),
            "attn.c_proj.bias": get("attn.b_O"),
            "mlp.c_fc.weight": get("mlp.W_in"),
            "mlp.c_fc.bias": get("mlp.b_in"),
            "mlp.c_proj.weight": get("mlp.W_out"),
            "mlp.c_proj.bias": get("mlp.b_out"),
            **{f"ln_{k}.{part}": get(f"ln{k}.{short}") for k in (1, 2) for part, short in _NORM},
        }

    ends = {
        "transformer.wte.weight": weights["embed.W_E"],
        "transformer.wpe.weight": weights["pos_embed.W_pos"],
        **{f"transformer.ln_f.{part}": weights[f"ln_final.{short}"] for part, short in _NORM},
    }
    return _filled(GPT2LMHeadModel, config, cfg, weights, ends, "transformer.h", block)


def _neox(cfg: Any, weights: Mapping[str, Tensor]) -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    # transformers 5 keeps these under one name, and takes them under their own, too
    rotary: dict[str, Any] = {"rotary_pct": cfg.rotary_dim / cfg.d_head, "rotary_emb_base": cfg.rotary_base}
    config = GPTNeoXConfig(
        vocab_size=cfg.d_vocab, max_position_embeddings=cfg.n_ctx, hidden_size=cfg.d_model,
        num_hidden_layers=cfg.n_layers, num_attention_heads=cfg.n_heads, intermediate_size=cfg.d_mlp,
        hidden_act=cfg.act_fn, layer_norm_eps=cfg.eps, use_parallel_residual=cfg.parallel_attn_mlp,
        tie_word_embeddings=False, **rotary,
    )  # fmt: skip

    def block(get: Get) -> dict[str, Tensor]:
        # each head's query, key and value lie together
        qkv = torch.stack([get(f"attn.W_{name}").permute(0, 2, 1) for name in "QKV"], dim=1)
        return {
            "attention.query_key_value.weight": qkv.flatten(0, 2),
            "attention.query_key_value.bias": torch.stack(
                [get(f"attn.b_{n}") for n in "QKV"], dim=1
            ).flatten(),
            "attention.dense.weight": get("attn.W_O").flatten(0, 1).T,
            "attention.dense.bias": get("attn.b_O"),
            "mlp.dense_h_to_4h.weight": get("mlp.W_in").T,
            "mlp.dense_h_to_4h.bias": get("mlp.b_in"),
            "mlp.dense_4h_to_h.weight": get("mlp.W_out").T,
            "mlp.dense_4h_to_h.bias": get("mlp.b_out"),
            **{f"input_layernorm.{part}": get(f"ln1.{short}") for part, short in _NORM},
            **{f"post_attention_layernorm.{part}": get(f"ln2.{short}") for part, short in _NORM},
        }

    ends = {
        "gpt_neox.embed_in.weight": weights["embed.W_E"],
        **{f"gpt_neox.final_layer_norm.{part}": weights[f"ln_final.{short}"] for part, short in _NORM},
    }
    return _filled(GPTNeoXForCausalLM, config, cfg, weights, ends, "gpt_neox.layers", block)


def _llama(cfg: Any, weights: Mapping[str, Tensor]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    rotary: dict[str, Any] = {"rope_theta": float(cfg.rotary_base)}
    config = LlamaConfig(
        vocab_size=cfg.d_vocab, max_position_embeddings=cfg.n_ctx, hidden_size=cfg.d_model,
        num_hidden_layers=cfg.n_layers, num_attention_heads=cfg.n_heads, intermediate_size=cfg.d_mlp,
        num_key_value_heads=cfg.n_key_value_heads or cfg.n_heads, head_dim=cfg.d_head, hidden_act=cfg.act_fn,
        rms_norm_eps=cfg.eps, tie_word_embeddings=False, **rotary,
    )  # fmt: skip
    grouped = cfg.n_key_value_heads is not None

    def block(get: Get) -> dict[str, Tensor]:
        return {
            "self_attn.q_proj.weight": _heads(get, "Q"),
            "self_attn.k_proj.weight": _heads(get, "K", groups=grouped),
            "self_attn.v_proj.weight": _heads(get, "V", groups=grouped),
            "self_attn.o_proj.weight": get("attn.W_O").flatten(0, 1).T,
            "mlp.up_proj.weight": get("mlp.W_in").T,
            "mlp.gate_proj.weight": get("mlp.W_gate").T,
            "mlp.down_proj.weight": get("mlp.W_out").T,
            "input_layernorm.weight": get("ln1.w"),
            "post_attention_layernorm.weight": get("ln2.w"),
        }

    ends = {
        "model.embed_tokens.weight": weights["embed.W_E"],
        "model.norm.weight": weights["ln_final.w"],
    }
    return _filled(LlamaForCausalLM, config, cfg, weights, ends, "model.layers", block)


def _filled(
    kind: Any,
    config: Any,
    cfg: Any,
    weights: Mapping[str, Tensor],
    ends: Mapping[str, Tensor],
    blocks: str,
    block: Callable[[Get], Mapping[str, Tensor]],
) -> Any:
    """A model of transformers with these weights, which `_agree` then compares."""
    named = dict(ends)
    for layer in range(cfg.n_layers):
        at = f"blocks.{layer}."
        own = block(lambda name, at=at: weights[at + name])
        named |= {f"{blocks}.{layer}.{name}": value for name, value in own.items()}
    with quiet_transformers():
        model = kind(config).to(weights["embed.W_E"]).eval()
    with torch.no_grad():
        for name, value in named.items():
            model.get_parameter(name).copy_(value)
        model.get_output_embeddings().weight.copy_(weights["unembed.W_U"].T)
    return model


_NORM = (("weight", "w"), ("bias", "b"))
_LAYOUTS: dict[str, Callable[[Any, Mapping[str, Tensor]], Any]] = {
    "GPT2LMHeadModel": _gpt2,
    "GPTNeoXForCausalLM": _neox,
    "LlamaForCausalLM": _llama,
}
_KINDS: dict[tuple[str, str], Callable[[Any], Found]] = {
    ("peft", "PeftModel"): _adapter,
    ("transformer_lens", "TransformerBridge"): _bridge,
    ("transformer_lens", "HookedTransformer"): _hooked,
    ("nnsight", "HuggingFaceModel"): _nnsight,
    ("nnsight", "LanguageModel"): _nnsight,
    ("transformers", "PreTrainedModel"): lambda given: (given, None),
}
"""(package, class) -> what takes the model out of the object; the first that fits"""
