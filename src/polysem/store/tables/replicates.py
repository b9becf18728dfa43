"""What dictionaries of one site have in common by weights alone: of a study, and of a session in Python."""

import pyarrow as pa

from polysem.store.schema import Column, Schema

_FIRST = Column("first", pa.string(), "", "reference of a dictionary; in a study its label")
_SECOND = Column("second", pa.string(), "", "the same of another one of the site")


def _number(name: str, unit: str, meaning: str, *, nullable: bool = False) -> Column:
    return Column(name, pa.float64(), unit, meaning, nullable=nullable)


REPLICATES = Schema(
    "replicates",
    1,
    ("number", "first", "second"),
    (
        Column("number", pa.int32(), "", "of the two among all pairs, in the order in which they were given"),
        _FIRST,
        _SECOND,
        Column("n", pa.int64(), "features", "matched one to one"),
        _number("pw_mcc", "cosine", "mean |cosine| of matched decoder rows (PW-MCC)"),
        _number("turned", "cosine", "the same with the second one turned at random"),
        _number("drawn", "cosine", "the same with rows drawn with the second one's mean and covariance"),
        _number("stable_first", "share", "of the first one's features that are stable"),
        _number("stable_second", "share", "of the second one's features that are stable"),
    ),
)

SURVIVAL = Schema(
    "survival",
    1,
    ("number", "matched", "low"),
    (
        Column("number", pa.int32(), "", "of the two dictionaries"),
        _FIRST,
        _SECOND,
        Column("matched", pa.string(), "", "which matched features"),
        _number("low", "cosine", "lower end of the bin of |interference| in the first one"),
        _number("high", "cosine", "its upper end"),
        Column("n", pa.int64(), "pairs", "of matched features in the bin"),
        _number("same", "share", "of them that are in the same bin in the second one"),
        _number("chance", "share", "by regression to the mean alone"),
        _number("lo", "share", "least of its draws"),
        _number("hi", "share", "largest of its draws"),
    ),
)

SHARED_SPANS = Schema(
    "shared_spans",
    1,
    ("number", "group"),
    (
        Column("number", pa.int32(), "", "of the two dictionaries"),
        _FIRST,
        _SECOND,
        Column("group", pa.string(), "", "neighbours: a feature that is not stable and its nearest such; all: all such as one group"),
        Column("n_groups", pa.int64(), "groups", "of the first one's features"),
        Column("size", pa.int64(), "features", "of a group"),
        _number("rank", "dimensions", "of a group's span, mean: 90 % of the squared length of its rows"),
        _number("shared", "share", "squared cosine of the principal angles with the nearest span of equal rank in the second one, mean"),
        _number("angle", "degrees", "principal angle, mean"),
        _number("random", "share", "`shared` of random spans of equal rank, chosen beside in the same way"),
        _number("lo", "share", "least of its draws"),
        _number("hi", "share", "largest of its draws"),
        _number("drawn", "share", "`shared` with rows drawn with the mean and covariance of the second one's"),
    ),
)  # fmt: skip

MATCHING = Schema(
    "matching",
    1,
    ("number", "feature"),
    (
        Column("number", pa.int32(), "", "of the two dictionaries"),
        _FIRST,
        _SECOND,
        Column("feature", pa.int32(), "", "row of W_dec of the first one"),
        Column("match", pa.int32(), "", "row of W_dec of the second one that it is matched with, one to one"),
        _number("decoder", "cosine", "of their decoder rows, signed"),
        _number("encoder", "cosine", "of what their encoders read, signed"),
        Column("stable", pa.bool_(), "", "whether both exceed what 1 % of features reach in a dictionary turned at random"),
    ),
)  # fmt: skip

STABILITY = Schema(
    "stability",
    2,
    ("number", "feature"),
    (
        Column("number", pa.int32(), "", "of the dictionary, in the order in which they were given"),
        Column("sae", pa.string(), "", "its reference; in a study its label"),
        Column("feature", pa.int32(), "", "row of W_dec"),
        _number(
            "stability",
            "share",
            "of the other dictionaries of the site in which its match is stable; null: a dead feature",
            nullable=True,
        ),
        _number(
            "nearest",
            "cosine",
            "largest |cosine| of its decoder row with one of another dictionary, mean over the others; null: a dead feature",
            nullable=True,
        ),
    ),
)
