"""Do the measures of similarity measure one thing, how well, and what is the effect of interference with their noise
taken out?

One factor: what a measure says of a pair is its loading times what all of them have in common, plus noise of its own.
It is fitted to the correlations between measures over pairs that were drawn at random, each measure scaled within its
SAE, by least squares off the diagonal (Harman and Jones 1966). A loading's square is the reliability of its measure;
the pair's score on the factor is its latent similarity. Two measures show only the product of their loadings, so both
are taken to be as good. Intervals come from features drawn anew, because pairs share them.

Regressions (`stats/reliability.py`): the study's gloss similarity is held fixed, instrumented by every other measure
and by what the factor model makes of all others together. No second measure, no row.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from polysem.errors import ConfigError
from polysem.glosses.grid import SimilarityGrid
from polysem.seeds import rng_for
from polysem.stats.arms import outcome_of, places
from polysem.stats.contrasts import RECORD, fitted
from polysem.stats.regress import within
from polysem.stats.reliability import instrumented, reliability
from polysem.stats.rows import Row, Rows, View, number, unit_of
from polysem.store.tables import LATENT_SIMILARITY, RELIABILITY, SIMILARITY_MODEL

MIN_PAIRS = 30
"""random pairs known to two measures, below which they are not correlated"""
DRAWS = 200
"""of features, for the intervals of loadings"""
LATENT = "one factor"
_SMALLEST = 0.01
"""variance of a measure's own noise at the least: a loading of 1 would silence all others"""


class OneFactor(NamedTuple):
    """Loadings of measures on what they have in common."""

    loadings: Float[np.ndarray, " measures"]
    """NaN where they cannot be told"""
    remark: str

    @property
    def weights(self) -> Float[np.ndarray, " measures"]:
        """Of standardised measures in the score, up to a common factor; 0 where there is no loading."""
        known = np.nan_to_num(self.loadings)
        return known / np.maximum(1 - known**2, _SMALLEST)

    @property
    def reliability(self) -> float:
        """Squared correlation of the score with the factor, all measures known."""
        signal = float((np.nan_to_num(self.loadings) * self.weights).sum())
        return signal / (1 + signal)

    def scores(self, z: Float[np.ndarray, "n measures"]) -> Float[np.ndarray, " n"]:
        """Regression scores from the measures that know a pair; NaN where none does."""
        known = np.isfinite(z) & np.isfinite(self.loadings)
        signal = (known * np.nan_to_num(self.loadings) * self.weights).sum(axis=1)
        found = (np.where(known, z, 0.0) * self.weights).sum(axis=1) / (1 + signal)
        return np.where(known.any(axis=1), found, np.nan)


def one_factor(correlations: Float[np.ndarray, "measures measures"]) -> OneFactor:
    """Loadings whose products come nearest to the correlations, NaN for those that are not known; the sum of loadings is
    positive."""
    from scipy.optimize import least_squares

    m = len(correlations)
    i, j = np.triu_indices(m, 1)
    given = correlations[i, j]
    nothing = np.full(m, np.nan)
    if m < 2 or not np.isfinite(given).all():
        return OneFactor(nothing, "fewer than two measures know the same pairs")
    if m == 2:
        if given[0] <= 0:
            return OneFactor(nothing, "the two measures do not agree at all: they have nothing in common")
        return OneFactor(np.full(2, np.sqrt(given[0])), "two measures: both are taken to be as good")
    values, vectors = np.linalg.eigh(correlations)
    start = vectors[:, -1] * np.sqrt(max(values[-1] - 1, 0.1)) * np.sign(vectors[:, -1].sum() or 1)

    def missed(x: np.ndarray) -> np.ndarray:
        return x[i] * x[j] - given

    fit = least_squares(missed, np.clip(start, -0.99, 0.99), bounds=(-1, 1))
    loadings = fit.x * (np.sign(fit.x.sum()) or 1)
    edge = "a loading is at its bound of 1" if (np.abs(loadings) > 1 - 1e-4).any() else ""
    return OneFactor(loadings, edge)


