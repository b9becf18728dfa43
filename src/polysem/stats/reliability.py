"""How well gloss similarity is measured, and regressions that survive its noise.

Two glosses, or two embedders, give two noisy measures of one similarity S*. Their correlation estimates the
reliability r of one of them. A regression that controls for a measure of reliability r leaves in the coefficient of
interference I a bias of gamma rho (1 - r) / (1 - r rho^2), gamma being the effect of S* and rho its correlation with I
(errors in variables). Using one measure as an instrument for the other removes it: the noise of the second does not
depend on that of the first, so what the second predicts of the first is free of both.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from polysem.errors import ConfigError
from polysem.stats.regress import clustered_ols

WEAK_F = 10.0
"""first-stage F below which an instrument is called weak (Staiger and Stock 1997)"""


class Reliability(NamedTuple):
    """Agreement of two measures of the same pairs."""

    r: float
    """correlation: the reliability of either, if both are as good and their errors independent"""
    lo: float
    hi: float
    n: int


class Instrumented(NamedTuple):
    """Coefficient of interference with similarity controlled for, naive and corrected."""

    naive: float
    """ordinary least squares on the first measure"""
    corrected: float
    """two-stage least squares, the first measure instrumented by the second"""
    lo: float
    hi: float
    p: float
    similarity: float
    """corrected coefficient of similarity"""
    first_stage_f: float
    remark: str
    """what weakens the correction; "" if nothing does"""


def reliability(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " m"], *, level: float = 0.95
) -> Reliability:
    """Correlation of two measures, with Fisher's interval. Pairs share features, so the interval is too short
    where there are few features.

    Raises:
        ConfigError: with fewer than four pairs, or a measure that does not vary or is not finite.
    """
    from scipy.special import ndtri

    _check(first, second)
    r = float(np.corrcoef(first, second)[0, 1])
    reach = ndtri(0.5 + level / 2) / np.sqrt(len(first) - 3)
    z = np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))
    return Reliability(r, float(np.tanh(z - reach)), float(np.tanh(z + reach)), len(first))


def naive_bias(*, gamma: float, rho: float, r: float) -> float:
    """Bias that a control of reliability r leaves in the coefficient of interference (unit variances)."""
    return gamma * rho * (1 - r) / (1 - r * rho**2)


def instrumented(
    effect: Float[np.ndarray, " n"],
    interference: Float[np.ndarray, " n"],
    first: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " n"],
    clusters: Int[np.ndarray, "n 2"],
    *,
    held: Float[np.ndarray, "n k"] | None = None,
    level: float = 0.95,
) -> Instrumented:
    """effect ~ interference + similarity, by two-stage least squares.

    Args:
        effect: of every pair.
        interference: its cosine.
        first: similarity by one gloss and embedder.
        second: by another, made independently.
        clusters: target and source of every pair.
        held: covariates that are held fixed, too.

    Raises:
        ConfigError: if a measure does not vary, or the regression cannot be made.
    """
    _check(first, second)
    one = np.ones(len(effect))
    exogenous = np.column_stack([one, interference] if held is None else [one, interference, held])
    stage = np.column_stack([exogenous, second])
    coefficient, *_ = np.linalg.lstsq(stage, first, rcond=None)
    fitted = stage @ coefficient
    design = np.column_stack([exogenous, fitted])
    shift, *_ = np.linalg.lstsq(design, effect, rcond=None)
    # Residuals use the measure itself, not its fit: moving the outcome by their difference gives least squares
    # on the fit the coefficients and the residuals of two-stage least squares.
    moved = effect - shift[-1] * (first - fitted)
    corrected = clustered_ols(moved, design, clusters, level=level)
    naive = clustered_ols(effect, np.column_stack([exogenous, first]), clusters, level=level)
    for found in (naive, corrected):
        if found.reason:
            raise ConfigError(f"the regression cannot be made: {found.reason}")
    f = _first_stage(first, stage, coefficient)
    remarks = [corrected.remark]
    if f < WEAK_F:
        remarks.append(f"weak instrument (first-stage F = {f:.1f}): the interval cannot be trusted")
    return Instrumented(
        naive=float(naive.estimate[1]),
        corrected=float(corrected.estimate[1]),
        lo=float(corrected.lo[1]),
        hi=float(corrected.hi[1]),
        p=float(corrected.p[1]),
        similarity=float(corrected.estimate[-1]),
        first_stage_f=f,
        remark="; ".join(r for r in remarks if r),
    )


def _first_stage(first: np.ndarray, stage: np.ndarray, coefficient: np.ndarray) -> float:
    """F of the instrument: its squared t value in the first stage."""
    left = first - stage @ coefficient
    n, k = stage.shape
    if n <= k:
        return 0.0
    scale = float(left @ left) / (n - k)
    variance = scale * np.linalg.pinv(stage.T @ stage)[-1, -1]
    return float(coefficient[-1] ** 2 / variance) if variance > 0 else float("inf")


def _check(first: np.ndarray, second: np.ndarray) -> None:
    if len(first) != len(second) or len(first) < 4:
        raise ConfigError(f"{len(first)} and {len(second)} similarities; expected equally many, at least 4")
    for name, values in (("first", first), ("second", second)):
        if not np.isfinite(values).all():
            raise ConfigError(f"the {name} similarity holds values that are not finite")
        if np.ptp(values) == 0:
            raise ConfigError(f"the {name} similarity does not vary: every pair has {values[0]:g}")
