"""What a design can see: the smallest effect found in 80 % of such studies, and the smallest margin within which
a true zero is shown to lie in 80 % of them.

Before the trials, the standard error follows exactly from the planned pairs and from how much effects vary
between targets, sources, pairs and prompts (`Spread`); afterwards it is the one that was seen. Both are turned
into effects by the t distribution with the degrees of freedom of the test.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from polysem.stats.regress import degrees_of_freedom
from polysem.store.tables import POWER

POWER_WANTED = 0.8
Rows = list[dict[str, object]]


@dataclass(frozen=True)
class Spread:
    """Standard deviations of effects, in the unit of the outcome."""

    target: float
    source: float
    pair: float
    prompt: float
    """of one prompt around its pair"""
    slope: float = 0.0
    """of the slope on the regressor, from target to target"""


PILOT = Spread(target=0.5, source=0.5, pair=1.0, prompt=1.0)
"""Relative to the spread from pair to pair, as measured on the zoo's GPT-2 (two sites, 10 targets each, tokens that
activate the target: targets 0.20 and 0.50, sources 0.49 and 0.67, prompts 1.06 and 0.99; slopes not measured)."""


@dataclass(frozen=True)
class DesignPower:
    """Of one coefficient of one design."""

    se: float
    df: float
    smallest: float
    """effect seen with probability 0.8"""
    smallest_absent: float
    """margin at which "no effect" is shown with probability 0.8 when it is true"""


def design_power(
    design: Float[np.ndarray, "n k"],
    clusters: Int[np.ndarray, "n 2"],
    *,
    which: int,
    spread: Spread,
    n_prompts: int,
    level: float,
) -> DesignPower:
    """Power for coefficient `which` of a planned regression with one row per pair.

    The variance of the least-squares estimate is w' Omega w with w the weights of the outcomes in it and Omega
    what `spread` says: rows share their target's and their source's effect, and their target's slope.
    """
    w = np.linalg.pinv(design)[which]
    x = design[:, which]
    noise = spread.pair**2 + spread.prompt**2 / n_prompts
    variance = noise * float(w @ w)
    for column, terms in ((0, ((w, spread.target), (w * x, spread.slope))), (1, ((w, spread.source),))):
        code = np.unique(clusters[:, column], return_inverse=True)[1]
        for weights, sd in terms:
            variance += sd**2 * float((np.bincount(code, weights=weights) ** 2).sum())
    df = float(degrees_of_freedom(design, clusters)[which])
    return from_se(float(np.sqrt(variance)), df, level=level)


def from_se(se: float, df: float, *, level: float) -> DesignPower:
    """What a standard error can see."""
    from scipy.special import stdtrit

    alpha = 1 - level
    reach = float(stdtrit(df, 1 - alpha / 2) + stdtrit(df, POWER_WANTED))
    # A true zero passes both one-sided tests; each half of what may fail is on one side.
    absent = float(stdtrit(df, 1 - alpha) + stdtrit(df, 0.5 + POWER_WANTED / 2))
    return DesignPower(se, df, smallest=reach * se, smallest_absent=absent * se)


def planned_power(plan: pa.Table, *, spread: Spread, level: float) -> dict[str, DesignPower]:
    """Power of the slope on interference for a PLAN, by token set; empty where no pairs are planned.

    In units of `spread`; interference is per cosine.
    """
    found: dict[str, DesignPower] = {}
    pairs = plan.filter(pc.and_(pc.equal(plan["relation"], "pair"), pc.equal(plan["split"], "confirm")))
    for tokens in sorted(set(pairs["token_set"].to_pylist())):
        rows = pairs.filter(pc.equal(pairs["token_set"], tokens))
        rows = rows.filter(pc.equal(rows["locus"], rows["locus"][0]))
        n_prompts = len(pc.unique(rows["prompt_id"]))
        arms = rows.group_by(["sae", "target", "source", "interference"], use_threads=False).aggregate([])
        names = {
            key: k
            for k, key in enumerate(
                sorted({(r["sae"], r[w]) for r in arms.to_pylist() for w in ("target", "source")})
            )
        }
        clusters = np.array(
            [[names[r["sae"], r["target"]], names[r["sae"], r["source"]]] for r in arms.to_pylist()]
        )
        x = arms["interference"].to_numpy()
        if len(x) < 4 or np.ptp(x) == 0:
            continue
        design = np.column_stack([np.ones(len(x)), x])
        found[tokens] = design_power(
            design, clusters, which=1, spread=spread, n_prompts=n_prompts, level=level
        )
    return found


def seen_power(rows: Rows, *, level: float) -> pa.Table:
    """POWER of the declared contrasts, from the standard errors that were seen (keys `se`, `df`, `margin`)."""
    made: Rows = []
    for row in rows:
        if row.get("se") is None:
            continue
        power = from_se(float(str(row["se"])), float(str(row["df"])), level=level)
        made.append(
            {key: row[key] for key in ("contrast", "locus", "token_set", "unit", "margin")}
            | {"se": power.se, "smallest": power.smallest, "smallest_absent": power.smallest_absent}
            | {"level": level}
        )
    return POWER.conform(pa.Table.from_pylist(made, schema=POWER.arrow()))
