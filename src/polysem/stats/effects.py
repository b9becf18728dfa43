"""From plan and trials to effects: what was declared, estimated once, with everything that is missing
counted.

    anti-join -> odd parts and means over confirm prompts (arms) -> headline dose (chosen on select prompts)
    -> contrasts -> Holm

Nothing is chosen on the data that it is reported on: the headline dose comes from the KL of select prompts,
the hypotheses are listed here, and no contrast looks for a best dose, prompt or sign.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import EffectsConfig
from polysem.interventions.strengths import own_strengths, paper_strengths
from polysem.stats.arms import Arms, collect_arms, headline_dose, join_trials
from polysem.stats.checks import checks_of, checks_table, qap_checks
from polysem.stats.contrasts import all_contrasts
from polysem.stats.discovery import pair_tests, pair_tests_table
from polysem.stats.dose import dose_response, missing
from polysem.stats.explain import explained, explained_table, linear_of, validity
from polysem.stats.glosses import gloss_reliability
from polysem.stats.guard import stopped
from polysem.stats.multiple import adjust_p
from polysem.stats.power import seen_power
from polysem.stats.presets import Preset, compare_presets
from polysem.stats.replication import replications
from polysem.stats.rows import POOLED, View, parse_group
from polysem.stats.specification import specification_table, specifications
from polysem.store.tables import (
    CHECKS,
    EFFECTS,
    GRADIENT_MATRIX,
    GRADIENT_PATH,
    METRICS,
    PAIR_EFFECTS,
    PAIR_TESTS,
    PRESETS,
    RELIABILITY,
    REPLICATED,
    REPLICATION,
    RESPONSE,
    SIGNALS,
)

LOCI = ("feature", "clamp", "gradient", "prompt", "neuron", "mlp_neuron")
HYPOTHESES = (
    ("slope_interference", {"outcome": "logodds", "tokens": "in"}),
    ("slope_interference", {"outcome": "logodds", "tokens": "out"}),
    ("pair_minus_random_feature", {"outcome": "logodds", "tokens": "in", "bin": "all"}),
    ("pair_minus_random_direction", {"outcome": "logodds", "tokens": "in", "bin": "all"}),
    ("sign_agreement", {"outcome": "logodds", "tokens": "in"}),
)
"""The declared hypotheses: (contrast, parts of the group), all SAEs pooled, at the headline dose of the
study's first locus. Their p values are adjusted together (Holm); every other p value is descriptive."""
_DECLARED = frozenset(contrast for contrast, _ in HYPOTHESES)


@dataclass(frozen=True)
class Effects:
    """What a study found."""

    effects: pa.Table
    pair_effects: pa.Table
    dose_response: pa.Table
    missing: pa.Table
    explained: pa.Table
    validity: pa.Table
    specification: pa.Table
    power: pa.Table
    presets: pa.Table = field(default_factory=PRESETS.empty)
    checks: pa.Table = field(default_factory=CHECKS.empty)
    pair_tests: pa.Table = field(default_factory=PAIR_TESTS.empty)
    replication: pa.Table = field(default_factory=REPLICATION.empty)
    reliability: pa.Table = field(default_factory=RELIABILITY.empty)

    def tables(self) -> dict[str, pa.Table]:
        return {
            "effects": self.effects,
            "pair_effects": self.pair_effects,
            "dose_response": self.dose_response,
            "missing": self.missing,
            "presets": self.presets,
            "reliability": self.reliability,
            "explained": self.explained,
            "validity": self.validity,
            "specification": self.specification,
            "power": self.power,
            "checks": self.checks,
            "pair_tests": self.pair_tests,
            "replication": self.replication,
        }


