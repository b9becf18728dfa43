"""X1 to X4: whether interference weights act, each with its control and what chance gives.

X1  weights against pushes and against what happens by itself; chance: targets permuted within cells of density and norm
X2  how much of a push goes into pairs that fire together below chance; against the pairs of other sources of equal density,
    and against isotropic pushes of equal KL
X3  targets with an unlike gloss against those with a like one, within fifths of |weight|
X4  edges that raise the loss, by thirds of effectiveness; chance: signs flipped by document
"""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from polysem.layers.coactivity import Coactivity
from polysem.layers.influence import Natural, PushedLater
from polysem.layers.worth import Helpful
from polysem.side_effects.measures import Estimate, jackknife, mean_of

GROUPS = 20
"""of documents, for a jackknife"""
PERMUTED = 40
CELLS = 4
"""quantiles of density, and of the norm of columns"""
LARGEST = 500
"""pairs of which signs are compared"""
BELOW = 1.0
"""lift under which a pair fires together below chance"""
FIFTHS, FLIPS = 5, 400
SURE = 2.0
"""standard errors from 0"""
Row = dict[str, Any]


def finding(hypothesis: str, quantity: str, by: str, found: Estimate, *, over: str, n: int, dose: float = 0.0,
            null: Float[np.ndarray, " m"] | None = None, note: str | None = None) -> Row:  # fmt: skip
    """A row of LAYER_FINDINGS, without its dictionaries."""
    row: Row = {"hypothesis": hypothesis, "quantity": quantity, "by": by, "dose": dose, **found.columns(),
                "over": over, "n": n, "note": note}  # fmt: skip
    if null is not None and np.isfinite(null).any():
        ends = np.nanquantile(null, [0.025, 0.975])
        row |= {"null": float(np.nanmean(null)), "null_lo": float(ends[0]), "null_hi": float(ends[1])}
    return row


def pushes(
    pushed: PushedLater, predictions: Mapping[str, Float[np.ndarray, "n_sources n_targets"]]
) -> list[Row]:
    """X1, interventions: how much of what pushes do the predictions explain, by a line."""
    places = np.arange(pushed.same.shape[1])
    row = partial(finding, "X1", over="prompts", n=len(places))
    explained = {"R2, pushed at the same position": pushed.same, "R2, later positions": pushed.later}
    rows = [
        row(quantity, by, jackknife(lambda p, what=what, told=told: _r2(what[:, p].mean(1), told), places))
        for quantity, what in explained.items()
        for by, told in predictions.items()
    ]
    slope = jackknife(lambda p: _slope(pushed.same[:, p].mean(1), predictions["weight"]), places)
    ratio = jackknife(lambda p: _rms(pushed.later[:, p].mean(1)) / _rms(pushed.same[:, p].mean(1)), places)
    return [
        *rows,
        row("slope, pushed at the same position", "weight", slope),
        row("later positions over the same, root mean square", "-", ratio),
    ]


def natural(
    seen: Natural,
    predictions: Mapping[str, Float[np.ndarray, "n_sources n_targets"]],
    *,
    cells: Int[np.ndarray, " n_targets"],
    rng: np.random.Generator,
) -> list[Row]:
    """X1, by itself: rank correlation of |prediction| with |what is lost|, and agreement of signs among the largest
    predictions. Predictions are of other documents than what is lost."""
    documents = np.unique(seen.document)
    n_groups = min(GROUPS, len(documents))
    group = np.searchsorted(documents, seen.document) % max(n_groups, 1)
    n = len(next(iter(predictions.values())))
    every = np.arange(n_groups)

    @cache  # every prediction asks for the same ones
    def lost(groups: tuple[int, ...]) -> np.ndarray:
        return seen.mean(np.flatnonzero(np.isin(group, groups)), n)

    whole = lost(tuple(every.tolist()))
    orders = _within(cells, rng)
    row = partial(finding, "X1", over="documents", n=len(documents))
    rows: list[Row] = []
    for by, told in predictions.items():
        found = jackknife(
            lambda g, told=told: _spearman(np.abs(told), np.abs(lost(tuple(g.tolist())))), every
        )
        null = np.array([_spearman(np.abs(told[:, order]), np.abs(whole)) for order in orders])
        rows.append(row("rank correlation with what is lost", by, found, null=null))
        signs = jackknife(lambda g, told=told: _signs(told, lost(tuple(g.tolist()))), every)
        rows.append(row(f"same sign among the {LARGEST} largest", by, signs, note="where both differ from 0"))
    never = 1.0 - float((np.abs(whole) > 0).mean()) if len(every) else float("nan")
    return [*rows, row("pairs that lose nothing", "-", Estimate(never))]


