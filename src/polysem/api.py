"""The steps of a study as five calls in a Python session. What a later step needs travels inside the objects.

    pairs = map_pairs(sae, features)  ->  plan = make_plan(pairs, sae, features, model)
    trials = run_trials(plan, model)  ->  print(estimate(trials))

These are the stage functions that `polysem run` calls, with the settings of a study file as keywords and nothing written to disk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from polysem.config import (
    CorpusConfig,
    EffectsConfig,
    ModelConfig,
    PairsConfig,
    PlanConfig,
    PromptsConfig,
    SAEConfig,
    Study,
    section_of,
)
from polysem.errors import ConfigError, MismatchError
from polysem.pairs import GlossedFeatures, PairMap
from polysem.progress import SILENT, Reporter
from polysem.stats import Effects
from polysem.store.result import Result
from polysem.store.tables import CONTEXTS, FEATURES, NEAR
from polysem.vocabulary_findings import CLAIMS

if TYPE_CHECKING:
    from torch import Tensor

    from polysem.features import FeatureTable
    from polysem.models import WhiteBoxModel
    from polysem.saes import SAE
    from polysem.side_effects.run import SideEffects


@dataclass(frozen=True, repr=False)
class SAEPairs(PairMap):
    """The map of pairs of one SAE, with the thresholds by which it was drawn."""

    figure = "polysem.report.figures:pairs"

    label: str
    config: PairsConfig
    near: pa.Table = field(default_factory=NEAR.empty)
    """NEAR: the features close to vectors of one's own"""
    vectors: "Mapping[str, SAE]" = field(default_factory=dict)
    """those vectors by name, which a plan pushes for every target"""

    def only(self, *wanted: tuple[int, int]) -> "SAEPairs":
        """The same map with these pairs alone listed, in either order: a plan of it has their features as targets and them as
        sources, beside the controls and the sources of bins below the threshold.

        Raises:
            ConfigError: if one is not listed.
        """
        keys = {(min(pair), max(pair)) for pair in wanted}
        at = {key: n for n, key in enumerate(zip(*(self.pairs[k].to_pylist() for k in "ij"), strict=True))}
        if keys - at.keys():
            i, j = min(keys - at.keys())
            raise ConfigError(
                f"pair ({i}, {j}) is not listed: its interference is below {self.config.min_interference:g}, its glosses are "
                f"more alike than {self.config.max_similarity:g}, or one of the two has no gloss",
                hint="map_pairs(..., min_interference=..., max_similarity=...) with other thresholds",
            )
        return replace(self, pairs=self.pairs.take(sorted(at[key] for key in keys)))


@dataclass(frozen=True, repr=False)
class PlannedStudy(Result):
    """Every trial that will be run, and what running it needs besides the model."""

    figure = "polysem.report.figures:planned"

    plan: pa.Table
    prompts: pa.Table
    study: Study
    features: "FeatureTable"
    saes: "Mapping[str, SAE]"
    vectors: "Mapping[str, SAE]" = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class TrialSet(Result):
    """One row for every planned trial, and the plan."""

    figure = "polysem.report.figures:trials"

    trials: pa.Table
    planned: PlannedStudy


@dataclass(frozen=True, repr=False)
class Estimates(Effects):
    """What was found: the tables of the effects stage. `print` shows the declared contrasts and what may be said of them."""

    figure = "polysem.report.figures:estimates"

    planned: PlannedStudy | None = field(default=None, kw_only=True)

    def facts(self) -> Mapping[str, object]:
        rows = {(row["contrast"], row["group"]): row for row in self.effects.to_pylist()}
        told = [(f, rows[f["contrast"], f["group"]]) for f in self.findings.to_pylist() if f["declared"]]
        claims = {f"{f['contrast']} T-{f['token_set']}": f"{_number(row)}{_claim(f)}" for f, row in told}
        return claims | {"trials": sum(row["n_trials"] for row in self.missing.to_pylist())}

    def __str__(self) -> str:
        claims = {(f["contrast"], f["group"]): f for f in self.findings.to_pylist() if f["declared"]}
        declared = [row for row in self.effects.to_pylist() if (row["contrast"], row["group"]) in claims]
        rows = declared or self.effects.to_pylist()
        lines = [_sentence(row, claims.get((row["contrast"], row["group"]))) for row in rows]
        lost = sum(row["n_trials"] for row in self.missing.to_pylist() if row["status"] != "ok")
        kept = sum(row["n_trials"] for row in self.missing.to_pylist() if row["status"] == "ok")
        return "\n".join([*lines, f"{kept} trials, {lost} more without an outcome"])


