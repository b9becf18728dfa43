"""What features are to each other: tables of `polysem relations`, and of slopes without pairs that have a relation."""

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import (
    BOOL,
    FEATURE,
    LEVEL,
    LOCUS,
    N_PAIRS,
    NOTE,
    SAE,
    TOKENS,
    count,
    index,
    number,
    text,
)
from polysem.vocabulary_findings import KINSHIPS

RELATIONS = Schema(
    "relations",
    1,
    ("sae", "i", "j"),
    (
        SAE,
        index("i", "first feature: row of W_dec"),
        index("j", "second feature, i < j"),
        text("relation", " | ".join(KINSHIPS) + ": the first of these that holds"),
        index("above", "of a parent or absorbed pair, the more general one; else null", nullable=True),
        number("interference", "cosine", "of the two decoder rows, signed"),
        count("fires_i", "tokens", "on which i fires"),
        count("fires_j", "tokens", "on which j fires"),
        count("both", "tokens", "on which both fire"),
        count("n_tokens", "tokens", "looked at"),
        number("p", "probability", "exact, of the co-firing that the relation asks for", nullable=True),
        number("q", "probability", "Benjamini-Hochberg over all pairs asked the same", nullable=True),
        text("evidence", "what else was seen", nullable=True),
    ),
)

ABSORPTION = Schema(
    "absorption",
    1,
    ("sae", "feature"),
    (
        SAE,
        FEATURE,
        count("n_on", "tokens", "on which the probe of the feature is on"),
        number("f1", "", "of the probe on the feature's own tokens, where no child may have absorbed it"),
        Column("trusted", BOOL, "", "whether the probe is good enough for a rate"),
        number("rate", "fraction", "of tokens with the probe on: feature off, a child on", nullable=True),
        count("n_children", "features", "that absorb it"),
    ),
)

SLOPES_WITHOUT = Schema(
    "slopes_without",
    1,
    ("sae", "locus", "token_set", "pairs"),
    (
        *(SAE, LOCUS, TOKENS),
        text("pairs", "all: of the plan | unrelated: those of which no relation is known"),
        number("estimate", "unit", "slope on interference of record, at the headline dose", nullable=True),
        number("lo", "unit", "lower end of the interval", nullable=True),
        number("hi", "unit", "upper end of the interval", nullable=True),
        number("p", "probability", "two-sided", nullable=True),
        *(LEVEL, N_PAIRS),
        count("n_left_out", "pairs", "planned pairs that have a relation and are left out"),
        text("left_out", "how many of them have which relation"),
        text("unit", "unit of the estimate"),
        NOTE,
    ),
)
