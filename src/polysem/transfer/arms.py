"""Arms: for each category, which token strings are injected. Made from the sources alone; a target is never seen.

    target        the category's own words: a ceiling
    shared        strings of interferers whose pair with a target feature passes in both sources
    source_only   ... passes in one of them only, though both features are matched
    neither       strings of matched features that pass with no target feature in either
    high, low     the paper's sets: by largest cosine with a target feature, joined over the sources
    random        all other strings

A target feature of a category is one with an activating string of the category; an interferer is any other feature.
Within the first family (shared, source_only, neither), within the second (high, low), and towards target and random,
sets are disjoint: a string stays in the first set that claims it. What overlapped is counted.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from polysem.categories import Categories
from polysem.transfer.config import SharedConfig
from polysem.transfer.matching import Matching, match_features, max_by_segment, segments
from polysem.transfer.paper import PaperSets, join_sets, overlaps, paper_sets
from polysem.transfer.shared import SharedStructure, passing_pairs, shared_structure
from polysem.transfer.source import Source

OVERLAP = 0.2
"""Jaccard overlap of activating strings above which two features are one concept"""
STEM = 4
"""letters from which one word inside another counts as related"""
_FAMILIES = (("shared", "source_only", "neither"), ("high", "low"))


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


@dataclass(frozen=True)
class ArmSets:
    """Strings of each arm for one category, and what overlapped before they were made disjoint."""

    category: str
    sets: dict[str, tuple[str, ...]]
    """arm -> strings, sorted"""
    overlap: dict[tuple[str, str], int]
    n_target_features: tuple[int, int]


def common_structure(
    a: Source,
    b: Source,
    *,
    config: SharedConfig,
    level: float,
    rng: np.random.Generator,
    snippet_tokens: int | None = None,
) -> Structure:
    """Match the features of two sources on one text and count the pairs that both have.

    Args:
        a: first source.
        b: second.
        config: what counts as matched and as passing.
        level: of intervals.
        rng: for permuted matchings.
        snippet_tokens: length of the snippets that are injected; None injects tokens.
    """
    in_a, in_b, n = segments(a.ends, b.ends)
    matching = match_features(
        max_by_segment(a.acts, in_a, n),
        max_by_segment(b.acts, in_b, n),
        min_r=config.min_r,
        min_active=config.min_active,
    )
    strings = tuple(s.strings(ratio=config.target_ratio, first=config.n_strings) for s in (a, b))
    passing = [
        passing_pairs(
            source.directions,
            features,
            min_z=config.min_z,
            excluded=related_features([texts[f] for f in features.tolist()]),
        )
        for source, features, texts in zip((a, b), (matching.a, matching.b), strings, strict=True)
    ]
    counts = shared_structure(passing[0], passing[1], m=matching.m, level=level, rng=rng)
    pieces, texts = {}, (strings[0], strings[1])
    if snippet_tokens is not None:
        pieces, texts = _snippets((a, b), width=snippet_tokens, first=config.n_strings)
    return Structure(matching, (strings[0], strings[1]), pieces, texts, passing[0], passing[1], counts)


def _snippets(
    sources: tuple[Source, Source], *, width: int, first: int
) -> tuple[dict[str, tuple[str, ...]], tuple[list[tuple[str, ...]], list[tuple[str, ...]]]]:
    """(snippet -> its tokens, snippets of every feature of either source)."""
    pieces: dict[str, tuple[str, ...]] = {}
    texts: list[list[tuple[str, ...]]] = []
    for source in sources:
        of_source = source.snippets(width=width, first=first)
        pieces |= {"".join(tokens): tokens for row in of_source for tokens in row}
        texts.append([tuple("".join(tokens) for tokens in row) for row in of_source])
    return pieces, (texts[0], texts[1])


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
    sources: tuple[Source, Source],
    structure: Structure,
    config: SharedConfig,
) -> ArmSets:
    """The strings of every arm for one category."""
    targets = _target_features(category, categories, structure)
    raw = _family(structure, targets)
    papers = [
        _paper(source, rows, is_target, category, categories, config)
        for source, rows, is_target in zip(sources, structure.texts, targets, strict=True)
    ]
    joined = join_sets(papers, how=config.join)
    raw |= {"high": set(joined.high), "low": set(joined.medium)}
    own = categories.words[category]
    usable = set(plain_texts(sources, structure))
    words = _own_texts(category, categories, structure, targets, usable)
    related = {w for t in usable for w in t.split() if is_related(w, own)}
    clean = {t for t in usable if related.isdisjoint(t.split())} - words
    raw = {arm: texts & clean for arm, texts in raw.items()}
    raw["random"] = clean - set().union(*raw.values())
    before = {"target": frozenset(words), **{arm: frozenset(texts) for arm, texts in raw.items()}}
    sets = {"target": words, "random": raw["random"]}
    for family in _FAMILIES:
        taken: set[str] = set()
        for arm in family:
            sets[arm] = raw[arm] - taken
            taken |= raw[arm]
    return ArmSets(
        category,
        {arm: tuple(sorted(texts)) for arm, texts in sets.items()},
        overlaps(before),
        (int(targets[0].sum()), int(targets[1].sum())),
    )


def matched_arms(
    category: str, categories: Categories, structure: Structure
) -> dict[str, Int[np.ndarray, " members"]]:
    """Places of the matched pairs of each arm for one category: target (target features in both sources), shared,
    source_only, neither. Pairs of which one side alone is a target feature are in none."""
    targets = _target_features(category, categories, structure)
    members = _members(structure, targets)
    matching = structure.matching
    return {"target": np.flatnonzero(targets[0][matching.a] & targets[1][matching.b]), **members}


def _target_features(category: str, categories: Categories, structure: Structure) -> list[np.ndarray]:
    """By source, which features have an activating string of the category."""
    return [
        np.array(
            [any(categories.of_token(t, word_start=True) == category for t in row) for row in rows],
            dtype=bool,
        )
        for rows in structure.strings
    ]


def plain_texts(sources: tuple[Source, Source], structure: Structure) -> list[str]:
    """All texts that can be injected, sorted: tokens of the sources, or snippets of their features."""
    if structure.pieces:
        return sorted(t for t in structure.pieces if is_plain(t))
    return sorted(
        {t for s in sources for n, t in enumerate(s.vocabulary) if n not in s.special and is_plain(t)}
    )


def _own_texts(
    category: str, categories: Categories, structure: Structure, targets: list[np.ndarray], usable: set[str]
) -> set[str]:
    """The ceiling's texts: the category's words, or snippets of its target features."""
    if not structure.pieces:
        return {t for t in usable if categories.of_token(t, word_start=True) == category}
    found = {
        t
        for rows, is_target in zip(structure.texts, targets, strict=True)
        for f in np.flatnonzero(is_target).tolist()
        for t in rows[f]
    }
    return found & usable


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
    both = np.zeros(matching.m, dtype=bool)
    code_a, code_b = (
        {(int(i), int(j)) for i, j in pairs} for pairs in (structure.pairs_a, structure.pairs_b)
    )
    for i, j in code_a & code_b:
        both[i] |= is_target[j]
        both[j] |= is_target[i]
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


def _paper(
    source: Source,
    strings: list[tuple[str, ...]],
    is_target: np.ndarray,
    category: str,
    categories: Categories,
    config: SharedConfig,
) -> PaperSets:
    """The paper's sets of one source: every interferer by its largest cosine with a target feature."""
    norms = np.linalg.norm(source.directions, axis=1, keepdims=True)
    unit = source.directions / np.where(norms > 0, norms, 1.0)
    largest = (unit @ unit[is_target].T).max(axis=1) if is_target.any() else np.zeros(len(unit))
    value = {n: float(largest[n]) for n in np.flatnonzero(~is_target).tolist() if strings[n]}
    return paper_sets(
        value=value,
        strings=dict(enumerate(strings)),
        target={t for t in source.vocabulary if categories.of_token(t, word_start=True) == category},
        vocabulary=source.vocabulary,
        high=config.high,
        medium=config.medium,
        first=config.n_strings,
    )


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


def overlap_rows(sets: ArmSets) -> list[tuple[str, str, int]]:
    """(arm, arm, strings in common before sets were made disjoint)."""
    return [(a, b, n) for (a, b), n in sets.overlap.items()]
