"""What a design can see: the smallest effect found in 80 % of such studies, and the smallest margin within which
a true zero is shown to lie in 80 % of them.

Before the trials, studies of the planned pairs are drawn with effects that vary between targets, sources, pairs and
prompts as `Spread` says, and each is judged as the real one will be: by the regression of record, whose intervals are a
little wider than the estimates' own spread. Afterwards the standard error is the one that was seen, turned into effects
by the t distribution with the degrees of freedom of the test.
"""

import logging
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from polysem.errors import ConfigError
from polysem.seeds import rng_for
from polysem.stats.arms import equals, floats
from polysem.stats.regress import clustered_ols, refusal, tells, within
from polysem.stats.rows import Rows, reach
from polysem.store.schema import group_codes
from polysem.store.tables import POWER

log = logging.getLogger(__name__)

POWER_WANTED = 0.8
DRAWS = 199


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
    inside: bool = False,
) -> DesignPower:
    """Power for coefficient `which` of a planned regression with one row per pair.

    The variance of the least-squares estimate is w' Omega w with w the weights of the outcomes in it and Omega
    what `spread` says: rows share their target's and their source's effect, and their target's slope. With e the error
    of an estimate and c the half-width of its interval, in each of `DRAWS` studies, an effect is seen where it exceeds
    c - e, and shown to be absent within what exceeds |e| + c, with c of two one-sided tests.

    Args:
        design: regressors; with `inside` what is left of them after a fixed effect of every target.
        clusters: target and source of every row.
        which: the column that is asked for.
        n_prompts: on which every pair rests.
        inside: whether outcomes are compared inside targets.

    Raises:
        ConfigError: if the design cannot be estimated at all.
    """
    from scipy.special import stdtrit

    if reason := refusal(np.zeros(len(design)), design):
        raise ConfigError(f"nothing can be seen with this design: {reason}", hint="plan more pairs")
    w = np.linalg.pinv(design)[which]
    x = design[:, which]
    noise = spread.pair**2 + spread.prompt**2 / n_prompts
    variance = noise * float(w @ w)
    for column, terms in ((0, ((w, spread.target), (w * x, spread.slope))), (1, ((w, spread.source),))):
        code = np.unique(clusters[:, column], return_inverse=True)[1]
        for weights, sd in terms:
            variance += sd**2 * float((np.bincount(code, weights=weights) ** 2).sum())
    seen = [_draw(design, clusters, which, spread, n_prompts, k, inside=inside) for k in range(DRAWS)]
    error, se, df = np.array(seen, dtype=np.float64).T
    if not np.isfinite(se).all():
        groups = [len(np.unique(column)) for column in clusters.T]
        raise ConfigError(
            f"nothing can be seen with this design: {groups[0]} targets and {groups[1]} sources give no interval",
            hint="plan more targets and more sources",
        )
    alpha = 1 - level
    either, one = (np.asarray(stdtrit(df, 1 - p), dtype=np.float64) for p in (alpha / 2, alpha))
    apart, within_ = either * se - error, one * se + np.abs(error)
    smallest, absent = (float(np.quantile(v, POWER_WANTED)) for v in (apart, within_))
    return DesignPower(float(np.sqrt(variance)), float(np.median(df)), smallest, absent)


def _draw(
    design: np.ndarray,
    clusters: np.ndarray,
    which: int,
    spread: Spread,
    n_prompts: int,
    k: int,
    *,
    inside: bool,
) -> tuple[float, float, float]:
    """(estimate, standard error, degrees of freedom) of one study in which the coefficient is 0."""
    rng = rng_for(k, "planned power")
    n = len(design)
    target, source = (np.unique(column, return_inverse=True)[1] for column in clusters.T)
    y = spread.target * rng.standard_normal(n)[target] + spread.source * rng.standard_normal(n)[source]
    y += spread.slope * rng.standard_normal(n)[target] * design[:, which] + spread.pair * rng.standard_normal(
        n
    )
    cells = spread.prompt * rng.standard_normal((n, n_prompts))
    mean = cells.mean(axis=1)
    y += mean
    y = within(y[:, None], target)[:, 0] if inside else y
    fit = clustered_ols(y, design, clusters, level=0.95, prompts=(cells - mean[:, None]) / n_prompts)
    return float(fit.estimate[which]), float(fit.se[which]), float(fit.df[which])


def from_se(se: float, df: float, *, level: float) -> DesignPower:
    """What a standard error can see."""
    from scipy.special import stdtrit

    alpha = 1 - level
    reach = float(stdtrit(df, 1 - alpha / 2) + stdtrit(df, POWER_WANTED))
    # A true zero passes both one-sided tests; each half of what may fail is on one side.
    absent = float(stdtrit(df, 1 - alpha) + stdtrit(df, 0.5 + POWER_WANTED / 2))
    return DesignPower(se, df, smallest=reach * se, smallest_absent=absent * se)


class PlannedPower(NamedTuple):
    """Of the slope on interference, for a plan."""

    power: DesignPower
    """in units of the spread, per cosine"""
    reach: float
    """95th percentile of the planned |interference|: as far as the slope will be told"""


def planned_power(plan: pa.Table, *, spread: Spread, level: float) -> dict[str, PlannedPower]:
    """Power of the slope of record on interference for a PLAN, inside targets with similarity held fixed, by token set;
    empty where no pairs are planned. Regressors that the plan's table does not hold cost the little that they share with
    interference."""
    found: dict[str, PlannedPower] = {}
    pairs = plan.filter(equals(plan, relation="pair", split="confirm"))
    for tokens in sorted(set(pairs["token_set"].to_pylist())):
        rows = pairs.filter(equals(pairs, token_set=tokens))
        rows = rows.filter(equals(rows, locus=rows["locus"][0].as_py()))
        n_prompts = len(pc.unique(rows["prompt_id"]))
        keys = ["sae", "target", "source", "interference", "similarity"]
        arms = rows.group_by(keys, use_threads=False).aggregate([])
        clusters = np.column_stack([group_codes(arms, ("sae", who)) for who in ("target", "source")])
        told = arms["interference"].to_numpy()
        x, similarity = (within(floats(arms[n])[:, None], clusters[:, 0])[:, 0] for n in keys[-2:])
        if len(x) < 4 or not tells(x, []):
            continue
        held = [similarity] if np.isfinite(similarity).all() and tells(similarity, [x]) else []
        design = np.column_stack([x, *held])
        try:
            power = design_power(
                design, clusters, which=0, spread=spread, n_prompts=n_prompts, level=level, inside=True
            )
        except ConfigError as error:
            log.warning("T-%s: %s", tokens, error)
            continue
        found[tokens] = PlannedPower(power, reach(told))
    return found


def seen_power(rows: Rows, *, level: float) -> pa.Table:
    """POWER of the declared contrasts, from the standard errors that were seen (keys `se`, `df`, `margin`)."""
    made: Rows = []
    for row in rows:
        if row.get("se") is None:
            continue
        power = from_se(float(str(row["se"])), float(str(row["df"])), level=level)
        made.append(row | vars(power) | {"level": level})
    return POWER.of(made)
