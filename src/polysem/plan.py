"""The plan: every trial as a row, before any model runs.

Targets, sources and controls come from `interventions.arms`; here they meet prompts, doses and token sets,
and forward passes are laid out: a batch is one SAE's site, one prompt and at most `batch_rows` distinct
rows (direction, signed dose). Several trials read one row (token sets, targets that share a source), so
trials outnumber rows. Everything follows from the inputs and the study's seed; a trial's id is the hash of
what is done in it, so it does not depend on what else is planned.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import PlanConfig, Study
from polysem.errors import ConfigError, MismatchError
from polysem.interventions.atlas import Atlas
from polysem.interventions.base import Recipe
from polysem.interventions.blocks import Block, blocks_of
from polysem.interventions.closer import look_closer
from polysem.interventions.mlp import mlp_writes, site_of
from polysem.models.base import WhiteBoxModel
from polysem.saes.base import SAE
from polysem.seeds import short_hash
from polysem.store.tables import NEURON_DEGREES, NEURONS, PLAN, PROMPTS, SIGNALS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What will be run."""

    plan: pa.Table
    prompts: pa.Table
    signals: pa.Table = field(default_factory=SIGNALS.empty)
    """of the planned pairs; empty without a model"""
    neurons: pa.Table = field(default_factory=NEURONS.empty)
    """where the study has a locus of neurons and a model"""
    neuron_degrees: pa.Table = field(default_factory=NEURON_DEGREES.empty)

    def tables(self) -> dict[str, pa.Table]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@runtime_checkable
class PairTables(Protocol):
    """The part of the map of pairs that planning reads."""

    @property
    def pairs(self) -> pa.Table: ...
    @property
    def partners(self) -> pa.Table: ...


@runtime_checkable
class Features(Protocol):
    """The part of the feature table that planning and running read."""

    @property
    def features(self) -> pa.Table: ...
    @property
    def embeddings(self) -> Mapping[str, np.ndarray]: ...


def make_plan(
    study: Study,
    features: Features,
    pairs: PairTables | Mapping[str, pa.Table],
    prompts: pa.Table,
    saes: Mapping[str, SAE],
    *,
    model: WhiteBoxModel | None = None,
) -> Plan:
    """Every trial of the study.

    Args:
        study: seed and the sections `plan` and `pairs`.
        features: FEATURES and gloss embeddings by SAE label.
        pairs: PAIRS and PARTNERS of all SAEs, as attributes or under the keys `pairs` and `partners`.
        prompts: PROMPTS, with their split.
        saes: by label, as in the tables.
        model: to look for pairs that are one concept twice, for the degrees of neurons, and for the locus
            `mlp_neuron`, whose neurons are chosen by what they write. Without it the first two are left out.

    Raises:
        ConfigError: if there are no prompts, or no feature of any SAE can be a target.
        MismatchError: if the tables do not belong to the SAEs.
    """
    prompts = PROMPTS.conform(prompts)
    if not prompts.num_rows:
        raise ConfigError(
            "there are no prompts to plan on", hint="check [prompts] in the study, then: polysem prompts"
        )
    mined, partners = _pair_tables(pairs)
    parts, n_batches = [], 0
    seen: dict[str, list[pa.Table]] = {s.name: [s.empty()] for s in (SIGNALS, NEURONS, NEURON_DEGREES)}
    for label in sorted(saes):
        if label not in features.embeddings:
            raise MismatchError(
                f"the feature table has no gloss embeddings for SAE {label!r}; "
                f"it has {', '.join(sorted(features.embeddings))}",
                hint="polysem features",
            )
        atlas = Atlas.of(
            label,
            saes[label],
            features=features.features,
            embeddings=features.embeddings[label],
            pairs=mined,
            partners=partners,
            contexts=getattr(features, "contexts", None),
        )
        if "mlp_neuron" in study.plan.loci:
            atlas = replace(atlas, mlp_writes=mlp_writes(model, saes[label]))
        if model is not None:
            atlas, looked = look_closer(atlas, study, features, model, prompts)
            for name, table in looked.items():
                seen[name].append(table)
        for block in blocks_of(atlas, study):
            part, used = _lay_out(atlas, block, prompts, config=study.plan, first_batch=n_batches)
            parts.append(part)
            n_batches += used
    if not parts:
        raise ConfigError(
            f"no feature of the SAEs {', '.join(sorted(saes))} can be a target: none is glossed, neither "
            "dead nor dense, with target tokens, and "
            f"with a partner at interference >= {study.pairs.min_interference:g} "
            f"and similarity < {study.pairs.max_similarity:g}",
            hint="raise pairs.max_similarity or lower pairs.min_interference in the study file",
        )
    return Plan(
        plan=PLAN.conform(pa.concat_tables(parts)),
        prompts=prompts,
        **{name: pa.concat_tables(tables) for name, tables in seen.items()},
    )