def map_pairs(
    sae: "SAE | Tensor | np.ndarray | Mapping[str, Any]",
    features: "FeatureTable | Tensor | np.ndarray | Sequence[str | None]",
    *,
    label: str | None = None,
    embedder: str = "minilm",
    vectors: "Mapping[str, Tensor | np.ndarray] | None" = None,
    site: str | None = None,
    reporter: Reporter = SILENT,
    **settings: Any,
) -> SAEPairs:
    """All pairs of an SAE's features: interference, gloss similarity, and what chance would give.

    Args:
        sae: the SAE; or tensors, as `load_sae` takes them, W_dec [d_sae d_in] alone among them.
        features: its feature table; or one gloss (None: there is none) or one gloss embedding [d_sae d_embed] per feature.
        label: its name in the feature table; None takes the only one there is, and `sae` where there is no table.
        embedder: of glosses that are given as text, as `glosses.embedder` of a study.
        vectors: steering vectors [d] of one's own by name, as they are added at coefficient 1. They have no gloss: `near` lists
            the features close to them, and a plan of the map pushes them for every target.
        site: where the vectors are added; None: where the SAE writes.
        reporter: is told of progress.
        **settings: keys of `[pairs]` in a study file, such as `min_interference` and `max_similarity`.

    Raises:
        ConfigError: if a setting is unknown or out of range.
        MismatchError: if the feature table is of another SAE, or of several and no label is given; if there is not one
            gloss or embedding per feature.
    """
    import torch

    from polysem import pairs as stage
    from polysem.saes import SAE, load_sae
    from polysem.saes.load import as_dictionary
    from polysem.types import Site

    config = section_of(PairsConfig, settings)
    # what is read of an SAE here are its directions, which are the same at any site
    own = sae if isinstance(sae, SAE) else load_sae(sae, site="hook_embed")
    known = features if isinstance(features, GlossedFeatures) else _glossed(own, features, embedder, reporter)
    name = _label(known, label)
    made = stage.map_pairs(own, known, config=config, label=name, reporter=reporter)
    at = Site.parse(site) if site else own.writes
    given = {
        k: as_dictionary(torch.from_numpy(_vector(k, v)), site=at, ref=k) for k, v in (vectors or {}).items()
    }
    near = stage.near_vectors(given, own, known.features, config=config, label=name)
    return SAEPairs(**made.tables(), label=name, config=config, near=near, vectors=given)


@dataclass(frozen=True)
class _Glossed:
    """Glosses without a corpus: nothing is known of what the features fire on."""

    features: pa.Table
    contexts: pa.Table
    embeddings: Mapping[str, np.ndarray]


def _glossed(sae: "SAE", given: Any, embedder: str, reporter: Reporter) -> _Glossed:
    from polysem.glosses import Gloss, embed_glosses

    texts = not hasattr(given, "ndim") or given.ndim == 1
    if len(given) != sae.d_sae:
        raise MismatchError(f"{len(given)} {'glosses' if texts else 'embeddings'} for {sae.d_sae} features")
    index = np.arange(sae.d_sae)
    if texts:
        # a data frame's missing text is nan
        known = [
            (k, text) for k, text in enumerate(given) if not (text is None or text != text or text == "")
        ]
        odd = next(((k, text) for k, text in known if not isinstance(text, str)), None)
        if odd:
            raise MismatchError(f"the gloss of feature {odd[0]} is {odd[1]!r}; expected text, or None")
        glosses = [Gloss(k, text, "given") for k, text in known]
        rows = embed_glosses(glosses, index, embedder, cache=None, reporter=reporter).vectors
    else:
        rows = np.asarray(given, np.float32)
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    empty = {c.name: pa.nulls(sae.d_sae, c.dtype) for c in FEATURES.columns}
    table = pa.table(empty | {"sae": ["sae"] * sae.d_sae, "feature": pa.array(index, pa.int32())})
    return _Glossed(table, CONTEXTS.empty(), {"sae": rows})


