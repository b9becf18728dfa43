"""The rest of the model after an edit, written out: the fast way for GPT-2, GPT-NeoX and the Llama kind.

An edit that can be written as stream[row, pos] += coefficient[row, pos] * vector[row] enters here as that
product (an added vector, a scaled neuron, a clamped direction). Then, all exact:

- positions before the first edited one are those of the clean run, whatever the row: only their keys and
  values are needed;
- a norm of x0 + c v is (direction(x0) + c direction(v)) * scale(x), so the first linear maps behind the edit
  are applied to the positions and to the rows, not to every position of every row;
- in the last block only keys and values are needed of positions but the last.

Cost for n rows of p positions behind the edit, per later block: 12 d^2 n p multiplications (8 of them for a
Llama's), n d d_vocab for the logits. Float32 in, float32 sums.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from polysem.models.blocks import GELUS, BlockModules, Norm, activate, blocks_of
from polysem.models.clean import CleanRun
from polysem.models.hf import HFModel
from polysem.onednn import Linear, packs

Rotary = tuple[Float[Tensor, "n_pos d_rot"], Float[Tensor, "n_pos d_rot"]]


@dataclass(frozen=True)
class StreamEdit:
    """Where rows leave the clean run: stream[row, pos] += coefficient[row, pos] * vector[row]."""

    layer: int
    """the block at whose door (or between whose attention and MLP) the stream is changed; n_layers is after
    the last"""
    mid: bool
    coefficient: Float[Tensor, "rows pos"]
    vector: Float[Tensor, "rows d_model"]


class Fused:
    """A model's blocks in the form of `blocks.BlockModules`."""

    def __init__(self, model: HFModel, blocks: list[BlockModules]):
        self.model = model
        self.blocks = blocks
        head: Any = model.model.get_output_embeddings()
        weight = model.W_U
        pack = packs(weight.numel() * weight.element_size()) and model.spec.device == "cpu"
        self.head = Linear(weight, head.bias, pack=pack)
        self.final_norm = model.model.get_submodule(model.anatomy.final_norm)

    @classmethod
    def of(cls, model: HFModel) -> "Fused | None":
        """The model in this form; None where it cannot be put so."""
        blocks = blocks_of(model)
        return None if blocks is None else cls(model, blocks)

    def can_run(self, clean: CleanRun) -> bool:
        """Whether the prompt was attended to plainly: no padding, no sliding window."""
        return clean.is_plainly_causal

    @torch.no_grad()
    def logits(self, clean: CleanRun, entry: StreamEdit) -> Float[Tensor, "rows d_vocab"]:
        """Last-position logits of every row."""
        edited = entry.coefficient.ne(0).any(0)
        pos = clean.pre[0].shape[1]
        # The last position is always run: it is the one that is read.
        lead = min(int(edited.to(torch.int8).argmax()) if bool(edited.any()) else pos - 1, pos - 1)
        coefficient = entry.coefficient[:, lead:]
        source = clean.mid if entry.mid else clean.pre
        x0 = source[entry.layer][0, lead:]
        if entry.layer == len(self.blocks):
            x0, coefficient = x0[-1:], coefficient[:, -1:]
        fresh = _Fresh(x0, coefficient, entry.vector)
        x = fresh.stream
        for layer in range(entry.layer, len(self.blocks)):
            mid = entry.mid and layer == entry.layer
            x = self._block(layer, clean, x, fresh if layer == entry.layer else None, lead=lead, mid=mid)
        return self.head(self.final_norm(x[:, -1]))

    def _block(
        self, layer: int, clean: CleanRun, x: Tensor, fresh: "_Fresh | None", *, lead: int, mid: bool
    ) -> Float[Tensor, "rows pos d_model"]:
        block, last = self.blocks[layer], layer == len(self.blocks) - 1
        if mid:
            x, fresh = (x[:, -1:], fresh and fresh.at_last()) if last else (x, fresh)
            return x + self._mlp(block, x, fresh)
        attention = self._attention(block, layer, clean, x, fresh, lead=lead, last=last)
        if last:
            x, fresh = x[:, -1:], fresh and fresh.at_last()
        if block.parallel:
            return x + attention + self._mlp(block, x, fresh)
        x = x + attention
        return x + self._mlp(block, x, None)

    def _mlp(
        self, block: BlockModules, x: Tensor, fresh: "_Fresh | None"
    ) -> Float[Tensor, "rows pos d_model"]:
        if fresh is not None and fresh.pays:
            first = block.up if block.gate is None else block.gate
            hidden = activate(block.activation, fresh.read(block.norm2, first))
            if block.gate is not None:
                hidden = hidden * fresh.read(block.norm2, block.up)
            return block.down(hidden)
        y = block.norm2(x)
        if block.gate is not None:
            return block.down(activate(block.activation, block.gate(y)) * block.up(y))
        if GELUS.get(block.activation) == "tanh":  # torch's own tanh form costs more than the product
            return block.down(block.up(y, gelu="tanh"))
        return block.down(activate(block.activation, block.up(y)))

    def _attention(
        self,
        block: BlockModules,
        layer: int,
        clean: CleanRun,
        x: Tensor,
        fresh: "_Fresh | None",
        *,
        lead: int,
        last: bool,
    ) -> Float[Tensor, "rows pos d_model"]:
        rotary = _rotary(clean, layer) if block.rotary else None
        if fresh is not None and fresh.pays:
            kv = fresh.read(block.norm1, block.keyvalue)
            q = (fresh.at_last() if last else fresh).read(block.norm1, block.query)
        else:
            y = block.norm1(x)
            kv = block.keyvalue(y)
            q = block.query(y[:, -1:] if last else y)
        k, v = _keys_values(block, kv, rotary, at=lead)
        q = _query(block, q, rotary, at=clean.pre[0].shape[1] - q.shape[1])
        if lead:
            before = block.keyvalue(block.norm1(clean.pre[layer][:, :lead]))
            k0, v0 = _keys_values(block, before, rotary, at=0)
            k = torch.cat([k0.expand(len(k), -1, -1, -1), k], 2)
            v = torch.cat([v0.expand(len(v), -1, -1, -1), v], 2)
        return block.out(_attend(q, k, v, block))


