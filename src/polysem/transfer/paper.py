"""The paper's own definitions and test (arXiv 2505.11611, section 4 and Tables 1 and 5), and what they are worth.

Sets: an interferer's value is its largest interference with a target feature; high is value >= a threshold, medium the
rest above 0.2; strings in both go from both; random is the vocabulary without target, high and medium as they were
before that. Two models are joined by the union of their sets (as released) or by the intersection. Test: Welch's t on
0/1 trials, as if trials were independent. `inflation` says how often that rejects where nothing is there.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from polysem.errors import ConfigError

Join = Literal["union", "intersection"]
MEDIUM = 0.2
"""least interference of the medium set"""


@dataclass(frozen=True)
class Welch:
    """A difference of means with Welch's test."""

    difference: float
    t: float
    df: float
    p: float
    """two-sided; 1 where both samples are constant and equal"""


def welch(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n2"], *, design_effect: float = 1.0) -> Welch:
    """Welch's t of mean(a) - mean(b); variances are multiplied by `design_effect`.

    Args:
        a: trials of one arm; 0 or 1 for success.
        b: trials of the other.
        design_effect: variance of a mean over that of as many independent trials.

    Raises:
        ConfigError: with fewer than two trials in an arm.
    """
    if min(len(a), len(b)) < 2:
        raise ConfigError(f"Welch's test needs two trials in each arm, got {len(a)} and {len(b)}")
    va, vb = design_effect * a.var(ddof=1) / len(a), design_effect * b.var(ddof=1) / len(b)
    return _welch(float(a.mean() - b.mean()), float(va), float(vb), len(a), len(b))


def welch_of_rates(rate: float, other: float, *, n: int, design_effect: float = 1.0) -> Welch:
    """Welch's t of two success rates (in [0, 1]) from n trials each."""
    va, vb = (design_effect * r * (1 - r) / (n - 1) for r in (rate, other))
    return _welch(rate - other, va, vb, n, n)


def _welch(difference: float, va: float, vb: float, na: int, nb: int) -> Welch:
    from scipy import stats

    if va + vb == 0:
        equal = difference == 0
        return Welch(
            difference, 0.0 if equal else math.copysign(math.inf, difference), math.nan, float(equal)
        )
    t = difference / math.sqrt(va + vb)
    df = (va + vb) ** 2 / (va**2 / (na - 1) + vb**2 / (nb - 1))
    return Welch(difference, t, df, float(2 * stats.t.sf(abs(t), df)))


def inflation(
    *,
    sentences: int,
    trials: int,
    sentence_sd: float,
    pool_sd: float,
    rate: float,
    worlds: int,
    rng: np.random.Generator,
) -> float:
    """How often Welch's test on trials rejects at 0.05 where both arms are of one kind.

    Args:
        sentences: per arm, the same in both.
        trials: per sentence and arm.
        sentence_sd: spread over sentences of an arm's effect on log-odds.
        pool_sd: spread over pools; each arm has drawn one.
        rate: typical success rate.
        worlds: simulated.
        rng: draws them.
    """
    centre = math.log(rate / (1 - rate))
    rejected = 0
    for _ in range(worlds):
        common = rng.normal(0, sentence_sd, sentences)
        arms = []
        for _ in range(2):
            z = centre + common + rng.normal(0, sentence_sd, sentences) + rng.normal(0, pool_sd)
            hits = rng.binomial(trials, 1 / (1 + np.exp(-z))).sum()
            arms.append(hits / (sentences * trials))
        rejected += welch_of_rates(arms[0], arms[1], n=sentences * trials).p <= 0.05
    return rejected / worlds


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given."""
    order = np.argsort(p, kind="stable")
    adjusted, worst = np.empty(len(p)), 0.0
    for rank, n in enumerate(order.tolist()):
        worst = max(worst, min(1.0, (len(p) - rank) * p[n]))
        adjusted[n] = worst
    return adjusted.tolist()


def sign_test(values: Iterable[float]) -> tuple[int, int, float]:
    """(positive, not zero, exact two-sided p) of how many values are above zero."""
    from scipy import stats

    kept = [v for v in values if v != 0]
    positive = sum(v > 0 for v in kept)
    return positive, len(kept), float(stats.binomtest(positive, len(kept)).pvalue) if kept else 1.0


@dataclass(frozen=True)
class PaperSets:
    """Token strings of one category, of one model or of several."""

    target: frozenset[str]
    high: frozenset[str]
    medium: frozenset[str]
    random: frozenset[str]


def paper_sets(
    *,
    value: Mapping[int, float],
    strings: Mapping[int, Sequence[str]],
    target: Iterable[str],
    vocabulary: Iterable[str],
    high: float,
    medium: float = MEDIUM,
    first: int = 10,
) -> PaperSets:
    """The paper's sets of one model.

    Args:
        value: interferer -> its largest interference with a target feature (cosine).
        strings: interferer -> its activating token strings, best first.
        target: strings of the category.
        vocabulary: all strings of the tokenizer.
        high: threshold of the high set.
        medium: threshold of the medium set.
        first: strings taken of each interferer.
    """
    above, below = set(), set()
    for feature, size in value.items():
        if size >= medium:
            (above if size >= high else below).update(strings[feature][:first])
    goal = frozenset(target)
    rest = frozenset(vocabulary) - goal - above - below
    return PaperSets(goal, frozenset(above - below), frozenset(below - above), rest)


def join_sets(sets: Sequence[PaperSets], *, how: Join) -> PaperSets:
    """The sets of several models as one: all strings of any, or those of all."""
    join = frozenset.union if how == "union" else frozenset.intersection
    names = ("target", "high", "medium", "random")
    return PaperSets(*(join(*(getattr(s, name) for s in sets)) for name in names))


def overlaps(sets: Mapping[str, frozenset[str]]) -> dict[tuple[str, str], int]:
    """Strings in common of every two sets, by the sets' names in order."""
    names = list(sets)
    return {(a, b): len(sets[a] & sets[b]) for n, a in enumerate(names) for b in names[n + 1 :]}
