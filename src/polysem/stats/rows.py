"""Rows of the effects table: one contrast, one group, one number or the reason why there is none.

A group is text such as `locus=feature; sae=*; outcome=logodds; tokens=in; dose=0.2`; `parse_group` reads it
back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from polysem.stats.arms import Arms, floats, group_codes
from polysem.stats.multiple import equivalence_p
from polysem.stats.regress import Errors, Regression, clustered_ols

POOLED = "*"
"""the value of `sae` for all SAEs together"""
SLOPE_STEP = 0.5
"""a slope on interference is judged by the difference between a pair at this interference and one at 0"""
SHARE_MARGIN = 0.05
"""a share is judged by its distance from one half: within this of it, it makes no difference"""
CLUSTERED = "SE two-way clustered by target and source (jackknife, max rule), t with G*-1 df"
DYADIC = "SE clustered by target, source and shared feature (jackknife, two-way and dyadic, the larger), t with G*-1 df"
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
    """features that are target and source of every arm, in one numbering over both roles; a random direction
    is a node of its own"""
    cells: Bool[np.ndarray, "arms prompts"]
    """which prompts each arm rests on"""
    margin: float
    """nats of log-odds that would matter"""
    place: Int[np.ndarray, " arms"]
    """row of every arm among those of all loci and doses"""

    @classmethod
    def of(
        cls,
        arms: Arms,
        *,
        locus: str,
        dose: float,
        level: float,
        model: str,
        caveat: str,
        margin: float = float("nan"),
    ) -> "View":
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
        cell_prompt = np.unique(here.cell_prompt, return_inverse=True)[1]
        grid = np.zeros((len(keep), int(cell_prompt.max(initial=-1)) + 1), dtype=bool)
        grid[here.cell_arm, cell_prompt] = True
        clusters = nodes(part)
        return cls(here, locus, dose, level, model, caveat, columns, clusters, grid, margin, keep)

    def where(self, **wanted: str | int) -> Bool[np.ndarray, " arms"]:
        """Arms whose columns equal the values; `sae=*` takes all SAEs."""
        chosen = np.ones(len(self.clusters), dtype=bool)
        for name, value in wanted.items():
            if not (name == "sae" and value == POOLED):
                chosen &= np.asarray(self.columns[name] == value, dtype=bool)
        return chosen

    def regress(
        self, y: Float[np.ndarray, " n"], design: Float[np.ndarray, "n k"], used: Bool[np.ndarray, " arms"]
    ) -> Regression:
        """`clustered_ols` on the arms `used`; dyadic where a feature is a target here and a source there."""
        return clustered_ols(
            y, design, self.clusters[used], level=self.level, errors=links(self.clusters[used])
        )

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
    margin: float = float("nan"),
    null: float = 0.0,
) -> dict[str, object]:
    """One row of EFFECTS: coefficient `which` of a regression on the arms `used` of those `planned`.

    Args:
        margin: differences from `null` below this make no difference; nan where none is declared.
        null: the value that stands for "no effect".
    """
    values = {name: _number(getattr(regression, name)[which]) for name in ("estimate", "lo", "hi", "p")}
    equal = equivalence_p(
        float(regression.estimate[which]) - null,
        float(regression.se[which]),
        float(regression.df[which]),
        margin=margin,
    )
    linked = len(_in_both_roles(view.clusters[used]))
    said = [
        f"not estimated: {regression.reason}" if regression.reason else "",
        regression.remark,
        *notes,
        f"{linked} features serve as target and as source" if linked else "",
        view.caveat,
    ]
    c = view.columns
    named = used & (c["source"] >= 0)
    clustering = DYADIC if linked else CLUSTERED
    return {
        "contrast": contrast,
        "group": group,
        **values,
        "level": view.level,
        "method": f"{method}; {clustering}",
        "n_trials": int(2 * c["n_prompts"][used].sum()),
        "n_pairs": int(used.sum()),
        "n_targets": len(np.unique(view.clusters[used, 0])),
        "n_sources": len(np.unique(view.clusters[named, 1])),
        "n_prompts": int(view.cells[used].any(axis=0).sum()),
        "n_missing": int((c["n_planned"] - c["n_ok"])[planned].sum()),
        "p_adj": None,
        "p_equivalent": None if np.isnan(margin) else _number(equal),
        # Not columns of EFFECTS: what the power of the declared contrasts is computed from.
        "se": _number(regression.se[which]),
        "df": _number(regression.df[which]),
        "margin": _number(margin),
        "unit": unit,
        "note": "; ".join(s for s in said if s) or None,
    }


def nodes(part: pa.Table) -> Int[np.ndarray, "arms 2"]:
    """Target and source of every arm as numbers of (SAE, feature); random directions count on from there."""
    sae = group_codes(part, ("sae",))
    names = np.column_stack([floats(part[who]) for who in ("target", "source")]).astype(np.int64)
    span = int(names.max(initial=0)) + 1
    code = np.unique(sae[:, None] * span + np.maximum(names, 0), return_inverse=True)[1].reshape(names.shape)
    nameless = names[:, 1] < 0
    code[nameless, 1] = int(code.max(initial=-1)) + 1 + group_codes(part, ("sae", "target", "draw"))[nameless]
    return code.astype(np.int64)


def links(clusters: Int[np.ndarray, "n 2"]) -> Errors:
    """dyadic where a feature is a target here and a source there, two_way otherwise."""
    return "dyadic" if len(_in_both_roles(clusters)) else "two_way"


def _in_both_roles(clusters: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, " features"]:
    return np.intersect1d(clusters[:, 0], clusters[:, 1])


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
