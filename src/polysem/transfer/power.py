"""What a budget buys: the smallest change of log-odds that a transfer study would show, by category, before it is paid for.

A pool's mean over sentences varies by what the pool is (its potency) and by single answers: s^2 = pool^2 + answer^2 / answers.
The threshold is that of the max-T rank test, so an effect is shown in POWER_WANTED of such studies if it exceeds it by
as much. Spreads are those of kept answers of the same target, where there are enough, else those measured on the zoo.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float

from polysem.errors import StoreError
from polysem.seeds import rng_for
from polysem.stats.arms import equals
from polysem.stats.power import POWER_WANTED
from polysem.stats.units import MIN_REFERENCE, cell_means, spending
from polysem.store import io
from polysem.store.tables import TRANSFER_TRIALS
from polysem.transfer.config import TESTED
from polysem.transfer.prepare import PreparedTransfer

_DRAWS = 4_000
_LEAST_POOLS = 10
"""pools from which a spread is taken"""


@dataclass(frozen=True)
class PoolSpread:
    """Standard deviations of changes of log-odds, in nats."""

    pool: float
    """of pools around each other"""
    answer: float
    """of one answer around its pool and sentence"""

    def of_mean(self, n_answers: int) -> float:
        """Of a pool's mean over so many answers."""
        return float(np.sqrt(self.pool**2 + self.answer**2 / n_answers))


PILOT = PoolSpread(pool=0.07, answer=0.18)
"""Medians over five categories of 29 reference pools and 8 sentences, zoo:gpt2 and zoo:neox into zoo:llama (pools 0.04 to
0.21, answers 0.13 to 0.27)."""


def smallest_effect(
    *, n_treated: int, n_categories: int, looks: Sequence[int], level: float, rng: np.random.Generator
) -> float:
    """The effect that is shown with probability POWER_WANTED, in standard deviations of pool means; inf where none is.

    Args:
        n_categories: over which p values are adjusted; taken to be independent, which asks for a little more than is needed.
        looks: numbers of reference pools at which the test is looked at; the last is all of them.
    """
    from scipy.special import ndtri

    alpha, n = 1 - level, looks[-1]
    # largest of the categories' statistics, of every reference pool
    largest = ndtri(rng.random((_DRAWS, n)) ** (1 / n_categories))
    threshold = np.full(_DRAWS, np.inf)
    for reached, share in zip(looks, spending(looks).tolist(), strict=True):
        if n_treated == 1:
            rank = int(np.floor(alpha * share * (reached + 1) + 1e-9))
            if rank:
                kth = np.partition(largest[:, :reached], reached - rank, axis=1)[:, reached - rank]
                threshold = np.minimum(threshold, kth)
        else:
            spread = np.sqrt(1 / n_treated + 1 / reached)
            threshold = np.minimum(threshold, spread * ndtri((1 - alpha * share) ** (1 / n_categories)))
    # The spread that statistics are divided by holds the treated pools, too: an effect widens it.
    part = threshold**2 * n_treated * n / ((n_treated + n) * (n_treated + n - 1))
    if not np.isfinite(part).all() or np.quantile(part, POWER_WANTED) >= 1:
        return float("inf")
    needed = threshold / np.sqrt(np.clip(1 - part, 1e-9, None))
    noise = rng.normal(0, np.sqrt(1 / n_treated), _DRAWS)
    return float(np.quantile(needed - noise, POWER_WANTED))


def kept_spreads(folder: Path, name: str) -> dict[str, PoolSpread]:
    """Spreads by category of a target, from the parts of its trials that are kept in a folder; empty without."""
    by_category: dict[str, list[pa.Table]] = {}
    for path in sorted(folder.glob("*.parquet")):
        try:
            part = io.read_table(path, TRANSFER_TRIALS, rebuild="")
        except StoreError:
            continue  # of another version: it is asked again anyway
        part = part.filter(pc.equal(part["target"], name))
        for category in part["category"].unique().to_pylist():
            by_category.setdefault(category, []).append(part.filter(pc.equal(part["category"], category)))
    found = {
        category: spread_of(pa.concat_tables(parts), category) for category, parts in by_category.items()
    }
    return {category: spread for category, spread in found.items() if spread is not None}


