"""What a session in Python finds when it compares dictionaries of one site; no stage writes it."""

from polysem.store.tables import columns as c

_FIRST = c.text("first", "reference of a dictionary")
_SECOND = c.text("second", "reference of another one of the site")


REPLICATES = c.schema(
    "replicates",
    1,
    ("number", "first", "second"),
    c.index("number", "of the two among all pairs, in the order in which they were given"),
    _FIRST,
    _SECOND,
    c.count("n", "features", "matched one to one"),
    c.number("pw_mcc", "cosine", "mean |cosine| of matched decoder rows (PW-MCC)"),
    c.number("turned", "cosine", "the same with the second one turned at random"),
    c.number("drawn", "cosine", "the same with rows drawn with the second one's mean and covariance"),
    c.number("stable_first", "share", "of the first one's features that are stable"),
    c.number("stable_second", "share", "of the second one's features that are stable"),
)

SURVIVAL = c.schema(
    "survival",
    1,
    ("number", "matched", "low"),
    c.index("number", "of the two dictionaries"),
    _FIRST,
    _SECOND,
    c.text("matched", "which matched features"),
    c.number("low", "cosine", "lower end of the bin of |interference| in the first one"),
    c.number("high", "cosine", "its upper end"),
    c.count("n", "pairs", "of matched features in the bin"),
    c.number("same", "share", "of them that are in the same bin in the second one"),
    c.number("chance", "share", "by regression to the mean alone"),
    c.number("lo", "share", "least of its draws"),
    c.number("hi", "share", "largest of its draws"),
)

SHARED_SPANS = c.schema(
    "shared_spans",
    1,
    ("number", "group"),
    c.index("number", "of the two dictionaries"),
    _FIRST,
    _SECOND,
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

STABILITY = c.schema(
    "stability",
    1,
    ("number", "feature"),
    c.index("number", "of the dictionary, in the order in which they were given"),
    c.text("sae", "its reference"),
    c.index("feature", "row of W_dec"),
    c.perhaps(
        "stability", "share", "of the other dictionaries in which it has a match; null: a dead feature"
    ),
)
