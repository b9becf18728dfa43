"""How sure one can be: other choices, other models of the errors, single pairs, other SAEs, and what the design could
see."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from polysem.report import charts, words
from polysem.report.findings import as_told
from polysem.report.html import Figure
from polysem.report.panels import LocusSection
from polysem.report.source import where
from polysem.report.svg import padded
from polysem.report.text import count, interval, number, p_value, plural, visible
from polysem.stats.discovery import MAX_SHARE, nameable
from polysem.vocabulary import TOKEN_SETS

_CHECKS = {
    "mixed_model": (
        "Does a mixed model (targets and sources as random effects) see the same slope, {}?",
        {
            "agrees": "It agrees: both resolve the same slope, or neither resolves one.",
            "disagrees": "It disagrees: one of the two resolves a slope and the other does not, or the signs differ. "
            "Trust neither far.",
            "none": "There is no second number.",
        },
    ),
    "qap": (
        "{sae}: is the gradient's effect related to the angle, {}?",
        {
            "related": "Yes, more than the targets' and the features' own sizes and chance would give.",
            "unrelated": "Not that this study could tell: relabelling targets and features gives slopes as large.",
            "none": "This could not be asked.",
        },
    ),
    "missing": (
        "Are trials that failed like those that did not, {}?",
        {
            "random": "Nothing suggests that they differ.",
            "not_random": "They differ: trials are not missing at random, so pairs and controls, or weak and strong "
            "interference, are not compared on equal terms. No method of this report repairs that.",
            "none": "This could not be asked.",
        },
    ),
}
"""check -> (question, verdict -> answer)"""
Row = dict[str, str]


def check_rows(table: pa.Table, locus: str) -> list[Row]:
    """Question, answer and numbers of every check of a locus."""
    rows = where(table, locus=locus).to_pylist()
    return [_check(r) for r in rows if r["check"] in ("mixed_model", "missing")]


def qap_rows(table: pa.Table) -> list[Row]:
    """The permutation test of every SAE: about gradients, not about trials."""
    return [_check(r) for r in where(table, check="qap").to_pylist()]


def _check(r: Mapping[str, Any]) -> Row:
    question, answers = _CHECKS[r["check"]]
    missing = r["check"] == "missing"
    said = []
    if r["estimate"] is not None and not missing:
        said.append(f"{number(r['estimate'], sign=True)} {r['unit']}")
    if r["lo"] is not None:
        said.append(interval(r["lo"], r["hi"]))
    if r["p"] is not None:
        said.append(p_value(r["p"], name="p"))
    said.append(f"{count(r['n'])} {'arms' if missing else 'pairs'}")
    if r["note"]:
        said.append(visible(r["note"]))
    return {
        "question": question.format(words.asked(r["token_set"]), sae=visible(r["sae"])),
        "answer": "No trial failed." if missing and r["p"] is None else answers[r["verdict"]],
        "numbers": "; ".join(said),
    }


def pair_sentences(table: pa.Table, locus: str, *, level: float) -> Iterator[str]:
    """How many single pairs stand out, per token set, or that the plan cannot tell and what it would take."""
    alpha = 1 - level
    untestable: dict[tuple[int, int], list[str]] = {}
    for tokens, read in TOKEN_SETS.items():
        rows = where(table, locus=locus, token_set=tokens).to_pylist()
        if not rows:
            continue
        null = min(r["n_null"] for r in rows)
        able = nameable(len(rows), null, alpha=alpha)
        if not able.testable:
            untestable.setdefault((len(rows), null), []).append(read.label)
            continue
        bh, by = (sum(r[q] <= alpha for r in rows) for q in ("q_bh", "q_by"))
        said = (
            f"{read.title}: {plural(bh, 'pair')} of {count(len(rows))} "
            f"{'moves' if bh == 1 else 'move'} the target further than random features do, if one in "
            f"{round(1 / alpha)} of such finds may be false (Benjamini-Hochberg); {count(by)} by the stricter rule that "
            "holds for any dependence between pairs (Benjamini-Yekutieli)."
        )
        if bh == 0:
            said += (
                f" With {plural(null, 'random feature')} to compare with, at least {plural(able.together, 'pair')} would "
                "have to exceed all of them before any could be named."
            )
        yield said
    for (n, null), read in untestable.items():
        able = nameable(n, null, alpha=alpha)
        yield (
            f"Not testable with this plan ({'; '.join(read)}). {count(n)} pairs were asked, each beside "
            f"{plural(null, 'random feature')}: none could be named unless {count(able.together)} of them exceeded all "
            f"of these at once. With {count(able.needed)} random features in each SAE it would take "
            f"{100 * MAX_SHARE:g} % of the pairs; to name a single one, {count(able.needed_for_one)}."
        )


def one_dictionary(saes: Mapping[str, str]) -> str:
    """What a study cannot claim, of the sites that it sees through one SAE only; "" where each has two.

    Args:
        saes: the site of every SAE, by label.
    """
    sites = list(saes.values())
    alone = sorted({site for site in sites if sites.count(site) == 1})
    if not alone:
        return ""
    return (
        f"{', '.join(visible(site) for site in alone)}: one SAE. It is one of many that would reconstruct the same activations, "
        "so this study cannot say that a pair, its interference or its effect is a fact about the model and not about this SAE. "
        "In the SAEs measured so far most pairs that interfere do not in another seed's. What is said of all pairs together holds "
        "for this SAE; add a second of the site to see whether it holds for another."
    )


def replication_sentences(table: pa.Table) -> Iterator[str]:
    """What another SAE of the same site says of the same pairs."""
    named = set()
    for r in sorted(table.to_pylist(), key=lambda r: r["measure"] != "steered"):
        what = "steered effects" if r["measure"] == "steered" else "the gradients' effects"
        first, other, read = visible(r["sae"]), visible(r["other"]), words.tokens(r["token_set"])
        said = f"{first} and {other}, {read}: "
        if (first, other) not in named:
            named.add((first, other))
            said = (
                f"{first} and {other} read the same site. {100 * r['matched']:.0f} % of the features of the first have a "
                "counterpart in the second (cosine at least 0.7; on average the best cosine is "
                f"{number(r['best_cosine'], digits=2)}). {read.capitalize()}: "
            )
        if r["correlation"] is None:
            yield f"{said}whether {what} of pairs come back cannot be said: {visible(r['note'] or '')}."
            continue
        yield (
            f"{said}for {count(r['n_pairs'])} pairs of features that both have, {what} correlate at "
            f"{number(r['correlation'], digits=2)} ({number(r['lo'], digits=2)} to {number(r['hi'], digits=2)}), and the sign "
            f"is the same in {100 * r['sign_agreement']:.0f} % ({100 * r['sign_lo']:.0f} to {100 * r['sign_hi']:.0f} %; "
            "chance is 50 %)."
        )
    if any(r["correlation"] is not None for r in table.to_pylist()):
        yield "What does not come back belongs to one SAE, its directions or its tokens."


def specification_panels(table: pa.Table, locus: str, *, level: float) -> Iterator[Figure]:
    """One figure per token set: the slope on interference under every choice of pairs and fixed effects, as one curve
    with one p value, in the order of the estimates."""
    choices = ("estimate", "similarity", "min_interference", "max_similarity", "fixed_effects")
    for tokens in TOKEN_SETS:
        rows = [
            r for r in where(table, locus=locus, token_set=tokens).to_pylist() if r["estimate"] is not None
        ]
        if not rows:
            continue
        rows.sort(key=lambda r: tuple(r[k] for k in choices))
        ends = [(r["estimate"], r["lo"], r["hi"]) for r in rows]
        drawn = [
            (
                *end,
                f"{number(r['estimate'], sign=True)}, {interval(r['lo'], r['hi'])}: |interference| ≥ "
                f"{r['min_interference']:g}, {_unrelated(r)}, within "
                f"{r['fixed_effects'].replace('_', ' ')}s, {r['n_pairs']} pairs",
            )
            for end, r in zip(ends, rows, strict=True)
        ]
        same = max(sum(r["estimate"] > 0 for r in rows), sum(r["estimate"] < 0 for r in rows))
        said = f"{same} of {len(rows)} specifications have the same sign. {_joint(rows[0]['p_joint'], level=level)}"
        said += _by_measure(rows)
        title = f"Every defensible analysis: {words.asked(tokens)}"
        caption = f"{said} Each dot is one choice of thresholds and fixed effects, with its interval."
        lo, hi = axis_of(ends)
        out = [end for end in ends if any(v is not None and not lo <= v <= hi for v in end)]
        if out:
            far = max(abs(v) for end in out for v in end if v is not None)
            run = "interval runs" if len(out) == 1 else "intervals run"
            caption += f" {len(out)} {run} beyond the axis (arrows), the furthest to ±{number(far)}."
        yield Figure(title, charts.intervals(drawn, title=title, told=said, y_range=(lo, hi)), caption)


def _unrelated(r: Mapping[str, Any]) -> str:
    at = f"similarity < {r['max_similarity']:g}"
    return at if r["similarity"] == "gloss" else f"{at} by {visible(r['similarity'])} (same quantile)"


def _by_measure(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of each measure by which pairs may be unrelated, the median slope; "" where there is one measure."""
    names = list(
        dict.fromkeys(sorted((r["similarity"] for r in rows), key=lambda n: (n == "all", n != "gloss", n)))
    )
    if len(names) < 2:
        return ""
    medians = [median(r["estimate"] for r in rows if r["similarity"] == name) for name in names]
    told = (f"{number(m, sign=True)} by {visible(name)}" for name, m in zip(names, medians, strict=True))
    return f" Median slope of pairs that are unrelated: {', '.join(told)}."


