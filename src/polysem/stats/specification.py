"""The slope on interference under every defensible choice of pairs and fixed effects, and one p value for all.

Which threshold makes a pair interfere, which similarity makes it unrelated, and whether targets or layer types
are compared within are choices; a result that one of them makes and the next unmakes is none. The joint p value
asks whether the median |t| over all specifications is larger than it would be if, within each target, effects
were dealt to its sources at random (Simonsohn, Simmons and Nelson, Nature Human Behaviour 4, 2020). Dealing
within targets is what the choice of pairs by interference leaves exchangeable. Cost: one matrix product per
specification for all draws.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from polysem.seeds import rng_for
from polysem.stats.permute import permute_within
from polysem.stats.regress import within
from polysem.stats.rows import View
from polysem.store.tables import SPECIFICATION

MIN_INTERFERENCE = (0.0, 0.1, 0.2, 0.3)
MAX_SIMILARITY = (1.01, 0.3, 0.2, 0.1)
FIXED = ("layer_type", "target")
DRAWS = 999
MIN_PAIRS = 12
Rows = list[dict[str, object]]


class _Spec(NamedTuple):
    row: dict[str, object]
    used: Bool[np.ndarray, " arms"]
    design: Float[np.ndarray, "n k"]


def specifications(view: View, *, seed: int, draws: int = DRAWS) -> Rows:
    """SPECIFICATION of one locus at its headline dose, all SAEs together."""
    rows: Rows = []
    for tokens in sorted(set(view.columns["token_set"].tolist())):
        specs = list(_specs(view, tokens))
        p = _joint_p(view, specs, tokens, seed=seed, draws=draws) if specs else None
        for spec in specs:
            y = _outcome(view, spec)
            fit = view.regress(y, spec.design, spec.used)
            k = spec.design.shape[1] - 1 if spec.row["fixed_effects"] == "target" else 1
            numbers = {n: float(getattr(fit, n)[k]) for n in ("estimate", "lo", "hi")}
            shown = {n: v if np.isfinite(v) else None for n, v in numbers.items()}
            rows.append(spec.row | shown | {"n_pairs": int(spec.used.sum()), "p_joint": p})
    return rows


def specification_table(rows: Rows) -> pa.Table:
    return SPECIFICATION.conform(pa.Table.from_pylist(rows, schema=SPECIFICATION.arrow()))


def _specs(view: View, tokens: str):
    c = view.columns
    pairs = view.where(token_set=tokens, relation="pair") & np.isfinite(c["logodds"])
    pairs &= np.isfinite(c["interference"]) & np.isfinite(c["similarity"])
    for low in MIN_INTERFERENCE:
        for high in MAX_SIMILARITY:
            used = pairs & (np.abs(c["interference"]) >= low) & (c["similarity"] < high)
            for fixed in FIXED:
                x = c["interference"][used]
                if fixed == "target":
                    x = within(x[:, None], view.clusters[used, 0])
                    design = x
                else:
                    levels = sorted(set(c["layer_type"][used].tolist()))[1:]
                    dummies = [c["layer_type"][used] == level for level in levels]
                    design = np.column_stack([np.ones(len(x)), x, *dummies]).astype(np.float64)
                if used.sum() < MIN_PAIRS or np.ptp(x) <= 1e-9:
                    continue
                key = {"locus": view.locus, "token_set": tokens, "min_interference": low}
                yield _Spec(key | {"max_similarity": min(high, 1.0), "fixed_effects": fixed}, used, design)


def _outcome(view: View, spec: _Spec) -> Float[np.ndarray, " n"]:
    y = view.columns["logodds"][spec.used]
    if spec.row["fixed_effects"] == "target":
        return within(y[:, None], view.clusters[spec.used, 0])[:, 0]
    return y


def _joint_p(view: View, specs: list[_Spec], tokens: str, *, seed: int, draws: int) -> float | None:
    """(1 + draws with a median |t| as large) / (1 + draws)."""
    everyone = np.any([s.used for s in specs], axis=0)
    place = np.flatnonzero(everyone)
    rng = rng_for(seed, "specification", view.locus, tokens)
    dealt = permute_within(view.clusters[everyone, 0], draws=draws, rng=rng)
    whole = view.columns["logodds"]
    drawn = np.concatenate([whole[place][None], whole[place][dealt]]).T
    t = np.array([_t_values(view, s, drawn[np.isin(place, np.flatnonzero(s.used))]) for s in specs])
    known = np.isfinite(t).all(axis=1)
    if not known.any():
        return None
    median = np.median(np.abs(t[known]), axis=0)
    return float((1 + (median[1:] >= median[0] * (1 - 1e-12)).sum()) / (1 + draws))


def _t_values(view: View, spec: _Spec, y: Float[np.ndarray, "n draws"]) -> Float[np.ndarray, " draws"]:
    """t of interference for every column of y, two-way clustered (CRV1 without its constant factor)."""
    clusters = view.clusters[spec.used]
    if spec.row["fixed_effects"] == "target":
        y = within(y, clusters[:, 0])
    inverse = np.linalg.pinv(spec.design)
    weight = inverse[0 if spec.row["fixed_effects"] == "target" else 1]
    slope = weight @ y
    scores = weight[:, None] * (y - spec.design @ (inverse @ y))
    by = []
    for column in clusters.T:
        member = (np.unique(column)[:, None] == column).astype(np.float64)
        by.append(((member @ scores) ** 2).sum(0))
    variance = np.maximum.reduce([by[0] + by[1] - (scores**2).sum(0), *by])
    known = variance > 0
    return np.where(known, slope / np.sqrt(np.where(known, variance, 1.0)), np.nan)
