"""What the model's gradient says about the planned pushes."""

import pyarrow as pa

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import SAE


def _part(name: str, meaning: str) -> Column:
    return Column(name, pa.float64(), "nats", meaning, nullable=True)


RESPONSE = Schema(
    "response",
    1,
    ("sae", "locus", "relation", "target", "source", "draw", "token_set", "dose"),
    (
        SAE,
        Column("locus", pa.string(), "", "as in plan"),
        Column("relation", pa.string(), "", "pair | self | random_feature"),
        Column("target", pa.int32(), "", ""),
        Column("source", pa.int32(), "", ""),
        Column("draw", pa.int32(), "", ""),
        Column("token_set", pa.string(), "", "in | out"),
        Column("dose", pa.float64(), "dose_unit", "absolute value, as in plan"),
        Column(
            "linear",
            pa.float64(),
            "nats",
            "linear response: gradient . push, mean over the prompts of pair_effects",
        ),
        Column(
            "linear_direct",
            pa.float64(),
            "nats",
            "its part that passes no further block; null where there is no direct path",
            nullable=True,
        ),
        Column("n_prompts", pa.int64(), "prompts", ""),
    ),
)

DECOMPOSITION = Schema(
    "decomposition",
    2,
    ("sae", "target", "source", "token_set"),
    (
        SAE,
        Column("target", pa.int32(), "", ""),
        Column("source", pa.int32(), "", ""),
        Column("token_set", pa.string(), "", "in | out"),
        Column("dose", pa.float64(), "dose_unit", "absolute value"),
        _part(
            "total",
            "odd change in log-odds; shared + common + own = direct + indirect = mediated + remainder",
        ),
        _part("shared", "of the part of the push along the target's direction: interference proper"),
        _part("common", "of the part along what all directions share"),
        _part("own", "of the rest: the source's own route"),
        _part("interaction", "total minus the three parts taken alone"),
        _part("direct", "without any further block; null where there is no direct path"),
        _part("indirect", "through further blocks"),
        _part("mediated", "of the target's own latent, moved as the encoder reads the push"),
        _part("remainder", "total minus mediated"),
        _part(
            "clean",
            "total on the target tokens that resemble none of the source's (cosine of embeddings below 0.5); null if none is left",
        ),
        Column("n_prompts", pa.int64(), "prompts", ""),
    ),
)

METRICS = Schema(
    "metrics",
    1,
    ("sae", "target", "source", "metric"),
    (
        SAE,
        Column("target", pa.int32(), "", ""),
        Column("source", pa.int32(), "", ""),
        Column("metric", pa.string(), "", "see linear/metrics.py"),
        Column("value", pa.float64(), "", "in the metric's own unit"),
    ),
)

COMPENSATION = Schema(
    "compensation",
    1,
    ("sae", "token_set", "band_lo", "band_hi"),
    (
        SAE,
        Column("token_set", pa.string(), "", "in | out"),
        Column("band_lo", pa.float64(), "cosine", "pairs with |interference| from here"),
        Column("band_hi", pa.float64(), "cosine", "to here"),
        Column(
            "estimate",
            pa.float64(),
            "",
            "lambda: 0 = interference propagates in full, 1 = the readout cancels it",
            nullable=True,
        ),
        Column("lo", pa.float64(), "", "lower end of the interval", nullable=True),
        Column("hi", pa.float64(), "", "upper end", nullable=True),
        Column("level", pa.float64(), "probability", "nominal coverage"),
        Column("floor", pa.float64(), "cosine", "crosstalk that no readout of so many features can go below"),
        Column("rms_cosine", pa.float64(), "cosine", "root mean square interference of the pairs"),
        Column("n_targets", pa.int64(), "features", ""),
        Column("n_sources", pa.int64(), "features", ""),
        Column("n_pairs", pa.int64(), "pairs", ""),
        Column("note", pa.string(), "", "why there is no estimate", nullable=True),
    ),
)

GRADIENT_PATH = Schema(
    "gradient_path",
    1,
    ("sae", "locus", "token_set", "dose", "target", "source"),
    (
        SAE,
        Column("locus", pa.string(), "", "as in plan"),
        Column("token_set", pa.string(), "", "in | out"),
        Column("dose", pa.float64(), "dose_unit", "absolute value"),
        Column("target", pa.int32(), "", ""),
        Column("source", pa.int32(), "", ""),
        Column("total", pa.float64(), "nats", "measured odd change in log-odds, mean over the prompts"),
        Column("linear", pa.float64(), "nats", "gradient at the prompt . push"),
        Column("path", pa.float64(), "nats", "gradient averaged from -push to +push . push"),
        Column("n_prompts", pa.int64(), "prompts", "confirm prompts sampled"),
    ),
)
"""A sample of pairs: what the gradient says at the prompt, and averaged along the push."""

GRADIENT_MATRIX = Schema(
    "gradient_matrix",
    1,
    ("sae", "token_set", "target", "source"),
    (
        SAE,
        Column("token_set", pa.string(), "", "in | out"),
        Column("target", pa.int32(), "", ""),
        Column("source", pa.int32(), "", ""),
        Column("interference", pa.float64(), "cosine", ""),
        Column(
            "linear", pa.float64(), "nats per unit", "gradient of the target . unit direction of the source"
        ),
    ),
)
"""Targets x features, neither chosen by interference: what permutation tests need."""

REPLICATED = Schema(
    "replicated",
    1,
    ("sae", "other", "token_set", "target", "source"),
    (
        SAE,
        Column("other", pa.string(), "", "SAE of the same site"),
        Column("token_set", pa.string(), "", "in | out; every SAE's own tokens"),
        Column("target", pa.int32(), "", "in `sae`"),
        Column("source", pa.int32(), "", "in `sae`"),
        Column("other_target", pa.int32(), "", "its match in `other`"),
        Column("other_source", pa.int32(), "", ""),
        Column("linear", pa.float64(), "nats per unit", "linear response in `sae`"),
        Column("other_linear", pa.float64(), "nats per unit", "the same pair's in `other`"),
        Column("matched", pa.float64(), "share", "of the features of `sae` that have a match in `other`"),
        Column("best_cosine", pa.float64(), "cosine", "mean over them of the best one in `other`"),
        Column("n_prompts", pa.int64(), "prompts", ""),
    ),
)
