"""Offline glosses from what a feature fires on: no explainer, no network, the same every time.

`"sea", "ocean", "waves" — as in «… upon the open sea and …»`. Words are the whole words around the active
tokens of the top contexts, ordered by the activation they collect; tokens of T_f that no kept context shows
follow; one snippet of the top context closes. A feature without contexts is worded from the tokens it
promotes. Cost: linear in the tokens of the contexts.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from polysem.glosses.base import Gloss
from polysem.glosses.wording import MAX_WORDS, UNREADABLE, as_in, distinct, named, promotes

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
    kept = contexts.select(["feature", "rank", "position", "tokens", "values"])
    by_feature: dict[int, list[dict[str, Any]]] = {}
    for batch in kept.to_batches():
        for context in batch.to_pylist():
            by_feature.setdefault(context["feature"], []).append(context)
    glosses = []
    for row in features.select(["feature", "tokens_in_str", "tokens_out_str"]).sort_by("feature").to_pylist():
        own = sorted(by_feature.get(row["feature"], []), key=lambda context: context["rank"])
        text = _from_activations(own, row["tokens_in_str"])
        if text:
            glosses.append(Gloss(row["feature"], text, SOURCE, "active tokens"))
        elif text := promotes(row["tokens_out_str"]):
            glosses.append(Gloss(row["feature"], text, SOURCE, "promoted tokens"))
    return glosses


def _from_activations(contexts: Sequence[Mapping[str, Any]], tokens_in: Sequence[str]) -> str:
    words = active_words(contexts)
    shown = {named(word).casefold().strip('"') for word in words}
    more = [t for t in tokens_in if not any(t.strip().casefold() in word for word in shown)]
    return as_in([*words, *more], snippet(contexts[0]) if contexts else None)


def active_words(contexts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The words on which a feature is active, most activation first; forms that differ in case count as one,
    shown as first met.

    Args:
        contexts: records with tokens (list of str) and values (as many activations).
    """
    largest = max((max(c["values"], default=0.0) for c in contexts), default=0.0)
    if largest <= 0:
        return []
    collected: dict[str, float] = {}
    shown: dict[str, str] = {}
    for context in contexts:
        for position, value in _word_values(context, floor=_ACTIVE * largest):
            word = word_at(context["tokens"], position)
            key = named(word).casefold()
            shown.setdefault(key, word)
            collected[key] = collected.get(key, 0.0) + value
    order = {key: n for n, key in enumerate(shown)}
    return distinct(shown[key] for key in sorted(collected, key=lambda key: (-collected[key], order[key])))[
        :MAX_WORDS
    ]


def _word_values(context: Mapping[str, Any], *, floor: float) -> Iterator[tuple[int, float]]:
    """(position, activation) of each word at or above `floor`: of several active pieces the strongest."""
    best: dict[int, tuple[int, float]] = {}
    for position, value in enumerate(context["values"]):
        if value >= floor:
            start, _ = word_span(context["tokens"], position)
            if start not in best or value > best[start][1]:
                best[start] = (position, value)
    yield from best.values()


def word_at(tokens: Sequence[str], position: int) -> str:
    """The whole word to which a token belongs, or the token where the word would be absurdly long."""
    start, stop = word_span(tokens, position)
    word = "".join(tokens[start:stop])
    return word if len(word) <= _LONGEST_WORD else tokens[position]


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
