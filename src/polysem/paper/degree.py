"""The paper's neurons (protocol 2.9): one of every bin of degree a site, each multiplied by 0 to 20.

For every feature that a neuron is read on, the largest rise and the largest drop of the weighted cosine c, relative to what
it was, over prompts and factors. The largest of many changes is large where nothing is there, so beside it stands what the
same search gives at a factor chosen on other prompts. The row is the neuron: its features' mean. The paper draws one neuron
a site, so that one site has no interval.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.paper.estimators import plain_ols
from polysem.paper.scene import Row, lost
from polysem.paper.selection import relative_change
from polysem.stats.arms import floats
from polysem.stats.regress import Regression
from polysem.stats.rows import number
from polysem.store.schema import group_codes

SIDES: tuple[tuple[Literal["rise", "drop"], float], ...] = (("rise", 1.0), ("drop", -1.0))
PATHS = ("degree", "degree_held_out")
"""over all reported prompts and factors; at the factor that is best on the select prompts"""


def degree_rows(table: pa.Table, *, level: float) -> Iterator[Row]:
    """Rows of PRESETS, by token set: for every bin (step) the mean rise and drop, and as step 0 the slope over bins.

    Args:
        table: plan joined with trials, of the paper's neurons.
    """
    for token_set in sorted(set(table["token_set"].to_pylist())):
        mine = table.filter(pc.equal(table["token_set"], token_set))
        for locus in sorted(set(mine["locus"].to_pylist())):
            here = mine.filter(pc.equal(mine["locus"], locus))
            yield from _rows(here, {"locus": locus, "token_set": token_set}, level=level)


def _rows(table: pa.Table, fixed: Row, *, level: float) -> Iterator[Row]:
    arm = group_codes(table, ("sae", "source", "target"))
    first = np.unique(arm, return_index=True)[1]
    neuron = group_codes(table, ("sae", "source"))[first]
    bins, target = (table[name].to_numpy()[first] for name in ("interference_bin", "target"))
    doses, at = np.unique(floats(table["dose"]), return_inverse=True)
    prompts, prompt = np.unique(table["prompt_id"].to_pylist(), return_inverse=True)
    change = np.full((len(first), len(prompts), len(doses)), np.nan)
    base, edited = floats(table["cosine_base"]), floats(table["cosine_edit"])[:, None]
    change[arm, prompt, at] = relative_change(base, edited)[:, 0]
    confirm = np.isin(prompts, np.unique(table.filter(pc.equal(table["split"], "confirm"))["prompt_id"]))
    for side, sign in SIDES:
        for path in PATHS:
            values = sign * _best(sign * change, confirm, held_out=path == "degree_held_out")
            known = np.isfinite(values)
            count = np.bincount(neuron[known], minlength=neuron.max(initial=-1) + 1)
            total = np.bincount(neuron[known], weights=values[known], minlength=len(count))
            seen = count > 0
            means, of = total[seen] / count[seen], np.zeros(len(count), dtype=np.int64)
            of[neuron] = bins
            places = of[seen]
            slope = np.column_stack([np.ones(len(places)), places.astype(np.float64)])
            parts = [(0, plain_ols(means, slope, level=level), 1, "slope over bins", seen[neuron] & known)]
            for k in np.unique(places).tolist():
                inside = means[places == k]
                mean = plain_ols(inside, np.ones((len(inside), 1)), level=level)
                parts.append((k, mean, 0, "mean of neurons", known & (bins == k)))
            for step, found, which, method, used in parts:
                yield fixed | {
                    "question": side,
                    "relation": "single_neuron",
                    "path": path,
                    "step": step,
                    "choice": "paper" if path == "degree" else "select",
                    "outcome": "relative",
                    **{k: number(getattr(found, k)[which]) for k in ("estimate", "se", "lo", "hi", "p")},
                    "level": level,
                    "unit": "relative change" + (" per bin" if step == 0 else ""),
                    "method": f"{method}; every neuron",
                    "n_rows": len(np.unique(neuron[used])),
                    "n_pairs": int(used.sum()),
                    "n_targets": len(np.unique(target[used])),
                    "n_doses": len(doses),
                    "note": _note(found, lost(table)),
                }


def _best(change: np.ndarray, confirm: np.ndarray, *, held_out: bool) -> np.ndarray:
    """[arms] the largest of changes [arms prompts doses] over confirm prompts and doses; or the mean over the confirm
    prompts at the dose with the largest mean over the others. NaN where there is none."""
    shown = change[:, confirm]
    if not held_out:
        filled = np.where(np.isnan(shown), -np.inf, shown).max(axis=(1, 2), initial=-np.inf)
        return np.where(np.isneginf(filled), np.nan, filled)
    seen, later = (_means(part) for part in (change[:, ~confirm], shown))
    ranked = np.where(np.isnan(seen), -np.inf, seen)
    picked = later[np.arange(len(later)), ranked.argmax(axis=1)]
    return np.where(np.isneginf(ranked.max(axis=1)), np.nan, picked)


def _means(change: np.ndarray) -> np.ndarray:
    """[arms doses], over the prompts that have a number."""
    good = np.isfinite(change)
    count = good.sum(axis=1)
    return np.divide(
        np.where(good, change, 0.0).sum(axis=1), count, out=np.full(count.shape, np.nan), where=count > 0
    )


def _note(found: Regression, lost: str) -> str | None:
    said = (f"not estimated: {found.reason}" if found.reason else "", found.remark, lost)
    return "; ".join(s for s in said if s) or None
