"""SIMILARITIES as arrays, and where each measure's limit lies. Apart from what takes the measures, so that estimates import no
embedder."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from polysem.vocabulary import similarity


class SimilarityGrid(NamedTuple):
    """SIMILARITIES as one row for every pair and one column for every measure, the study's own first."""

    measures: tuple[str, ...]
    pairs: list[tuple[str, int, int]]
    """(sae, target, source)"""
    random: Bool[np.ndarray, " n"]
    """pairs drawn at random, by which the others are judged"""
    values: Float[np.ndarray, "n measures"]
    limit: Float[np.ndarray, "n measures"]
    """above which the pair is related"""
    halves: Float[np.ndarray, "n measures 2"]
    split: tuple[str, ...]
    """what the halves of every measure are"""
    made_by: tuple[str, ...]

    @classmethod
    def of(cls, table: pa.Table, *, covariates: bool = False) -> "SimilarityGrid":
        """Of a table SIMILARITIES: of its measures of similarity, or of its covariates."""
        rows = [r for r in table.to_pylist() if similarity(r["measure"])[0].covariate == covariates]
        named = {r["place"]: r for r in rows}
        measures = tuple(named[place]["measure"] for place in sorted(named))
        place = {name: k for k, name in enumerate(measures)}
        pairs = {(r["sae"], r["target"], r["source"]): r["random"] for r in rows}
        row = {pair: k for k, pair in enumerate(pairs)}
        whole = np.full((len(pairs), len(measures), 4), np.nan)
        for r in rows:
            taken = [np.nan if r[c] is None else r[c] for c in ("value", "limit", "half_1", "half_2")]
            whole[row[r["sae"], r["target"], r["source"]], place[r["measure"]]] = taken
        split, made_by = (tuple(named[k][name] for k in sorted(named)) for name in ("split", "made_by"))
        random = np.array(list(pairs.values()), dtype=bool)
        return cls(
            measures, list(pairs), random, whole[:, :, 0], whole[:, :, 1], whole[:, :, 2:], split, made_by
        )

    def limits(self, max_similarity: float) -> Float[np.ndarray, "n measures"]:
        """`limit_of` every measure, of the random pairs of each pair's own SAE; of the first, `max_similarity` itself."""
        result = np.full(self.values.shape, np.nan)
        sae = np.array([pair[0] for pair in self.pairs])
        for label in set(sae.tolist()):
            drawn = self.values[self.random & (sae == label)]
            result[sae == label] = [
                limit_of(drawn[:, m], drawn[:, 0], max_similarity) for m in range(len(self.measures))
            ]
        result[:, :1] = max_similarity
        return result


def limit_of(measure: Float[np.ndarray, " n"], own: Float[np.ndarray, " n"], max_similarity: float) -> float:
    """Below what a measure is low: at the quantile of random pairs at which the gloss cosine is `max_similarity`, because
    every measure has a scale of its own. NaN where no random pair is known to both.

    Args:
        measure: of random pairs.
        own: the gloss cosine of the same pairs.
        max_similarity: the study's limit on the gloss cosine.
    """
    known = np.isfinite(measure) & np.isfinite(own)
    if not known.any():
        return float("nan")
    return float(np.quantile(measure[known], (own[known] < max_similarity).mean()))
