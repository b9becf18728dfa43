"""What an arm does on a prompt, as one number, under different choices of strength, sign and outcome.

A `Grid` holds the outcomes of every cell (arm, prompt) at every signed dose. `effects_of` makes one number per
confirm cell of it: by the best strength on the cell itself (the paper's way), by the strength that is best on the
select prompts, or at one dose for all. Cells without an outcome stay NaN, and are counted by those who ask.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from polysem.paper.selection import relative_change
from polysem.stats.arms import ARM, PRIMARY, effect_share, floats
from polysem.stats.rows import View
from polysem.store.schema import group_codes

Outcome = Literal["after", "relative", "logodds"]
"""after: c itself. relative: its change over |c| before. logodds: change in log-odds, nats, of what is asked of the token set."""
Selection = Literal["reported", "select", "fixed"]
"""reported: best strength on each reported prompt. select: per arm, best on the select prompts. fixed: one dose."""
Sign = Literal["free", "odd"]
"""free: either sign may be best; + at a fixed dose. odd: what is the effect of the difference between
+dose and -dose."""
Start = Literal["zero", "baseline"]
"""what the best of the paper's runs begins at: 0 (feature runs) or the unedited outcome (gradient runs)"""


@dataclass(frozen=True)
class Grid:
    """Outcomes of one locus and token set."""

    arm: Int[np.ndarray, " cells"]
    """row of the view"""
    prompt: Int[np.ndarray, " cells"]
    """its prompt, numbered"""
    confirm: Bool[np.ndarray, " cells"]
    doses: Float[np.ndarray, " doses"]
    """signed, rising"""
    base: Mapping[str, Float[np.ndarray, " cells"]]
    """cosine, logodds (of `asked`) and KL (0) without an edit"""
    edit: Mapping[str, Float[np.ndarray, "cells doses"]]
    """... with it; NaN where the trial has no outcome"""
    share: Float[np.ndarray, " cells"]
    """of the difference between the two ends of a dose, what is the effect; see `stats.arms.effect_share`"""
    asked: str = PRIMARY
    """the outcome of record"""

    @classmethod
    def of(cls, joined: pa.Table, view: View, *, token_set: str, outcome: str) -> "Grid":
        """The grid of the arms of a view, from the joined plan and trials of all loci."""
        mine = pc.and_(pc.equal(joined["locus"], view.locus), pc.equal(joined["token_set"], token_set))
        table = joined.filter(mine)
        key = (*ARM, "token_set")
        source = pc.fill_null(table["source"], -1)
        table = table.set_column(table.column_names.index("source"), "source", source)
        known = view.arms.table.select(list(key))
        asked = table.select(list(key)).cast(known.schema)
        code = group_codes(pa.concat_tables([known, asked]).combine_chunks(), key)
        row_of = np.full(int(code.max(initial=-1)) + 1, -1)
        row_of[code[: known.num_rows]] = np.arange(known.num_rows)
        arm = row_of[code[known.num_rows :]]
        prompt = group_codes(table, ("prompt_id",))
        cells, first, cell = np.unique(
            arm * (int(prompt.max(initial=0)) + 1) + prompt, return_index=True, return_inverse=True
        )
        doses, column = np.unique(floats(table["dose"]), return_inverse=True)
        ok = pc.equal(table["status"], "ok").to_numpy(zero_copy_only=False).astype(bool)
        base, edit = {"kl": np.zeros(len(cells))}, {"kl": np.full((len(cells), len(doses)), np.nan)}
        edit["kl"][cell[ok], column[ok]] = floats(table["kl"])[ok]
        for name, read in (("cosine", "cosine"), ("logodds", outcome)):
            base[name] = np.full(len(cells), np.nan)
            base[name][cell[ok]] = floats(table[f"{read}_base"])[ok]
            edit[name] = np.full((len(cells), len(doses)), np.nan)
            edit[name][cell[ok], column[ok]] = floats(table[f"{read}_edit"])[ok]
        confirm = pc.equal(table["split"], "confirm").to_numpy(zero_copy_only=False).astype(bool)
        share = effect_share(table)[first]
        return cls(arm[first], prompt[first], confirm[first], doses, base, edit, share, outcome)


class Cells(NamedTuple):
    """One number for each of some cells, with the arm that each belongs to."""

    arm: Int[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]
    """NaN where there is none"""
    base: Float[np.ndarray, " n"]
    """c without an edit"""


