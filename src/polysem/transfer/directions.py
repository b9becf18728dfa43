"""Directions as interventions to transfer, into a target whose inside is at hand and that has its own SAE.

    feature    decoder row of the target's feature that both sources' matched features are matched to
    gradient   token gradient of that feature's pre-activation in the target (arXiv 2505.11611, section 3.4,
               with the feature's own encoder as probe), in float32 and float64, refused where they disagree

A feature takes part if it is the mutual nearest neighbour of either source's feature of one matched pair: a
triple. Its arm is that pair's (`arms.matched_arms`), so a shared interferer's direction is tested against
directions of matched features that interfere with no target feature (`neither`). The unit is the feature;
labels are permuted inside strata of firing frequency and leakage (cosine of its strings with the category's
words). Over categories: Holm.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from polysem.errors import ConfigError
from polysem.progress import SILENT, Reporter
from polysem.transfer.config import DirectionKind
from polysem.transfer.matching import match_features, max_by_segment, segments
from polysem.transfer.prepare import CHARACTERS_PER_TOKEN, Prepared
from polysem.transfer.source import Source, chunks_of, see

if TYPE_CHECKING:
    from polysem.models.hf import HFModel
    from polysem.saes.base import SAE
else:
    HFModel = SAE = Any

CONTEXT = 16
"""tokens up to and with the peak, of which a token gradient is taken"""
LEVELS = 3
"""levels of frequency, and of leakage, inside which labels are permuted"""
PERMUTATIONS = 1_999


@dataclass(frozen=True)
class Triples:
    """Features of a target that both sources have."""

    place: Int[np.ndarray, " n"]
    """in the matching of the sources"""
    feature: Int[np.ndarray, " n"]
    """of the target's SAE"""
    frequency: Float[np.ndarray, " n"]
    """log of the tokens on which it fires"""


def find_triples(prepared: Prepared, target: Source) -> Triples:
    """Features of the target that are matched to both features of a matched pair.

    Raises:
        ConfigError: if there are none.
    """
    study, matching = prepared.study, prepared.structure.matching
    partner = []
    for source in prepared.sources:
        in_s, in_t, n = segments(source.ends, target.ends)
        found = match_features(
            max_by_segment(source.acts, in_s, n), max_by_segment(target.acts, in_t, n),
            min_r=study.shared.min_r, min_active=study.shared.min_active,
        )  # fmt: skip
        partner.append(dict(zip(found.a.tolist(), found.b.tolist(), strict=True)))
    both = [
        (m, partner[0][a])
        for m, (a, b) in enumerate(zip(matching.a.tolist(), matching.b.tolist(), strict=True))
        if a in partner[0] and partner[0][a] == partner[1].get(b)
    ]
    if not both:
        raise ConfigError(
            f"no feature of {target.name} is matched to both sources (r >= {study.shared.min_r})",
            hint="lower shared.min_r, read a longer corpus, or leave the target's sae out",
        )
    place, feature = (np.array(column, dtype=np.int64) for column in zip(*both, strict=True))
    fires = np.asarray((target.acts > 0).sum(axis=0)).ravel()[feature]
    return Triples(place, feature, np.log(np.maximum(fires, 1)))


def see_target(
    prepared: Prepared, model: HFModel, sae: SAE, *, name: str, reporter: Reporter = SILENT
) -> Source:
    """The target on the text on which the sources were matched."""
    corpus = prepared.study.corpus
    chunks = chunks_of(corpus.ref, n_characters=corpus.n_tokens * CHARACTERS_PER_TOKEN)
    return see(model, sae, chunks, name=name, reporter=reporter)


@dataclass(frozen=True)
class Directions:
    """Unit directions of one kind; those that could not be made are left out and counted."""

    kind: DirectionKind
    rows: Int[np.ndarray, " k"]
    """places in the triples"""
    vectors: Float[np.ndarray, "k d"]
    refused: dict[str, int]
    """reason -> features"""


def directions_of(
    kind: DirectionKind, triples: Triples, target: Source, model: HFModel, sae: SAE
) -> Directions:
    """The directions of all triples."""
    if kind == "feature":
        vectors = target.directions[triples.feature]
        norm = np.linalg.norm(vectors, axis=1)
        live = np.flatnonzero(norm > 0)
        return Directions(
            kind, live, vectors[live] / norm[live, None], _count(["zero_direction"] * int((norm == 0).sum()))
        )
    rows, found, reasons = [], [], []
    peaks = _peaks(target, triples.feature)
    for n, (feature, peak) in enumerate(zip(triples.feature.tolist(), peaks.tolist(), strict=True)):
        outcome = _gradient(model, sae, target, feature, peak)
        if isinstance(outcome, str):
            reasons.append(outcome)
        else:
            rows.append(n)
            found.append(outcome)
    width = model.spec.d_model
    return Directions(
        kind, np.array(rows, dtype=np.int64), np.array(found).reshape(len(rows), width), _count(reasons)
    )


