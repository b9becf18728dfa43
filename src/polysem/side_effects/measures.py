"""What was pushed as numbers: each with an interval over prompts, beside its forecast and isotropic pushes of equal KL.

Things that moved most are chosen on one half of the prompts and reported on the other; every number of the tables is of
that other half.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from polysem.side_effects.linear import LinearEffects, against, participation, stability
from polysem.side_effects.push import Pushed
from polysem.vocabulary import SIDE_EFFECTS

TOP = 20
"""things of each kind that are listed"""
BEYOND = 0.95
"""quantile of isotropic pushes beyond which a thing is said to move"""
MIN_PROMPTS = 3
"""with fewer there is no interval"""
WHERE_ABSENT = {"cost_absent": "cost", "text_absent": "cost_text"}
"""measures of prompts without what a direction is meant to move, and the part of `Pushed` that they read"""
Places = Int[np.ndarray, " some"]


class Estimate(NamedTuple):
    """A number with its interval; NaN where there is none."""

    value: float
    lo: float = np.nan
    hi: float = np.nan
    se: float = np.nan

    def columns(self, name: str = "value", ends: str = "") -> dict[str, float]:
        """Of a row: the number by its name, and its interval as lo and hi, with `ends` in front of them."""
        return {name: self.value, f"{ends}lo": self.lo, f"{ends}hi": self.hi}


def jackknife(of: Callable[[Places], float], places: Places) -> Estimate:
    """A statistic of prompts, and its 95 % interval by leaving out one after the other (t with n - 1 degrees of freedom)."""
    from scipy import stats

    value = of(places) if len(places) else np.nan
    if len(places) < MIN_PROMPTS or not np.isfinite(value):
        return Estimate(value)
    left = np.array([of(np.delete(places, k)) for k in range(len(places))])
    n = len(places)
    se = float(np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum()))
    reach = float(stats.t.ppf(0.975, n - 1)) * se
    return Estimate(value, value - reach, value + reach, se)


def mean_of(values: Float[np.ndarray, " n"], places: Places | None = None) -> Estimate:
    """The mean over prompts, all of them or those at `places`."""
    some = np.arange(len(values)) if places is None else places
    return jackknife(lambda kept: float(values[kept].mean()), some)


@dataclass(frozen=True)
class Evidence:
    """What measures are computed from."""

    pushed: Pushed
    own: Int[np.ndarray, " n"]
    """column of each direction's own set; -1 without"""
    n_sets: int
    """token sets among which reach is counted, the first ones: those of features"""
    threshold: float = np.nan
    absent: Bool[np.ndarray, "n prompts"] | None = None
    """prompts without what each direction is meant to move; None: all of them"""

    def where(self, measure: str, row: int, places: Places) -> Int[np.ndarray, " fewer"]:
        """Those of some prompts of which a measure of a direction is."""
        some = None if self.absent is None or measure not in WHERE_ABSENT else self.absent[row]
        return places if some is None else places[some[places]]

    def value(self, measure: str, row: int, places: Places, own: int | None = None) -> float:
        """One measure of one direction over some prompts; NaN where it has none."""
        p, own = self.pushed, int(self.own[row]) if own is None else own
        places = self.where(measure, row, places)
        if not len(places):
            return np.nan
        match measure:
            case "cost_absent" | "text_absent":
                return float(getattr(p, WHERE_ABSENT[measure])[row, places].mean())
            case "on_target" | "cleanliness":
                if own < 0:
                    return np.nan
                on = float(p.sets[row, places, own].mean())
                return on if measure == "on_target" else on / float(np.sqrt(2 * p.kl[row, places].mean()))
            case "rho":
                return np.nan if own < 0 else float(p.rho[row, places, own].mean())
            case "kl" | "strength" | "text":
                return float(getattr(p, measure)[row, places].mean())
            case "stability":
                return float(stability(p.products[row][np.ix_(places, places)]))
            case "against":
                return against(p.products[row][np.ix_(places, places)])
            case "reach_sets":
                return float(participation((p.sets[row, places, : self.n_sets] ** 2).mean(0)))
            case "reach_features":
                return float(participation((p.latents[row, places] ** 2).mean(0)))
            case "reach_count":
                seen = p.latents[row, places]
                known = seen.shape[1] > 0 and np.isfinite(self.threshold)
                return float((np.abs(seen) > self.threshold).sum(1).mean()) if known else np.nan
            case "residual":
                moved = float(p.moved[row, places].mean())
                return float(p.missed[row, places].mean()) / moved if moved > 0 else np.nan
            case _:
                raise KeyError(measure)

    def good(self, row: int, among: Bool[np.ndarray, " prompts"]) -> Places:
        """Prompts of a half on which the direction took its dose."""
        return np.flatnonzero(among & self.pushed.reached[row])


