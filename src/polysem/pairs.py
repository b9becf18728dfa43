"""The map of pairs of one SAE: which features lie close in the residual stream though their glosses do not.

One pass over all pairs finds those with |interference| at least the threshold; those with unlike glosses
become rows, with what is needed to judge them: common mode, encoder overlap, chance levels, and flags for one
concept under two names. A second pass counts all pairs by interference and similarity. Both are exact and
hold no N x N array. Columns: `polysem.store.tables`; the choices behind them: docs/pairs.md.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import PairsConfig
from polysem.errors import ConfigError, MismatchError
from polysem.geometry import JointCounts, benjamini_hochberg, cosine_tail, count_joint, pair_blocks
from polysem.geometry.chance import CovarianceNull, covariance_null_of
from polysem.geometry.rows import Rows, canonical_cosines, prepare_rows, unit_blocks
from polysem.progress import SILENT, Reporter
from polysem.store.schema import Schema
from polysem.store.tables import DENSITY, PAIRS, PARTNERS, SPECTRUM

if TYPE_CHECKING:
    from polysem.saes.base import SAE
else:  # importing it would import torch
    SAE = Any

DUPLICATE_INTERFERENCE = 0.7
"""above this |cosine| two features are likely one concept"""
DUPLICATE_TOKENS = 0.2
"""above this Jaccard overlap of activating tokens they are, too"""
DUPLICATE_FIRING = 0.3
"""above this Jaccard overlap of the tokens on which they fire they are, too"""
DUPLICATE_SWITCH = 0.25
"""above this share of contexts in which writing one switches the other on they are, too"""
DENSE, DEAD = 0.1, 1e-6
"""fractions of tokens beyond which a feature counts as dense, or as dead"""
MOST_PAIRS = 20_000_000
"""pairs over the threshold that are judged together, in about 2 GB; q-values need them all at once"""
_LEVELS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SPECTRUM_THRESHOLDS = (*(-level for level in reversed(_LEVELS)), *_LEVELS)


@dataclass(frozen=True)
class PairMap:
    """The tables of the stage `pairs`, of one SAE."""

    pairs: pa.Table
    """PAIRS"""
    density: pa.Table
    """DENSITY; cells without a pair are left out"""
    spectrum: pa.Table
    """SPECTRUM"""
    partners: pa.Table
    """PARTNERS: every glossed feature, bin and threshold, zeros included"""

    def tables(self) -> dict[str, pa.Table]:
        """The tables by name."""
        return {
            "pairs": self.pairs,
            "density": self.density,
            "spectrum": self.spectrum,
            "partners": self.partners,
        }


@runtime_checkable
class GlossedFeatures(Protocol):
    """The part of the feature table that the map is made from."""

    @property
    def features(self) -> pa.Table: ...
    @property
    def contexts(self) -> pa.Table: ...
    @property
    def embeddings(self) -> Mapping[str, np.ndarray]: ...


def map_pairs(
    sae: SAE, features: GlossedFeatures, *, config: PairsConfig, label: str, reporter: Reporter = SILENT
) -> PairMap:
    """All pairs of one SAE: rows where |interference| >= min_interference and similarity < max_similarity,
    counts elsewhere.

    Args:
        sae: its W_dec [d_sae d_in] and W_enc [d_in d_sae] are read; a zero decoder row has no direction and
            no pairs.
        features: rows of the SAE are those with `sae == label`; features that are missing there have no
            gloss. `embeddings[label]` has one row for each of them, zero where there is no gloss.
        config: thresholds and bins.
        label: name of the SAE in the tables.
        reporter: is told of progress.

    Returns:
        Tables that conform to their schemas; without rows if no pair passes.

    Raises:
        MismatchError: if features repeat, are not in the SAE, or do not match their embeddings.
        ConfigError: if more than `MOST_PAIRS` pairs reach the threshold.
        NumericsError: if a weight or embedding is not finite.
    """
    side = _of_sae(features, label, d_sae=sae.d_sae)
    directions = prepare_rows(sae.W_dec, name=f"W_dec of {label}")
    if directions.live.sum() < 2:
        return PairMap(PAIRS.empty(), DENSITY.empty(), SPECTRUM.empty(), PARTNERS.empty())
    null = covariance_null_of(directions.take(np.flatnonzero(directions.live)))
    found = _mine(sae, side, config, null)
    counts = count_joint(
        sae.W_dec,
        side.embeddings,
        bins=config.bins,
        similarity_thresholds=config.similarity_thresholds,
        reporter=reporter,
    )
    encoders = prepare_rows(sae.W_enc.T, name=f"W_enc of {label}")
    columns = _judged(found, directions, encoders, null, config) | side.overlaps(found)
    return PairMap(
        pairs=_table(PAIRS, {"sae": [label] * len(found.i), **columns}),
        density=_density(counts, label),
        spectrum=_spectrum(counts, null, label),
        partners=_partners(counts, config, label),
    )


@dataclass(frozen=True)
class _Found:
    """Pairs to be written."""

    i: np.ndarray
    j: np.ndarray
    interference: np.ndarray
    similarity: np.ndarray
    q: np.ndarray


@dataclass(frozen=True)
class _Side:
    """What the feature table knows of one SAE."""

    embeddings: np.ndarray
    """[d_sae d_embed], zero rows where there is no gloss"""
    density: np.ndarray
    """[d_sae], nan where it is not known"""
    token_ids: Mapping[int, frozenset[Hashable]]
    token_strings: Mapping[int, frozenset[Hashable]]
    contexts: Mapping[int, frozenset[Hashable]]

    def overlaps(self, found: _Found) -> dict[str, object]:
        """Columns on shared tokens and contexts, and the two flags."""
        ids, strings, contexts = (
            [_jaccard(sets, i, j) for i, j in zip(found.i.tolist(), found.j.tolist(), strict=True)]
            for sets in (self.token_ids, self.token_strings, self.contexts)
        )
        tokens = [a if a is not None else b for a, b in zip(ids, strings, strict=True)]
        shared = np.array([value is not None and value > DUPLICATE_TOKENS for value in tokens], bool)
        odd = (self.density > DENSE) | (self.density < DEAD)
        return {
            "token_overlap": tokens,
            "context_overlap": contexts,
            "is_duplicate": (np.abs(found.interference) > DUPLICATE_INTERFERENCE) | shared,
            "is_dense": odd[found.i] | odd[found.j],
        }


def _of_sae(table: GlossedFeatures, label: str, *, d_sae: int) -> _Side:
    # Embeddings go by the order of the rows, so it is kept.
    rows = table.features.filter(pc.equal(table.features["sae"], label))
    feature = rows["feature"].to_numpy()
    rising = np.sort(feature)
    repeated = rising[1:][rising[1:] == rising[:-1]]
    if len(repeated):
        raise MismatchError(
            f"features of SAE {label!r}: feature {repeated[0]} has more than one row; expected one each",
            hint="make the feature table again: polysem features STUDY.toml",
        )
    if len(feature) and (rising[0] < 0 or rising[-1] >= d_sae):
        outside = rising[0] if rising[0] < 0 else rising[-1]
        raise MismatchError(
            f"features of SAE {label!r}: feature {outside} is not in the SAE; expected 0 to {d_sae - 1}",
            hint="check that the glosses or the feature table were made for this SAE",
        )
    given = table.embeddings.get(label)
    if given is None or len(given) != len(feature):
        seen = "none" if given is None else f"{len(given)} rows"
        raise MismatchError(
            f"gloss embeddings of SAE {label!r}: {seen}; expected {len(feature)}, one per feature; "
            f"there are embeddings for {sorted(table.embeddings)}",
            hint="make the feature table again: polysem features STUDY.toml",
        )
    embeddings = np.zeros((d_sae, given.shape[1]), given.dtype)
    embeddings[feature] = given
    density = np.full(d_sae, np.nan)
    density[feature] = pc.fill_null(rows["density"], np.nan).to_numpy()
    contexts = table.contexts.filter(pc.equal(table.contexts["sae"], label))
    return _Side(
        embeddings, density, _sets(rows, "tokens_in"), _sets(rows, "tokens_in_str"), _places(contexts)
    )


def _sets(rows: pa.Table, column: str) -> dict[int, frozenset[Hashable]]:
    pairs = zip(rows["feature"].to_pylist(), rows[column].to_pylist(), strict=True)
    return {feature: frozenset(values) for feature, values in pairs if values}


def _places(contexts: pa.Table) -> dict[int, frozenset[Hashable]]:
    """Per feature, the places of its peaks: the window's text and the position in it.

    Not the name of the source: exports number each feature's windows anew, so one text would count as many.
    """
    places: dict[int, set[Hashable]] = {}
    columns = (contexts[name].to_pylist() for name in ("feature", "tokens", "position"))
    for feature, tokens, position in zip(*columns, strict=True):
        places.setdefault(feature, set()).add((tuple(tokens), position))
    return {feature: frozenset(found) for feature, found in places.items()}


def _jaccard(sets: Mapping[int, frozenset[Hashable]], i: int, j: int) -> float | None:
    """Shared members over all members; None if one of the two is not known."""
    a, b = sets.get(i), sets.get(j)
    return None if a is None or b is None else len(a & b) / len(a | b)


def _mine(sae: SAE, side: _Side, config: PairsConfig, null: CovarianceNull) -> _Found:
    """Pairs to be written, with q-values over all pairs of the SAE, glossed or not."""
    blocks = pair_blocks(
        sae.W_dec, side.embeddings, min_interference=config.min_interference, max_similarity=None, signed=True
    )
    chance, kept, parts = [np.empty(0)], [np.empty(0, bool)], []
    seen = 0
    for block in blocks:
        seen += len(block.i)
        if seen > MOST_PAIRS:
            raise ConfigError(
                f"more than {MOST_PAIRS:,} pairs have |interference| >= {config.min_interference}; the table of "
                f"pairs is held in memory and expects fewer",
                hint="raise pairs.min_interference, or look for duplicate decoder rows: polysem inspect",
            )
        unlike = block.similarity < config.max_similarity  # nan, where a gloss is missing, is not below
        chance.append(null.p(block.interference))
        kept.append(unlike)
        parts.append([a[unlike] for a in (block.i, block.j, block.interference, block.similarity)])
    q = benjamini_hochberg(np.concatenate(chance), n_tests=null.n_pairs)[np.concatenate(kept)]
    empty = [np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0), np.empty(0)]
    i, j, interference, similarity = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
    return _Found(i, j, interference, similarity, q)


def _judged(
    found: _Found, directions: Rows, encoders: Rows, null: CovarianceNull, config: PairsConfig
) -> dict[str, object]:
    """Columns that are numbers of the geometry."""
    i, j, interference = found.i, found.j, found.interference
    row_mean, demeaned = _common_mode(directions)
    return {
        "i": i,
        "j": j,
        "interference": interference,
        "interference_demeaned": demeaned(i, j, interference),
        "row_mean_i": row_mean[i],
        "row_mean_j": row_mean[j],
        "enc_dec_ij": canonical_cosines(encoders, i, j, other=directions),
        "enc_dec_ji": canonical_cosines(encoders, j, i, other=directions),
        "similarity": found.similarity,
        "interference_bin": _bin(interference, config.bins),
        "z_isotropic": interference * np.sqrt(directions.d),
        "p_isotropic": cosine_tail(interference, d=directions.d, two_sided=True),
        "z_covariance": null.z(interference),
        "p_covariance": null.p(interference),
        "q_covariance": found.q,
    }


def _common_mode(directions: Rows) -> tuple[np.ndarray, Callable[..., np.ndarray]]:
    """Mean cosine of each row with the others, and the function (i, j, cosine) -> cosine without the mean
    row.

    (u - m).(v - m) = u.v - u.m - v.m + m.m, so one number per row is enough and no centred copy is made.
    """
    n = int(directions.live.sum())
    mean = np.zeros(directions.d)
    for _, unit in unit_blocks(directions):
        mean += unit.sum(axis=0)
    mean /= n
    along = np.empty(directions.n)
    for start, unit in unit_blocks(directions):
        along[start : start + len(unit)] = np.einsum("nd,d->n", unit, mean)
    square = float(np.einsum("d,d->", mean, mean))
    row_mean = (n * along - 1) / (n - 1)
    left = 1 - 2 * along + square

    def demeaned(i: np.ndarray, j: np.ndarray, cosine: np.ndarray) -> np.ndarray:
        product = left[i] * left[j]
        out = np.full(len(i), np.nan)  # a row that is the mean has no direction left
        np.divide(
            cosine - along[i] - along[j] + square,
            np.sqrt(np.maximum(product, 0)),
            out=out,
            where=product > 1e-24,
        )
        return np.clip(out, -1.0, 1.0)

    return row_mean, demeaned


def _bin(cosine: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """Index of the bin [a, b); the last one is closed if it ends at 1; -1 outside."""
    index = np.searchsorted(np.asarray(edges), cosine, side="right") - 1
    index[(index == len(edges) - 1) & (edges[-1] == 1) & (cosine == 1)] = len(edges) - 2
    return np.where(index < len(edges) - 1, index, -1).astype(np.int8)


def _density(counts: JointCounts, label: str) -> pa.Table:
    a, b = np.nonzero(counts.histogram)
    return _table(
        DENSITY,
        {
            "sae": [label] * len(a),
            "interference_lo": counts.edges[a],
            "interference_hi": counts.edges[a + 1],
            "similarity_lo": counts.edges[b],
            "similarity_hi": counts.edges[b + 1],
            "count": counts.histogram[a, b],
        },
    )


def _spectrum(counts: JointCounts, null: CovarianceNull, label: str) -> pa.Table:
    thresholds = np.array(SPECTRUM_THRESHOLDS)
    n = len(thresholds)
    return _table(
        SPECTRUM,
        {
            "sae": [label] * n,
            "threshold": thresholds,
            "n_pairs": [counts.above(float(t)) for t in thresholds],
            "n_isotropic": null.n_pairs * cosine_tail(np.abs(thresholds), d=null.d),
            "n_covariance": [null.expected_above(float(t)) for t in thresholds],
            "d_in": [null.d] * n,
            "d_eff": [null.d_eff] * n,
            "mean_norm": [null.mean_norm] * n,
        },
    )


def _partners(counts: JointCounts, config: PairsConfig, label: str) -> pa.Table:
    features = np.flatnonzero(counts.glossed)
    n_bins, n_levels = counts.partners.shape[1:]
    feature, index, level = (
        axis.ravel() for axis in np.meshgrid(features, np.arange(n_bins), np.arange(n_levels), indexing="ij")
    )
    return _table(
        PARTNERS,
        {
            "sae": [label] * len(feature),
            "feature": feature,
            "max_similarity": np.asarray(config.similarity_thresholds)[level],
            "interference_bin": index.astype(np.int8),
            "count": counts.partners[feature, index, level],
        },
    )


def _table(schema: Schema, columns: dict[str, object]) -> pa.Table:
    arrays = {c.name: pa.array(columns[c.name], type=c.dtype) for c in schema.columns}
    return schema.conform(pa.table(arrays))
