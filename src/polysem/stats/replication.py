"""Do effects of pairs come back with another SAE of the same site, trained from another seed?

Features of the two SAEs are matched one to one (`linear.matching`); pairs both of whose members match well are
the same pair twice. Their effects, seen with either SAE's directions and tokens, should agree: the report gives
their correlation and the share of equal signs with intervals over targets, beside how many of the features match
at all (30 % between seeds is not unusual: arXiv 2501.16615).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from polysem.seeds import rng_for
from polysem.stats.regress import clustered_mean, varies
from polysem.stats.rows import Row, Rows, number
from polysem.store.tables import REPLICATION

DRAWS = 999
MEASURES = ("steered", "linear")
"""of REPLICATED: what real steering did, and what the gradient says"""


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
    counts = (len(first), len(names))
    reason = ""
    if len(first) < 5 or len(names) < 3:
        reason = f"{len(first)} pairs of {len(names)} targets are in both; 5 pairs of 3 targets are needed"
    elif not np.isfinite([first, second]).all():
        reason = "some of the effects are not finite"
    elif not (varies(first) and varies(second)):
        reason = "the effects do not vary"
    if reason:
        nan = float("nan")
        return Replication(nan, nan, nan, nan, nan, nan, *counts, reason=reason)
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
        reason=agree.remark if np.isnan(agree.lo[0]) else "",
    )


def replications(replicated: pa.Table, *, level: float, seed: int) -> pa.Table:
    """REPLICATION of every two SAEs, token set and measure in REPLICATED."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for r in replicated.to_pylist():
        if not r["shared"]:
            continue
        groups.setdefault((r["sae"], r["other"], r["token_set"]), []).append(r)
    rows: Rows = []
    for key, pairs in sorted(groups.items()):
        for measure in MEASURES:
            known = [r for r in pairs if r[measure] is not None and r[f"other_{measure}"] is not None]
            first, second = (
                np.array([r[n] for r in known], dtype=np.float64) for n in (measure, f"other_{measure}")
            )
            ends = np.array([(r["target"], r["source"]) for r in known], dtype=np.int64).reshape(-1, 2)
            found = replicate(first, second, ends, level=level, rng=rng_for(seed, "replication", *key))
            row: Row = dict(zip(("sae", "other", "token_set"), key, strict=True))
            row |= {"measure": measure} | {n: pairs[0][n] for n in ("matched", "best_cosine")}
            row |= {n: number(v) if isinstance(v, float) else v for n, v in vars(found).items()}
            rows.append(row | {"level": level, "note": found.reason or None})
    return REPLICATION.of(rows)


def _correlation(a: np.ndarray, b: np.ndarray, w: np.ndarray) -> float:
    a, b = a - np.average(a, weights=w), b - np.average(b, weights=w)
    size = np.sqrt((w * a * a).sum() * (w * b * b).sum())
    return float((w * a * b).sum() / size) if size > 0 else float("nan")
