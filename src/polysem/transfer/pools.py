"""Pools of strings, and reference pools that are matched to them.

A treated pool is a random draw from an arm's strings. A reference pool has, for every treated string, another one that
was drawn at random from those nearest to it: of the same kind (space in front, letters, script), and close in capitals,
tokens of the target's tokenizer, length, log frequency, cosine with the category's words (leakage), and part of speech as
far as the form tells it (function words; -ing, -ed; -ly). Reference pools
are drawn from all plain strings but the arm's own, the category's words and their kin, and the arms that a category's
words are expected to reach (shared, high).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from polysem.errors import ConfigError
from polysem.seeds import rng_for

COVARIATES = (
    "capital",
    "n_tokens",
    "length",
    "log_frequency",
    "leakage",
    "function_word",
    "verbal",
    "adverbial",
)
N_CLASSES = 3
"""word classes, the last of the covariates"""
_FUNCTION_WORDS = (
    "a about above after again against all also am an and any are as at be because been before being below between both "
    "but by can could did do does down during each few for from further had has have he her here hers him his how i if in "
    "into is it its just may me might more most must my no nor not now of off on once only or other our out over own "
    "shall she should so some such than that the their them then there these they this those through to too under until "
    "up upon very was we were what when where which while who whom why will with would yet you your"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""closed classes; with endings they stand for parts of speech, since a tagger would be one more dependency"""


@dataclass(frozen=True)
class Universe:
    """All strings that may stand in a prompt, with what they are matched on."""

    strings: tuple[str, ...]
    kind: Int[np.ndarray, " n"]
    """matched exactly: space in front, all letters, ASCII"""
    covariates: Float[np.ndarray, "n k"]
    """standardised over the universe, in the order of COVARIATES"""

    @property
    def place(self) -> dict[str, int]:
        return {text: n for n, text in enumerate(self.strings)}


@dataclass(frozen=True)
class Pools:
    """The pools of one arm and category."""

    arm: str
    category: str
    treated: tuple[tuple[str, ...], ...]
    reference: tuple[tuple[str, ...], ...]
    imbalance: dict[str, float]
    """covariate -> difference of means, treated minus reference, in standard deviations of the universe"""


