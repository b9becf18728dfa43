"""What explains the effects of pairs: nested models and a race of metrics, judged on what they have not seen.

Models (every one with a constant, fitted by least squares on one row per pair):

    linear_response                      the gradient alone: the baseline that anything else must beat
    cosine                               interference
    cosine_similarity                    and gloss similarity
    all                                  linear response, interference and similarity
    metric:NAME                          one other measure of interference alone

R2 is that of predictions for targets (or sources) left out of the fit: 1 - sum (y - prediction)^2 / sum (y -
mean of the training rows)^2; it can be negative. The interval resamples the left-out targets (sources).
`validity` compares linear response with the measured effects dose by dose, nothing fitted.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from polysem.seeds import rng_for
from polysem.stats.arms import ARM, PRIMARY, Arms, floats, outcome_of, places
from polysem.stats.rows import POOLED, Row, Rows, View
from polysem.store.tables import VALIDITY
from polysem.vocabulary import OUTCOMES

DRAWS = 999
MAX_FOLDS = 20
_KEY = (*ARM, "token_set", "dose")


def linear_of(arms: Arms, response: pa.Table, *, asked: bool = False) -> Float[np.ndarray, " arms"]:
    """Linear response of every arm in nats; nan where there is none.

    Args:
        response: RESPONSE.
        asked: of the outcome that is asked of each token set (`arms.outcome_of`), in place of log-odds.
    """
    values = floats(response["linear"])
    if asked:
        less = np.array(
            [OUTCOMES[outcome_of(t)].less for t in response["token_set"].to_pylist()], dtype=object
        )
        for column in set(less.tolist()) - {""}:
            values = np.where(less == column, values - floats(response[column]), values)
    return np.append(values, np.nan)[places(_keys(arms.table), _keys(response))]


def explained(view: View, linear: Float[np.ndarray, " arms"], metrics: pa.Table, *, seed: int) -> Rows:
    """EXPLAINED of one locus at its headline dose, all SAEs together."""
    c = view.columns
    columns: dict[str, np.ndarray] = {
        "linear": linear,
        "interference": c["interference"],
        "similarity": c["similarity"],
    }
    models = {
        "linear_response": ("linear",),
        "cosine": ("interference",),
        "cosine_similarity": ("interference", "similarity"),
        "all": ("linear", "interference", "similarity"),
    }
    others = _metric_columns(view, metrics)
    columns |= others
    models |= {f"metric:{name}": (name,) for name in others}
    # Every model is judged on the same pairs: those that all have numbers for.
    complete = np.all([np.isfinite(v) for v in columns.values()], axis=0)
    rows: Rows = []
    for tokens in view.token_sets:
        y = c[outcome_of(tokens)]
        used = complete & np.isfinite(y) & view.where(token_set=tokens, relation="pair")
        for unseen, column in (("targets", 0), ("sources", 1)):
            groups = view.clusters[used, column]
            designs = [
                np.column_stack([np.ones(int(used.sum())), *(columns[n][used] for n in names)])
                for names in models.values()
            ]
            rng = rng_for(seed, "explained", view.locus, tokens, unseen)
            told = held_out_r2s(y[used], designs, groups, level=view.level, rng=rng)
            for model, row in zip(models, told, strict=True):
                key = {"locus": view.locus, "token_set": tokens, "model": model, "unseen": unseen}
                rows.append(key | row | {"level": view.level, "n_pairs": int(used.sum())})
    return rows


def held_out_r2(
    y: Float[np.ndarray, " n"],
    design: Float[np.ndarray, "n k"],
    groups: Int[np.ndarray, " n"],
    *,
    level: float,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> Row:
    """R2 of predictions for groups that the fit has not seen, with an interval over groups.

    Each group is a fold of its own; more than 20 groups are dealt to 20 folds in the order of `groups`.
    """
    return held_out_r2s(y, [design], groups, level=level, rng=rng, draws=draws)[0]


def held_out_r2s(
    y: Float[np.ndarray, " n"],
    designs: Sequence[Float[np.ndarray, "n _"]],
    groups: Int[np.ndarray, " n"],
    *,
    level: float,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> Rows:
    """`held_out_r2` of several models of the same effects, with the same resampled groups."""
    names, code = np.unique(groups, return_inverse=True)
    nothing: Row = {"r2": None, "lo": None, "hi": None}
    few = nothing | {"note": f"only {len(names)} groups and {len(y)} pairs: nothing can be left out"}
    enough = [len(names) >= 3 and len(y) >= design.shape[1] + 3 for design in designs]
    if not any(enough):
        return [few for _ in designs]
    if not np.isfinite(y).all():
        return [nothing | {"note": "some of the effects are not finite"} if e else few for e in enough]
    fold = code % MAX_FOLDS
    folds = [(fold == k, fold != k) for k in np.unique(fold)]
    spread = np.zeros(len(y))
    for test, rest in folds:
        spread[test] = (y[test] - y[rest].mean()) ** 2
    spreads = np.bincount(code, weights=spread)
    if not spreads.sum() > 0:
        return [nothing | {"note": "the effects do not vary"} if e else few for e in enough]
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    found: Rows = []
    for design, e in zip(designs, enough, strict=True):
        if not e:
            found.append(few)
            continue
        error = np.zeros(len(y))
        for test, rest in folds:
            fit = np.linalg.lstsq(design[rest], y[rest], rcond=None)[0]
            error[test] = (y[test] - design[test] @ fit) ** 2
        sums = np.column_stack([np.bincount(code, weights=error), spreads])
        drawn = weights @ sums
        r2 = 1 - drawn[:, 0] / np.maximum(drawn[:, 1], 1e-300)
        lo, hi = np.quantile(r2, [(1 - level) / 2, (1 + level) / 2]).tolist()
        known = float(1 - sums[:, 0].sum() / sums[:, 1].sum())
        found.append({"r2": known, "lo": lo, "hi": hi, "note": None})
    return found


def validity(arms: Arms, linear: Float[np.ndarray, " arms"], path: pa.Table) -> pa.Table:
    """VALIDITY: R2 of measured effects by linear response at every dose, for each SAE and for all; and that of the
    path-averaged gradient, on the sample of pairs in GRADIENT_PATH."""
    t = arms.table
    y, kl, dose = (floats(t[name]) for name in (PRIMARY, "kl", "dose"))
    text = {n: np.array(t[n].to_pylist(), dtype=object) for n in ("sae", "locus", "token_set")}
    used = np.isfinite(y) & np.isfinite(linear)
    sampled = path.to_pylist()
    at = np.array(list(zip(text["locus"], text["token_set"], dose, strict=True)), dtype=object)
    rows: Rows = []
    for locus, tokens, d in sorted({tuple(key) for key in at[used].tolist()}):
        place = used & np.array([tuple(key) == (locus, tokens, d) for key in at.tolist()], dtype=bool)
        there = [r for r in sampled if (r["locus"], r["token_set"], r["dose"]) == (locus, tokens, d)]
        for sae in (POOLED, *sorted(set(text["sae"][place].tolist()))):
            here = place & ((text["sae"] == sae) | (sae == POOLED))
            some = [(r["total"], r["path"]) for r in there if sae in (POOLED, r["sae"])]
            along = np.array(some, dtype=np.float64).reshape(-1, 2)
            key: Row = {"sae": sae, "locus": locus, "token_set": tokens, "dose": d}
            rows.append(
                key
                | {
                    "kl": float(kl[here].mean()),
                    "r2": r2_of(y[here], linear[here]),
                    "n_arms": int(here.sum()),
                }
                | {"r2_path": r2_of(along[:, 0], along[:, 1]), "n_path": len(along)}
            )
    return VALIDITY.of(rows)


def r2_of(y: Float[np.ndarray, " n"], prediction: Float[np.ndarray, " n"]) -> float | None:
    """1 - SSE / SST about the mean; None where y does not vary, or a number is not finite."""
    if not len(y) or not (np.isfinite(y).all() and np.isfinite(prediction).all()):
        return None
    spread = float(((y - y.mean()) ** 2).sum())
    return 1 - float(((y - prediction) ** 2).sum()) / spread if spread > 0 else None


def _metric_columns(view: View, metrics: pa.Table) -> Mapping[str, np.ndarray]:
    """Each metric for every arm of the view; metrics that some SAE lacks are left out of the race."""
    c = view.columns
    keys = list(zip(c["sae"].tolist(), c["target"].tolist(), c["source"].tolist(), strict=True))
    found: dict[str, dict[tuple[object, ...], float]] = {}
    for r in metrics.to_pylist():
        found.setdefault(r["metric"], {})[r["sae"], float(r["target"]), float(r["source"])] = r["value"]
    pairs = view.where(relation="pair")
    columns = {n: np.array([v.get(k, np.nan) for k in keys]) for n, v in sorted(found.items())}
    return {n: v for n, v in columns.items() if np.isfinite(v[pairs]).all() and n != "decoder_cosine"}


def _keys(table: pa.Table) -> list[tuple[object, ...]]:
    return list(zip(*(table[name].to_pylist() for name in _KEY), strict=True))
