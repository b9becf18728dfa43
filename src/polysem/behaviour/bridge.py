"""From the next token to the text: does a next-token effect say what becomes of a text, and does interference say more?

One arm is one row. Slopes have errors clustered by target and source (`stats.regress`); R2 is held out by target: every
target's arms are told from a fit to those of all others, against the mean of those others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from polysem.stats.multiple import equivalence_p
from polysem.stats.regress import clustered_ols
from polysem.stats.rows import links, reach

OUTCOMES = ("log_rate", "hits", "horizon")
MARGIN = {"log_rate": 0.1, "hits": 0.01, "horizon": 0.1, "nats": 0.05}
"""what would make no difference: a rate by a tenth, a position in a hundred, a tenth of a nat of log-odds, 0.05 nats per token"""
LEVEL = 0.95


def held_out_r2(
    y: Float[np.ndarray, " n"], design: Float[np.ndarray, "n k"], groups: Int[np.ndarray, " n"]
) -> float:
    """1 - squared error over that of the mean, both of fits without the row's group; NaN with fewer than 3 groups."""
    if len(np.unique(groups)) < 3:
        return float("nan")
    missed = spread = 0.0
    for g in np.unique(groups):
        own = groups == g
        fit = np.linalg.lstsq(design[~own], y[~own], rcond=None)[0]
        missed += float(((y[own] - design[own] @ fit) ** 2).sum())
        spread += float(((y[own] - y[~own].mean()) ** 2).sum())
    return 1 - missed / spread if spread > 0 else float("nan")


def bridge_rows(
    arms: Sequence[Mapping[str, Any]], effects: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of TEXT_BRIDGE from rows of TEXT_ARMS and TEXT_EFFECTS."""
    by_arm = {row["arm"]: row for row in arms}
    rows: list[dict[str, Any]] = []
    for dose in sorted({row["dose"] for row in effects}):
        mine = [r for r in effects if r["dose"] == dose and by_arm[r["arm"]]["relation"] != "self"]
        clusters = np.array(
            [[by_arm[r["arm"]][who] for who in ("target", "source")] for r in mine], dtype=np.int64
        ).reshape(-1, 2)
        columns = {
            name: np.array([np.nan if r[name] is None else r[name] for r in mine], dtype=np.float64)
            for name in (*OUTCOMES, "nats", "next", "spent")
        }
        columns["interference"] = np.array([by_arm[r["arm"]]["interference"] for r in mine], dtype=np.float64)
        columns["size"] = np.abs(columns["next"])
        asked = [(name, ("next", "interference"), ("next", "interference")) for name in OUTCOMES]
        asked.append(("nats", ("spent", "size"), ("spent", "next beside spent")))
        for outcome, regressors, terms in asked:
            rows += _rows(dose, outcome, columns, regressors, terms, clusters)
    return rows


def _rows(
    dose: float,
    outcome: str,
    columns: Mapping[str, np.ndarray],
    regressors: tuple[str, str],
    terms: tuple[str, str],
    clusters: Int[np.ndarray, "n 2"],
) -> list[dict[str, Any]]:
    from scipy import stats

    good = np.isfinite(np.stack([columns[outcome], *(columns[x] for x in regressors)])).all(0)
    y, at = columns[outcome][good], clusters[good]
    found = []
    for k, term in enumerate(terms, start=1):
        design = np.column_stack([np.ones(len(y)), *(columns[x][good] for x in regressors[:k])])
        made = clustered_ols(y, design, at, level=LEVEL, errors=links(at))
        b, se, df = (float(getattr(made, name)[-1]) for name in ("estimate", "se", "df"))
        told = {name: float(getattr(made, name)[-1]) for name in ("lo", "hi", "p")}
        far, margin = reach(columns[regressors[k - 1]][good]), MARGIN[outcome]
        power = (stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df)) * se if se > 0 else np.nan
        found.append(
            {
                "dose": dose, "outcome": outcome, "term": term, "estimate": b, "se": se, **told, "mde": power,
                "reach": far, "margin": margin, "p_equivalent": equivalence_p(b * far, se * far, df, margin=margin),
                "r2": np.nan if made.reason else held_out_r2(y, design, at[:, 0]), "n": len(y),
                "n_targets": len(np.unique(at[:, 0])), "note": made.reason or made.remark or None,
            }
        )  # fmt: skip
    return found
