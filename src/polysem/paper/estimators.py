"""Statistics as arXiv 2505.11611 and its code make them, each with what is wrong with it.

They are here to make the paper's numbers again, beside defensible ones, and for no other use. Its other choices
live where they belong: relative change and best of a grid in `paper/selection.py`, rank correlation of id lists in
`rank.py`. References are to the sections of the paper's protocol: metrics 3, regressions 4.1, category tables 4.2.
"""

import numpy as np
from jaxtyping import Float

from polysem.stats.regress import Regression

_STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


def plain_ols(y: Float[np.ndarray, " n"], design: Float[np.ndarray, "n k"], *, level: float) -> Regression:
    """Least squares with the textbook standard errors (protocol 4.1, Models A and B).

    Defect: every row counts as independent evidence. Trials share their target, source and prompt, so the error
    rate of a nominal 5 % test was 0.65 in the simulated null world of `tests/golden`.
    """
    n, k = design.shape
    norms = np.linalg.norm(design, axis=0)
    if n == 0:
        return Regression.none(k, "no trials with an outcome")
    if n <= k and k > 1:
        return Regression.none(k, f"too few trials: {n} for {k} coefficients")
    if not (np.isfinite(y).all() and np.isfinite(design).all()):
        return Regression.none(k, "some of the numbers are not finite")
    if not norms.all() or np.linalg.matrix_rank(design / norms) < k:
        return Regression.none(k, "the regressors cannot be told apart")
    estimate = np.linalg.lstsq(design, y, rcond=None)[0]
    residual = y - design @ estimate
    square = float(residual @ residual)
    if n <= k or square <= 1e-20 * float(y @ y):
        return Regression.bare(estimate, "no interval: no variance")
    se = np.sqrt(square / (n - k) * np.diag(np.linalg.inv(design.T @ design)))
    return Regression.of(estimate, se, np.full(k, float(n - k)), level=level)


def welch(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"], *, level: float) -> Regression:
    """Mean of `a` minus mean of `b` with Welch's t test on trials (protocol 4.2, on 0 and 1 there).

    Defect: trials that share sentences, targets or an injected pool count as independent, and nothing is paired
    although both arms use the same prompts.
    """
    for name, values in (("first", a), ("second", b)):
        if not len(values):
            return Regression.none(1, f"the {name} arm has no trials")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Regression.none(1, "some of the numbers are not finite")
    estimate = np.array([a.mean() - b.mean()])
    if min(len(a), len(b)) < 2:
        return Regression.bare(estimate, "no interval: one trial in an arm")
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    if va + vb == 0:
        return Regression.bare(estimate, "no interval: no variance")
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return Regression.of(estimate, np.array([np.sqrt(va + vb)]), np.array([df]), level=level)


def stars(p: float | None) -> str:
    """*** below .001, ** below .01, * below .05, as the paper's tables print them.

    Defect: 120 tests of its Table 5 are marked without adjustment, and the sign of what is marked is not said.
    """
    return "" if p is None else next((mark for limit, mark in _STARS if p < limit), "")
