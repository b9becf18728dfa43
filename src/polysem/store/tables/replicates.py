"""What dictionaries of one site have in common by weights alone: of a study, and of a session in Python."""

from polysem.store.tables import columns as c

_FIRST = c.text("first", "reference of a dictionary; in a study its label")
_SECOND = c.text("second", "the same of another one of the site")


REPLICATES = c.table("replicates", 1, "number", "first", "second")(
    c.index("number", "of the two among all pairs, in the order in which they were given"),
    *(_FIRST, _SECOND),
    c.count("n", "features", "matched one to one"),
    c.number("pw_mcc", "cosine", "mean |cosine| of matched decoder rows (PW-MCC)"),
    c.number("turned", "cosine", "the same with the second one turned at random"),
    c.number("drawn", "cosine", "the same with rows drawn with the second one's mean and covariance"),
    c.number("stable_first", "share", "of the first one's features that are stable"),
    c.number("stable_second", "share", "of the second one's features that are stable"),
)

SURVIVAL = c.table("survival", 1, "number", "matched", "low")(
    c.index("number", "of the two dictionaries"),
    *(_FIRST, _SECOND),
    c.text("matched", "which matched features"),
    c.number("low", "cosine", "lower end of the bin of |interference| in the first one"),
    c.number("high", "cosine", "its upper end"),
    c.count("n", "pairs", "of matched features in the bin"),
    c.number("same", "share", "of them that are in the same bin in the second one"),
    c.number("chance", "share", "by regression to the mean alone"),
    c.number("lo", "share", "least of its draws"),
    c.number("hi", "share", "largest of its draws"),
)

SHARED_SPANS = c.table("shared_spans", 1, "number", "group")(
    c.index("number", "of the two dictionaries"),
    *(_FIRST, _SECOND),
    c.text("group", "neighbours: a feature that is not stable and its nearest such; all: all such as one group"),
    c.count("n_groups", "groups", "of the first one's features"),
    c.count("size", "features", "of a group"),
    c.number("rank", "dimensions", "of a group's span, mean: 90 % of the squared length of its rows"),
    c.number("shared", "share", "squared cosine of the principal angles with the nearest span of equal rank in the second one, mean"),
    c.number("angle", "degrees", "principal angle, mean"),
    c.number("random", "share", "`shared` of random spans of equal rank, chosen beside in the same way"),
    c.number("lo", "share", "least of its draws"),
    c.number("hi", "share", "largest of its draws"),
    c.number("drawn", "share", "`shared` with rows drawn with the mean and covariance of the second one's"),
)  # fmt: skip

MATCHING = c.table("matching", 1, "number", "feature")(
    c.index("number", "of the two dictionaries"),
    *(_FIRST, _SECOND),
    c.index("feature", "row of W_dec of the first one"),
    c.index("match", "row of W_dec of the second one that it is matched with, one to one"),
    c.number("decoder", "cosine", "of their decoder rows, signed"),
    c.number("encoder", "cosine", "of what their encoders read, signed"),
    c.flag("stable", "whether both exceed what 1 % of features reach in a dictionary turned at random"),
)

STABILITY = c.table("stability", 2, "number", "feature")(
    c.index("number", "of the dictionary, in the order in which they were given"),
    c.text("sae", "its reference; in a study its label"),
    c.index("feature", "row of W_dec"),
    c.perhaps(
        "stability",
        "share",
        "of the other dictionaries of the site in which its match is stable; null: a dead feature",
    ),
    c.perhaps(
        "nearest",
        "cosine",
        "largest |cosine| of its decoder row with one of another dictionary, mean over the others; null: a dead feature",
    ),
)
