"""The rest of the model after a clean beginning, run through its own modules: exact for every family.

Each block from the first edited one on is called with the arguments it was really called with on the clean
prompt, its rows being the rows of the batch; masks and position tables have a batch of one and broadcast.
The last block mixes positions for keys and values only, so behind its attention everything but the last
position is dropped; final norm and unembedding see that position alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.edits import Edit
from polysem.errors import PolysemError
from polysem.models.anatomy import Tap, logit_cap
from polysem.models.clean import CleanRun, block_path, first_block
from polysem.models.hf import HFModel
from polysem.models.hooks import Action, hooked, working_dtype
from polysem.profiling import add_product


class Unsupported(PolysemError):
    """A shorter way does not apply here; the plain forward pass does. Never leaves `models`."""


def replay_logits(
    model: HFModel, clean: CleanRun, tokens: Int[Tensor, "batch pos"], edits: Sequence[Edit]
) -> Float[Tensor, "batch d_vocab"]:
    """Last-position logits of rows that share one prompt, with the edits applied, from the first edited block on.

    Raises:
        Unsupported: if an edit is at the embedding, which is before the first block.
    """
    if not edits:
        raise Unsupported("nothing is edited")
    actions = model.edit_actions(tokens, edits)
    if any(edit.site.layer is None for edit in edits):
        raise Unsupported("the embedding is edited")
    start = min(first_block(edit.site) for edit in edits)
    # What is edited at the exit of block start - 1 is edited at the door of block start.
    door = [
        action
        for edit in edits
        if edit.site.layer == start - 1
        for action in actions.pop(model.tap(edit.site), ())
    ]
    h = clean.pre[start].expand(len(tokens), -1, -1)
    with torch.no_grad():
        for action in door:
            h = action(h)
        return last_logits(model, run_blocks(model, clean, h, start=start, actions=actions))


def run_blocks(
    model: HFModel,
    clean: CleanRun,
    h: Float[Tensor, "batch pos d_model"],
    *,
    start: int,
    actions: Mapping[Tap, Sequence[Action]],
) -> Float[Tensor, "batch d_model"]:
    """The stream after the last block at the last position, from the stream at the door of block `start`."""
    last = model.spec.n_layers - 1
    with hooked(model.model, _with_cut(model, actions, last)):
        for layer in range(start, last + 1):
            h = _called(model, clean, layer, h)
    return h[:, -1]


def last_logits(model: HFModel, h: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_vocab"]:
    """Logits from the stream after the last block."""
    head: Any = model.model.get_output_embeddings()
    add_product(h.numel() // h.shape[-1], model.spec.d_model, model.spec.d_vocab)
    logits = head(model.model.get_submodule(model.anatomy.final_norm)(h))
    cap = logit_cap(model.model.config)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits.to(working_dtype(logits.dtype))


def _called(model: HFModel, clean: CleanRun, layer: int, h: Tensor) -> Tensor:
    call = clean.calls[layer]
    output = model.model.get_submodule(block_path(model, layer))(h, *call.args, **call.kwargs)
    return output[0] if isinstance(output, tuple) else output


def _with_cut(
    model: HFModel, actions: Mapping[Tap, Sequence[Action]], last: int
) -> Mapping[Tap, Sequence[Action]]:
    """The actions, and the cut to the last position in the last block unless it is itself edited."""
    prefix = block_path(model, last)
    if any(tap.path == prefix or tap.path.startswith(f"{prefix}.") for tap in actions):
        return actions
    # The residual keeps all positions and what is added to it has one, which broadcasts: the last is right.
    cuts = [model.anatomy.points["attn.hook_z"].at(last), _second_norm(model, last)]
    return {**actions, **{tap: [_last_position] for tap in cuts}}


def _second_norm(model: HFModel, layer: int) -> Tap:
    return Tap(model.anatomy.points["mlp.hook_in"].at(layer).path, "in")


def _last_position(h: Tensor) -> Tensor:
    return h[:, -1:]
