"""Actions on activations inside a running module, and the arithmetic of the three edits.

An action takes the activation at a tap and gives the activation to go on with: the same object if it only
looks. All actions at a tap run in order in one hook, so they compose. Hooks live exactly as long as the
`with` block, also when the forward pass raises. Tuple outputs keep their tail; keyword inputs are found by
name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, assert_never

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from polysem.edits import Add, Clamp, Edit, Scale
from polysem.errors import MismatchError
from polysem.models.anatomy import Tap
from polysem.onednn import CountedLinears
from polysem.profiling import is_profiled

Action = Callable[[Tensor], Tensor]


class Stop(Exception):
    """Raised by an action to end a forward pass that has shown all it was run for."""


@contextmanager
def hooked(model: nn.Module, actions: Mapping[Tap, Sequence[Action]]) -> Iterator[None]:
    """Run `actions` at their taps during the block, and leave nothing behind."""
    handles = []
    try:
        for tap, todo in actions.items():
            module = model.get_submodule(tap.path)
            if tap.side == "in":
                handles.append(module.register_forward_pre_hook(_on_input(todo), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(_on_output(todo)))
        with CountedLinears() if is_profiled() else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _on_input(actions: Sequence[Action]) -> Callable[..., tuple[tuple, dict] | None]:
    def hook(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        before = args[0] if args else kwargs["hidden_states"]
        after = _run(actions, before)
        if after is before:
            return None
        return ((after, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": after})

    return hook


def _on_output(actions: Sequence[Action]) -> Callable[..., Any]:
    def hook(_module: nn.Module, _args: tuple, output: Any) -> Any:
        before = output[0] if isinstance(output, tuple) else output
        after = _run(actions, before)
        if after is before:
            return None
        return (after, *output[1:]) if isinstance(output, tuple) else after

    return hook


def _run(actions: Sequence[Action], h: Tensor) -> Tensor:
    for action in actions:
        h = action(h)
    return h


def cut_into(leaves: list[Tensor]) -> Action:
    """An action that begins a graph of gradients at the activation, which it adds to `leaves`."""

    def action(h: Tensor) -> Tensor:
        leaves.append(h.detach().clone().requires_grad_(True))
        return leaves[-1]

    return action


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision in which edits are computed and results are given: float32, or float64 where the model
    is."""
    return torch.promote_types(dtype, torch.float32)


def apply_edit(h: Float[Tensor, "batch pos d"], edit: Edit) -> Float[Tensor, "batch pos d"]:
    """The activation after one edit, in the dtype of `h`; positions outside the mask are the same bits.

    The arithmetic is in float32 (float64 for a float64 model) and rounded once, so that a bfloat16 model does
    not add rounded vectors to rounded activations. An edit of zero gives back equal bits.
    """
    wide = working_dtype(h.dtype)
    x = h.to(wide)

    def like_x(array: Tensor) -> Tensor:
        return array.to(device=h.device, dtype=wide)

    if isinstance(edit, Add):
        edited = x + like_x(edit.vector)[:, None, :]
    elif isinstance(edit, Scale):
        index = edit.index.to(h.device)[:, None, None].expand(-1, h.shape[1], 1)
        scaled = x.gather(2, index) * like_x(edit.factor)[:, None, None]
        edited = x.scatter(2, index, scaled)
    elif isinstance(edit, Clamp):
        along = einsum(x, like_x(edit.reader), "batch pos d, batch d -> batch pos")
        missing = like_x(edit.value)[:, None] - along - like_x(edit.offset)[:, None]
        edited = x + missing[:, :, None] * like_x(edit.writer)[:, None, :]
    else:
        assert_never(edit)
    return torch.where(edit.mask.to(h.device)[:, :, None], edited.to(h.dtype), h)


def check_edit(edit: Edit, *, batch: int, pos: int, width: int) -> None:
    """Refuse an edit whose arrays do not fit the tokens and the site.

    Raises:
        MismatchError: naming the site, the array, its shape and the shape expected.
    """
    expected: dict[str, tuple[int, ...]] = {"mask": (batch, pos)}
    if isinstance(edit, Add):
        expected |= {"vector": (batch, width)}
    elif isinstance(edit, Scale):
        expected |= {"index": (batch,), "factor": (batch,)}
    else:
        expected |= {
            "reader": (batch, width),
            "writer": (batch, width),
            "value": (batch,),
            "offset": (batch,),
        }
    for name, shape in expected.items():
        seen = tuple(getattr(edit, name).shape)
        if seen != shape:
            raise MismatchError(
                f"{type(edit).__name__} at {edit.site}: {name} has shape {seen}, expected {shape} "
                f"(batch {batch}, {pos} positions, width {width})",
                hint="give every row of the batch its own vector and mask, as wide as the site",
            )
    if isinstance(edit, Scale) and (bad := (edit.index < 0) | (edit.index >= width)).any():
        raise MismatchError(
            f"Scale at {edit.site}: index {int(edit.index[bad][0])} is outside 0 to {width - 1}",
            hint="take neuron indices from the same site of the same model",
        )
