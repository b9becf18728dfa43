"""Tables of a transfer study."""

from collections.abc import Iterable

import pyarrow as pa

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import STRINGS
from polysem.vocabulary_transfer import TRANSFER_ARMS, TRANSFER_CONTRASTS
from polysem.vocabulary_transfer import TRANSFER_DIRECTIONS as KINDS

NUMBERS = pa.list_(pa.float64())


def _text(name: str, meaning: str, *, nullable: bool = False) -> Column:
    return Column(name, pa.string(), "", meaning, nullable)


def _count(name: str, unit: str, meaning: str) -> Column:
    return Column(name, pa.int64(), unit, meaning)


def _number(name: str, unit: str, meaning: str, *, nullable: bool = True) -> Column:
    return Column(name, pa.float64(), unit, meaning, nullable)


def _interval(
    unit: str, *, lo: str = "lo", hi: str = "hi", of: str = "the estimate"
) -> tuple[Column, Column]:
    """Both ends of an interval; null where it is not bounded or not known."""
    return _number(lo, unit, f"lower end of the interval of {of}"), _number(
        hi, unit, f"upper end of the interval of {of}"
    )


def _any(names: Iterable[str]) -> str:
    return " | ".join(names)


TARGET = _text("target", "name of the target in the study")
CATEGORY = _text("category", "whose words are read out")
ARM = _text("arm", _any(TRANSFER_ARMS))
TEMPLATE = _text("template", "how strings are written into the prompt")
POSITION = _text("position", "where they stand")
SENTENCE = Column("sentence", pa.int32(), "", "number of the sentence in its category")
CATEGORIES = Column("categories", STRINGS, "", "order of the lists that follow")
LEVEL = _number("level", "probability", "nominal coverage", nullable=False)
REFERENCE = _number("reference", "unit", "the same under the reference")
ESTIMATE = _number("estimate", "unit", "treated minus reference")

TRANSFER_SHARED = Schema(
    "transfer_shared",
    1,
    ("source_a", "source_b"),
    (
        _text("source_a", "first source"),
        _text("source_b", "second source"),
        _count("n_segments", "segments", "of text between common token ends"),
        _count("n_matched", "features", "mutual nearest neighbours by correlation"),
        _count("n_pairs_a", "pairs", "of matched features that pass in the first source"),
        _count("n_pairs_b", "pairs", "... in the second"),
        _count("n_shared", "pairs", "... in both"),
        _number("expected", "pairs", "shared pairs under a permuted matching", nullable=False),
        _number("lift", "ratio", "n_shared / expected"),
        *_interval("ratio", lo="lift_lo", hi="lift_hi", of="the lift"),
        _number("fraction", "fraction", "chance-corrected share of common structure"),
        *_interval("fraction", lo="fraction_lo", hi="fraction_hi", of="the fraction"),
        _number("p", "probability", "one-sided, from permuted matchings"),
        LEVEL,
    ),
)

TRANSFER_SETS = Schema(
    "transfer_sets",
    1,
    ("category", "arm"),
    (
        CATEGORY,
        ARM,
        _count("n_strings", "strings", "disjoint from those of the arms of its family"),
        _count("n_treated", "pools", "treated pools; 0 where the arm could not be run"),
        _count("n_reference", "pools", "matched reference pools"),
        _text("overlap", "strings in common with other arms before sets were made disjoint: JSON"),
        _text("imbalance", "treated minus reference, in SDs of the universe, by covariate: JSON"),
        _text("reason", "why the arm was not run", nullable=True),
    ),
)

TRANSFER_TRIALS = Schema(
    "transfer_trials",
    2,
    ("target", "category", "arm", "template", "position", "pool", "sentence", "draw"),
    (
        TARGET,
        _text("category", "whose sentences and arm sets were used"),
        ARM,
        TEMPLATE,
        POSITION,
        Column("pool", pa.int32(), "", "treated pools from 0 up; reference pools from -1 down"),
        SENTENCE,
        Column("draw", pa.int32(), "", "number of the draw from the pool"),
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
        Column(
            "mass", NUMBERS, "probability", "change of the probability of each category; NaN: not measurable"
        ),
        Column("mass_lo", NUMBERS, "probability", "its lower bound under truncation"),
        Column("mass_hi", NUMBERS, "probability", "its upper bound under truncation"),
        Column(
            "success", NUMBERS, "", "1 more, 0 as many, -1 fewer words in the top k; NaN: k was not granted"
        ),
        Column(
            "share",
            NUMBERS,
            "fraction",
            "of each category's estimated probability, granted or drawn in answers to the category's sentences",
        ),
        Column("k_needed", NUMBERS, "log-probabilities", "that would grant half of it; 0 of whole answers"),
        _number("kl_lo", "nats", "lower bound of KL(baseline || injected)", nullable=False),
        _number("kl_hi", "nats", "upper bound; inf under truncation", nullable=False),
        _number("tv_lo", "probability", "lower bound of the total variation distance", nullable=False),
        _number("tv_hi", "probability", "upper bound", nullable=False),
        _number("missing", "probability", "mass of tokens that were not granted", nullable=False),
        Column("refused", pa.bool_(), "", "the answer declines"),
    ),
)

