"""From trials to effects: each tested arm against its own reference pools, in every category.

    logodds    mean change of the log-odds of the category's words: pool-randomisation test, max-T over categories
    specific   the same less the mean change of the other categories' words: what perturbs everything cancels
    success    P(more of its words among the k most likely) - P(fewer): intervals resample sentences
Further contrasts are made where their records say. Target (a ceiling) is compared with the random arm's pools, which
are not matched to it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from polysem.seeds import rng_for
from polysem.stats.arms import equals
from polysem.stats.units import (
    MIN_REFERENCE,
    LookedTest,
    cell_means,
    looked_pool_test,
    pool_test,
    sentence_bootstrap,
)
from polysem.store.tables import TRANSFER_EFFECTS
from polysem.targets.tail import MEASURABLE
from polysem.transfer.config import TESTED, TransferStudy
from polysem.transfer.tails import k_that_would_do
from polysem.vocabulary import attribute
from polysem.vocabulary_transfer import TRANSFER_CONTRASTS

Z = 1.959963984540054
Row = dict[str, object]


@dataclass(frozen=True)
class TransferCell:
    """Trials of one category, arm and frame: [pools, sentences] means over draws."""

    category: str
    pools: np.ndarray
    values: dict[str, Float[np.ndarray, "pools sentences"]]
    """logodds and specific, each with its _lo, _hi and _sd; success; up: whether there are more words in the top k"""
    n_trials: int
    kl: float
    refused: float
    note: str | None = None
    """why there is no estimate"""

    def where(self, treated: bool, name: str) -> Float[np.ndarray, "pools sentences"]:
        """A value under treated or reference pools."""
        return self.values[name][(self.pools >= 0) == treated]


def cell_of(table: pa.Table, category: str) -> TransferCell:
    """The cell of the trials of one category, arm and frame."""
    names = table["categories"][0].as_py()
    own = names.index(category)
    lists = {
        name: np.array(table[name].to_pylist(), dtype=np.float64).reshape(table.num_rows, len(names))
        for name in ("logodds", "logodds_lo", "logodds_hi", "logodds_sd", "success", "share", "k_needed")
    }
    measured = [not column.any() for column in np.isnan(lists["logodds"]).T]
    other = [n for n in range(len(names)) if n != own and measured[n]]
    flat = {name: values[:, own] for name, values in lists.items() if name not in ("share", "k_needed")}
    flat["up"] = np.where(np.isnan(flat["success"]), np.nan, flat["success"] > 0)
    # What is least for one category takes the most from the others.
    for end, opposite in (("", ""), ("_lo", "_hi"), ("_hi", "_lo")) if other else ():
        with np.errstate(invalid="ignore"):
            others = lists[f"logodds{opposite}"][:, other].mean(axis=1)
            flat[f"specific{end}"] = flat[f"logodds{end}"] - others
    if len(names) > 1 and not other:
        flat |= {f"specific{end}": np.full(table.num_rows, np.nan) for end in ("", "_lo", "_hi")}
    if len(names) > 1:
        rest = (lists["logodds_sd"][:, other] ** 2).sum(axis=1) / max(len(other), 1) ** 2
        flat["specific_sd"] = np.sqrt(flat["logodds_sd"] ** 2 + rest)
    pools, pool = np.unique(table["pool"].to_numpy(), return_inverse=True)
    sentences, sentence = np.unique(table["sentence"].to_numpy(), return_inverse=True)
    shape = (len(pools), len(sentences))
    treated = table["pool"].to_numpy() >= 0
    return TransferCell(
        category,
        pools,
        {name: cell_means(column, (pool, sentence), shape=shape) for name, column in flat.items()},
        table.num_rows,
        float(table["kl_lo"].to_numpy()[treated].mean()),
        float(table["refused"].to_numpy(zero_copy_only=False)[treated].mean()),
        None if measured[own] else unmeasured(lists["share"][0, own], lists["k_needed"][0, own]),
    )


def unmeasured(share: float, k_needed: float) -> str:
    """Why a category has no estimate, and what would give one."""
    k = k_that_would_do(k_needed)
    do = f"k = {k} would do" if k else "no larger k is known to do"
    return (
        f"not measurable: {share:.0%} of its probability is granted, expected at least {MEASURABLE:.0%}; {do}; "
        "target.samples = 128 does at any k"
    )


def effects(trials: pa.Table, study: TransferStudy, *, noise: dict[str, dict[str, float]]) -> pa.Table:
    """TRANSFER_EFFECTS of all targets.

    Args:
        trials: TRANSFER_TRIALS.
        study: level, seed, success_k.
        noise: target -> category -> SD of one answer's log-odds from jitter.
    """
    names = ["target", "template", "position"]
    keys = trials.select(names).group_by(names).aggregate([]).to_pylist()
    frames = (FrameEffects(trials, key, study, noise.get(key["target"], {})) for key in keys)
    return TRANSFER_EFFECTS.of_rows(row for frame in frames for row in frame.rows())


def is_decided(trials: pa.Table, study: TransferStudy, arm: str) -> bool:
    """Whether more reference pools can be spared: in every frame each category of the arm is shown, or too far from it.

    Args:
        trials: TRANSFER_TRIALS of one target and arm, up to a look.
        study: with looks.
        arm: of TESTED.
    """
    names = ["target", "template", "position"]
    for key in trials.select(names).group_by(names).aggregate([]).to_pylist():
        frame = FrameEffects(trials, key, study, {})
        known = _measurable("logodds", frame.cells[arm].values())
        if not known:  # more pools would not change what is granted
            continue
        found = frame.looked("logodds", arm, known)
        shown = found.test.p_adj <= 1 - study.test.level + 1e-12
        if not (shown | (found.now > study.test.futility)).all():
            return False
    return True


class FrameEffects:
    """All effects of one target, template and position."""

    def __init__(self, trials: pa.Table, key: dict[str, str], study: TransferStudy, noise: dict[str, float]):
        self.key, self.study, self.noise = key, study, noise
        mine = trials.filter(equals(trials, **key))
        self.cells: dict[str, dict[str, TransferCell]] = {}
        """arm -> category -> its cell"""
        for arm in study.pools.arms:
            of_arm = mine.filter(equals(mine, arm=arm))
            present = sorted(set(of_arm["category"].to_pylist()), key=study.categories.names.index)
            if present:
                self.cells[arm] = {c: cell_of(of_arm.filter(equals(of_arm, category=c)), c) for c in present}

    def rows(self) -> Iterable[Row]:
        further = [attribute(contrast.row) for contrast in TRANSFER_CONTRASTS.values() if contrast.row]
        for arm, cells in self.cells.items():
            yield from self._tested("logodds", arm, list(cells.values()))
            if len(self.study.categories.names) > 1:
                yield from self._tested("specific", arm, list(cells.values()))
            for cell in cells.values():
                yield self._success(arm, cell)
                yield from (row for make in further if (row := make(self, arm, cell)) is not None)

    def row(self, contrast: str, arm: str, cell: TransferCell, **found: object) -> Row:
        """What every effect has, and what was found."""
        return {
            **self.key, "contrast": contrast, "arm": arm, "category": cell.category, "level": self.study.test.level,
            "kl": cell.kl, "refused": cell.refused, "n_sentences": cell.values["logodds"].shape[1],
            "n_trials": cell.n_trials, "unit": TRANSFER_CONTRASTS[contrast].unit, **found,
        }  # fmt: skip

    def _reference(self, arm: str, cell: TransferCell, name: str) -> Float[np.ndarray, "pools sentences"]:
        """What an arm is compared with: its matched pools; for the ceiling, the random arm's."""
        if arm in TESTED:
            return cell.where(False, name)
        other = self.cells.get("random", {}).get(cell.category)
        return other.where(True, name) if arm == "target" and other else np.zeros((0, 1))

    def _tested(self, contrast: str, arm: str, cells: list[TransferCell]) -> Iterable[Row]:
        known = _measurable(contrast, cells)
        for cell in cells:
            if cell not in known:
                note = cell.note or "not measurable: no other category is"
                low, high = self._bounds(cell, arm, contrast)
                n = len(cell.where(True, contrast))
                yield self.row(
                    contrast, arm, cell, n_treated=n, n_reference=0, bound_lo=low, bound_hi=high, note=note
                )
        if known:
            yield from self._measured(contrast, arm, known)

    def _measured(self, contrast: str, arm: str, cells: list[TransferCell]) -> Iterable[Row]:
        treated = [c.where(True, contrast) for c in cells]
        reference = [self._reference(arm, c, contrast) for c in cells]
        n = min(len(r) for r in reference)
        test = None
        if arm in TESTED and self.study.test.looks and n >= MIN_REFERENCE:
            test = self.looked(contrast, arm, cells).test
        elif arm != "random" and n >= MIN_REFERENCE:
            test = pool_test(
                *self._means(treated, reference), level=self.study.test.level, rng=self._rng(contrast, arm)
            )
        for k, cell in enumerate(cells):
            ours, theirs = float(treated[k].mean()), float(reference[k].mean()) if n else math.nan
            low, high = self._bounds(cell, arm, contrast)
            sigma = self.noise.get(cell.category, math.nan)
            floor = Z * sigma * math.sqrt(1 / treated[k].size + (1 / reference[k].size if n else 0))
            found = self.row(
                contrast, arm, cell, treated=ours, reference=theirs, estimate=ours - theirs, bound_lo=low,
                bound_hi=high, noise_floor=floor, n_treated=len(treated[k]), n_reference=len(reference[k]),
                note=self._note(arm, n, test is not None),
            )  # fmt: skip
            sd = truncation_sd(
                cell.where(True, f"{contrast}_sd"), self._reference(arm, cell, f"{contrast}_sd")
            )
            found["truncation_sd"] = sd
            if test:
                found |= {name: float(getattr(test, name)[k]) for name in ("p", "p_adj")}
                ends = (float(test.lo[k]), float(test.hi[k]))
                found |= widened(ours - theirs, *ends, sd=sd, level=self.study.test.level)
            yield found

    def looked(self, contrast: str, arm: str, cells: Sequence[TransferCell]) -> LookedTest:
        """The test of an arm's categories as far as it was asked, in a design with looks."""
        study = self.study
        treated, reference = self._means(
            [c.where(True, contrast) for c in cells],
            [self._reference(arm, c, contrast)[::-1] for c in cells],  # pool -1 was asked first
        )
        looks = (*study.test.looks, study.pools.n_reference)
        rng = self._rng(contrast, arm)
        return looked_pool_test(treated, reference, looks=looks, level=study.test.level, rng=rng)

    def _means(
        self, treated: Sequence[np.ndarray], reference: Sequence[np.ndarray]
    ) -> tuple[Float[np.ndarray, "categories treated"], Float[np.ndarray, "categories reference"]]:
        """Means of pools, as many in every category as the one with the fewest has."""
        n, m = min(map(len, treated)), min(map(len, reference))
        means = [np.array([side[:k].mean(axis=1) for side in of]) for of, k in ((treated, n), (reference, m))]
        return means[0], means[1]

    def _rng(self, contrast: str, arm: str) -> np.random.Generator:
        return rng_for(self.study.seed, "test", *self.key.values(), contrast, arm)

    def _note(self, arm: str, n: int, tested: bool) -> str | None:
        if arm == "random":
            return "change from the baseline; what every prefix of this length does"
        whole = self.study.pools.n_reference
        if arm in TESTED and self.study.test.looks and n < whole:
            return f"ended after {n} of {whole} reference pools; p and interval hold at every look"
        if arm != "target":
            return None
        if tested:
            return "compared with the random arm, whose pools are not matched to it"
        return f"{n} random pools; a test needs {MIN_REFERENCE}"

    def _bounds(self, cell: TransferCell, arm: str, contrast: str) -> tuple[float, float]:
        """The estimates that truncated answers allow at either end; NaN without a reference."""
        least, most = (self._reference(arm, cell, f"{contrast}{end}") for end in ("_lo", "_hi"))
        if not len(least):
            return math.nan, math.nan
        return (
            float(cell.where(True, f"{contrast}_lo").mean() - most.mean()),
            float(cell.where(True, f"{contrast}_hi").mean() - least.mean()),
        )

    def _success(self, arm: str, cell: TransferCell) -> Row:
        ours, theirs = cell.where(True, "success"), self._reference(arm, cell, "success")
        row = self.row("success", arm, cell, n_treated=len(ours), n_reference=len(theirs))
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
        note = None if len(theirs) else "against the baseline"
        return row | {"estimate": share.estimate, "lo": share.lo, "hi": share.hi, "note": note}


def _measurable(contrast: str, cells: Iterable[TransferCell]) -> list[TransferCell]:
    return [cell for cell in cells if np.isfinite(cell.values[contrast]).all()]


def truncation_sd(*arms: Float[np.ndarray, "_ _"]) -> float:
    """Standard error of a difference of means of pools from that of every cell: what is not known of a sentence's tokens
    is taken to be one error for all pools, and another for each sentence."""
    each = [arm.mean(axis=0) for arm in arms if len(arm)]
    return math.sqrt(sum(float((e**2).sum()) / len(e) ** 2 for e in each))


def widened(estimate: float, lo: float, hi: float, *, sd: float, level: float) -> dict[str, float]:
    """An interval that holds an independent error of standard deviation `sd`, too; the same numbers where that is 0."""
    from scipy import stats

    reach = float(stats.norm.ppf(0.5 + level / 2)) * sd
    if not reach:
        return {"lo": lo, "hi": hi}
    return {
        "lo": estimate - math.hypot(estimate - lo, reach),
        "hi": estimate + math.hypot(hi - estimate, reach),
    }
