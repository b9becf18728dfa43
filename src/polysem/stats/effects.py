"""From plan and trials to effects: what was declared, estimated once, with everything that is missing
counted.

    anti-join -> odd parts and means over confirm prompts (arms) -> headline dose (chosen on select prompts)
    -> contrasts -> Holm -> grades

Nothing is chosen on the data that it is reported on: the headline dose comes from the KL of select prompts,
the hypotheses are listed here, and no contrast looks for a best dose, prompt or sign.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import EffectsConfig
from polysem.plan.strengths import other_strengths, own_strengths, single_neurons
from polysem.stats.arms import PRIMARY, Arms, collect_arms, headline_dose, join_trials
from polysem.stats.budgets import budgets
from polysem.stats.checks import checks_of, qap_checks
from polysem.stats.contrasts import Beside, all_contrasts
from polysem.stats.discovery import pair_tests
from polysem.stats.dose import dose_response, missing
from polysem.stats.explain import explained, linear_of, validity
from polysem.stats.grades import graded
from polysem.stats.guard import stopped
from polysem.stats.heterogeneity import between_saes
from polysem.stats.multiple import adjust_p
from polysem.stats.neurons import neuron_effects, neuron_slopes
from polysem.stats.power import seen_power
from polysem.stats.replication import replications
from polysem.stats.rows import POOLED, Rows, View, parse_group
from polysem.stats.similarity import Latent, gloss_reliability, latent_similarity, similarity_model
from polysem.stats.specification import specifications
from polysem.stats.survival import effect_survival, variance_components
from polysem.stats.toward import toward
from polysem.store.result import Result
from polysem.store.tables import (
    COVARIATES,
    EFFECTS,
    HETEROGENEITY,
    NEURON_DEGREES,
    NEURON_EFFECTS,
    NEURON_SLOPES,
    NEURONS,
    PAIR_EFFECTS,
    PRESETS,
    SIMILARITIES,
    SLOPES_WITHOUT,
    STAGES,
    VECTOR_EFFECTS,
)
from polysem.vocabulary import LOCI, TOKEN_SETS

HYPOTHESES = (
    *(("slope_interference", {"outcome": kind.outcome, "tokens": name}) for name, kind in TOKEN_SETS.items()),
    ("geometry_effect", {"outcome": PRIMARY, "tokens": "in", "bin": "all"}),
    ("pair_minus_cosine_matched", {"outcome": PRIMARY, "tokens": "in", "bin": "all"}),
    ("sign_agreement", {"outcome": PRIMARY, "tokens": "in"}),
)
"""The declared hypotheses: (contrast, parts of the group), all SAEs pooled, at the headline dose of the
study's first locus. Their p values are adjusted together (Holm); every other p value is descriptive."""
_DECLARED = frozenset(contrast for contrast, _ in HYPOTHESES)


@dataclass(frozen=True, repr=False)
class Effects(Result):
    """What a study found: a table for each of the stage's schemas, by its name."""

    effects: pa.Table
    pair_effects: pa.Table
    toward: pa.Table
    vector_effects: pa.Table
    budgets: pa.Table
    dose_response: pa.Table
    missing: pa.Table
    explained: pa.Table
    validity: pa.Table
    specification: pa.Table
    power: pa.Table
    checks: pa.Table
    pair_tests: pa.Table
    heterogeneity: pa.Table
    replication: pa.Table
    effect_survival: pa.Table
    variance_components: pa.Table
    reliability: pa.Table
    similarity_model: pa.Table
    latent_similarity: pa.Table
    neuron_effects: pa.Table
    neuron_slopes: pa.Table
    findings: pa.Table
    graded: pa.Table
    presets: pa.Table = field(default_factory=PRESETS.empty)
    slopes_without: pa.Table = field(default_factory=SLOPES_WITHOUT.empty)
    """where a study has relations of its features; `stats.kinship` makes it"""


