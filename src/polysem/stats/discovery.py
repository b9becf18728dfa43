"""Which single pairs move their target more than features that nobody chose would?

The pair's effect is compared with those of the random features that were pushed for targets of the same SAE and
token set: p = (1 + number of them with at least as large a size) / (1 + their number), a conformal p value
(Bates et al., arXiv 2104.08279: with one set of reference arms such p values depend on each other positively, so
Benjamini-Hochberg keeps the expected share of false finds). Benjamini-Yekutieli assumes nothing about dependence
and is the conservative line. Many pairs are asked and few reference arms are there: `smallest` says how many
pairs must stand out together before any can be claimed.
"""

from math import ceil

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from polysem.stats.multiple import adjust_p
from polysem.stats.rows import View
from polysem.store.tables import PAIR_TESTS

Rows = list[dict[str, object]]


def pair_tests(view: View) -> Rows:
    """PAIR_TESTS of one locus at its headline dose."""
    c = view.columns
    rows: Rows = []
    for tokens in sorted(set(c["token_set"].tolist())):
        known = view.where(token_set=tokens) & np.isfinite(c["logodds"])
        family: Rows = []
        for sae in sorted(set(c["sae"].tolist())):
            own = known & view.where(sae=sae)
            pairs = np.flatnonzero(own & view.where(relation="pair"))
            null = np.abs(c["logodds"][own & view.where(relation="random_feature")])
            if not len(null) or not len(pairs):
                continue
            p = conformal_p(np.abs(c["logodds"][pairs]), null)
            for k, value in zip(pairs.tolist(), p.tolist(), strict=True):
                key: dict[str, object] = {"locus": view.locus, "sae": sae, "token_set": tokens}
                key |= {n: int(c[n][k]) for n in ("target", "source")}
                family.append(key | {"effect": float(c["logodds"][k]), "p": value, "n_null": len(null)})
        p = np.array([r["p"] for r in family], dtype=np.float64)
        adjusted = {f"q_{m}": adjust_p(p, method=m).tolist() for m in ("bh", "by")}
        rows += [r | {n: v[k] for n, v in adjusted.items()} for k, r in enumerate(family)]
    return rows


def conformal_p(values: Float[np.ndarray, " n"], null: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """(1 + number of `null` at least as large) / (1 + len(null)) for every value."""
    at_least = len(null) - np.searchsorted(np.sort(null), values, side="left")
    return (1 + at_least) / (1 + len(null))


def smallest_find(n_pairs: int, n_null: int, *, alpha: float) -> int:
    """How many pairs must reach the smallest possible p together before Benjamini-Hochberg claims any."""
    return ceil(n_pairs / (alpha * (n_null + 1)))


def pair_tests_table(rows: Rows) -> pa.Table:
    return PAIR_TESTS.conform(pa.Table.from_pylist(rows, schema=PAIR_TESTS.arrow()))
