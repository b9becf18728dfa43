"""What a selftest says: lines, each one number against what it must be.

A line holds if lo <= value <= hi, with either end absent where there is no limit; a line without limits is
`reported`, not judged: a curve, or a number that nature sets. The Monte-Carlo error is the standard error
of `value` over replicates; None where the value is not a random quantity.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict, Unpack

import numpy as np

Number = float | int | np.number


class Measured(NamedTuple):
    """One number of a check, before it is timed."""

    name: str
    value: float
    lo: float | None
    hi: float | None
    error: float | None = None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One number, timed."""

    world: str
    """GT0 to GT8"""
    name: str
    value: float
    lo: float | None
    """smallest value that holds"""
    hi: float | None
    """largest value that holds"""
    error: float | None
    """Monte-Carlo standard error"""
    unit: str
    note: str
    seconds: float

    @property
    def held(self) -> bool | None:
        """None for a line that is reported and not judged; a value that is not a number never holds."""
        if self.lo is None and self.hi is None and not math.isnan(self.value):
            return None
        low = -math.inf if self.lo is None else self.lo
        high = math.inf if self.hi is None else self.hi
        return low <= self.value <= high

    @property
    def expected(self) -> str:
        """The limits in words."""
        match self.lo, self.hi:
            case None, None:
                return "reported"
            case None, hi:
                return f"<= {hi:.4g}"
            case lo, None:
                return f">= {lo:.4g}"
            case lo, hi:
                if lo == hi:
                    return f"{lo:.4g}"
                return f"{lo:.4g} .. {hi:.4g}"


@dataclass(frozen=True)
class Verdict:
    """All lines of one run, and what was run."""

    lines: tuple[Line, ...]
    scale: str
    """quick or full"""
    seed: int
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        return bool(self.lines) and all(line.held is not False for line in self.lines)

    @property
    def broken(self) -> list[Line]:
        return [line for line in self.lines if line.held is False]


class Said(TypedDict, total=False):
    """What may be said of a number besides its limits."""

    error: Number | None
    unit: str
    note: str


def _measured(name: str, value: Number, lo: Number | None, hi: Number | None, said: Said) -> Measured:
    error = said.get("error")
    return Measured(
        name,
        float(value),
        None if lo is None else float(lo),
        None if hi is None else float(hi),
        None if error is None else float(error),
        said.get("unit", ""),
        said.get("note", ""),
    )


def near(name: str, value: Number, expected: Number, tolerance: Number, **said: Unpack[Said]) -> Measured:
    """Holds within `tolerance` of `expected`."""
    return _measured(name, value, expected - tolerance, expected + tolerance, said)


def exactly(name: str, value: Number, expected: Number, **said: Unpack[Said]) -> Measured:
    """Holds if equal: counts."""
    return _measured(name, value, expected, expected, said)


def at_most(name: str, value: Number, limit: Number, **said: Unpack[Said]) -> Measured:
    """Holds up to `limit`."""
    return _measured(name, value, None, limit, said)


def at_least(name: str, value: Number, limit: Number, **said: Unpack[Said]) -> Measured:
    """Holds from `limit` on."""
    return _measured(name, value, limit, None, said)


def between(name: str, value: Number, lo: Number, hi: Number, **said: Unpack[Said]) -> Measured:
    """Holds inside [lo, hi]."""
    return _measured(name, value, lo, hi, said)


def reported(name: str, value: Number, **said: Unpack[Said]) -> Measured:
    """Not judged."""
    return _measured(name, value, None, None, said)


def rate(
    name: str,
    hits: Number,
    n: int,
    *,
    nominal: float,
    at: float = 0.0,
    band: tuple[float, float] | None = None,
    note: str = "",
) -> Measured:
    """A rejection or coverage rate, over `n` replicates, against its nominal value.

    Holds inside `band`, the range of the published table, where there are replicates enough for it; else within
    3 Monte-Carlo standard errors of the nominal rate, and never closer than `at`.
    """
    error = math.sqrt(nominal * (1 - nominal) / n)
    reach = max(at, 3 * error)
    said = f"{hits} of {n}" + (f"; {note}" if note else "")
    low, high = band or (max(0.0, nominal - reach), min(1.0, nominal + reach))
    return Measured(name, float(hits / n), low, high, error, "share of replicates", said)
