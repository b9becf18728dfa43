"""The plan: every trial as a row, before any model runs.

Targets, sources and controls come from `plan.arms`; here they meet prompts, doses and token sets,
and forward passes are laid out: a batch is one site, one prompt and at most `batch_rows` distinct
rows (direction, signed dose). Several trials read one row (token sets, targets that share a source), so
trials outnumber rows. Everything follows from the inputs and the study's seed; a trial's id is the hash of
what is done in it, so it does not depend on what else is planned.
"""

import logging
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from polysem.act.arms import ArmsRequest
from polysem.act.base import UNMATCHED, intervention
from polysem.config import PlanConfig, Study
from polysem.errors import ConfigError, MismatchError
from polysem.hierarchy.known import Kinds, kinds_of
from polysem.models.base import WhiteBoxModel
from polysem.pairs import near_vectors
from polysem.plan.arms import control_arms, left_out, pair_arms
from polysem.plan.blocks import LocusBlock, blocks_of, settings_of
from polysem.plan.covariates import covariates
from polysem.plan.degrees import gloss_clusters
from polysem.plan.given import given_blocks
from polysem.plan.index import ByDictionary, FeatureIndex, Features, PairTables
from polysem.plan.neurons import neuron_blocks
from polysem.plan.screening import screen
from polysem.plan.targets import draw_targets
from polysem.saes.base import SAE
from polysem.seeds import short_hash
from polysem.store.schema import group_codes
from polysem.store.tables import (
    CONCEPTS,
    COVARIATES,
    NEAR,
    NEURON_DEGREES,
    NEURONS,
    PLAN,
    PROMPTS,
    SENSES,
    SIGNALS,
    SIMILARITIES,
    STAGES,
)
from polysem.vocabulary import PRESETS
from polysem.vocabulary_findings import KINSHIPS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What will be run."""

    plan: pa.Table
    prompts: pa.Table
    signals: pa.Table = field(default_factory=SIGNALS.empty)
    """of the planned pairs; empty without a model"""
    similarities: pa.Table = field(default_factory=SIMILARITIES.empty)
    """of planned and random pairs; empty without a model, and where the study names no further measure"""
    concepts: pa.Table = field(default_factory=CONCEPTS.empty)
    senses: pa.Table = field(default_factory=SENSES.empty)
    neurons: pa.Table = field(default_factory=NEURONS.empty)
    """where the study has a locus of neurons and a model"""
    neuron_degrees: pa.Table = field(default_factory=NEURON_DEGREES.empty)
    covariates: pa.Table = field(default_factory=COVARIATES.empty)
    near: pa.Table = field(default_factory=NEAR.empty)
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])
    """relation -> candidate sources of the targets that were not drawn for it"""

    def tables(self) -> dict[str, pa.Table]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "left_out"}


def make_plan(
    study: Study,
    features: Features,
    pairs: PairTables | Mapping[str, pa.Table] | ByDictionary[PairTables],
    prompts: pa.Table,
    saes: Mapping[str, SAE],
    *,
    model: WhiteBoxModel | None = None,
    relations: pa.Table | None = None,
    vectors: Mapping[str, SAE] | None = None,
) -> Plan:
    """Every trial of the study.

    Args:
        study: seed and the sections `plan` and `pairs`.
        features: FEATURES and gloss embeddings by SAE label; read one SAE at a time where it is `ByDictionary`.
        pairs: PAIRS and PARTNERS of all SAEs, as attributes or under the keys `pairs` and `partners`, or `ByDictionary`.
        prompts: PROMPTS, with their split.
        saes: by label, as in the tables.
        model: to look for pairs that are one concept twice, for the degrees of neurons, and for the locus
            `mlp_neuron`, whose neurons are chosen by what they write. Without it the first two are left out.
        relations: RELATIONS of all SAEs; needed where the study leaves related pairs out of its plan.
        vectors: steering vectors of one's own by name, as dictionaries of one feature (`saes.load.as_dictionary`).

    Raises:
        ConfigError: if the study leaves related pairs out and no relations are given; if there are no prompts, or no feature of any SAE can be a target.
        MismatchError: if the tables do not belong to the SAEs.
    """
    prompts = PROMPTS.conform(prompts)
    if not prompts.num_rows:
        raise ConfigError(
            "there are no prompts to plan on",
            hint="check [prompts] in the study, then: polysem plan STUDY.toml",
        )
    asked = study.relations
    excluded = asked.exclude if asked and asked.at == "plan" else ()
    if excluded and relations is None:
        raise ConfigError(
            f"the study leaves out pairs that are {', '.join(excluded)}, and no relations are given",
            hint="polysem kinship STUDY.toml, whose table `relations` is given here",
        )
    parts: list[pa.Table] = []
    n_batches, left = 0, Counter[str]()
    seen: dict[str, list[pa.Table]] = {
        s.name: [s.empty()] for s in STAGES["plan"] if s not in (PLAN, PROMPTS)
    }
    for label in sorted(saes):
        kin = _excluded(relations, label, excluded) if excluded and relations is not None else None
        index, own = _read(label, saes[label], features, pairs, kin)
        pa.default_memory_pool().release_unused()  # of what was read, and what it was filtered from
        blocks, screened, out = _chosen(index, study, own, model, prompts, vectors or {})
        if out:
            told = ", ".join(f"{KINSHIPS[kind].label} {out[kind]}" for kind in KINSHIPS if out[kind])
            log.info("SAE %s: candidate sources left out for what they are to the target: %s", label, told)
        left += out
        for name, table in screened.items():
            seen[name].append(table)
        for block in blocks:
            part, used = _lay_out(index, block, prompts, config=study.plan, first_batch=n_batches)
            parts.append(part)
            n_batches += used
        # what one wide SAE holds would be there beside the next
        del index, own, blocks, screened
        pa.default_memory_pool().release_unused()
    if not parts:
        raise ConfigError(
            f"no feature of the SAEs {', '.join(sorted(saes))} can be a target: none is glossed, neither "
            "dead nor dense, with target tokens, and "
            f"with a partner at interference >= {study.pairs.min_interference:g} "
            f"and similarity < {study.pairs.max_similarity:g}",
            hint="raise pairs.max_similarity or lower pairs.min_interference in the study file",
        )
    return Plan(
        plan=PLAN.conform(_joined(parts)),
        prompts=prompts,
        left_out=dict(left),
        **{name: pa.concat_tables(tables) for name, tables in seen.items()},
    )


def _joined(parts: list[pa.Table]) -> pa.Table:
    """All of them, and none is kept: a grid's plan is a gigabyte, and its columns are sorted one by one."""
    whole = pa.concat_tables(parts)
    parts.clear()
    return whole


