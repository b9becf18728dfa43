"""What choosing the best strength on the prompts that are reported does to an effect.

The code released with arXiv 2505.11611 tries 32 signed strengths on every prompt, keeps for each prompt the one with
the largest weighted cosine c, and reports the relative change at it; its plots then drop the prompts that did not
improve. Both steps select on the outcome. `best_of_grid` does that; `held_out` chooses the strength on other prompts
and reads it on these; the difference is optimism: what selection alone has added.

With a log effect of N(0, s^2) per unit of strength, and so none on average, the best of a grid that reaches +-A
shows E[exp(s A |Z|)] - 1 = 2 exp(s^2 A^2 / 2) Phi(s A) - 1: for s = 0.02 and A = 20 an "effect" of +42 %.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from polysem.errors import ConfigError, NumericsError

PAPER_GRID = tuple(
    sign * size
    for sign in (-1.0, 1.0)
    for size in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 14.0, 17.0, 20.0)
)
"""strengths of the feature and gradient runs (protocol 2.6): lengths of the vector that is added"""
MIN_BASELINE = 1e-8
"""the paper's relative change divides by |c|, and skips baselines below this"""


class Selection(NamedTuple):
    """Mean relative changes (1 = +100 %) of the same rows under three ways of choosing the strength."""

    improved_only: float
    """best of the grid on the row itself, over rows where that is an improvement: what the paper's plots show"""
    best: float
    """best of the grid on the row itself, over all rows"""
    held_out: float
    """the one strength that is best on average over the select rows, read on the others"""
    signed: float
    """mean over strengths of (change at +a) - (change at -a), halved: what remains when nothing is chosen"""
    share_improved: float
    n: int
    """rows reported on"""
    n_dropped: int
    """rows without a usable baseline or with a strength that gave no number"""

    @property
    def optimism(self) -> float:
        """What choosing on the reported rows has added."""
        return self.best - self.held_out


def relative_change(
    base: Float[np.ndarray, " rows"], edited: Float[np.ndarray, "rows doses"]
) -> Float[np.ndarray, "rows doses"]:
    """(edited - base) / |base|; nan where |base| is at most MIN_BASELINE: never a number out of nothing."""
    size = np.abs(base)
    usable = size > MIN_BASELINE
    result = np.full(edited.shape, np.nan)
    result[usable] = (edited[usable] - base[usable, None]) / size[usable, None]
    return result


def best_of_grid(
    base: Float[np.ndarray, " rows"],
    edited: Float[np.ndarray, "rows doses"],
    *,
    start: Literal["zero", "baseline"] = "zero",
) -> Float[np.ndarray, " rows"]:
    """The largest outcome over the grid, for every row, as the paper's runs take it.

    Args:
        base: c without an edit.
        edited: c at every strength.
        start: what the best begins at. `zero` (feature runs): so an outcome is never below 0. `baseline`
            (gradient runs): so it is never below what it was, and no change can be negative.
    """
    floor = np.zeros_like(base) if start == "zero" else base
    return np.maximum(floor, edited.max(axis=1))


def select(
    base: Float[np.ndarray, " rows"],
    edited: Float[np.ndarray, "rows doses"],
    *,
    doses: Float[np.ndarray, " strengths"],
    reported: Bool[np.ndarray, " rows"],
    start: Literal["zero", "baseline"] = "zero",
) -> Selection:
    """The paper's selection, and the same rows without it.

    Args:
        base: c without an edit.
        edited: c at every strength.
        doses: the strengths, signed, each with its opposite.
        reported: rows that are reported on; the others only choose the held-out strength.

    Raises:
        ConfigError: if a strength has no opposite, or there are no rows on one side.
        NumericsError: if a number is infinite.
    """
    _check(base, edited, doses, reported)
    change = relative_change(base, edited)
    good = np.isfinite(change).all(axis=1)
    mine, others = good & reported, good & ~reported
    if not mine.any() or not others.any():
        raise ConfigError(
            f"{int(mine.sum())} rows to report on and {int(others.sum())} to choose on have all outcomes; "
            "expected at least one of each",
            hint="more prompts, or a prompts.confirm_fraction nearer to one half",
        )
    best = relative_change(base[mine], best_of_grid(base[mine], edited[mine], start=start)[:, None])[:, 0]
    improved = best > 0
    chosen = int(change[others].mean(axis=0).argmax())
    up = np.array([int(np.flatnonzero(doses == d)[0]) for d in doses if d > 0])
    down = np.array([int(np.flatnonzero(doses == -d)[0]) for d in doses if d > 0])
    return Selection(
        improved_only=float(best[improved].mean()) if improved.any() else float("nan"),
        best=float(best.mean()),
        held_out=float(change[mine, chosen].mean()),
        signed=float(((change[mine][:, up] - change[mine][:, down]) / 2).mean()),
        share_improved=float(improved.mean()),
        n=int(mine.sum()),
        n_dropped=int((reported & ~good).sum()),
    )


def null_inflation(s: float, reach: float) -> float:
    """Mean relative "effect" of the best of a fine grid up to +-`reach` where there is none on average: log effect
    N(0, s^2) per unit of strength."""
    from scipy.stats import norm

    return float(2 * np.exp((s * reach) ** 2 / 2) * norm.cdf(s * reach) - 1)


def _check(base: np.ndarray, edited: np.ndarray, doses: np.ndarray, reported: np.ndarray) -> None:
    if edited.shape != (len(base), len(doses)) or len(reported) != len(base):
        raise ConfigError(f"outcomes of shape {edited.shape} for {len(base)} rows and {len(doses)} strengths")
    lonely = [float(d) for d in doses if -d not in doses]
    if lonely or len(set(doses.tolist())) < len(doses):
        raise ConfigError(
            f"strengths must come once each and with both signs; {lonely or 'one is repeated'} does not"
        )
    if np.isinf(base).any() or np.isinf(edited).any():
        raise NumericsError("outcomes hold infinite values; expected finite ones, or nan where there is none")
