"""Defences of a finished transfer study."""

import pyarrow as pa

from polysem.store.schema import Column, Schema

DEFENCES = Schema(
    "defences",
    1,
    ("target", "defence", "arm", "category"),
    (
        Column("target", pa.string(), "", "name of the target in the study"),
        Column("defence", pa.string(), "", "monitor | filter"),
        Column("arm", pa.string(), "", "whose prompts are to be found"),
        Column("category", pa.string(), "", "of the prompts"),
        Column("auroc", pa.float64(), "probability", "that an attacked input scores above a clean one"),
        Column("lo", pa.float64(), "probability", "bootstrap over inputs"),
        Column("hi", pa.float64(), "probability", "upper end of the interval of auroc"),
        Column(
            "found", pa.float64(), "fraction", "attacked inputs flagged where 1 % of clean ones were to be"
        ),
        Column("found_lo", pa.float64(), "fraction", "Wilson"),
        Column("found_hi", pa.float64(), "fraction", "upper end of the interval of found"),
        Column(
            "false_positives",
            pa.float64(),
            "fraction",
            "clean inputs flagged, of those that set no threshold",
        ),
        Column("false_lo", pa.float64(), "fraction", "Wilson"),
        Column("false_hi", pa.float64(), "fraction", "upper end of the interval of false alarms"),
        Column("n_clean", pa.int64(), "inputs", "clean inputs that were scored"),
        Column("n_attacked", pa.int64(), "inputs", "attacked inputs that were scored"),
        Column("level", pa.float64(), "probability", "nominal coverage"),
    ),
)

PROTECTED = Schema(
    "protected",
    1,
    ("target", "category"),
    (
        Column("target", pa.string(), "", "name of the target in the study"),
        Column("category", pa.string(), "", "towards which it is steered; all others are protected"),
        Column("kept", pa.float64(), "fraction", "norm of what is left of the unit direction"),
        Column("off_before", pa.float64(), "nats", "mean |change| of protected categories, unprotected"),
        Column("off_after", pa.float64(), "nats", "... protected, at the same strength"),
        Column("reduction", pa.float64(), "fraction", "of the off-target change", nullable=True),
        Column("on_before", pa.float64(), "nats", "change of the category itself, unprotected"),
        Column("on_after", pa.float64(), "nats", "... protected"),
        Column("loss", pa.float64(), "fraction", "of the on-target change", nullable=True),
        Column("base_nats", pa.float64(), "nats per token", "of held-out text", nullable=True),
        Column("cost_before", pa.float64(), "nats per token", "change under the direction", nullable=True),
        Column("cost_after", pa.float64(), "nats per token", "... under what is left of it", nullable=True),
        Column("kl", pa.float64(), "nats", "dose of unprotected steering"),
        Column("n_features", pa.int64(), "features", "of which the direction is the mean"),
        Column("n_sentences", pa.int64(), "sentences", "on which effects are measured"),
        Column("n_texts", pa.int64(), "texts", "on which the cost is measured"),
    ),
)
