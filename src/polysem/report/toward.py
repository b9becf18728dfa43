"""Which unrelated features push the model toward places, people, numbers: measured pushes by what their target is about."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from polysem.categories import builtin, words_of
from polysem.config import Study
from polysem.report.cards import FLOORS, half_width
from polysem.report.pairs import NO_GLOSS, Key, PairRow, features
from polysem.report.panels import RELATIONS, Locus
from polysem.report.source import Run
from polysem.report.text import count, fixed, interval, plural, visible

QUOTED = "( — as in )?«[^»]*»?"
"""pattern of what a gloss quotes, with the words that lead to it in glosses made from tokens"""
SHOWN = 6
"""pushes of every category"""
KINDS = {
    "location": "places",
    "person": "people",
    "number": "numbers",
    "time": "times",
    "emotion": "emotions",
    "animal": "animals",
    "color": "colours",
    "science": "science",
}
"""category -> what people call it, in the order of the page"""


VERBS = {"in": "activate it", "out": "it writes"}


def toward_section(run: Run, locus: Locus | None, rows: Sequence[PairRow]) -> list[dict[str, Any]]:
    """What the template prints: every category with a target among the pushes, and its largest effects.

    A target is about a category if one of its tokens that were read, or its gloss, is or holds a word of it.
    """
    if locus is None:
        return []
    pushes = locus.pair_effects.filter(pc.equal(locus.pair_effects["relation"], "pair")).to_pylist()
    known = features(run, {(r["sae"], f) for r in pushes for f in (r["source"], r["target"])})
    listed = {(row.sae, row.i, row.j): k for k, row in enumerate(rows)}
    found = []
    for category, name in KINDS.items():
        words = builtin().words[category]
        about = {
            (key, tokens): _hits(row, tokens, words)
            for key, row in known.items()
            for tokens in locus.token_sets
        }
        mine = [r for r in pushes if about[_target(r), r["token_set"]]]
        mine.sort(key=lambda r: (-r["logodds"], r["sae"], r["source"], r["target"], r["token_set"]))
        if mine:
            found.append(
                {
                    "name": name,
                    "said": _said(mine, _controls(locus, mine), study=run.study),
                    "rows": [
                        _row(r, known, about[_target(r), r["token_set"]], listed, study=run.study)
                        for r in mine[:SHOWN]
                    ],
                }
            )
    return found


def _target(row: Mapping[str, Any]) -> Key:
    return row["sae"], row["target"]


def _hits(row: Mapping[str, Any], tokens: str, words: frozenset[str]) -> list[str]:
    """The words of a category that a feature's tokens are, in their order, then those that only its gloss names."""
    read = [text.strip().casefold() for text in row.get(f"tokens_{tokens}_str") or []]
    named = sorted(words_of(own_words(row.get("gloss") or "")))
    return list(dict.fromkeys(word for word in (*read, *named) if word in words))


def own_words(gloss: str) -> str:
    """A gloss without the text that it quotes between guillemets: where a feature fired once is not what it is about."""
    return re.sub(QUOTED, " ", gloss)


def _said(rows: Sequence[Mapping[str, Any]], controls: Sequence[Mapping[str, Any]], *, study: Study) -> str:
    """How much there is to choose from, and how often any push does as much: a control on the same tokens."""
    targets = len({_target(r) for r in rows})
    above = sum(_above(r, study) for r in rows)
    said = f"{plural(len(rows), 'effect')} on {plural(targets, 'target')} about it; {count(above)} of them "
    said += f"({_percent(above, len(rows))}) with an interval above 0"
    if not controls:
        return said + "."
    same = sum(_above(r, study) for r in controls)
    return f"{said}, and {_percent(same, len(controls))} of those of {count(len(controls))} {RELATIONS[controls[0]['relation']]}."


def _percent(n: int, total: int) -> str:
    return f"{100 * n / total:.0f} %"


def _controls(locus: Locus, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Effects of the best control on the same tokens of the same targets."""
    wanted = {(*_target(r), r["token_set"]) for r in rows}
    for relation in FLOORS:
        own = locus.pair_effects.filter(pc.equal(locus.pair_effects["relation"], relation)).to_pylist()
        found = [r for r in own if (*_target(r), r["token_set"]) in wanted]
        if found:
            return found
    return []


def _above(row: Mapping[str, Any], study: Study) -> bool:
    """Whether the whole interval of an effect is above 0."""
    half = half_width(row["logodds_se"], row["n_prompts"], level=study.effects.level)
    return half is not None and row["logodds"] - half > 0


def _why(tokens: str, row: Mapping[str, Any], hits: Sequence[str]) -> str:
    """What makes a target one of the category's, and of how many tokens."""
    read = row.get(f"tokens_{tokens}_str") or []
    own = sum(text.strip().casefold() in hits for text in read)
    named = ", ".join(visible(word, limit=40) for word in hits[:6])
    if not own:
        return f"its gloss names {named}"
    return f"{own} of {plural(len(read), 'token')} that {VERBS[tokens]}: {named}"


def _row(
    row: Mapping[str, Any],
    known: Mapping[Key, Mapping[str, Any]],
    hits: Sequence[str],
    listed: Mapping[tuple[str, int, int], int],
    *,
    study: Study,
) -> dict[str, Any]:
    sae, source, target = row["sae"], row["source"], row["target"]
    half = half_width(row["logodds_se"], row["n_prompts"], level=study.effects.level)
    return {
        "source": visible(known.get((sae, source), {}).get("gloss") or NO_GLOSS),
        "target": visible(known.get((sae, target), {}).get("gloss") or NO_GLOSS),
        "ids": (source, target),
        "sae": visible(sae, limit=60),
        "why": _why(row["token_set"], known.get(_target(row), {}), hits),
        "effect": fixed(row["logodds"], sign=True),
        "interval": interval(None, None)
        if half is None
        else interval(row["logodds"] - half, row["logodds"] + half),
        "interference": fixed(row["interference"], sign=True),
        "similarity": fixed(row["similarity"]),
        "place": listed.get((sae, min(source, target), max(source, target))),
    }