def make_plan(
    pairs: SAEPairs,
    sae: "SAE",
    features: "FeatureTable",
    model: "WhiteBoxModel",
    *,
    seed: int = 0,
    prompts: str | pa.Table = "corpus",
    n_prompts: int = 24,
    corpus: str | CorpusConfig | None = None,
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
        corpus: where corpus prompts come from, as `corpus.ref` of a study or a whole section; None takes the text that the
            features were made from, else the default.
        **settings: keys of `[plan]` in a study file, such as `loci`, `n_targets`, `doses`.

    Raises:
        ConfigError: if a setting is unknown or out of range, or nothing can be planned.
        MismatchError: if the parts do not belong together.
    """
    from polysem import plan as stage
    from polysem.positions import positions_of
    from polysem.prompts import make_prompts

    text = corpus or features.corpus or CorpusConfig()
    drawn = PromptsConfig(source="corpus") if isinstance(prompts, pa.Table) else None
    study = Study(
        seed=seed,
        model=ModelConfig(ref=model.spec.ref),
        saes=(SAEConfig(ref=sae.provenance.ref, label=pairs.label),),
        corpus=text if isinstance(text, CorpusConfig) else CorpusConfig(ref=text),
        pairs=pairs.config,
        prompts=drawn or section_of(PromptsConfig, {"source": prompts, "n": n_prompts}),
        plan=section_of(PlanConfig, settings),
    )
    table = (
        prompts
        if isinstance(prompts, pa.Table)
        else make_prompts(study.prompts, study.corpus, model, positions=positions_of(model, sae), seed=seed)
    )
    saes = {pairs.label: sae}
    made = stage.make_plan(
        study,
        features,
        {"pairs": pairs.pairs, "partners": pairs.partners},
        table,
        saes,
        model=model,
        vectors=pairs.vectors,
    )
    return PlannedStudy(
        made.plan, made.prompts, study=study, features=features, saes=saes, vectors=pairs.vectors
    )


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
        plan.plan,
        plan.prompts,
        plan.features,
        model,
        {**plan.saes, **plan.vectors},
        batches=batches,
        reporter=reporter,
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
    from polysem.paper.presets import PaperEstimates
    from polysem.stats import estimate as stage

    planned = trials.planned
    config = section_of(EffectsConfig, settings)
    study = planned.study
    made = stage(planned.plan, trials.trials, config=config, seed=study.seed, beside=[PaperEstimates()])
    return Estimates(**made.tables(), planned=planned)


def steering_card(
    vectors: "Tensor | np.ndarray | Mapping[str, Tensor | np.ndarray]",
    plan: PlannedStudy,
    model: "WhiteBoxModel",
    *,
    site: str | None = None,
    target: str = "",
    dose: float = 0.05,
    unit: Literal["kl", "coefficient"] = "kl",
    n_null: int = 40,
    repair: bool = False,
    reporter: Reporter = SILENT,
) -> "SideEffects":
    """What steering vectors of one's own move besides what they are meant to, on the plan's prompts.

    Args:
        vectors: [d] of the site's width, as it is added at coefficient 1; or several by name.
        plan: of `make_plan`: its prompts, and its first SAE, whose features' tokens are read.
        model: the model that the plan belongs to.
        site: where they are added; None: the SAE's.
        target: what they are meant to move: a category, or words with commas; "": what each writes by itself.
        dose: nats, or times the vector as given.
        unit: kl | coefficient.
        n_null: isotropic directions that they are compared with.
        repair: look for the direction with least beside for each, too.
        reporter: is told of progress.

    Raises:
        ConfigError: a dose or target that cannot be.
        MismatchError: a vector of another shape, without length, or not finite; prompts of too few kinds.
    """
    from polysem.engine.side_effects import tokens_of
    from polysem.side_effects.directions import Direction
    from polysem.side_effects.run import side_effects
    from polysem.side_effects.scene import Scene, readouts_after
    from polysem.types import Site

    label, sae = next(iter(plan.saes.items()))
    at = Site.parse(site) if site else sae.writes
    words = not plan.study.prompts.chat_template
    tokens = tokens_of(model, target, word_start=words)
    given = vectors if isinstance(vectors, Mapping) else {"mine": vectors}
    own = [Direction(name, "given", at, _vector(name, one), tokens) for name, one in given.items()]
    readout = next(iter(readouts_after(model, at, plan.saes)), None)
    scene = Scene.of(
        *(model, sae, plan.features.features, plan.prompts),
        label=label, readout=(readout, plan.saes[readout]) if readout else None,
        positions=plan.study.plan.positions, word_start=words, seed=plan.study.seed,
    )  # fmt: skip
    said = {d.name: "asked" for d in own if tokens}
    return side_effects(
        scene, own, dose=dose, unit=unit, n_null=n_null, repair=repair, tokens_from=said, reporter=reporter
    )


def _vector(name: str, given: Any) -> np.ndarray:
    array = (
        given.detach().double().cpu().numpy() if hasattr(given, "detach") else np.asarray(given, np.float64)
    )
    if array.ndim != 1:
        raise MismatchError(f"{name} has shape {array.shape}; expected one vector, (d,)")
    return array


def _label(features: GlossedFeatures, label: str | None) -> str:
    known = sorted(features.embeddings)
    if label is None and len(known) == 1:
        return known[0]
    if label not in known:
        asked = "no label was given" if label is None else f"not {label!r}"
        raise MismatchError(
            f"the feature table is of {', '.join(known)}; {asked}", hint="map_pairs(..., label=...)"
        )
    return label


def _number(row: Mapping[str, Any]) -> str:
    if row["estimate"] is None:
        return f"not estimated ({row['note'] or 'no data'})"
    interval = "" if row["lo"] is None or row["hi"] is None else f" [{row['lo']:.3g}, {row['hi']:.3g}]"
    return f"{row['estimate']:.3g}{interval} {row['unit']}"


def _sentence(row: Mapping[str, Any], told: Mapping[str, Any] | None) -> str:
    named = f"{row['contrast']} [{row['group']}]: {_number(row)}"
    if row["estimate"] is None:
        return named
    p = "" if row["p_adj"] is None else f", p_adj = {row['p_adj']:.2g}"
    return f"{named}{p}, {row['n_pairs']} pairs, {row['n_prompts']} prompts" + (
        "" if told is None else _claim(told)
    )


def _claim(told: Mapping[str, Any]) -> str:
    against = f' (against "predicts": {told["against"]})' if told["claim"] == "associated" else ""
    return f": {CLAIMS[told['claim']].label}{against}"
