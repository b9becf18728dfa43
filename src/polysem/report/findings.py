"""Headline findings as sentences: an estimate, its interval, what it rests on, and only the words that these
allow.

No stars, and each verdict has its test. *Resolved* needs an adjusted p below one minus the level: the declared
questions are several, and an interval of one of them excludes zero by luck more often than its level says.
*No effect* needs the equivalence test (two one-sided tests) against the declared margin, `effects.margin` of
the study file in nats of log-odds. Everything else is *not resolved*. A question that was not declared (any
locus but the first) is described and gets no verdict.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from polysem.report.text import Real, interval, number, p_value, plural
from polysem.stats.rows import SHARE_MARGIN
from polysem.stats.rows import SLOPE_STEP as STEP


class Finding(NamedTuple):
    """One declared hypothesis: question, answer and what the answer rests on."""

    verdict: str
    """css class: found, null, open, none"""
    verdict_text: str
    question: str
    answer: str
    evidence: str
    note: str
    estimate: Real | None
    """as told: per STEP of interference, in nats, or a share minus one half"""
    lo: Real | None
    hi: Real | None
    margin: Real


_TOKENS = {"in": "tokens that activate the target", "out": "tokens that the target writes"}
_QUESTIONS = {
    "slope_interference": "Does interference predict how much the {} move?",
    "pair_minus_random_feature": "Do interfering features move the {} more than random features do?",
    "pair_minus_random_direction": "Do interfering features move the {} more than random directions do?",
    "sign_agreement": "Do the {} move the way the sign of the interference predicts?",
}


def verdict(row: Mapping[str, Any]) -> tuple[str, str]:
    """Which words a row of EFFECTS allows: (class, text)."""
    alpha = 1 - row["level"]
    if row["estimate"] is None or row["p"] is None:
        return "none", "not estimated" if row["estimate"] is None else "no interval"
    equivalent = row["p_equivalent"] is not None and row["p_equivalent"] < alpha
    if row["p_adj"] is None:
        return "open", "not a declared question"
    if row["p_adj"] < alpha:
        return ("null", "too small to matter") if equivalent else ("found", "resolved")
    return ("null", "no effect") if equivalent else ("open", "not resolved")


def finding(row: Mapping[str, Any], parts: Mapping[str, str], *, margin: Real) -> Finding:
    """Question and answer of one declared hypothesis.

    Args:
        row: of EFFECTS.
        parts: of its group.
        margin: nats of log-odds.
    """
    contrast = str(row["contrast"])
    share = contrast == "sign_agreement"
    scale, shift = (STEP if contrast == "slope_interference" else 1.0), (0.5 if share else 0.0)
    estimate, lo, hi = (
        None if row[k] is None else scale * (row[k] - shift) for k in ("estimate", "lo", "hi")
    )
    limit = SHARE_MARGIN if share else margin
    kind, words = verdict(row)
    return Finding(
        verdict=kind,
        verdict_text=words,
        question=_QUESTIONS[contrast].format(_TOKENS[parts["tokens"]]),
        answer=_answer(row, estimate, kind, limit=limit, lo=lo, hi=hi),
        evidence=_evidence(row, estimate, lo, hi, share=share),
        note=str(row["note"] or ""),
        estimate=estimate,
        lo=lo,
        hi=hi,
        margin=limit,
    )


def _answer(
    row: Mapping[str, Any], estimate: Real | None, kind: str, *, limit: Real, lo: Real | None, hi: Real | None
) -> str:
    contrast = str(row["contrast"])
    if estimate is None:
        return "No number can be given."
    if kind == "none":
        return "A number, but nothing to judge it by: there is no interval."
    if kind == "open":
        return _unresolved(row, lo, hi, limit=limit)
    if kind == "null":
        return "Not to an extent that matters: larger differences than the margin are ruled out."
    up = estimate > 0
    size = number(abs(estimate))
    match contrast:
        case "slope_interference":
            return (
                f"Yes{'' if up else ', inversely'}. A source at interference {STEP} "
                f"{'raises' if up else 'lowers'} their log-odds by {size} nats more than a source at 0 does: "
                f"{number(math.exp(estimate))} times the odds."
            )
        case "sign_agreement":
            answer = "Yes" if up else "No, the opposite way"
            return f"{answer}: {50 + 100 * estimate:.0f} % of the pairs do; chance is 50 %."
        case _:
            words = f"{'Yes' if up else 'No'}. Over all interference bins they move log-odds by {size} nats"
            return f"{words} {'more' if up else 'less'}."


def _unresolved(row: Mapping[str, Any], lo: Real | None, hi: Real | None, *, limit: Real) -> str:
    """Why there is no answer: not asked, or luck cannot be excluded, or too wide."""
    excludes_zero = lo is not None and hi is not None and (lo > 0 or hi < 0)
    if row["p_adj"] is None:
        where = "excludes" if excludes_zero else "holds"
        return f"Not among the declared questions, so this is a description: the interval {where} zero."
    if excludes_zero:
        return (
            "Not resolved: alone the interval would exclude zero, but several questions were asked at once, and "
            f"together one such interval is not rare enough (adjusted {p_value(row['p_adj'], name='p')})."
        )
    if lo is not None and hi is not None and -limit <= lo and hi <= limit:
        return "Not resolved: no difference is seen, and the equivalence test does not rule out one at the margin."
    return "Not resolved: the interval holds both zero and differences that would matter."


def _evidence(
    row: Mapping[str, Any], estimate: Real | None, lo: Real | None, hi: Real | None, *, share: bool
) -> str:
    said = []
    if estimate is not None and lo is not None and hi is not None:
        level = f"{100 * row['level']:g} % interval"
        if share:
            shown = [f"{50 + 100 * v:.1f}" for v in (estimate, lo, hi)]
            said.append(f"{shown[0]} % ({level} {shown[1]} to {shown[2]} %)")
        else:
            said.append(f"{number(estimate, sign=True)} nats ({level} {interval(lo, hi)})")
    if row["p"] is not None:
        adjusted = "" if row["p_adj"] is None else f", after Holm {p_value(row['p_adj'], name='p')}"
        said.append(p_value(row["p"], name="p") + adjusted)
    both = str(row["contrast"]).startswith("pair_minus")
    counted = [
        f"{row['n_pairs']} pairs and controls" if both else plural(row["n_pairs"], "pair"),
        plural(row["n_targets"], "target"),
        plural(row["n_sources"], "source"),
        plural(row["n_prompts"], "prompt"),
        f"{plural(row['n_missing'], 'planned trial')} without an outcome",
    ]
    return "; ".join([*said, ", ".join(counted)])