def correlated(
    z: Float[np.ndarray, "n measures"], weights: Float[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, "measures measures"]:
    """Correlations between measures over the pairs that both know; NaN under `MIN_PAIRS`, or where one does not vary."""
    weight = np.ones(len(z)) if weights is None else weights
    result = np.eye(z.shape[1])
    for a in range(z.shape[1]):
        for b in range(a):
            both = np.isfinite(z[:, a]) & np.isfinite(z[:, b]) & (weight > 0)
            w = weight[both, None]
            x = z[both][:, [a, b]]
            x = x - (w * x).sum(axis=0) / w.sum() if both.any() else x
            norm = np.sqrt((w * x**2).sum(axis=0)).prod()
            enough = both.sum() >= MIN_PAIRS and norm > 0
            result[a, b] = result[b, a] = (w[:, 0] * x.prod(axis=1)).sum() / norm if enough else np.nan
    return result


def loadings_between(
    z: Float[np.ndarray, "n measures"], nodes: Int[np.ndarray, "n 2"], *, level: float, seed: int
) -> tuple[OneFactor, Float[np.ndarray, "2 measures"]]:
    """The model, and the ends of the loadings' intervals: quantiles over features drawn with replacement."""
    found = one_factor(correlated(z))
    rng, n = rng_for(seed, "one factor"), int(nodes.max(initial=-1)) + 1
    ends = np.full((2, z.shape[1]), np.nan)
    if np.isfinite(found.loadings).all():
        drawn: list[np.ndarray] = []
        for _ in range(DRAWS):
            times = np.bincount(rng.integers(n, size=n), minlength=n)
            drawn.append(one_factor(correlated(z, times[nodes].prod(axis=1).astype(np.float64))).loadings)
        told = np.array(drawn)
        told = told[np.isfinite(told).all(axis=1)]
        if len(told) > DRAWS / 2:
            ends = np.quantile(told, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return found, ends


class Latent(NamedTuple):
    """The measures of a study and what they have in common."""

    grid: SimilarityGrid
    held: SimilarityGrid
    """covariates of the same pairs"""
    z: Float[np.ndarray, "n measures"]
    """standardised by the random pairs of each SAE"""
    model: OneFactor
    ends: Float[np.ndarray, "2 measures"]

    @classmethod
    def of(cls, similarities: pa.Table, *, level: float, seed: int) -> "Latent | None":
        """Of SIMILARITIES; None without a row."""
        if not similarities.num_rows:
            return None
        grid, held = SimilarityGrid.of(similarities), SimilarityGrid.of(similarities, covariates=True)
        sae = np.array([pair[0] for pair in grid.pairs])
        z = np.full(grid.values.shape, np.nan)
        for label in sorted(set(sae.tolist())):
            own = sae == label
            for m in range(len(grid.measures)):
                drawn = grid.values[own & grid.random, m]
                drawn = drawn[np.isfinite(drawn)]
                if len(drawn) >= MIN_PAIRS and np.ptp(drawn) > 0:
                    z[own, m] = (grid.values[own, m] - drawn.mean()) / drawn.std()
        features = [[(s, t), (s, o)] for s, t, o in grid.pairs]
        number_of = {f: k for k, f in enumerate(sorted({f for pair in features for f in pair}))}
        nodes = np.array([[number_of[f] for f in pair] for pair in features]).reshape(-1, 2)
        drawn = grid.random
        return cls(grid, held, z, *loadings_between(z[drawn], _dense(nodes[drawn]), level=level, seed=seed))

    def seconds(self) -> dict[str, Float[np.ndarray, " n"]]:
        """What may stand beside the study's gloss similarity, by name: every other measure, all others together, and a
        second gloss."""
        grid = self.grid
        found = {name: grid.values[:, m] for m, name in enumerate(grid.measures) if m}
        if grid.split[0] == "glosses":
            found = {"second gloss": grid.halves[:, 0, 1], **found}
        if len(grid.measures) > 2 and np.isfinite(self.model.loadings).all():
            others = self.model._replace(
                loadings=np.where(np.arange(len(grid.measures)), self.model.loadings, np.nan)
            )
            found[LATENT] = others.scores(self.z)
        return found


def _dense(nodes: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "n 2"]:
    return np.unique(nodes, return_inverse=True)[1].reshape(nodes.shape).astype(np.int64)


def similarity_model(found: Latent | None, *, level: float) -> pa.Table:
    """SIMILARITY_MODEL: a row for every measure, and one for what they have in common."""
    rows: Rows = []
    for m, name in enumerate(found.grid.measures if found else ()):
        assert found is not None
        grid, loading = found.grid, float(found.model.loadings[m])
        drawn, planned = grid.random, ~grid.random & np.isfinite(grid.values[:, m])
        row: Row = {"measure": name, "made_by": grid.made_by[m], "split": grid.split[m], "level": level}
        row["n_pairs"] = int(np.isfinite(grid.values[drawn, m]).sum())
        row["r_own"] = float(correlated(found.z[drawn][:, [0, m]])[0, 1]) if m else 1.0
        half = correlated(grid.halves[drawn, m])[0, 1]
        whole = 2 * half / (1 + half) if grid.split[m] == "halves" and half > 0 else half
        row |= {"r_halves": half, "reliability_halves": whole}
        row |= {"loading": loading, "reliability": loading**2, "note": found.model.remark or None}
        row |= {"lo": found.ends[0, m], "hi": found.ends[1, m]}
        alike = (np.greater if m else np.greater_equal)(grid.values[planned, m], grid.limit[planned, m])
        rows.append(row | {"n_planned": int(planned.sum()), "n_related": int(alike.sum())})
    if found is not None and len(found.grid.measures) > 1:
        known = np.isfinite(found.model.loadings).all()
        rows.append(
            {
                **{"measure": LATENT, "made_by": "the measures above", "split": "", "level": level},
                "n_pairs": int(np.isfinite(found.z[found.grid.random]).all(axis=1).sum()),
                "reliability": number(found.model.reliability) if known else None,
                "n_planned": int((~found.grid.random).sum()),
                "n_related": sum(r["n_related"] > 0 for r in _pairs(found)),
                "note": found.model.remark or None,
            }
        )
    return SIMILARITY_MODEL.of_rows(rows)


def latent_similarity(found: Latent | None) -> pa.Table:
    """LATENT_SIMILARITY of the planned pairs."""
    return LATENT_SIMILARITY.of_rows(_pairs(found) if found is not None else [])


def _pairs(found: Latent) -> list[dict[str, Any]]:
    grid = found.grid
    scores = found.model.scores(found.z)
    rows: list[dict[str, Any]] = []
    for k in np.flatnonzero(~grid.random).tolist():
        known = np.isfinite(grid.values[k])
        alike = known & (
            (grid.values[k] > grid.limit[k])
            | ((grid.values[k] == grid.limit[k]) & (np.arange(len(known)) == 0))
        )
        sae, target, source = grid.pairs[k]
        row = {"sae": sae, "target": target, "source": source, "latent": scores[k]}
        row |= {"n_known": int(known.sum()), "n_related": int(alike.sum())}
        row["related_by"] = ", ".join(m for m, here in zip(grid.measures, alike, strict=True) if here)
        rows.append(
            row
            | {
                "unrelated_by_all": bool(known.any() and not alike.any()),
                "unrelated_by_any": bool((known & ~alike).any()),
            }
        )
    return rows


def gloss_reliability(found: Latent | None, views: Sequence[View]) -> pa.Table:
    """RELIABILITY of the pairs at the headline dose of every locus.

    Args:
        views: the arms of every locus at its headline dose.
    """
    rows: Rows = []
    if found is None:
        return RELIABILITY.of(rows)
    held = found.held.pairs
    for view in views:
        keys = list(zip(*(view.columns[name] for name in ("sae", "target", "source")), strict=True))
        at, beside = places(keys, found.grid.pairs), places(keys, held)
        for token_set in view.token_sets:
            pairs = view.mined("interference", "similarity", outcome_of(token_set), token_set=token_set)
            pairs &= at >= 0
            for name, values in found.seconds().items():
                second = np.where(at >= 0, values[at], np.nan)
                fixed = np.where(beside[:, None] >= 0, found.held.values[beside], np.nan) if held else None
                row = _row(view, token_set, name, second, pairs, fixed)
                if row is not None:
                    rows.append(row)
    return RELIABILITY.of(rows)


def _row(
    view: View,
    token_set: str,
    measure: str,
    second: Float[np.ndarray, " arms"],
    pairs: np.ndarray,
    held: Float[np.ndarray, "arms k"] | None,
) -> Row | None:
    """As the slope of record is made: the token set's own outcome, inside targets, its covariates held fixed."""
    outcome = outcome_of(token_set)
    chosen = pairs & np.isfinite(second)
    if not chosen.any():
        return None
    notes: list[str] = []
    if held is not None and (chosen & np.isfinite(held).all(axis=1)).sum() > chosen.sum() / 2:
        chosen &= np.isfinite(held).all(axis=1)
        notes.append("the frequency of the words is held fixed")
    else:
        held = None
    row: Row = {"locus": view.locus, "token_set": token_set, "measure": measure, "level": view.level}
    row |= {"n_pairs": int(chosen.sum()), "unit": f"{unit_of(outcome)} per cosine"}
    made = fitted(
        view, chosen, tuple(r for r in RECORD if r != "similarity"), wanted="interference", factor="target"
    )
    try:
        agreement = reliability(view.columns["similarity"][chosen], second[chosen], level=view.level)
        row |= {"r": agreement.r, "r_lo": agreement.lo, "r_hi": agreement.hi}
        if made.reason:
            raise ConfigError(made.reason)
        used = made.rows
        target = view.clusters[used, 0]
        inside = np.column_stack(
            [view.columns[outcome][used], view.columns["similarity"][used], second[used]]
            + ([] if held is None else [held[used]])
        )
        effect, one, two, *words = within(inside, target).T
        others = [*np.delete(made.x, made.which, axis=1).T, *words]
        found = instrumented(
            *(effect, made.x[:, made.which], one, two, view.clusters[used]),
            held=np.column_stack(others) if others else None,
            level=view.level,
        )
    except ConfigError as error:
        return row | {"note": f"not estimated: {str(error).splitlines()[0]}"}
    values = {name: number(value) for name, value in found._asdict().items() if name != "remark"}
    notes = [s for s in (found.remark, *notes, *made.notes) if s]
    return row | values | {"n_pairs": len(used), "note": "; ".join(notes) or None}