def _gradient(model: HFModel, sae: SAE, target: Source, feature: int, peak: int) -> np.ndarray | str:
    """The token gradient, or the reason why there is none."""
    import torch

    from polysem.interventions.base import Bench, Refused
    from polysem.interventions.gradient import guarded_gradient

    front = [model.bos_id] if sae.prepend_bos and model.bos_id is not None else []
    ids = [*front, *target.tokens[max(0, peak - CONTEXT + 1) : peak + 1].tolist()]
    if sae.d_in != model.spec.d_model:
        return "other_width"
    bench = Bench(
        label=target.name, sae=sae, spec=model.spec, activations=lambda: np.empty((0, sae.d_in)), model=model
    )
    tokens = torch.tensor([ids], device=model.spec.device)
    try:
        return guarded_gradient(model, tokens, bench, len(ids) - 1, sae.W_enc[:, feature].detach().double())
    except Refused as error:
        return error.reason


def _peaks(target: Source, features: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Token on which each feature is most active; the first of equals."""
    columns = target.acts[:, features].tocsc()
    return np.asarray(columns.argmax(axis=0)).ravel()


def _count(reasons: list[str]) -> dict[str, int]:
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


@dataclass(frozen=True)
class StratifiedTest:
    """Treated against reference units of the same strata."""

    treated: float
    """mean over treated units that have references in their stratum"""
    estimate: float
    """mean of the strata's differences, weighted as the treated units lie; NaN without a common stratum"""
    lo: float
    hi: float
    p: float
    """one-sided: treated above; permutations inside strata"""
    n_treated: int
    n_reference: int
    n_alone: int
    """treated units without a reference in their stratum, which are left out"""


def stratified_test(
    values: Float[np.ndarray, " n"],
    treated: Bool[np.ndarray, " n"],
    stratum: Int[np.ndarray, " n"],
    *,
    level: float,
    rng: np.random.Generator,
    permutations: int = PERMUTATIONS,
) -> StratifiedTest:
    """Permutation test of a difference inside strata; p = (1 + as large) / (1 + permutations).

    The interval is Student's, with one variance inside all strata. NaN where nothing can be compared.
    """
    common = [s for s in np.unique(stratum) if 0 < treated[stratum == s].sum() < (stratum == s).sum()]
    kept = np.isin(stratum, common)
    alone = int((treated & ~kept).sum())
    if not kept.any():
        return StratifiedTest(math.nan, math.nan, math.nan, math.nan, math.nan, 0, 0, alone)
    x, t, s = values[kept], treated[kept], np.searchsorted(common, stratum[kept])
    estimate = _difference(x, t[None, :], s)[0]
    labels = np.empty((permutations, len(t)), dtype=bool)
    for k in range(len(common)):
        at = np.flatnonzero(s == k)
        labels[:, at] = rng.permuted(np.tile(t[at], (permutations, 1)), axis=1)
    drawn = _difference(x, labels, s)
    slack = 1e-9 * max(1.0, float(np.abs(drawn).max()))
    p = (1 + int((drawn >= estimate - slack).sum())) / (1 + permutations)
    reach = _reach(x, t, s, level=level)
    return StratifiedTest(
        float(x[t].mean()), float(estimate), float(estimate - reach), float(estimate + reach), p,
        int(t.sum()), int((~t).sum()), alone,
    )  # fmt: skip


def _difference(x: np.ndarray, labels: np.ndarray, s: np.ndarray) -> Float[np.ndarray, " labellings"]:
    """Weighted difference of means under every labelling; all have as many treated units per stratum."""
    total = np.zeros(len(labels))
    n = labels[0].sum()
    for k in range(int(s.max()) + 1):
        at = s == k
        inside = labels[:, at]
        m, size = int(inside[0].sum()), int(at.sum())
        up = inside @ x[at]
        total += m / n * (up / m - (x[at].sum() - up) / (size - m))
    return total


def _reach(x: np.ndarray, t: np.ndarray, s: np.ndarray, *, level: float) -> float:
    from scipy import stats

    residual, weight, cells = 0.0, 0.0, 0
    for k in range(int(s.max()) + 1):
        for side in (True, False):
            part = x[(s == k) & (t == side)]
            residual += float(((part - part.mean()) ** 2).sum())
            cells += 1
        m, size = int((t & (s == k)).sum()), int((s == k).sum())
        weight += (m / t.sum()) ** 2 * (1 / m + 1 / (size - m))
    df = len(x) - cells
    if df < 1:
        return math.inf
    return float(stats.t.ppf(0.5 + level / 2, df) * math.sqrt(residual / df * weight))


def strata(frequency: Float[np.ndarray, " n"], leakage: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Stratum of each feature: its level of frequency, and of leakage."""
    return LEVELS * _level(frequency) + _level(leakage)


def _level(values: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    edges = np.quantile(values, np.linspace(0, 1, LEVELS + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")
