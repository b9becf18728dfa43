"""How much of a pair's effect is this dictionary: effects of the same pairs in two dictionaries of a site, by whether their members
are stable, and their variance taken apart.

Survival is the correlation of the two dictionaries' effects. It is never quite 1: a match at cosine c writes a share of c of the other
direction. So it stands beside what matches alike by their cosine alone would give (what differs dealt out among the features
drawn, pushed and read in the same way); the excess is of the pair. Intervals resample targets.

Components are those of y = m + target + source + pair + dictionary + target in dictionary + source in dictionary + rest, all random,
by the analysis of variance: uncorrected sums of squares of group means set to their expectations (Henderson's first method,
Biometrics 9, 1953), which is unbiased with any cells missing and has a closed form. An estimate below zero stays as it is: there is
none. Intervals are the jackknife's, one feature left out in both its roles, with t.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from polysem.seeds import rng_for
from polysem.stats.regress import varies
from polysem.stats.replication import DRAWS, MEASURES
from polysem.stats.rows import Rows, number
from polysem.store.tables import EFFECT_SURVIVAL, VARIANCE_COMPONENTS

STRATA: Mapping[str, tuple[int, ...]] = {"all": (0, 1, 2), "both": (2,), "one": (1,), "none": (0,)}
"""stratum -> how many members of the pair are stable"""
LEAST = 12, 3
"""pairs and targets below which nothing is told"""
COMPONENTS = (
    "target",
    "source",
    "pair",
    "dictionary",
    "target_in_dictionary",
    "source_in_dictionary",
    "rest",
)
RELIABILITIES = ("reliability_one", "reliability_both")
FEWEST = 5
"""features of a jackknife"""


def effect_survival(replicated: pa.Table, *, level: float, seed: int) -> pa.Table:
    """EFFECT_SURVIVAL of every two dictionaries, token set, measure and stratum in REPLICATED that has pairs."""
    rows: Rows = []
    for key, pairs in _groups(replicated):
        for measure in MEASURES:
            y, stable, targets, _ = _of(pairs, measure)
            for stratum, wanted in STRATA.items():
                kept = np.isin(stable, wanted)
                if not kept.any():
                    continue
                rng = rng_for(seed, "survival", *map(str, key.values()), measure, stratum)
                found = _correlations(y[kept], targets[kept], level=level, rng=rng)
                rows.append(key | {"measure": measure, "stratum": stratum, "level": level} | found)
    return EFFECT_SURVIVAL.of(rows)


def variance_components(replicated: pa.Table, *, level: float) -> pa.Table:
    """VARIANCE_COMPONENTS of every two dictionaries, token set and measure in REPLICATED: of all pairs drawn, and of those whose
    members are both stable."""
    rows: Rows = []
    for key, pairs in _groups(replicated):
        for measure in MEASURES:
            y, stable, targets, sources = _of(pairs, measure)
            for stratum in ("all", "both"):
                kept = np.isin(stable, STRATA[stratum]) & np.isfinite(y[:, :2]).all(axis=1)
                if not kept.any():
                    continue
                ends = np.column_stack([targets, sources])[kept]
                named = key | {"measure": measure, "stratum": stratum, "level": level}
                rows += [named | row for row in _components(y[kept, :2], ends, level=level)]
    return VARIANCE_COMPONENTS.of(rows)


def components_of(
    y: Float[np.ndarray, " n"],
    target: Int[np.ndarray, " n"],
    source: Int[np.ndarray, " n"],
    dictionary: Int[np.ndarray, " n"],
) -> Float[np.ndarray, "7"]:
    """Variances of `COMPONENTS`; nan where the design does not tell them apart, or an effect is not finite.

    Args:
        y: effects, one of every pair and dictionary at most.
        target: of each.
        source: of each.
        dictionary: of each.
    """
    if not len(y) or not np.isfinite(y).all():
        return np.full(len(COMPONENTS), np.nan)
    codes = [_code(*ids) for ids in (
        (target,), (source,), (target, source), (dictionary,), (target, dictionary), (source, dictionary), (np.arange(len(y)),)
    )]  # fmt: skip
    whole = np.zeros(len(y), dtype=np.int64)
    ones = np.ones(len(y))

    def squares(groups: np.ndarray) -> float:
        n = np.bincount(groups)
        return float((np.bincount(groups, weights=y - y.mean()) ** 2 / n).sum())

    def shared(groups: np.ndarray, levels: np.ndarray) -> float:
        """Trace of (projection on the groups) Z Z' of the levels: sum of n_gh^2 / n_g."""
        cells, at = np.unique(groups * (levels.max() + 1) + levels, return_inverse=True)
        n = np.bincount(at, weights=ones)
        return float((n**2 / np.bincount(groups)[cells // (levels.max() + 1)]).sum())

    # y less its mean has the same quadratic forms less that of the mean, which is 0 then.
    expected = np.array([[shared(g, h) - shared(whole, h) for h in codes] for g in codes])
    seen = np.array([squares(g) for g in codes])
    if np.linalg.matrix_rank(expected) < len(codes):
        return np.full(len(codes), np.nan)
    return np.linalg.solve(expected, seen)


def _components(y: np.ndarray, ends: np.ndarray, *, level: float) -> Iterator[dict[str, object]]:
    """Rows of one design: components, then reliabilities."""
    from scipy.special import stdtrit

    features = np.unique(ends)
    n_pairs, n = len(y), len(features)
    why = ""
    if n_pairs < LEAST[0] or n < FEWEST:
        why = f"{n_pairs} pairs of {n} features; {LEAST[0]} of {FEWEST} are needed"
    elif not varies(y.ravel()):
        why = "the effects do not vary"
    names = (*COMPONENTS, *RELIABILITIES)
    found = np.full(len(names), np.nan) if why else _design(y, ends)
    half = np.full(len(names), np.nan)
    if not why:
        left = np.array(
            [_design(y[kept], ends[kept]) for f in features for kept in [~(ends == f).any(axis=1)]]
        )
        half = np.sqrt((n - 1) / n * ((left - left.mean(axis=0)) ** 2).sum(axis=0)) * stdtrit(
            n - 1, 0.5 + level / 2
        )
    total = float(found[: len(COMPONENTS)].sum())
    for name, value, reach in zip(names, found.tolist(), half.tolist(), strict=True):
        ratio = name in RELIABILITIES
        yield {
            "component": name, "value": number(value), "lo": number(value - reach), "hi": number(value + reach),
            "share": None if ratio or not total > 0 else number(value / total), "n_pairs": n_pairs,
            "n_features": n, "note": why or (None if np.isfinite(value) else "there is none: the pairs' variance is not above zero"),
        }  # fmt: skip


def _design(y: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Components and reliabilities of effects in two dictionaries [pairs 2]."""
    n = len(y)
    target, source = (np.concatenate([ends[:, k]] * 2) for k in (0, 1))
    found = components_of(y.T.ravel(), target, source, np.repeat([0, 1], n))
    pair, rest = found[COMPONENTS.index("pair")], found[COMPONENTS.index("rest")]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [pair / (pair + rest / k) if pair + rest > 0 else np.nan for k in (1, 2)]
    return np.array([*found, *ratios])


def _correlations(
    y: Float[np.ndarray, "n 3"], targets: Int[np.ndarray, " n"], *, level: float, rng: np.random.Generator
) -> dict[str, object]:
    """Of (effect, in the other dictionary, were matches alike by cosine alone): correlation, null and excess with intervals."""
    y = y[np.isfinite(y).all(axis=1)] if (bad := ~np.isfinite(y).all(axis=1)).any() else y
    targets = targets[~bad]
    names, code = np.unique(targets, return_inverse=True)
    made: dict[str, object] = {"n_pairs": len(y), "n_targets": len(names)}
    ends = ("correlation", "null", "excess")
    why = ""
    if len(y) < LEAST[0] or len(names) < LEAST[1]:
        why = f"{len(y)} pairs of {len(names)} targets; {LEAST[0]} of {LEAST[1]} are needed"
    elif not all(varies(column) for column in y.T):
        why = "the effects do not vary"
    if why:
        return made | {f"{n}{e}": None for n in ends for e in ("", "_lo", "_hi")} | {"note": why}
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)[:, code]
    drawn = _excess(y, weights.astype(np.float64))
    seen = _excess(y, np.ones((1, len(y))))[:, 0]
    lo, hi = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=1)
    for name, *values in zip(ends, seen.tolist(), lo.tolist(), hi.tolist(), strict=True):
        made |= {f"{name}{e}": number(v) for e, v in zip(("", "_lo", "_hi"), values, strict=True)}
    return made | {"note": None}


def _excess(y: Float[np.ndarray, "n 3"], w: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, "3 draws"]:
    """Weighted correlations of the first column with the second and the third, and their difference."""
    total = w.sum(axis=1)
    mean, cross = w @ y / total[:, None], [w @ (y[:, [k]] * y[:, [0]]) / total[:, None] for k in (1, 2)]
    spread = np.sqrt(np.maximum(w @ y**2 / total[:, None] - mean**2, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        r, null = (
            (c[:, 0] - mean[:, 0] * mean[:, k]) / (spread[:, 0] * spread[:, k])
            for k, c in zip((1, 2), cross, strict=True)
        )
    return np.array([r, null, r - null])


def _groups(replicated: pa.Table) -> Iterator[tuple[dict[str, str], list[dict[str, Any]]]]:
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for r in replicated.to_pylist():
        groups.setdefault((r["sae"], r["other"], r["token_set"]), []).append(r)
    for key, pairs in sorted(groups.items()):
        yield dict(zip(("sae", "other", "token_set"), key, strict=True)), pairs


def _of(
    pairs: list[dict[str, Any]], measure: str
) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Effects (here, there, dealt; nan for none), stable members, targets, sources."""

    def column(name: str) -> np.ndarray:
        return np.array([np.nan if r[name] is None else r[name] for r in pairs], dtype=np.float64)

    y = np.column_stack([column(f"{side}{measure}") for side in ("", "other_", "dealt_")])
    stable = np.array([r["stable_target"] + r["stable_source"] for r in pairs], dtype=np.int64)
    targets, sources = (np.array([r[who] for r in pairs], dtype=np.int64) for who in ("target", "source"))
    return y, stable, targets, sources


def _code(*ids: np.ndarray) -> Int[np.ndarray, " n"]:
    code = np.zeros(len(ids[0]), dtype=np.int64)
    for some in ids:
        code = code * (int(some.max(initial=0)) + 1) + some
    return np.unique(code, return_inverse=True)[1].astype(np.int64)
