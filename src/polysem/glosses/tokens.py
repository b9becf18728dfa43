"""Offline glosses from what a feature fires on: no explainer, no network, the same every time.

`"sea", "ocean", "waves" — as in «… upon the open sea and …»`. Words are the whole words around the active
tokens of the top contexts, ordered by the activation they collect; tokens of T_f that no kept context shows
follow; one snippet of the top context closes. A feature without contexts is worded from the tokens it
promotes. Cost: linear in the tokens of the contexts, as arrays; text is put together for active words only.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from polysem.errors import FormatError
from polysem.glosses.base import Gloss
from polysem.glosses.wording import MAX_WORDS, UNREADABLE, as_in, named, promotes

SOURCE = "tokens"
_ACTIVE = 0.5
"""share of the feature's largest activation above which a token gives a word; T_f, for readout, "
"is stricter"""
_LONGEST_WORD = 30
_WORDS_BEFORE = 6
_WORDS_AFTER = 3
_SPECIAL = re.compile(r"<\|[^|<>]*\|>|<(?:bos|eos|pad|unk|s|/s)>")


def token_glosses(features: pa.Table, contexts: pa.Table) -> list[Gloss]:
    """One gloss per feature that has a readable token, by feature.

    Args:
        features: FEATURES of one SAE; the columns feature, tokens_in_str and tokens_out_str are read.
        contexts: CONTEXTS of the same SAE; the columns feature, rank, position, tokens and values are read.

    Returns:
        Glosses with source "tokens" and explainer "active tokens" or, where no context is known, "promoted
        tokens".
    """
    read = _Contexts(contexts)
    words, top = active_words(contexts, read=read), read.top()
    glosses = []
    for row in features.select(["feature", "tokens_in_str", "tokens_out_str"]).sort_by("feature").to_pylist():
        feature = row["feature"]
        text = _from_activations(words.get(feature, []), top.get(feature), row["tokens_in_str"], read)
        if text:
            glosses.append(Gloss(feature, text, SOURCE, "active tokens"))
        elif text := promotes(row["tokens_out_str"]):
            glosses.append(Gloss(feature, text, SOURCE, "promoted tokens"))
    return glosses


def _from_activations(words: list[str], top: int | None, tokens_in: Sequence[str], read: "_Contexts") -> str:
    shown = {named(word).casefold().strip('"') for word in words}
    more = [t for t in tokens_in if not any(t.strip().casefold() in word for word in shown)]
    return as_in([*words, *more], None if top is None else snippet(read.record(top)))


def active_words(contexts: pa.Table, *, read: "_Contexts | None" = None) -> dict[int, list[str]]:
    """The words on which each feature is active, most activation first; forms that differ in case count as one,
    shown as first met; features without one are left out.

    Args:
        read: the same, read before.

    Raises:
        FormatError: a context has not a value for every token.
    """
    read = read or _Contexts(contexts)
    keys: dict[str, str] = {}
    found: dict[int, list[str]] = {}
    for feature, own in read.active():
        collected: dict[str, float] = {}
        shown: dict[str, str] = {}
        for word, value in own:
            key = keys.get(word)
            if key is None:
                key = keys[word] = named(word).casefold()
            shown.setdefault(key, word)
            collected[key] = collected.get(key, 0.0) + value
        # Sorting keeps the order of what has collected as much: as first met.
        best = sorted(collected, key=lambda key: -collected[key])
        readable = (shown[key] for key in best if UNREADABLE not in shown[key])
        found[feature] = list(islice(readable, MAX_WORDS))
    return found


class _Places(NamedTuple):
    """Active words, by feature and rank of their context, then position."""

    context: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    peak: np.ndarray
    """their most active token"""
    value: np.ndarray
    """and its activation"""


