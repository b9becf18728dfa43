"""Many p values at once, and the p value of "there is no effect".

Adjusted p values are comparable with the level directly: Holm (1979) for the few hypotheses a study declares
(it bounds the chance of any false claim), Benjamini-Hochberg (1995) and Benjamini-Yekutieli (2001) for the
many pairs in which effects are looked for (they bound the expected share of false claims among the claims;
BH needs independence or positive dependence, BY nothing). The numbers are those of R's `p.adjust`, to the
bit nearly; they are written out here because importing statsmodels takes longer than a whole effects stage.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

from polysem.errors import NumericsError

Method = Literal["holm", "bh", "by"]


def adjust_p(p: Float[np.ndarray, " n"], *, method: Method) -> Float[np.ndarray, " n"]:
    """Adjusted p values, in the order given.

    Raises:
        NumericsError: if a value is not in [0, 1].
    """
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise NumericsError(
            f"p values must lie in [0, 1]; got {p[~((p >= 0) & (p <= 1))][0]}",
            hint="leave out what could not be tested, or count it as 1",
        )
    n = len(p)
    if n == 0:
        return p.copy()
    order = np.argsort(p, kind="stable")
    rank = np.arange(1, n + 1)
    match method:
        case "holm":
            steps = np.maximum.accumulate((n - rank + 1) * p[order])
        case "bh":
            steps = np.minimum.accumulate((n / rank * p[order])[::-1])[::-1]
        case "by":
            steps = np.minimum.accumulate(((1 / rank).sum() * n / rank * p[order])[::-1])[::-1]
    adjusted = np.empty(n)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def equivalence_p(estimate: float, se: float, df: float, *, margin: float) -> float:
    """p of the claim that the true value lies within +-`margin`: the larger of two one-sided t tests (TOST).

    It is below alpha exactly where the (1 - 2 alpha) interval lies inside the margin. NaN where there is no
    standard error.

    Source: Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987).
    """
    from scipy.special import stdtr

    if not se > 0:
        return float("nan")
    return float(max(stdtr(df, (estimate - margin) / se), stdtr(df, (-estimate - margin) / se)))
