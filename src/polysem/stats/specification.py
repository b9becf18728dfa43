"""The slope on interference under every defensible choice of pairs and fixed effects, and one p value for all.

Which threshold makes a pair interfere, which similarity makes it unrelated, by which measure or by all of them, and whether
targets or layer types are compared within are choices; a result that one of them makes and the next unmakes is none. The joint p value
asks whether the median |t| over all specifications is larger than it would be if, within each target, effects
were dealt to its sources at random (Simonsohn, Simmons and Nelson, Nature Human Behaviour 4, 2020). Dealing
within targets is what the choice of pairs by interference leaves exchangeable. Cost: one matrix product per
specification for all draws.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from polysem.seeds import rng_for
from polysem.stats.arms import outcome_of, places
from polysem.stats.permute import permute_within
from polysem.stats.regress import layout_of, within
from polysem.stats.rows import Row, Rows, View, number
from polysem.stats.similarity import Latent

MIN_INTERFERENCE = (0.0, 0.1, 0.2, 0.3)
MAX_SIMILARITY = (1.01, 0.3, 0.2, 0.1)
FIXED = ("layer_type", "target")
ALL = "all"
"""in place of a measure: unrelated by every one of them"""
DRAWS = 999
MIN_PAIRS = 12


class _Spec(NamedTuple):
    row: Row
    used: Bool[np.ndarray, " arms"]
    design: Float[np.ndarray, "n k"]


def specifications(view: View, measures: Latent | None = None, *, seed: int, draws: int = DRAWS) -> Rows:
    """SPECIFICATION of one locus at its headline dose, all SAEs together.

    Args:
        measures: the further measures of similarity; None where there are none.
        seed: root seed of the permutations.
    """
    rows: Rows = []
    for tokens in view.token_sets:
        specs = [*_specs(view, tokens), *_further(view, tokens, measures)]
        p = _joint_p(view, specs, tokens, seed=seed, draws=draws) if specs else None
        for spec in specs:
            y = _outcome(view, spec)
            fit = view.regress(y, spec.design, spec.used)
            k = spec.design.shape[1] - 1 if spec.row["fixed_effects"] == "target" else 1
            numbers = {n: number(getattr(fit, n)[k]) for n in ("estimate", "lo", "hi")}
            rows.append(spec.row | numbers | {"n_pairs": int(spec.used.sum()), "p_joint": p})
    return rows


def _further(view: View, tokens: str, measures: Latent | None) -> Iterator[_Spec]:
    """The same with each further measure in place of the gloss cosine, and with all together; those whose pairs are no
    others than of one before are left out."""
    if measures is None:
        return
    grid, c = measures.grid, view.columns
    at = places(zip(c["sae"], c["target"], c["source"], strict=True), grid.pairs)
    values = np.where(at[:, None] >= 0, grid.values[at], np.nan)
    limits = {high: np.where(at[:, None] >= 0, grid.limits(high)[at], np.nan) for high in MAX_SIMILARITY}
    known = np.isfinite(values)
    for m, name in enumerate((*grid.measures[1:], ALL), start=1):
        low = {
            high: known[:, m] & (values[:, m] <= limit[:, m])
            if name != ALL
            else known[:, 0] & (values[:, 0] < limit[:, 0]) & ~(values > limit)[:, 1:].any(axis=1)
            for high, limit in limits.items()
        }
        seen: set[bytes] = set()
        for spec in _specs(view, tokens, low, name):
            key = spec.used.tobytes() + str(spec.row["fixed_effects"]).encode()
            if key not in seen:
                seen.add(key)
                yield spec


def _specs(
    view: View,
    tokens: str,
    unrelated: Mapping[float, Bool[np.ndarray, " arms"]] | None = None,
    name: str = "gloss",
) -> Iterator[_Spec]:
    c = view.columns
    pairs = view.mined(outcome_of(tokens), "interference", "similarity", token_set=tokens)
    for low in MIN_INTERFERENCE:
        for high in MAX_SIMILARITY:
            own = c["similarity"] < high if unrelated is None else unrelated[high]
            used = pairs & (np.abs(c["interference"]) >= low) & own
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
                key: Row = {
                    "locus": view.locus,
                    "token_set": tokens,
                    "similarity": name,
                    "min_interference": low,
                }
                yield _Spec(key | {"max_similarity": min(high, 1.0), "fixed_effects": fixed}, used, design)


def _outcome(view: View, spec: _Spec) -> Float[np.ndarray, " n"]:
    y = view.columns[outcome_of(str(spec.row["token_set"]))][spec.used]
    if spec.row["fixed_effects"] == "target":
        return within(y[:, None], view.clusters[spec.used, 0])[:, 0]
    return y


def _joint_p(view: View, specs: list[_Spec], tokens: str, *, seed: int, draws: int) -> float | None:
    """(1 + draws with a median |t| as large) / (1 + draws)."""
    everyone = np.any([s.used for s in specs], axis=0)
    place = np.flatnonzero(everyone)
    rng = rng_for(seed, "specification", view.locus, tokens)
    dealt = permute_within(view.clusters[everyone, 0], draws=draws, rng=rng)
    whole = view.columns[outcome_of(tokens)]
    drawn = np.concatenate([whole[place][None], whole[place][dealt]]).T
    t = np.array([_t_values(view, s, drawn[np.isin(place, np.flatnonzero(s.used))]) for s in specs])
    known = np.isfinite(t).all(axis=1)
    if not known.any():
        return None
    median = np.median(np.abs(t[known]), axis=0)
    return float((1 + (median[1:] >= median[0] * (1 - 1e-12)).sum()) / (1 + draws))


def _t_values(view: View, spec: _Spec, y: Float[np.ndarray, "n draws"]) -> Float[np.ndarray, " draws"]:
    """t of interference for every column of y, two-way clustered (CRV1 without its constant factor)."""
    made = layout_of(spec.design, view.clusters[spec.used], "two_way")
    target, source = (made.ways[who].adds for who in ("target", "source"))
    inside = spec.row["fixed_effects"] == "target"
    if inside:
        y = y - target.T @ ((target @ y) / target.sum(axis=1)[:, None])
    weight = made.inverse[0 if inside else 1]
    scores = weight[:, None] * (y - spec.design @ (made.inverse @ y))
    slope = weight @ y
    by = [((adds @ scores) ** 2).sum(0) for adds in (target, source)]
    variance = np.maximum.reduce([by[0] + by[1] - (scores**2).sum(0), *by])
    known = variance > 0
    return np.where(known, slope / np.sqrt(np.where(known, variance, 1.0)), np.nan)
