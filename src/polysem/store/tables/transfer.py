"""Tables of a transfer study."""

import pyarrow as pa

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import STRINGS

TRANSFER_SHARED = Schema(
    "transfer_shared",
    1,
    ("source_a", "source_b"),
    (
        Column("source_a", pa.string(), "", "first source"),
        Column("source_b", pa.string(), "", "second source"),
        Column("n_segments", pa.int64(), "segments", "of text between common token ends"),
        Column("n_matched", pa.int64(), "features", "mutual nearest neighbours by correlation"),
        Column("n_pairs_a", pa.int64(), "pairs", "of matched features that pass in the first source"),
        Column("n_pairs_b", pa.int64(), "pairs", "... in the second"),
        Column("n_shared", pa.int64(), "pairs", "... in both"),
        Column("expected", pa.float64(), "pairs", "shared pairs under a permuted matching"),
        Column("lift", pa.float64(), "ratio", "n_shared / expected", nullable=True),
        Column("lift_lo", pa.float64(), "ratio", "", nullable=True),
        Column("lift_hi", pa.float64(), "ratio", "", nullable=True),
        Column(
            "fraction", pa.float64(), "fraction", "chance-corrected share of common structure", nullable=True
        ),
        Column("fraction_lo", pa.float64(), "fraction", "", nullable=True),
        Column("fraction_hi", pa.float64(), "fraction", "", nullable=True),
        Column("p", pa.float64(), "probability", "one-sided, from permuted matchings", nullable=True),
        Column("level", pa.float64(), "probability", "nominal coverage"),
    ),
)

TRANSFER_SETS = Schema(
    "transfer_sets",
    1,
    ("category", "arm"),
    (
        Column("category", pa.string(), "", "whose words are read out"),
        Column("arm", pa.string(), "", "target | shared | source_only | neither | high | low | random"),
        Column(
            "n_strings",
            pa.int64(),
            "strings",
            "disjoint within (shared, source_only, neither) and (high, low)",
        ),
        Column("n_treated", pa.int64(), "pools", "treated pools; 0 where the arm could not be run"),
        Column("n_reference", pa.int64(), "pools", "matched reference pools"),
        Column(
            "overlap",
            pa.string(),
            "",
            "strings in common with other arms before sets were made disjoint: JSON",
        ),
        Column(
            "imbalance",
            pa.string(),
            "",
            "treated minus reference, in SDs of the universe, by covariate: JSON",
        ),
        Column("reason", pa.string(), "", "why the arm was not run", nullable=True),
    ),
)

TRANSFER_TRIALS = Schema(
    "transfer_trials",
    1,
    ("target", "category", "arm", "template", "position", "pool", "sentence", "draw"),
    (
        Column("target", pa.string(), "", "name of the target in the study"),
        Column("category", pa.string(), "", "whose sentences and arm sets were used"),
        Column("arm", pa.string(), "", "as in transfer_sets"),
        Column("template", pa.string(), "", "how strings are written into the prompt"),
        Column("position", pa.string(), "", "where they stand"),
        Column("pool", pa.int32(), "", "treated pools from 0 up; reference pools from -1 down"),
        Column("sentence", pa.int32(), "", "number of the sentence in its category"),
        Column("draw", pa.int32(), "", "number of the draw from the pool"),
        Column("categories", STRINGS, "", "order of the lists that follow"),
        Column("logodds", pa.list_(pa.float64()), "nats", "change of the log-odds of each category"),
        Column(
            "logodds_lo", pa.list_(pa.float64()), "nats", "its lower bound under truncation; -inf where none"
        ),
        Column(
            "logodds_hi", pa.list_(pa.float64()), "nats", "its upper bound under truncation; inf where none"
        ),
        Column("mass", pa.list_(pa.float64()), "probability", "change of the probability of each category"),
        Column("mass_lo", pa.list_(pa.float64()), "probability", "its lower bound under truncation"),
        Column("mass_hi", pa.list_(pa.float64()), "probability", "its upper bound under truncation"),
        Column(
            "success",
            pa.list_(pa.float64()),
            "",
            "more (1), as many (0) or fewer (-1) words in the top k; NaN where k was not granted",
        ),
        Column("kl_lo", pa.float64(), "nats", "lower bound of KL(baseline || injected)"),
        Column("kl_hi", pa.float64(), "nats", "upper bound; inf under truncation"),
        Column("tv_lo", pa.float64(), "probability", "lower bound of the total variation distance"),
        Column("tv_hi", pa.float64(), "probability", "upper bound"),
        Column("missing", pa.float64(), "probability", "mass of tokens that were not granted"),
        Column("refused", pa.bool_(), "", "the answer declines"),
    ),
)