def estimate(
    plan: pa.Table,
    trials: pa.Table,
    *,
    config: EffectsConfig,
    seed: int,
    model: str = "",
    response: Mapping[str, pa.Table] | None = None,
    checks: bool = False,
    similarities: pa.Table | None = None,
    covariates: pa.Table | None = None,
    neurons: Mapping[str, pa.Table] | None = None,
    beside: Sequence[Beside] = (),
) -> Effects:
    """Every effect of a study.

    Args:
        plan: PLAN.
        trials: TRIALS; planned trials without a row count as `absent`.
        config: level of the intervals and limit of KL for the headline dose.
        seed: root seed of what resamples: intervals of held-out R2, the joint p of the specifications.
        model: named in the groups of the effects table where given.
        response: tables of the stage `response` by name; without them no model with linear response is judged.
        checks: whether second opinions are asked: mixed model and permutation test, seconds each.
        similarities: SIMILARITIES; without it nothing is said of the reliability of gloss similarity.
        covariates: COVARIATES; without it the regressions of record hold similarity fixed and nothing else.
        neurons: NEURONS and NEURON_DEGREES by name; without them nothing is said of neurons one by one.
        beside: who else estimates on the same pairs and prompts.

    Raises:
        MismatchError: if trials are not of this plan, or the plan holds a trial twice.
        NumericsError: if an ok trial has an outcome that is not a finite number.
        StoreError: if a table does not have its schema.
    """
    whole = join_trials(plan, trials)
    joined = stopped(own_strengths(whole), stop_kl=config.stop_kl)
    arms = collect_arms(joined).beside(COVARIATES.empty() if covariates is None else covariates)
    given = {schema.name: schema.empty() for schema in STAGES["response"]} | dict(response or {})
    linear, asked = (linear_of(arms, given["response"], asked=a) for a in (False, True))
    measures = Latent.of(
        SIMILARITIES.empty() if similarities is None else similarities, level=config.level, seed=seed
    )
    rows: Rows = []
    views = views_of(joined, arms, config=config, model=model)
    names = ("explained", "specification", "checks", "pair_tests", "findings", "graded")
    made: dict[str, Rows] = {name: [] for name in names}
    for view in views:
        own = adjust(list(all_contrasts(view, beside)), locus=views[0].locus)
        rows += own
        made["pair_tests"] += pair_tests(view)
        made["checks"] += checks_of(view, own) if checks else ()
        curve = specifications(view, measures, seed=seed)
        told = [] if response is None else explained(view, asked[view.place], given["metrics"], seed=seed)
        found, lines = graded(
            view,
            own,
            declared_rows(own),
            declared=view is views[0],
            specification=curve,
            explained=told,
            seed=seed,
        )
        for name, more in (
            ("specification", curve),
            ("explained", told),
            ("findings", found),
            ("graded", lines),
        ):
            made[name] += more
    if checks:
        made["checks"] += qap_checks(given["gradient_matrix"], level=config.level, seed=seed)
    at = whole.filter(pc.equal(whole["locus"], views[0].locus)) if views else whole
    sites = {r["sae"]: r["site"] for r in at.group_by(["sae", "site"]).aggregate([]).to_pylist()}
    schemas = {schema.name: schema for schema in STAGES["effects"]}
    known = {s.name: s.empty() for s in (NEURONS, NEURON_DEGREES)} | dict(neurons or {})
    one_by_one, grids = neuron_effects(single_neurons(whole), known["neurons"], known["neuron_degrees"])
    return Effects(
        effects=EFFECTS.of(rows),
        pair_effects=pair_effects(arms),
        toward=toward(joined),
        vector_effects=vector_effects(arms),
        budgets=budgets(views, max_kl=config.max_kl, level=config.level, seed=seed),
        dose_response=dose_response(joined, level=config.level),
        missing=missing(pa.concat_tables([joined, other_strengths(whole)])),
        neuron_effects=NEURON_EFFECTS.of(one_by_one),
        neuron_slopes=NEURON_SLOPES.of(neuron_slopes(one_by_one, grids, level=config.level)),
        reliability=gloss_reliability(measures, views),
        similarity_model=similarity_model(measures, level=config.level),
        latent_similarity=latent_similarity(measures),
        validity=validity(arms, linear, given["gradient_path"]),
        power=seen_power(declared_rows(rows), level=config.level),
        heterogeneity=HETEROGENEITY.of(between_saes(declared_rows(rows), rows, sites=sites)),
        replication=replications(given["replicated"], level=config.level, seed=seed),
        effect_survival=effect_survival(given["replicated"], level=config.level, seed=seed),
        variance_components=variance_components(given["replicated"], level=config.level),
        **{name: schemas[name].of(found) for name, found in made.items()},
        **{name: table for one in beside for name, table in one.tables(joined, whole, views).items()},
    )


