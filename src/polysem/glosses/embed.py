"""Glosses to vectors: each distinct text once, known texts from the cache, one mean vector per feature.

Cost: MiniLM on two cores embeds some hundred glosses a second; a cache hit costs a file read.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from jaxtyping import Float, Int

from polysem.errors import ConfigError, FormatError, MismatchError, NumericsError
from polysem.glosses.base import Gloss
from polysem.glosses.cache import VectorCache
from polysem.glosses.embedders import Embedder, open_embedder
from polysem.http import Retries
from polysem.profiling import counts_as
from polysem.progress import SILENT, Reporter

log = logging.getLogger(__name__)

EXPORT = "export"
_WRITE_EVERY = 1024
"""texts after which vectors are written to the cache, so that a killed run loses little"""


@dataclass(frozen=True)
class Embedded:
    """Unit vectors and the embedder that made them, as it goes into manifests."""

    vectors: Float[np.ndarray, "n d"]
    """rows of length 1; rows of zeros where there was nothing to embed"""
    name: str
    sha256: str
    """of the weights; of a served model's name and address; of the vectors where an export carried them"""


def embed_texts(
    texts: Sequence[str],
    embedder: str,
    *,
    cache: Path | None,
    api_key: str | None = None,
    client: httpx.Client | None = None,
    retries: Retries | None = None,
    reporter: Reporter = SILENT,
) -> Embedded:
    """Unit vectors of texts, one row each, in their order.

    Args:
        texts: not blank; repeated texts are embedded once.
        embedder: `minilm`, `sentence-transformers:NAME` or `openai:MODEL[@URL]`.
        cache: folder of the cache; None keeps nothing.
        api_key: key of a served model; None looks into the environment (see `glosses/embedders.py`).
        client: for served models; None makes one.
        retries: for served models.

    Raises:
        ConfigError: unknown embedder, or a blank text.
        UnknownReferenceError: the model is not there or does not answer.
        NumericsError: the embedder gave a vector that is zero or not finite.
        StoreError: the cache is damaged or cannot be written.
    """
    if embedder == EXPORT:
        raise ConfigError("the embedder 'export' has vectors of glosses, not of any text; use embed_glosses")
    blank = next((n for n, text in enumerate(texts) if not text.strip()), None)
    if blank is not None:
        raise ConfigError(f"text {blank} is blank: there is nothing to embed")
    opened = open_embedder(embedder, api_key=api_key, client=client, retries=retries)
    kept = None if cache is None else VectorCache(cache, name=opened.name, sha256=opened.sha256)
    # Sorted: what is computed does not depend on the order in which the texts came.
    distinct = sorted(set(texts))
    known = kept.find(distinct) if kept else {}
    known |= _compute([t for t in distinct if t not in known], opened, kept, reporter)
    vectors = np.stack([known[t] for t in texts]) if texts else np.zeros((0, 0), dtype=np.float32)
    return Embedded(vectors, opened.name, opened.sha256)


@counts_as("embedding")
def _compute(
    texts: list[str], embedder: Embedder, cache: VectorCache | None, reporter: Reporter
) -> dict[str, np.ndarray]:
    """Vectors of texts by text, written to the cache as they come."""
    done: dict[str, np.ndarray] = {}
    waiting: dict[str, np.ndarray] = {}
    if not texts:
        return done
    progress = iter(reporter.track(range(len(texts)), total=len(texts), label="embed glosses"))
    try:
        for batch in embedder.batches(texts):
            for index, vector in zip(
                batch.indices, unit_rows(batch.vectors, what=embedder.name), strict=True
            ):
                waiting[texts[index]] = vector
                next(progress, None)
            if len(waiting) >= _WRITE_EVERY:
                if cache is not None:
                    cache.add(waiting)
                done |= waiting
                waiting = {}
    finally:  # what was paid for is kept, whatever comes after
        if cache is not None and waiting:
            cache.add(waiting)
    done |= waiting
    next(progress, None)
    return done


def unit_rows(vectors: Float[np.ndarray, "n d"], *, what: str) -> Float[np.ndarray, "n d"]:
    """Rows at length 1, float32. Raises NumericsError, naming `what`, for a row that is zero or "
    "not finite."""
    wide = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if wrong.size:
        raise NumericsError(
            f"{what}: vector {wrong[0]} has length {norms[wrong[0], 0]}; expected a finite one above 0"
        )
    return (wide / norms).astype(np.float32)


def embed_glosses(
    glosses: Sequence[Gloss],
    features: Int[np.ndarray, " n"],
    embedder: str,
    *,
    cache: Path | None,
    api_key: str | None = None,
    client: httpx.Client | None = None,
    reporter: Reporter = SILENT,
) -> Embedded:
    """One unit vector per feature: the mean of its glosses' unit vectors, as in the paper's code (protocol
    1.3), brought to length 1.

    Args:
        glosses: of one SAE, any number per feature.
        features: the rows wanted, in order; features without a gloss give rows of zeros.
        embedder: as in `embed_texts`, or `export` for the vectors that the glosses carry.
        reporter: as in `embed_texts`.

    Raises:
        ConfigError: `export` without any vector.
        FormatError: carried vectors of different lengths.
        MismatchError: a gloss of a feature that is not among `features`.
    """
    row_of = {int(feature): row for row, feature in enumerate(features)}
    stray = next((g for g in glosses if g.feature not in row_of), None)
    if stray is not None:
        raise MismatchError(
            f"a gloss from {stray.source} is of feature {stray.feature}, which is not in the feature table"
        )
    if embedder == EXPORT:
        used, vectors = _carried(glosses)
        name, sha256 = EXPORT, hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest()
    else:
        used = list(glosses)
        whole = embed_texts(
            [g.text for g in used], embedder, cache=cache, api_key=api_key, client=client, reporter=reporter
        )
        vectors, name, sha256 = whole.vectors, whole.name, whole.sha256
    return Embedded(_mean_by_feature(used, vectors, row_of), name, sha256)


def _carried(glosses: Sequence[Gloss]) -> tuple[list[Gloss], np.ndarray]:
    """The glosses that carry a vector, and the vectors at length 1 [n d]."""
    used = [g for g in glosses if g.embedding is not None and g.embedding.any()]
    vectors = [g.embedding for g in used if g.embedding is not None]
    if not used:
        raise ConfigError(
            f"embedder = 'export', but none of {len(glosses)} glosses carries a vector",
            hint="set glosses.embedder = 'minilm'",
        )
    widths = sorted({len(v) for v in vectors})
    if len(widths) > 1:
        raise FormatError(
            f"{used[0].source}: embeddings have different lengths {widths}; expected one",
            hint="embedder = 'minilm'",
        )
    without = {g.feature for g in glosses} - {g.feature for g in used}
    if without:
        log.warning(
            "%d features have glosses but no vector in the export; they take part in no pair", len(without)
        )
    return used, unit_rows(np.stack(vectors), what="export")


def _mean_by_feature(glosses: list[Gloss], vectors: np.ndarray, row_of: dict[int, int]) -> np.ndarray:
    sums = np.zeros((len(row_of), vectors.shape[1]), dtype=np.float64)
    rows = np.array([row_of[g.feature] for g in glosses], dtype=np.int64)
    np.add.at(sums, rows, vectors)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    opposite = [row for row in np.unique(rows) if norms[row] < 1e-6]
    if opposite:
        raise NumericsError(
            f"the glosses of row {opposite[0]} have opposite vectors: their mean has no direction"
        )
    return (sums / np.where(norms > 0, norms, 1.0)).astype(np.float32)
