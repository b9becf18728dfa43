"""The plan: every trial as a row, before any model runs.

Targets, sources and controls come from `interventions.arms`; here they meet prompts, doses and token sets,
and forward passes are laid out: a batch is one SAE's site, one prompt and at most `batch_rows` distinct
rows (direction, signed dose). Several trials read one row (token sets, targets that share a source), so
trials outnumber rows. Everything follows from the inputs and the study's seed; a trial's id is the hash of
what is done in it, so it does not depend on what else is planned.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import PlanConfig, Study
from polysem.errors import ConfigError, MismatchError
from polysem.interventions.arms import Arm, Atlas, arms_of, draw_targets
from polysem.interventions.base import Recipe
from polysem.interventions.loci import clamp_arms, gradient_arms, neuron_arms, prompt_arms
from polysem.interventions.mlp import mlp_neuron_arms, mlp_writes, site_of
from polysem.interventions.negative import negative_arms
from polysem.models.base import WhiteBoxModel
from polysem.saes.base import SAE
from polysem.seeds import short_hash
from polysem.store.tables import PLAN, PROMPTS
from polysem.types import DoseUnit, Locus

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What will be run."""

    plan: pa.Table
    prompts: pa.Table

    def tables(self) -> dict[str, pa.Table]:
        return {"plan": self.plan, "prompts": self.prompts}


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
        model: only needed for the locus `mlp_neuron`, whose neurons are chosen by what they write.

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
        for block in _blocks(atlas, study):
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
    return Plan(plan=PLAN.conform(pa.concat_tables(parts)), prompts=prompts)


def describe_plan(plan: Plan) -> dict[str, int]:
    """Counts of a plan: what it costs (forward rows, batches, tokens) and what it holds."""
    table = plan.plan
    rows = table.filter(pc.not_equal(table["recipe"], Recipe.of("unmatched").text))
    forward = rows.group_by(["sae", "locus", "prompt_id", "recipe", "dose"]).aggregate([])
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


class _Block(NamedTuple):
    """What is planned at one locus."""

    locus: Locus
    arms: Sequence[Arm]
    doses: tuple[float, ...]
    dose_unit: DoseUnit


def _blocks(atlas: Atlas, study: Study) -> list[_Block]:
    """The arms of every locus that has some, with its doses."""
    plan, pairs, seed = study.plan, study.pairs, study.seed
    targets = draw_targets(atlas, pairs=pairs, plan=plan, seed=seed)
    arms = arms_of(atlas, targets, pairs=pairs, plan=plan, seed=seed)
    arms += negative_arms(atlas, targets, pairs=pairs, plan=plan, seed=seed)
    relative = plan.dose_unit != "kl"
    blocks = {
        "feature": lambda: _Block("feature", arms, plan.doses, plan.dose_unit),
        "gradient": lambda: _Block(
            "gradient", gradient_arms(atlas, arms, plan=plan), plan.doses, plan.dose_unit
        ),
        "clamp": lambda: _Block("clamp", clamp_arms(atlas, arms), plan.clamps, "max_act"),
        "prompt": lambda: _Block(
            "prompt", prompt_arms(atlas, arms, plan=plan, seed=seed), (1.0,), "injection"
        ),
        "neuron": lambda: _Block(
            "neuron",
            neuron_arms(atlas, targets, pairs=pairs, plan=plan, seed=seed),
            plan.factors if relative else plan.doses,
            "factor" if relative else "kl",
        ),
        "mlp_neuron": lambda: _Block(
            "mlp_neuron",
            mlp_neuron_arms(atlas, targets, pairs=pairs, plan=plan, seed=seed),
            plan.factors if relative else plan.doses,
            "factor" if relative else "kl",
        ),
    }
    made = [blocks[locus]() for locus in plan.loci]
    return [block for block in made if block.arms]


def _lay_out(
    atlas: Atlas, block: _Block, prompts: pa.Table, *, config: PlanConfig, first_batch: int
) -> tuple[pa.Table, int]:
    """Arms x prompts x token sets x signed doses as rows, with batches numbered from `first_batch`; and how
    many batches."""
    arms = block.arms
    doses = sorted({sign * dose for dose in block.doses for sign in (-1.0, 1.0)})
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
        "positions": fixed(config.positions),
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
