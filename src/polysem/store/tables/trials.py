"""What was run."""

import pyarrow as pa

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import TRIAL
from polysem.vocabulary import CATEGORIES, KL, OUTCOMES

_OUTCOMES = tuple(
    Column(f"{name}_{when}", pa.float64(), outcome.unit, f"{outcome.help}, {said}", nullable=True)
    for name, outcome in OUTCOMES.items()
    for when, said in (("base", "before the edit"), ("edit", "after it"))
)

_TOWARD = tuple(
    Column(
        category.column,
        pa.float32(),
        "nats",
        f"change in the log-odds of {category.help}, whatever the target; null where the vocabulary has none",
        nullable=True,
    )
    for category in CATEGORIES.values()
)

TRIALS = Schema(
    "trials",
    5,
    ("trial_id",),
    (
        TRIAL,
        Column("status", pa.string(), "", "ok | skipped | failed"),
        Column("reason", pa.string(), "", "why not ok; a word of vocabulary.REASONS", nullable=True),
        *_OUTCOMES,
        Column("kl", pa.float64(), "nats", KL.help, nullable=True),
        Column(
            "rho",
            pa.float64(),
            "share",
            "signed share of the shift that goes into the odds of T: sqrt(KL of T's odds / KL), in [-1, 1]",
            nullable=True,
        ),
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
        Column(
            "coordinate",
            pa.float64(),
            "activation",
            "neurons: mean over the edited positions of what is multiplied, before the edit; null elsewhere",
            nullable=True,
        ),
        Column(
            "push_norm",
            pa.float64(),
            "activation",
            "mean norm of the change of the site's activations at edited positions; of injected text, at the tokens behind it",
            nullable=True,
        ),
        Column("dtype", pa.string(), "", "dtype of the forward pass"),
        *_TOWARD,
    ),
)
