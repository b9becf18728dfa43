"""How alike the planned pairs are by every measure that a study names, beside the cosine of their glosses.

The same is asked of pairs of glossed features drawn at random: what a measure says of those is what its number means
(its limit, `glosses.grid.limit_of`) and whether it and the others measure one thing (`stats/similarity.py`),
which the planned pairs, chosen for a low cosine, cannot show. A pair that any measure finds related is steered like the
others and stands apart under the relation `related_pair`, unless the preset goes by the gloss cosine alone.
Cost: at most `N_FEATURES` further features are read, and `N_RANDOM` pairs compared.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float

from polysem.act.arms import Arm, KnownFeatures
from polysem.config import Study
from polysem.glosses.concepts import Concepts, Senses
from polysem.glosses.embed import EXPORT
from polysem.glosses.grid import SimilarityGrid, limit_of
from polysem.glosses.similarity import (
    Item,
    Measure,
    cosines_of,
    halves,
    open_measure,
)
from polysem.glosses.tokens import active_words, snippet
from polysem.plan.index import Features
from polysem.plan.signals import apart_from
from polysem.seeds import rng_for
from polysem.store.schema import or_null
from polysem.store.tables import CONCEPTS, SENSES, SIMILARITIES
from polysem.vocabulary import PRESETS, similarity, similarity_name

log = logging.getLogger(__name__)

N_FEATURES = 100
"""glossed features among which random pairs are drawn"""
N_RANDOM = 1500
Pair = tuple[int, int]
"""target and source"""


class Read(NamedTuple):
    """What measures read of features, whole and in halves."""

    whole: Mapping[int, Item]
    parts: tuple[Mapping[int, Item], Mapping[int, Item]]
    split: str


def similarity_tables(
    index: KnownFeatures, study: Study, features: Features, arms: Sequence[Arm]
) -> tuple[list[Arm], dict[str, pa.Table]]:
    """The arms, with related pairs under the relation `related_pair`, and SIMILARITIES, CONCEPTS and SENSES of the pairs
    among them. No rows where the study names no measure and its features have one gloss each.

    Raises:
        UnknownReferenceError: what a measure reads is not installed.
        ConfigError: no such embedder.
    """
    own = f"gloss:{study.glosses.embedder}"
    named = list(dict.fromkeys([own, *study.glosses.similarity]))
    planned = sorted({(a.target, a.source) for a in arms if a.relation == "pair" and a.source is not None})
    if not planned:
        return list(arms), {}
    n, pairs = len(planned), [*planned, *_random_pairs(index, planned, seed=study.seed)]
    wanted = {feature for pair in pairs for feature in pair}
    read = {kind: _read(kind, index, features, wanted) for kind in {similarity(m)[0].reads for m in named}}
    if not study.glosses.similarity and read["gloss"].split != "glosses":
        return list(arms), {}
    tables: list[pa.Table] = []
    found: dict[str, pa.Table] = {}
    first = np.empty(0)
    for place, name in enumerate(named):
        kind = similarity(name)[0]
        measure = None if name == f"gloss:{EXPORT}" else open_measure(name)
        items = read[kind.reads]
        taken = [_compared(measure, pairs, half) for half in (items.whole, *items.parts)]
        limit = study.pairs.max_similarity
        if place == 0:
            sides = (index.embeddings[[pair[k] for pair in pairs]] for k in (0, 1))
            taken[0] = first = cosines_of(*sides)
        else:
            limit = float("nan") if kind.covariate else limit_of(taken[0][n:], first[n:], limit)
        made_by = "the export" if measure is None else measure.source
        said = {
            "sae": index.label,
            "measure": similarity_name(name),
            "place": place,
            "limit": or_null(limit),
            "made_by": made_by,
        }
        said["split"] = "" if measure is None else items.split
        tables.append(_table(said, pairs, n, taken))
        if isinstance(measure, Senses):
            found |= _senses(index, measure, items.whole, planned, limit, seed=study.seed)
    found["similarities"] = pa.concat_tables(tables)
    alike = related_pairs(found["similarities"])
    log.info("SAE %s: %d of %d planned pairs are related by another measure", index.label, len(alike), n)
    if PRESETS[study.preset].one_similarity:
        return list(arms), found
    return apart_from(arms, alike, relation="related_pair"), found


def related_pairs(similarities: pa.Table) -> frozenset[Pair]:
    """(target, source) of the planned pairs of one SAE that a further measure finds related."""
    grid = SimilarityGrid.of(similarities)
    alike = (grid.values > grid.limit)[:, 1:].any(axis=1) & ~grid.random
    return frozenset((t, s) for (_, t, s), here in zip(grid.pairs, alike, strict=True) if here)


def _random_pairs(index: KnownFeatures, planned: Sequence[Pair], *, seed: int) -> list[Pair]:
    """Pairs of distinct glossed features that are neither dead nor dense, without the planned ones."""
    rng = rng_for(seed, "similarities", index.label)
    able = np.flatnonzero(index.glossed & index.usable)
    chosen = np.sort(rng.permutation(able)[:N_FEATURES])
    i, j = np.triu_indices(len(chosen), 1)
    kept = np.sort(rng.permutation(len(i))[: N_RANDOM + len(planned)])
    known = {frozenset(pair) for pair in planned}
    drawn = zip(chosen[i[kept]].tolist(), chosen[j[kept]].tolist(), strict=True)
    return [pair for pair in drawn if frozenset(pair) not in known][:N_RANDOM]


def _read(kind: str, index: KnownFeatures, features: Features, wanted: set[int]) -> Read:
    if kind == "gloss":
        asked = pc.is_in(features.glosses["feature"], pa.array(sorted(wanted), pa.int32()))
        rows = features.glosses.filter(pc.and_(pc.equal(features.glosses["sae"], index.label), asked))
        own = rows.select(["feature", "gloss_index", "text"]).to_pylist()
        first, second = ({r["feature"]: r["text"] for r in own if r["gloss_index"] == k} for k in (0, 1))
        if sum(f in second for f in wanted) >= len(wanted) / 2:
            return Read(first, (first, second), "glosses")
        whole: dict[int, Item] = dict(first)
    else:
        table = features.contexts.filter(
            pc.and_(
                pc.equal(features.contexts["sae"], index.label),
                pc.is_in(features.contexts["feature"], pa.array(sorted(wanted), pa.int32())),
            )
        ).sort_by([("feature", "ascending"), ("rank", "ascending")])
        whole = _words(index, table, wanted) if kind == "tokens" else _snippets(table)
    cut = {feature: halves(item) for feature, item in whole.items()}
    return Read(whole, ({f: h[0] for f, h in cut.items()}, {f: h[1] for f, h in cut.items()}), "halves")


def _words(index: KnownFeatures, contexts: pa.Table, wanted: set[int]) -> dict[int, Item]:
    """The words on which features are active, then the tokens of T-in that begin a word."""
    active = active_words(contexts) if contexts.num_rows else {}
    return {
        f: tuple(dict.fromkeys([*active.get(f, []), *(t for t in index.texts_in[f] if t[:1] in " ▁")]))
        for f in sorted(wanted)
    }


def _snippets(contexts: pa.Table) -> dict[int, Item]:
    found: dict[int, tuple[str, ...]] = {}
    for row in contexts.select(["feature", "tokens", "position"]).to_pylist():
        text = snippet(row)
        found[row["feature"]] = (*found.get(row["feature"], ()), *([text] if text else ()))
    return {f: tuple(dict.fromkeys(texts)) for f, texts in found.items()}


def _compared(
    measure: Measure | None, pairs: Sequence[Pair], items: Mapping[int, Item]
) -> Float[np.ndarray, " n"]:
    """A measure of every pair; NaN where a feature has nothing to read, and without a measure."""
    if measure is None:
        return np.full(len(pairs), np.nan)
    return measure.compare(*([items.get(pair[k], ()) for pair in pairs] for k in (0, 1)))


def _table(
    said: Mapping[str, object], pairs: Sequence[Pair], n: int, taken: Sequence[Float[np.ndarray, " n"]]
) -> pa.Table:
    """SIMILARITIES of one measure; the first `n` pairs are planned ones."""
    ids = np.array(pairs, dtype=np.int32)
    columns = {name: pa.repeat(pa.scalar(value), len(pairs)) for name, value in said.items()}
    columns |= {"target": pa.array(ids[:, 0]), "source": pa.array(ids[:, 1])}
    columns["random"] = pa.array(np.arange(len(pairs)) >= n)
    for name, values in zip(("value", "half_1", "half_2"), taken, strict=True):
        columns[name] = pa.array(values, pa.float64(), from_pandas=True)
    return SIMILARITIES.conform(pa.table(columns))


def _senses(
    index: KnownFeatures,
    senses: Senses,
    items: Mapping[int, Item],
    planned: Sequence[Pair],
    limit: float,
    *,
    seed: int,
) -> dict[str, pa.Table]:
    """CONCEPTS of every feature that was read, and SENSES of the planned pairs."""
    known = {f: c for f in sorted(items) if (c := senses.concepts(items[f])) is not None}
    features = np.array(list(known))
    density = np.nan_to_num(index.density[features]) if len(features) else np.empty(0)
    concepts: list[dict[str, Any]] = []
    for feature, found in known.items():
        apart = np.where(features == feature, np.inf, np.abs(density - density[features == feature]))
        other = int(features[apart.argmin()]) if len(features) > 1 else None
        mixed = None if other is None else _mixed(senses, items[feature], items[other], seed=seed)
        texts = list(items[feature])
        row = {"sae": index.label, "feature": feature, "n_contexts": len(found.labels), "k": found.k}
        row |= {"sizes": np.bincount(found.labels).tolist(), "score": found.score}
        row |= {"silhouette": found.silhouette, "limit": found.limit}
        row["examples"] = [texts[int(np.argmax(found.labels == c))] for c in range(found.k)]
        concepts.append(
            row | {"mixed_with": other, "mixed_k": mixed and mixed.k, "mixed": mixed and mixed.score}
        )
    pairs: list[dict[str, Any]] = []
    for target, source in planned:
        between = senses.between(items.get(target, ()), items.get(source, ()))
        if between is None:
            continue
        one, two = np.unravel_index(int(between.argmax()), between.shape)
        row = {"sae": index.label, "target": target, "source": source, "main": float(between[0, 0])}
        row |= {"highest": float(between.max()), "lowest": float(between.min()), "limit": limit}
        row |= {"concept_target": int(one), "concept_source": int(two)}
        pairs.append(row | {"second_sense": bool(between.max() > limit >= between[0, 0])})
    return {"concepts": CONCEPTS.of_rows(concepts), "senses": SENSES.of_rows(pairs)}


def _mixed(senses: Senses, own: Item, other: Item, *, seed: int) -> Concepts | None:
    """The concepts of as many contexts, half of them another feature's: what two features in one would look like."""
    rng = rng_for(seed, "mixed", *own, *other)
    half = (len(own) + 1) // 2
    texts = [*rng.permutation(own)[:half].tolist(), *rng.permutation(other)[: len(own) - half].tolist()]
    return senses.concepts(tuple(texts))
