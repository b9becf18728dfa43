"""Rows of the effects table: one contrast, one group, one number or the reason why there is none.

A group is text such as `locus=feature; sae=*; outcome=logodds; tokens=in; dose=0.2`; `parse_group` reads it
back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from polysem.stats.arms import Arms, floats, group_codes
from polysem.stats.regress import Regression

POOLED = "*"
"""the value of `sae` for all SAEs together"""
UNITS = {"logodds": "nats", "cosine": "cosine", "mass": "probability", "kl": "nats"}


def group_label(**parts: str | float) -> str:
    """`key=value` joined by `; `, in the order given; empty values are left out."""
    shown = {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in parts.items() if v != ""}
    return "; ".join(f"{k}={v.replace('%', '%25').replace(';', '%3B')}" for k, v in shown.items())


def parse_group(label: str) -> dict[str, str]:
    """The parts of a group label."""
    parts = (part.partition("=") for part in label.split("; ") if part)
    return {key: value.replace("%3B", ";").replace("%25", "%") for key, _, value in parts}


@dataclass(frozen=True)
class View:
    """The arms of one locus at its headline dose, as arrays; everything that a contrast needs."""

    arms: Arms
    locus: str
    dose: float
    level: float
    model: str
    caveat: str
    """said with every number; "" if there is nothing to say"""
    columns: Mapping[str, np.ndarray]
    """numbers of every arm, NaN for null; text as object arrays"""
    clusters: Int[np.ndarray, "arms 2"]
    """target and source of every arm; a random direction is a source of its own"""

    @classmethod
    def of(cls, arms: Arms, *, locus: str, dose: float, level: float, model: str, caveat: str) -> "View":
        """The view of one locus and dose."""
        table = arms.table
        keep = np.flatnonzero(
            pc.and_(pc.equal(table["locus"], locus), pc.equal(table["dose"], dose)).to_numpy(
                zero_copy_only=False
            )
        )
        place = np.full(table.num_rows, -1)
        place[keep] = np.arange(len(keep))
        cells = place[arms.cell_arm] >= 0
        part = table.take(pa.array(keep))
        here = Arms(part, place[arms.cell_arm[cells]], arms.cell_prompt[cells])
        text = ("sae", "relation", "token_set", "layer_type")
        columns = {
            name: part[name].to_numpy(zero_copy_only=False) if name in text else floats(part[name])
            for name in part.column_names
            if name != "locus"
        }
        target = group_codes(part, ("sae", "target"))
        source = group_codes(part, ("sae", "source"))
        draws = group_codes(part, ("sae", "target", "draw"))
        nameless = columns["source"] < 0
        source[nameless] = int(source.max(initial=-1)) + 1 + draws[nameless]
        clusters = np.column_stack([target, source])
        return cls(here, locus, dose, level, model, caveat, columns, clusters)

    def where(self, **wanted: str | int) -> Bool[np.ndarray, " arms"]:
        """Arms whose columns equal the values; `sae=*` takes all SAEs."""
        chosen = np.ones(len(self.clusters), dtype=bool)
        for name, value in wanted.items():
            if not (name == "sae" and value == POOLED):
                chosen &= np.asarray(self.columns[name] == value, dtype=bool)
        return chosen

    def group(self, **parts: str | float) -> str:
        """The label of a group in this view."""
        return group_label(
            **({"model": self.model, "locus": self.locus} | parts | {"dose": float(self.dose)})
        )


def effect_row(
    view: View,
    contrast: str,
    group: str,
    *,
    planned: Bool[np.ndarray, " arms"],
    used: Bool[np.ndarray, " arms"],
    regression: Regression,
    which: int = 0,
    method: str,
    unit: str,
    notes: Sequence[str] = (),
) -> dict[str, object]:
    """One row of EFFECTS: coefficient `which` of a regression on the arms `used` of those `planned`."""
    values = {name: _number(getattr(regression, name)[which]) for name in ("estimate", "lo", "hi", "p")}
    said = [
        f"not estimated: {regression.reason}" if regression.reason else "",
        regression.remark,
        *notes,
        _roles(view, used),
        view.caveat,
    ]
    c = view.columns
    named = used & (c["source"] >= 0)
    return {
        "contrast": contrast,
        "group": group,
        **values,
        "level": view.level,
        "method": method,
        "n_trials": int(2 * c["n_prompts"][used].sum()),
        "n_pairs": int(used.sum()),
        "n_targets": len(np.unique(view.clusters[used, 0])),
        "n_sources": len(np.unique(view.clusters[named, 1])),
        "n_prompts": view.arms.prompts(used),
        "n_missing": int((c["n_planned"] - c["n_ok"])[planned].sum()),
        "p_adj": None,
        "unit": unit,
        "note": "; ".join(s for s in said if s) or None,
    }


def _roles(view: View, used: Bool[np.ndarray, " arms"]) -> str:
    """A feature that is a target here and a source there links rows that two-way clustering takes for
    unrelated."""
    c = view.columns
    chosen = used & np.isin(c["relation"].astype(str), ("pair", "random_feature"))
    both = set(zip(c["sae"][chosen], c["target"][chosen], strict=True))
    both &= set(zip(c["sae"][chosen], c["source"][chosen], strict=True))
    return (
        f"{len(both)} features serve as target and as source; intervals do not count that link"
        if both
        else ""
    )


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
