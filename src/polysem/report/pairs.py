"""The table of pairs: which are shown, what is said of each, and the contexts behind both features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup

from polysem.report.source import Run
from polysem.report.text import number, visible

MAX_PAIRS = 240
"""rows of the table; every listed pair is in pairs/pairs.parquet"""
CONTEXTS = 3
"""top contexts of each feature that are shown"""
SHADES = 5
_FEATURE = (
    *("sae", "feature", "gloss", "gloss_source", "density", "max_act", "n_glosses"),
    *("tokens_in_str", "tokens_out_str"),
)
NO_GLOSS = "no gloss"
Key = tuple[str, int]


@dataclass(frozen=True)
class Effect:
    """What steering along `source` did to `target`'s tokens at the headline dose."""

    source: int
    target: int
    token_set: str
    logodds: float
    se: float | None


@dataclass(frozen=True)
class PairRow:
    """One row of the table, ready to print."""

    sae: str
    i: int
    j: int
    gloss_i: str
    gloss_j: str
    interference: float
    similarity: float | None
    z: float
    flags: list[str]
    effects: list[Effect]

    @property
    def best(self) -> float | None:
        """The effect that the column sorts by: the first one measured on activating tokens."""
        return next((e.logodds for e in self.effects if e.token_set == "in"), None)


def pair_rows(
    run: Run, measured: Mapping[tuple[str, int, int], Sequence[Effect]]
) -> tuple[list[PairRow], int]:
    """The pairs to show (unflagged first, strongest first) and how many are listed in all.

    All measured pairs are shown, then the strongest of every SAE in equal parts.
    """
    names = ("sae", "i", "j", "interference", "similarity", "z_covariance", "is_duplicate", "is_dense")
    table = run.table("pairs", columns=names)
    total = table.num_rows
    if not total:
        return [], 0
    sae, i, j = (
        np.asarray(table[n].to_pylist(), dtype=object if n == "sae" else np.int64) for n in ("sae", "i", "j")
    )
    cosine = np.abs(table["interference"].to_numpy())
    flagged = pc.or_(table["is_duplicate"], table["is_dense"]).to_numpy(zero_copy_only=False).astype(bool)
    order = np.lexsort((j, i, sae.astype(str), -cosine, flagged))
    has_effect = np.array(
        [(a, b, c) in measured for a, b, c in zip(sae, i.tolist(), j.tolist(), strict=True)]
    )
    chosen = [k for k in order.tolist() if has_effect[k]][:MAX_PAIRS]
    n_measured = len(chosen)
    labels = sorted(set(sae.tolist()))
    room = max(0, MAX_PAIRS - len(chosen))
    for label in labels:
        mine = [k for k in order.tolist() if sae[k] == label and not has_effect[k]]
        chosen += mine[: room // len(labels)]
    place = {k: n for n, k in enumerate(order.tolist())}
    chosen = chosen[:n_measured] + sorted(chosen[n_measured:], key=place.__getitem__)
    shown = table.take(chosen).to_pylist()
    known = features(run, {(r["sae"], r[s]) for r in shown for s in "ij"})
    return [_row(r, known, measured.get((r["sae"], r["i"], r["j"]), ())) for r in shown], total


def features(run: Run, wanted: set[Key]) -> dict[Key, dict[str, Any]]:
    """The rows of FEATURES of some features, by (sae, feature)."""
    ids = sorted({f for _, f in wanted})
    table = run.table("features", columns=_FEATURE, where=pc.field("feature").isin(ids))
    return {(r["sae"], r["feature"]): r for r in table.to_pylist() if (r["sae"], r["feature"]) in wanted}


def details(run: Run, rows: Sequence[PairRow]) -> dict[str, Any]:
    """What an opened row shows, by `sae/feature`: words, and contexts with activations in SHADES steps of the
    feature's maximum."""
    wanted = {(r.sae, f) for r in rows for f in (r.i, r.j)}
    known = features(run, wanted)
    ids = sorted({f for _, f in wanted})
    where = pc.field("feature").isin(ids) & (pc.field("rank") < CONTEXTS)
    columns = ("sae", "feature", "rank", "max_value", "position", "tokens", "values")
    contexts: dict[Key, list[dict[str, Any]]] = {}
    for row in run.table("contexts", columns=columns, where=where).sort_by("rank").to_pylist():
        contexts.setdefault((row["sae"], row["feature"]), []).append(row)
    result: dict[str, Any] = {}
    for key in sorted(wanted):
        row = known.get(key, {})
        most = max([c["max_value"] for c in contexts.get(key, [])], default=0.0)
        result[f"{key[0]}/{key[1]}"] = {
            "gloss": visible(row.get("gloss") or NO_GLOSS),
            "source": visible(row.get("gloss_source") or ""),
            "density": number(row.get("density")),
            "max": number(row.get("max_act")),
            "in": [_token(t) for t in (row.get("tokens_in_str") or [])[:10]],
            "out": [_token(t) for t in (row.get("tokens_out_str") or [])[:10]],
            "contexts": [_context(c, most) for c in contexts.get(key, [])],
        }
    return result


def _context(row: Mapping[str, Any], most: float) -> dict[str, Any]:
    shades = [_shade(v or 0.0, most) for v in row["values"]]
    values = [number(v, digits=2) if v and v > 0 else "" for v in row["values"]]
    return {
        "t": [_token(t) for t in row["tokens"]],
        "s": shades,
        "v": values,
        "max": number(row["max_value"], digits=2),
    }


def shaded(tokens: Sequence[str], values: Sequence[float], most: float) -> Markup:
    """A text, its tokens the darker the more a feature fires on them; `most` is the darkest."""
    spans = []
    for token, value in zip(tokens, values, strict=True):
        told = (
            Markup(' class="s{}" title="{}"').format(_shade(value, most), number(value)) if value > 0 else ""
        )
        spans.append(Markup("<span{}>{}</span>").format(told, _token(token)))
    return Markup('<p class="context">{}</p>').format(Markup("").join(spans))


def _shade(value: float, most: float) -> int:
    return max(0, round(SHADES * value / most)) if most > 0 else 0


def _token(text: str) -> str:
    return visible(text, limit=60)


def _row(
    row: Mapping[str, Any], known: Mapping[Key, Mapping[str, Any]], effects: Sequence[Effect]
) -> PairRow:
    glosses = [known.get((row["sae"], row[s]), {}).get("gloss") or NO_GLOSS for s in "ij"]
    flags = [
        name for name, on in (("duplicate?", row["is_duplicate"]), ("dense or dead", row["is_dense"])) if on
    ]
    return PairRow(
        sae=row["sae"],
        i=row["i"],
        j=row["j"],
        gloss_i=visible(glosses[0]),
        gloss_j=visible(glosses[1]),
        interference=row["interference"],
        similarity=row["similarity"],
        z=row["z_covariance"],
        flags=flags,
        effects=list(effects),
    )