@dataclass(frozen=True)
class _Fresh:
    """A stream just behind its edit, still as the product it came from."""

    x0: Float[Tensor, "pos d_model"]
    coefficient: Float[Tensor, "rows pos"]
    vector: Float[Tensor, "rows d_model"]

    @cached_property
    def stream(self) -> Float[Tensor, "rows pos d_model"]:
        return torch.addcmul(self.x0[None], self.coefficient[:, :, None], self.vector[:, None, :])

    @property
    def pays(self) -> bool:
        """Whether reading positions and rows apart is less work than reading every position of every row."""
        rows, pos = self.coefficient.shape
        return rows * pos > 2 * (rows + pos)

    @cached_property
    def _scales(self) -> dict[tuple[bool, float], Tensor]:
        return {}

    def scale(self, norm: Norm) -> Float[Tensor, "rows pos 1"]:
        """The scale of a norm of the stream; parallel blocks take it twice."""
        key = (norm.centred, norm.eps)
        if key not in self._scales:
            self._scales[key] = norm.scale(self.stream)
        return self._scales[key]

    def at_last(self) -> "_Fresh":
        return _Fresh(self.x0[-1:], self.coefficient[:, -1:], self.vector)

    def read(self, norm: Norm, linear: Linear) -> Float[Tensor, "rows pos n_out"]:
        """linear(norm(stream))."""
        scale = self.scale(norm)
        of_positions = linear(norm.direction(self.x0), bias=False)
        of_rows = linear(norm.direction(self.vector), bias=False)
        y = torch.addcmul(norm.constant(linear), of_positions[None], scale)
        return y.addcmul_(of_rows[:, None], scale * self.coefficient[:, :, None])


def _rotary(clean: CleanRun, layer: int) -> Rotary:
    cos, sin = clean.calls[layer].kwargs["position_embeddings"]
    return cos[0], sin[0]


def _query(
    block: BlockModules, q: Tensor, rotary: Rotary | None, *, at: int
) -> Float[Tensor, "rows head pos d"]:
    q = q.unflatten(-1, (block.heads[0], -1))
    if block.head_norms is not None:
        q = block.head_norms[0](q)
    return _rotated(q.transpose(1, 2), rotary, at)


def _keys_values(
    block: BlockModules, kv: Tensor, rotary: Rotary | None, *, at: int
) -> tuple[Float[Tensor, "rows head pos d"], Float[Tensor, "rows head pos d"]]:
    k, v = kv.unflatten(-1, (2, block.heads[1], -1)).unbind(2)
    if block.head_norms is not None:
        k = block.head_norms[1](k)
    return _rotated(k.transpose(1, 2), rotary, at), v.transpose(1, 2)


def _rotated(x: Float[Tensor, "rows head pos d"], rotary: Rotary | None, at: int) -> Tensor:
    """Rotary positions on the first coordinates of each head, from position `at` on: in place, as what is given was made
    for this and the rest of each head stays as it is."""
    if rotary is None:
        return x
    cos, sin = (table[at : at + x.shape[2]] for table in rotary)
    n = cos.shape[-1]
    part = x[..., :n]
    turned = torch.cat((-part[..., n // 2 :], part[..., : n // 2]), -1).mul_(sin)
    part.mul_(cos).add_(turned)
    return x


def _attend(q: Tensor, k: Tensor, v: Tensor, block: BlockModules) -> Float[Tensor, "rows n_q d_heads"]:
    """Causal attention of the last q.shape[2] positions to all of k's."""
    n_q, n_k = q.shape[2], k.shape[2]
    mask = None
    if 1 < n_q < n_k:
        mask = torch.ones(n_q, n_k, dtype=torch.bool, device=q.device).tril(n_k - n_q)
    seen = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=n_q > 1 and n_q == n_k,
        scale=block.scale,
        enable_gqa=block.heads[0] != block.heads[1],
    )
    return seen.transpose(1, 2).flatten(2)
