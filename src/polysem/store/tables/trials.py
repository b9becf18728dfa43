"""What was run."""

import pyarrow as pa

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import TRIAL

TRIALS = Schema(
    "trials",
    2,
    ("trial_id",),
    (
        TRIAL,
        Column("status", pa.string(), "", "ok | skipped | failed"),
        Column("reason", pa.string(), "", "why not ok; a word of trials.REASONS", nullable=True),
        Column("cosine_base", pa.float64(), "cosine", "weighted cosine c before the edit", nullable=True),
        Column("cosine_edit", pa.float64(), "cosine", "weighted cosine c after it", nullable=True),
        Column("mass_base", pa.float64(), "probability", "weighted overlap w = P(T) before", nullable=True),
        Column("mass_edit", pa.float64(), "probability", "weighted overlap w = P(T) after", nullable=True),
        Column("logodds_base", pa.float64(), "nats", "logit of P(T) before", nullable=True),
        Column("logodds_edit", pa.float64(), "nats", "logit of P(T) after", nullable=True),
        Column(
            "kl", pa.float64(), "nats", "KL(before || after) of the next-token distribution", nullable=True
        ),
        Column(
            "rho",
            pa.float64(),
            "share",
            "signed share of the shift that goes into the odds of T: sqrt(KL of T's odds / KL), in [-1, 1]",
            nullable=True,
        ),
        Column("top1_kept", pa.bool_(), "", "the most likely next token is unchanged", nullable=True),
        Column(
            "alignment",
            pa.float64(),
            "cosine",
            "realised direction . unit decoder row of the target",
            nullable=True,
        ),
        Column(
            "dose_absolute",
            pa.float64(),
            "activation",
            "signed norm of the vector added at each position; for neurons the relative change",
            nullable=True,
        ),
        Column(
            "resid_norm",
            pa.float64(),
            "activation",
            "mean norm of the site's activations at edited positions",
            nullable=True,
        ),
        Column("dtype", pa.string(), "", "dtype of the forward pass"),
    ),
)
