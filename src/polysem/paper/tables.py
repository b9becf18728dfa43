"""The paper's Tables 1 and 5 as printed, and what they say once sentences count as the unit they are.

Each of 40 cells (category and model) has four success rates of 10,000 trials, drawn from 100 sentences. Trials that share
a sentence are alike, so the variance of a rate is that of independent trials times a design effect; the tables do not
say which, so conclusions are shown for several.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Literal

import numpy as np

from polysem.paper.welch import sign_test, welch_of_rates
from polysem.stats.multiple import adjust_p

TRIALS = 10_000
SMALL = ("Pythia-70M", "GPT-2")
CRITICAL = 1.959963984540054
ArmName = Literal["original", "high", "low", "random"]
ARMS: tuple[ArmName, ...] = ("original", "high", "low", "random")
STARRED: tuple[ArmName, ...] = ("original", "high", "low")
COMPARED: tuple[tuple[ArmName, ArmName], ...] = (("high", "random"), ("high", "low"))


@dataclass(frozen=True)
class PrintedCell:
    """One cell of the tables."""

    category: str
    model: str
    rate: tuple[float, float, float, float]
    """percent, in the order of ARMS"""
    stars: tuple[int, int, int]
    """as printed, against random"""

    def difference(self, arm: ArmName, other: ArmName = "random") -> float:
        """Percentage points."""
        return self.rate[ARMS.index(arm)] - self.rate[ARMS.index(other)]

    def t(self, arm: ArmName, *, design_effect: float = 1.0) -> float:
        """Welch's t of an arm against random."""
        rate, other = self.rate[ARMS.index(arm)] / 100, self.rate[-1] / 100
        return welch_of_rates(rate, other, n=TRIALS, design_effect=design_effect).t

    def p(self, arm: ArmName) -> float:
        """Welch's two-sided p of an arm against random, trials taken as independent."""
        rate, other = self.rate[ARMS.index(arm)] / 100, self.rate[-1] / 100
        return welch_of_rates(rate, other, n=TRIALS).p


@lru_cache(maxsize=1)
def printed_cells() -> tuple[PrintedCell, ...]:
    """The 40 cells."""
    whole = json.loads(files("polysem.paper").joinpath("tables.json").read_text(encoding="utf-8"))
    return tuple(
        PrintedCell(c["category"], c["model"], tuple(c["rate"]), tuple(c["stars"])) for c in whole["cells"]
    )


@dataclass(frozen=True)
class SignCount:
    """In how many cells an arm is above another."""

    cells: str
    arm: ArmName
    other: ArmName
    positive: int
    n: int
    mean: float
    """percentage points"""
    p: float
    """exact sign test, two-sided"""


def sign_counts() -> list[SignCount]:
    """High against random and low, in all cells, small models and large models."""
    found = []
    for name, cells in (("all", printed_cells()), ("small", small()), ("large", large())):
        for arm, other in COMPARED:
            values = [c.difference(arm, other) for c in cells]
            positive, n, p = sign_test(values)
            found.append(SignCount(name, arm, other, positive, n, sum(values) / len(values), p))
    return found


def small() -> tuple[PrintedCell, ...]:
    return tuple(c for c in printed_cells() if c.model in SMALL)


def large() -> tuple[PrintedCell, ...]:
    return tuple(c for c in printed_cells() if c.model not in SMALL)


def survivors(design_effects: Sequence[float]) -> dict[float, list[PrintedCell]]:
    """Large-model cells whose high arm is above random by more than 1.96 standard errors, by design effect."""
    return {d: [c for c in large() if c.t("high", design_effect=d) > CRITICAL] for d in design_effects}


def holm_survivors() -> list[PrintedCell]:
    """Large-model cells whose high arm is above random at 0.05 after Holm over all 120 tests of the tables."""
    tests: list[tuple[PrintedCell, ArmName]] = [(c, arm) for c in printed_cells() for arm in STARRED]
    adjusted = adjust_p(np.array([c.p(arm) for c, arm in tests]), method="holm").tolist()
    return [
        c
        for (c, arm), p in zip(tests, adjusted, strict=True)
        if arm == "high" and p <= 0.05 and c.difference("high") > 0 and c in large()
    ]


def unstarred_negatives() -> list[PrintedCell]:
    """Cells whose high arm is below random by more than 1.96 naive standard errors; none of them bears a star."""
    return [c for c in printed_cells() if c.t("high") < -CRITICAL]


def strictly_ordered() -> list[PrintedCell]:
    """Cells with original > high > low > random, as the claim would have it."""
    return [c for c in printed_cells() if all(a > b for a, b in zip(c.rate, c.rate[1:], strict=False))]
