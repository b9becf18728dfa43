"""The map of pairs of one SAE, or of two: which features lie close in the residual stream though their glosses do
not.

One pass over all pairs finds those with |interference| at least the threshold; those with unlike glosses
become rows, with what is needed to judge them: shared mean direction, encoder overlap, chance levels, and flags for one
concept under two names. A second pass counts all pairs by interference and similarity. Both are exact and
hold no N x N array. Columns: `polysem.store.tables`; the choices behind them: docs/pairs.md.
"""

from collections.abc import Hashable, Mapping, Sequence
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
from polysem.store.result import Result
from polysem.store.schema import Schema
from polysem.store.tables import DENSITY, NEAR, PAIRS, PARTNERS, SPECTRUM

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


@dataclass(frozen=True, repr=False)
class PairMap(Result):
    """The tables of the stage `pairs`, of one SAE or of two."""

    pairs: pa.Table
    """PAIRS"""
    density: pa.Table
    """DENSITY; cells without a pair are left out"""
    spectrum: pa.Table
    """SPECTRUM"""
    partners: pa.Table
    """PARTNERS: every glossed feature, bin and threshold, zeros included"""


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
    sae: SAE,
    features: GlossedFeatures,
    *,
    config: PairsConfig,
    label: str,
    other: SAE | None = None,
    other_label: str = "",
    reporter: Reporter = SILENT,
) -> PairMap:
    """All pairs of one SAE, or of a feature of one with a feature of another: rows where |interference| >=
    min_interference and similarity < max_similarity, counts elsewhere.

    Args:
        sae: its W_dec [d_sae d_in] and W_enc [d_in d_sae] are read; a zero decoder row has no direction and
            no pairs.
        features: rows of the SAE are those with `sae == label`; features that are missing there have no
            gloss. `embeddings[label]` has one row for each of them, zero where there is no gloss.
        config: thresholds and bins.
        label: name of the SAE in the tables.
        other: another dictionary, whose features are the j; it writes to a space of the same width. None:
            pairs i < j of `sae`.
        other_label: its name in the tables.
        reporter: is told of progress.

    Returns:
        Tables that conform to their schemas; without rows if no pair passes.

    Raises:
        MismatchError: if features repeat, are not in the SAE, or do not match their embeddings; if two
            dictionaries differ in width or share a label.
        ConfigError: if more than `MOST_PAIRS` pairs reach the threshold.
        NumericsError: if a weight or embedding is not finite.
    """
    left = right = _Side.of(sae, features, label)
    if other is not None:
        right = _Side.of(other, features, other_label)
        _check_two(sae, other, label, other_label)
    least = 2 if right is left else 1
    if min(int(side.directions.live.sum()) for side in (left, right)) < least:
        return PairMap(PAIRS.empty(), DENSITY.empty(), SPECTRUM.empty(), PARTNERS.empty())
    null = covariance_null_of(left.live, None if right is left else right.live)
    against = None if other is None else (other.W_dec, right.embeddings)
    found = _mine(sae, left, against, config, null)
    counts = count_joint(
        sae.W_dec,
        left.embeddings,
        bins=config.bins,
        similarity_thresholds=config.similarity_thresholds,
        against=against,
        reporter=reporter,
    )
    named = {"sae": label, "sae_j": right.label}
    return PairMap(
        pairs=_table(
            PAIRS, named | _judged(found, left, right, null, config) | _overlaps(found, left, right)
        ),
        density=_density(counts, named),
        spectrum=_spectrum(counts, null, named),
        partners=_partners(counts, config, left, right),
    )


def near_vectors(
    vectors: Mapping[str, SAE], sae: SAE, features: pa.Table, *, config: PairsConfig, label: str
) -> pa.Table:
    """NEAR: the features of an SAE that lie close to steering vectors of its width, by |interference|. A vector has no gloss, so
    that nothing is said of meanings.

    Args:
        vectors: dictionaries of one feature by name.
        sae: whose W_dec [d_sae d_in] is compared.
        features: FEATURES.
        config: `min_interference`.
        label: of the SAE in the tables.
    """
    own = features.filter(pc.equal(features["sae"], label))
    gloss = dict(zip(own["feature"].to_pylist(), own["gloss"].to_pylist(), strict=True))
    rows = []
    for name, vector in vectors.items():
        if vector.d_out != sae.d_out:
            continue
        along = vector.W_dec[0].detach().cpu().double().numpy()
        cosine = _along(prepare_rows(sae.W_dec, name=f"W_dec of {label}"), along / np.linalg.norm(along))
        close = np.flatnonzero(np.abs(cosine) >= config.min_interference)
        chance = cosine_tail(cosine[close], d=sae.d_out, two_sided=True)
        rows += [
            {"sae": label, "vector": name, "feature": k, "interference": float(cosine[k])}
            | {
                "z_isotropic": float(cosine[k]) * np.sqrt(sae.d_out),
                "p_isotropic": float(p),
                "gloss": gloss.get(k),
            }
            for k, p in zip(close.tolist(), chance, strict=True)
        ]
    return NEAR.of(rows)


