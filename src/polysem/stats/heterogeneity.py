"""Do the SAEs of a study say the same? Every declared contrast in each SAE apart, and together.

Cochran's Q weighs the SAEs' estimates by their inverse variances; I2 = max(0, (Q - df) / Q) is the share of their spread
that is no sampling error, with the interval of Higgins and Thompson (Statistics in Medicine 21, 2002) from that of ln H.
Together they are also given as what another SAE of this kind would show on average: a random-effects mean (DerSimonian
and Laird) with the t interval of Hartung, Knapp, Sidik and Jonkman, never narrower than the one of a common effect.
SAEs share prompts and the model, which none of this knows: Q is then a little too small.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from polysem.stats.rows import POOLED, Row, Rows, number, parse_group


class Heterogeneity(NamedTuple):
    """What several estimates of one thing say together."""

    q: float
    p: float
    """of a Q as large, were all estimates of one value"""
    i2: float
    i2_lo: float
    i2_hi: float
    """nan with two estimates, which say too little"""
    tau: float
    """standard deviation of the true values, in the unit of the estimates"""
    mean: float
    lo: float
    hi: float


def heterogeneity(
    estimate: Float[np.ndarray, " n"], se: Float[np.ndarray, " n"], *, level: float
) -> Heterogeneity:
    """Q, I2 and the random-effects mean of at least two estimates with standard errors above zero."""
    from scipy.special import chdtrc, ndtri, stdtrit

    n = len(estimate)
    w = 1 / se**2
    fixed = float(w @ estimate / w.sum())
    q = float(w @ (estimate - fixed) ** 2)
    df = n - 1
    i2 = max(0.0, (q - df) / q) if q > 0 else 0.0
    i2_lo = i2_hi = float("nan")
    if n > 2:
        h = max(1.0, np.sqrt(q / df))
        if q > n:
            error = 0.5 * (np.log(q) - np.log(df)) / (np.sqrt(2 * q) - np.sqrt(2 * n - 3))
        else:
            error = np.sqrt(1 / (2 * (n - 2)) * (1 - 1 / (3 * (n - 2) ** 2)))
        reach = float(ndtri(0.5 + level / 2)) * error
        ends = [max(1.0, float(np.exp(np.log(h) + sign * reach))) for sign in (-1, 1)]
        i2_lo, i2_hi = (1 - 1 / e**2 for e in ends)
    tau2 = max(0.0, (q - df) / float(w.sum() - (w**2).sum() / w.sum()))
    v = 1 / (se**2 + tau2)
    mean = float(v @ estimate / v.sum())
    spread = max(1.0, float(v @ (estimate - mean) ** 2) / df)
    half = float(stdtrit(df, 0.5 + level / 2)) * float(np.sqrt(spread / v.sum()))
    return Heterogeneity(
        q, float(chdtrc(df, q)), i2, i2_lo, i2_hi, float(np.sqrt(tau2)), mean, mean - half, mean + half
    )


def between_saes(declared: Rows, rows: Rows, *, sites: Mapping[str, str] | None = None) -> Rows:
    """HETEROGENEITY: a row per declared contrast of every locus, and one more for each site that has several SAEs (dictionaries,
    as clusters of one) where the study has several sites.

    Args:
        declared: rows of EFFECTS of all SAEs together, with `locus`, `token_set`.
        rows: EFFECTS, with `se`.
        sites: site of every SAE by label.
    """
    own: dict[tuple[str, frozenset[tuple[str, str]]], Rows] = {}
    for row in rows:
        parts = parse_group(str(row["group"]))
        if parts.get("sae") not in (None, POOLED):
            own.setdefault((str(row["contrast"]), _but_sae(parts)), []).append(row)
    by_site: dict[str, set[str]] = {}
    for label, site in (sites or {}).items():
        by_site.setdefault(site, set()).add(label)
    several = {site: saes for site, saes in by_site.items() if len(saes) > 1 and len(by_site) > 1}
    found: Rows = []
    for row in declared:
        mine = own.get((str(row["contrast"]), _but_sae(parse_group(str(row["group"])))), [])
        found.append(_row(row, mine) | {"site": POOLED})
        for site, saes in sorted(several.items()):
            here = [r for r in mine if parse_group(str(r["group"]))["sae"] in saes]
            found.append(_row(row, here) | {"site": site, "estimate": None})
    return found


def _but_sae(parts: dict[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset((k, v) for k, v in parts.items() if k != "sae")


def _row(row: Row, own: Rows) -> Row:
    keys = ("contrast", "locus", "token_set", "level", "unit")
    known = [(float(str(r["estimate"])), float(str(r["se"]))) for r in own if isinstance(r.get("se"), float)]
    made: Row = {k: row[k] for k in keys} | {"n_saes": len(known), "estimate": row["estimate"]}
    if len(known) < 2:
        why = (
            "there is one SAE"
            if not own
            else f"only {len(known)} of {len(own)} SAEs have an interval of their own"
        )
        return made | {"note": why}
    estimate, se = (np.array(column) for column in zip(*known, strict=True))
    found = heterogeneity(estimate, se, level=float(str(row["level"])))
    if row["unit"] == "share of pairs":
        found = found._replace(lo=float(np.clip(found.lo, 0, 1)), hi=float(np.clip(found.hi, 0, 1)))
    return made | {k: number(v) for k, v in found._asdict().items()} | {"note": None}
