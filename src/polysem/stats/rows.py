"""Rows of the effects table: one contrast, one group, one number or the reason why there is none.

A group is text such as `locus=feature; sae=*; outcome=logodds; tokens=in; dose=0.2`; `parse_group` reads it
back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from polysem.stats.arms import Arms, equals, floats, places
from polysem.stats.multiple import equivalence_p
from polysem.stats.regress import Errors, Regression, clustered_ols
from polysem.store.schema import group_codes
from polysem.vocabulary import KL, OUTCOMES

Row = dict[str, object]
"""of a table that is being made"""
Rows = list[Row]
POOLED = "*"
"""the value of `sae` for all SAEs together"""
MINED = ("pair", "related_pair")
"""relations of pairs that interfere and have unlike glosses"""
REACH = 0.95
"""quantile of the sizes of a regressor up to which a slope is told and judged: beyond lie too few pairs"""
SHARE_MARGIN = 0.05
"""a share is judged by its distance from one half: within this of it, it makes no difference"""
CLUSTERED = "SE clustered by target and source (jackknife, max rule){}, t with G*-1 df"
DYADIC = "SE clustered by target, source and shared feature (jackknife, the larger){}, t with G*-1 df"


def reach(x: Float[np.ndarray, " n"]) -> float:
    """How far from zero a slope on x may be told: the 95th percentile of |x|; nan where nothing is known."""
    sizes = np.abs(x[np.isfinite(x)])
    return float(np.quantile(sizes, REACH)) if len(sizes) else float("nan")


def unit_of(outcome: str) -> str:
    """Unit of an outcome, or of the KL."""
    return "nats" if outcome == KL.name else OUTCOMES[outcome].unit


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

    @cached_property
    def pair_of(self) -> Int[np.ndarray, " arms"]:
        """Of every control that was drawn for one pair, the row of that pair; -1 for all others."""
        c = self.columns
        names = ("sae", "token_set", "target", "source")
        pairs = np.flatnonzero(self.where(relation="pair"))
        of = ("sae", "token_set", "pair_target", "pair_source")
        at = places(zip(*(c[n] for n in of), strict=True), zip(*(c[n][pairs] for n in names), strict=True))
        return np.where((at < 0) | self.where(relation="pair"), -1, np.append(pairs, -1)[at])

    def prompts(self, outcome: str) -> Float[np.ndarray, "arms prompts"]:
        """What every prompt adds to the mean effect of its arm; see `clustered_ols`."""
        if outcome not in self._prompts:
            grid = np.zeros(self.cells.shape)
            owner = self.arms.cell_arm
            prompt = np.unique(self.arms.cell_prompt, return_inverse=True)[1]
            count = np.bincount(owner, minlength=len(grid))
            values = self.arms.cell_effect[outcome]
            mean = np.bincount(owner, weights=values, minlength=len(grid)) / np.maximum(count, 1)
            grid[owner, prompt] = (values - mean[owner]) / count[owner]
            self._prompts[outcome] = grid
        return self._prompts[outcome]

    @cached_property
    def _prompts(self) -> dict[str, np.ndarray]:
        return {}

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
        kept = equals(table, locus=locus, dose=dose)
        here = arms.only(kept)
        part = here.table
        text = ("sae", "relation", "source_name", "token_set", "layer_type")
        columns = {
            name: part[name].to_numpy(zero_copy_only=False) if name in text else floats(part[name])
            for name in part.column_names
            if name != "locus"
        }
        cell_prompt = np.unique(here.cell_prompt, return_inverse=True)[1]
        grid = np.zeros((part.num_rows, int(cell_prompt.max(initial=-1)) + 1), dtype=bool)
        grid[here.cell_arm, cell_prompt] = True
        clusters = nodes(part)
        return cls(
            here, locus, dose, level, model, caveat, columns, clusters, grid, margin, np.flatnonzero(kept)
        )

    def only(self, kept: Bool[np.ndarray, " arms"]) -> "View":
        """The same locus and dose with these arms alone."""
        return replace(
            self,
            arms=self.arms.only(kept),
            columns={name: column[kept] for name, column in self.columns.items()},
            clusters=self.clusters[kept],
            cells=self.cells[kept],
            place=self.place[kept],
        )

    def kept_only(self, kept: Bool[np.ndarray, " arms"]) -> "View":
        """`only`, kept for whoever asks for the same arms again."""
        key = kept.tobytes()
        if key not in self._parts:
            self._parts[key] = self.only(kept)
        return self._parts[key]

    @cached_property
    def _parts(self) -> dict[bytes, "View"]:
        return {}

    @property
    def token_sets(self) -> list[str]:
        """Those that are planned here."""
        return sorted(set(self.columns["token_set"].tolist()))

    def known(self, *names: str, **wanted: str | int) -> Bool[np.ndarray, " arms"]:
        """Arms as in `where` whose columns `names` are numbers."""
        return np.all([self.where(**wanted), *(np.isfinite(self.columns[n]) for n in names)], axis=0)

    def mined(self, *names: str, **wanted: str | int) -> Bool[np.ndarray, " arms"]:
        """`known` pairs of the map, those included that another measure of similarity finds related."""
        kinds = (self.known(*names, relation=relation, **wanted) for relation in MINED)
        return np.logical_or.reduce(list(kinds))

    def where(self, **wanted: str | int) -> Bool[np.ndarray, " arms"]:
        """Arms whose columns equal the values; `sae=*` takes all SAEs."""
        chosen = np.ones(len(self.clusters), dtype=bool)
        for name, value in wanted.items():
            if not (name == "sae" and value == POOLED):
                chosen &= np.asarray(self.columns[name] == value, dtype=bool)
        return chosen

    def regress(
        self,
        y: Float[np.ndarray, " n"],
        design: Float[np.ndarray, "n k"],
        used: Bool[np.ndarray, " arms"],
        *,
        outcome: str = "",
    ) -> Regression:
        """`clustered_ols` on the arms `used`; dyadic where a feature is a target here and a source there. Prompts enter the
        standard error where y is linear in the effects of an `outcome`."""
        mine = self.clusters[used]
        prompts = self.prompts(outcome)[used] if outcome else None
        return clustered_ols(y, design, mine, level=self.level, errors=links(mine), prompts=prompts)

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
    prompts: bool = True,
) -> dict[str, object]:
    """One row of EFFECTS: coefficient `which` of a regression on the arms `used` of those `planned`; and, for the
    power of the declared contrasts, `se`, `df` and `margin`.

    Args:
        margin: differences from `null` below this make no difference; nan where none is declared.
        null: the value that stands for "no effect".
        prompts: whether prompts enter the standard error.
    """
    r = {name: getattr(regression, name)[which] for name in ("estimate", "se", "lo", "hi", "p", "df")}
    equal = equivalence_p(r["estimate"] - null, r["se"], r["df"], margin=margin)
    mine = view.clusters[used]
    linked = _in_both_roles(mine)
    said = [
        f"not estimated: {regression.reason}" if regression.reason else "",
        regression.remark,
        *notes,
        f"{linked} {'feature serves' if linked == 1 else 'features serve'} as target and as source"
        if linked
        else "",
        view.caveat,
    ]
    c = view.columns
    named = used & (c["source"] >= 0)
    clustering = DYADIC if linked else CLUSTERED
    return {
        "contrast": contrast,
        "group": group,
        **{name: number(value) for name, value in r.items()},
        "margin": number(margin),
        "level": view.level,
        "method": f"{method}; {clustering.format(' and prompt' * prompts)}",
        "n_trials": int(2 * c["n_prompts"][used].sum()),
        "n_pairs": int(used.sum()),
        "n_targets": int((np.bincount(mine[:, 0]) > 0).sum()),
        "n_sources": int((np.bincount(view.clusters[named, 1]) > 0).sum()),
        "n_prompts": int(view.cells[used].any(axis=0).sum()),
        "n_missing": int((c["n_planned"] - c["n_ok"])[planned].sum()),
        "p_adj": None,
        "p_equivalent": None if np.isnan(margin) else number(equal),
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
    return "dyadic" if _in_both_roles(clusters) else "two_way"


def _in_both_roles(clusters: Int[np.ndarray, "n 2"]) -> int:
    """How many features are a target here and a source there."""
    span = int(clusters.max(initial=-1)) + 1
    target, source = (np.bincount(column, minlength=span) > 0 for column in clusters.T)
    return int((target & source).sum())


def number(value: float) -> float | None:
    """For a table: null where there is no finite number."""
    return float(value) if np.isfinite(value) else None
