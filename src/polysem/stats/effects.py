"""From plan and trials to effects: what was declared, estimated once, with everything that is missing
counted.

    anti-join -> odd parts and means over confirm prompts (arms) -> headline dose (chosen on select prompts)
    -> contrasts -> Holm

Nothing is chosen on the data that it is reported on: the headline dose comes from the KL of select prompts,
the hypotheses are listed here, and no contrast looks for a best dose, prompt or sign.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import EffectsConfig
from polysem.stats.arms import Arms, collect_arms, headline_dose, join_trials
from polysem.stats.contrasts import all_contrasts
from polysem.stats.dose import dose_response, missing
from polysem.stats.rows import POOLED, View, parse_group
from polysem.store.tables import EFFECTS, PAIR_EFFECTS

LOCI = ("feature", "gradient", "prompt", "neuron")
HYPOTHESES = (
    ("slope_interference", {"outcome": "logodds", "tokens": "in"}),
    ("slope_interference", {"outcome": "logodds", "tokens": "out"}),
    ("pair_minus_random_feature", {"outcome": "logodds", "tokens": "in", "bin": "all"}),
    ("pair_minus_random_direction", {"outcome": "logodds", "tokens": "in", "bin": "all"}),
    ("sign_agreement", {"outcome": "logodds", "tokens": "in"}),
)
"""The declared hypotheses: (contrast, parts of the group), all SAEs pooled, at the headline dose of the
study's first locus. Their p values are adjusted together (Holm); every other p value is descriptive."""


@dataclass(frozen=True)
class Effects:
    """What a study found."""

    effects: pa.Table
    pair_effects: pa.Table
    dose_response: pa.Table
    missing: pa.Table

    def tables(self) -> dict[str, pa.Table]:
        return {
            "effects": self.effects,
            "pair_effects": self.pair_effects,
            "dose_response": self.dose_response,
            "missing": self.missing,
        }


def estimate(
    plan: pa.Table, trials: pa.Table, *, config: EffectsConfig, seed: int, model: str = ""
) -> Effects:
    """Every effect of a study.

    Args:
        plan: PLAN.
        trials: TRIALS; planned trials without a row count as `absent`.
        config: level of the intervals and limit of KL for the headline dose.
        seed: root seed for estimators that resample; none of those here draws anything.
        model: named in the groups of the effects table where given.

    Raises:
        MismatchError: if trials are not of this plan, or the plan holds a trial twice.
        NumericsError: if an ok trial has an outcome that is not a finite number.
        StoreError: if a table does not have its schema.
    """
    joined = join_trials(plan, trials)
    arms = collect_arms(joined)
    present = set(pc.unique(joined["locus"]).to_pylist())
    rows: list[dict[str, object]] = []
    for locus in (name for name in LOCI if name in present):
        dose, caveat = headline_dose(joined, locus, max_kl=config.max_kl)
        view = View.of(arms, locus=locus, dose=dose, level=config.level, model=model, caveat=caveat)
        rows += all_contrasts(view)
    first = next((name for name in LOCI if name in present), "")
    effects = EFFECTS.conform(pa.Table.from_pylist(adjust(rows, locus=first), schema=EFFECTS.arrow()))
    return Effects(
        effects=effects,
        pair_effects=pair_effects(arms),
        dose_response=dose_response(joined, level=config.level),
        missing=missing(joined),
    )


def pair_effects(arms: Arms) -> pa.Table:
    """PAIR_EFFECTS: every arm, token set and dose with at least one confirm prompt that has both signs."""
    table = arms.table.filter(pc.greater(arms.table["n_prompts"], 0))
    return PAIR_EFFECTS.conform(table.select([c.name for c in PAIR_EFFECTS.columns]))


def adjust(rows: list[dict[str, object]], *, locus: str) -> list[dict[str, object]]:
    """The rows with `p_adj` (Holm) filled for the declared hypotheses of one locus.

    A declared hypothesis that could not be tested stays in the family with p = 1 and gets no adjusted value.
    """
    from statsmodels.stats.multitest import multipletests

    places = [
        _place(rows, contrast, {"locus": locus, "sae": POOLED} | parts) for contrast, parts in HYPOTHESES
    ]
    p = [None if place is None else rows[place]["p"] for place in places]
    adjusted = multipletests(np.array([1.0 if v is None else v for v in p], dtype=np.float64), method="holm")[
        1
    ]
    result = [dict(row) for row in rows]
    for place, value, new in zip(places, p, adjusted, strict=True):
        if place is not None and value is not None:
            result[place]["p_adj"] = float(new)
    return result


def _place(rows: list[dict[str, object]], contrast: str, parts: dict[str, str]) -> int | None:
    for index, row in enumerate(rows):
        if row["contrast"] == contrast and parts.items() <= parse_group(str(row["group"])).items():
            return index
    return None
