"""Do effects of pairs come back with another SAE of the same site, trained from another seed?

Features of the two SAEs are matched one to one by the cosine of their directions (the Hungarian method); pairs
both of whose members match well are the same pair twice. Their effects, measured in either SAE, should agree:
the report gives their correlation and the share of equal signs with intervals over targets, beside how many of
the features match at all (30 % between seeds is not unusual: arXiv 2501.16615).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from polysem.stats.regress import clustered_mean

MATCH = 0.7
"""cosine above which two features count as one"""
DRAWS = 999


@dataclass(frozen=True)
class Match:
    """Features of one SAE and those of the other that they became."""

    first: Int[np.ndarray, " n"]
    second: Int[np.ndarray, " n"]
    cosine: Float[np.ndarray, " n"]
    share: float
    """of the features asked about that match above the threshold"""
    mean_max_cosine: float
    """mean over them of the best cosine, matched one to one or not"""


@dataclass(frozen=True)
class Replication:
    """Agreement of effects of the same pairs; nan where `reason` says why there is none."""

    correlation: float
    lo: float
    hi: float
    sign_agreement: float
    sign_lo: float
    sign_hi: float
    n_pairs: int
    n_targets: int
    reason: str


def match_features(
    first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"], *, threshold: float = MATCH
) -> Match:
    """One-to-one match of decoder rows with the largest sum of cosines; pairs below the threshold are dropped."""
    from scipy.optimize import linear_sum_assignment

    a, b = (w / np.maximum(np.linalg.norm(w, axis=1, keepdims=True), 1e-30) for w in (first, second))
    cosines = a @ b.T
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    kept = cosines[rows, columns] >= threshold
    return Match(
        first=rows[kept],
        second=columns[kept],
        cosine=cosines[rows, columns][kept],
        share=float(kept.sum() / len(a)),
        mean_max_cosine=float(cosines.max(axis=1).mean()),
    )


def replicate(
    first: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " n"],
    clusters: Int[np.ndarray, "n 2"],
    *,
    level: float,
    rng: np.random.Generator,
) -> Replication:
    """Correlation and sign agreement of the effects of the same pairs in two SAEs.

    Args:
        first: effects in one SAE, nats.
        second: in the other, same pairs in the same order.
        clusters: target and source of every pair (in the first SAE).
        rng: for the interval of the correlation, which resamples targets.
    """
    names, code = np.unique(clusters[:, 0], return_inverse=True)
    nan = float("nan")
    counts = (len(first), len(names))
    if len(first) < 5 or len(names) < 3:
        reason = f"{len(first)} pairs of {len(names)} targets are in both; 5 pairs of 3 targets are needed"
        return Replication(nan, nan, nan, nan, nan, nan, *counts, reason=reason)
    if not (np.ptp(first) > 0 and np.ptp(second) > 0):
        return Replication(nan, nan, nan, nan, nan, nan, *counts, reason="the effects do not vary")
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)[:, code]
    drawn = np.array([_correlation(first, second, w.astype(np.float64)) for w in weights])
    lo, hi = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    agree = clustered_mean(np.sign(first) * np.sign(second) / 2, clusters, level=level)
    return Replication(
        correlation=_correlation(first, second, np.ones(len(first))),
        lo=float(lo),
        hi=float(hi),
        sign_agreement=float(agree.estimate[0]) + 0.5,
        sign_lo=float(np.clip(agree.lo[0] + 0.5, 0, 1)),
        sign_hi=float(np.clip(agree.hi[0] + 0.5, 0, 1)),
        n_pairs=counts[0],
        n_targets=counts[1],
        reason="",
    )


def _correlation(a: np.ndarray, b: np.ndarray, w: np.ndarray) -> float:
    a, b = a - np.average(a, weights=w), b - np.average(b, weights=w)
    size = np.sqrt((w * a * a).sum() * (w * b * b).sum())
    return float((w * a * b).sum() / size) if size > 0 else float("nan")
