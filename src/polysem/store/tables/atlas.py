"""The linear response of all pairs: tables of `polysem atlas`."""

import pyarrow as pa

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import SAE

ATLAS_TOP = Schema(
    "atlas_top",
    1,
    ("sae", "target", "rank"),
    (
        SAE,
        Column("target", pa.int32(), "", "feature whose token set is read out"),
        Column("rank", pa.int32(), "", "0 is the source with the largest absolute effect"),
        Column("source", pa.int32(), "", "feature along whose direction is steered"),
        Column(
            "effect",
            pa.float64(),
            "nats per resid_norm",
            "predicted change of the target's log-odds per unit of dose, to first order, mean over prompts",
        ),
        Column("interference", pa.float64(), "cosine", "of the two unit decoder rows"),
        Column("similarity", pa.float64(), "cosine", "of the two gloss embeddings", nullable=True),
    ),
)

ATLAS_DENSITY = Schema(
    "atlas_density",
    1,
    ("sae", "axis", "cosine_lo", "effect_lo"),
    (
        SAE,
        Column("axis", pa.string(), "", "interference | similarity: which cosine"),
        Column("cosine_lo", pa.float64(), "cosine", "lower edge of the cell"),
        Column("cosine_hi", pa.float64(), "cosine", "upper edge"),
        Column(
            "effect_lo", pa.float64(), "nats per resid_norm", "lower edge; the end cells hold what is beyond"
        ),
        Column("effect_hi", pa.float64(), "nats per resid_norm", "upper edge"),
        Column(
            "count",
            pa.int64(),
            "pairs",
            "ordered pairs (target, source) in the cell; empty cells are left out",
        ),
    ),
)

ATLAS_SAMPLE = Schema(
    "atlas_sample",
    1,
    ("sae", "stratum", "target", "source", "prompt_id"),
    (
        SAE,
        Column("stratum", pa.string(), "", "uniform (over all pairs) | top (over atlas_top)"),
        Column("target", pa.int32(), "", "as in atlas_top"),
        Column("source", pa.int32(), "", "as in atlas_top"),
        Column("prompt_id", pa.string(), "", "key of prompts"),
        Column("dose", pa.float64(), "resid_norm", "at which the KL is reached"),
        Column("kl", pa.float64(), "nats", "KL(before || after) that was reached"),
        Column(
            "predicted",
            pa.float64(),
            "nats",
            "change of log-odds by the gradient of this prompt at this dose",
        ),
        Column("measured", pa.float64(), "nats", "change of log-odds under real steering"),
    ),
)

ATLAS_FIT = Schema(
    "atlas_fit",
    1,
    ("sae", "stratum"),
    (
        SAE,
        Column("stratum", pa.string(), "", "as in atlas_sample"),
        Column(
            "r2", pa.float64(), "", "1 - residual / variance of the measured effects; no refit", nullable=True
        ),
        Column("lo", pa.float64(), "", "95 % interval, bootstrap over pairs", nullable=True),
        Column("hi", pa.float64(), "", "95 % interval", nullable=True),
        Column("slope", pa.float64(), "", "measured on predicted, through zero", nullable=True),
        Column("n", pa.int64(), "interventions", "real trials that reached the KL"),
        Column("n_asked", pa.int64(), "interventions", "real trials that were tried"),
        Column(
            "n_targets", pa.int64(), "features", "targets of the atlas: those whose token set can be read"
        ),
        Column("n_pairs", pa.int64(), "pairs", "ordered pairs (target, source) of the atlas"),
        Column("n_prompts", pa.int64(), "prompts", "that the atlas is averaged over"),
    ),
)

ATLAS_TOWARD = Schema(
    "atlas_toward",
    1,
    ("sae", "category", "rank"),
    (
        SAE,
        Column("category", pa.string(), "", "whose words are read"),
        Column("rank", pa.int32(), "", "0 is the source with the largest effect"),
        Column("source", pa.int32(), "", "feature along whose direction is steered"),
        Column(
            "effect",
            pa.float64(),
            "nats per resid_norm",
            "predicted change of the log-odds of the category's words per unit of dose, mean over prompts",
        ),
        Column(
            "unrelated",
            pa.bool_(),
            "",
            "whether neither its gloss nor a token that activates it names a word of it",
        ),
        Column(
            "measured",
            pa.float64(),
            "nats",
            "change under real steering at the KL of the atlas, mean over prompts; null where it was not steered",
            nullable=True,
        ),
        Column("n_measured", pa.int64(), "prompts", "on which it was steered and reached the KL"),
    ),
)

ATLAS: tuple[Schema, ...] = (ATLAS_TOP, ATLAS_DENSITY, ATLAS_SAMPLE, ATLAS_FIT, ATLAS_TOWARD)
"""tables of `polysem atlas`, one file each per SAE"""
