"""Linear response: the change in a target's log-odds that the gradient predicts for any push.

    LR_ij = alpha E_x[g_j(x)] . d_i      with g_j = sum over the pushed positions of dl_j / dh

One backward pass per prompt and target gives g_j, and then the response to every direction is one product, so
all features are screened at once. At a small dose the gradient is the answer; a regression on cosine that adds
nothing to it has found nothing about interference beyond the gradient. Where a push bends the model, the
gradient averaged along the push (integrated gradients, Sundararajan et al. 2017) takes its place, at one
backward pass per point, target and direction.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.edits import Add
from polysem.errors import ConfigError, MismatchError
from polysem.models.base import WhiteBoxModel
from polysem.models.clean import CleanRun
from polysem.models.gradients import pull_back, pull_back_pushed
from polysem.models.hf import HFModel
from polysem.models.sweep import sweep_of
from polysem.readouts import distinct_ids
from polysem.types import Site

_ROWS = 32
"""rows of one backward pass"""
PATH_POINTS = 8


def membership(sets: Sequence[Sequence[int]], d_vocab: int) -> Bool[Tensor, "n_sets d_vocab"]:
    """Which tokens belong to each target set.

    Raises:
        ConfigError: if a set is empty or is the whole vocabulary.
        MismatchError: if an id lies outside the vocabulary.
    """
    inside = torch.zeros(len(sets), d_vocab, dtype=torch.bool)
    for row, ids in zip(inside, sets, strict=True):
        row[distinct_ids(ids, d_vocab)] = True
        if bool(row.all()):
            raise ConfigError(f"the target set is the whole vocabulary of {d_vocab} tokens")
    return inside


def log_odds_of(
    logits: Float[Tensor, "*rows d_vocab"], inside: Bool[Tensor, "*sets d_vocab"]
) -> Float[Tensor, "*both"]:
    """Log-odds of the sets in nats, float64; leading axes broadcast."""
    z = logits.double().cpu()
    hidden = torch.tensor(-torch.inf, dtype=torch.float64)
    return torch.where(inside, z, hidden).logsumexp(-1) - torch.where(inside, hidden, z).logsumexp(-1)


def odds_cotangent(
    logits: Float[Tensor, "*rows d_vocab"], inside: Bool[Tensor, "*sets d_vocab"]
) -> Float[Tensor, "*both d_vocab"]:
    """Derivative of the log-odds by the logits: p given T inside the set, minus p given not T outside it."""
    z = logits.double().cpu()
    hidden = torch.tensor(-torch.inf, dtype=torch.float64)
    return torch.where(inside, z, hidden).softmax(-1) - torch.where(inside, hidden, z).softmax(-1)


def odds_gradients(
    model: WhiteBoxModel,
    tokens: Int[Tensor, " pos"],
    *,
    site: Site,
    pushed: Bool[Tensor, " pos"],
    inside: Bool[Tensor, "n_sets d_vocab"],
) -> Float[Tensor, "n_sets d"]:
    """g_j of every target set on one prompt, float64: nats per unit of activation, summed over `pushed`.

    `site` may be another one than where pushes go: the gradient at the last block's output is the direct path.
    """
    logits = model.logits(tokens[None], last_only=True)[0, -1]
    weights = odds_cotangent(logits, inside)
    short = _short(model, tokens, site)
    rows = []
    for part in weights.split(_ROWS):
        wanted = part.to(logits)
        gradient = (
            pull_back(*short, site, wanted)
            if short
            else model.vjp(tokens.expand(len(part), -1), site, wanted)
        )
        rows.append(gradient.double().cpu()[:, pushed.cpu()].sum(1))
    return torch.cat(rows)


def _short(model: WhiteBoxModel, tokens: Int[Tensor, " pos"], site: Site) -> tuple[HFModel, CleanRun] | None:
    """What a gradient needs that runs only the blocks behind the site, as the sweep does; None where it may not."""
    sweep = sweep_of(model)
    if not isinstance(model, HFModel) or site.layer is None or "replay" not in sweep.ways:
        return None
    return model, sweep.clean(model, tokens[None])


def path_gradients(
    model: WhiteBoxModel,
    tokens: Int[Tensor, " pos"],
    *,
    site: Site,
    pushed: Bool[Tensor, " pos"],
    inside: Bool[Tensor, "rows d_vocab"],
    pushes: Float[Tensor, "rows d"],
    points: int = PATH_POINTS,
) -> Float[Tensor, "rows d"]:
    """g_j averaged along each row's own push, from -push to +push, by Gauss-Legendre points.

    The average times the push is the odd part of the change in log-odds, exactly but for the quadrature: the
    integral of a derivative along a segment is the difference between its ends.

    Args:
        inside: the target set of every row.
        pushes: the vector of every row, in units of the activation.
        points: where on the segment the gradient is taken.
    """
    import numpy as np

    if len(inside) != len(pushes):
        raise MismatchError(f"{len(inside)} target sets for {len(pushes)} pushes; expected one for each")
    nodes, weights = np.polynomial.legendre.leggauss(points)
    total = torch.zeros(pushes.shape, dtype=torch.float64)
    mask = pushed.expand(len(pushes), -1)
    many = tokens.expand(len(pushes), -1)
    short = _short(model, tokens, site)

    def wanted(logits: Tensor) -> Tensor:
        return odds_cotangent(logits, inside)

    for node, weight in zip(nodes, weights, strict=True):
        vector = float(node) * pushes.to(torch.float32)
        if short:
            added = vector[:, None] * mask.to(vector)[:, :, None]
            gradient = pull_back_pushed(*short, site, added, wanted)
        else:
            edit = Add(site, vector, mask)
            logits = model.logits(many, [edit], last_only=True)[:, -1]
            gradient = model.vjp(many, site, wanted(logits).to(logits), [edit])
        total += float(weight) / 2 * gradient.double().cpu()[:, pushed.cpu()].sum(1)
    return total


def odd_change(
    model: WhiteBoxModel,
    tokens: Int[Tensor, " pos"],
    *,
    site: Site,
    pushed: Bool[Tensor, " pos"],
    pushes: Float[Tensor, "rows d"],
) -> tuple[Float[Tensor, "rows d_vocab"], Float[Tensor, "rows d_vocab"]]:
    """Last-position logits after each push and after its opposite, float64."""
    mask = pushed.expand(len(pushes), -1)
    return tuple(  # pyright: ignore[reportReturnType]  (two of them)
        run_rows(model, tokens, [Add(site, sign * pushes.to(torch.float32), mask)]) for sign in (1.0, -1.0)
    )


def run_rows(
    model: WhiteBoxModel, tokens: Int[Tensor, " pos"], edits: Sequence[Add]
) -> Float[Tensor, "rows d_vocab"]:
    """Last-position logits of one prompt under row-wise pushes, float64 on the CPU; equal rows are run once."""
    seen: dict[bytes, int] = {}
    parts = [part.cpu() for edit in edits for part in (edit.vector, edit.mask.to(edit.vector))]
    keys = [row.tobytes() for row in torch.cat(parts, dim=1).numpy()]
    back = [seen.setdefault(key, len(seen)) for key in keys]
    first = torch.tensor([back.index(k) for k in range(len(seen))])
    few = [Add(edit.site, edit.vector[first], edit.mask[first]) for edit in edits]
    return sweep_of(model).logits(tokens.expand(len(first), -1), few).double().cpu()[back]
