"""Tables of a transfer study."""

from collections.abc import Iterable

import pyarrow as pa

from polysem.store.schema import Column
from polysem.store.tables import columns as c
from polysem.vocabulary_transfer import TRANSFER_ARMS, TRANSFER_CONTRASTS
from polysem.vocabulary_transfer import TRANSFER_DIRECTIONS as KINDS

NUMBERS = pa.list_(pa.float64())


def _any(names: Iterable[str]) -> str:
    return " | ".join(names)


TARGET = c.text("target", "name of the target in the study")
CATEGORY = c.text("category", "whose words are read out")
ARM = c.text("arm", _any(TRANSFER_ARMS))
TEMPLATE = c.text("template", "how strings are written into the prompt")
POSITION = c.text("position", "where they stand")
SENTENCE = c.index("sentence", "number of the sentence in its category")
CATEGORIES = Column("categories", c.STRINGS, "", "order of the lists that follow")
REFERENCE = c.perhaps("reference", "unit", "the same under the reference")
ESTIMATE = c.perhaps("estimate", "unit", "treated minus reference")

TRANSFER_SHARED = c.table("transfer_shared", 1, "source_a", "source_b")(
    c.text("source_a", "first source"),
    c.text("source_b", "second source"),
    c.count("n_segments", "segments", "of text between common token ends"),
    c.count("n_matched", "features", "mutual nearest neighbours by correlation"),
    c.count("n_pairs_a", "pairs", "of matched features that pass in the first source"),
    c.count("n_pairs_b", "pairs", "... in the second"),
    c.count("n_shared", "pairs", "... in both"),
    c.number("expected", "pairs", "shared pairs under a permuted matching"),
    c.perhaps("lift", "ratio", "n_shared / expected"),
    *c.interval("ratio", "the interval of the lift", "lift"),
    c.perhaps("fraction", "fraction", "chance-corrected share of common structure"),
    *c.interval("fraction", "the interval of the fraction", "fraction"),
    c.perhaps("p", "probability", "one-sided, from permuted matchings"),
    c.LEVEL,
)

TRANSFER_SETS = c.table("transfer_sets", 1, "category", "arm")(
    *(CATEGORY, ARM),
    c.count("n_strings", "strings", "disjoint from those of the arms of its family"),
    c.count("n_treated", "pools", "treated pools; 0 where the arm could not be run"),
    c.count("n_reference", "pools", "matched reference pools"),
    c.text("overlap", "strings in common with other arms before sets were made disjoint: JSON"),
    c.text("imbalance", "treated minus reference, in SDs of the universe, by covariate: JSON"),
    c.text("reason", "why the arm was not run", nullable=True),
)

TRANSFER_TRIALS = c.table(
    "transfer_trials", 2, "target", "category", "arm", "template", "position", "pool", "sentence", "draw"
)(
    TARGET,
    c.text("category", "whose sentences and arm sets were used"),
    *(ARM, TEMPLATE, POSITION),
    c.index("pool", "treated pools from 0 up; reference pools from -1 down"),
    SENTENCE,
    c.index("draw", "number of the draw from the pool"),
    CATEGORIES,
    Column(
        "logodds",
        NUMBERS,
        "nats",
        "change of the log-odds of each category, estimated under truncation; NaN: not measurable",
    ),
    Column("logodds_sd", NUMBERS, "nats", "standard error of it from truncation; 0 of whole answers"),
    Column("logodds_lo", NUMBERS, "nats", "its lower bound under truncation; -inf where none"),
    Column("logodds_hi", NUMBERS, "nats", "its upper bound under truncation; inf where none"),
    Column("mass", NUMBERS, "probability", "change of the probability of each category; NaN: not measurable"),
    Column("mass_lo", NUMBERS, "probability", "its lower bound under truncation"),
    Column("mass_hi", NUMBERS, "probability", "its upper bound under truncation"),
    Column("success", NUMBERS, "", "1 more, 0 as many, -1 fewer words in the top k; NaN: k was not granted"),
    Column(
        "share",
        NUMBERS,
        "fraction",
        "of each category's estimated probability, granted or drawn in answers to the category's sentences",
    ),
    Column("k_needed", NUMBERS, "log-probabilities", "that would grant half of it; 0 of whole answers"),
    c.number("kl_lo", "nats", "lower bound of KL(baseline || injected)"),
    c.number("kl_hi", "nats", "upper bound; inf under truncation"),
    c.number("tv_lo", "probability", "lower bound of the total variation distance"),
    c.number("tv_hi", "probability", "upper bound"),
    c.number("missing", "probability", "mass of tokens that were not granted"),
    c.flag("refused", "the answer declines"),
)

