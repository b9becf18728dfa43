"""From trials to effects: each tested arm against its own reference pools, in every category.

    logodds    mean change of the log-odds of the category's words: pool-randomisation test, max-T over categories
    specific   the same less the mean change of the other categories' words: what perturbs everything cancels
    success    P(more of its words among the k most likely) - P(fewer): intervals resample sentences
    welch      the paper's test on trials of the treated pool against those of the random arm (not of ours)

Target (a ceiling) is compared with the random arm's pools, which are not matched to it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from polysem.seeds import rng_for
from polysem.store.tables import TRANSFER_EFFECTS
from polysem.transfer.config import TESTED, TransferStudy
from polysem.transfer.paper import inflation, welch_of_rates
from polysem.transfer.randomisation import MIN_REFERENCE, pool_test, sentence_bootstrap

Z = 1.959963984540054


@dataclass(frozen=True)
class Cell:
    """Trials of one category, arm and frame: [pools, sentences] means over draws."""

    category: str
    pools: np.ndarray
    values: dict[str, Float[np.ndarray, "pools sentences"]]
    n_trials: int
    kl: float
    refused: float

    def where(self, treated: bool, name: str) -> Float[np.ndarray, "pools sentences"]:
        """A value under treated or reference pools."""
        return self.values[name][(self.pools >= 0) == treated]


_NAMES = ("logodds", "specific", "lo", "hi", "specific_lo", "specific_hi", "success", "up")


def cell_of(table: pa.Table, category: str) -> Cell:
    """The cell of the trials of one category, arm and frame."""
    names = table["categories"][0].as_py()
    own = names.index(category)
    lists = {
        name: np.array(table[name].to_pylist(), dtype=np.float64).reshape(table.num_rows, len(names))
        for name in ("logodds", "logodds_lo", "logodds_hi", "success")
    }
    other = [n for n in range(len(names)) if n != own]
    flat = {
        "logodds": lists["logodds"][:, own],
        "lo": lists["logodds_lo"][:, own],
        "hi": lists["logodds_hi"][:, own],
        "success": lists["success"][:, own],
        "up": np.where(np.isnan(lists["success"][:, own]), np.nan, lists["success"][:, own] > 0),
    }
    if other:
        flat["specific"] = flat["logodds"] - lists["logodds"][:, other].mean(axis=1)
        with np.errstate(invalid="ignore"):
            flat["specific_lo"] = flat["lo"] - lists["logodds_hi"][:, other].mean(axis=1)
            flat["specific_hi"] = flat["hi"] - lists["logodds_lo"][:, other].mean(axis=1)
    pools, pool = np.unique(table["pool"].to_numpy(), return_inverse=True)
    sentences, sentence = np.unique(table["sentence"].to_numpy(), return_inverse=True)
    shape, at = (len(pools), len(sentences)), (pool, sentence)
    count = np.zeros(shape)
    np.add.at(count, at, 1)
    values = {}
    for name, column in flat.items():
        total = np.zeros(shape)
        np.add.at(total, at, column)
        values[name] = total / count
    treated = table["pool"].to_numpy() >= 0
    return Cell(
        category,
        pools,
        values,
        table.num_rows,
        float(table["kl_lo"].to_numpy()[treated].mean()),
        float(table["refused"].to_numpy(zero_copy_only=False)[treated].mean()),
    )


def effects(trials: pa.Table, study: TransferStudy, *, noise: dict[str, dict[str, float]]) -> pa.Table:
    """TRANSFER_EFFECTS of all targets.

    Args:
        trials: TRANSFER_TRIALS.
        study: level, seed, success_k.
        noise: target -> category -> SD of one answer's log-odds from jitter.
    """
    rows: list[dict[str, object]] = []
    keys = (
        trials.select(["target", "template", "position"])
        .group_by(["target", "template", "position"])
        .aggregate([])
    )
    for key in sorted(keys.to_pylist(), key=lambda k: tuple(k.values())):
        found = _Frame(trials, key, study, noise.get(key["target"], {}))
        rows += found.rows()
    return TRANSFER_EFFECTS.conform(pa.Table.from_pylist(rows, schema=TRANSFER_EFFECTS.arrow()))


class _Frame:
    """All effects of one target, template and position."""

    def __init__(self, trials: pa.Table, key: dict[str, str], study: TransferStudy, noise: dict[str, float]):
        self.key, self.study, self.noise = key, study, noise
        mine = trials.filter(_equal(trials, key))
        self.cells: dict[str, dict[str, Cell]] = {}
        for arm in study.pools.arms:
            of_arm = mine.filter(_equal(mine, {"arm": arm}))
            present = sorted(set(of_arm["category"].to_pylist()), key=study.categories.names.index)
            if present:
                self.cells[arm] = {
                    c: cell_of(of_arm.filter(_equal(of_arm, {"category": c})), c) for c in present
                }

    def rows(self) -> Iterable[dict[str, object]]:
        for arm, cells in self.cells.items():
            for contrast in ("logodds", "specific"):
                if contrast == "specific" and len(self.study.categories.names) < 2:
                    continue
                yield from self._tested(contrast, arm, list(cells.values()))
            for cell in cells.values():
                yield self._success(arm, cell)
                if arm != "random" and "random" in self.cells and cell.category in self.cells["random"]:
                    yield self._welch(arm, cell, self.cells["random"][cell.category])

    def _reference(self, arm: str, cell: Cell, name: str) -> Float[np.ndarray, "pools sentences"]:
        """What an arm is compared with: its matched pools; for the ceiling, the random arm's."""
        if arm in TESTED:
            return cell.where(False, name)
        other = self.cells.get("random", {}).get(cell.category)
        return other.where(True, name) if arm == "target" and other else np.zeros((0, 1))

    def _tested(self, contrast: str, arm: str, cells: list[Cell]) -> Iterable[dict[str, object]]:
        low, high = ("lo", "hi") if contrast == "logodds" else ("specific_lo", "specific_hi")
        treated = [c.where(True, contrast) for c in cells]
        reference = [self._reference(arm, c, contrast) for c in cells]
        n_treated, n = min(len(t) for t in treated), min(len(r) for r in reference)
        test = None
        if arm != "random" and n >= MIN_REFERENCE:
            test = pool_test(
                np.array([t[:n_treated].mean(axis=1) for t in treated]),
                np.array([r[:n].mean(axis=1) for r in reference]),
                level=self.study.test.level,
                rng=rng_for(self.study.seed, "test", *self.key.values(), contrast, arm),
            )
        for k, cell in enumerate(cells):
            ours, theirs = float(treated[k].mean()), float(reference[k].mean()) if n else math.nan
            bounds = self._bounds(cell, arm, low, high)
            sigma = self.noise.get(cell.category, math.nan)
            floor = Z * sigma * math.sqrt(1 / treated[k].size + (1 / reference[k].size if n else 0))
            yield self._row(contrast, arm, cell, "nats") | {
                "treated": ours,
                "reference": theirs if n else None,
                "estimate": ours - theirs if n else None,
                "lo": _finite(test.lo[k]) if test else None,
                "hi": _finite(test.hi[k]) if test else None,
                "bound_lo": bounds[0],
                "bound_hi": bounds[1],
                "p": float(test.p[k]) if test else None,
                "p_adj": float(test.p_adj[k]) if test else None,
                "noise_floor": None if math.isnan(floor) else floor,
                "n_treated": len(treated[k]),
                "n_reference": len(reference[k]),
                "note": self._note(arm, n, test is not None),
            }

    def _note(self, arm: str, n: int, tested: bool) -> str | None:
        if arm == "random":
            return "change from the baseline; what every prefix of this length does"
        if arm == "target":
            return (
                "compared with the random arm, whose pools are not matched to it"
                if tested
                else (f"{n} random pools; a test needs {MIN_REFERENCE}")
            )
        return None

    def _bounds(self, cell: Cell, arm: str, low: str, high: str) -> tuple[float | None, float | None]:
        """The estimates that truncated answers allow at either end."""
        reference_lo, reference_hi = (self._reference(arm, cell, name) for name in (low, high))
        if not len(reference_lo):
            return None, None
        ends = (
            float(cell.where(True, low).mean() - reference_hi.mean()),
            float(cell.where(True, high).mean() - reference_lo.mean()),
        )
        return _finite(ends[0]), _finite(ends[1])

    def _success(self, arm: str, cell: Cell) -> dict[str, object]:
        ours, theirs = cell.where(True, "success"), self._reference(arm, cell, "success")
        row = self._row("success", arm, cell, "probability") | {
            "n_treated": len(ours), "n_reference": len(theirs),
        }  # fmt: skip
        if np.isnan(ours).any():
            k = self.study.test.success_k
            return row | {"note": f"not told: the target grants fewer than {k} log-probabilities"}
        by_sentence = ours.mean(axis=0)
        row["treated"] = float(by_sentence.mean())
        if len(theirs):
            row["reference"] = float(theirs.mean())
            by_sentence = by_sentence - theirs.mean(axis=0)
        rng = rng_for(self.study.seed, "bootstrap", *self.key.values(), arm, cell.category)
        share = sentence_bootstrap(by_sentence, level=self.study.test.level, rng=rng)
        return row | {
            "estimate": share.estimate,
            "lo": share.lo,
            "hi": share.hi,
            "note": None if len(theirs) else "against the baseline",
        }

    def _welch(self, arm: str, cell: Cell, random: Cell) -> dict[str, object]:
        ours, theirs = cell.where(True, "up")[:1], random.where(True, "up")[:1]
        row = self._row("welch", arm, cell, "probability") | {"n_treated": 1, "n_reference": 1}
        if np.isnan(ours).any() or np.isnan(theirs).any() or min(ours.size, theirs.size) < 2:
            return row | {"note": "not told: too few log-probabilities or trials"}
        # Trials, as the paper has them: cells hold means over draws.
        n = ours.size * self.study.pools.draws
        found = welch_of_rates(float(ours.mean()), float(theirs.mean()), n=n)
        rate = min(max(float(theirs.mean()), 0.05), 0.95)
        pool_sd, sentence_sd = _spreads(cell, random)
        wrong = inflation(
            sentences=ours.shape[1],
            trials=self.study.pools.draws,
            sentence_sd=sentence_sd,
            pool_sd=pool_sd,
            rate=rate,
            worlds=400,
            rng=rng_for(self.study.seed, "inflation", arm, cell.category),
        )
        return row | {
            "treated": float(ours.mean()),
            "reference": float(theirs.mean()),
            "estimate": found.difference,
            "p": found.p,
            "note": f"trials taken as independent: rejects in {100 * wrong:.0f} % of simulated worlds without any effect",
        }

    def _row(self, contrast: str, arm: str, cell: Cell, unit: str) -> dict[str, object]:
        names = (
            "treated",
            "reference",
            "estimate",
            "lo",
            "hi",
            "bound_lo",
            "bound_hi",
            "p",
            "p_adj",
            "noise_floor",
            "note",
        )
        empty: dict[str, object] = {name: None for name in names}  # noqa: C420  (fromkeys would fix the value's type)
        return empty | self.key | {
            "contrast": contrast,
            "arm": arm,
            "category": cell.category,
            "level": self.study.test.level,
            "kl": cell.kl,
            "refused": cell.refused,
            "n_sentences": cell.values["logodds"].shape[1],
            "n_trials": cell.n_trials,
            "unit": unit,
        }  # fmt: skip


def _spreads(cell: Cell, random: Cell) -> tuple[float, float]:
    """(pools, sentences): standard deviations on log-odds, of the study's own data where it has them, else 0.5 and 0.4.

    Pools: of the reference pools' means. Sentences: of the arm's effect on one sentence; an effect is a difference of two
    arms, so that of the differences is larger by the square root of two.
    """
    reference = cell.where(False, "logodds")
    pool_sd = float(reference.mean(axis=1).std(ddof=1)) if len(reference) > 1 else 0.5
    apart = cell.where(True, "logodds").mean(axis=0) - random.where(True, "logodds").mean(axis=0)
    sentence_sd = float(apart.std(ddof=1)) / math.sqrt(2) if len(apart) > 1 else 0.4
    return pool_sd, sentence_sd


def _finite(value: float) -> float | None:
    """The value, or None for an end that is not bounded."""
    return float(value) if math.isfinite(value) else None


def _equal(table: pa.Table, values: dict[str, str]) -> Any:
    import pyarrow.compute as pc

    mask = None
    for name, value in values.items():
        here = pc.equal(table[name], value)
        mask = here if mask is None else pc.and_(mask, here)
    return mask
