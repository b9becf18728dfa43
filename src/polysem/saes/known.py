"""What is known of published models by their names, so that an SAE of one is not taken for one of a local folder that
holds another: family, layers, width, and of some the tokens.

Source: the `config.json` of each repository on the Hub (model_type, number of layers, width of the stream); the tokenizers
that OpenAI and EleutherAI published with GPT-2 and Pythia.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from polysem.saes.names import hub_id


class TokenVocabulary(NamedTuple):
    """Tokens of a tokenizer: those that it began with, not what a fine-tuned model adds behind them."""

    n: int
    sha256: str
    """of the first `n` tokens in the order of their ids, a line each"""

    def fits(self, ids: Mapping[str, int]) -> bool:
        """Whether a tokenizer (token -> id) begins with these."""
        return vocabulary_of(ids, n=self.n) == self


def vocabulary_of(ids: Mapping[str, int], *, n: int | None = None) -> TokenVocabulary:
    """The first `n` tokens of a tokenizer (token -> id); None: all."""
    first = sorted(ids, key=lambda token: ids[token])[:n]
    return TokenVocabulary(len(first), hashlib.sha256("\n".join(first).encode(errors="replace")).hexdigest())


VOCABULARIES = {
    "gpt2": TokenVocabulary(50257, "e35a33a0b2250c932ffdafc4c3a3552aef0cc7af7a11e9ebfddf1d2a6517371f"),
    "gpt_neox": TokenVocabulary(50254, "243911422e5b689f04800d01121da2e14882d12b7565bb1b7396128714cbc4c2"),
}
"""family -> tokens that all its models in `_SERIES` share; of the others no file is at hand to say"""


class Shape(NamedTuple):
    """What a model's configuration says of its size."""

    family: str
    n_layers: int
    d_model: int


_GPT2 = {"gpt2": (12, 768), "gpt2-medium": (24, 1024), "gpt2-large": (36, 1280), "gpt2-xl": (48, 1600)}
_PYTHIA = {
    "14m": (6, 128), "31m": (6, 256), "70m": (6, 512), "160m": (12, 768), "410m": (24, 1024), "1b": (16, 2048),
    "1.4b": (24, 2048), "2.8b": (32, 2560), "6.9b": (32, 4096), "12b": (36, 5120),
}  # fmt: skip
_GEMMA_2 = {"2b": (26, 2304), "9b": (42, 3584), "27b": (46, 4608)}
_GEMMA_3 = {"270m": (18, 640), "1b": (26, 1152), "4b": (34, 2560), "12b": (48, 3840), "27b": (62, 5376)}
_LLAMA = {
    "3-8b": (32, 4096), "3-70b": (80, 8192), "3.1-8b": (32, 4096), "3.1-70b": (80, 8192), "3.2-1b": (16, 2048),
    "3.2-3b": (28, 3072), "3.3-70b": (80, 8192),
}  # fmt: skip
_QWEN_2 = {
    "0.5b": (24, 896), "1.5b": (28, 1536), "3b": (36, 2048), "7b": (28, 3584), "14b": (48, 5120), "32b": (64, 5120),
    "72b": (80, 8192),
}  # fmt: skip
_QWEN_3 = {
    "0.6b": (28, 1024), "1.7b": (28, 2048), "4b": (36, 2560), "8b": (36, 4096), "14b": (40, 5120), "32b": (64, 5120),
}  # fmt: skip
_SERIES = (
    (r"(gpt2(?:-medium|-large|-xl)?)", "gpt2", _GPT2),
    (r"pythia-([\d.]+[mb])(?:-deduped)?(?:-v0|-seed\d+)?", "gpt_neox", _PYTHIA),
    (r"gemma-2-(\d+b)(?:-it)?", "gemma2", _GEMMA_2),
    (r"gemma-3-(\d+[mb])(?:-it|-pt)?", "gemma3_text", _GEMMA_3),
    (r"(?:meta-)?llama-(3(?:\.\d)?-\d+b)(?:-instruct)?", "llama", _LLAMA),
    (r"qwen2(?:\.5)?-([\d.]+b)(?:-instruct)?", "qwen2", _QWEN_2),
    (r"qwen3-([\d.]+b)(?:-base)?", "qwen3", _QWEN_3),
)


def shape_of(name: str) -> Shape | None:
    """The shape of a published model under a Hub, TransformerLens or Neuronpedia name; None if it is not known."""
    bare = hub_id(name).rsplit("/", 1)[-1].lower()
    for pattern, family, sizes in _SERIES:
        match = re.fullmatch(pattern, bare)
        if match and match[1] in sizes:
            return Shape(family, *sizes[match[1]])
    return None
