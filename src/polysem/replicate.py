"""Would another dictionary say the same? Features matched one to one, PW-MCC, and which interfering pairs come back.

Dictionaries are trained from a seed. What is a fact about the model should be in another seed's dictionary too, and what is
not is basis ambiguity. From weights alone:

    PW-MCC     mean |cosine| of decoder rows under the best one-to-one matching (arXiv 2505.20254), beside the same with the
               second dictionary turned at random, and drawn anew with its mean and covariance
    stable     a feature whose match has decoder and encoder cosines above what 1 % of features reach in turned dictionaries
    survival   of pairs whose members both have a match: how often |interference| is in the same bin in the other dictionary;
               beside what is left of it by regression to the mean: the same cosines between matched features, with the parts
               in which they differ dealt out anew. For all stable features, and for those that are the same beyond doubt
    spans      of features that are not stable: do the subspaces come back in which they lie (`linear.subspaces`)?

Cost: products of two dictionaries and one assignment for each pair of them and each null. Up to `LARGEST` features all cosines are
held at once and the matching is exact; beyond, the `NEAR` closest of every feature on either side are, and the matching is the
best among them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from polysem.errors import MismatchError
from polysem.geometry.unit import unit_rows
from polysem.linear.matching import MATCH
from polysem.linear.subspaces import shared_spans
from polysem.saes.base import SAE, decoder_rows
from polysem.seeds import random_rotation, rng_for
from polysem.store.result import Result
from polysem.store.tables import MATCHING, REPLICATES, SHARED_SPANS, STABILITY, SURVIVAL

VERSION = 1
"""of the JSON"""
BINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.7, 1.0 + 1e-6)
"""of |interference|"""
FALSE = 0.01
"""share of features of a turned dictionary that may count as matched"""
TURNS, DEALS = 3, 20
"""rotations and covariance draws; deals of what differs between matched features"""
_NULLS = {"turned": "turned", "drawn": "covariance"}
"""column of REPLICATES -> null of a pair"""
LARGEST = 20_000
"""features of a dictionary whose cosines are all held: 3.2 GB"""
NEAR = 64
"""candidates of a feature of a larger dictionary"""
_BLOCK = 2048
_CELLS = _BLOCK * 4096
"""cosines in memory at a time: 64 MiB"""


@dataclass(frozen=True)
class DictionaryMatch:
    """The best one-to-one matching of one dictionary's features with another's, ordered by the first's."""

    first: Int[np.ndarray, " n"]
    second: Int[np.ndarray, " n"]
    decoder: Float[np.ndarray, " n"]
    """signed cosine of decoder rows"""
    encoder: Float[np.ndarray, " n"]
    """signed cosine of what the encoders read"""

    @property
    def pw_mcc(self) -> float:
        """Mean |cosine| of matched decoder rows."""
        return float(np.abs(self.decoder).mean()) if len(self.decoder) else float("nan")


