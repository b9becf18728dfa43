"""What features are to each other: tables of the stage `kinship` and of `polysem relations`, and slopes without pairs that
have a relation."""

from polysem.store.schema import Column
from polysem.store.tables import columns as c
from polysem.vocabulary_findings import KINSHIPS

RELATIONS = c.table("relations", 1, "sae", "i", "j")(
    c.SAE,
    c.index("i", "first feature: row of W_dec"),
    c.index("j", "second feature, i < j"),
    c.text("relation", " | ".join(KINSHIPS) + ": the first of these that holds"),
    c.index("above", "of a parent or absorbed pair, the more general one; else null", nullable=True),
    c.number("interference", "cosine", "of the two decoder rows, signed"),
    c.count("fires_i", "tokens", "on which i fires"),
    c.count("fires_j", "tokens", "on which j fires"),
    c.count("both", "tokens", "on which both fire"),
    c.count("n_tokens", "tokens", "looked at"),
    c.perhaps("p", "probability", "exact, of the co-firing that the relation asks for"),
    c.perhaps("q", "probability", "Benjamini-Hochberg over all pairs asked the same"),
    c.text("evidence", "what else was seen", nullable=True),
)

ABSORPTION = c.table("absorption", 1, "sae", "feature")(
    *(c.SAE, c.FEATURE),
    c.count("n_on", "tokens", "on which the probe of the feature is on"),
    c.number("f1", "", "of the probe on the feature's own tokens, where no child may have absorbed it"),
    c.flag("trusted", "whether the probe is good enough for a rate"),
    c.perhaps("rate", "fraction", "of tokens with the probe on: feature off, a child on"),
    c.count("n_children", "features", "that absorb it"),
)

META_CODE = c.table("meta_code", 1, "sae", "feature")(
    *(c.SAE, c.FEATURE),
    Column(
        "atoms",
        c.INTS,
        "",
        "other features whose decoder rows code its own, in the order in which they were taken",
    ),
    Column("weights", c.FLOATS, "", "of their unit rows"),
    c.number("explained", "share", "of the squared length of its row by these"),
    c.number("turned", "share", "by as many rows of the dictionary turned at random, mean of the draws"),
    c.number("drawn", "share", "by as many rows drawn with its mean and covariance, mean of the draws"),
)

LEVELS = c.table("levels", 1, "sae", "relation", "above", "below")(
    c.SAE,
    c.text("relation", "parent | absorbed"),
    c.index("above", "level of the more general feature; 0 is the innermost of a nested dictionary"),
    c.index("below", "level of the other"),
    c.count("n_above", "features", "alive in the level of the more general one"),
    c.count("n_below", "features", "alive in the level of the other"),
    c.count("n_pairs", "pairs", "that have the relation"),
    c.number("n_expected", "pairs", "were the pairs dealt to features without regard to levels"),
)

RELATED_PAIRS = c.table("related_pairs", 1, "sae", "low", "relation")(
    c.SAE,
    c.number("low", "cosine", "lower end of the bin of |interference|"),
    c.number("high", "cosine", "its upper end"),
    c.text("relation", " | ".join(KINSHIPS)),
    c.count("n_pairs", "pairs", "of the map of pairs (interfering, glosses unlike) that have the relation"),
    c.count("n_flagged", "pairs", "of them that the map flags itself, as one concept twice or as dense"),
    c.flag("excluded", "whether the study leaves such pairs out"),
)

SLOPES_WITHOUT = c.table("slopes_without", 2, "sae", "locus", "token_set", "pairs")(
    *(c.ANY_SAE, c.LOCUS, c.TOKENS),
    c.text(
        "pairs",
        "all: of the plan | not_excluded: without relations that the study excludes | unrelated: those of which no "
        "relation is known",
    ),
    c.perhaps("estimate", "unit", "slope on interference of record, at the headline dose"),
    *c.interval("unit"),
    c.perhaps("p", "probability", "two-sided"),
    *(c.LEVEL, c.N_PAIRS),
    c.count("n_left_out", "pairs", "planned pairs that have a relation and are left out"),
    c.text("left_out", "how many of them have which relation"),
    *(c.UNIT, c.NOTE),
)
