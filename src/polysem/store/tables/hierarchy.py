"""What features are to each other: tables of the stage `kinship` and of `polysem relations`, and slopes without pairs that
have a relation."""

from polysem.store.schema import Column, Schema
from polysem.store.tables.columns import (
    ANY_SAE,
    BOOL,
    FEATURE,
    FLOATS,
    INTS,
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

META_CODE = Schema(
    "meta_code",
    1,
    ("sae", "feature"),
    (
        SAE,
        FEATURE,
        Column(
            "atoms",
            INTS,
            "",
            "other features whose decoder rows code its own, in the order in which they were taken",
        ),
        Column("weights", FLOATS, "", "of their unit rows"),
        number("explained", "share", "of the squared length of its row by these"),
        number("turned", "share", "by as many rows of the dictionary turned at random, mean of the draws"),
        number("drawn", "share", "by as many rows drawn with its mean and covariance, mean of the draws"),
    ),
)

LEVELS = Schema(
    "levels",
    1,
    ("sae", "relation", "above", "below"),
    (
        SAE,
        text("relation", "parent | absorbed"),
        index("above", "level of the more general feature; 0 is the innermost of a nested dictionary"),
        index("below", "level of the other"),
        count("n_above", "features", "alive in the level of the more general one"),
        count("n_below", "features", "alive in the level of the other"),
        count("n_pairs", "pairs", "that have the relation"),
        number("n_expected", "pairs", "were the pairs dealt to features without regard to levels"),
    ),
)

RELATED_PAIRS = Schema(
    "related_pairs",
    1,
    ("sae", "low", "relation"),
    (
        SAE,
        number("low", "cosine", "lower end of the bin of |interference|"),
        number("high", "cosine", "its upper end"),
        text("relation", " | ".join(KINSHIPS)),
        count("n_pairs", "pairs", "of the map of pairs (interfering, glosses unlike) that have the relation"),
        count("n_flagged", "pairs", "of them that the map flags itself, as one concept twice or as dense"),
        Column("excluded", BOOL, "", "whether the study leaves such pairs out"),
    ),
)

SLOPES_WITHOUT = Schema(
    "slopes_without",
    2,
    ("sae", "locus", "token_set", "pairs"),
    (
        *(ANY_SAE, LOCUS, TOKENS),
        text(
            "pairs",
            "all: of the plan | not_excluded: without relations that the study excludes | unrelated: those of which no "
            "relation is known",
        ),
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
