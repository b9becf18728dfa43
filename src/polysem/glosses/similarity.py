"""Measures of how alike two features are in meaning, behind one seam, and the noise of each.

A measure compares pairs of items: glosses as text, the words on which features fire, or snippets of their contexts
(`vocabulary.SIMILARITIES` says which). What it does not know is NaN. Every measure is taken three times, on the whole
and on two halves of it (half of its words or contexts each), so that its own noise is seen: halves that agree
little are no measure. Cost: three comparisons of every pair.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from polysem.glosses.cache import text_hash
from polysem.glosses.embed import embed_texts
from polysem.vocabulary import attribute, similarity

Item = str | tuple[str, ...]
"""a gloss, or the words or contexts of a feature; empty where there is none"""


@runtime_checkable
class Measure(Protocol):
    """A measure of similarity."""

    source: str
    """what the numbers come from: model, database and package, for tables and reports"""

    def compare(self, left: Sequence[Item], right: Sequence[Item]) -> Float[np.ndarray, " n"]:
        """The similarity of every item with that beside it; NaN where either is not known to the measure."""
        ...


def open_measure(reference: str) -> Measure:
    """The measure of a reference such as `gloss:minilm`.

    Raises:
        ValueError: no such measure (settings are checked before).
        UnknownReferenceError: what it reads is not installed.
        ConfigError: no such embedder.
    """
    word, argument = similarity(reference)
    return attribute(word.measure)(argument)


def halves(item: Item) -> tuple[Item, Item]:
    """Two halves: every other member of a tuple; of a text the words with an even and with an odd hash, so that a word goes
    the same way in every text, and what all texts share ("as in") makes no halves alike. Both empty where one would be."""
    if isinstance(item, str):
        sides = [[w for w in item.split() if text_hash(w.casefold())[0] % 2 == side] for side in (0, 1)]
        one, two = (" ".join(words) for words in sides)
    else:
        one, two = item[::2], item[1::2]
    return (one, two) if one and two else (item[:0], item[:0])


def cosines_of(left: Float[np.ndarray, "n d"], right: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Cosine of every row with that beside it, float64; NaN where either is zero."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), norms, out=np.full(len(a), np.nan), where=norms > 0)


class ByEmbedder:
    """Cosine of texts by an embedder; a text is embedded once."""

    def __init__(self, embedder: str):
        self._embedder = embedder
        self._known: dict[str, np.ndarray] = {}
        self.source = f"embedder {embedder}"

    def vectors(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The unit vector of every text that is not blank."""
        new = sorted({t for t in texts if t.strip()} - self._known.keys())
        if new:
            made = embed_texts(new, self._embedder, cache=None)
            self._known |= dict(zip(new, made.vectors, strict=True))
            self.source = made.name
        return self._known

    def compare(self, left: Sequence[Item], right: Sequence[Item]) -> Float[np.ndarray, " n"]:
        """Cosines of texts; words are taken for a text."""
        pairs = [tuple(map(_text, pair)) for pair in zip(left, right, strict=True)]
        known = self.vectors([text for pair in pairs for text in pair])
        if not known:
            return np.full(len(pairs), np.nan)
        none = np.zeros_like(next(iter(known.values())))
        rows = np.array([[known.get(a, none), known.get(b, none)] for a, b in pairs])
        return cosines_of(rows[:, 0], rows[:, 1]) if pairs else np.empty(0)


def _text(item: Item) -> str:
    return item if isinstance(item, str) else " ".join(item)
