"""What a feature does to the features of a later layer, measured by running the model.

Pushed: a unit of its row is added at one position, both ways; what the pre-activation of every target changes there, and at
all later positions together. Natural: where it fires, what it wrote is taken away; what every target's activation loses.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.layers.coactivity import Pass
from polysem.layers.ends import Ends, linked
from polysem.layers.steer import written_push
from polysem.models.base import WhiteBoxModel
from polysem.progress import SILENT, Reporter

SIZE = 0.05
"""length of a push, in mean norms of the site"""
ROWS = 64
"""rows of a forward pass"""


@dataclass(frozen=True)
class PushedLater:
    """Change of pre-activations a unit of pushed length."""

    same: Float[np.ndarray, "n_sources prompts n_targets"]
    """at the pushed position"""
    later: Float[np.ndarray, "n_sources prompts n_targets"]
    """summed over all later positions: through attention"""


@dataclass(frozen=True)
class Natural:
    """What targets lose when a source's own contribution is taken away where it fires."""

    source: Int[np.ndarray, " events"]
    """place among the asked sources"""
    document: Int[np.ndarray, " events"]
    change: Float[np.ndarray, "events n_targets"]
    """activation with it less activation without it"""

    def mean(self, kept: Int[np.ndarray, " some"], n: int) -> Float[np.ndarray, "n n_targets"]:
        """Mean by source over some events; NaN without any."""
        total = np.zeros((n, self.change.shape[1]))
        np.add.at(total, self.source[kept], self.change[kept])
        times = np.bincount(self.source[kept], minlength=n)
        return np.divide(total, times[:, None], out=np.full_like(total, np.nan), where=times[:, None] > 0)


class Events(NamedTuple):
    """Positions of the corpus at which something is taken away, and how much of it."""

    of: Int[np.ndarray, " events"]
    """place of what is taken away among all that is asked for"""
    row: Int[np.ndarray, " events"]
    position: Int[np.ndarray, " events"]
    value: Float[np.ndarray, " events"]

    @classmethod
    def joined(cls, parts: Sequence["Events"]) -> "Events":
        """One after the other."""
        none = cls(*(np.empty(0, dtype) for dtype in (np.int64, np.int64, np.int64, np.float64)))
        return cls(*(np.concatenate(column) for column in zip(none, *parts, strict=True)))

    def documents(self, seen: Pass) -> Int[np.ndarray, " events"]:
        """That each is in."""
        return seen.document[self.row, self.position]

    def batches(
        self, model: WhiteBoxModel, seen: Pass, reporter: Reporter, label: str
    ) -> Iterator[tuple["Events", Int[Tensor, "rows pos"], Bool[Tensor, "rows pos"]]]:
        """(some events, the text of each, where in it)."""
        starts = range(0, len(self.of), ROWS)
        for at in reporter.track(starts, total=len(starts), label=label):
            some = Events(*(column[at : at + ROWS] for column in self))
            tokens = torch.from_numpy(seen.rows.tokens[some.row].astype(np.int64)).to(model.spec.device)
            mask = torch.zeros(tokens.shape, dtype=torch.bool)
            mask[torch.arange(len(mask)), torch.from_numpy(some.position)] = True
            yield some, tokens, mask


def pushed_later(
    model: WhiteBoxModel,
    tokens: Int[Tensor, "prompts pos"],
    source: Ends,
    target: Ends,
    *,
    sources: Sequence[int],
    targets: Int[np.ndarray, " n_targets"],
    reporter: Reporter = SILENT,
) -> PushedLater:
    """Push every source at the middle position of every prompt, by central differences.

    Args:
        tokens: prompts of one length.
        source: dictionary of what is pushed; a unit is a unit length of what it writes in all.
        target: dictionary of what is looked at.
    """
    assert linked(source, target)
    middle, n = tokens.shape[1] // 2, len(tokens)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    mask[:, middle] = True
    own = torch.stack(list(source.written_before(target.reads).values())).sum(0)
    length = own.norm(dim=1).clamp(min=1e-8)
    step = SIZE * float(model.capture(tokens, [source.first])[source.first][:, 1:].norm(dim=-1).mean())
    columns = target.columns()[torch.as_tensor(targets)]
    same, later = (np.zeros((len(sources), n, len(targets)), dtype=np.float32) for _ in range(2))
    for k, feature in enumerate(reporter.track(list(sources), total=len(sources), label="pushes")):
        ends = []
        for sign in (1.0, -1.0):
            amounts = torch.full((n,), sign * step / float(length[feature]))
            edits = written_push(source, [feature] * n, amounts, mask, before=target.reads)
            ends.append(model.capture(tokens, [target.reads], edits)[target.reads].float().cpu())
        change = (ends[0] - ends[1]) @ columns.T / (2 * step)
        same[k], later[k] = change[:, middle].numpy(), change[:, middle + 1 :].sum(1).numpy()
    return PushedLater(same, later)


def natural_influence(
    model: WhiteBoxModel,
    seen: Pass,
    source: Ends,
    target: Ends,
    *,
    sources: Sequence[int],
    targets: Int[np.ndarray, " n_targets"],
    half: int,
    n_events: int,
    rng: np.random.Generator,
    reporter: Reporter = SILENT,
) -> Natural:
    """Take each source's contribution away at positions of one half of the documents where it fires.

    Args:
        source: dictionary of what is taken away.
        target: dictionary of what is looked at, at the same position.
        half: which documents.
        n_events: positions of each source, at most; drawn, one a row of text.
    """
    kept = seen.counted & (seen.half == half)
    found: list[Events] = []
    for k, feature in enumerate(sources):
        row, position, value = seen.active[source.label].of(feature, kept)
        order = rng.permutation(len(row))
        _, first = np.unique(row[order], return_index=True)
        chosen = order[np.sort(first)[:n_events]]
        found.append(Events(np.full(len(chosen), k), row[chosen], position[chosen], value[chosen]))
    events, reads = Events.joined(found), target.reads
    changes = [np.empty((0, len(targets)), dtype=np.float32)]
    for some, tokens, mask in events.batches(model, seen, reporter, "ablations"):
        features, amounts = [sources[k] for k in some.of], torch.from_numpy(-some.value).float()
        edits = written_push(source, features, amounts, mask, before=reads)
        with_it, without = (
            target.encoder.encode(model.capture(tokens, [reads], e)[reads].cpu()[mask]) for e in ([], edits)
        )
        changes.append((with_it - without).detach()[:, torch.as_tensor(targets)].numpy())
    return Natural(events.of, events.documents(seen), np.concatenate(changes))
