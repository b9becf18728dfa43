"""Which unrelated features steer this model toward places, people, numbers: what was measured on the category's own
tokens, whatever target the push was planned for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from polysem.categories import builtin, is_about
from polysem.report import words
from polysem.report.pairs import NO_GLOSS, Key, PairRow, features
from polysem.report.panels import LocusSection
from polysem.report.source import Run
from polysem.report.text import count, fixed, interval, plural, visible
from polysem.vocabulary import CATEGORIES, LOCI

SHOWN = 6
"""features of every category"""
Rows = Sequence[Mapping[str, Any]]


def toward_section(run: Run, locus: LocusSection | None, rows: Sequence[PairRow]) -> list[dict[str, Any]]:
    """What the template prints: every category that the vocabulary has words of, and the unrelated features that move
    the model toward it.

    A feature is unrelated to a category if neither its gloss nor a token that activates it is or holds a word of it. It
    moves the model if the interval of its effect on the category's own tokens lies above 0 on the select prompts and
    on the confirm prompts; features are ordered by the former and shown with the latter.
    """
    if locus is None:
        return []
    wanted = (pc.field("locus") == locus.name) & (pc.field("dose") > 0)
    table = run.table("toward", where=wanted)
    near = pc.less(pc.abs(pc.subtract(table["dose"], locus.dose)), 1e-5 * locus.dose)
    table, level = table.filter(near), run.study.effects.level
    table = with_ends(with_ends(table, "effect", "n_prompts", level=level), "select", "n_select", level=level)
    pushes = table.to_pylist()
    known = features(run, {(r["sae"], r["source"]) for r in pushes if r["source"] >= 0})
    listed = _listed(rows)
    found = []
    for name, category in CATEGORIES.items():
        mine = [r for r in pushes if r["category"] == name]
        own = [r for r in mine if (r["sae"], r["source"]) in known]
        about = {key for key, feature in known.items() if _is_about(feature, name)}
        unrelated = [r for r in own if (r["sae"], r["source"]) not in about]
        if unrelated:
            movers = sorted((r for r in unrelated if moves(r)), key=_first)
            said = _said(locus, unrelated, _floor(mine), n_related=len(own) - len(unrelated))
            shown = [_row(r, known[r["sae"], r["source"]], name, listed) for r in movers[:SHOWN]]
            found.append({"name": category.label, "said": said, "rows": shown})
    first = next((c for c in found if c["rows"]), None)
    return [c | {"open": c is first} for c in found]


def with_ends(table: pa.Table, mean: str, n: str, *, level: float) -> pa.Table:
    """TOWARD with the ends of the interval of one of its means over prompts (Student's t): `{mean}_lo` and `{mean}_hi`;
    NaN where there is none."""
    import numpy as np
    from scipy.special import stdtrit

    df = np.maximum(table[n].to_numpy() - 1, 1)
    half = stdtrit(df, 0.5 + level / 2) * table[f"{mean}_se"].to_numpy().astype(float)
    at = table[mean].to_numpy().astype(float)
    return table.append_column(f"{mean}_lo", pa.array(at - half)).append_column(
        f"{mean}_hi", pa.array(at + half)
    )


def moves(row: Mapping[str, Any]) -> bool:
    """Whether both intervals of a row of `with_ends` lie above 0; without select prompts, whether the one does."""
    return row["effect_lo"] > 0 and (row["select_lo"] > 0 or not row["n_select"])


def _is_about(feature: Mapping[str, Any], category: str) -> bool:
    return is_about(feature["gloss"], feature["tokens_in_str"] or (), builtin().words[category])


def _first(row: Mapping[str, Any]) -> tuple[float, str, str]:
    """By the lower end on the select prompts; of the confirm prompts where there are none."""
    return -(row["select_lo"] if row["n_select"] else row["effect_lo"]), row["sae"], row["push"]


def _floor(rows: Rows) -> Rows:
    """Those of the best control that is no feature."""
    for relation in words.floors():
        if found := [r for r in rows if r["relation"] == relation and r["source"] < 0]:
            return found
    return []


def _said(locus: LocusSection, rows: Rows, controls: Rows, *, n_related: int) -> str:
    """How much there is to choose from, and how often any direction does as much."""
    what = LOCI[locus.name].source
    said = f"{plural(len(rows), what)} that {'is' if len(rows) == 1 else 'are'} not about it "
    said += f"({count(n_related)} more {'is' if n_related == 1 else 'are'}); {_share(rows)} move the model toward it"
    if not controls:
        return f"{said}."
    return f"{said}, and {_share(controls)} {words.relation(controls[0]['relation']).label}."


def _share(rows: Rows) -> str:
    n = sum(moves(r) for r in rows)
    return f"{count(n)} of {count(len(rows))} ({100 * n / len(rows):.0f} %)"


def _listed(rows: Sequence[PairRow]) -> dict[Key, int]:
    """(SAE, feature) -> its first row in the list of pairs."""
    found: dict[Key, int] = {}
    for k, row in enumerate(rows):
        for feature in (row.i, row.j):
            found.setdefault((row.sae, feature), k)
    return found


def _row(
    row: Mapping[str, Any], feature: Mapping[str, Any], category: str, listed: Mapping[Key, int]
) -> dict[str, Any]:
    return {
        "source": visible(feature.get("gloss") or NO_GLOSS),
        "id": row["source"],
        "sae": visible(row["sae"], limit=60),
        "fires": _some(feature.get("tokens_in_str") or []),
        "writes": _some(_hits(feature.get("tokens_out_str") or [], builtin().words[category])) or "none",
        "effect": fixed(row["effect"], sign=True),
        "interval": interval(row["effect_lo"], row["effect_hi"]),
        "kl": fixed(row["kl"]),
        "place": listed.get((row["sae"], row["source"])),
    }


def _hits(texts: Sequence[str], wanted: frozenset[str]) -> Iterator[str]:
    return (text for text in texts if text.strip().casefold() in wanted)


def _some(texts: Any) -> str:
    """The first few of some tokens, each once."""
    return ", ".join(visible(text.strip(), limit=24) for text in list(dict.fromkeys(texts))[:5])
