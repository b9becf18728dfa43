"""Steering along directions at one site of a model, each at the same KL, and what moves in every category.

A dose is a KL divergence at the last position of a sentence, not a length: directions of any norm and layer
are compared at equal disturbance. What is kept is the odd part of the change of log-odds, (change at +s -
change at -s) / 2, because steering, whatever its direction, has an even part. Cost: about six forward rows
per direction and sentence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polysem.act.steering import steered_at_kl
from polysem.edits import Add
from polysem.errors import MismatchError
from polysem.models.base import WhiteBoxModel
from polysem.readouts import kl as kl_of
from polysem.transfer.outcomes import TINY
from polysem.types import Site

ROWS = 64
"""directions in one forward pass"""
FIRST = 0.05
"""first strength, in norms of the activation that is steered"""


@dataclass(frozen=True)
class Steered:
    """Every direction on one sentence."""

    strength: Float[np.ndarray, " n"]
    """in the unit of the activation"""
    kl: Float[np.ndarray, " n"]
    """nats, at +strength"""
    reached: Bool[np.ndarray, " n"]
    """whether the dose was reached; without it no effect is given"""
    log_odds: Float[np.ndarray, "n categories"]
    """odd part of the change, nats; NaN where the dose was not reached"""


def steer(
    model: WhiteBoxModel,
    tokens: Sequence[int],
    *,
    site: Site,
    directions: Float[np.ndarray, "n d"],
    inside: Bool[np.ndarray, "categories d_vocab"],
    kl: float = 0.0,
    strength: float | None = None,
) -> Steered:
    """Steer the last position of one sentence along every direction, at the same KL or at one strength.

    Args:
        tokens: of the sentence.
        directions: rows; unit ones where `kl` is the dose.
        inside: which tokens belong to which category.
        kl: dose, nats.
        strength: in its place, how many times each row is added.

    Raises:
        MismatchError: directions of another width than the site.
    """
    if directions.shape[1] != model.site_width(site):
        raise MismatchError(
            f"directions of {directions.shape[1]} numbers for {model.site_width(site)} coordinates at {site}"
        )
    steered = _Sentence(model, tokens, site, directions)
    base = steered.logits(np.zeros(1, dtype=np.int64), np.zeros(1))
    n, every = len(directions), np.arange(len(directions))
    if strength is None:
        size, up, missed = steered_at_kl(steered.logits, np.full(n, kl), base, first=FIRST * steered.norm)
    else:
        size, missed = np.full(n, strength), np.zeros(n, dtype=bool)
        up = steered.logits(every, size)
    down = steered.logits(every, -size)
    spent = np.asarray(kl_of(base, up), dtype=np.float64)
    odd = (_log_odds(up, inside) - _log_odds(down, inside)) / 2
    return Steered(size, spent, ~missed, np.where(missed[:, None], np.nan, odd))


def category_gradients(
    model: WhiteBoxModel, tokens: Sequence[int], *, site: Site, inside: Bool[np.ndarray, "categories d_vocab"]
) -> Float[np.ndarray, "categories d"]:
    """Gradient of every category's log-odds with respect to the last position at a site."""
    rows = torch.tensor([list(tokens)], device=model.spec.device)
    p = model.logits(rows, last_only=True)[0, -1].double().softmax(-1).cpu().numpy()
    found = []
    for chosen in inside:
        within, without = max(float(p[chosen].sum()), TINY), max(float(p[~chosen].sum()), TINY)
        slope = torch.tensor(np.where(chosen, p / within, -p / without), dtype=torch.float32)
        found.append(model.vjp(rows, site, slope[None].to(model.spec.device))[0, -1].double().cpu().numpy())
    return np.array(found)


class _Sentence:
    """One sentence and all directions."""

    def __init__(self, model: WhiteBoxModel, tokens: Sequence[int], site: Site, directions: np.ndarray):
        self._model, self._site = model, site
        self._tokens = torch.tensor([list(tokens)], device=model.spec.device)
        self._directions = torch.tensor(
            np.ascontiguousarray(directions), dtype=torch.float32, device=model.spec.device
        )
        self.norm = float(model.capture(self._tokens, [site])[site][0, -1].norm())
        self._mask = torch.zeros(self._tokens.shape[1], dtype=torch.bool, device=model.spec.device)
        self._mask[-1] = True

    def logits(self, rows: np.ndarray, strength: np.ndarray) -> Float[Tensor, "rows d_vocab"]:
        """Of the next token, float64, under each row at its strength."""
        found = []
        for start in range(0, len(rows), ROWS):
            part = slice(start, start + ROWS)
            size = torch.tensor(strength[part], dtype=torch.float32, device=self._directions.device)
            vector = self._directions[torch.tensor(rows[part])] * size[:, None]
            n = len(vector)
            edit = Add(self._site, vector, self._mask.expand(n, -1))
            logits = self._model.logits(self._tokens.expand(n, -1), [edit], last_only=True)[:, -1]
            found.append(logits.double().cpu())
        return torch.cat(found)


def _log_odds(logits: Tensor, inside: np.ndarray) -> Float[np.ndarray, "rows categories"]:
    """The mass outside is summed by itself, so that a mass near 1 keeps its digits."""
    probs = logits.softmax(-1).numpy()
    within, without = probs @ inside.T, probs @ ~inside.T
    return np.log(np.maximum(within, TINY)) - np.log(np.maximum(without, TINY))
