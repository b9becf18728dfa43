"""Tiny random models of every family: real `transformers` architectures, milliseconds to run, logits not
flat.

Weights are drawn by name from the seed, so they do not depend on the version of transformers or on the order
of its modules. The tokenizer is a small byte-pair encoding over lower-case English, trained on the spot; any
text tokenizes (other characters become `<unk>`), and decoding gives the text back.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from polysem.models.hf import HFModel
from polysem.seeds import rng_for

TINY_FAMILIES = ("gpt2", "gpt_neox", "llama", "gemma2", "gemma3_text", "qwen2", "qwen3")

BOS, UNK = "<bos>", "<unk>"
N_CTX = 128
_SAMPLE = """\
the quick brown fox jumps over the lazy dog. "what is that?" said the old man, and he looked at the sea for
a long time; it was the best of times, it was the worst of times, and the children of the king had gone to
the forest with the horse. there is nothing new under the sun: all the rivers run into the sea, yet the sea
is not full. would you not come with me? i have seen that she could not be there when they were in the
house! he had been a good man, but this was more than any of us can say - their mother's name was on the
door, and which of them will take the road to the great city, where the water is so cold?
"""


def tiny_model(
    family: str, *, seed: int = 0, n_layers: int = 2, d_model: int = 16, vocab: int = 64, **config: Any
) -> HFModel:
    """A random model of one family with its own tokenizer, float32 on the CPU.

    Args:
        seed: of the weights; the same seed gives the same weights for ever.
        d_model: width of the residual stream; a multiple of 8 (4 heads).
        vocab: tokens of the model; the tokenizer has at most as many. At least 48.
        **config: further fields of the transformers configuration, e.g. `use_parallel_residual=False`.
    """
    from transformers import AutoModelForCausalLM

    parts = _config(family, n_layers=n_layers, d_model=d_model, vocab=vocab, extra=config)
    attention = "eager" if family == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_config(parts, attn_implementation=attention).to(torch.float32)
    _draw_weights(model, seed=seed, family=family)
    return HFModel.from_parts(model, tiny_tokenizer(vocab), ref=f"tiny:{family}", revision=f"seed{seed}")


def tiny_tokenizer(vocab: int = 64) -> Any:
    """A `PreTrainedTokenizerFast` with at most `vocab` tokens; id 0 is `<bos>` (also the end), id 1
    `<unk>`."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(vocab)), bos_token=BOS, eos_token=BOS, unk_token=UNK
    )


@lru_cache
def _trained(vocab: int) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    # a first word without a space in front stays without: tokens then add up to the text, letter for letter
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=[BOS, UNK], show_progress=False)
    tokenizer.train_from_iterator([_SAMPLE], trainer)
    return tokenizer.to_str()


def _config(family: str, *, n_layers: int, d_model: int, vocab: int, extra: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    # d_head differs from d_model / heads where a family allows it, and MLPs are not four times as wide:
    # equal widths would let a wrong site pass for a right one.
    common: dict[str, Any] = {"vocab_size": vocab, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    modern = common | {
        "hidden_size": d_model,
        "intermediate_size": 3 * d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": N_CTX,
    }
    grouped = modern | {"num_key_value_heads": 2}
    gemma = grouped | {"head_dim": d_model // 2, "query_pre_attn_scalar": d_model // 2, "sliding_window": 16}
    fields: dict[str, dict[str, Any]] = {
        "gpt2": common
        | {"n_embd": d_model, "n_layer": n_layers, "n_head": 4, "n_positions": N_CTX, "n_inner": 3 * d_model},
        "gpt_neox": modern | {"use_parallel_residual": True, "tie_word_embeddings": False},
        "llama": grouped | {"tie_word_embeddings": False},
        "gemma2": gemma | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 30.0},
        "gemma3_text": gemma,
        "qwen2": grouped | {"tie_word_embeddings": True},
        "qwen3": grouped | {"head_dim": d_model // 2, "tie_word_embeddings": False},
    }
    if family not in fields:
        raise ValueError(f"unknown tiny family {family!r}; expected one of {', '.join(TINY_FAMILIES)}")
    return AutoConfig.for_model(family, **(fields[family] | dict(extra)))


def _draw_weights(model: Any, *, seed: int, family: str) -> None:
    """Overwrite every parameter with a draw that depends on its name, shape and the seed only."""
    offset = 0.0 if family.startswith("gemma") else 1.0  # Gemma's norms multiply by 1 + weight
    vocab = model.get_input_embeddings().weight.shape
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            known_as = name.replace("embed_out.", "lm_head.")  # transformers 4 and 5 differ
            draw = rng_for(seed, "tiny", family, known_as).standard_normal(parameter.shape)
            if name.endswith("weight") and ("norm." in name or ".ln_" in name):
                draw = offset + 0.2 * draw
            elif parameter.ndim == 1:
                draw = 0.2 * draw
            elif parameter.shape == vocab:
                draw = 0.5 * draw
            else:
                fan_in = parameter.shape[0] if _is_conv1d(model, name) else parameter.shape[1]
                draw = draw / np.sqrt(fan_in)
            parameter.copy_(torch.from_numpy(draw))


def _is_conv1d(model: Any, name: str) -> bool:
    return type(model.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D"
