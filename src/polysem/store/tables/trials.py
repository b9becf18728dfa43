"""What was run."""

from polysem.store.schema import Column
from polysem.store.tables import columns as c
from polysem.vocabulary import CATEGORIES, KL, OUTCOMES

_OUTCOMES = tuple(
    c.perhaps(f"{name}_{when}", outcome.unit, f"{outcome.help}, {said}")
    for name, outcome in OUTCOMES.items()
    for when, said in (("base", "before the edit"), ("edit", "after it"))
)

_TOWARD = tuple(
    Column(
        category.column,
        c.F32,
        "nats",
        f"change in the log-odds of {category.help}, whatever the target; null where the vocabulary has none",
        nullable=True,
    )
    for category in CATEGORIES.values()
)

TRIALS = c.table("trials", 5, "trial_id")(
    c.TRIAL,
    c.text("status", "ok | skipped | failed"),
    c.text("reason", "why not ok; a word of vocabulary.REASONS", nullable=True),
    *_OUTCOMES,
    c.perhaps("kl", "nats", KL.help),
    c.perhaps(
        "rho",
        "share",
        "signed share of the shift that goes into the odds of T: sqrt(KL of T's odds / KL), in [-1, 1]",
    ),
    c.perhaps("alignment", "cosine", "realised direction . unit decoder row of the target"),
    c.perhaps(
        "dose_absolute",
        "activation",
        "signed norm of the vector added at each position; for neurons the relative change",
    ),
    c.perhaps("resid_norm", "activation", "mean norm of the site's activations at edited positions"),
    c.perhaps(
        "coordinate",
        "activation",
        "neurons: mean over the edited positions of what is multiplied, before the edit; null elsewhere",
    ),
    c.perhaps(
        "push_norm",
        "activation",
        "mean norm of the change of the site's activations at edited positions; of injected text, at the tokens behind it",
    ),
    c.text("dtype", "dtype of the forward pass"),
    *_TOWARD,
)
