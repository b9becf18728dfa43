"""One unedited prompt, seen once: the residual stream at the door of every block, and how each block was called.

Everything before the first edit is the same for every dose, direction and control, so it is computed once
per prompt, by the model itself. A clean run holds n_layers x pos x d_model floats (twice that where there is
a stream between attention and MLP), and is a function of the prompt alone: it is made with a batch of one,
so nothing that shares a batch with it can change a bit of it.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polysem.models.anatomy import Tap
from polysem.models.hf import HFModel
from polysem.models.hooks import Action, Stop, hooked
from polysem.profiling import counts_as
from polysem.types import Site


@dataclass(frozen=True)
class Call:
    """How a block was really called, apart from its first argument."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class CleanRun:
    """What one prompt does without any edit; in the model's dtype, on its device."""

    pre: tuple[Float[Tensor, "1 pos d_model"], ...]
    """the stream before each block, then the stream after the last"""
    mid: tuple[Float[Tensor, "1 pos d_model"], ...]
    """the stream between attention and MLP of each block; empty where the family has none"""
    calls: tuple[Call, ...]

    @property
    def n_bytes(self) -> int:
        return sum(h.numel() * h.element_size() for h in (*self.pre, *self.mid))

    @cached_property
    def is_plainly_causal(self) -> bool:
        """Whether every block let each position see all positions up to itself, and no others: no padding, no
        window."""
        masks = {id(v): v for call in self.calls for v in (*call.args, *call.kwargs.values()) if _is_mask(v)}
        return all(_is_triangle(mask) for mask in masks.values())


def block_path(model: HFModel, layer: int) -> str:
    """The module path of a block."""
    return model.anatomy.points["hook_resid_pre"].at(layer).path


@counts_as("model")
def clean_run(model: HFModel, tokens: Int[Tensor, "1 pos"]) -> CleanRun:
    """Run one prompt once and keep what sweeps start from."""
    layers = range(model.spec.n_layers)
    pre: dict[int, Tensor] = {}
    mid: dict[int, Tensor] = {}
    calls: dict[int, Call] = {}

    def note(layer: int) -> Any:
        def hook(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if args:
                pre[layer], calls[layer] = args[0], Call(tuple(args[1:]), dict(kwargs))
            else:
                rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
                pre[layer], calls[layer] = kwargs["hidden_states"], Call((), rest)

        return hook

    def keep(layer: int) -> Action:
        def action(h: Tensor) -> Tensor:
            mid[layer] = h
            return h

        return action

    def end(h: Tensor) -> Tensor:
        pre[last + 1] = h
        raise Stop  # nobody asks for the clean logits

    last = model.spec.n_layers - 1
    looks: dict[Tap, list[Action]] = {}
    if "hook_resid_mid" in model.anatomy.points:
        looks = {model.anatomy.points["hook_resid_mid"].at(k): [keep(k)] for k in layers}
    looks[model.anatomy.points["hook_resid_post"].at(last)] = [end]
    handles = [
        model.model.get_submodule(block_path(model, k)).register_forward_pre_hook(note(k), with_kwargs=True)
        for k in layers
    ]
    try:
        with suppress(Stop), torch.no_grad(), hooked(model.model, looks):
            model.model(input_ids=tokens.to(model.model.device), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return CleanRun(
        pre=tuple(pre[k].detach() for k in range(last + 2)),
        mid=tuple(mid[k].detach() for k in sorted(mid)),
        calls=tuple(calls[k] for k in layers),
    )


def _is_mask(value: Any) -> bool:
    """Masks are [batch head pos pos] in `transformers`; no other argument of a block has four axes."""
    return isinstance(value, Tensor) and value.ndim == 4


def _is_triangle(mask: Tensor) -> bool:
    seen = mask if mask.dtype == torch.bool else mask == 0
    n_q, n_k = mask.shape[-2:]
    triangle = torch.ones(n_q, n_k, dtype=torch.bool, device=mask.device).tril()
    return n_q == n_k and bool((seen == triangle).all())


def first_block(site: Site) -> int:
    """The first block that an edit at `site` can change: everything before it stays clean."""
    if site.layer is None:
        return 0
    return site.layer + 1 if site.point == "hook_resid_post" else site.layer