def effects_of(
    grid: Grid,
    *,
    outcome: Outcome,
    selection: Selection,
    sign: Sign,
    dose: float,
    start: Start,
    only_positive: bool = False,
    level: Int[np.ndarray, " arms"] | None = None,
    on: Literal["confirm", "select"] = "confirm",
) -> Cells:
    """The effect of every cell of one split.

    Args:
        grid: outcomes.
        outcome: what is measured.
        selection: how the strength is found; the best is the largest outcome, as in the paper.
        sign: whether the sign is part of the search or the odd part is taken, of strengths that have their opposite.
        dose: for `fixed`, one of the grid's.
        start: what the best of `reported` begins at. Log-odds have no floor at `zero`.
        only_positive: negative doses are no candidates (prompts: they are the matched snippet).
        level: of every arm, for `reported`: of the arms of one level only the one with the largest number on a prompt
            is reported there, as in the paper's gradient runs, which search all vectors of a bin together but one of a
            control; -1: an arm by itself. None: all are.
        on: the cells to report.
    """
    values, sizes = _candidates(grid, outcome=outcome, sign=sign)
    shown = grid.confirm if on == "confirm" else ~grid.confirm
    base = grid.base["cosine"]
    if only_positive:
        values, sizes = values[:, sizes > 0], sizes[sizes > 0]
    if selection == "fixed":
        at = np.flatnonzero(sizes == dose)
        chosen = values[:, at[0]] if len(at) else np.full(len(values), np.nan)
    elif selection == "reported":
        chosen = _largest(values)
        if (floor := _floor(base, outcome=outcome, start=start)) is not None:
            chosen = np.where(np.isnan(chosen), chosen, np.maximum(chosen, floor))
        if level is not None:
            chosen = _winners(chosen, np.where(grid.arm >= 0, level[grid.arm], -1), grid.prompt)
    else:
        chosen = _best_on_select(grid, values)
    return Cells(grid.arm[shown], chosen[shown], base[shown])


def kl_at_best(grid: Grid, *, only_positive: bool = False) -> Cells:
    """KL (nats) at the strength with the largest cosine, of every confirm cell; NaN where nothing was measured."""
    values, spent = grid.edit["cosine"], grid.edit["kl"]
    if only_positive:
        values, spent = values[:, grid.doses > 0], spent[:, grid.doses > 0]
    known = np.where(np.isnan(values), -np.inf, values)
    chosen = (
        spent[np.arange(len(known)), known.argmax(axis=1)] if known.shape[1] else np.full(len(known), np.nan)
    )
    return Cells(grid.arm[grid.confirm], chosen[grid.confirm], grid.base["cosine"][grid.confirm])


def means_by_arm(cells: Cells, n_arms: int) -> Float[np.ndarray, " arms"]:
    """Mean over the cells of every arm that have a number; NaN for arms without."""
    good = np.isfinite(cells.values)
    total = np.bincount(cells.arm[good], weights=cells.values[good], minlength=n_arms)
    count = np.bincount(cells.arm[good], minlength=n_arms)
    return np.divide(total, count, out=np.full(n_arms, np.nan), where=count > 0)


def _candidates(grid: Grid, *, outcome: Outcome, sign: Sign) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes at every strength [cells, strengths], and the strengths."""
    name = "logodds" if outcome == "logodds" else "cosine"
    base, edit = grid.base[name], grid.edit[name]
    sizes = grid.doses
    if sign == "odd":
        sizes = grid.doses[(grid.doses > 0) & np.isin(-grid.doses, grid.doses)]
        up, down = (np.searchsorted(grid.doses, s * sizes) for s in (1.0, -1.0))
        edit = base[:, None] + grid.share[:, None] * (edit[:, up] - edit[:, down])
    if outcome == "after":
        return edit, sizes
    return (relative_change(base, edit) if outcome == "relative" else edit - base[:, None]), sizes


def _floor(base: np.ndarray, *, outcome: Outcome, start: Start) -> np.ndarray | None:
    """What the best begins at, in units of the outcome; None where there is no such value."""
    if start == "baseline":
        return base if outcome == "after" else np.zeros_like(base)
    return {"after": np.zeros_like(base), "relative": -np.sign(base), "logodds": None}[outcome]


def _winners(
    values: Float[np.ndarray, " cells"], level: Int[np.ndarray, " cells"], prompt: Int[np.ndarray, " cells"]
) -> Float[np.ndarray, " cells"]:
    """The values, with NaN for cells that are not the first largest of their level and prompt."""
    together = np.flatnonzero((level >= 0) & np.isfinite(values))
    group = np.unique(np.stack([level[together], prompt[together]]), axis=1, return_inverse=True)[1].ravel()
    order = np.lexsort((np.arange(len(together)), -values[together], group))
    first = np.unique(group[order], return_index=True)[1]
    kept = np.where(level >= 0, np.nan, values)
    best = together[order[first]]
    kept[best] = values[best]
    return kept


def _largest(values: np.ndarray) -> np.ndarray:
    """The largest number of every row; NaN for rows without."""
    if not values.shape[1]:
        return np.full(len(values), np.nan)
    filled = np.where(np.isnan(values), -np.inf, values).max(axis=1, initial=-np.inf)
    return np.where(np.isneginf(filled), np.nan, filled)


def _best_on_select(grid: Grid, values: np.ndarray) -> np.ndarray:
    """Every cell's outcome at the strength with the largest mean over its arm's select cells."""
    n_arms = int(grid.arm.max(initial=-1)) + 1
    if not values.shape[1]:
        return np.full(len(values), np.nan)
    means = np.column_stack(
        [
            means_by_arm(Cells(grid.arm[~grid.confirm], column[~grid.confirm], column), n_arms)
            for column in values.T
        ]
    )
    ranked = np.where(np.isnan(means), -np.inf, means)
    picked = values[np.arange(len(values)), ranked.argmax(axis=1)[grid.arm]]
    return np.where(np.isneginf(ranked.max(axis=1))[grid.arm], np.nan, picked)