class _Contexts:
    """CONTEXTS as flat arrays over all tokens of all contexts."""

    def __init__(self, contexts: pa.Table):
        self.feature, rank, self.position = (
            contexts[name].to_numpy() for name in ("feature", "rank", "position")
        )
        tokens, values = (contexts[name].combine_chunks() for name in ("tokens", "values"))
        self.offsets = tokens.offsets.to_numpy().astype(np.int64)
        lengths = np.diff(self.offsets)
        if not np.array_equal(lengths, np.diff(values.offsets.to_numpy())):
            raise FormatError(
                "a context has not as many values as tokens", hint="build the feature table again"
            )
        self.offsets -= self.offsets[0]
        coded = tokens.flatten().dictionary_encode()
        self.vocabulary: list[str] = coded.dictionary.to_pylist()
        self.codes = coded.indices.to_numpy()
        self.values = values.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
        self.of_token = np.repeat(np.arange(len(lengths)), lengths)
        self.order = np.lexsort((rank, self.feature))

    def top(self) -> dict[int, int]:
        """The first context of every feature."""
        found, first = np.unique(self.feature[self.order], return_index=True)
        return dict(zip(found.tolist(), self.order[first].tolist(), strict=True))

    def record(self, context: int) -> dict[str, Any]:
        """Tokens and peak of one context."""
        start, stop = self.offsets[context : context + 2].tolist()
        tokens = [self.vocabulary[code] for code in self.codes[start:stop].tolist()]
        return {"tokens": tokens, "position": int(self.position[context])}

    def active(self) -> Iterator[tuple[int, list[tuple[str, float]]]]:
        """(feature, its active words with their activation), in the order of ranks and positions."""
        places = self._places()
        feature = self.feature[places.context]
        words = list(zip(self._words(places), places.value.tolist(), strict=True))
        edges = np.flatnonzero(np.diff(feature, prepend=-1, append=-1)).tolist() if len(feature) else []
        for first, last in pairwise(edges):
            yield int(feature[first]), words[first:last]

    def _words(self, places: _Places) -> Iterator[str]:
        """The whole words, or the tokens where the word would be absurdly long."""
        text = self.vocabulary
        columns = (places.start, places.stop, self.codes[places.start], self.codes[places.peak])
        for start, stop, first, peak in zip(*(column.tolist() for column in columns), strict=True):
            if stop - start == 1:
                yield text[first]
                continue
            word = "".join([text[code] for code in self.codes[start:stop].tolist()])
            yield word if len(word) <= _LONGEST_WORD else text[peak]

    def _places(self) -> _Places:
        """Words with a token at or above the floor of their feature: of several such tokens the strongest."""
        largest = np.zeros(int(self.feature.max(initial=-1)) + 1)
        np.maximum.at(largest, self.feature[self.of_token], self.values)
        largest = largest[self.feature][self.of_token]
        able = np.flatnonzero((self.values >= _ACTIVE * largest) & (largest > 0))
        start, stop = self._spans
        rank = np.empty(len(self.order), dtype=np.int64)
        rank[self.order] = np.arange(len(self.order))
        best = able[np.lexsort((able, -self.values[able], start[able], rank[self.of_token[able]]))]
        # The first of every word; a word is one by its start.
        best = best[np.diff(start[best], prepend=-1) != 0]
        return _Places(self.of_token[best], start[best], stop[best], best, self.values[best])

    @cached_property
    def _spans(self) -> tuple[np.ndarray, np.ndarray]:
        """[start, stop) of the word of every token, as `word_span` has it."""
        n = len(self.codes)
        empty, held, opens, closes = (
            np.array([of(token) for token in self.vocabulary], dtype=bool)[self.codes]
            for of in (
                lambda token: token == "",
                lambda token: bool(token.strip()),
                lambda token: token != "" and _joins(token[0]),
                lambda token: token != "" and _joins(token[-1]),
            )
        )
        touch = np.where(empty[:-1] | empty[1:], empty[1:] & held[:-1], closes[:-1] & opens[1:])
        begins = np.ones(n, dtype=bool)
        begins[1:] = ~touch | (self.of_token[1:] != self.of_token[:-1])
        starts = np.flatnonzero(begins)
        word = np.cumsum(begins) - 1
        return starts[word], np.append(starts[1:], n)[word]


def word_span(tokens: Sequence[str], position: int) -> tuple[int, int]:
    """[start, stop) of the word around `position`: neighbours are joined while letters or digits touch."""
    start, stop = position, position + 1
    while start > 0 and _touch(tokens[start - 1], tokens[start]):
        start -= 1
    while stop < len(tokens) and _touch(tokens[stop - 1], tokens[stop]):
        stop += 1
    return start, stop


def _touch(left: str, right: str) -> bool:
    """Whether two neighbouring tokens are parts of one word."""
    if left == "" or right == "":  # the rest of a character that stands in its neighbour
        return right == "" and bool(left.strip())
    return _joins(left[-1]) and _joins(right[0])


def _joins(character: str) -> bool:
    """Letters and digits of scripts that put spaces between words; parts of a character belong together."""
    return character == UNREADABLE or (character.isalnum() and ord(character) < 0x2E80)


def snippet(context: Mapping[str, Any]) -> str:
    """A few whole words around the peak of a context, with "…" where text is left out."""
    tokens = [_SPECIAL.sub("", token) for token in context["tokens"]]
    start, stop = word_span(tokens, context["position"])
    left, right = "".join(tokens[:start]).split(), "".join(tokens[stop:]).split()
    middle = "".join(tokens[start:stop])
    before, after = left[-_WORDS_BEFORE:], right[:_WORDS_AFTER]
    spaced_left = " " if "".join(tokens[:start])[-1:].isspace() or middle[:1].isspace() else ""
    spaced_right = " " if "".join(tokens[stop:])[:1].isspace() else ""
    text = " ".join(before) + spaced_left + middle.strip() + spaced_right + " ".join(after)
    text = re.sub(f"{UNREADABLE}+", UNREADABLE, text).strip()
    return ("… " if len(left) > len(before) else "") + text + (" …" if len(right) > len(after) else "")
