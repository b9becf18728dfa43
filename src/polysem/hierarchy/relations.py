"""What the features of a dictionary are to each other, from what they write and from where they fire.

A high cosine may be interference of two concepts, or the trace of how dictionaries divide them: a feature split into parts, a
part without its whole, one feature twice. The rules are those of `vocabulary_findings.KINSHIPS`. Firing alone gives false
parents, since dense features cover everything (Tree SAE, arXiv 2605.07922): a parent must also be needed where the child
fires. Co-firing is tested exactly; what was asked of many pairs is adjusted together (Benjamini-Hochberg).
Cost: products of the decoder with itself and of sparse firings, block by block; no d_sae x d_sae array is held.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from polysem.errors import ConfigError, MismatchError
from polysem.geometry import benjamini_hochberg
from polysem.hierarchy import meta
from polysem.hierarchy.absorption import LEVEL, PART, absorption
from polysem.hierarchy.firing import Fired, cofiring_tail, fired
from polysem.hierarchy.known import BINS
from polysem.saes.base import SAE
from polysem.store.result import Result
from polysem.store.tables import ABSORPTION, LEVELS, META_CODE, RELATIONS
from polysem.vocabulary_findings import KINSHIPS

TWICE = 0.7
"""|decoder cosine| of one feature twice, or of opposites"""
COVERS, FEWEST = 0.9, 10
"""a parent fires on at least so much of its child's tokens (the child on at most `PART` of the parent's), and on so many"""
LIKE, BEATEN = 20, 1
"""features of like density whose parts are taken away too, and how many of them may be needed more"""
LOOKED_AT = 256
"""tokens of a child on which parts are taken away"""
CLOSE = 0.4
"""decoder cosine of parts of one feature, and of each with that feature in a narrower dictionary"""
ONE_GLOSS = 0.5
"""cosine of glosses that say the same"""
SHARE, MIXED = 0.2, 12
"""weight of both members of a mix; features that a mix is looked for among"""
SAME_TOKENS = 0.3
LEAST = 0.3
"""|decoder cosine| from which pairs that are nothing to each other are written, too"""
BLOCK = 256
_NOBODY = -1
_Rows = dict[str, np.ndarray]


@dataclass(frozen=True, repr=False)
class Kinship(Result):
    """The relations of one dictionary."""

    figure = "polysem.report.figures_beside:kinship"

    relations: pa.Table
    """RELATIONS"""
    absorption: pa.Table = field(default_factory=ABSORPTION.empty)
    """ABSORPTION"""
    levels: pa.Table = field(default_factory=LEVELS.empty)
    """LEVELS, of a nested dictionary"""
    meta_code: pa.Table = field(default_factory=META_CODE.empty)
    """META_CODE"""

    def facts(self) -> Mapping[str, object]:
        counts = {r["values"]: r["counts"] for r in pc.value_counts(self.relations["relation"]).to_pylist()}
        return {KINSHIPS[name].label: counts[name] for name in KINSHIPS if name in counts}


def relations_of(
    sae: SAE,
    x: Float[np.ndarray, "n d_in"],
    *,
    label: str,
    narrow: Sequence[SAE] = (),
    embeddings: Float[np.ndarray, "d_sae d_embed"] | None = None,
    least: float = LEAST,
    probes: int | None = None,
    levels: Sequence[int] = (),
) -> Kinship:
    """Every relation of a dictionary, and pairs of |cosine| >= `least` that have none.

    Args:
        sae: an autoencoder.
        x: activations of its site on a text, special positions and massive tokens left out.
        label: its name in the tables.
        narrow: dictionaries of the same site with fewer features, which show what is one feature there; without them and
            without glosses only parts of a common parent are known as split, and no hedges.
        embeddings: of glosses, zero rows where there is none.
        least: of |cosine|.
        probes: features that are asked for absorption, at most; None: all.
        levels: sizes of the inner dictionaries of a nested (Matryoshka) one, ascending.

    Raises:
        ConfigError: if levels do not rise below the number of features.
        MismatchError: if a dictionary reads one site and writes another, or is of another site than `sae`.
        ConfigError: without activations.
        NumericsError: if weights are not finite.
    """
    if sae.site is None:
        raise MismatchError(
            f"{sae.provenance.ref} reads {sae.reads} and writes {sae.writes}; relations are of the features of one site",
            hint="ask of an autoencoder",
        )
    for other in narrow:
        if other.site != sae.site or other.d_sae >= sae.d_sae:
            raise MismatchError(
                f"{other.provenance.ref} has {other.d_sae} features of {other.site}; expected fewer than {sae.d_sae}, of "
                f"{sae.site}",
                hint="put the wider dictionary first",
            )
    if list(levels) != sorted({n for n in levels if 0 < n < sae.d_sae}):
        raise ConfigError(
            f"levels {', '.join(map(str, levels))}; expected sizes that rise, each below the {sae.d_sae} features",
            hint="give the sizes that the dictionary was trained with, without its own",
        )
    seen = fired(sae, x)
    coarse = [_coarse(seen, other) for other in narrow]
    found = candidates(seen, least)
    parents = _parents(seen, found["covers"])
    absorbed = absorption(seen, most=probes)
    rows = [
        _ordered(found["twice"], "duplicate"),
        _ordered(found["antipodal"], "antipodal"),
        _ordered(parents, "parent"),
        _ordered(
            {
                "i": absorbed.parent, "j": absorbed.child, "above": absorbed.parent, "p": absorbed.p, "q": absorbed.q,
                "evidence": np.array([f"probe on in {s:.0%} of its tokens alone" for s in absorbed.share], dtype=object),
            },
            "absorbed",
        ),
        _ordered(_splits(seen, found["close"], parents, coarse, embeddings), "split"),
        _ordered(_hedges(seen, narrow), "hedge"),
        _ordered(found["duplicate"], "duplicate"),
        _ordered(found["same_tokens"], "same_tokens"),
        _ordered(found["unrelated"], "unrelated"),
    ]  # fmt: skip
    known = absorbed.rate
    relations = _table(seen, rows, label)
    return Kinship(
        relations,
        ABSORPTION.of_rows(
            {
                "sae": label, "feature": f, "n_on": n, "f1": score, "trusted": not np.isnan(rate), "rate": rate,
                "n_children": children,
            }
            for f, n, score, rate, children in zip(
                absorbed.feature.tolist(), absorbed.n_on.tolist(), absorbed.f1.tolist(), known.tolist(),
                absorbed.n_children.tolist(), strict=True,
            )
        ),
        between_levels(relations, levels, label=label, alive=seen.count > 0) if levels else LEVELS.empty(),
        meta.meta_code(seen, label=label),
    )  # fmt: skip


def between_levels(
    relations: pa.Table, levels: Sequence[int], *, label: str, alive: Bool[np.ndarray, " d_sae"]
) -> pa.Table:
    """LEVELS: do the levels of a nested dictionary follow its hierarchy?

    Args:
        relations: RELATIONS of the dictionary.
        levels: sizes of the inner dictionaries, ascending.
        label: name of the dictionary.
        alive: features that fire.
    """
    of = np.searchsorted(np.asarray(levels), np.arange(len(alive)), side="right")
    size = np.bincount(of[alive], minlength=len(levels) + 1)
    n = int(size.sum())
    found = []
    for kind in ("parent", "absorbed"):
        some = relations.filter(pc.equal(relations["relation"], kind))
        i, j, above = (some[name].to_numpy().astype(np.int64) for name in ("i", "j", "above"))
        seen = np.zeros((len(size), len(size)), dtype=np.int64)
        np.add.at(seen, (of[above], of[i + j - above]), 1)
        for a, b in np.ndindex(seen.shape):
            chance = size[a] * (size[b] - (a == b)) / max(n * (n - 1), 1)
            found.append(
                {
                    "sae": label, "relation": kind, "above": a, "below": b,
                    "n_above": int(size[a]), "n_below": int(size[b]), "n_pairs": int(seen[a, b]),
                    "n_expected": float(chance * len(some)),
                }
            )  # fmt: skip
    return LEVELS.of_rows(found)


def by_interference(table: pa.Table) -> list[dict[str, int | str]]:
    """How many pairs of RELATIONS have each relation, by bin of |interference|."""
    size = np.abs(table["interference"].to_numpy())
    kinds = np.array(table["relation"].to_pylist(), dtype=object)
    return [
        {"bin": f"|cosine| {low:g} to {min(high, 1):g}"}
        | {name: int(((size >= low) & (size < high) & (kinds == name)).sum()) for name in KINSHIPS}
        for low, high in pairwise(BINS)
    ]


def candidates(seen: Fired, least: float) -> dict[str, _Rows]:
    """Pairs by what is seen of directions and of co-firing in one pass; of `covers` i is above j, of all others i < j.

    Held at a time: cosines of `BLOCK` features with all, and with whom these fire together, sparse.
    """
    names = ("twice", "duplicate", "antipodal", "covers", "close", "same_tokens", "unrelated")
    parts: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {name: [] for name in names}
    live = (np.abs(seen.units).max(axis=1) > 0) & (seen.count > 0)
    by_feature = seen.fires.tocsc()
    for start in range(0, seen.d_sae, BLOCK):
        cosine = seen.units[start : start + BLOCK] @ seen.units.T
        meet = (by_feature[:, start : start + BLOCK].T @ seen.fires).tocsr()
        meet.sort_indices()
        i, j = np.nonzero(np.abs(cosine) >= min(least, CLOSE))
        upper = live[i + start] & live[j] & (j > i + start)
        i, j = i[upper], j[upper]
        near, size = cosine[i, j], np.abs(cosine[i, j])
        # scipy gives a matrix, not an array, where nothing is asked
        both = np.asarray(meet[i, j]).ravel().astype(np.int64) if len(i) else np.empty(0, dtype=np.int64)
        i += start
        jaccard = both / (seen.count[i] + seen.count[j] - both)
        for name, mask in {
            "twice": (near >= TWICE) & (jaccard > SAME_TOKENS),
            "duplicate": near >= TWICE,
            "antipodal": near <= -TWICE,
            "close": near >= CLOSE,
            "unrelated": size >= least,
        }.items():
            parts[name].append((i[mask], j[mask], both[mask]))
        i = start + np.repeat(np.arange(meet.shape[0]), np.diff(meet.indptr))
        j, both = meet.indices.astype(np.int64), meet.data.astype(np.int64)
        own, others = seen.count[i], seen.count[j]
        alive = live[i] & live[j] & (i != j)
        for name, mask in {
            "covers": alive & (others >= FEWEST) & (both >= COVERS * others) & (both <= PART * own),
            "same_tokens": alive & (j > i) & (both / (own + others - both) > SAME_TOKENS),
        }.items():
            parts[name].append((i[mask], j[mask], both[mask]))
    found: dict[str, _Rows] = {}
    for name, some in parts.items():
        i, j, both = (np.concatenate(column) for column in zip(*some, strict=True))
        found[name] = {"i": i, "j": j, "both": both}
    alike = found["same_tokens"]
    found["same_tokens"] = _taken(alike, _both_needed(seen, alike) > SAME_TOKENS)
    covers = found["covers"]
    n_tests = int((seen.count >= FEWEST).sum()) * max(int(live.sum()) - 1, 1)
    p = cofiring_tail(covers["both"], seen.n, seen.count[covers["i"]], seen.count[covers["j"]], above=True)
    q = benjamini_hochberg(p, n_tests=n_tests)
    found["covers"] = _taken(covers | {"p": p, "q": q}, q <= LEVEL)
    return found


def _both_needed(seen: Fired, pairs: _Rows) -> Float[np.ndarray, " m"]:
    """Of the tokens on which either of two fires, the share on which both are needed."""
    i, j = pairs["i"].tolist(), pairs["j"].tolist()
    both = [len(np.intersect1d(seen.needed(a), seen.needed(b), assume_unique=True)) for a, b in zip(i, j, strict=True)]  # fmt: skip
    either = seen.count[pairs["i"]] + seen.count[pairs["j"]] - pairs["both"]
    return np.array(both, dtype=np.float64) / either


def _parents(seen: Fired, covers: _Rows) -> _Rows:
    """Of those that cover others, those that are needed there more than features of like density."""
    order = np.argsort(seen.count, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    by_child = np.argsort(covers["j"], kind="stable")
    kept, beaten = np.zeros(len(by_child), dtype=bool), np.zeros(len(by_child), dtype=np.int64)
    for own in (
        np.split(by_child, np.flatnonzero(np.diff(covers["j"][by_child])) + 1) if len(by_child) else ()
    ):
        child = int(covers["j"][own[0]])
        tokens = seen.at(child)
        raises = seen.raises(tokens[:: max(1, len(tokens) // LOOKED_AT)][:LOOKED_AT])
        for place in own.tolist():
            parent = int(covers["i"][place])
            low = max(0, min(int(rank[parent]) - LIKE // 2 - 1, len(order) - LIKE - 2))
            like = [f for f in order[low : low + LIKE + 2].tolist() if f not in (parent, child)][:LIKE]
            beaten[place] = int((raises[like] >= raises[parent]).sum())
            kept[place] = raises[parent] > 0 and beaten[place] <= BEATEN
    told = [f"needed more than {LIKE - b} of {LIKE} of like density" for b in beaten.tolist()]
    return _taken(covers | {"above": covers["i"], "evidence": np.array(told, dtype=object)}, kept)


def _coarse(seen: Fired, narrow: SAE) -> Int[np.ndarray, " d_sae"]:
    """The feature of a narrower dictionary that each is closest to, where the cosine is at least CLOSE; else none."""
    rows = narrow.W_dec.detach().float().cpu().numpy()
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    best = np.full(seen.d_sae, _NOBODY)
    for start in range(0, seen.d_sae, BLOCK):
        cosine = seen.units[start : start + BLOCK] @ rows.T
        at = cosine.argmax(axis=1)
        best[start : start + BLOCK] = np.where(cosine[np.arange(len(at)), at] >= CLOSE, at, _NOBODY)
    return best


def _splits(
    seen: Fired, close: _Rows, parents: _Rows, coarse: Sequence[np.ndarray], embeddings: np.ndarray | None
) -> _Rows:
    """Of close pairs those that avoid each other and are known as parts of one."""
    i, j = close["i"], close["j"]
    p = cofiring_tail(close["both"], seen.n, seen.count[i], seen.count[j], above=False)
    q = benjamini_hochberg(p, n_tests=len(p))
    told = [[f"one feature of the narrower dictionary ({a})" if a == b and a != _NOBODY else "" for a, b in zip(c[i], c[j], strict=True)] for c in coarse]  # fmt: skip
    above: dict[int, set[int]] = {}
    for parent, child in zip(parents["i"].tolist(), parents["j"].tolist(), strict=True):
        above.setdefault(child, set()).add(parent)
    shared = [above.get(a, set()) & above.get(b, set()) for a, b in zip(i.tolist(), j.tolist(), strict=True)]
    told.append([f"one parent ({min(some)})" if some else "" for some in shared])
    if embeddings is not None:
        norms = np.maximum(np.linalg.norm(embeddings, axis=1), 1e-30)
        like = np.einsum("nd,nd->n", embeddings[i], embeddings[j]) / (norms[i] * norms[j])
        told.append([f"one gloss ({s:.2f})" if s >= ONE_GLOSS else "" for s in like.tolist()])
    evidence = np.array(["; ".join(s for s in some if s) for some in zip(*told, strict=True)], dtype=object)
    kept = (q <= LEVEL) & (evidence != "")
    return _taken(close | {"p": p, "q": q, "evidence": evidence}, kept.astype(bool))


def _hedges(seen: Fired, narrow: Sequence[SAE]) -> _Rows:
    """Pairs that a feature of a narrower dictionary mixes, and that fire together above chance."""
    from scipy.optimize import nnls

    found: dict[tuple[int, int], str] = {}
    for other in narrow:
        rows = other.W_dec.detach().float().cpu().numpy()
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
        for m, row in enumerate(rows):
            cosine = seen.units @ row
            near = np.argsort(-cosine)[:MIXED]
            weights = nnls(seen.units[near].T.astype(np.float64), row.astype(np.float64))[0]
            first, second = np.argsort(-weights)[:2]
            if weights[second] > SHARE:
                i, j = sorted((int(near[first]), int(near[second])))
                found[i, j] = f"feature {m} there is {weights[first]:.2f} and {weights[second]:.2f} of them"
    i, j = (np.array([pair[k] for pair in found], dtype=np.int64) for k in (0, 1))
    both = np.array([len(np.intersect1d(seen.at(a), seen.at(b))) for a, b in found], dtype=np.int64)
    p = cofiring_tail(both, seen.n, seen.count[i], seen.count[j], above=True)
    q = benjamini_hochberg(p, n_tests=len(p))
    evidence = np.array(list(found.values()), dtype=object)
    return _taken({"i": i, "j": j, "both": both, "p": p, "q": q, "evidence": evidence}, q <= LEVEL)


def _taken(rows: _Rows, kept: np.ndarray) -> _Rows:
    return {name: column[kept] for name, column in rows.items()}


def _ordered(rows: _Rows, relation: str) -> _Rows:
    """The pairs with i < j, and what they are to each other."""
    n = len(rows["i"])
    i, j = rows["i"].astype(np.int64), rows["j"].astype(np.int64)
    blank = {"above": np.full(n, _NOBODY), "p": np.full(n, np.nan), "q": np.full(n, np.nan), "evidence": np.full(n, None, dtype=object)}  # fmt: skip
    given = {name: rows.get(name, column) for name, column in blank.items()}
    return given | {
        "i": np.minimum(i, j), "j": np.maximum(i, j), "relation": np.full(n, relation, dtype=object),
    }  # fmt: skip


def _table(seen: Fired, found: Sequence[_Rows], label: str) -> pa.Table:
    """RELATIONS: of each pair the first relation that holds."""
    rows = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
    first = np.sort(np.unique(rows["i"] * seen.d_sae + rows["j"], return_index=True)[1])
    rows = _taken(rows, first)
    i, j = rows["i"], rows["j"]
    together = np.zeros(len(i), dtype=np.int64)
    for start in range(0, len(i), BLOCK * 16):
        part = slice(start, start + BLOCK * 16)
        names, at = np.unique(np.concatenate([i[part], j[part]]), return_inverse=True)
        own, other = np.split(at, 2)
        columns = seen.fires[:, names]
        counts = (columns.T @ columns).tocsr()
        together[part] = np.asarray(counts[own, other]).ravel()
    columns = {
        "sae": pa.repeat(pa.scalar(label), len(i)),
        **{name: pa.array(rows[name], pa.int32()) for name in ("i", "j")},
        "above": pa.array(rows["above"], pa.int32(), mask=rows["above"] == _NOBODY),
        "relation": pa.array(rows["relation"].tolist(), pa.string()),
        "interference": np.einsum("nd,nd->n", seen.units[i].astype(np.float64), seen.units[j].astype(np.float64)),
        "fires_i": seen.count[i], "fires_j": seen.count[j], "both": together,
        "n_tokens": np.full(len(i), seen.n),
        **{name: pa.array(rows[name], pa.float64(), from_pandas=True) for name in ("p", "q")},
        "evidence": pa.array(rows["evidence"].tolist(), pa.string()),
    }  # fmt: skip
    return RELATIONS.conform(pa.table(columns))
