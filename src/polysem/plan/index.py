"""What is known of one SAE's features before anything is steered: geometry, glosses, tokens, contexts, pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from polysem.act.base import length
from polysem.act.snippets import Contexts
from polysem.errors import MismatchError
from polysem.hierarchy.known import Kinds
from polysem.pairs import DEAD, DENSE, DUPLICATE_INTERFERENCE, DUPLICATE_TOKENS
from polysem.saes.base import SAE
from polysem.vocabulary import TOKEN_SETS

L = TypeVar("L")
Own = TypeVar("Own", covariant=True)
_BLOCK = 8192
N_DECILES = 10
MINED = (
    "sae",
    "sae_j",
    "i",
    "j",
    "interference",
    "similarity",
    "interference_bin",
    "is_duplicate",
    "is_dense",
)
"""columns of PAIRS that planning reads"""


@runtime_checkable
class FeatureRows(Protocol):
    """The part of the feature table that running reads."""

    @property
    def features(self) -> pa.Table:
        """FEATURES."""
        ...


@runtime_checkable
class Features(FeatureRows, Protocol):
    """The feature table, as planning reads it: a `FeatureTable`, or the tables that a run has stored."""

    @property
    def glosses(self) -> pa.Table:
        """GLOSSES."""
        ...

    @property
    def contexts(self) -> pa.Table:
        """CONTEXTS."""
        ...

    @property
    def clusters(self) -> pa.Table:
        """CLUSTERS."""
        ...

    @property
    def embeddings(self) -> Mapping[str, np.ndarray]:
        """By SAE label, a row per row of its part of `features`."""
        ...


@runtime_checkable
class PairTables(Protocol):
    """The part of the map of pairs that planning reads: PAIRS, of which the columns `MINED` are enough, and PARTNERS."""

    @property
    def pairs(self) -> pa.Table: ...
    @property
    def partners(self) -> pa.Table: ...


@runtime_checkable
class ByDictionary(Protocol[Own]):
    """Stored tables that can be read one dictionary at a time: those of a large grid are gigabytes together."""

    def only(self, label: str) -> Own:
        """The rows of one dictionary."""
        ...


@dataclass(frozen=True)
class FeatureIndex:
    """What is known of one SAE's features, as arrays over all rows of W_dec (absent features are
    unusable)."""

    label: str
    sae: SAE
    density: Float[np.ndarray, " d_sae"]
    """NaN where unknown"""
    tokens_in: list[frozenset[int]]
    tokens_out: list[frozenset[int]]
    embeddings: Float[np.ndarray, "d_sae d_embed"]
    """of the glosses, of any length; zero rows where there is none"""
    mined: pa.Table
    """rows of PAIRS of this SAE; the columns `MINED`"""
    partners: pa.Table
    """rows of PARTNERS of this SAE"""
    texts_in: list[tuple[str, ...]] = field(default_factory=list)
    """the tokens of `tokens_in` as text; empty for a feature without, and where they are not known"""
    contexts: Contexts = field(default_factory=lambda: Contexts({}, {}, {}))
    max_act: Float[np.ndarray, " d_sae"] = field(default_factory=lambda: np.empty(0))
    """largest activation seen of every feature; NaN where unknown"""
    excluded: Kinds = field(default_factory=dict[tuple[int, int], str])
    """pairs that are not drawn for the relation that they have"""

    @classmethod
    def of(
        cls,
        label: str,
        sae: SAE,
        *,
        features: pa.Table,
        embeddings: np.ndarray,
        pairs: pa.Table,
        partners: pa.Table,
        contexts: pa.Table,
        excluded: Kinds | None = None,
    ) -> "FeatureIndex":
        """The index of one SAE from whole tables; `embeddings` has a row per row of its part of `features`.

        Raises:
            MismatchError: if tables, embeddings and SAE do not belong together.
        """
        own = features.filter(pc.equal(features["sae"], label))
        ids = own["feature"].to_numpy().astype(np.int64)
        if len(ids) != len(embeddings):
            raise MismatchError(
                f"SAE {label!r}: {len(ids)} features but {len(embeddings)} rows of gloss embeddings; "
                "expected as many",
                hint="polysem features STUDY.toml",
            )
        if len(ids) and (ids.min() < 0 or ids.max() >= sae.d_sae):
            raise MismatchError(
                f"SAE {label!r} has features 0 to {sae.d_sae - 1} but the feature table goes "
                f"from {ids.min()} to {ids.max()}",
                hint="polysem features STUDY.toml, with the SAE that is loaded now",
            )
        density = np.full(sae.d_sae, np.nan)
        density[ids] = own["density"].to_numpy(zero_copy_only=False)
        placed = np.zeros((sae.d_sae, embeddings.shape[1]), dtype=embeddings.dtype)
        glossed = ~own["gloss"].is_null().to_numpy()
        placed[ids[glossed]] = embeddings[glossed]
        known = np.zeros(sae.d_sae, dtype=bool)
        known[ids] = True
        density[~known] = 0.0  # a feature without a row is as good as dead
        return cls(
            label=label,
            sae=sae,
            density=density,
            embeddings=placed,
            mined=_within(pairs.select(list(MINED)), label),
            partners=_within(partners, label),
            contexts=Contexts.of(label, contexts),
            excluded=excluded or {},
            max_act=_placed(sae.d_sae, ids, own["max_act"].to_numpy(zero_copy_only=False)),
            tokens_in=_lists(frozenset, sae.d_sae, ids, own["tokens_in"]),
            tokens_out=_lists(frozenset, sae.d_sae, ids, own["tokens_out"]),
            texts_in=_lists(tuple, sae.d_sae, ids, own["tokens_in_str"]),
        )

    @cached_property
    def norms(self) -> Float[np.ndarray, " d_sae"]:
        """Norms of the decoder rows, float64."""
        W_dec = self.sae.W_dec.detach().cpu()
        rows = (W_dec[k : k + _BLOCK].double() for k in range(0, len(W_dec), _BLOCK))
        return np.concatenate([length(block).numpy() for block in rows])

    @cached_property
    def usable(self) -> Bool[np.ndarray, " d_sae"]:
        """Neither dead nor dense (an unknown density passes), with a direction."""
        alive = np.isnan(self.density) | ((self.density >= DEAD) & (self.density <= DENSE))
        return alive & np.isfinite(self.norms) & (self.norms > 0)

    @cached_property
    def glossed(self) -> Bool[np.ndarray, " d_sae"]:
        return np.abs(self.embeddings).max(axis=1, initial=0.0) > 0

    def tokens_of(self, token_set: str) -> list[frozenset[int]]:
        """The tokens of every feature that a token set reads."""
        return {"tokens_in": self.tokens_in, "tokens_out": self.tokens_out}[TOKEN_SETS[token_set].column]

    def share_of(self, words: frozenset[str]) -> Float[np.ndarray, " d_sae"]:
        """Of the tokens that activate a feature, the share that are one of the words, whole; 0 without tokens."""
        said = [[text.strip().casefold() in words for text in texts] for texts in self.texts_in]
        return np.array([sum(hits) / len(hits) if hits else 0.0 for hits in said])

    @cached_property
    def deciles(self) -> Int[np.ndarray, " d_sae"]:
        return density_deciles(self.density)

    def alignments(self, targets: Sequence[int]) -> Float[np.ndarray, "n_targets d_sae"]:
        """Cosine of every decoder row with each target's, float64; 0 for a row without direction."""
        return cosines(self.sae.W_dec.detach().cpu().float().numpy(), targets)

    def similarities(self, targets: Sequence[int]) -> Float[np.ndarray, "n_targets d_sae"]:
        """Gloss similarity of every feature with each target; NaN where either has no gloss."""
        both = self.glossed[None, :] & self.glossed[list(targets), None]
        return np.where(both, cosines(self.embeddings, targets), np.nan)

    def duplicates(self, target: int, alignment: Float[np.ndarray, " d_sae"]) -> Bool[np.ndarray, " d_sae"]:
        """Features that are likely the target's own concept: by angle, by shared tokens, or as the map of
        pairs says."""
        own = self.tokens_in[target]
        overlap = [len(own & other) / len(own | other) if own and other else 0.0 for other in self.tokens_in]
        result = (np.abs(alignment) > DUPLICATE_INTERFERENCE) | (np.array(overlap) > DUPLICATE_TOKENS)
        partner, rows = self.mined_with(target)
        result[partner[rows["is_duplicate"].to_numpy(zero_copy_only=False)]] = True
        return result

    def kin(self, target: int) -> Mapping[int, str]:
        """Features that are not drawn as the target's sources -> the relation for which they are not."""
        return {i + j - target: kind for (i, j), kind in self.excluded.items() if target in (i, j)}

    def mined_with(self, target: int) -> tuple[Int[np.ndarray, " n"], pa.Table]:
        """Partners of the target in the map of pairs, and their rows."""
        rows = self.mined.filter(pc.or_(pc.equal(self.mined["i"], target), pc.equal(self.mined["j"], target)))
        i, j = rows["i"].to_numpy().astype(np.int64), rows["j"].to_numpy().astype(np.int64)
        return np.where(i == target, j, i), rows


