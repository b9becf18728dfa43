"""Which single pairs move their target more than features that nobody chose would?

The pair's effect is compared with those of the random features that were pushed for targets of the same SAE and
token set: p = (1 + number of them with at least as large a size) / (1 + their number), a conformal p value
(Bates et al., arXiv 2104.08279: with one set of reference arms such p values depend on each other positively, so
Benjamini-Hochberg keeps the expected share of false finds). Benjamini-Yekutieli assumes nothing about dependence
and is the conservative line. Many pairs are asked and few reference arms are there: `nameable` says whether any pair
could be claimed at all, and how many random features that takes.
"""

from math import ceil
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from polysem.stats.arms import outcome_of
from polysem.stats.multiple import adjust_p
from polysem.stats.rows import Row, Rows, View

MAX_SHARE = 0.05
"""a plan under which more of the pairs would have to stand out together before one is named cannot test single pairs"""
ROUNDING = 1e-9


def pair_tests(view: View) -> Rows:
    """PAIR_TESTS of one locus at its headline dose."""
    c = view.columns
    rows: Rows = []
    for tokens in view.token_sets:
        outcome = outcome_of(tokens)
        y = c[outcome]
        family: Rows = []
        for sae in sorted(set(c["sae"].tolist())):
            at: dict[str, str] = {"sae": sae, "token_set": tokens}
            pairs = np.flatnonzero(view.known(outcome, relation="pair", **at))
            null = np.abs(y[view.known(outcome, relation="random_feature", **at)])
            each: list[float] = conformal_p(np.abs(y[pairs]), null).tolist() if len(null) else []
            family += [
                Row(locus=view.locus, **at)
                | {"target": int(c["target"][k]), "source": int(c["source"][k])}
                | {"effect": float(y[k]), "p": value, "n_null": len(null)}
                for k, value in zip(pairs.tolist(), each, strict=False)
            ]
        p = np.array([r["p"] for r in family], dtype=np.float64)
        adjusted = {f"q_{m}": adjust_p(p, method=m).tolist() for m in ("bh", "by")}
        rows += [r | {n: v[k] for n, v in adjusted.items()} for k, r in enumerate(family)]
    return rows


def conformal_p(values: Float[np.ndarray, " n"], null: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """(1 + number of `null` at least as large) / (1 + len(null)) for every value."""
    at_least = len(null) - np.searchsorted(np.sort(null), values, side="left")
    return (1 + at_least) / (1 + len(null))


class Nameable(NamedTuple):
    """Whether single pairs can be named at all, and what it would take."""

    together: int
    """pairs that must reach the smallest possible p together before Benjamini-Hochberg claims any"""
    testable: bool
    """whether that is at most `MAX_SHARE` of the pairs, or a single one"""
    needed: int
    """random features per SAE with which `MAX_SHARE` of the pairs would do"""
    needed_for_one: int
    """random features per SAE with which one pair would do"""


def nameable(n_pairs: int, n_null: int, *, alpha: float) -> Nameable:
    """What follows from the smallest possible p, 1 / (n_null + 1), for `n_pairs` of a family.

    k pairs at that p are claimed where it is at most alpha k / n_pairs.
    """
    together = ceil(n_pairs / (alpha * (n_null + 1)) - ROUNDING)
    most = max(1, int(MAX_SHARE * n_pairs))
    enough, one = (ceil(n / alpha - ROUNDING) - 1 for n in (n_pairs / most, n_pairs))
    return Nameable(together, together <= most, enough, one)