def assigned(
    first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"], *, near: int | None = None
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """(rows, columns, cosines) of the one-to-one assignment of unit rows with the largest sum of |cosine|; k = min(n, m).

    Args:
        first: unit rows.
        second: unit rows.
        near: hold so many candidates of every row and column only, and match what is left without one among itself; None: all,
            up to `LARGEST` rows, `NEAR` beyond.
    """
    from scipy.optimize import linear_sum_assignment

    if near is None and max(len(first), len(second)) > LARGEST:
        near = NEAR
    if near is not None and near < min(len(first), len(second)):
        return _assigned_near(first, second, near)
    cosines = first @ second.T
    i, j = linear_sum_assignment(np.abs(cosines), maximize=True)
    return i.astype(np.int64), j.astype(np.int64), cosines[i, j]


def _assigned_near(
    first: np.ndarray, second: np.ndarray, near: int
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    if len(first) > len(second):
        j, i, cosines = _assigned_near(second, first, near)
        order = np.argsort(i)
        return i[order], j[order], cosines[order]
    n, m = len(first), len(second)
    ahead, back = _closest(first, second, near), _closest(second, first, near)
    keys = np.unique(np.concatenate([ahead[0] * m + ahead[1], back[1] * m + back[0]]))
    i, j = np.divmod(keys, m)
    size = np.abs(_cosines(first, second, i, j))
    # A column of its own, at the cost of no cosine at all, keeps every row matched whatever the others take.
    cost = np.concatenate([2 - size, np.full(n, 2.0)])
    rows, columns = np.concatenate([i, np.arange(n)]), np.concatenate([j, m + np.arange(n)])
    i, j = min_weight_full_bipartite_matching(csr_array((cost, (rows, columns)), shape=(n, m + n)))
    real = j < m
    i, j, left = (
        i[real].astype(np.int64),
        j[real].astype(np.int64),
        np.flatnonzero(~np.isin(np.arange(n), i[real])),
    )
    if len(left):
        free = np.flatnonzero(~np.isin(np.arange(m), j))
        more = assigned(first[left], second[free], near=near if len(left) > near else None)
        i, j = np.concatenate([i, left[more[0]]]), np.concatenate([j, free[more[1]]])
        order = np.argsort(i)
        i, j = i[order], j[order]
    return i, j, _cosines(first, second, i, j)


def _cosines(first: np.ndarray, second: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Of rows i of the first with rows j of the second; as many at a time as fit beside the rest."""
    found, rows = np.empty(len(i)), _at_once(first.shape[1])
    for k in range(0, len(i), rows):
        found[k : k + rows] = np.einsum("nd,nd->n", first[i[k : k + rows]], second[j[k : k + rows]])
    return found


def _at_once(columns: int) -> int:
    return max(1, min(_BLOCK, _CELLS // columns))


def _closest(a: np.ndarray, b: np.ndarray, near: int) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Rows of a, and for each the rows of b of the `near` largest |cosine|."""
    found, rows = [], _at_once(len(b))
    for start in range(0, len(a), rows):
        size = np.abs(a[start : start + rows] @ b.T)
        # a copy: a view would keep the order of all columns
        found.append(np.argpartition(size, -near, axis=1)[:, -near:].copy())
    columns = np.concatenate(found)
    return np.repeat(np.arange(len(a)), near), columns.ravel().astype(np.int64)


def matching(first: SAE, second: SAE) -> DictionaryMatch:
    """The matching of the living features of two dictionaries by decoder rows.

    Raises:
        MismatchError: if they write at different sites or widths.
    """
    a, b = _living(first), _living(second)
    (d1, e1), (d2, e2) = _sides(first, a), _sides(second, b)
    i, j, cosine = assigned(d1, d2)
    return DictionaryMatch(a[i], b[j], cosine, (e1[i] * e2[j]).sum(axis=1))


def stable_matching(
    first: SAE, second: SAE, *, rng: np.random.Generator
) -> tuple[DictionaryMatch, tuple[float, float], Bool[np.ndarray, " n"]]:
    """The matching, the |cosine| of decoders and of encoders that it takes to be stable, and which matches are.

    Raises:
        MismatchError: if they write at different sites or widths.
    """
    made = matching(first, second)
    sides = [_sides(s, _living(s)) for s in (first, second)]
    decoder, encoder = (limit(x, y, rng=rng) for x, y in zip(*sides, strict=True))
    return made, (decoder, encoder), (np.abs(made.decoder) >= decoder) & (np.abs(made.encoder) >= encoder)


def null_pw_mcc(
    first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"], *, rng: np.random.Generator
) -> dict[str, list[float]]:
    """PW-MCC of `first` with `second` turned at random, and with rows drawn with its mean and covariance."""
    mean, spread = second.mean(axis=0), np.linalg.cholesky(np.cov(second.T) + 1e-12 * np.eye(second.shape[1]))
    found: dict[str, list[float]] = {"turned": [], "covariance": []}
    for _ in range(TURNS):
        drawn = mean + rng.standard_normal(second.shape) @ spread.T
        for name, rows in (
            ("turned", second @ random_rotation(second.shape[1], rng)),
            ("covariance", unit_rows(drawn)),
        ):
            found[name].append(float(np.abs(assigned(first, rows)[2]).mean()))
    return found


def limit(
    first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"], *, rng: np.random.Generator
) -> float:
    """|cosine| that at most `FALSE` of the first's rows reach with any row of the second turned at random."""
    best = []
    for _ in range(TURNS):
        turned = (second @ random_rotation(second.shape[1], rng)).T
        rows = _at_once(len(second))
        best += [np.abs(first[k : k + rows] @ turned).max(axis=1) for k in range(0, len(first), rows)]
    return float(np.quantile(np.concatenate(best), 1 - FALSE))


@dataclass(frozen=True)
class Survival:
    """Of pairs in one bin of |interference| in the first dictionary, both members matched."""

    matched: str
    """how well: stable, or at least MATCH"""
    low: float
    high: float
    n: int
    same: float
    """share that is in the bin in the second, too"""
    chance: float
    """mean of the share by regression to the mean"""
    lo: float
    hi: float
    """smallest and largest over the deals"""


def survival(
    first: Float[np.ndarray, "n d"],
    second: Float[np.ndarray, "n d"],
    *,
    rng: np.random.Generator,
    matched: str = "stable",
) -> list[Survival]:
    """Do interfering pairs come back?

    Each matched row of the second is m times the first's plus a rest. Were the rest no fact about the pair, rests dealt to
    other features (at right angles to their own direction, at their own length) would give the same cosines.

    Args:
        first: unit decoder rows of matched features.
        second: of their matches, in the same order, turned so that the cosine with the first is not negative.
        rng: of the deals.
        matched: how well, as it is told.

    Of more than `LARGEST` features so many are drawn: their pairs are held.
    """
    if len(first) > LARGEST:
        drawn = np.sort(rng.permutation(len(first))[:LARGEST])
        first, second = first[drawn], second[drawn]
    upper = np.triu_indices(len(first), k=1)

    def bins(rows: np.ndarray) -> Int[np.ndarray, " pairs"]:
        return np.searchsorted(BINS, np.abs((rows @ rows.T)[upper]), side="right") - 1

    own, other = bins(first), bins(second)
    m = (first * second).sum(axis=1, keepdims=True)
    rest = second - m * first
    length = np.linalg.norm(rest, axis=1, keepdims=True)
    dealt = []
    for _ in range(DEALS if len(first) > 1 else 0):
        moved = rest[rng.permutation(len(rest))]
        moved = moved - (moved * first).sum(axis=1, keepdims=True) * first
        dealt.append(bins(m * first + length * unit_rows(moved)))
    found = []
    for k, (low, high) in enumerate(pairwise(BINS)):
        here = own == k
        n = int(here.sum())
        if n:
            by_chance = [float((drawn[here] == k).mean()) for drawn in dealt]
            ends = (float(np.mean(by_chance)), min(by_chance), max(by_chance))
            found.append(Survival(matched, low, min(high, 1.0), n, float((other[here] == k).mean()), *ends))
    return found


@dataclass(frozen=True, repr=False)
class Replicates(Result):
    """Every two dictionaries of a site, and how stable each one's features are over the others."""

    figure = "polysem.report.figures_beside:replicates"

    refs: tuple[tuple[str, str], ...]
    """(reference, revision or hash of the weights)"""
    pairs: tuple[Mapping[str, Any], ...]
    """of every two: what `as_json` shows"""
    stability: tuple[Float[np.ndarray, " _"], ...]
    """by dictionary: share of the others in which each feature has a match; NaN where it is dead"""
    nearest: tuple[Float[np.ndarray, " _"], ...]
    """the soft form: largest |cosine| of its decoder row with a row of another, mean over the others"""

    def facts(self) -> Mapping[str, object]:
        return {
            f"{self.refs[p['first']][0]}, {self.refs[p['second']][0]}": f"PW-MCC {p['pw_mcc']:.3f} (turned "
            f"{np.mean(p['null']['turned']):.3f}), {100 * p['matched'][0]:.0f} % matched"
            for p in self.pairs
        }

    def tables(self) -> Mapping[str, pa.Table]:
        names = [{"number": k, **self._names(p)} for k, p in enumerate(self.pairs)]
        pairs = list(zip(names, self.pairs, strict=True))
        of_two = [
            {
                **{**who, "n": p["n"], "pw_mcc": p["pw_mcc"]},
                **{name: float(np.mean(p["null"][of])) for name, of in _NULLS.items()},
                **dict(zip(("stable_first", "stable_second"), p["matched"], strict=True)),
            }
            for who, p in pairs
        ]
        lasting = [{**who, **row} for who, p in pairs for row in p["survival"]]
        spans = [{**who, **row} for who, p in pairs for row in p["spans"]]
        columns = ("feature", "match", "decoder", "encoder", "stable")
        matched = [
            {**who, **dict(zip(columns, row, strict=True))}
            for who, p in pairs
            for row in zip(*p["matching"].values(), strict=True)
        ]
        stable = [
            {"number": k, "sae": self.refs[k][0], "feature": n, "stability": value, "nearest": soft}
            for k, own in enumerate(self.stability)
            for n, (value, soft) in enumerate(zip(own.tolist(), self.nearest[k].tolist(), strict=True))
        ]
        made = zip(
            (REPLICATES, SURVIVAL, SHARED_SPANS, MATCHING, STABILITY),
            (of_two, lasting, spans, matched, stable),
            strict=True,
        )
        return {schema.name: schema.of_rows(rows) for schema, rows in made}

    def _names(self, pair: Mapping[str, Any]) -> dict[str, str]:
        return {side: self.refs[pair[side]][0] for side in ("first", "second")}

    def as_json(self) -> dict[str, Any]:
        """The whole matching with hashes, for another program."""
        return {
            "schema": "polysem/replicate",
            "version": VERSION,
            "dictionaries": [{"ref": ref, "revision": revision} for ref, revision in self.refs],
            "pairs": [dict(p) for p in self.pairs],
            **{
                name: [[None if np.isnan(v) else float(v) for v in own] for own in every]
                for name, every in (("stability", self.stability), ("nearest", self.nearest))
            },
        }


def replicate(saes: Sequence[SAE], *, seed: int = 0) -> Replicates:
    """Compare any number of dictionaries of one site.

    Args:
        saes: two or more that write at the same site of the same model.
        seed: of rotations, draws and deals.

    Raises:
        MismatchError: with fewer than two, other sites, widths or models.
    """
    _comparable(saes)
    refs = tuple((s.provenance.ref, s.provenance.revision) for s in saes)
    return _compared(saes, refs, refs, seed=seed, word="replicate")


def replicates_of(saes: Mapping[str, SAE], *, seed: int = 0) -> Replicates:
    """Compare dictionaries of a study, each with those of its site; in tables they have their labels.

    Args:
        saes: by label; those that are alone at their site are left out.
        seed: of the study.
    """
    sites = [(s.reads, s.writes) for s in saes.values()]
    kept = {label: saes[label] for label, at in zip(saes, sites, strict=True) if sites.count(at) > 1}
    refs = tuple((label, s.provenance.revision) for label, s in kept.items())
    return _compared(list(kept.values()), refs, [(label,) for label in kept], seed=seed, word="stable")


def _compared(
    saes: Sequence[SAE],
    refs: tuple[tuple[str, str], ...],
    keys: Sequence[tuple[str, ...]],
    *,
    seed: int,
    word: str,
) -> Replicates:
    """Every two that are of one site.

    Args:
        saes: the dictionaries.
        refs: of each, as they are told.
        keys: of each, from which draws follow.
        seed: of draws.
        word: the draws' name.
    """
    found, hits, soft = [], *([np.full(s.d_sae, np.nan) for s in saes] for _ in range(2))
    for k, s in enumerate(saes):
        hits[k][_living(s)] = soft[k][_living(s)] = 0.0
    sites = [(s.reads, s.writes) for s in saes]
    for a, b in combinations(range(len(saes)), 2):
        if sites[a] != sites[b]:
            continue
        others = sites.count(sites[a]) - 1
        rng = rng_for(seed, word, *keys[a], *keys[b])
        made, limits, stable = stable_matching(saes[a], saes[b], rng=rng)
        sides = [_sides(saes[k], _living(saes[k]))[0] for k in (a, b)]
        for own, mine, best in zip((a, b), (made.first, made.second), _nearest(*sides), strict=True):
            hits[own][mine[stable]] += 1.0 / others
            soft[own][_living(saes[own])] += best / others
        lasting = []
        for how, kept in (
            ("stable", stable),
            (f"cosine at least {MATCH}", stable & (np.abs(made.decoder) >= MATCH)),
        ):
            rows = [
                unit_rows(decoder_rows(s)[m[kept]])
                for s, m in ((saes[a], made.first), (saes[b], made.second))
            ]
            rows[1] *= np.sign(made.decoder[kept])[:, None]
            lasting += [vars(one) for one in survival(*rows, rng=rng, matched=how)]
        loose = [
            _sides(s, np.setdiff1d(_living(s), mine[stable]))[0]
            for s, mine in ((saes[a], made.first), (saes[b], made.second))
        ]
        spans_rng = rng_for(seed, "spans", *keys[a], *keys[b])
        found.append(
            {
                **{"first": a, "second": b, "n": len(made.first), "pw_mcc": made.pw_mcc},
                "null": null_pw_mcc(*sides, rng=rng),
                "limits": {"decoder": limits[0], "encoder": limits[1], "false_matches": FALSE},
                "matched": [float(stable.sum() / len(side)) for side in sides],
                "survival": lasting,
                "spans": [vars(one) for one in shared_spans(*loose, rng=spans_rng)],
                "matching": {
                    **{"first": made.first.tolist(), "second": made.second.tolist()},
                    **{"decoder": made.decoder.tolist(), "encoder": made.encoder.tolist()},
                    "stable": stable.tolist(),
                },
            }
        )
    return Replicates(refs, tuple(found), tuple(hits), tuple(soft))


def _nearest(
    first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """Of every unit row the largest |cosine| with a row of the other side."""
    best, back, rows = [np.zeros(0)], np.zeros(len(second)), _at_once(len(second))
    for start in range(0, len(first), rows):
        size = np.abs(first[start : start + rows] @ second.T)
        best.append(size.max(axis=1, initial=0))
        back = np.maximum(back, size.max(axis=0))
    return np.concatenate(best), back


def _living(sae: SAE) -> Int[np.ndarray, " n"]:
    """Features with a decoder row."""
    return np.flatnonzero(np.linalg.norm(decoder_rows(sae), axis=1) > 0).astype(np.int64)


def _sides(sae: SAE, living: Int[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """Unit decoder rows, and unit encoder columns as rows, of the living features."""
    return unit_rows(decoder_rows(sae)[living]), unit_rows(
        sae.W_enc.detach().double().cpu().numpy().T[living]
    )


def _comparable(saes: Sequence[SAE]) -> None:
    if len(saes) < 2:
        raise MismatchError(
            f"{len(saes)} dictionary; two or more are compared",
            hint="polysem replicate zoo:gpt2/blocks.2.hook_resid_post zoo:gpt2/blocks.2.hook_resid_post-seed1",
        )
    first = saes[0]
    for other in saes:
        names = other.provenance.ref, first.provenance.ref
        if (other.writes, other.reads, other.d_out) != (first.writes, first.reads, first.d_out):
            raise MismatchError(
                f"{names[0]} is of {other.reads} to {other.writes}, {other.d_out} wide, and {names[1]} of {first.reads} to "
                f"{first.writes}, {first.d_out} wide; expected dictionaries of one site",
                hint="polysem zoo",
            )
        if None not in (other.model_id, first.model_id) and other.model_id != first.model_id:
            raise MismatchError(
                f"{names[0]} is of model {other.model_id}, and {names[1]} of {first.model_id}; expected one model",
                hint="polysem zoo",
            )