def _read(
    label: str,
    sae: SAE,
    features: Features,
    pairs: PairTables | Mapping[str, pa.Table] | ByDictionary[PairTables],
    excluded: Kinds | None,
) -> tuple[FeatureIndex, Features]:
    """What is known of one SAE, and its own feature table."""
    if label not in features.embeddings:
        raise MismatchError(
            f"the feature table has no gloss embeddings for SAE {label!r}; "
            f"it has {', '.join(sorted(features.embeddings))}",
            hint="polysem features STUDY.toml",
        )
    own = _own(features, label)
    mined, partners = _pair_tables(pairs.only(label) if isinstance(pairs, ByDictionary) else pairs)
    index = FeatureIndex.of(
        label,
        sae,
        features=own.features,
        embeddings=own.embeddings[label],
        pairs=mined,
        partners=partners,
        contexts=own.contexts,
        excluded=excluded,
    )
    return index, own


def _own(features: Features | ByDictionary[Features], label: str) -> Features:
    if isinstance(features, ByDictionary):
        return features.only(label)  # pyright: ignore[reportUnknownVariableType]  (isinstance forgets of what)
    return features


def _chosen(
    index: FeatureIndex,
    study: Study,
    features: Features,
    model: WhiteBoxModel | None,
    prompts: pa.Table,
    vectors: Mapping[str, SAE],
) -> tuple[list[LocusBlock], dict[str, pa.Table], Counter[str]]:
    """What is planned of one SAE, the tables of its screening (none without a model), and what was left out for which
    relation. Targets, pairs and controls are drawn once, in this order: screening says which pairs are of two concepts, and
    only those have controls."""
    plan = settings_of(study)
    loci = {locus: intervention(locus) for locus in plan.loci}
    request = ArmsRequest(
        index,
        draw_targets(index, pairs=study.pairs, plan=plan, seed=study.seed),
        study.pairs,
        plan,
        study.seed,
        writes={name: acts.writes(model, index.sae) for name, acts in loci.items() if acts.neurons},
        embedding=model.W_E.detach().cpu().float().numpy()
        if model is not None and PRESETS[study.preset].blocks
        else None,
    )
    if request.writes:
        clusters = gloss_clusters(features.clusters, index.label, index.sae.d_sae)
        request = replace(request, clusters=clusters)
    arms, tables, out = pair_arms(request), {}, left_out(request)
    if model is not None:
        arms, tables = screen(replace(request, arms=arms), study, features, model, prompts)
    request = replace(request, arms=arms)
    arms = [*arms, *control_arms(request)]
    tables["covariates"] = covariates(index, arms, plan.token_sets, model)
    blocks = blocks_of(replace(request, arms=arms), study)
    blocks += neuron_blocks(request, tables.get("neurons", NEURONS.empty()))
    tables["near"] = near_vectors(
        vectors, index.sae, features.features, config=study.pairs, label=index.label
    )
    return [*blocks, *given_blocks(request, study, vectors)], tables, out