def axis_of(rows: Sequence[tuple[float | None, float | None, float | None]]) -> tuple[float, float]:
    """A range for intervals (estimate, lo, hi) that a single wide one does not stretch: it holds zero, every estimate that
    lies within three ranges of the middle half, and as much again as the middling interval reaches."""
    estimates = np.array([r[0] for r in rows if r[0] is not None])
    low, middle, high = np.quantile(estimates, [0.25, 0.5, 0.75])
    reaches = [
        max(hi - e, e - lo) for e, lo, hi in rows if e is not None and lo is not None and hi is not None
    ]
    room = 2 * float(np.median(reaches)) if reaches else 0.0
    spread = 3 * max(high - low, 1e-12 + room)
    kept = estimates[np.abs(estimates - middle) <= spread]
    return padded([float(kept.min()) - room, float(kept.max()) + room], include=(0.0,))


def _joint(p: float | None, *, level: float) -> str:
    if p is None:
        return "There is no joint test."
    said = (
        "as a whole they are stronger than chance would give"
        if p < 1 - level
        else "as a whole they are not stronger than chance could give, however single ones look"
    )
    return f"Dealing effects to sources at random within each target: {said} (joint {p_value(p, name='p')})."


def power_rows(table: pa.Table, locus: LocusSection) -> list[Row]:
    """What the design could see: one row per declared contrast, in the unit in which findings are told."""
    found = []
    reach = {(f["contrast"], f["token_set"]): f["reach"] for f in locus.findings}
    for r in where(table, locus=locus.name).to_pylist():
        far = reach.get((r["contrast"], r["token_set"]))
        scale, share, what = as_told(r["contrast"], reach=1.0 if far is None else far)
        seen, absent, margin = (scale * r[k] for k in ("smallest", "smallest_absent", "margin"))
        shown = [f"{100 * v:.0f} points" if share else f"{number(v)} nats" for v in (seen, absent, margin)]
        could = (
            "could show an effect of this size, and could show that there is none beyond the margin"
            if absent <= margin
            else "could show an effect of this size; too small a study to show that there is none"
        )
        found.append(dict(zip(("smallest", "absent", "margin"), shown, strict=True)))
        found[-1] |= {"what": f"{what}, T-{r['token_set']}", "words": could}
    return found