TRANSFER_EFFECTS = Schema(
    "transfer_effects",
    1,
    ("target", "contrast", "arm", "category", "template", "position"),
    (
        Column("target", pa.string(), "", "name of the target in the study"),
        Column("contrast", pa.string(), "", "logodds | specific | success | welch"),
        Column("arm", pa.string(), "", "as in transfer_sets"),
        Column("category", pa.string(), "", "whose words are read out"),
        Column("template", pa.string(), "", "as in transfer_trials"),
        Column("position", pa.string(), "", "as in transfer_trials"),
        Column("treated", pa.float64(), "unit", "mean under treated pools", nullable=True),
        Column("reference", pa.float64(), "unit", "mean under reference pools", nullable=True),
        Column("estimate", pa.float64(), "unit", "treated minus reference", nullable=True),
        Column("lo", pa.float64(), "unit", "", nullable=True),
        Column("hi", pa.float64(), "unit", "", nullable=True),
        Column("level", pa.float64(), "probability", "nominal coverage"),
        Column(
            "bound_lo", pa.float64(), "unit", "least estimate that truncated answers allow", nullable=True
        ),
        Column(
            "bound_hi", pa.float64(), "unit", "largest estimate that truncated answers allow", nullable=True
        ),
        Column("p", pa.float64(), "probability", "of the contrast's own test", nullable=True),
        Column("p_adj", pa.float64(), "probability", "max-T over all categories", nullable=True),
        Column(
            "noise_floor", pa.float64(), "unit", "1.96 SDs of the estimate from jitter alone", nullable=True
        ),
        Column(
            "kl",
            pa.float64(),
            "nats",
            "mean KL of treated prompts (lower bound under truncation)",
            nullable=True,
        ),
        Column("refused", pa.float64(), "fraction", "treated answers that decline", nullable=True),
        Column("n_sentences", pa.int64(), "sentences", ""),
        Column("n_treated", pa.int64(), "pools", ""),
        Column("n_reference", pa.int64(), "pools", ""),
        Column("n_trials", pa.int64(), "trials", ""),
        Column("unit", pa.string(), "", "unit of the estimate"),
        Column("note", pa.string(), "", "what must be said next to the number", nullable=True),
    ),
)

TRANSFER_TARGETS = Schema(
    "transfer_targets",
    1,
    ("target",),
    (
        Column("target", pa.string(), "", "name of the target in the study"),
        Column("what", pa.string(), "", "kind, model and address"),
        Column(
            "asked", pa.int64(), "log-probabilities", "asked for; null where all are there", nullable=True
        ),
        Column(
            "granted",
            pa.int64(),
            "log-probabilities",
            "given by the server; null where all are there",
            nullable=True,
        ),
        Column("missing", pa.float64(), "probability", "mean mass that was not granted"),
        Column("n_lost", pa.int64(), "answers", "in which tokens of equal text were lost"),
        Column(
            "noise",
            pa.float64(),
            "nats",
            "SD of a repeated baseline's log-odds, over categories",
            nullable=True,
        ),
        Column("n_prompts", pa.int64(), "prompts", "distinct prompts that the study asks"),
        Column("cost", pa.float64(), "unit of the study", "of all of them, by the declared price"),
        Column("cost_unit", pa.string(), "", ""),
        Column("coverage", pa.string(), "", "words of each category seen as one token: JSON"),
    ),
)

