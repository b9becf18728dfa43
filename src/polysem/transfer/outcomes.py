"""What one answer says about every category, against the baselines of its sentence: point values and bounds.

Where an answer is truncated, the mass of a category has bounds; the point value is taken from their middle, and the
bounds are kept beside it, as [3 categories]: least, point, greatest. A complete answer gives bounds of width 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from polysem.categories import Categories
from polysem.targets import Answer
from polysem.targets.bounds import (
    Bound,
    kl_bound,
    log_odds_bound,
    mass_bound,
    noise_sd,
    top_k_counts,
    tv_bound,
)

TINY = 1e-12
"""least mass of which a log-odds is taken: below it a float32 softmax holds nothing"""
POINT = 1
"""place of the point value in [least, point, greatest]"""


@dataclass(frozen=True)
class Reading:
    """One answer by category, in the order of the categories."""

    mass: Float[np.ndarray, "3 categories"]
    log_odds: Float[np.ndarray, "3 categories"]
    """nats"""
    count: Float[np.ndarray, "2 categories"]
    """least and most tokens of the category among the k most likely; NaN where fewer than k were granted"""


class Reader:
    """Reads answers of one target; remembers which tokens belong where."""

    def __init__(self, categories: Categories, *, word_start: bool, success_k: int):
        self.categories = categories
        self.word_start = word_start
        self.success_k = success_k
        self._known: dict[str, int] = {}
        self._whole: tuple[tuple[str, ...], np.ndarray] | None = None

    def read(self, answer: Answer) -> Reading:
        """What the answer says of every category."""
        inside = self._inside(answer.tokens)
        masses = [(mass_bound(answer, row), mass_bound(answer, ~row)) for row in inside]
        odds = [(log_odds_bound(mass, rest), _logit(mass, rest)) for mass, rest in masses]
        return Reading(
            mass=np.array([(m.lo, m.mid, m.hi) for m, _ in masses]).T,
            log_odds=np.array([(o.lo, point, o.hi) for o, point in odds]).T,
            count=np.array([(c.lo, c.hi) for c in self._counts(answer, inside)]).T,
        )

    def _counts(self, answer: Answer, inside: np.ndarray) -> list[Bound]:
        if not answer.complete and answer.n + answer.lost < self.success_k:
            return [Bound(math.nan, math.nan)] * len(inside)
        return top_k_counts(answer, inside, k=self.success_k)

    def _inside(self, tokens: tuple[str, ...]) -> np.ndarray:
        if self._whole is not None and self._whole[0] is tokens:
            return self._whole[1]
        for token in tokens:
            if token not in self._known:
                name = self.categories.of_token(token, word_start=self.word_start)
                self._known[token] = -1 if name is None else self.categories.names.index(name)
        found = np.array([self._known[token] for token in tokens])
        inside = found[None, :] == np.arange(len(self.categories.names))[:, None]
        if len(tokens) > 1000:
            self._whole = (tokens, inside)
        return inside


def _logit(mass: Bound, rest: Bound) -> float:
    """Log-odds of the middle of the bounds."""
    inside, outside = max((mass.lo + mass.hi) / 2, TINY), max((rest.lo + rest.hi) / 2, TINY)
    return math.log(inside) - math.log(outside)


@dataclass(frozen=True)
class AnswerChange:
    """What an injection changed, in the order of the categories."""

    log_odds: Float[np.ndarray, "3 categories"]
    """nats"""
    mass: Float[np.ndarray, "3 categories"]
    success: Float[np.ndarray, " categories"]
    """1 more tokens of the category among the k most likely, -1 fewer, 0 as many or not told; NaN where k was not
    granted"""
    kl: Bound
    """KL(baseline || injected), nats"""
    tv: Bound


def change(base: tuple[Answer, Reading], edited: tuple[Answer, Reading]) -> AnswerChange:
    """The change from the first baseline answer of a sentence to an injected one."""
    (a, b), (c, d) = base, edited
    up, down = (d.count[0] > b.count[1]).astype(float), (d.count[1] < b.count[0]).astype(float)
    told = ~(np.isnan(b.count[0]) | np.isnan(d.count[0]))
    return AnswerChange(
        # The least change is from the greatest baseline, and the other way round.
        log_odds=d.log_odds - b.log_odds[::-1],
        mass=d.mass - b.mass[::-1],
        success=np.where(told, up - down, np.nan),
        kl=kl_bound(a, c),
        tv=tv_bound(a, c),
    )


def noise_of(readings: Sequence[Sequence[Reading]]) -> Float[np.ndarray, " categories"]:
    """Standard deviation of one answer's log-odds around its prompt's mean, by category.

    Args:
        readings: by sentence, one reading per repeat.
    """
    values = np.array([[r.log_odds[POINT] for r in row] for row in readings])
    return np.array([noise_sd(values[:, :, n]) for n in range(values.shape[2])])
