"""Per-feature tables of side effects that others publish: a row a feature, predictors and outcomes as columns.

    feature, crowding, enc_dec_cos, ..., collateral_raw, stab_signed, kl_mean

Columns beyond `feature`, one predictor and one outcome are not required; what is there is taken as a number.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from polysem.boundary.door import Door, brief
from polysem.boundary.files import read_plain
from polysem.boundary.text import table_rows
from polysem.errors import MismatchError
from polysem.side_effects.forecast import over_features, partial_correlation

OUTCOMES = ("collateral_raw", "stab_signed", "kl_mean")
"""columns that are measured; all others that hold numbers are predictors"""
_DOOR = Door("table of features", "give a .csv with the columns feature, crowding, collateral_raw")

_NUMBER = re.compile(r"[+-]?((\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|inf(inity)?)", re.IGNORECASE | re.ASCII)
_COMMA = re.compile(r"[+-]?\d{1,3}(,\d+)+|[+-]?\d+,\d+")
"""a number as it is written elsewhere: 0,5 is one half or five"""


@dataclass(frozen=True)
class PublicTable:
    """Numbers of features."""

    columns: dict[str, Float[np.ndarray, " n"]]
    """by name, in the file's order; NaN where a cell is empty"""

    @property
    def predictors(self) -> tuple[str, ...]:
        """Columns that are not measured."""
        return tuple(c for c in self.columns if c not in OUTCOMES and c != "feature")

    def partial(
        self, predictor: str, outcome: str, given: Sequence[str] | None = None
    ) -> tuple[float, float, float, int]:
        """Partial Spearman correlation with its interval (jackknife over features), and how many features enter.

        Args:
            predictor: a column.
            outcome: another.
            given: columns that are taken out of both; None: all other predictors.

        Raises:
            MismatchError: a column that is not there, or too few features to leave anything.
        """
        given = [c for c in self.predictors if c != predictor] if given is None else list(given)
        missing = [c for c in (predictor, outcome, *given) if c not in self.columns]
        if missing:
            raise MismatchError(f"no column {', '.join(missing)}; the table has {', '.join(self.columns)}")
        whole = np.column_stack([self.columns[c] for c in (predictor, outcome, *given)])
        known = whole[np.isfinite(whole).all(1)]
        if len(known) < len(given) + 4:
            raise MismatchError(
                f"{len(known)} features have all of {predictor}, {outcome} and {len(given)} columns more; "
                f"expected at least {len(given) + 4}"
            )
        value, lo, hi, _ = over_features(
            lambda at: partial_correlation(known[at, 0], known[at, 1], known[at, 2:]), len(known)
        )
        return value, lo, hi, len(known)


def read_feature_table(path: Path) -> PublicTable:
    """A table of features.

    Raises:
        FormatError: no such table, no column `feature`, a feature twice, or a column that holds words and numbers.
    """
    rows = [cells for _, cells in table_rows(read_plain(path, door=_DOOR), path, door=_DOOR)]
    if not rows or "feature" not in rows[0]:
        raise _DOOR.refuse(path, f"{len(rows)} rows, columns {brief(', '.join(rows[0]) if rows else '')}")
    columns: dict[str, Float[np.ndarray, " n"]] = {}
    for name in rows[0]:
        numbers = [_number(row[name]) for row in rows]
        words = [row[name] for row, value in zip(rows, numbers, strict=True) if value is None]
        odd = next((word for word in words if _COMMA.fullmatch(word.strip())), None)
        if odd is not None:
            raise _DOOR.refuse(
                path,
                f"column {brief(name)} holds {odd}",
                hint="write numbers with a point, and no marks between thousands",
            )
        if words and len(words) < len(rows):
            raise _DOOR.refuse(path, f"column {brief(name)} holds numbers and {brief(words[0])}")
        if not words:
            columns[name] = np.array(numbers, dtype=np.float64)
    features = columns.get("feature", np.empty(0))
    whole = np.isfinite(features).all() and (features >= 0).all() and (features == np.floor(features)).all()
    if len(features) != len(rows) or not whole or len(np.unique(features)) != len(features):
        raise _DOOR.refuse(path, "column feature is not one whole number from 0 for each row, each once")
    return PublicTable(columns)


def _number(cell: str) -> float | None:
    """A cell; NaN for an empty one, None for a word."""
    text = cell.strip()
    if not text or text.casefold() in ("nan", "na", "none", "null"):
        return float("nan")
    return float(text) if _NUMBER.fullmatch(text) else None  # float() takes 1_000, too