def universe(
    strings: Sequence[str],
    *,
    frequency: Mapping[str, float | int],
    leakage: Float[np.ndarray, " n"],
    count_tokens: Callable[[str], int | None],
) -> Universe:
    """The strings with their kinds and covariates.

    Args:
        strings: distinct, plain.
        frequency: occurrences in a text; absent is 0.
        leakage: cosine of each with the category's words; zeros where it is not measured.
        count_tokens: tokens in the target's tokenizer; None where it is unknown, then all count 1.
    """
    kinds = [(t[0].isspace(), t.strip().isalpha(), t.isascii()) for t in strings]
    number = {kind: n for n, kind in enumerate(sorted(set(kinds)))}
    raw = np.array(
        [
            [
                float(t.strip()[:1].isupper()),
                float(count_tokens(t) or 1),
                float(len(t.strip())),
                math.log1p(frequency.get(t, 0)),
                float(leak),
                *word_class(t),
            ]
            for t, leak in zip(strings, leakage.tolist(), strict=True)
        ]
    ).reshape(len(strings), len(COVARIATES))
    spread = raw.std(axis=0) if len(raw) else np.ones(len(COVARIATES))
    # A rare class has a small spread; divided by it, its few strings would be matched on the class and on nothing else.
    spread[-N_CLASSES:] = np.maximum(spread[-N_CLASSES:], 0.5)
    scaled = (raw - raw.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return Universe(tuple(strings), np.array([number[kind] for kind in kinds], dtype=np.int64), scaled)


def word_class(text: str) -> tuple[float, float, float]:
    """(function word, verbal ending, adverbial ending) of a string, each 0 or 1."""
    bare = text.strip().casefold()
    return (
        float(bare in FUNCTION_WORDS),
        float(len(bare) > 4 and bare.endswith(("ing", "ed"))),
        float(len(bare) > 4 and bare.endswith("ly")),
    )


def make_pools(
    arm: str,
    category: str,
    members: Sequence[str],
    *,
    among: Universe,
    barred: frozenset[str],
    size: int,
    n_treated: int,
    n_reference: int,
    nearest: int,
    seed: int,
) -> Pools:
    """Treated pools of an arm, and reference pools matched to the treated ones in turn.

    Args:
        arm: whose strings.
        category: of the readout.
        members: the arm's strings, all in the universe.
        among: where reference strings come from.
        barred: strings that may not be in a reference pool.
        size: strings of a pool; fewer where the arm has fewer.
        n_treated: treated pools; they have no string in common, so fewer where the arm is small.
        n_reference: reference pools; 0 for an arm that is not tested.
        nearest: a reference string is drawn among so many.

    Raises:
        ConfigError: if pools cannot be matched: too few strings of a kind.
    """
    rng = rng_for(seed, "treated", arm, category)
    shuffled = pick(members, len(members), rng=rng)
    size = min(size, len(shuffled))
    n_treated = max(1, min(n_treated, len(shuffled) // max(size, 1)))
    treated = tuple(tuple(shuffled[n * size : (n + 1) * size]) for n in range(n_treated))
    if not n_reference:
        return Pools(arm, category, treated, (), {})
    near = _nearest(treated, among, barred | frozenset(members), nearest, f"{arm}, {category}")
    reference = tuple(
        _draw(treated[k % n_treated], near, among, rng_for(seed, "reference", arm, category, k))
        for k in range(n_reference)
    )
    return Pools(arm, category, treated, reference, _imbalance(treated, reference, among))


def _nearest(
    treated: tuple[tuple[str, ...], ...], among: Universe, barred: frozenset[str], nearest: int, what: str
) -> dict[str, Int[np.ndarray, " near"]]:
    """For each treated string the places of the nearest candidates of its kind, nearest first."""
    place = among.place
    free = np.array([text not in barred for text in among.strings], dtype=bool)
    found: dict[str, np.ndarray] = {}
    wanted: dict[int, int] = {}
    for text in treated[0]:
        wanted[int(among.kind[place[text]])] = wanted.get(int(among.kind[place[text]]), 0) + 1
    for text in (t for pool in treated for t in pool):
        at = place[text]
        candidates = np.flatnonzero(free & (among.kind == among.kind[at]))
        need = max(wanted.get(int(among.kind[at]), 0) + 1, 2)
        if len(candidates) < need:
            raise ConfigError(
                f"{what}: pools cannot be matched: {len(candidates)} free strings are of the kind of {text!r} "
                f"(space in front, letters, script), expected at least {need}",
                hint="lower pools.size, or take sources with a larger vocabulary",
            )
        distance = np.linalg.norm(among.covariates[candidates] - among.covariates[at], axis=1)
        # As many more than `nearest` as other treated strings may take first.
        found[text] = candidates[np.argsort(distance, kind="stable")[: nearest + need]]
    return found


def _draw(
    pool: tuple[str, ...], near: Mapping[str, np.ndarray], among: Universe, rng: np.random.Generator
) -> tuple[str, ...]:
    """One reference pool: a different near string for each treated one, in random order of choice."""
    taken: set[int] = set()
    chosen: dict[str, str] = {}
    for n in rng.permutation(len(pool)).tolist():
        free = [c for c in near[pool[n]].tolist() if c not in taken]
        if not free:
            raise ConfigError(
                f"pools cannot be matched: all {len(near[pool[n]])} strings near {pool[n]!r} are taken",
                hint="raise pools.nearest or lower pools.size",
            )
        at = free[int(rng.integers(0, max(1, min(len(free), len(near[pool[n]]) // 2))))]
        taken.add(at)
        chosen[pool[n]] = among.strings[at]
    return tuple(chosen[text] for text in pool)


def _imbalance(
    treated: tuple[tuple[str, ...], ...], reference: tuple[tuple[str, ...], ...], among: Universe
) -> dict[str, float]:
    place = among.place
    means = [
        among.covariates[[place[t] for pool in pools for t in pool]].mean(axis=0)
        for pools in (treated, reference)
    ]
    return dict(zip(COVARIATES, (means[0] - means[1]).tolist(), strict=True))


def pick(pool: Sequence[str], n: int, *, rng: np.random.Generator) -> list[str]:
    """n strings of a pool without replacement, in random order."""
    order: list[int] = rng.permutation(len(pool)).tolist()
    return [pool[k] for k in order[:n]]
