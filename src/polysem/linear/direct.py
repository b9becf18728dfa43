"""The direct path: what an edit adds to the stream at the last position, put behind the last block, so that only final norm
and unembedding follow. A token set that was chosen through the unembedding moves along it by linear algebra alone;
what a push does *beyond* it is what the model's later blocks make of it.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.edits import Add, Clamp, Edit
from polysem.errors import NumericsError
from polysem.linear.decompose import STREAM
from polysem.models.base import WhiteBoxModel
from polysem.models.sweep import Sweep, sweep_of
from polysem.types import Site

_LAST = ("hook_resid_post", "hook_mlp_out")
"""points behind which no block follows, in the last layer"""


def direct_logits(
    model: WhiteBoxModel,
    rows: tuple[Int[Tensor, "rows pos"], Bool[Tensor, "rows pos"]],
    edits: Sequence[Edit],
    *,
    base: Float[Tensor, "1 d_vocab"],
    edited: Float[Tensor, "rows d_vocab"],
    seen: Callable[[Site], Float[Tensor, "pos d"]],
    sweep: Sweep | None = None,
) -> Float[Tensor, "rows d_vocab"] | None:
    """Last-position logits of the direct path of every row, float64 on the CPU.

    Without an edit (a changed prompt) nothing is added, so nothing of the effect is direct. None where an edit is not of
    the stream, or the model gives no finite logits.

    Args:
        rows: tokens of the unedited prompt, and where it is edited.
        edits: of every row.
        base: logits of the unedited prompt.
        edited: of every row.
        seen: a site's activations on the unedited prompt.
        sweep: of the model, where the caller holds it.
    """
    if not edits:
        return base.expand(len(edited), -1)
    end = Site(model.spec.n_layers - 1, "hook_resid_post")
    if all(edit.site.layer == end.layer and edit.site.point in _LAST for edit in edits):
        return edited  # all of the effect is direct, to the last bit
    if end not in model.sites() or any(edit.site.point not in STREAM for edit in edits):
        return None
    tokens, mask = rows
    last = torch.zeros_like(mask)
    last[:, -1] = True
    added = torch.stack([_added(edit, seen) for edit in edits]).sum(0)
    try:
        return (sweep or sweep_of(model)).logits(tokens, [Add(end, added, last)]).detach().cpu().double()
    except NumericsError:
        return None


def _added(edit: Edit, seen: Callable[[Site], Tensor]) -> Float[Tensor, "rows d"]:
    """What an edit adds at the last position."""
    here = edit.mask[:, -1:]
    if isinstance(edit, Add):
        return edit.vector * here
    x = seen(edit.site)[-1].to(edit.mask.device)
    if isinstance(edit, Clamp):
        missing = edit.value - edit.reader @ x.to(edit.reader) - edit.offset
        return missing[:, None] * edit.writer * here
    change = (edit.factor - 1) * x[edit.index].to(edit.factor)
    return torch.zeros(len(here), len(x)).to(change).scatter(1, edit.index[:, None], change[:, None]) * here


def promoted(W_U: Float[Tensor, "d_vocab d"], row: Float[Tensor, " d_row"], n: int) -> list[int]:
    """The n tokens that a direction raises most through the unembedding, equals by id; none where it is not of the
    stream's width."""
    if W_U.shape[1] != len(row):
        return []
    return torch.argsort(W_U.detach().cpu().double() @ row.cpu().double(), descending=True, stable=True)[
        :n
    ].tolist()
