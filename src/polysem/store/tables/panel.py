"""What judges and explainers of a panel say about glosses."""

import pyarrow as pa

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import FEATURE, SAE

JUDGED = Schema(
    "annotations",
    1,
    ("sae", "i", "j", "judge"),
    (
        SAE,
        Column("i", pa.int32(), "", "first feature, i < j"),
        Column("j", pa.int32(), "", "second feature"),
        Column("judge", pa.string(), "", "name in the panel"),
        Column("similarity", pa.float64(), "cosine", "of the two glosses"),
        Column(
            "related",
            pa.float64(),
            "",
            "1 both orders say so, 0 neither, 0.5 they differ; null where a reply was no answer",
            nullable=True,
        ),
    ),
)

JUDGEMENTS = Schema(
    "judgements",
    1,
    ("measure", "judge", "other"),
    (
        Column("measure", pa.string(), "", "related | kappa | forced choice"),
        Column("judge", pa.string(), "", "name in the panel"),
        Column("other", pa.string(), "", "second judge of a kappa; else empty"),
        Column(
            "estimate",
            pa.float64(),
            "fraction or kappa",
            "the measure; null without usable answers",
            nullable=True,
        ),
        Column(
            "lo", pa.float64(), "fraction or kappa", "Wilson; bootstrap over pairs for kappa", nullable=True
        ),
        Column("hi", pa.float64(), "fraction or kappa", "upper end of the interval", nullable=True),
        Column("p", pa.float64(), "probability", "exact binomial against one half", nullable=True),
        Column(
            "agreement", pa.float64(), "fraction", "of pairs on which both judges say the same", nullable=True
        ),
        Column("n", pa.int64(), "pairs", "that count"),
        Column(
            "n_missing", pa.int64(), "pairs", "without an answer, or with answers that depend on the order"
        ),
        Column(
            "n_inconsistent", pa.int64(), "pairs", "annotated otherwise in the other order", nullable=True
        ),
        Column("level", pa.float64(), "probability", "nominal coverage"),
    ),
)

WRITTEN_GLOSSES = Schema(
    "written_glosses",
    1,
    ("sae", "feature", "explainer"),
    (
        SAE,
        FEATURE,
        Column("explainer", pa.string(), "", "name in the panel"),
        Column("judge", pa.string(), "", "who scored the gloss"),
        Column("gloss", pa.string(), "", "null where no reply was one", nullable=True),
        Column("detection", pa.float64(), "fraction", "contexts put right; chance is 0.5", nullable=True),
        Column("lo", pa.float64(), "fraction", "Wilson", nullable=True),
        Column("hi", pa.float64(), "fraction", "upper end of the interval of the score", nullable=True),
        Column("n", pa.int64(), "contexts", "judged"),
        Column("n_missing", pa.int64(), "contexts", "without an answer"),
        Column("level", pa.float64(), "probability", "nominal coverage"),
    ),
)