def cosines(rows: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    """Cosine of every row with each of some rows, in float64 block by block; 0 for a zero row.

    One product per target and block, so that a target's numbers do not depend on which others are asked for.
    """
    wanted = rows[list(targets)].astype(np.float64)
    wanted /= np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    result = np.zeros((len(wanted), len(rows)))
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK].astype(np.float64)
        norms = np.linalg.norm(block, axis=1)
        for found, target in zip(result, wanted, strict=True):
            np.divide(block @ target, norms, out=found[start : start + _BLOCK], where=norms > 0)
    return result


def density_deciles(density: Float[np.ndarray, " d_sae"]) -> Int[np.ndarray, " d_sae"]:
    """Decile (0 to 9) of each feature among those with a known density above zero; -1 where unknown or zero.

    Equal densities share a decile.
    """
    result = np.full(len(density), -1, dtype=np.int64)
    alive = np.isfinite(density) & (density > 0)
    if alive.any():
        edges = np.quantile(density[alive], np.linspace(0, 1, N_DECILES + 1)[1:-1])
        result[alive] = np.searchsorted(edges, density[alive], side="right")
    return result


def _within(table: pa.Table, label: str) -> pa.Table:
    """Rows of PAIRS or PARTNERS whose features are of one dictionary; no copy if that is all of them."""
    own = pc.and_(pc.equal(table["sae"], label), pc.equal(table["sae_j"], label))
    return table if pc.all(own).as_py() else table.filter(own)


def _placed(size: int, ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    result = np.full(size, np.nan)
    result[ids] = values
    return result


def _lists(kind: Callable[[list[Any]], L], size: int, ids: np.ndarray, lists: pa.ChunkedArray) -> list[L]:
    result = [kind([])] * size
    for start in range(0, len(ids), _BLOCK):
        some = lists.slice(start, _BLOCK).to_pylist()
        for feature, values in zip(ids[start : start + _BLOCK].tolist(), some, strict=True):
            result[feature] = kind(values or [])
    return result