TRANSFER_EFFECTS = c.table(
    "transfer_effects", 2, "target", "contrast", "arm", "category", "template", "position"
)(
    TARGET,
    c.text("contrast", _any(TRANSFER_CONTRASTS)),
    *(ARM, CATEGORY, TEMPLATE, POSITION),
    c.perhaps("treated", "unit", "mean under treated pools"),
    *(REFERENCE, ESTIMATE),
    *c.interval("unit"),
    c.LEVEL,
    c.perhaps("bound_lo", "unit", "least estimate that truncated answers allow"),
    c.perhaps("bound_hi", "unit", "largest estimate that truncated answers allow"),
    c.perhaps("truncation_sd", "unit", "standard error of the estimate from truncation; in the interval"),
    c.perhaps("p", "probability", "of the contrast's own test"),
    c.perhaps("p_adj", "probability", "max-T over all categories"),
    c.perhaps("noise_floor", "unit", "1.96 SDs of the estimate from jitter alone"),
    c.perhaps("kl", "nats", "mean KL of treated prompts (lower bound under truncation)"),
    c.perhaps("refused", "fraction", "treated answers that decline"),
    c.count("n_sentences", "sentences", "of the category"),
    c.count("n_treated", "pools", "treated pools that are compared"),
    c.count("n_reference", "pools", "pools that they are compared with"),
    c.count("n_trials", "trials", "of the arm, those of reference pools included"),
    c.UNIT,
    c.text("note", "what must be said next to the number", nullable=True),
)

TRANSFER_TARGETS = c.table("transfer_targets", 2, "target")(
    TARGET,
    c.text("what", "kind, model and address"),
    c.count("asked", "log-probabilities", "asked for; null where all are there", nullable=True),
    c.count("granted", "log-probabilities", "given by the server; null where all are there", nullable=True),
    c.number("missing", "probability", "mean mass that was not granted"),
    c.count("n_lost", "answers", "in which tokens of equal text were lost"),
    c.text("conventions", "how it was asked and answers: form, spelling, BOS, model"),
    c.perhaps("noise", "nats", "SD of a repeated baseline's log-odds, over categories"),
    c.count("n_prompts", "prompts", "distinct prompts that the study asks"),
    c.number("cost", "unit of the study", "of all of them, by the declared price"),
    c.text("cost_unit", "unit of the cost, as the study names it"),
    c.text("coverage", "words of each category seen as one token: JSON"),
)

TRANSFER_STEERED = c.table("transfer_steered", 1, "target", "kind", "category", "sentence", "feature")(
    TARGET,
    c.text("kind", f"direction: {_any(KINDS)}"),
    c.text("category", "whose sentence"),
    SENTENCE,
    c.index("feature", "of the target's SAE, matched to both sources"),
    c.index("place", "of its pair in the matching of the sources"),
    c.number("strength", "activation units", "of the steered direction, at the last position"),
    c.perhaps("kl", "nats", "measured at +strength"),
    c.flag("reached", "whether the dose was reached"),
    CATEGORIES,
    Column("logodds", NUMBERS, "nats", "odd part of the change of each log-odds; NaN: dose not reached"),
)

TRANSFER_DIRECTIONS = c.table("transfer_directions", 1, "target", "kind", "contrast", "arm", "category")(
    TARGET,
    c.text("kind", "as in transfer_steered"),
    c.text("contrast", "logodds | specific"),
    *(ARM, CATEGORY),
    c.perhaps("treated", "nats", "mean over the arm's features"),
    c.perhaps("estimate", "nats", "treated minus reference, within strata"),
    *c.interval("nats"),
    c.LEVEL,
    c.perhaps("p", "probability", "one-sided, labels permuted within strata"),
    c.perhaps("p_adj", "probability", "Holm over categories"),
    c.number("kl", "nats", "dose of every direction"),
    c.count("n_sentences", "sentences", "of the category"),
    c.count("n_treated", "features", "compared"),
    c.count("n_reference", "features", "that they are compared with"),
    c.count("n_alone", "features", "of the arm without a reference of their stratum"),
    c.count("n_refused", "features", "whose direction could not be made or dosed"),
)

TRANSFER_COST = c.table("transfer_cost", 1, "target", "kind", "measure", "arm", "category")(
    TARGET,
    c.text("kind", _any(("prompt", *KINDS))),
    c.text("measure", "text (cross-entropy) | choices (accuracy)"),
    ARM,
    c.text("category", "whose arm"),
    c.number("base", "unit", "without any injection"),
    c.number("treated", "unit", "change under the arm"),
    *(REFERENCE, ESTIMATE),
    *c.interval("unit"),
    c.LEVEL,
    c.count("n_treated", "injections", "prompts or directions of the arm"),
    c.count("n_reference", "injections", "... of its reference"),
    c.count("n", "texts or questions", "on which the cost is measured"),
    c.text("unit", "nats per token | fraction"),
)
