"""Snippets: the tokens on which a feature fires, and other tokens alike in form and frequency.

Frequencies are counts over the contexts of the feature table, the only text that a plan has at hand. They favour
words that some feature fires on, for snippets and matches alike.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

N_LEVELS = 5
"""levels of frequency inside which tokens are alike"""


class Form(NamedTuple):
    """What a match has in common with a token."""

    leading_space: bool
    alphabetic: bool
    capitalised: bool
    ascii: bool
    level: int


class FiringContext(NamedTuple):
    """A text that activates a feature."""

    token_ids: list[int]
    position: int
    """of the largest activation"""
    values: tuple[float, ...] = ()
    """activation on each token"""

    def firing(self, ratio: float) -> list[int]:
        """Positions with an activation of at least `ratio` times the largest; that of the largest alone where no
        activation is known."""
        if len(self.values) != len(self.token_ids):
            return [self.position]
        largest = self.values[self.position]
        return [k for k, value in enumerate(self.values) if value >= ratio * largest]


class StoredContexts(Mapping[int, list[FiringContext]]):
    """The contexts of every feature of some rows of CONTEXTS, best first, made when they are asked for: the texts of a wide
    dictionary are half a gigabyte as Python objects, and a plan reads those of a few hundred features."""

    def __init__(self, contexts: pa.Table):
        """Of one SAE, in any order."""
        feature, rank = (contexts[name].to_numpy() for name in ("feature", "rank"))
        self._table = contexts.select(["token_ids", "position", "values"])
        self._order = np.lexsort((rank, feature))
        self._features, first = np.unique(feature[self._order], return_index=True)
        self._bounds = np.append(first, len(feature))

    def __getitem__(self, feature: int) -> list[FiringContext]:
        place = int(np.searchsorted(self._features, feature))
        if place == len(self._features) or self._features[place] != feature:
            raise KeyError(feature)
        rows = self._order[self._bounds[place] : self._bounds[place + 1]].tolist()
        found = (self._table.slice(row, 1).to_pylist()[0] for row in rows)
        return [FiringContext(row["token_ids"], row["position"], tuple(row["values"] or ())) for row in found]

    def __iter__(self) -> Iterator[int]:
        return iter(self._features.tolist())

    def __len__(self) -> int:
        return len(self._features)


@dataclass(frozen=True)
class Contexts:
    """The top contexts of one SAE's features that come with token ids, best first."""

    by_feature: Mapping[int, list[FiringContext]]
    strings: Mapping[int, str]
    counts: Mapping[int, int]

    @classmethod
    def of(cls, label: str, contexts: pa.Table | None) -> "Contexts":
        """From CONTEXTS; empty where there is no such table."""
        if contexts is None:
            return cls({}, {}, {})
        of_label = pc.equal(contexts["sae"], label)
        own = contexts if pc.all(of_label).as_py() else contexts.filter(of_label)
        # a source that gives only strings, or other ones, is left out
        length, n_texts = (pc.list_value_length(own[name]) for name in ("token_ids", "tokens"))
        whole = pc.and_(pc.equal(length, n_texts), pc.greater(length, 0))
        own = own if pc.all(whole).as_py() else own.filter(whole)
        ids = pc.list_flatten(own["token_ids"]).to_numpy()
        counts = np.bincount(ids) if len(ids) else np.empty(0, np.int64)
        last = np.zeros(len(counts), np.int64)
        last[ids] = np.arange(len(ids))  # where an index comes twice, numpy keeps the later value
        seen = np.flatnonzero(counts)
        texts = pc.list_flatten(own["tokens"]).take(pa.array(last[seen])).to_pylist()
        strings = dict(zip(seen.tolist(), texts, strict=True))
        return cls(StoredContexts(own), strings, dict(zip(seen.tolist(), counts[seen].tolist(), strict=True)))

    @cached_property
    def _forms(self) -> dict[int, Form]:
        ids = sorted(self.strings)
        log_count = np.log([self.counts[i] for i in ids]) if ids else np.empty(0)
        edges = np.quantile(log_count, np.linspace(0, 1, N_LEVELS + 1)[1:-1]) if ids else np.empty(0)
        levels = np.searchsorted(edges, log_count, side="right")
        return {i: _form(self.strings[i], int(level)) for i, level in zip(ids, levels, strict=True)}

    @cached_property
    def _alike(self) -> dict[Form, list[int]]:
        groups: dict[Form, list[int]] = {}
        for token, form in self._forms.items():
            groups.setdefault(form, []).append(token)
        return groups

    def top_tokens(self, feature: int, n: int, *, ratio: float) -> list[int]:
        """Up to `n` tokens by their largest activation in the feature's contexts, best first, those with at least `ratio`
        times the largest."""
        best: dict[int, float] = {}
        for context in self.by_feature.get(feature, []):
            if len(context.values) == len(context.token_ids):
                for token, value in zip(context.token_ids, context.values, strict=True):
                    best[token] = max(value, best.get(token, value))
        order = sorted(best, key=lambda token: (-best[token], token))
        return [token for token in order if best[token] >= ratio * best[order[0]]][:n]

    def snippet(self, feature: int, n: int, *, without: Iterable[int]) -> list[int] | None:
        """`n` tokens up to and with the peak of the best context that holds none of `without`; None if there is no
        such context."""
        avoided = set(without)
        for context in self.by_feature.get(feature, []):
            ids = context.token_ids[max(0, context.position - n + 1) : context.position + 1]
            if len(ids) == n and not avoided & set(ids):
                return ids
        return None

    def match(
        self, tokens: Sequence[int], rng: np.random.Generator, *, without: Iterable[int]
    ) -> list[int] | None:
        """Other tokens, each alike in form and level of frequency to the one in its place; None if one has no like."""
        avoided = {*without, *tokens}
        found: list[int] = []
        for token in tokens:
            alike = [t for t in self._alike[self._forms[token]] if t not in avoided]
            if not alike:
                return None
            found.append(alike[int(rng.integers(len(alike)))])
        return found


def _form(text: str, level: int) -> Form:
    bare = text.strip()
    return Form(
        leading_space=text[:1].isspace(),
        alphabetic=bare.isalpha(),
        capitalised=bare[:1].isupper(),
        ascii=bare.isascii(),
        level=level,
    )
