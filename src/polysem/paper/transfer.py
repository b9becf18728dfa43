"""The paper's own definitions and test (arXiv 2505.11611, section 4 and Tables 1 and 5), and what they are worth.

Sets: an interferer's value is its largest interference with a target feature; high is value >= a threshold, medium the
rest above 0.2; strings in both go from both; random is the vocabulary without target, high and medium as they were
before that. Two models are joined by the union of their sets (as released) or by the intersection. Test: `welch.py`. The arms high
and low, the contrast welch and the preset of a transfer study are made here; `vocabulary_transfer` says so.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from polysem.categories import Categories
from polysem.geometry.unit import unit_rows
from polysem.paper.welch import inflation, welch_of_rates
from polysem.seeds import rng_for
from polysem.transfer.arms import Structure, target_features
from polysem.transfer.config import SharedConfig
from polysem.transfer.effects import FrameEffects, TransferCell
from polysem.transfer.source import SourceModel

Join = Literal["union", "intersection"]
MEDIUM = 0.2
"""least interference of the medium set"""
PRESET: dict[str, dict[str, Any]] = {
    "pools": {
        "n_tokens": 30, "size": 100_000, "arms": ["target", "high", "low", "random"], "leakage": "none", "draws": 100,
        "reference_draws": 1, "n_random": 1,
    },
    "categories": {"n_sentences": 100},
    "shared": {"high": 0.5, "medium": 0.2, "join": "union"},
    "test": {"success_k": 30},
}  # fmt: skip
"""30 strings, top 30, 100 sentences x 100 draws, union of the models' sets, by section of a transfer study"""


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


def paper_arms(
    category: str,
    categories: Categories,
    sources: Sequence[SourceModel],
    structure: Structure,
    config: SharedConfig,
) -> dict[str, set[str]]:
    """Strings of the arms high and low: every interferer by its largest cosine with a target feature, sources joined."""
    found = []
    targets = target_features(category, categories, structure)
    for source, strings, is_target in zip(sources, structure.texts, targets, strict=True):
        unit = unit_rows(source.directions)
        largest = (unit @ unit[is_target].T).max(axis=1) if is_target.any() else np.zeros(len(unit))
        words = {t for t in source.vocabulary if categories.of_token(t, word_start=True) == category}
        found.append(
            paper_sets(
                value={n: float(largest[n]) for n in np.flatnonzero(~is_target).tolist() if strings[n]},
                strings=dict(enumerate(strings)),
                target=words,
                vocabulary=source.vocabulary,
                high=config.high,
                medium=config.medium,
                first=config.n_strings,
            )
        )
    joined = join_sets(found, how=config.join)
    return {"high": set(joined.high), "low": set(joined.medium)}


def welch_row(frame: FrameEffects, arm: str, cell: TransferCell) -> dict[str, object] | None:
    """The effect `welch` of an arm: the first treated pool's trials against the random arm's; None without that arm."""
    random = frame.cells.get("random", {}).get(cell.category)
    if arm == "random" or random is None:
        return None
    ours, theirs = cell.where(True, "up")[:1], random.where(True, "up")[:1]
    row = frame.row("welch", arm, cell, n_treated=1, n_reference=1)
    if np.isnan(ours).any() or np.isnan(theirs).any() or min(ours.size, theirs.size) < 2:
        return row | {"note": "not told: too few log-probabilities or trials"}
    # Trials, as the paper has them: cells hold means over draws.
    draws = frame.study.pools.draws
    found = welch_of_rates(float(ours.mean()), float(theirs.mean()), n=ours.size * draws)
    pool_sd, sentence_sd = _spreads(cell, random)
    wrong = inflation(
        sentences=ours.shape[1],
        trials=draws,
        sentence_sd=sentence_sd,
        pool_sd=pool_sd,
        rate=min(max(float(theirs.mean()), 0.05), 0.95),
        worlds=400,
        rng=rng_for(frame.study.seed, "inflation", arm, cell.category),
    )
    note = (
        f"trials taken as independent: rejects in {100 * wrong:.0f} % of simulated worlds without any effect"
    )
    shown = {"treated": float(ours.mean()), "reference": float(theirs.mean()), "estimate": found.difference}
    return row | shown | {"p": found.p, "note": note}


def _spreads(cell: TransferCell, random: TransferCell) -> tuple[float, float]:
    """(pools, sentences): standard deviations on log-odds, of the study's own data where it has them, else 0.5 and 0.4.

    Pools: of the reference pools' means. Sentences: of the arm's effect on one sentence; an effect is a difference of two
    arms, so that of the differences is larger by the square root of two.
    """
    reference = cell.where(False, "logodds")
    known = np.isfinite(cell.values["logodds"]).all()  # not where truncation leaves nothing to be measured
    pool_sd = float(reference.mean(axis=1).std(ddof=1)) if known and len(reference) > 1 else 0.5
    apart = cell.where(True, "logodds").mean(axis=0) - random.where(True, "logodds").mean(axis=0)
    sentence_sd = float(apart.std(ddof=1)) / math.sqrt(2) if known and len(apart) > 1 else 0.4
    return pool_sd, sentence_sd