def rank_p(value: float, null: Float[np.ndarray, " m"]) -> float:
    """Two-sided p of a value among exchangeable ones; NaN without any."""
    null = null[np.isfinite(null)]
    if not len(null) or not np.isfinite(value):
        return np.nan
    slack = 1e-12 * max(1.0, abs(value))
    tails = ((null >= value - slack).sum(), (null <= value + slack).sum())
    return float(min(1.0, 2 * (1 + min(tails)) / (1 + len(null))))


def measure_rows(
    seen: Evidence,
    null: Evidence,
    names: Sequence[str],
    *,
    confirm: Bool[np.ndarray, " prompts"],
    forecast: LinearEffects | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of SIDE_EFFECTS of the directions `names`, in the order of `seen`."""
    told: Mapping[str, Float[np.ndarray, " n"]] = {}
    if forecast is not None:
        told = {
            "on_target": forecast.on(seen.own),
            "cleanliness": forecast.cleanliness(seen.own),
            "stability": np.asarray(forecast.stability),
            "reach_sets": forecast.ratio,
            "strength": forecast.strength,
        }
    for row, name in enumerate(names):
        places = seen.good(row, confirm)
        others = [null.good(k, confirm) for k in range(len(null.own))]
        for measure in SIDE_EFFECTS:
            mine, own = seen.where(measure, row, places), int(seen.own[row])
            found = jackknife(lambda some, r=row, m=measure: seen.value(m, r, some), mine)
            among = np.array(
                [null.value(measure, k, seen.where(measure, row, p), own) for k, p in enumerate(others)]
            )
            known = among[np.isfinite(among)]
            lo, middle, hi = np.quantile(known, [1 - BEYOND, 0.5, BEYOND]) if len(known) else (np.nan,) * 3
            yield {
                "direction": name, "measure": measure, **found.columns(),
                "forecast": float(told[measure][row]) if measure in told else np.nan,
                "null": middle, "null_lo": lo, "null_hi": hi, "p": rank_p(found.value, known),
                "n_prompts": len(mine), "n_null": len(known),
            }  # fmt: skip


def moved_rows(
    seen: Evidence,
    null: Evidence,
    names: Sequence[str],
    kinds: Mapping[str, Sequence[str]],
    *,
    select: Bool[np.ndarray, " prompts"],
    confirm: Bool[np.ndarray, " prompts"],
    forecast: LinearEffects | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of SIDE_EFFECTS_MOVED: of every kind the TOP things that moved most on the select prompts, as they moved on
    the confirm prompts.

    Args:
        seen: the directions.
        null: isotropic pushes.
        names: of the directions.
        kinds: `tokens` and `category`, in the order of the columns of the sets, and `feature`, of the readout.
        select: prompts on which things are chosen.
        confirm: prompts on which they are reported.
        forecast: of the same directions and sets.
    """
    start = 0
    columns = {}
    for kind, labels in kinds.items():
        columns[kind] = slice(None) if kind == "feature" else slice(start, start + len(labels))
        start += 0 if kind == "feature" else len(labels)
    for row, name in enumerate(names):
        chosen_on, told_on = seen.good(row, select), seen.good(row, confirm)
        if not len(chosen_on) or not len(told_on):
            continue
        for kind, labels in kinds.items():
            if not labels:
                continue
            values = (seen.pushed.latents if kind == "feature" else seen.pushed.sets)[row][:, columns[kind]]
            others = null.pushed.latents if kind == "feature" else null.pushed.sets
            among = [
                others[k][null.good(k, confirm)][:, columns[kind]].mean(0)
                for k in range(len(null.own))
                if len(null.good(k, confirm))
            ]
            size = np.nan_to_num(np.abs(values[chosen_on].mean(0)), nan=-1.0)
            order = np.argsort(-size, kind="stable")[:TOP]
            limit = np.quantile(np.abs(among), BEYOND, axis=0) if among else np.full(len(labels), np.nan)
            for rank, k in enumerate(order.tolist()):
                found = mean_of(values[:, k], told_on)
                said = np.nan
                if forecast is not None and kind != "feature":
                    said = float(forecast.effect[row][columns[kind]][k])
                outside = bool(found.lo > 0 or found.hi < 0) and abs(found.value) > limit[k]
                yield {
                    "direction": name, "kind": kind, "rank": rank, "name": labels[k], "place": k,
                    "selected": float(values[chosen_on, k].mean()), "value": found.value, "lo": found.lo,
                    "hi": found.hi, "forecast": said, "null_hi": float(limit[k]), "beyond": bool(outside),
                    "n_prompts": len(told_on),
                }  # fmt: skip
