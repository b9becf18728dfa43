"""Top contexts and top tokens of many features from a stream of (tokens, values), in bounded memory.

Strings are kept once, as a vocabulary; a context is two small arrays. Tokens that have fallen below ratio x
the largest activation seen so far can never return (the largest only grows), so they are dropped as the
stream goes on.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from polysem.errors import FormatError
from polysem.glosses.bytelevel import mend
from polysem.glosses.raw import float32_of

_KEEP_TOKENS = 256
"""tokens of a feature above which the hopeless are dropped"""
_AFTER_PEAK = 4
"""tokens of a context kept after its peak"""


@dataclass(frozen=True)
class Limits:
    """What is kept of each feature."""

    n_contexts: int = 12
    window: int = 24
    ratio: float = 0.8


class Context(NamedTuple):
    """A window of text; tokens are numbers of the collector's vocabulary."""

    max_value: float
    source: str
    position: int
    tokens: np.ndarray
    values: np.ndarray


@dataclass
class Collector:
    """Contexts and tokens of many features."""

    limits: Limits
    words: list[str] = field(default_factory=list)
    n_repeated: int = 0
    """contexts left out because a context with the same window of tokens was kept"""
    _number: dict[str, int] = field(default_factory=dict)
    _contexts: dict[Hashable, dict[bytes, Context]] = field(default_factory=dict)
    _tokens: dict[Hashable, dict[int, float]] = field(default_factory=dict)
    _largest: dict[Hashable, float] = field(default_factory=dict)

    def add(self, key: Hashable, tokens: object, values: object, *, source: str, where: str) -> None:
        """Takes one text of feature `key`.

        Args:
            tokens: list of strings.
            values: list of as many finite numbers.
            source: the text's name in the export.
            where: file and line, for errors.

        Raises:
            FormatError: tokens and values are not that.
        """
        strings, numbers = _checked(tokens, values, where)
        if not strings:
            return
        peak = int(numbers.argmax())
        largest = max(self._largest.get(key, -np.inf), float(numbers[peak]))
        self._largest[key] = largest
        if numbers[peak] > 0:
            self._add_tokens(key, strings, numbers, largest)
            self._add_context(key, mend(strings), numbers, peak, source)

    def _add_tokens(self, key: Hashable, strings: list[str], numbers: np.ndarray, largest: float) -> None:
        best = self._tokens.setdefault(key, {})
        for position in np.flatnonzero(numbers >= self.limits.ratio * largest):
            word = self._word(strings[position])
            best[word] = max(best.get(word, 0.0), float(numbers[position]))
        if len(best) > _KEEP_TOKENS:
            self._tokens[key] = {w: v for w, v in best.items() if v >= self.limits.ratio * largest}

    def _add_context(
        self, key: Hashable, strings: list[str], numbers: np.ndarray, peak: int, source: str
    ) -> None:
        end = min(len(strings), peak + 1 + _AFTER_PEAK)
        start = max(0, end - self.limits.window)
        start = min(start, peak)
        part = slice(start, min(len(strings), start + self.limits.window))
        words = np.array([self._word(s) for s in strings[part]], dtype=np.int32)
        new = Context(float(numbers[peak]), source, peak - start, words, numbers[part].copy())
        kept = self._contexts.setdefault(key, {})
        old = kept.get(words.tobytes())
        if old is not None:
            self.n_repeated += 1
            new = min(old, new, key=_rank)
        kept[words.tobytes()] = new
        if len(kept) > 4 * self.limits.n_contexts:
            self._contexts[key] = {c.tokens.tobytes(): c for c in self.contexts(key)}

    def _word(self, string: str) -> int:
        number = self._number.get(string)
        if number is None:
            number = self._number[string] = len(self.words)
            self.words.append(string)
        return number

    def contexts(self, key: Hashable) -> list[Context]:
        """The contexts with the largest activations, largest first; ties by the text's name."""
        return sorted(self._contexts.get(key, {}).values(), key=_rank)[: self.limits.n_contexts]

    def targets(self, key: Hashable) -> list[tuple[str, float]]:
        """T_f: (token, its largest activation) at or above ratio x the feature's largest; best "
        "first, then by string."""
        floor = self.limits.ratio * self._largest.get(key, np.inf)
        above = [(self.words[w], v) for w, v in self._tokens.get(key, {}).items() if v >= floor]
        return sorted(above, key=lambda item: (-item[1], item[0]))

    def largest(self, key: Hashable) -> float | None:
        """The largest activation seen; None if the feature had no text."""
        return self._largest.get(key)


def _rank(context: Context) -> tuple[float, str]:
    return (-context.max_value, context.source)


def _checked(tokens: object, values: object, where: str) -> tuple[list[str], np.ndarray]:
    if not isinstance(tokens, list) or not isinstance(values, Sequence) or isinstance(values, str):
        raise FormatError(
            f"{where}: expected lists of tokens and of values, got {str(tokens)[:40]!r} and "
            f"{str(values)[:40]!r}"
        )
    if len(tokens) != len(values):
        raise FormatError(f"{where}: {len(tokens)} tokens but {len(values)} values; expected as many")
    wrong = [t for t in tokens if not isinstance(t, str)]
    if wrong:
        raise FormatError(f"{where}: token {wrong[0]!r} is not text")
    try:
        numbers = float32_of(values)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{where}: values are not numbers: {str(values)[:60]}") from error
    if numbers.ndim != 1 or not np.isfinite(numbers).all():
        raise FormatError(f"{where}: values must be finite numbers, got {str(values)[:60]}")
    return tokens, numbers