def views_of(joined: pa.Table, arms: Arms, *, config: EffectsConfig, model: str = "") -> list[View]:
    """Every locus of a plan at its headline dose, that of the declared hypotheses first.

    Args:
        joined: plan and trials, at their own strengths and stopped.
        model: named in the groups of the effects table where given.
    """
    present = set(pc.unique(joined["locus"]).to_pylist())
    made: list[View] = []
    for locus in (name for name in LOCI if name in present):
        dose, caveat = headline_dose(joined, locus, max_kl=config.max_kl)
        made.append(
            View.of(
                arms,
                locus=locus,
                dose=dose,
                level=config.level,
                model=model,
                margin=config.margin,
                caveat=caveat,
            )
        )
    return made


def declared_rows(rows: Rows) -> Rows:
    """Rows of the declared contrasts of every locus, with their locus and token set as keys."""
    found: Rows = []
    for row in rows:
        parts = parse_group(str(row["group"])) if row["contrast"] in _DECLARED else {}
        for contrast, wanted in HYPOTHESES:
            if row["contrast"] == contrast and ({"sae": POOLED} | wanted).items() <= parts.items():
                found.append(row | {"locus": parts["locus"], "token_set": parts["tokens"]})
    return found


def pair_effects(arms: Arms) -> pa.Table:
    """PAIR_EFFECTS: every arm of features and directions, token set and dose with at least one confirm prompt that has both
    signs."""
    table = arms.table.filter(pc.greater(arms.table["n_prompts"], 0))
    table = table.filter(pc.is_null(table["source_name"]))
    return PAIR_EFFECTS.conform(table.select([c.name for c in PAIR_EFFECTS.columns]))


def vector_effects(arms: Arms) -> pa.Table:
    """VECTOR_EFFECTS: the same of the study's own steering vectors, by name."""
    table = arms.table.filter(pc.greater(arms.table["n_prompts"], 0))
    named = table.filter(pc.is_valid(table["source_name"]))
    named = named.append_column("vector", named["source_name"])
    return VECTOR_EFFECTS.conform(named.select([c.name for c in VECTOR_EFFECTS.columns]))


def adjust(rows: Rows, *, locus: str) -> Rows:
    """The rows with `p_adj` (Holm) filled for the declared hypotheses of one locus.

    A declared hypothesis that could not be tested stays in the family with p = 1 and gets no adjusted value.
    """
    parts_of = [parse_group(str(row["group"])) if row["contrast"] in _DECLARED else {} for row in rows]
    places: list[int | None] = []
    for contrast, wanted in HYPOTHESES:
        parts = ({"locus": locus, "sae": POOLED} | wanted).items()
        same = (
            k for k, row in enumerate(rows) if row["contrast"] == contrast and parts <= parts_of[k].items()
        )
        places.append(next(same, None))
    p = [None if place is None else rows[place]["p"] for place in places]
    tested = [value if isinstance(value, float) else 1.0 for value in p]
    adjusted = adjust_p(np.array(tested, dtype=np.float64), method="holm")
    result = [dict(row) for row in rows]
    for place, value, new in zip(places, p, adjusted, strict=True):
        if place is not None and value is not None:
            result[place]["p_adj"] = float(new)
    return result
