"""Arms: for each category, which token strings are injected. Made from the sources alone; a target is never seen.

    target        the category's own words: a ceiling
    shared        strings of interferers whose pair with a target feature passes in both sources
    source_only   ... passes in one of them only, though both features are matched
    neither       strings of matched features that pass with no target feature in either
    random        all other strings
    high, low     and others whose records name what makes them

A target feature of a category is one with an activating string of the category; an interferer is any other feature.
Within a family, and towards target and random, sets are disjoint: a string stays in the first set that claims it. What
overlapped is counted.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Int

from polysem.categories import Categories
from polysem.transfer.config import SharedConfig
from polysem.transfer.matching import Matching, match_sources
from polysem.transfer.shared import SharedStructure, passing_pairs, shared_structure
from polysem.transfer.source import SourceModel
from polysem.vocabulary import attribute
from polysem.vocabulary_transfer import TRANSFER_ARMS

OVERLAP = 0.2
"""Jaccard overlap of activating strings above which two features are one concept"""
STEM = 4
"""letters from which one word inside another counts as related"""


@dataclass(frozen=True)
class Structure:
    """What two sources share."""

    matching: Matching
    strings: tuple[list[tuple[str, ...]], list[tuple[str, ...]]]
    """of every feature of either source, the tokens that activate it, best first"""
    pieces: dict[str, tuple[str, ...]]
    """snippet -> its tokens; empty where tokens themselves are injected"""
    texts: tuple[list[tuple[str, ...]], list[tuple[str, ...]]]
    """of every feature, what is injected: its strings or its snippets"""
    pairs_a: Int[np.ndarray, "n_a 2"]
    """passing pairs of the first source, as places in the matching"""
    pairs_b: Int[np.ndarray, "n_b 2"]
    counts: SharedStructure

    def strings_of(self, places: Int[np.ndarray, " n"]) -> list[tuple[str, ...]]:
        """Of matched pairs, the strings of both features."""
        first, second = self.strings
        return [(*first[int(self.matching.a[m])], *second[int(self.matching.b[m])]) for m in places.tolist()]


@dataclass(frozen=True)
class ArmSets:
    """Strings of each arm for one category, and what overlapped before they were made disjoint."""

    category: str
    sets: dict[str, tuple[str, ...]]
    """arm -> strings, sorted"""
    overlap: dict[tuple[str, str], int]


def common_structure(
    a: SourceModel,
    b: SourceModel,
    *,
    config: SharedConfig,
    level: float,
    rng: np.random.Generator,
    snippet_tokens: int | None = None,
) -> Structure:
    """Match the features of two sources on one text and count the pairs that both have.

    Args:
        config: what counts as matched and as passing.
        snippet_tokens: length of the snippets that are injected; None injects tokens.
    """
    matching = match_sources(a, b, min_r=config.min_r, min_active=config.min_active)
    strings, passing, texts = [], [], []
    pieces: dict[str, tuple[str, ...]] = {}
    for source, features in ((a, matching.a), (b, matching.b)):
        of_source = source.strings(ratio=config.target_ratio, first=config.n_strings)
        related = related_features([of_source[f] for f in features.tolist()])
        passing.append(passing_pairs(source.directions, features, min_z=config.min_z, excluded=related))
        strings.append(of_source)
        if snippet_tokens is None:
            texts.append(of_source)
        else:
            snippets = source.snippets(width=snippet_tokens, first=config.n_strings)
            pieces |= {"".join(tokens): tokens for row in snippets for tokens in row}
            texts.append([tuple("".join(tokens) for tokens in row) for row in snippets])
    counts = shared_structure(*passing, m=matching.m, level=level, rng=rng)
    both = (strings[0], strings[1]), pieces, (texts[0], texts[1])
    return Structure(matching, *both, passing[0], passing[1], counts)


def related_features(texts: Sequence[Sequence[str]]) -> Bool[np.ndarray, "m m"]:
    """Which features fire on the same strings: Jaccard overlap above `OVERLAP`."""
    names = sorted({t for row in texts for t in row})
    place = {t: n for n, t in enumerate(names)}
    holds = np.zeros((len(texts), max(len(names), 1)), dtype=np.float32)
    for n, row in enumerate(texts):
        holds[n, [place[t] for t in row]] = 1
    both = holds @ holds.T
    size = holds.sum(axis=1)
    union = size[:, None] + size[None, :] - both
    return both > OVERLAP * np.maximum(union, 1)


def arm_sets(
    category: str,
    categories: Categories,
    sources: tuple[SourceModel, SourceModel],
    structure: Structure,
    config: SharedConfig,
) -> ArmSets:
    """The strings of every arm for one category."""
    targets = target_features(category, categories, structure)
    raw = _family(structure, targets)
    for maker in dict.fromkeys(arm.strings for arm in TRANSFER_ARMS.values() if arm.strings):
        raw |= attribute(maker)(category, categories, sources, structure, config)
    own = categories.words[category]
    usable = set(plain_texts(sources, structure))
    words = _own_texts(category, categories, structure, targets, usable)
    related = {w for t in usable for w in t.split() if is_related(w, own)}
    clean = {t for t in usable if related.isdisjoint(t.split())} - words
    raw = {arm: texts & clean for arm, texts in raw.items()}
    raw["random"] = clean - set().union(*raw.values())
    before = {"target": words, **raw}
    sets = {"target": words, "random": raw["random"]}
    taken: dict[str, set[str]] = defaultdict(set)
    for name, arm in TRANSFER_ARMS.items():
        if arm.family:
            sets[name] = raw[name] - taken[arm.family]
            taken[arm.family] |= raw[name]
    return ArmSets(
        category,
        {arm: tuple(sorted(texts)) for arm, texts in sets.items()},
        overlaps(before),
    )


def matched_arms(
    category: str, categories: Categories, structure: Structure
) -> dict[str, Int[np.ndarray, " members"]]:
    """Places of the matched pairs of each arm for one category: target (target features in both sources), shared,
    source_only, neither. Pairs of which one side alone is a target feature are in none."""
    targets = target_features(category, categories, structure)
    members = _members(structure, targets)
    matching = structure.matching
    return {"target": np.flatnonzero(targets[0][matching.a] & targets[1][matching.b]), **members}


def target_features(category: str, categories: Categories, structure: Structure) -> list[np.ndarray]:
    """By source, which features have an activating string of the category."""
    return [
        np.array(
            [any(categories.of_token(t, word_start=True) == category for t in row) for row in rows],
            dtype=bool,
        )
        for rows in structure.strings
    ]


def plain_texts(sources: tuple[SourceModel, SourceModel], structure: Structure) -> list[str]:
    """All texts that can be injected, sorted: tokens of the sources, or snippets of their features."""
    if structure.pieces:
        return sorted(t for t in structure.pieces if is_plain(t))
    return plain_tokens(sources)


def plain_tokens(sources: tuple[SourceModel, SourceModel]) -> list[str]:
    """The tokens of the sources that can be written into a prompt, sorted."""
    return sorted(
        {t for s in sources for n, t in enumerate(s.vocabulary) if n not in s.special and is_plain(t)}
    )


def _own_texts(
    category: str, categories: Categories, structure: Structure, targets: list[np.ndarray], usable: set[str]
) -> set[str]:
    """The ceiling's texts: the category's words, or snippets of its target features."""
    if not structure.pieces:
        return {t for t in usable if categories.of_token(t, word_start=True) == category}
    both = zip(structure.texts, targets, strict=True)
    return {
        t for rows, is_target in both for f in np.flatnonzero(is_target).tolist() for t in rows[f]
    } & usable


def _family(structure: Structure, targets: list[np.ndarray]) -> dict[str, set[str]]:
    """Strings of shared, source-only and neither."""
    matching = structure.matching
    return {
        arm: {
            t
            for n in members.tolist()
            for rows, feature in zip(structure.texts, (matching.a[n], matching.b[n]), strict=True)
            for t in rows[int(feature)]
        }
        for arm, members in _members(structure, targets).items()
    }


def _members(structure: Structure, targets: list[np.ndarray]) -> dict[str, Int[np.ndarray, " members"]]:
    """Places of the matched pairs of shared, source-only and neither."""
    matching = structure.matching
    is_target = targets[0][matching.a] & targets[1][matching.b]
    either = targets[0][matching.a] | targets[1][matching.b]
    passes = [_partners(pairs, is_target, matching.m) for pairs in (structure.pairs_a, structure.pairs_b)]
    common = set(map(tuple, structure.pairs_a.tolist())) & set(map(tuple, structure.pairs_b.tolist()))
    both = _partners(np.array(sorted(common), dtype=np.int64).reshape(-1, 2), is_target, matching.m)
    kinds = {
        "shared": both,
        "source_only": (passes[0] | passes[1]) & ~both,
        "neither": ~passes[0] & ~passes[1],
    }
    return {arm: np.flatnonzero(chosen & ~either) for arm, chosen in kinds.items()}


def _partners(pairs: np.ndarray, is_target: np.ndarray, m: int) -> Bool[np.ndarray, " m"]:
    """Which matched features have a passing pair with a target feature."""
    found = np.zeros(m, dtype=bool)
    i, j = pairs[:, 0], pairs[:, 1]
    found[i[is_target[j]]] = True
    found[j[is_target[i]]] = True
    return found


def is_plain(text: str) -> bool:
    """Whether a token can be written into a prompt: no half characters, no controls, not blank."""
    return bool(text.strip()) and "\ufffd" not in text and all(c.isprintable() for c in text)


def is_related(text: str, words: Mapping[str, object] | frozenset[str]) -> bool:
    """Whether a string is a word of the category or shares its stem: one holds the other, from 4 letters on."""
    bare = re.sub(r"[^\w]+", "", text.strip().casefold())
    if not bare:
        return False
    if bare in words:
        return True
    if len(bare) < STEM:
        return False
    return any(len(word) >= STEM and (bare in word or word in bare) for word in words)


def overlaps(sets: Mapping[str, Set[str]]) -> dict[tuple[str, str], int]:
    """Strings in common of every two sets, by the sets' names in order."""
    return {(a, b): len(sets[a] & sets[b]) for a, b in combinations(sets, 2)}