def describe_plan(plan: Plan) -> dict[str, int]:
    """Counts of a plan: what it costs (forward rows, batches, tokens) and what it holds."""
    table = plan.plan
    rows = table.filter(pc.not_equal(table["recipe"], Recipe.of("unmatched").text))
    forward = rows.group_by(["sae", "locus", "prompt_id", "recipe", "dose", "dose_unit"]).aggregate([])
    lengths = dict(
        zip(
            plan.prompts["prompt_id"].to_pylist(),
            pc.list_value_length(plan.prompts["token_ids"]).to_pylist(),
            strict=True,
        )
    )
    pair_rows = table.filter(pc.equal(table["relation"], "pair"))
    counts = {
        "trials": table.num_rows,
        "forward_rows": forward.num_rows,
        "forward_tokens": sum(lengths[p] for p in forward["prompt_id"].to_pylist()),
        "batches": _distinct(table, "batch"),
        "saes": _distinct(table, "sae"),
        "targets": _distinct(table, "sae", "target"),
        "sources": _distinct(pair_rows, "sae", "source"),
        "pairs": _distinct(pair_rows, "sae", "target", "source"),
        "unmatched": table.num_rows - rows.num_rows,
    }
    for split in ("select", "confirm"):
        counts[f"prompts_{split}"] = _distinct(table.filter(pc.equal(table["split"], split)), "prompt_id")
    for relation in sorted(pc.unique(table["relation"]).to_pylist()):
        counts[f"trials_{relation}"] = table.filter(pc.equal(table["relation"], relation)).num_rows
    return counts


def _lay_out(
    atlas: Atlas, block: Block, prompts: pa.Table, *, config: PlanConfig, first_batch: int
) -> tuple[pa.Table, int]:
    """Arms x prompts x token sets x signed doses as rows, with batches numbered from `first_batch`; and how
    many batches."""
    arms = block.arms
    doses = block.doses
    shape = (prompts.num_rows, len(arms), len(config.token_sets), len(doses))
    prompt, arm, token_set, dose = (axis.ravel() for axis in np.indices(shape))
    # Distinct rows of one prompt, in the order of recipe and dose, cut every `batch_rows`. Refused controls
    # need no row.
    unmatched = Recipe.of("unmatched").text
    recipes = {text: k for k, text in enumerate(sorted({a.recipe for a in arms} - {unmatched}))}
    chunks = max(1, math.ceil(len(recipes) * len(doses) / config.batch_rows))
    row = np.array([recipes.get(a.recipe, 0) for a in arms])[arm] * len(doses) + dose
    chunk = np.where(np.array([a.recipe == unmatched for a in arms])[arm], 0, row // config.batch_rows)
    batch = first_batch + prompt * chunks + chunk

    def per_arm(name: str, dtype: pa.DataType) -> pa.Array:
        return pa.array([getattr(a, name) for a in arms], dtype).take(pa.array(arm))

    def fixed(value: str) -> pa.Array:
        return pa.repeat(pa.scalar(value), len(arm))

    columns = {
        "sae": fixed(atlas.label),
        "site": fixed(str(site_of(block.locus, atlas.sae))),
        "locus": fixed(block.locus),
        "relation": per_arm("relation", pa.string()),
        "target": per_arm("target", pa.int32()),
        "source": per_arm("source", pa.int32()),
        "draw": per_arm("draw", pa.int32()),
        "recipe": per_arm("recipe", pa.string()),
        "interference_bin": per_arm("interference_bin", pa.int8()),
        "interference": per_arm("interference", pa.float64()),
        "similarity": per_arm("similarity", pa.float64()),
        "prompt_id": prompts["prompt_id"].combine_chunks().take(pa.array(prompt)),
        "token_set": pa.array(config.token_sets, pa.string()).take(pa.array(token_set)),
        "dose": pa.array(doses, pa.float64()).take(pa.array(dose)),
        "dose_unit": fixed(block.dose_unit),
        "positions": fixed(block.positions),
        "split": prompts["split"].combine_chunks().take(pa.array(prompt)),
        "block": pa.array([f"{atlas.label}/{a.target}" for a in arms]).take(pa.array(arm)),
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
    return [short_hash(*spec) for spec in zip(*(table[name].to_pylist() for name in _SPEC), strict=True)]


def _pair_tables(pairs: PairTables | Mapping[str, pa.Table]) -> tuple[pa.Table, pa.Table]:
    if isinstance(pairs, Mapping):
        return pairs["pairs"], pairs["partners"]
    return pairs.pairs, pairs.partners


def _distinct(table: pa.Table, *columns: str) -> int:
    return table.group_by(list(columns)).aggregate([]).num_rows