def estimate(
    plan: pa.Table,
    trials: pa.Table,
    *,
    config: EffectsConfig,
    seed: int,
    model: str = "",
    preset: Preset = "strict",
    response: Mapping[str, pa.Table] | None = None,
    checks: bool = False,
    signals: pa.Table | None = None,
) -> Effects:
    """Every effect of a study.

    Args:
        plan: PLAN.
        trials: TRIALS; planned trials without a row count as `absent`.
        config: level of the intervals and limit of KL for the headline dose.
        seed: root seed of what resamples: intervals of held-out R2, the joint p of the specifications.
        model: named in the groups of the effects table where given.
        preset: whether the paper's estimates are added, in a table of their own.
        response: tables of the stage `response` by name; without them no model with linear response is judged.
        checks: whether second opinions are asked: mixed model and permutation test, seconds each.
        signals: SIGNALS; without it nothing is said of the reliability of gloss similarity.

    Raises:
        MismatchError: if trials are not of this plan, or the plan holds a trial twice.
        NumericsError: if an ok trial has an outcome that is not a finite number.
        StoreError: if a table does not have its schema.
    """
    whole = join_trials(plan, trials)
    joined = stopped(own_strengths(whole), stop_kl=config.stop_kl)
    paper = paper_strengths(whole)
    arms = collect_arms(joined)
    present = set(pc.unique(joined["locus"]).to_pylist())
    tables = response or {}
    linear = linear_of(arms, tables.get("response", RESPONSE.empty()))
    metrics = tables.get("metrics", METRICS.empty())
    rows: list[dict[str, object]] = []
    views: list[View] = []
    nested: list[dict[str, object]] = []
    curves: list[dict[str, object]] = []
    singles: list[dict[str, object]] = []
    second: list[dict[str, object]] = []
    for locus in (name for name in LOCI if name in present):
        dose, caveat = headline_dose(joined, locus, max_kl=config.max_kl)
        view = View.of(
            arms,
            locus=locus,
            dose=dose,
            level=config.level,
            model=model,
            caveat=caveat,
            margin=config.margin,
        )
        views.append(view)
        own = list(all_contrasts(view))
        rows += own
        singles += pair_tests(view)
        second += checks_of(view, own) if checks else ()
        curves += specifications(view, seed=seed)
        if response is not None:
            nested += explained(view, linear[view.place], metrics, seed=seed)
    if checks:
        matrix = tables.get("gradient_matrix", GRADIENT_MATRIX.empty())
        second += qap_checks(matrix, level=config.level, seed=seed)
    first = next((name for name in LOCI if name in present), "")
    effects = EFFECTS.conform(pa.Table.from_pylist(adjust(rows, locus=first), schema=EFFECTS.arrow()))
    return Effects(
        effects=effects,
        pair_effects=pair_effects(arms),
        dose_response=dose_response(joined, level=config.level),
        missing=missing(pa.concat_tables([joined, paper])),
        presets=compare_presets(joined, paper, views, preset=preset),
        reliability=gloss_reliability(SIGNALS.empty() if signals is None else signals, views),
        explained=explained_table(nested),
        validity=validity(arms, linear, tables.get("gradient_path", GRADIENT_PATH.empty())),
        specification=specification_table(curves),
        power=seen_power(_declared(rows), level=config.level),
        checks=checks_table(second),
        pair_tests=pair_tests_table(singles),
        replication=replications(tables.get("replicated", REPLICATED.empty()), level=config.level, seed=seed),
    )


def _declared(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Rows of the declared contrasts of every locus, with their locus and token set as keys."""
    found = []
    for row in rows:
        parts = parse_group(str(row["group"])) if row["contrast"] in _DECLARED else {}
        for contrast, wanted in HYPOTHESES:
            if row["contrast"] == contrast and ({"sae": POOLED} | wanted).items() <= parts.items():
                found.append(row | {"locus": parts["locus"], "token_set": parts["tokens"]})
    return found


def pair_effects(arms: Arms) -> pa.Table:
    """PAIR_EFFECTS: every arm, token set and dose with at least one confirm prompt that has both signs."""
    table = arms.table.filter(pc.greater(arms.table["n_prompts"], 0))
    return PAIR_EFFECTS.conform(table.select([c.name for c in PAIR_EFFECTS.columns]))


def adjust(rows: list[dict[str, object]], *, locus: str) -> list[dict[str, object]]:
    """The rows with `p_adj` (Holm) filled for the declared hypotheses of one locus.

    A declared hypothesis that could not be tested stays in the family with p = 1 and gets no adjusted value.
    """
    parts_of = [parse_group(str(row["group"])) if row["contrast"] in _DECLARED else {} for row in rows]
    places = [
        _place(rows, parts_of, contrast, {"locus": locus, "sae": POOLED} | parts)
        for contrast, parts in HYPOTHESES
    ]
    p = [None if place is None else rows[place]["p"] for place in places]
    tested = [1.0 if not isinstance(v, float) else v for v in p]
    adjusted = adjust_p(np.array(tested, dtype=np.float64), method="holm")
    result = [dict(row) for row in rows]
    for place, value, new in zip(places, p, adjusted, strict=True):
        if place is not None and value is not None:
            result[place]["p_adj"] = float(new)
    return result


def _place(
    rows: list[dict[str, object]], parts_of: list[dict[str, str]], contrast: str, parts: dict[str, str]
) -> int | None:
    for index, row in enumerate(rows):
        if row["contrast"] == contrast and parts.items() <= parts_of[index].items():
            return index
    return None
