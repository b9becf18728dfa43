"""The steps of a study as five calls in a Python session. What a later step needs travels inside the objects.

    pairs = map_pairs(sae, features)  ->  plan = make_plan(pairs, sae, features, model)
    trials = run_trials(plan, model)  ->  print(estimate(trials))

These are the stage functions that `polysem run` calls, with the settings of a study file as keywords and nothing written to disk.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from polysem.config import (
    CorpusConfig,
    EffectsConfig,
    ModelConfig,
    PairsConfig,
    PlanConfig,
    PromptsConfig,
    SAEConfig,
    Study,
)
from polysem.errors import ConfigError, MismatchError
from polysem.progress import SILENT, Reporter

if TYPE_CHECKING:
    from polysem.features import FeatureTable
    from polysem.models import WhiteBoxModel
    from polysem.saes import SAE

C = TypeVar("C", bound=BaseModel)


@dataclass(frozen=True)
class Pairs:
    """The map of pairs of one SAE, with the thresholds by which it was drawn."""

    pairs: pa.Table
    density: pa.Table
    spectrum: pa.Table
    partners: pa.Table
    label: str
    config: PairsConfig


@dataclass(frozen=True)
class PlannedStudy:
    """Every trial that will be run, and what running it needs besides the model."""

    plan: pa.Table
    prompts: pa.Table
    study: Study
    features: "FeatureTable"
    saes: "Mapping[str, SAE]"


@dataclass(frozen=True)
class TrialSet:
    """One row for every planned trial, and the plan."""

    trials: pa.Table
    planned: PlannedStudy


@dataclass(frozen=True)
class Estimates:
    """What was found: the tables of the effects stage. `print` shows the declared contrasts."""

    effects: pa.Table
    pair_effects: pa.Table
    dose_response: pa.Table
    missing: pa.Table
    explained: pa.Table
    validity: pa.Table
    specification: pa.Table
    power: pa.Table
    presets: pa.Table
    checks: pa.Table
    pair_tests: pa.Table
    replication: pa.Table
    reliability: pa.Table

    def __str__(self) -> str:
        declared = [row for row in self.effects.to_pylist() if row["p_adj"] is not None]
        rows = declared or self.effects.to_pylist()
        lines = [_sentence(row) for row in rows]
        lost = sum(row["n_trials"] for row in self.missing.to_pylist() if row["status"] != "ok")
        kept = sum(row["n_trials"] for row in self.missing.to_pylist() if row["status"] == "ok")
        return "\n".join([*lines, f"{kept} trials, {lost} more without an outcome"])


def map_pairs(sae: "SAE", features: "FeatureTable", *, label: str | None = None, **settings: Any) -> Pairs:
    """All pairs of an SAE's features: interference, gloss similarity, and what chance would give.

    Args:
        sae: the SAE.
        features: its feature table.
        label: its name in the feature table; None takes the only one there is.
        **settings: keys of `[pairs]` in a study file, such as `min_interference` and `max_similarity`.

    Raises:
        ConfigError: if a setting is unknown or out of range.
        MismatchError: if the feature table is of another SAE, or of several and no label is given.
    """
    from polysem import pairs as stage

    config = _settings(PairsConfig, settings)
    name = _label(features, label)
    made = stage.map_pairs(sae, features, config=config, label=name)
    return Pairs(made.pairs, made.density, made.spectrum, made.partners, label=name, config=config)


def make_plan(
    pairs: Pairs,
    sae: "SAE",
    features: "FeatureTable",
    model: "WhiteBoxModel",
    *,
    seed: int = 0,
    prompts: str | pa.Table = "corpus",
    n_prompts: int = 24,
    corpus: CorpusConfig | None = None,
    **settings: Any,
) -> PlannedStudy:
    """Targets, sources, controls, prompts and doses: every trial as a row, before any is run.

    Args:
        pairs: the map of pairs.
        sae: the SAE.
        features: its feature table.
        model: the model that will be run; here only its tokenizer is used.
        seed: root of every draw.
        prompts: `corpus`, `templates`, `file:PATH`, or a PROMPTS table.
        n_prompts: how many, where they are drawn.
        corpus: where corpus prompts come from; None takes the default of a study.
        **settings: keys of `[plan]` in a study file, such as `loci`, `n_targets`, `doses`.

    Raises:
        ConfigError: if a setting is unknown or out of range, or nothing can be planned.
        MismatchError: if the parts do not belong together.
    """
    from polysem import plan as stage
    from polysem.prompts import make_prompts

    drawn = PromptsConfig(source="corpus") if isinstance(prompts, pa.Table) else None
    study = Study(
        seed=seed,
        model=ModelConfig(ref=model.spec.ref),
        saes=(SAEConfig(ref=sae.provenance.ref, label=pairs.label),),
        corpus=corpus or CorpusConfig(),
        pairs=pairs.config,
        prompts=drawn or _settings(PromptsConfig, {"source": prompts, "n": n_prompts}),
        plan=_settings(PlanConfig, settings),
    )
    table = (
        prompts
        if isinstance(prompts, pa.Table)
        else make_prompts(study.prompts, study.corpus, model, prepend_bos=sae.prepend_bos, seed=seed)
    )
    saes = {pairs.label: sae}
    made = stage.make_plan(
        study, features, {"pairs": pairs.pairs, "partners": pairs.partners}, table, saes, model=model
    )
    return PlannedStudy(made.plan, made.prompts, study=study, features=features, saes=saes)


def run_trials(plan: PlannedStudy, model: "WhiteBoxModel", *, reporter: Reporter = SILENT) -> TrialSet:
    """Run every planned trial on the model.

    Args:
        plan: of `make_plan`.
        model: the model that the SAEs belong to.
        reporter: is told of every batch.

    Raises:
        MismatchError: if the plan does not belong to the model.
    """
    from polysem.trials import run_batches

    batches = sorted(set(plan.plan["batch"].to_pylist()))
    rows = run_batches(
        plan.plan, plan.prompts, plan.features, model, plan.saes, batches=batches, reporter=reporter
    )
    return TrialSet(rows, plan)


def estimate(trials: TrialSet, **settings: Any) -> Estimates:
    """Effects with intervals, dose-response, and what is missing.

    Args:
        trials: of `run_trials`.
        **settings: keys of `[effects]` in a study file, such as `level` and `max_kl`.

    Raises:
        ConfigError: if a setting is unknown or out of range.
    """
    from polysem.stats import estimate as stage

    planned = trials.planned
    config = _settings(EffectsConfig, settings)
    made = stage(planned.plan, trials.trials, config=config, seed=planned.study.seed)
    return Estimates(**made.tables())


def _settings(section: type[C], values: Mapping[str, Any]) -> C:
    try:
        return section(**values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            name = ".".join(map(str, item["loc"]))
            unknown = item["type"] == "extra_forbidden"
            expected = f"expected one of {', '.join(section.model_fields)}" if unknown else item["msg"]
            problems.append(f"{name} = {item['input']!r}: {expected}")
        raise ConfigError("; ".join(problems), hint="polysem init prints every setting") from error


def _label(features: "FeatureTable", label: str | None) -> str:
    known = sorted(features.embeddings)
    if label is None and len(known) == 1:
        return known[0]
    if label not in known:
        asked = "no label was given" if label is None else f"not {label!r}"
        raise MismatchError(
            f"the feature table is of {', '.join(known)}; {asked}", hint="map_pairs(..., label=...)"
        )
    return label


def _sentence(row: Mapping[str, Any]) -> str:
    if row["estimate"] is None:
        return f"{row['contrast']} [{row['group']}]: not estimated ({row['note'] or 'no data'})"
    interval = "" if row["lo"] is None or row["hi"] is None else f" [{row['lo']:.3g}, {row['hi']:.3g}]"
    p = "" if row["p_adj"] is None else f", p_adj = {row['p_adj']:.2g}"
    return (
        f"{row['contrast']} [{row['group']}]: {row['estimate']:.3g}{interval} {row['unit']}{p}, "
        f"{row['n_pairs']} pairs, {row['n_prompts']} prompts"
    )
