"""A BERT encoder over many short texts, without padding.

Texts stand in panels of a fixed number of tokens, one after the other, shortest first: the linear maps, nearly all of the
arithmetic, take a whole panel, attention the texts of one length at once. All is float32, through the faster of torch's two
libraries (`polysem.onednn`). A product of fixed shape sums each of its rows in one order, so that a text's vector depends on
the text alone, to the last bit, not on what it was embedded with.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from polysem.onednn import Linear

PANEL = 768
"""tokens of a panel: products of this height run at the full rate, and few texts still cost little"""


class BertShape(NamedTuple):
    """What the weights alone do not say, from config.json."""

    n_layers: int
    n_heads: int
    eps: float


class PackedBert:
    """The encoder, without its pooler: texts to the mean of their last hidden states."""

    def __init__(self, weights: Mapping[str, Tensor], shape: BertShape):
        """Take the weights of a `BertModel`.

        Raises:
            KeyError: a weight is missing.
        """
        self._heads, self._eps = shape.n_heads, shape.eps
        self._words = weights["embeddings.word_embeddings.weight"]
        self._places = (
            weights["embeddings.position_embeddings.weight"]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self._norm = _norm(weights, "embeddings.LayerNorm")
        self._layers = [_EncoderLayer.read(weights, f"encoder.layer.{n}") for n in range(shape.n_layers)]

    @torch.inference_mode()
    def means(self, texts: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Float[np.ndarray, "n d"]]]:
        """Mean of the last hidden states of every text, panel by panel.

        Args:
            texts: token ids of each, special tokens included; none longer than a panel.

        Yields:
            the positions of some texts, and their means.
        """
        for chosen in _panels([len(text) for text in texts]):
            yield chosen, self._panel([texts[n] for n in chosen]).numpy()

    def _panel(self, texts: list[Sequence[int]]) -> Tensor:
        tokens = torch.zeros(PANEL, dtype=torch.long)
        places = torch.zeros(PANEL, dtype=torch.long)
        # where the texts of one length begin, how many they are, and their length
        runs: list[tuple[int, int, int]] = []
        at = 0
        for length, same in groupby(texts, len):
            ids = torch.tensor(list(same))
            runs.append((at, len(ids), length))
            tokens[at : at + ids.numel()] = ids.flatten()
            places[at : at + ids.numel()] = torch.arange(length).repeat(len(ids))
            at += ids.numel()
        x = self._normed(self._words[tokens] + self._places[places], self._norm)
        for layer in self._layers:
            x = self._normed(x.add_(layer.out(self._attended(layer.qkv(x), runs))), layer.attention_norm)
            x = self._normed(x.add_(layer.down(layer.up(x, gelu="none"))), layer.norm)
        return torch.cat([x[b : b + n * length].view(n, length, -1).mean(1) for b, n, length in runs])

    def _attended(self, qkv: Tensor, runs: list[tuple[int, int, int]]) -> Tensor:
        mixed = torch.zeros(PANEL, qkv.shape[1] // 3)
        for b, n, length in runs:
            rows = slice(b, b + n * length)
            q, k, v = qkv[rows].view(n, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            seen = F.scaled_dot_product_attention(q, k, v)
            mixed[rows] = seen.transpose(1, 2).reshape(n * length, -1)
        return mixed

    def _normed(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *norm, self._eps)


class _EncoderLayer(NamedTuple):
    """The maps of one layer."""

    qkv: Linear
    out: Linear
    attention_norm: tuple[Tensor, Tensor]
    up: Linear
    down: Linear
    norm: tuple[Tensor, Tensor]

    @classmethod
    def read(cls, weights: Mapping[str, Tensor], at: str) -> "_EncoderLayer":
        def linear(*names: str) -> Linear:
            weight, bias = (
                torch.cat([weights[f"{at}.{name}.{part}"] for name in names]) for part in ("weight", "bias")
            )
            return Linear(weight, bias, pack=True)

        own = "attention.self"
        return cls(
            linear(f"{own}.query", f"{own}.key", f"{own}.value"),
            linear("attention.output.dense"),
            _norm(weights, f"{at}.attention.output.LayerNorm"),
            linear("intermediate.dense"),
            linear("output.dense"),
            _norm(weights, f"{at}.output.LayerNorm"),
        )


def _norm(weights: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _panels(lengths: list[int]) -> Iterator[list[int]]:
    """Positions of texts that fill a panel each, shortest first."""
    chosen: list[int] = []
    filled = 0
    for n in sorted(range(len(lengths)), key=lengths.__getitem__):
        if filled + lengths[n] > PANEL:
            yield chosen
            chosen, filled = [], 0
        chosen.append(n)
        filled += lengths[n]
    if chosen:
        yield chosen