TRANSFER_EFFECTS = Schema(
    "transfer_effects",
    2,
    ("target", "contrast", "arm", "category", "template", "position"),
    (
        TARGET,
        _text("contrast", _any(TRANSFER_CONTRASTS)),
        ARM,
        CATEGORY,
        TEMPLATE,
        POSITION,
        _number("treated", "unit", "mean under treated pools"),
        REFERENCE,
        ESTIMATE,
        *_interval("unit"),
        LEVEL,
        _number("bound_lo", "unit", "least estimate that truncated answers allow"),
        _number("bound_hi", "unit", "largest estimate that truncated answers allow"),
        _number("truncation_sd", "unit", "standard error of the estimate from truncation; in the interval"),
        _number("p", "probability", "of the contrast's own test"),
        _number("p_adj", "probability", "max-T over all categories"),
        _number("noise_floor", "unit", "1.96 SDs of the estimate from jitter alone"),
        _number("kl", "nats", "mean KL of treated prompts (lower bound under truncation)"),
        _number("refused", "fraction", "treated answers that decline"),
        _count("n_sentences", "sentences", "of the category"),
        _count("n_treated", "pools", "treated pools that are compared"),
        _count("n_reference", "pools", "pools that they are compared with"),
        _count("n_trials", "trials", "of the arm, those of reference pools included"),
        _text("unit", "unit of the estimate"),
        _text("note", "what must be said next to the number", nullable=True),
    ),
)

TRANSFER_TARGETS = Schema(
    "transfer_targets",
    2,
    ("target",),
    (
        TARGET,
        _text("what", "kind, model and address"),
        Column("asked", pa.int64(), "log-probabilities", "asked for; null where all are there", True),
        Column(
            "granted", pa.int64(), "log-probabilities", "given by the server; null where all are there", True
        ),
        _number("missing", "probability", "mean mass that was not granted", nullable=False),
        _count("n_lost", "answers", "in which tokens of equal text were lost"),
        _text("conventions", "how it was asked and answers: form, spelling, BOS, model"),
        _number("noise", "nats", "SD of a repeated baseline's log-odds, over categories"),
        _count("n_prompts", "prompts", "distinct prompts that the study asks"),
        _number("cost", "unit of the study", "of all of them, by the declared price", nullable=False),
        _text("cost_unit", "unit of the cost, as the study names it"),
        _text("coverage", "words of each category seen as one token: JSON"),
    ),
)

TRANSFER_STEERED = Schema(
    "transfer_steered",
    1,
    ("target", "kind", "category", "sentence", "feature"),
    (
        TARGET,
        _text("kind", f"direction: {_any(KINDS)}"),
        _text("category", "whose sentence"),
        SENTENCE,
        Column("feature", pa.int32(), "", "of the target's SAE, matched to both sources"),
        Column("place", pa.int32(), "", "of its pair in the matching of the sources"),
        _number(
            "strength", "activation units", "of the steered direction, at the last position", nullable=False
        ),
        _number("kl", "nats", "measured at +strength"),
        Column("reached", pa.bool_(), "", "whether the dose was reached"),
        CATEGORIES,
        Column("logodds", NUMBERS, "nats", "odd part of the change of each log-odds; NaN: dose not reached"),
    ),
)

TRANSFER_DIRECTIONS = Schema(
    "transfer_directions",
    1,
    ("target", "kind", "contrast", "arm", "category"),
    (
        TARGET,
        _text("kind", "as in transfer_steered"),
        _text("contrast", "logodds | specific"),
        ARM,
        CATEGORY,
        _number("treated", "nats", "mean over the arm's features"),
        _number("estimate", "nats", "treated minus reference, within strata"),
        *_interval("nats"),
        LEVEL,
        _number("p", "probability", "one-sided, labels permuted within strata"),
        _number("p_adj", "probability", "Holm over categories"),
        _number("kl", "nats", "dose of every direction", nullable=False),
        _count("n_sentences", "sentences", "of the category"),
        _count("n_treated", "features", "compared"),
        _count("n_reference", "features", "that they are compared with"),
        _count("n_alone", "features", "of the arm without a reference of their stratum"),
        _count("n_refused", "features", "whose direction could not be made or dosed"),
    ),
)

TRANSFER_COST = Schema(
    "transfer_cost",
    1,
    ("target", "kind", "measure", "arm", "category"),
    (
        TARGET,
        _text("kind", _any(("prompt", *KINDS))),
        _text("measure", "text (cross-entropy) | choices (accuracy)"),
        ARM,
        _text("category", "whose arm"),
        _number("base", "unit", "without any injection", nullable=False),
        _number("treated", "unit", "change under the arm", nullable=False),
        REFERENCE,
        ESTIMATE,
        *_interval("unit"),
        LEVEL,
        _count("n_treated", "injections", "prompts or directions of the arm"),
        _count("n_reference", "injections", "... of its reference"),
        _count("n", "texts or questions", "on which the cost is measured"),
        _text("unit", "nats per token | fraction"),
    ),
)

TRANSFER: tuple[Schema, ...] = (
    TRANSFER_SHARED, TRANSFER_SETS, TRANSFER_TRIALS, TRANSFER_EFFECTS, TRANSFER_TARGETS, TRANSFER_STEERED,
    TRANSFER_DIRECTIONS, TRANSFER_COST,
)  # fmt: skip
"""Tables of a transfer study, in the order in which they are made."""
