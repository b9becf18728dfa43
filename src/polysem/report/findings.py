"""Headline findings as sentences: an estimate, its interval, what it rests on, and only the word that its grades allow.

Nothing is judged here. The claim (*predicts*, *associated*, *no effect*, ...), the grades and the line that disagrees are
those of the tables FINDINGS and GRADED (`stats.grades`); a contrast is told up to the 95th percentile of the interference
that it rests on, and no further.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from polysem.report import words
from polysem.report.text import Real, interval, number, p_value, plural, visible
from polysem.stats.arms import PRIMARY
from polysem.stats.rows import SHARE_MARGIN, parse_group
from polysem.vocabulary_findings import GRADES

Told = Mapping[str, Any]
"""a row of FINDINGS"""
_GIVEN = {"agrees": "yes", "disagrees": "no", "untested": "not tested"}


class Finding(NamedTuple):
    """One question: the answer and what it rests on."""

    mark: str
    """css class: found, hint, null, open, none"""
    claim: str
    """in words"""
    question: str
    answer: str
    grades: list[tuple[str, str]]
    """(grade, yes | no | not tested); of declared questions with a p value"""
    robustness: str
    """the lines behind the claim, or those that disagree with *predicts*; "" where nothing is claimed"""
    evidence: str
    note: str
    estimate: Real | None
    """as told: over `reach` of interference, in nats, or a share minus one half"""
    lo: Real | None
    hi: Real | None
    margin: Real


def as_told(contrast: str, *, reach: Real) -> tuple[float, bool, str]:
    """How a contrast is told: what its numbers are multiplied by, whether it is a share, and what it is."""
    if contrast == "slope_interference":
        return reach, False, f"effect of interference {number(reach, digits=2)} against 0"
    if contrast == "sign_agreement":
        return 1.0, True, "agreement of signs beyond one half"
    return 1.0, False, words.contrast(contrast).label


def finding(
    row: Mapping[str, Any], told: Told, lines: Iterable[Mapping[str, Any]], *, margin: Real
) -> Finding:
    """Question and answer.

    Args:
        row: of EFFECTS.
        told: of FINDINGS, for the same contrast and group.
        lines: of GRADED, for the same.
        margin: nats of log-odds.
    """
    contrast, reach = str(row["contrast"]), told["reach"] if told["reach"] is not None else math.nan
    scale, share, what = as_told(contrast, reach=reach)
    shift = 0.5 if share else 0.0
    estimate, lo, hi = (
        None if row[k] is None else scale * (row[k] - shift) for k in ("estimate", "lo", "hi")
    )
    limit = SHARE_MARGIN if share else margin
    claim = words.claim(told["claim"])
    graded = told["declared"] and row["p"] is not None
    return Finding(
        mark=claim.mark,
        claim=claim.label,
        question=words.contrast(contrast).question.format(words.tokens(told["token_set"])) + _beyond(row),
        answer=_answer(row, told, estimate, lo, hi, limit=limit),
        grades=[(GRADES[g].label, _GIVEN[told[g]]) for g in GRADES] if graded else [],
        robustness=_robustness(told, lines),
        evidence=f"{_evidence(row, estimate, lo, hi, what, share=share)}. An effect: {words.effect(told['locus'])}",
        note=visible(row["note"] or ""),
        estimate=estimate,
        lo=lo,
        hi=hi,
        margin=limit,
    )


def _beyond(row: Mapping[str, Any]) -> str:
    """What a question leaves out: the path by which its tokens were chosen."""
    outcome = parse_group(str(row["group"])).get("outcome", PRIMARY)
    return "" if outcome == PRIMARY else f" ({words.outcome(outcome)})"


def _answer(
    row: Mapping[str, Any],
    told: Told,
    estimate: Real | None,
    lo: Real | None,
    hi: Real | None,
    *,
    limit: Real,
) -> str:
    match told["claim"]:
        case "not_estimated":
            return "No number can be given."
        case "no_interval":
            return "A number, but nothing to judge it by: there is no interval."
        case "no_effect" | "too_small":
            return "Not to an extent that matters: larger differences than the margin are ruled out."
        case "undeclared":
            return f"A description, not a claim: the interval {'excludes' if _excludes_zero(lo, hi) else 'holds'} zero."
        case "not_resolved":
            return _unresolved(row, lo, hi, limit=limit)
        case _:
            assert estimate is not None
            return _claimed(row, told, estimate)


def _claimed(row: Mapping[str, Any], told: Told, estimate: Real) -> str:
    up, size, sure = estimate > 0, number(abs(estimate)), told["claim"] == "predicts"
    match str(row["contrast"]):
        case "slope_interference":
            more = "higher" if up else "lower"
            return (
                f"{'It predicts it' if sure else 'Associated, short of “predicts”'}: with a source at interference "
                f"{number(told['reach'], digits=2)} their log-odds end {size} nats {more} than with one at 0 "
                f"({number(math.exp(estimate))} times the odds); 95 % of the pairs interfere less."
            )
        case "sign_agreement":
            answer = "Yes" if up else "No, the opposite way"
            if not sure:
                answer = f"Associated, short of “predicts”{'' if up else ', and the opposite way'}"
            return f"{answer}: {50 + 100 * estimate:.0f} % of the pairs do; chance is 50 %."
        case contrast:
            who = "directions at the pairs' cosines" if contrast == "geometry_effect" else "pairs"
            over = (
                f"over all bins of interference {who} move log-odds by {size} nats {'more' if up else 'less'}"
            )
            if sure:
                return f"{'Yes' if up else 'No'}: {over}."
            return f"In these pairs {'yes' if up else 'no'}, but the grades below do not all agree: {over}."


def _robustness(told: Told, lines: Iterable[Mapping[str, Any]]) -> str:
    """What holds the claim *predicts* beyond its p, or what keeps it from being made."""
    if told["claim"] == "predicts":
        said = "; ".join(visible(r["said"]) for r in lines if r["grade"] != "significant")
        return f"{said[:1].upper()}{said[1:]}."
    if told["claim"] == "associated":
        return f"Against “predicts”: {visible(told['against'], limit=1000)}."
    return ""


def _excludes_zero(lo: Real | None, hi: Real | None) -> bool:
    return lo is not None and hi is not None and (lo > 0 or hi < 0)


def _unresolved(row: Mapping[str, Any], lo: Real | None, hi: Real | None, *, limit: Real) -> str:
    """Why there is no answer: luck cannot be excluded, or too wide."""
    if _excludes_zero(lo, hi):
        return (
            "Not resolved: alone the interval would exclude zero, but several questions were asked at once, and "
            f"together one such interval is not rare enough (adjusted {p_value(row['p_adj'], name='p')})."
        )
    if lo is not None and hi is not None and -limit <= lo and hi <= limit:
        return "Not resolved: no difference is seen, and the equivalence test does not rule out one at the margin."
    return "Not resolved: the interval holds both zero and differences that would matter."


def _evidence(
    row: Mapping[str, Any], estimate: Real | None, lo: Real | None, hi: Real | None, what: str, *, share: bool
) -> str:
    said = []
    told = f", {what}" if row["contrast"] == "slope_interference" else ""
    if estimate is not None and lo is not None and hi is not None:
        level = f"{100 * row['level']:g} % interval"
        if share:
            shown = [f"{50 + 100 * v:.1f}" for v in (estimate, lo, hi)]
            said.append(f"{shown[0]} % ({level} {shown[1]} to {shown[2]} %)")
        else:
            said.append(f"{number(estimate, sign=True)} nats ({level} {interval(lo, hi)}){told}")
    if row["p"] is not None:
        adjusted = "" if row["p_adj"] is None else f", after Holm {p_value(row['p_adj'], name='p')}"
        said.append(p_value(row["p"], name="p") + adjusted)
    alone = row["contrast"] in ("slope_interference", "sign_agreement")
    counted = [
        plural(row["n_pairs"], "pair" if alone else "arm"),
        plural(row["n_targets"], "target"),
        plural(row["n_sources"], "source"),
        plural(row["n_prompts"], "prompt"),
        f"{plural(row['n_missing'], 'planned trial')} without an outcome",
    ]
    return "; ".join([*said, ", ".join(counted)])
