"""Is one way of pushing stronger than another, at the same budget and on the same pairs?

A push's effect grows as its size and its KL as the square of it, so effects of one pair at two loci are brought to one
KL, or to one mean norm of change at the site, by effect x sqrt(budget / KL) and effect / norm: exact to first order,
and no more than that where a push is large. Sizes are compared, not means, since effects of either sign are effects: the
root mean square over pairs of half the difference between the two signs (what one push does, at every locus), from which the variance of the means over prompts is taken away, or noise would count as
strength. The interval of a ratio resamples targets.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from polysem.seeds import rng_for
from polysem.stats.arms import PRIMARY
from polysem.stats.rows import Row, View, number
from polysem.store.tables import BUDGETS
from polysem.vocabulary import LOCI

REFERENCE = "feature"
"""the locus that others are compared with, where it is planned; else the first"""
DRAWS = 999
MIN_TARGETS = 3
UNITS = {"nats": "kl", "norm": "push"}
"""budget -> what was spent, in the columns of a view"""
Key = tuple[str, int, int]


def budgets(views: Sequence[View], *, max_kl: float, level: float, seed: int) -> pa.Table:
    """BUDGETS of every locus but the reference, at the headline doses.

    Args:
        views: the arms of every locus at its headline dose.
        max_kl: the KL at which effects are compared, nats.
    """
    if not views:
        return BUDGETS.empty()
    reference = next((v for v in views if v.locus == REFERENCE), views[0])
    rows: list[Row] = []
    for view in views:
        for tokens in view.token_sets if view is not reference else ():
            for budget in UNITS:
                at = max_kl if budget == "nats" else 1.0
                row: Row = {
                    "locus": view.locus,
                    "token_set": tokens,
                    "budget": budget,
                    "at": at,
                    "level": level,
                }
                rng = rng_for(seed, "budgets", view.locus, tokens, budget)
                mine, theirs = (_scaled(v, tokens, budget, at) for v in (view, reference))
                shared = sorted(set(mine) & set(theirs))
                found = _compared(
                    [mine[k] for k in shared], [theirs[k] for k in shared], shared, level=level, rng=rng
                )
                if not shared:
                    found["note"] = _why(view, reference, budget)
                rows.append(row | {"reference": reference.locus} | found)
    return BUDGETS.of(rows)


def _scaled(view: View, tokens: str, budget: str, at: float) -> dict[Key, tuple[float, float, float]]:
    """Effect of every pair at the budget, its standard error over prompts, and what was spent."""
    c = view.columns
    spent = c[UNITS[budget]]
    error = c[f"{PRIMARY}_se"]
    used = (
        view.where(token_set=tokens, relation="pair")
        & (spent > 0)
        & np.isfinite(c[PRIMARY])
        & np.isfinite(error)
    )
    one_push = 0.5 / LOCI[view.locus].share  # what is spent is spent by either sign
    scale = one_push * (np.sqrt(at / spent[used]) if budget == "nats" else at / spent[used])
    names = zip(
        c["sae"][used].tolist(), c["target"][used].astype(int), c["source"][used].astype(int), strict=True
    )
    values = zip(c[PRIMARY][used] * scale, error[used] * scale, spent[used], strict=True)
    return dict(zip(((str(a), int(t), int(s)) for a, t, s in names), values, strict=True))


def _why(view: View, reference: View, budget: str) -> str:
    spent = view.columns[UNITS[budget]]
    if not np.isfinite(spent).any():
        return f"what {view.locus} spends in {'KL' if budget == 'nats' else 'norm'} is not known"
    return f"no pair is steered both at {view.locus} and at {reference.locus}: their sources are not the same"


def _compared(
    mine: Sequence[tuple[float, float, float]],
    theirs: Sequence[tuple[float, float, float]],
    keys: Sequence[Key],
    *,
    level: float,
    rng: np.random.Generator,
) -> Row:
    """Sizes, their ratio with its interval, means and counts of the shared pairs."""
    found: Row = {"n_pairs": len(keys), "n_targets": len({k[:2] for k in keys}), "note": None}
    if not keys:
        return found
    (x, x_se, spent), (y, y_se, _) = (np.array(part).T for part in (mine, theirs))
    targets = np.unique([f"{sae}/{target}" for sae, target, _ in keys], return_inverse=True)[1]
    ones = np.ones((1, len(keys)))
    size, other = (float(sizes(v, se, ones)[0]) for v, se in ((x, x_se), (y, y_se)))
    found |= {"size": size, "reference_size": other, "spent": float(np.median(spent))}
    found |= {"mean": float(x.mean()), "reference_mean": float(y.mean())}
    if not other:
        return found | {"note": "the reference's effects are no larger than their noise: there is no ratio"}
    found["ratio"] = size / other
    n = int(targets.max()) + 1
    if n < MIN_TARGETS:
        return found | {"note": f"no interval: {n} targets, and {MIN_TARGETS} are needed"}
    weights = rng.multinomial(n, np.full(n, 1 / n), size=DRAWS)[:, targets].astype(np.float64)
    above, below = sizes(x, x_se, weights), sizes(y, y_se, weights)
    drawn = np.divide(above, below, out=np.full(DRAWS, np.inf), where=below > 0)
    lo, hi = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], method="closest_observation")
    return found | {"lo": number(float(lo)), "hi": number(float(hi))}


def sizes(
    effects: Float[np.ndarray, " n"], errors: Float[np.ndarray, " n"], weights: Float[np.ndarray, "draws n"]
) -> Float[np.ndarray, " draws"]:
    """Root mean square of effects without that of their errors, under each row of weights; 0 where noise is as large."""
    total = weights.sum(axis=1)
    square = np.divide(weights @ (effects**2 - errors**2), total, out=np.zeros(len(total)), where=total > 0)
    return np.sqrt(np.maximum(square, 0.0))