def density_cells(
    seen: Coactivity, norms: Float[np.ndarray, " n_targets"], targets: Int[np.ndarray, " n_targets"]
) -> Int[np.ndarray, " n_targets"]:
    """Cell of every target by density and norm."""
    return _quantiles(seen.fires_j[targets], CELLS) * CELLS + _quantiles(norms, CELLS)


def steering(
    moved: Float[np.ndarray, "n_sources n_targets"],
    isotropic: Float[np.ndarray, "n_random n_targets"],
    seen: Coactivity,
    *,
    sources: Sequence[int],
    dose: float,
    rng: np.random.Generator,
) -> list[Row]:
    """X2 of one dose.

    Args:
        moved: size of the change of every target that fires in the corpus, mean over prompts.
        isotropic: of isotropic pushes of equal KL.
        seen: co-firing.
        sources: features, a row of `moved` each.
        dose: nats.
        rng: draws other sources of equal density.
    """
    places = np.flatnonzero(np.isfinite(moved).all(1))
    others = _like(seen.fires_i, np.asarray(sources), rng)
    needed = np.unique(np.concatenate([np.asarray(sources), *others]))
    lift = seen.lift(needed, np.flatnonzero(seen.fires_j))
    at = {int(i): k for k, i in enumerate(needed)}
    rows: list[Row] = []
    below = {"share into pairs below chance": lift < BELOW, "share into pairs that never co-fire": lift == 0}
    for quantity, where in below.items():
        own = np.array([_share(moved[k], where[at[i]]) for k, i in enumerate(sources)])
        like = np.array(
            [np.mean([_share(moved[k], where[at[o]]) for o in some]) for k, some in enumerate(others)]
        )
        by_chance = [[_share(r, where[at[i]]) for r in isotropic] for i in sources]
        random = np.array([np.nanmean(shares) if shares else np.nan for shares in by_chance])
        note = f"of all pairs {float(where[[at[i] for i in sources]].mean()):.2f}"
        rows.append(_over_sources(quantity, "-", own, places, dose, note))
        rows.append(_over_sources(quantity, "less other sources of equal density", own - like, places, dose))
        rows.append(_over_sources(quantity, "less isotropic pushes", own - random, places, dose))
    return rows


def unlike(
    moved: Float[np.ndarray, "n_sources n_targets"],
    weight: Float[np.ndarray, "n_sources n_targets"],
    similarity: Float[np.ndarray, "n_sources n_targets"],
    *,
    dose: float,
) -> list[Row]:
    """X3 of one dose: log of the mean change of the least alike third of targets over that of the most alike third, within
    fifths of |weight|; sources and targets without a gloss have NaN similarity."""
    found = np.full(len(moved), np.nan)
    for k in range(len(moved)):
        good = np.flatnonzero(np.isfinite(similarity[k]) & np.isfinite(moved[k]))
        if len(good) < 6 * FIFTHS:
            continue
        fifth, logs = _quantiles(np.abs(weight[k, good]), FIFTHS), []
        for cell in range(FIFTHS):
            mine = good[fifth == cell]
            order = mine[np.argsort(similarity[k, mine], kind="stable")]
            third = len(order) // 3
            low, high = moved[k, order[:third]].mean(), moved[k, order[-third:]].mean()
            if low > 0 and high > 0:
                logs.append(np.log(low / high))
        found[k] = np.mean(logs) if logs else np.nan
    places = np.flatnonzero(np.isfinite(found))
    value = mean_of(found, places)
    note = None if len(places) else "no source has enough targets with glosses"
    quantity = "log ratio of change, unlike over like gloss"
    return [finding("X3", quantity, "-", value, over="sources", n=len(places), dose=dose, note=note)]