def _check_two(sae: SAE, other: SAE, label: str, other_label: str) -> None:
    if label == other_label:
        raise MismatchError(
            f"two dictionaries share the label {label!r}; expected one each", hint="leave `other` out"
        )
    widths = {sae.d_in, sae.d_out, other.d_in, other.d_out}
    if len(widths) > 1:
        raise MismatchError(
            f"{label} reads {sae.d_in} and writes {sae.d_out} numbers, {other_label} {other.d_in} and "
            f"{other.d_out}; expected one width",
            hint="take dictionaries of sites of one width",
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
    """One dictionary, and what the feature table knows of it."""

    label: str
    directions: Rows
    encoders: Rows
    embeddings: np.ndarray
    """[d_sae d_embed], zero rows where there is no gloss"""
    density: np.ndarray
    """[d_sae], nan where it is not known"""
    token_ids: Mapping[int, frozenset[Hashable]]
    token_strings: Mapping[int, frozenset[Hashable]]
    contexts: Mapping[int, frozenset[Hashable]]

    @classmethod
    def of(cls, sae: SAE, table: GlossedFeatures, label: str) -> "_Side":
        # Embeddings go by the order of the rows, so it is kept.
        rows = table.features.filter(pc.equal(table.features["sae"], label))
        feature, d_sae = rows["feature"].to_numpy(), sae.d_sae
        _check_features(feature, label, d_sae=d_sae)
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
        return cls(
            label,
            prepare_rows(sae.W_dec, name=f"W_dec of {label}"),
            prepare_rows(sae.W_enc.T, name=f"W_enc of {label}"),
            embeddings,
            density,
            _sets(rows, "tokens_in"),
            _sets(rows, "tokens_in_str"),
            _places(table.contexts.filter(pc.equal(table.contexts["sae"], label))),
        )

    @property
    def live(self) -> Rows:
        """Rows that have a direction."""
        return self.directions.take(np.flatnonzero(self.directions.live))

    @property
    def odd(self) -> np.ndarray:
        """Features that are dense or dead [d_sae]."""
        return (self.density > DENSE) | (self.density < DEAD)


def _check_features(feature: np.ndarray, label: str, *, d_sae: int) -> None:
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


def _overlaps(found: _Found, left: _Side, right: _Side) -> dict[str, object]:
    """Columns on shared tokens and contexts, and the two flags."""
    pairs = list(zip(found.i.tolist(), found.j.tolist(), strict=True))
    ids, strings, contexts = (
        [_jaccard(of_i.get(i), of_j.get(j)) for i, j in pairs]
        for of_i, of_j in (
            (left.token_ids, right.token_ids),
            (left.token_strings, right.token_strings),
            (left.contexts, right.contexts),
        )
    )
    tokens = [a if a is not None else b for a, b in zip(ids, strings, strict=True)]
    shared = np.array([value is not None and value > DUPLICATE_TOKENS for value in tokens], bool)
    return {
        "token_overlap": tokens,
        "context_overlap": contexts,
        "is_duplicate": (np.abs(found.interference) > DUPLICATE_INTERFERENCE) | shared,
        "is_dense": left.odd[found.i] | right.odd[found.j],
    }


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


def _jaccard(a: frozenset[Hashable] | None, b: frozenset[Hashable] | None) -> float | None:
    """Shared members over all members; None if one of the two is not known."""
    return None if a is None or b is None else len(a & b) / len(a | b)


def _mine(
    sae: SAE,
    side: _Side,
    against: tuple[Any, np.ndarray] | None,
    config: PairsConfig,
    null: CovarianceNull,
) -> _Found:
    """Pairs to be written, with q-values over all pairs of the SAE, glossed or not."""
    blocks = pair_blocks(
        sae.W_dec,
        side.embeddings,
        min_interference=config.min_interference,
        max_similarity=None,
        against=against,
        signed=True,
    )
    chance, kept, parts = [np.empty(0)], [np.empty(0, bool)], []
    seen = 0
    for block in blocks:
        seen += len(block.i)
        if seen > MOST_PAIRS:
            raise ConfigError(
                f"more than {MOST_PAIRS:,} pairs have |interference| >= {config.min_interference}; the table of "
                f"pairs is held in memory and expects fewer",
                hint="raise pairs.min_interference",
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
    found: _Found, left: _Side, right: _Side, null: CovarianceNull, config: PairsConfig
) -> dict[str, object]:
    """Columns that are numbers of the geometry."""
    i, j, interference = found.i, found.j, found.interference
    return {
        "i": i,
        "j": j,
        "interference": interference,
        **_without_means(found, left.directions, right.directions),
        "enc_dec_ij": canonical_cosines(left.encoders, i, j, other=right.directions),
        "enc_dec_ji": canonical_cosines(right.encoders, j, i, other=left.directions),
        "similarity": found.similarity,
        "interference_bin": _bin(interference, config.bins),
        "z_isotropic": interference * np.sqrt(null.d),
        "p_isotropic": cosine_tail(interference, d=null.d, two_sided=True),
        "z_covariance": null.z(interference),
        "p_covariance": null.p(interference),
        "q_covariance": found.q,
    }


def _without_means(found: _Found, left: Rows, right: Rows) -> dict[str, object]:
    """Mean cosine of each row with those it is paired with, and the cosines without the mean rows m and m'.

    (u - m).(v - m') = u.v - u.m' - v.m + m.m', so a few numbers per row are enough and no centred copy is made.
    """
    i, j = found.i, found.j
    mean_i = _mean_row(left)
    along_i = _along(left, mean_i)
    square_i = shared = float(np.einsum("d,d->", mean_i, mean_i))
    if right is left:
        n = int(left.live.sum())
        across_i = across_j = along_j = along_i
        square_j = square_i
        row_mean_i = row_mean_j = (n * along_i - 1) / (n - 1)
    else:
        mean_j = _mean_row(right)
        along_j = _along(right, mean_j)
        square_j, shared = (float(np.einsum("d,d->", mean, mean_j)) for mean in (mean_j, mean_i))
        across_i, across_j = row_mean_i, row_mean_j = _along(left, mean_j), _along(right, mean_i)
    product = (1 - 2 * along_i + square_i)[i] * (1 - 2 * along_j + square_j)[j]
    demeaned = np.full(len(i), np.nan)  # a row that is the mean has no direction left
    np.divide(
        found.interference - across_i[i] - across_j[j] + shared,
        np.sqrt(np.maximum(product, 0)),
        out=demeaned,
        where=product > 1e-24,
    )
    return {
        "interference_demeaned": np.clip(demeaned, -1.0, 1.0),
        "row_mean_i": row_mean_i[i],
        "row_mean_j": row_mean_j[j],
    }


def _mean_row(rows: Rows) -> np.ndarray:
    """Mean of the unit rows that have a direction [d]."""
    total = np.zeros(rows.d)
    for _, unit in unit_blocks(rows):
        total += unit.sum(axis=0)
    return total / int(rows.live.sum())


def _along(rows: Rows, mean: np.ndarray) -> np.ndarray:
    """Dot products of the unit rows with a mean row [n]."""
    along = np.empty(rows.n)
    for start, unit in unit_blocks(rows):
        along[start : start + len(unit)] = np.einsum("nd,d->n", unit, mean)
    return along


def _bin(cosine: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """Index of the bin [a, b); the last one is closed if it ends at 1; -1 outside."""
    index = np.searchsorted(np.asarray(edges), cosine, side="right") - 1
    index[(index == len(edges) - 1) & (edges[-1] == 1) & (cosine == 1)] = len(edges) - 2
    return np.where(index < len(edges) - 1, index, -1).astype(np.int8)


def _density(counts: JointCounts, named: Mapping[str, str]) -> pa.Table:
    a, b = np.nonzero(counts.histogram)
    edges = {
        "interference_lo": counts.edges[a],
        "interference_hi": counts.edges[a + 1],
        "similarity_lo": counts.edges[b],
        "similarity_hi": counts.edges[b + 1],
    }
    return _table(DENSITY, {**named, **edges, "count": counts.histogram[a, b]})


def _spectrum(counts: JointCounts, null: CovarianceNull, named: Mapping[str, str]) -> pa.Table:
    thresholds = np.array(SPECTRUM_THRESHOLDS)
    return _table(
        SPECTRUM,
        {
            **named,
            "threshold": thresholds,
            "n_pairs": [counts.above(float(t)) for t in thresholds],
            "n_isotropic": null.n_pairs * cosine_tail(np.abs(thresholds), d=null.d),
            "n_covariance": [null.expected_above(float(t)) for t in thresholds],
            "n_covariance_se": [null.expected_se(float(t)) for t in thresholds],
            "d_in": null.d,
            "d_eff": null.d_eff,
            "mean_norm": null.mean_norm,
        },
    )


def _partners(counts: JointCounts, config: PairsConfig, left: _Side, right: _Side) -> pa.Table:
    """Of the features of one dictionary, and of the other if there is one."""
    sides = [(left.label, right.label, counts.partners, counts.glossed)]
    if right is not left:
        sides.append((right.label, left.label, counts.partners_j, counts.glossed_j))
    parts = []
    for label, partners_of, partners, glossed in sides:
        n_bins, n_levels = partners.shape[1:]
        axes = np.meshgrid(np.flatnonzero(glossed), np.arange(n_bins), np.arange(n_levels), indexing="ij")
        feature, index, level = (axis.ravel() for axis in axes)
        columns = {
            "sae": label,
            "sae_j": partners_of,
            "feature": feature,
            "max_similarity": np.asarray(config.similarity_thresholds)[level],
            "interference_bin": index.astype(np.int8),
            "count": partners[feature, index, level],
        }
        parts.append(_table(PARTNERS, columns))
    return PARTNERS.conform(pa.concat_tables(parts))


def _table(schema: Schema, columns: Mapping[str, Any]) -> pa.Table:
    """A table of columns; a single text or number is a column of it."""
    n = next(len(value) for value in columns.values() if not isinstance(value, str | float | int))
    whole = {k: [v] * n if isinstance(v, str | float | int) else v for k, v in columns.items()}
    return schema.conform(pa.table({c.name: pa.array(whole[c.name], type=c.dtype) for c in schema.columns}))
