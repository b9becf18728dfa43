"""Statistics as arXiv 2505.11611 and its code make them, each with what is wrong with it.

They are here to make the paper's numbers again, beside defensible ones, and for no other use. Its other choices
live where they belong: relative change and best of a grid in `stats/selection.py`, rank correlation of id lists in
`rank.py`. References are to the sections of the paper's protocol: metrics 3, regressions 4.1, category tables 4.2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from polysem.errors import ConfigError, NumericsError
from polysem.stats.regress import Regression

_STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


class Success(NamedTuple):
    """Of n trials, how many went up and how many went down."""

    up: float
    """share of trials in which the number rose: the paper's success rate. Counts any rise, however small, and is
    blind to falls, so noise alone gives up to one half."""
    down: float
    n: int

    @property
    def net(self) -> float:
        """P(up) - P(down), in [-1, 1]: zero where rises and falls are equally frequent."""
        return self.up - self.down


class TopK(NamedTuple):
    """Success among the k most likely next tokens."""

    by_count: Success
    """more target tokens among them"""
    by_mass: Success
    """more probability of target tokens among them, not renormalised"""


def plain_ols(y: Float[np.ndarray, " n"], design: Float[np.ndarray, "n k"], *, level: float) -> Regression:
    """Least squares with the textbook standard errors (protocol 4.1, Models A and B).

    Defect: every row counts as independent evidence. Trials share their target, source and prompt, so the error
    rate of a nominal 5 % test was 0.65 in the simulated null world of `tests/golden`.
    """
    from scipy.special import stdtr, stdtrit

    n, k = design.shape
    norms = np.linalg.norm(design, axis=0)
    reason = "no trials with an outcome" if n == 0 else ""
    if not reason and n <= k and k > 1:
        reason = f"too few trials: {n} for {k} coefficients"
    if not reason and (not norms.all() or np.linalg.matrix_rank(design / norms) < k):
        reason = "the regressors cannot be told apart"
    nan = np.full(k, np.nan)
    if reason:
        return Regression(nan, nan, nan, nan, nan, df=nan, reason=reason, remark="")
    estimate = np.linalg.lstsq(design, y, rcond=None)[0]
    residual = y - design @ estimate
    square = float(residual @ residual)
    if n <= k or square <= 1e-20 * float(y @ y):
        return Regression(estimate, nan, nan, nan, nan, df=nan, reason="", remark="no interval: no variance")
    se = np.sqrt(square / (n - k) * np.diag(np.linalg.inv(design.T @ design)))
    reach = stdtrit(n - k, 0.5 + level / 2) * se
    return Regression(
        estimate=estimate,
        se=se,
        lo=estimate - reach,
        hi=estimate + reach,
        p=2 * stdtr(n - k, -np.abs(estimate / se)),
        df=np.full(k, float(n - k)),
        reason="",
        remark="",
    )


def welch(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"], *, level: float) -> Regression:
    """Mean of `a` minus mean of `b` with Welch's t test on trials (protocol 4.2, on 0 and 1 there).

    Defect: trials that share sentences, targets or an injected pool count as independent, and nothing is paired
    although both arms use the same prompts.
    """
    from scipy.special import stdtr, stdtrit

    nan = np.full(1, np.nan)
    for name, values in (("first", a), ("second", b)):
        if not len(values):
            return Regression(
                nan, nan, nan, nan, nan, df=nan, reason=f"the {name} arm has no trials", remark=""
            )
    estimate = np.array([a.mean() - b.mean()])
    if min(len(a), len(b)) < 2:
        return Regression(
            estimate, nan, nan, nan, nan, df=nan, reason="", remark="no interval: one trial in an arm"
        )
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    if va + vb == 0:
        return Regression(estimate, nan, nan, nan, nan, df=nan, reason="", remark="no interval: no variance")
    se = np.sqrt(va + vb)
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    reach = stdtrit(df, 0.5 + level / 2) * se
    return Regression(
        estimate=estimate,
        se=np.array([se]),
        lo=estimate - reach,
        hi=estimate + reach,
        p=2 * stdtr(df, -np.abs(estimate / se)),
        df=np.array([df]),
        reason="",
        remark="",
    )


def stars(p: float | None) -> str:
    """*** below .001, ** below .01, * below .05, as the paper's tables print them.

    Defect: 120 tests of its Table 5 are marked without adjustment, and the sign of what is marked is not said.
    """
    return "" if p is None else next((mark for limit, mark in _STARS if p < limit), "")


def success(before: Float[np.ndarray, " n"], after: Float[np.ndarray, " n"]) -> Success:
    """How often a number rose and fell from `before` to `after`.

    Raises:
        ConfigError: if there are no trials, or not equally many.
        NumericsError: if a number is not finite.
    """
    if len(before) != len(after) or not len(before):
        raise ConfigError(f"{len(before)} trials before and {len(after)} after; expected equally many, >= 1")
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise NumericsError("trials hold numbers that are not finite; expected finite ones")
    return Success(float((after > before).mean()), float((after < before).mean()), len(before))


def top_k_success(
    before: Float[np.ndarray, "n d_vocab"],
    after: Float[np.ndarray, "n d_vocab"],
    target_ids: Sequence[int],
    *,
    k: int,
) -> TopK:
    """Success of category injections (protocol 3, 5.2): target tokens among the k most likely, before and after.

    Args:
        before: probabilities without the injection.
        after: with it.
        target_ids: tokens of the category; repetition changes nothing.
        k: 10 and 30 in the paper. Among equal probabilities the smaller id comes first.

    Raises:
        ConfigError: if a token lies outside the vocabulary, there is none, or k does not fit.
    """
    d_vocab = before.shape[-1]
    ids = np.unique(np.asarray(target_ids, dtype=np.int64))
    if not len(ids) or ids[0] < 0 or ids[-1] >= d_vocab:
        raise ConfigError(
            f"target tokens {ids[:5].tolist()} of a vocabulary of {d_vocab}; expected some, in it"
        )
    if not 1 <= k <= d_vocab:
        raise ConfigError(f"k is {k}; expected 1 to {d_vocab}, the vocabulary")
    wanted = np.zeros(d_vocab, dtype=bool)
    wanted[ids] = True
    found = [_top(probs, wanted, k) for probs in (before, after)]
    return TopK(success(found[0][0], found[1][0]), success(found[0][1], found[1][1]))


def _top(probs: np.ndarray, wanted: Bool[np.ndarray, " d_vocab"], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Number and probability of wanted tokens among the k most likely of every row."""
    first = np.argsort(-probs, axis=-1, kind="stable")[:, :k]
    hit = wanted[first]
    return hit.sum(-1).astype(np.float64), (np.take_along_axis(probs, first, -1) * hit).sum(-1)