def _excluded(relations: pa.Table, label: str, excluded: Collection[str]) -> Kinds:
    own = kinds_of(relations.filter(pc.equal(relations["sae"], label)))
    return {pair: kind for pair, kind in own.items() if kind in excluded}


def describe_plan(plan: Plan) -> dict[str, int]:
    """Counts of a plan: what it costs (forward rows, batches, tokens) and what it holds."""
    table = plan.plan
    lengths = dict(
        zip(
            plan.prompts["prompt_id"].to_pylist(),
            pc.list_value_length(plan.prompts["token_ids"]).to_pylist(),
            strict=True,
        )
    )
    made = pc.not_equal(table["recipe"], UNMATCHED).to_numpy()
    pairs = pc.equal(table["relation"], "pair").to_numpy()
    row = group_codes(table, ("sae", "locus", "prompt_id", "recipe", "dose", "dose_unit"))
    _, first = np.unique(row[made], return_index=True)
    passes = table["prompt_id"].take(pa.array(np.flatnonzero(made)[first])).value_counts().to_pylist()
    counts = {
        "trials": table.num_rows,
        "forward_rows": len(first),
        "forward_tokens": sum(lengths[one["values"]] * one["counts"] for one in passes),
        "batches": _distinct(table, "batch"),
        "saes": _distinct(table, "sae"),
        "targets": _distinct(table, "sae", "target"),
        "sources": _distinct(table, "sae", "source", among=pairs),
        "pairs": _distinct(table, "sae", "target", "source", among=pairs),
        "unmatched": int((~made).sum()),
    }
    for split in ("select", "confirm"):
        among = pc.equal(table["split"], split).to_numpy()
        counts[f"prompts_{split}"] = _distinct(table, "prompt_id", among=among)
    relations = sorted(table["relation"].value_counts().to_pylist(), key=lambda one: one["values"])
    return counts | {f"trials_{one['values']}": one["counts"] for one in relations}