def harmful(
    seen: Helpful, effectiveness: Float[np.ndarray, " edges"], *, rng: np.random.Generator
) -> list[Row]:
    """X4: share of edges that raise the loss by more than two standard errors over documents, by thirds of effectiveness."""
    sums = [_by_document(seen, k) for k in range(len(effectiveness))]
    able = np.array([k for k, s in enumerate(sums) if len(s) >= 3], dtype=np.int64)
    raising = partial(finding, "X4", "share of edges that raise the loss", over="edges")
    if not len(able):
        note = "no edge acts in three documents: more tokens, or more edges"
        return [raising("all", Estimate(np.nan), n=0, note=note)]
    rows: list[Row] = []
    thirds = _quantiles(effectiveness[able], 3)
    parts = {f"third {n + 1} of effectiveness": able[thirds == n] for n in range(3)}
    for name, some in ({"all": able} | parts).items():
        if not len(some):
            continue
        null = np.array([
            np.mean([_t(sums[k] * rng.choice([-1.0, 1.0], len(sums[k]))) < -SURE for k in some]) for _ in range(FLIPS)
        ])  # fmt: skip
        found = mean_of(np.array([_t(sums[k]) < -SURE for k in some]))
        rows.append(raising(name, found, n=len(some), null=null))
        worse = float(np.mean([sums[k].sum() < 0 for k in some]))
        rows.append(finding("X4", "share of edges below 0", name, Estimate(worse), over="edges", n=len(some)))  # fmt: skip
    return rows


def edge_interval(seen: Helpful, edge: int) -> Estimate:
    """Mean saved nats of an edge a token on which it acts, with its interval over documents."""
    mine = np.flatnonzero(seen.edge == edge)
    documents, back = np.unique(seen.document[mine], return_inverse=True)
    values = seen.saved[mine]
    return jackknife(lambda p: float(values[np.isin(back, p)].mean()), np.arange(len(documents)))


def _by_document(seen: Helpful, edge: int) -> Float[np.ndarray, " documents"]:
    mine = seen.edge == edge
    _, back = np.unique(seen.document[mine], return_inverse=True)
    return np.bincount(back, weights=seen.saved[mine]).astype(np.float64)  # of nothing it counts in integers


def _t(sums: Float[np.ndarray, " n"]) -> float:
    se = sums.std(ddof=1) / np.sqrt(len(sums))
    return float(sums.mean() / se) if se > 0 else 0.0


def _over_sources(
    quantity: str, by: str, values: np.ndarray, places: np.ndarray, dose: float, note: str | None = None
) -> Row:
    places = places[np.isfinite(values[places])]
    found = mean_of(values, places)
    if by == "-":  # t intervals may leave [0, 1], where no share can be
        found = found._replace(lo=float(np.clip(found.lo, 0, 1)), hi=float(np.clip(found.hi, 0, 1)))
    return finding("X2", quantity, by, found, over="sources", n=len(places), dose=dose, note=note)


def _share(weights: np.ndarray, where: np.ndarray) -> float:
    total = weights.sum()
    return float(weights[where].sum() / total) if total > 0 else float("nan")


def _like(fires: np.ndarray, sources: np.ndarray, rng: np.random.Generator, n: int = 8) -> list[np.ndarray]:
    """For every source n others of most equal density, drawn from the forty next to it."""
    live = np.flatnonzero(fires > 0)
    found = []
    for i in sources:
        others = live[live != i]
        near = others[np.argsort(np.abs(np.log(fires[others]) - np.log(fires[i])), kind="stable")[:40]]
        found.append(rng.permutation(near)[:n])
    return found


def _within(cells: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Permutations that stay inside cells."""
    found = []
    for _ in range(PERMUTED):
        order = np.arange(len(cells))
        for cell in np.unique(cells):
            mine = np.flatnonzero(cells == cell)
            order[mine] = rng.permutation(mine)
        found.append(order)
    return found


def _quantiles(values: np.ndarray, n: int) -> np.ndarray:
    order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return order * n // max(len(values), 1)


def _both(told: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    good = np.isfinite(told) & np.isfinite(seen)
    return told[good], seen[good]


def _r2(seen: np.ndarray, told: np.ndarray) -> float:
    a, b = _both(told, seen)
    return float(np.corrcoef(a, b)[0, 1] ** 2) if len(a) > 2 and a.std() > 0 and b.std() > 0 else float("nan")


def _slope(seen: np.ndarray, told: np.ndarray) -> float:
    a, b = _both(told, seen)
    return float(np.cov(a, b)[0, 1] / a.var(ddof=1)) if len(a) > 2 and a.std() > 0 else float("nan")


def _spearman(told: np.ndarray, seen: np.ndarray) -> float:
    from polysem.rank import rank_correlation

    a, b = _both(told, seen)
    return rank_correlation(a, b) if len(a) > 2 else float("nan")


def _signs(told: np.ndarray, seen: np.ndarray) -> float:
    a, b = _both(told, seen)
    top = np.argsort(-np.abs(a), kind="stable")[:LARGEST]
    good = top[(a[top] != 0) & (b[top] != 0)]
    return float((np.sign(a[good]) == np.sign(b[good])).mean()) if len(good) else float("nan")


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))
