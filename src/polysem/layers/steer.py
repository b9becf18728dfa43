"""Steering with a transcoder's feature, in the two ways that it can mean, and the difference between them.

An autoencoder's feature stands where it is read. A transcoder's reads at one site and writes at others, so a push of it is

    written  its rows are added where it writes: what the transcoder says that the MLP would do
    seen     what it reads is moved along its encoder, by the shortest vector that brings its pre-activation there; the MLP
             itself decides what that does, and so do all other features that read along
    both     the two together

All three bring the activation from f to the asked value v: written adds (v - f) of its row, seen raises the pre-activation
from p to v. They agree where the transcoder is the MLP and nothing else reads along the encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.edits import Add, Edit
from polysem.layers.ends import Ends
from polysem.models.base import WhiteBoxModel
from polysem.progress import SILENT, Reporter
from polysem.readouts import kl
from polysem.saes.transcoder import Transcoder
from polysem.side_effects.measures import Estimate, mean_of
from polysem.types import Site


def written_push(
    ends: Ends,
    features: Sequence[int],
    amounts: Float[Tensor, " rows"],
    mask: Bool[Tensor, "rows pos"],
    *,
    before: Site | None = None,
) -> list[Edit]:
    """Adding `amounts` activations of each row's feature at every site that it writes, or at those that `before` can see."""
    which = torch.as_tensor(list(features), dtype=torch.long)
    rows = ends.rows if before is None else ends.written_before(before)
    return [
        Add(site, (amounts[:, None] * own[which].to(amounts)).contiguous(), mask)
        for site, own in rows.items()
    ]


def seen_push(
    ends: Ends, features: Sequence[int], amounts: Float[Tensor, " rows"], mask: Bool[Tensor, "rows pos"]
) -> list[Edit]:
    """Raising the pre-activation of each row's feature by `amounts`, by the shortest vector added to what it reads.

    Behind a norm only the part that reads there sees it: the stream is not touched.
    """
    columns = ends.columns()[torch.as_tensor(list(features), dtype=torch.long)].to(amounts)
    size = columns.square().sum(1).clamp(min=torch.finfo(columns.dtype).tiny)
    return [Add(ends.reads, (columns * (amounts / size)[:, None]).contiguous(), mask)]


@dataclass(frozen=True)
class TwoWays:
    """Pushes of features to a value, written and seen, at one position of every prompt; NaN where the feature is there already."""

    cosine: Float[np.ndarray, "features prompts"]
    """of what the MLP adds when its reader sees the feature, with the row that the transcoder writes"""
    share: Float[np.ndarray, "features prompts"]
    """of the written push's length that the MLP adds along it"""
    told: Float[np.ndarray, "features prompts"]
    """share of what the MLP adds (squared length) that the transcoder foretells of what is seen, other features included;
    below 0 where it foretells worse than nothing"""
    logits: Float[np.ndarray, "features prompts"]
    """correlation of the change of logits, written with seen"""
    kl_written: Float[np.ndarray, "features prompts"]
    """nats, at the pushed position"""
    kl_seen: Float[np.ndarray, "features prompts"]
    kl_both: Float[np.ndarray, "features prompts"]
    apart: Float[np.ndarray, "features prompts"]
    """length of (both less written less seen) over length of both, of changes of logits: how far the two do not add up"""

    def mean(self, name: str) -> Estimate:
        """Mean over prompts, then features, with its 95 % interval over features; NaN without any."""
        values: Float[np.ndarray, "features prompts"] = getattr(self, name)
        usable = np.isfinite(values)
        sums = np.where(usable, values, 0.0).sum(1)
        means = np.divide(sums, usable.sum(1), out=np.full(len(sums), np.nan), where=usable.any(1))
        return mean_of(means[np.isfinite(means)])


def two_ways(
    model: WhiteBoxModel,
    one: Transcoder,
    tokens: Int[Tensor, "prompts pos"],
    *,
    features: Sequence[int],
    values: Sequence[float],
    reporter: Reporter = SILENT,
) -> TwoWays:
    """Bring features to values at the last position of every prompt, in each way.

    Args:
        one: the transcoder; what the MLP adds is looked at where it writes first.
        tokens: prompts of one length.
        values: activation that each is brought to.

    Raises:
        MismatchError: a transcoder whose pre-activation is not linear in what it reads.
    """
    ends, n = Ends.of("pushed", one), len(tokens)
    site = ends.first
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    mask[:, -1] = True
    x = model.capture(tokens, [one.reads])[one.reads][:, -1].float().cpu()
    base = _logits(model, tokens, [])
    own = model.capture(tokens, [site])[site][:, -1].float().cpu()
    pre, fires, said = ends.pre(x), one.encode(x).detach(), one.parts(x)[site].detach()
    columns = ends.columns()
    shape = (len(features), n)
    found = {one.name: np.full(shape, np.nan) for one in fields(TwoWays)}
    jobs = list(enumerate(zip(features, values, strict=True)))
    for k, (j, value) in reporter.track(jobs, total=len(jobs), label="both ways"):
        up, rise = value - fires[:, j], value - pre[:, j]
        written, seen = written_push(ends, [j] * n, up, mask), seen_push(ends, [j] * n, rise, mask)
        added = model.capture(tokens, [site], seen)[site][:, -1].float().cpu() - own
        row = up[:, None] * ends.rows[site][j]
        moved = x + rise[:, None] * columns[j] / columns[j].square().sum()
        foretold = one.parts(moved)[site].detach() - said
        ends_of = [_logits(model, tokens, edits) for edits in (written, seen, [*written, *seen])]
        change = [_centred(z - base) for z in ends_of]
        good = ((up.abs() > 1e-6 * abs(value)) & (row.norm(dim=1) > 0)).numpy()
        measured = {
            "cosine": _cosine(added, row), "share": (added * row).sum(1) / row.square().sum(1),
            "told": 1 - (added - foretold).square().sum(1) / added.square().sum(1),
            "logits": _cosine(change[0], change[1]),
            "apart": (change[2] - change[1] - change[0]).norm(dim=1) / change[2].norm(dim=1),
            **{f"kl_{name}": kl(base, z) for name, z in zip(("written", "seen", "both"), ends_of, strict=True)},
        }  # fmt: skip
        for name, got in measured.items():
            found[name][k] = np.where(good, np.asarray(got, dtype=np.float64).reshape(n), np.nan)
    return TwoWays(**found)


def _logits(model: WhiteBoxModel, tokens: Tensor, edits: Sequence[Edit]) -> Float[Tensor, "rows d_vocab"]:
    return model.logits(tokens, edits, last_only=True)[:, -1].double().cpu()


def _centred(z: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
    return z - z.mean(1, keepdim=True)


def _cosine(a: Float[Tensor, "rows d"], b: Float[Tensor, "rows d"]) -> Float[Tensor, " rows"]:
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