def _lay_out(
    index: FeatureIndex, block: LocusBlock, prompts: pa.Table, *, config: PlanConfig, first_batch: int
) -> tuple[pa.Table, int]:
    """Arms x prompts x token sets x signed doses as rows, with batches numbered from `first_batch`; and how
    many batches."""
    arms = block.arms
    doses = block.doses
    sources = [a.source_ref(index.label) for a in arms]
    shape = (prompts.num_rows, len(arms), len(config.token_sets), len(doses))
    prompt, arm, token_set, dose = (axis.ravel() for axis in np.indices(shape))
    # Distinct rows of one prompt, in the order of recipe and dose, cut every `batch_rows`. Refused controls
    # need no row.
    recipes = {text: k for k, text in enumerate(sorted({a.recipe for a in arms} - {UNMATCHED}))}
    chunks = max(1, math.ceil(len(recipes) * len(doses) / config.batch_rows))
    row = np.array([recipes.get(a.recipe, 0) for a in arms])[arm] * len(doses) + dose
    chunk = np.where(np.array([a.recipe == UNMATCHED for a in arms])[arm], 0, row // config.batch_rows)
    batch = first_batch + prompt * chunks + chunk

    def per_arm(name: str, dtype: pa.DataType) -> pa.Array:
        return pa.array([getattr(a, name) for a in arms], dtype).take(pa.array(arm))

    def fixed(value: str) -> pa.Array:
        return pa.repeat(pa.scalar(value), len(arm))

    columns = {
        "sae": fixed(index.label),
        "site": fixed(str(intervention(block.locus).site(block.dictionary or index.sae))),
        "locus": fixed(block.locus),
        "relation": per_arm("relation", pa.string()),
        "target": per_arm("target", pa.int32()),
        "source": per_arm("source", pa.int32()),
        "source_sae": pa.array([r and r.dictionary for r in sources], pa.string()).take(pa.array(arm)),
        "draw": per_arm("draw", pa.int32()),
        "pair_target": per_arm("pair_target", pa.int32()),
        "pair_source": per_arm("pair_source", pa.int32()),
        "recipe": per_arm("recipe", pa.string()),
        "interference_bin": per_arm("interference_bin", pa.int8()),
        "interference": per_arm("interference", pa.float64()),
        "similarity": per_arm("similarity", pa.float64()),
        "prompt_id": prompts["prompt_id"].combine_chunks().take(pa.array(prompt)),
        "token_set": pa.array(config.token_sets, pa.string()).take(pa.array(token_set)),
        "reads": pa.array(
            [block.reads.get(a.target) if name == "in" else None for a in arms for name in config.token_sets],
            pa.list_(pa.int32()),
        ).take(pa.array(arm * len(config.token_sets) + token_set)),
        "dose": pa.array(doses, pa.float64()).take(pa.array(dose)),
        "dose_unit": fixed(block.dose_unit),
        "positions": fixed(block.positions),
        "split": prompts["split"].combine_chunks().take(pa.array(prompt)),
        "block": pa.array([f"{index.label}/{a.target}" for a in arms]).take(pa.array(arm)),
        "batch": pa.array(batch, pa.int32()),
    }
    table = pa.table(columns)
    return table.append_column("trial_id", pa.array(trial_ids(table))), len(np.unique(batch))


_SPEC = (
    *("sae", "site", "locus", "relation", "target", "source", "draw", "recipe"),
    *("prompt_id", "token_set", "dose", "dose_unit", "positions"),
)
"""What is done in a trial; everything else in a row follows from it or is layout."""


def trial_ids(table: pa.Table) -> list[str]:
    """The id of every row of a plan: the hash of what is done in it."""
    specs = zip(*(table[name].to_pylist() for name in _SPEC), strict=True)
    reads = table["reads"].to_pylist()
    return [short_hash(*spec, *([ids] if ids else [])) for spec, ids in zip(specs, reads, strict=True)]


def _pair_tables(pairs: PairTables | Mapping[str, pa.Table]) -> tuple[pa.Table, pa.Table]:
    if isinstance(pairs, Mapping):
        return pairs["pairs"], pairs["partners"]
    return pairs.pairs, pairs.partners


def _distinct(table: pa.Table, *columns: str, among: Bool[np.ndarray, " rows"] | None = None) -> int:
    codes = group_codes(table, columns)
    return len(np.unique(codes if among is None else codes[among]))
