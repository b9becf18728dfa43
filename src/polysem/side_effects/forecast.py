"""Side effects told from weights and corpus alone, judged on features that no fit has seen.

Ridge on ranks, its penalty chosen inside each training part; scales are of the training part, too. Every feature is in one
held-out part, so it has one forecast that knows nothing of its own label. Gradients are of the select prompts, labels of the
others. The best that a forecast can do is the root of the label's reliability, which two halves of its prompts tell. The
screen takes the ends of a forecast that was trained on one of these halves, pairs them on what they do to their own tokens
there, and looks at the other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from polysem.geometry.neighbours import nearest
from polysem.rank import rank_correlation
from polysem.saes.base import SAE, decoder_rows
from polysem.side_effects.firing import TextFiring
from polysem.side_effects.linear import LinearEffects
from polysem.side_effects.measures import Estimate
from polysem.stats.multiple import equivalence_p
from polysem.stats.permute import permute_within
from polysem.stats.regress import clustered_ols

NEIGHBOURS = 20
FOLDS = 5
PENALTIES = tuple(10.0**k for k in range(-2, 5))
MARGIN = 0.1
"""correlation within which crowding adds nothing to the linear response"""
PERMUTATIONS = 499
MIN_FEATURES = 30
CENTRE = 0.5
"""of ranks"""
CORPUS = ("log_density", "max_act", *TextFiring._fields)
GEOMETRY = (
    "crowding", "enc_dec_cos", "dec_norm", "logit_l2", "logit_top", "logit_entropy", "seed_cosine",
)  # fmt: skip
LINEAR = ("lr_on", "lr_kl", "lr_reach", "lr_stability")
PREDICTORS: Mapping[str, tuple[str, ...]] = {
    "all": (*CORPUS, *GEOMETRY, *LINEAR),
    "weights and corpus": (*CORPUS, *GEOMETRY),
    "linear response": LINEAR,
    "density": ("log_density",),
    "activation size": ("max_act",),
}
"""sets of predictors; the last three are the baselines"""


def predictors(
    sae: SAE,
    W_U: Float[np.ndarray, "d_vocab d_model"],
    features: pa.Table,
    linear: LinearEffects,
    own: Int[np.ndarray, " d_sae"],
    *,
    twins: Sequence[SAE] = (),
) -> dict[str, Float[np.ndarray, " d_sae"]]:
    """Every predictor of every feature of a dictionary; NaN where it is not known. Those of `firing` are left NaN.

    Args:
        W_U: the model's unembedding; what a dictionary of another width writes into it is not known.
        features: rows of FEATURES of this dictionary.
        linear: of all its unit decoder rows.
        own: place of every feature's own set; -1 without.
        twins: other dictionaries of the same site: of other seeds, say.
    """
    W_dec = decoder_rows(sae)
    norms = np.linalg.norm(W_dec, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = W_dec / norms[:, None]
        near = np.abs(nearest(W_dec, k=NEIGHBOURS, signed=True).cosine)
        found = {"crowding": np.nanmean(near, axis=1), "dec_norm": norms}
        found |= {name: np.full(len(norms), np.nan) for name in TextFiring._fields}
        found["seed_cosine"] = np.full(len(norms), np.nan)
        if twins:
            best = [nearest(W_dec, k=1, among=decoder_rows(one)).cosine[:, 0] for one in twins]
            found["seed_cosine"] = np.mean(best, axis=0)
        encoder = sae.W_enc.detach().cpu().double().numpy()
        both = encoder / np.linalg.norm(encoder, axis=0) if encoder.shape[0] == W_dec.shape[1] else None
        found["enc_dec_cos"] = np.full(len(norms), np.nan) if both is None else (unit * both.T).sum(1)
        for column in ("log_density", "max_act"):
            known = np.full(len(norms), np.nan)
            values = features["density" if column == "log_density" else column].to_numpy(zero_copy_only=False)
            known[features["feature"].to_numpy()] = values.astype(np.float64)
            found[column] = np.log(known) if column == "log_density" else known
        found |= _direct(unit, W_U)
        found |= {
            "lr_on": np.abs(linear.on(own)), "lr_kl": linear.kl,
            "lr_reach": linear.ratio, "lr_stability": linear.stability,
        }  # fmt: skip
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in found.items()}


def _direct(unit: np.ndarray, W_U: np.ndarray) -> dict[str, np.ndarray]:
    """What a direction writes into the logits by itself: length, share of the ten largest, entropy of the squares."""
    n = len(unit)
    if unit.shape[1] != W_U.shape[1]:
        return {name: np.full(n, np.nan) for name in ("logit_l2", "logit_top", "logit_entropy")}
    centred = W_U - W_U.mean(0)
    parts: list[np.ndarray] = []
    for start in range(0, n, 256):
        squares = (unit[start : start + 256] @ centred.T) ** 2
        total = squares.sum(1, keepdims=True)
        share = squares / total
        top = np.partition(share, -10, axis=1)[:, -10:].sum(1)
        entropy = -np.where(share > 0, share * np.log(share), 0.0).sum(1)
        parts.append(np.stack([np.sqrt(total[:, 0]), top, entropy]))
    whole = np.concatenate(parts, axis=1)
    return dict(zip(("logit_l2", "logit_top", "logit_entropy"), whole, strict=True))


def held_out(
    X: Float[np.ndarray, "n k"], y: Float[np.ndarray, " n"], *, rng: np.random.Generator
) -> Float[np.ndarray, " n"]:
    """A forecast of every y by ridge from the other folds, which also choose the penalty.

    Args:
        X: predictors, finite.
        y: outcome, finite.
        rng: deals features into folds.
    """
    fold = rng.permutation(len(y)) % FOLDS
    found = np.empty(len(y))
    for k in range(FOLDS):
        out, rest = fold == k, fold != k
        inner = rng.permutation(int(rest.sum())) % FOLDS
        errors = [_error(X[rest], y[rest], inner, penalty) for penalty in PENALTIES]
        found[out] = _ridge(X[rest], y[rest], X[out], PENALTIES[int(np.argmin(errors))])
    return found


def _error(X: np.ndarray, y: np.ndarray, fold: np.ndarray, penalty: float) -> float:
    return sum(
        float(((_ridge(X[fold != k], y[fold != k], X[fold == k], penalty) - y[fold == k]) ** 2).sum())
        for k in range(FOLDS)
    )


def _ridge(X: np.ndarray, y: np.ndarray, new: np.ndarray, penalty: float) -> np.ndarray:
    mean, spread = X.mean(0), X.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    Z, centre = (X - mean) / spread, y.mean()
    beta = np.linalg.solve(Z.T @ Z + penalty * np.eye(Z.shape[1]), Z.T @ (y - centre))
    # The mean of the others lies on the other side of the whole mean than what is held out: with it, no forecast at all
    # would correlate negatively with the truth.
    return (new - mean) / spread @ beta + CENTRE


def ranks(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Ranks down the columns, equals sharing theirs, from 0 to 1."""
    from scipy.stats import rankdata

    return (rankdata(values, axis=0) - 0.5) / len(values)


