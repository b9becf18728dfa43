"""What a feature does to the features of a later layer, measured by running the model.

Pushed: a unit of its row is added at one position, both ways; what the pre-activation of every target changes there, and at
all later positions together. Natural: where it fires, what it wrote is taken away; what every target's activation loses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.edits import Add, Edit
from polysem.layers.coactivity import Pass
from polysem.layers.ends import Ends, linked
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


def written_edits(
    source: Ends, target: Ends, amounts: Float[Tensor, " rows"], features: Sequence[int], mask: Tensor
) -> list[Edit]:
    """Adding `amounts` units of each row's feature, at every site that it writes before the target reads."""
    index = torch.as_tensor(list(features), dtype=torch.long)
    own = source.written_before(target.reads)
    return [
        Add(site, (amounts[:, None] * rows[index].to(amounts)).contiguous(), mask)
        for site, rows in own.items()
    ]


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
        model: which model.
        tokens: prompts of one length.
        source: dictionary of what is pushed; a unit is a unit length of what it writes in all.
        target: dictionary of what is looked at.
        sources: features.
        targets: features.
        reporter: is told of every source.
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
            edits = written_edits(source, target, amounts, [feature] * n, mask)
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
        model: which model.
        seen: the corpus pass.
        source: dictionary of what is taken away.
        target: dictionary of what is looked at, at the same position.
        sources: features.
        targets: features.
        half: which documents.
        n_events: positions of each source, at most; drawn, one a row of text.
        rng: of the draw.
        reporter: is told of every batch.
    """
    kept = seen.counted & (seen.half == half)
    events: list[tuple[int, int, int, float]] = []
    for k, feature in enumerate(sources):
        row, position, value = seen.active[source.label].of(feature, kept)
        order = rng.permutation(len(row))
        _, first = np.unique(row[order], return_index=True)
        chosen = order[np.sort(first)[:n_events]]
        events += [(k, int(row[c]), int(position[c]), float(value[c])) for c in chosen]
    starts = range(0, len(events), ROWS)
    changes = []
    for at in reporter.track(starts, total=len(starts), label="ablations"):
        batch = events[at : at + ROWS]
        tokens = torch.from_numpy(seen.rows.tokens[[e[1] for e in batch]].astype(np.int64)).to(
            model.spec.device
        )
        where = torch.tensor([e[2] for e in batch])
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        mask[torch.arange(len(batch)), where] = True
        amounts = torch.tensor([-e[3] for e in batch], dtype=torch.float32)
        edits = written_edits(source, target, amounts, [sources[e[0]] for e in batch], mask)
        pair = [
            target.encoder.encode(
                model.capture(tokens, [target.reads], e)[target.reads].cpu()[torch.arange(len(batch)), where]
            )
            for e in ([], edits)
        ]
        changes.append((pair[0] - pair[1]).detach()[:, torch.as_tensor(targets)].numpy())
    rows, places = (
        np.array([e[1] for e in events], dtype=np.int64),
        np.array([e[2] for e in events], dtype=np.int64),
    )
    width = len(targets)
    return Natural(
        np.array([e[0] for e in events], dtype=np.int64),
        seen.document[rows, places] if len(events) else np.empty(0, dtype=np.int64),
        np.concatenate(changes) if changes else np.empty((0, width), dtype=np.float32),
    )
