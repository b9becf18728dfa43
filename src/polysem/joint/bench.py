"""Directions on one prompt, any number of them at any strengths at once, both ways."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polysem.act.base import some_edited
from polysem.act.steering import steered_at_kl
from polysem.edits import Add, Edit
from polysem.models.base import WhiteBoxModel
from polysem.models.sweep import sweep_of
from polysem.positions import mean_norm
from polysem.readouts import kl
from polysem.side_effects.directions import Direction
from polysem.side_effects.push import FIRST

ROWS = 64
"""rows of one forward pass"""


@dataclass(frozen=True)
class Changes:
    """Rows pushed both ways from one prompt."""

    base: Float[Tensor, "1 d_vocab"]
    up: Float[Tensor, "rows d_vocab"]
    down: Float[Tensor, "rows d_vocab"]

    @cached_property
    def odd(self) -> Float[np.ndarray, "rows d_vocab"]:
        """Odd part of the change of centred logits."""
        return _centred((self.up - self.down) / 2)

    @cached_property
    def even(self) -> Float[np.ndarray, "rows d_vocab"]:
        """Even part."""
        return _centred((self.up + self.down) / 2 - self.base)

    def part(self, name: str) -> Float[np.ndarray, "rows d_vocab"]:
        """odd | even | whole (the push itself, not its opposite)."""
        return self.odd + self.even if name == "whole" else self.odd if name == "odd" else self.even

    @cached_property
    def kl(self) -> Float[np.ndarray, " rows"]:
        """Nats, mean over both ways."""
        ends = [np.asarray(kl(self.base, z), dtype=np.float64) for z in (self.up, self.down)]
        return np.mean(ends, axis=0)

    @cached_property
    def kept(self) -> Bool[np.ndarray, " rows"]:
        """Whether the push leaves the most likely token what it was."""
        return (self.up.argmax(-1) == self.base.argmax(-1)).numpy()


def _centred(z: Tensor) -> np.ndarray:
    return (z - z.mean(-1, keepdim=True)).numpy()


class JointBench:
    """One prompt and directions at any sites; strengths are lengths in units of the activation."""

    def __init__(
        self,
        model: WhiteBoxModel,
        ids: Sequence[int],
        directions: Sequence[Direction],
        *,
        positions: str = "all_but_first",
    ):
        """Raises MismatchError for a prompt without an edited position."""
        self.model, self.directions = model, list(directions)
        self.tokens = torch.tensor([list(ids)], dtype=torch.long, device=model.spec.device)
        edited = some_edited(positions, len(ids))
        self.edited = torch.as_tensor(edited, device=model.spec.device)
        self.base = model.logits(self.tokens, last_only=True)[:, -1].double().cpu()
        self._sweep = sweep_of(model)
        self._arrange()

    def _arrange(self) -> None:
        sites = list(dict.fromkeys(d.site for d in self.directions))
        self.at = {s: [k for k, d in enumerate(self.directions) if d.site == s] for s in sites}
        self.units = {s: np.stack([self.directions[k].unit for k in some]) for s, some in self.at.items()}

    def of(self, places: Sequence[int]) -> "JointBench":
        """The same prompt with some of the directions."""
        made = copy(self)
        made.directions = [self.directions[k] for k in places]
        made._arrange()
        return made

    def edits(self, strengths: Float[np.ndarray, "rows n"]) -> list[Edit]:
        """What a row of strengths adds: one edit a site."""
        dtype = torch.float64 if self.model.spec.dtype == "float64" else torch.float32
        mask = self.edited.expand(len(strengths), -1)
        made: list[Edit] = []
        for site, some in self.at.items():
            if strengths[:, some].any():
                vector = strengths[:, some] @ self.units[site]
                made.append(Add(site, torch.as_tensor(vector, dtype=dtype, device=mask.device), mask))
        return made

    def logits(self, strengths: Float[np.ndarray, "rows n"]) -> Float[Tensor, "rows d_vocab"]:
        """Last-position logits, float64."""
        parts = [
            self.run(strengths[at : at + ROWS], self.edits(strengths[at : at + ROWS]))
            for at in range(0, len(strengths), ROWS)
        ]
        return torch.cat(parts)

    def run(
        self, strengths: Float[np.ndarray, "rows n"], edits: Sequence[Edit]
    ) -> Float[Tensor, "rows d_vocab"]:
        """The logits of some edits, a row for each of `strengths`."""
        rows = self.tokens.expand(len(strengths), -1)
        if not edits:
            return self.base.expand(len(strengths), -1)
        return self._sweep.logits(rows, edits).double().cpu()

    def changes(self, strengths: Float[np.ndarray, "rows n"]) -> Changes:
        """Both ways."""
        return Changes(self.base, self.logits(strengths), self.logits(-strengths))

    def lengths(self, dose: float) -> Float[np.ndarray, " n"]:
        """The length of every direction that costs `dose` nats alone, mean over both ways; NaN where none does."""
        found = np.empty(len(self.directions))
        for site, some in self.at.items():
            seen = self.model.capture(self.tokens, [site])[site][0].double().cpu().numpy()
            norm = mean_norm(np.linalg.norm(seen, axis=1), self.edited.cpu().numpy())
            sides = []
            for sign in (1.0, -1.0):
                length, _, lost = steered_at_kl(
                    lambda rows, size, some=some: self.logits(self._alone([some[r] for r in rows], size)),
                    np.full(len(some), sign * dose),
                    self.base,
                    first=FIRST * norm,
                )
                sides.append(np.where(lost, np.nan, np.abs(length)))
            found[some] = np.mean(sides, axis=0)
        return found

    def _alone(self, places: Sequence[int], size: Float[np.ndarray, " rows"]) -> np.ndarray:
        strengths = np.zeros((len(places), len(self.directions)))
        strengths[np.arange(len(places)), list(places)] = size
        return strengths