def partial_correlation(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], given: Float[np.ndarray, "n k"]
) -> float:
    """Partial Spearman: correlation of the ranks of x and y with the ranks of the others taken out of both."""
    design = np.column_stack([np.ones(len(x)), ranks(given)])
    left = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (ranks(x), ranks(y))]
    scale = float(np.linalg.norm(left[0]) * np.linalg.norm(left[1]))
    small = [np.linalg.norm(v) < 1e-9 * len(x) ** 0.5 for v in left]
    return float(left[0] @ left[1]) / scale if scale > 0 and not any(small) else np.nan


def over_features(of: Callable[[Int[np.ndarray, " m"]], float], n: int) -> Estimate:
    """A statistic of features, and its 95 % interval by leaving out one after the other; normal quantiles."""
    from scipy import stats

    every = np.arange(n)
    value = of(every)
    left = np.array([of(np.delete(every, k)) for k in range(n)])
    se = float(np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum()))
    reach = float(stats.norm.ppf(0.975)) * se
    return Estimate(value, value - reach, value + reach, se)


def split_half(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float:
    """Reliability of a label made from two halves of prompts: 2 r / (1 + r), r being their Spearman correlation
    (Spearman-Brown, which takes halves to be equally good); 0 where they do not agree."""
    r = max(0.0, rank_correlation(first, second))
    return 2 * r / (1 + r)


@dataclass(frozen=True)
class Labelled:
    """Features with side effects measured on prompts whose gradients no forecast has seen."""

    predictors: Mapping[str, Float[np.ndarray, " n"]]
    label: Float[np.ndarray, " n"]
    """an outcome on all those prompts: what is forecast"""
    first: Float[np.ndarray, " n"]
    """on one half of them"""
    second: Float[np.ndarray, " n"]
    """on the other"""
    deciles: Int[np.ndarray, " n"]
    """of density"""

    @property
    def problem(self) -> str:
        """Why nothing can be forecast; "" if it can."""
        n = len(self.label)
        enough = n >= MIN_FEATURES and np.ptp(self.label) > 0
        return "" if enough else f"{n} features with a label that varies; expected at least {MIN_FEATURES}"

    def told(
        self, label: Float[np.ndarray, " n"], columns: Sequence[str], rng: np.random.Generator
    ) -> Float[np.ndarray, " n"]:
        """The held-out forecast of a label's ranks by some predictors."""
        X = ranks(np.column_stack([self.predictors[c] for c in columns]))
        return held_out(X, ranks(label), rng=rng)


def forecast_rows(
    labelled: Labelled, *, seed_rng: Callable[[str], np.random.Generator]
) -> list[dict[str, Any]]:
    """Rows of FORECASTS of one outcome, without its names.

    Args:
        labelled: features; those with a missing label or predictor must be left out.
        seed_rng: a generator by purpose.
    """
    n = len(labelled.label)
    if labelled.problem:
        return [{"predictors": "all", "n_features": n, "note": labelled.problem}]
    y, reliability = ranks(labelled.label), split_half(labelled.first, labelled.second)
    told: dict[str, np.ndarray] = {}
    rows: list[dict[str, Any]] = []
    for name, columns in PREDICTORS.items():
        told[name] = labelled.told(labelled.label, columns, seed_rng("folds"))
        found = over_features(lambda at, t=told[name]: rank_correlation(t[at], y[at]), n)
        rows.append(
            {"predictors": name, **found.columns("spearman"), "n_features": n}
            | {"reliability": reliability, "ceiling": reliability**0.5}
        )
        if name == "all":
            order = permute_within(labelled.deciles, draws=PERMUTATIONS, rng=seed_rng("permute"))
            draws = [rank_correlation(told[name], y[one]) for one in order]
            rows[-1]["p"] = float((1 + (np.array(draws) >= found.value).sum()) / (1 + PERMUTATIONS))
    rows += [
        _difference(told["all"], told[other], y, f"all minus {other}")
        for other in ("density", "activation size", "linear response")
    ]
    rows.append(_crowding(labelled))
    return rows


def _difference(one: np.ndarray, other: np.ndarray, y: np.ndarray, name: str) -> dict[str, Any]:
    found = over_features(
        lambda at: rank_correlation(one[at], y[at]) - rank_correlation(other[at], y[at]), len(y)
    )
    return {"predictors": name, **found.columns("spearman"), "p": _p(found), "n_features": len(y)}


def _p(found: Estimate) -> float:
    from scipy import stats

    return float(2 * stats.norm.sf(abs(found.value) / found.se)) if found.se > 0 else np.nan


def _crowding(labelled: Labelled) -> dict[str, Any]:
    """Does interference add to the linear response? A partial correlation with its equivalence test."""
    given = np.column_stack([labelled.predictors[c] for c in (*LINEAR, "log_density")])
    x, y = labelled.predictors["crowding"], labelled.label
    found = over_features(lambda at: partial_correlation(x[at], y[at], given[at]), len(y))
    df = float(len(y) - given.shape[1] - 2)
    return {
        "predictors": "crowding given linear response and density", **found.columns("spearman"), "p": _p(found),
        "p_equivalent": equivalence_p(found.value, found.se, df, margin=MARGIN), "margin": MARGIN,
        "n_features": len(y),
    }  # fmt: skip


def screen_row(
    told: Float[np.ndarray, " n"],
    on: Float[np.ndarray, " n"],
    outcome: Float[np.ndarray, "n prompts"],
) -> dict[str, Any]:
    """The screen test: of the ends of a forecast the tenth of all features that pair best on the target, dirtiest minus
    cleanest.

    Args:
        told: held-out forecast of the outcome: large is dirty.
        on: effect on the feature's own tokens, where labels were made.
        outcome: of every feature and fresh prompt, NaN where it was not pushed.
    """
    n = max(1, len(told) // 10)
    order = np.argsort(told, kind="stable")
    clean, dirty = order[: 2 * n], order[-2 * n :]
    pairs = _matched(on[dirty], on[clean], n)
    at = np.array([(dirty[i], clean[j]) for i, j in pairs])
    change = outcome[at[:, 0]] - outcome[at[:, 1]]
    known = np.isfinite(change)
    means = np.nanmean(change, axis=1)
    moves = np.where(known, change - means[:, None], 0.0) / known.sum(1, keepdims=True)
    pair = np.repeat(np.arange(n)[:, None], 2, axis=1)
    fit = clustered_ols(means, np.ones((n, 1)), pair, level=0.95, prompts=moves)
    sides = [outcome[at[:, side]] for side in (0, 1)]
    return {
        "dirtiest": float(np.nanmean(sides[0])), "cleanest": float(np.nanmean(sides[1])),
        "difference": float(fit.estimate[0]), "lo": float(fit.lo[0]), "hi": float(fit.hi[0]), "p": float(fit.p[0]),
        "on_difference": float((on[at[:, 0]] - on[at[:, 1]]).mean()),
        "n_pairs": n, "n_prompts": outcome.shape[1],
    }  # fmt: skip


def _matched(
    left: Sequence[float] | np.ndarray, right: Sequence[float] | np.ndarray, n: int
) -> list[tuple[int, int]]:
    """n pairs of places, each used once, by smallest difference first."""
    gap = np.abs(np.asarray(left)[:, None] - np.asarray(right)[None, :])
    found: list[tuple[int, int]] = []
    for k in np.argsort(gap, axis=None, kind="stable").tolist():
        i, j = divmod(k, gap.shape[1])
        if all(i != a and j != b for a, b in found):
            found.append((i, j))
        if len(found) == n:
            break
    return found
