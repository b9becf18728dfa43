"""Truncated answers of one category's sentences, read together: estimates of every category's change, and their errors.

`targets.tail` has the model, `targets.samples` what a second request gives for one category. All arms, pools, templates and positions of the sentences are taken at once, and which is
which is not told.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from polysem.categories import Categories
from polysem.targets import Answer
from polysem.targets.samples import Samples, sampled_tail
from polysem.targets.tail import Heads, Tail, estimate_tail


@dataclass(frozen=True)
class Tails:
    """Estimates by answer, in the order given, and by category of the readout; NaN where nothing can be measured."""

    change: Float[np.ndarray, "answers categories"]
    """of the log-odds, nats"""
    sd: Float[np.ndarray, "answers categories"]
    """standard error of it, from truncation alone"""
    mass: Float[np.ndarray, "answers categories"]
    """change of the probability"""
    share: Float[np.ndarray, " categories"]
    """mean share of the estimated probability that was granted"""
    k_needed: Float[np.ndarray, " categories"]
    """log-probabilities that would do; infinite where no number is known"""

    def part(self, rows: slice) -> "Tails":
        """Some of the answers."""
        return Tails(self.change[rows], self.sd[rows], self.mass[rows], self.share, self.k_needed)


class TailCollector:
    """Takes answers one by one and keeps what their tails are estimated from."""

    def __init__(
        self,
        categories: Categories,
        *,
        word_start: bool,
        vocabulary: Sequence[str] | None,
        sampled: str | None = None,
    ):
        """
        Args:
            categories: of the readout.
            word_start: as for `Categories.of_token`.
            vocabulary: of the target; None where it is not known.
            sampled: the category of which every answer has samples.
        """
        self._categories, self._word_start, self._sampled = categories, word_start, sampled
        self._samples: list[Samples] = []
        self._known: dict[str, str | None] = {}
        self._seen: list[dict[str, dict[str, float]]] = []
        self._floor: list[float] = []
        self._missing: list[float] = []
        self._slope: list[float] = []
        self._n: list[int] = []
        # Where the tokenizer is not known, a word that was never granted is taken to be one token.
        space = " " if word_start else ""
        words = [f"{space}{word}" for of in categories.words.values() for word in sorted(of)]
        self._tokens: dict[str, dict[str, int]] = {name: {} for name in categories.names}
        for token in vocabulary if vocabulary is not None else words:
            self._add(token)

    def _add(self, token: str) -> str | None:
        name = self._known.get(token, "")
        if name == "":
            name = self._known[token] = self._categories.of_token(token, word_start=self._word_start)
            if name is not None:
                self._tokens[name].setdefault(token, len(self._tokens[name]))
        return name

    def take(self, answer: Answer, samples: Samples | None = None) -> None:
        """Keep one answer, and the samples behind the same prompt."""
        if samples is not None:
            self._samples.append(samples)
        found: dict[str, dict[str, float]] = {}
        for token, logprob in zip(answer.tokens, answer.logprobs.tolist(), strict=True):
            name = self._add(token)
            if name is not None:
                of = found.setdefault(name, {})
                of[token] = float(np.logaddexp(of[token], logprob)) if token in of else logprob
        self._seen.append(found)
        ranked = np.sort(answer.logprobs)[::-1]
        half = max(answer.n // 2, 1)
        self._floor.append(float(ranked[-1]))
        self._missing.append(answer.missing)
        self._slope.append(float(ranked[half - 1] - ranked[-1]) / math.log(max(answer.n / half, 1.5)))
        self._n.append(answer.n)

    def tails(self, sentence: Sequence[int]) -> Tails:
        """The estimates of all answers taken; the first are the baselines, one of each sentence in order.

        Args:
            sentence: by answer, its sentence, from 0.
        """
        base = np.asarray(sentence, dtype=np.int64)
        found = [self._tail(name, base) for name in self._categories.names]
        granted = float(np.mean(self._n))
        measured = np.array([t.measurable for t in found])

        def column(values: Iterable[np.ndarray]) -> np.ndarray:
            return np.where(measured, np.stack(list(values), axis=1), np.nan)

        return Tails(
            column(t.change for t in found),
            column(t.sd for t in found),
            column(t.mass - t.mass[base] for t in found),
            np.array([t.share for t in found]),
            np.array([granted * t.k for t in found]),
        )

    def _tail(self, name: str, sentence: np.ndarray) -> Tail:
        place = self._tokens[name]
        logprobs = np.full((len(self._seen), len(place)), np.nan)
        for n, found in enumerate(self._seen):
            for token, value in found.get(name, {}).items():
                logprobs[n, place[token]] = value
        heads = Heads(logprobs, np.array(self._floor), np.array(self._missing), sentence)
        if name == self._sampled:
            drawn = np.full(logprobs.shape, np.nan)
            for n, samples in enumerate(self._samples):
                for token, value in zip(samples.tokens, samples.logprobs.tolist(), strict=True):
                    if token in place:
                        drawn[n, place[token]] = value
            return sampled_tail(heads, drawn, n=len(self._samples[0].tokens))
        return estimate_tail(heads, slope=max(float(np.mean(self._slope)), 0.1))


def k_that_would_do(needed: float) -> int | None:
    """A number of log-probabilities to ask for, in two digits, rounded up; None where none is known."""
    if not math.isfinite(needed):
        return None
    unit = 10 ** max(math.floor(math.log10(max(needed, 1.0))) - 1, 0)
    return math.ceil(needed / unit) * unit