TRANSFER_STEERED = Schema(
    "transfer_steered",
    1,
    ("target", "kind", "category", "sentence", "feature"),
    (
        Column("target", pa.string(), "", "name of the target in the study"),
        Column("kind", pa.string(), "", "direction: feature (decoder row) | gradient (token gradient)"),
        Column("category", pa.string(), "", "whose sentence"),
        Column("sentence", pa.int32(), "", "number of the sentence in its category"),
        Column("feature", pa.int32(), "", "of the target's SAE, matched to both sources"),
        Column("place", pa.int32(), "", "of its pair in the matching of the sources"),
        Column("strength", pa.float64(), "activation units", "of the push, at the last position"),
        Column("kl", pa.float64(), "nats", "measured at +strength", nullable=True),
        Column("reached", pa.bool_(), "", "whether the dose was reached"),
        Column("categories", STRINGS, "", "order of the list that follows"),
        Column(
            "logodds",
            pa.list_(pa.float64()),
            "nats",
            "odd part of the change of each category's log-odds; NaN where the dose was not reached",
        ),
    ),
)

TRANSFER_DIRECTIONS = Schema(
    "transfer_directions",
    1,
    ("target", "kind", "contrast", "arm", "category"),
    (
        Column("target", pa.string(), "", "name of the target in the study"),
        Column("kind", pa.string(), "", "as in transfer_steered"),
        Column("contrast", pa.string(), "", "logodds | specific"),
        Column("arm", pa.string(), "", "target | shared | source_only | neither"),
        Column("category", pa.string(), "", "whose words are read out"),
        Column("treated", pa.float64(), "nats", "mean over the arm's features", nullable=True),
        Column("estimate", pa.float64(), "nats", "treated minus reference, within strata", nullable=True),
        Column("lo", pa.float64(), "nats", "", nullable=True),
        Column("hi", pa.float64(), "nats", "", nullable=True),
        Column("level", pa.float64(), "probability", "nominal coverage"),
        Column("p", pa.float64(), "probability", "one-sided, labels permuted within strata", nullable=True),
        Column("p_adj", pa.float64(), "probability", "Holm over categories", nullable=True),
        Column("kl", pa.float64(), "nats", "dose of every push"),
        Column("n_sentences", pa.int64(), "sentences", ""),
        Column("n_treated", pa.int64(), "features", "compared"),
        Column("n_reference", pa.int64(), "features", "compared"),
        Column("n_alone", pa.int64(), "features", "of the arm without a reference of their stratum"),
        Column("n_refused", pa.int64(), "features", "whose direction could not be made or dosed"),
    ),
)

TRANSFER_COST = Schema(
    "transfer_cost",
    1,
    ("target", "kind", "measure", "arm", "category"),
    (
        Column("target", pa.string(), "", "name of the target in the study"),
        Column("kind", pa.string(), "", "prompt | feature | gradient"),
        Column("measure", pa.string(), "", "text (cross-entropy) | choices (accuracy)"),
        Column("arm", pa.string(), "", "as in transfer_sets"),
        Column("category", pa.string(), "", "whose arm"),
        Column("base", pa.float64(), "unit", "without any injection"),
        Column("treated", pa.float64(), "unit", "change under the arm"),
        Column("reference", pa.float64(), "unit", "change under its reference", nullable=True),
        Column("estimate", pa.float64(), "unit", "treated minus reference", nullable=True),
        Column("lo", pa.float64(), "unit", "", nullable=True),
        Column("hi", pa.float64(), "unit", "", nullable=True),
        Column("level", pa.float64(), "probability", "nominal coverage"),
        Column("n_treated", pa.int64(), "injections", "prompts or directions of the arm"),
        Column("n_reference", pa.int64(), "injections", "... of its reference"),
        Column("n", pa.int64(), "texts or questions", ""),
        Column("unit", pa.string(), "", "nats per token | fraction"),
    ),
)

TRANSFER: tuple[Schema, ...] = (
    TRANSFER_SHARED, TRANSFER_SETS, TRANSFER_TRIALS, TRANSFER_EFFECTS, TRANSFER_TARGETS, TRANSFER_STEERED,
    TRANSFER_DIRECTIONS, TRANSFER_COST,
)  # fmt: skip
"""Tables of a transfer study, in the order in which they are made."""
