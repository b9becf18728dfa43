"""Three doubts about pairs, answered with numbers: is a pair one concept twice, is it unrelated by other measures than the
gloss cosine too, and how well is similarity measured?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from polysem.pairs import DUPLICATE_FIRING, DUPLICATE_INTERFERENCE, DUPLICATE_SWITCH, DUPLICATE_TOKENS
from polysem.report import words as called
from polysem.report.source import Run
from polysem.report.text import count, interval, number, p_value, plural, visible

_LIMITS = (
    ("interference", DUPLICATE_INTERFERENCE, "cosine above {}"),
    ("firing", DUPLICATE_FIRING, "fire on the same tokens (Jaccard above {})"),
    ("switch", DUPLICATE_SWITCH, "one switches the other on in more than {} of contexts"),
    ("tokens", DUPLICATE_TOKENS, "top tokens in common (Jaccard above {})"),
)


def concepts_section(run: Run) -> dict[str, Any] | None:
    """What the template prints; None where no pair was looked at."""
    signals = run.table("signals")
    if not signals.num_rows:
        return None
    rows, measures = signals.to_pylist(), run.table("similarity_model").to_pylist()
    flagged = sum(r["flagged"] for r in rows)
    return {
        "said": f"{count(flagged)} of {plural(len(rows), 'planned pair')} look like one concept twice"
        + (
            "; they are steered like the others, but no declared hypothesis counts them."
            if flagged
            else ": every pair counts."
        ),
        "signals": [_signal(rows, name, limit, words) for name, limit, words in _LIMITS],
        "reliability": [_reliable(r) for r in run.table("reliability").to_pylist()],
        "measures": [_measure(r) for r in measures] if len(measures) > 1 else [],
        "unrelated": _unrelated(run.table("latent_similarity").to_pylist()),
        "senses": _senses(run.table("concepts").to_pylist(), run.table("senses").to_pylist()),
        "one_measure": not measures,
    }


def _unrelated(rows: list[dict[str, Any]]) -> str:
    """Of the planned pairs, how many all measures find unrelated; "" where only one was asked."""
    if not rows or max(r["n_known"] for r in rows) < 2:
        return ""
    by_all, by = sum(r["unrelated_by_all"] for r in rows), Counter[str]()
    for r in rows:
        by.update(name for name in r["related_by"].split(", ") if name)
    told = ", ".join(f"{count(n)} by {visible(name)}" for name, n in sorted(by.items()))
    return (
        f"Of {plural(len(rows), 'planned pair')} whose glosses are unlike, {count(by_all)} are unrelated by every measure that "
        "knows them: only these count as counter-intuitive by the strict choices."
        + (f" Found related: {told}." if told else "")
    )


def _senses(concepts: list[dict[str, Any]], senses: list[dict[str, Any]]) -> str:
    """What the features' contexts say of several concepts in one; "" where nobody looked."""
    if not concepts:
        return ""
    several = sum(r["k"] > 1 for r in concepts)
    mixed = [r["mixed_k"] > 1 for r in concepts if r["mixed_k"] is not None]
    second = sum(r["second_sense"] for r in senses)
    return (
        f"The contexts of {count(several)} of {plural(len(concepts), 'feature')} fall into more than one concept"
        + (
            f"; of as many contexts from two features of like density, {100 * sum(mixed) / len(mixed):.0f} % do"
            if mixed
            else ""
        )
        + f". {count(second)} of {plural(len(senses), 'planned pair')} "
        + f"{'is' if second == 1 else 'are'} related by a second sense only: a concept that is not the feature's largest."
    )


def _measure(r: Mapping[str, Any]) -> dict[str, str]:
    def known(name: str) -> str:
        return number(r[name], digits=2)

    loading = known("loading")
    return {
        "measure": visible(r["measure"]),
        "made_by": visible(r["made_by"]),
        "r_own": known("r_own"),
        "halves": known("reliability_halves"),
        "loading": loading if r["lo"] is None else f"{loading} ({interval(r['lo'], r['hi'])})",
        "reliability": known("reliability"),
        "related": f"{count(r['n_related'])} of {count(r['n_planned'])}",
        "note": visible(r["note"] or ""),
    }


def _signal(rows: Sequence[Mapping[str, Any]], name: str, limit: float, words: str) -> dict[str, str]:
    columns = ("switch_source", "switch_target") if name == "switch" else (name,)
    values = [[abs(r[c]) for c in columns if r[c] is not None] for r in rows]
    known = [max(v) for v in values if v]
    return {
        "what": words.format(f"{100 * limit:g} %" if name == "switch" else f"{limit:g}"),
        "over": count(sum(v > limit for v in known)),
        "median": number(float(pc.approximate_median(pa.array(known)).as_py())) if known else "–",
        "known": count(len(known)),
    }


def _reliable(r: Mapping[str, Any]) -> dict[str, str]:
    def between(estimate: str, lo: str, hi: str) -> str:
        if r[estimate] is None or r[lo] is None:
            return number(r[estimate])
        return f"{number(r[estimate], sign=True)} ({interval(r[lo], r[hi])})"

    return {
        "what": f"{r['locus']}: {called.asked(r['token_set'])}",
        "measure": visible(r["measure"]),
        "r": between("r", "r_lo", "r_hi"),
        "naive": number(r["naive"], sign=True),
        "corrected": between("corrected", "lo", "hi"),
        "p": p_value(r["p"]),
        "n": count(r["n_pairs"]),
        "note": visible(r["note"] or ""),
    }