def spread_of(trials: pa.Table, category: str) -> PoolSpread | None:
    """The spread of a category's pools and answers, from its reference and random pools; None from too few.

    Args:
        trials: TRANSFER_TRIALS of one target and category.
        category: whose log-odds.
    """
    own = trials["categories"][0].as_py().index(category)
    free = trials.filter(pc.or_(pc.less(trials["pool"], 0), pc.equal(trials["arm"], "random")))
    squares: list[tuple[int, float, float]] = []
    names = ["arm", "template", "position"]
    for key in free.select(names).group_by(names).aggregate([]).to_pylist():
        rows = free.filter(equals(free, **key))
        values = np.array([row[own] for row in rows["logodds"].to_pylist()], dtype=np.float64)
        pools, at = np.unique(rows["pool"].to_numpy(), return_inverse=True)
        sentences, of = np.unique(rows["sentence"].to_numpy(), return_inverse=True)
        table = cell_means(values, (at, of), shape=(len(pools), len(sentences)))
        table = table[np.isfinite(table).all(axis=1)]
        if len(table) >= _LEAST_POOLS and table.shape[1] >= 2:
            squares.append((len(table), *_variances(table)))
    if not squares:
        return None
    weight, pool, answer = np.array(squares).T
    return PoolSpread(
        float(np.sqrt(np.average(pool, weights=weight))), float(np.sqrt(np.average(answer, weights=weight)))
    )


def _variances(table: Float[np.ndarray, "pools sentences"]) -> tuple[float, float]:
    """(between pools, of one answer): the two mean squares of an additive model, taken apart."""
    n, m = table.shape
    centred = table - table.mean(axis=0)
    rest = centred - centred.mean(axis=1, keepdims=True)
    answer = float((rest**2).sum() / ((n - 1) * (m - 1)))
    return max(0.0, float(centred.mean(axis=1).var(ddof=1)) - answer / m), answer


def what_is_seen(
    prepared: PreparedTransfer, spreads: Mapping[str, PoolSpread], *, n_reference: int | None = None
) -> dict[str, float]:
    """The smallest effect by category, in nats: that of its arm with the fewest treated pools.

    Args:
        spreads: by category; others have that of the zoo.
        n_reference: reference pools; None takes the study's, with its looks.
    """
    study = prepared.study
    looks = (*study.test.looks, study.pools.n_reference) if n_reference is None else (n_reference,)
    found: dict[str, float] = {}
    for arm in TESTED:
        keys = [key for key in prepared.pools if key[1] == arm]
        n_treated = min((len(prepared.pools[key].treated) for key in keys), default=0)
        if not keys or looks[0] < MIN_REFERENCE:
            continue
        rng = rng_for(study.seed, "power", n_treated, len(keys), *looks)
        least = smallest_effect(
            n_treated=n_treated, n_categories=len(keys), looks=looks, level=study.test.level, rng=rng
        )
        for category, _ in keys:
            answers = len(prepared.sentences[category]) * study.pools.draws
            nats = least * spreads.get(category, PILOT).of_mean(answers)
            found[category] = max(nats, found.get(category, 0.0))
    return found


def affordable(prepared: PreparedTransfer, *, wanted: int, most: int, each: int) -> int:
    """Reference pools that a number of requests pays for.

    Args:
        wanted: requests of the whole plan.
        most: requests that there may be.
        each: requests for one prompt.
    """
    study = prepared.study
    frames = len(study.frames.templates) * len(study.frames.positions)
    draws = study.pools.reference_draws or study.pools.draws
    pool = each * sum(
        len(prepared.sentences[category]) * draws * frames
        for category, arm in prepared.pools
        if arm in TESTED
    )
    return max(0, study.pools.n_reference - -(-(wanted - most) // pool)) if pool else 0


def power_line(seen: Mapping[str, float], spreads: Mapping[str, PoolSpread], *, n_reference: int) -> str:
    """What is seen, as a line."""
    if not seen:
        return f"no arm has the {MIN_REFERENCE} reference pools that a test needs"
    shown = ", ".join(f"{category} {nats:.2g}" for category, nats in seen.items())
    whose = "of answers kept here" if set(seen) <= set(spreads) else "as on the zoo where none are kept here"
    return (
        f"with {n_reference} reference pools 4 of 5 such studies show changes of log-odds (nats, adjusted over categories) from: "
        f"{shown}; spreads {whose}"
    )
