"""Columns and types that tables share."""

from collections.abc import Callable

import pyarrow as pa

from polysem.store.schema import Column, Schema

STRING, BOOL = pa.string(), pa.bool_()
I8, I32, I64 = pa.int8(), pa.int32(), pa.int64()
F32, F64 = pa.float32(), pa.float64()
INTS, FLOATS, STRINGS = pa.list_(I32), pa.list_(F32), pa.list_(STRING)

SAE = Column("sae", STRING, "", "label of the SAE in the study")
SAE_J = Column("sae_j", STRING, "", "label of the dictionary of `j`; that of `i` within one dictionary")
FEATURE = Column("feature", I32, "", "row of W_dec")
TRIAL = Column("trial_id", STRING, "", "hash of the trial's own specification, 16 hex digits")


def table(name: str, version: int, *key: str, late: bool = False) -> Callable[[*tuple[Column, ...]], Schema]:
    """A table: its name, its version and the columns that are its key; called with all columns, in order, it is the `Schema`."""
    return lambda *columns: Schema(name, version, key, columns, late)


def text(name: str, meaning: str, *, nullable: bool = False) -> Column:
    return Column(name, STRING, "", meaning, nullable)


def index(name: str, meaning: str, *, nullable: bool = False) -> Column:
    return Column(name, I32, "", meaning, nullable)


def small(name: str, meaning: str) -> Column:
    return Column(name, I8, "", meaning)


def flag(name: str, meaning: str, *, nullable: bool = False) -> Column:
    return Column(name, BOOL, "", meaning, nullable)


def count(name: str, unit: str, meaning: str, *, nullable: bool = False) -> Column:
    return Column(name, I64, unit, meaning, nullable)


def number(name: str, unit: str, meaning: str, *, nullable: bool = False) -> Column:
    return Column(name, F64, unit, meaning, nullable)


def perhaps(name: str, unit: str, meaning: str) -> Column:
    """A number; null where there is none."""
    return Column(name, F64, unit, meaning, nullable=True)


def interval(unit: str, of: str = "its interval", stem: str = "") -> tuple[Column, Column]:
    """Both ends of an interval, null where there is none: `lo` and `hi`, or `{stem}_lo` and `{stem}_hi`."""
    lo, hi = (f"{stem}_{end}" if stem else end for end in ("lo", "hi"))
    return perhaps(lo, unit, f"lower end of {of}"), perhaps(hi, unit, f"upper end of {of}")


LOCUS = text("locus", "as in plan")
RELATION = text("relation", "as in plan")
TOKENS = text("token_set", "in | out")
TARGET = index("target", "index of the target feature")
SOURCE = index("source", "index of the source feature")
DRAW = index("draw", "which of several draws of a control")
ANY_SAE = text("sae", "label of the SAE in the study; * for all SAEs together")
DOSE = number("dose", "dose_unit", "absolute value")
LEVEL = number("level", "probability", "nominal coverage")
NOTE = text("note", "what must be said next to the number", nullable=True)
WHY = text("note", "why there is no number", nullable=True)
PAIR = (SAE, index("target", "feature"), index("source", "feature, of the same SAE"))
ESTIMATE = (perhaps("estimate", "unit", "point estimate"), *interval("unit"))
UNIT = text("unit", "unit of the estimate")
N_PAIRS = count("n_pairs", "pairs", "pairs that enter")
N_TARGETS = count("n_targets", "features", "targets that enter")
N_SOURCES = count("n_sources", "features", "sources that enter")
N_PROMPTS = count("n_prompts", "prompts", "prompts that enter")
