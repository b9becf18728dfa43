"""Two doubts about pairs, answered with numbers: is a pair one concept twice, and is gloss similarity well measured?"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from polysem.pairs import DUPLICATE_FIRING, DUPLICATE_INTERFERENCE, DUPLICATE_SWITCH, DUPLICATE_TOKENS
from polysem.report.panels import TOKENS
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
    rows = signals.to_pylist()
    flagged = sum(r["flagged"] for r in rows)
    return {
        "said": f"{count(flagged)} of {plural(len(rows), 'planned pair')} look like one concept twice"
        + (
            "; they are pushed like the others, but no declared hypothesis counts them."
            if flagged
            else ": every pair counts."
        ),
        "signals": [_signal(rows, name, limit, words) for name, limit, words in _LIMITS],
        "reliability": [_reliable(r) for r in run.table("reliability").to_pylist()],
        "one_measure": not pc.any(pc.is_valid(signals["similarity_2"])).as_py(),
    }


def _signal(rows: list[Mapping[str, Any]], name: str, limit: float, words: str) -> dict[str, str]:
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
        if r[estimate] is None:
            return "–"
        return (
            f"{number(r[estimate], sign=True)} ({interval(r[lo], r[hi])})"
            if r[lo] is not None
            else number(r[estimate])
        )

    return {
        "what": f"{r['locus']}: {TOKENS[r['token_set']]}",
        "measure": visible(r["measure"]),
        "r": between("r", "r_lo", "r_hi"),
        "naive": "–" if r["naive"] is None else number(r["naive"], sign=True),
        "corrected": between("corrected", "lo", "hi"),
        "p": "–" if r["p"] is None else p_value(r["p"]),
        "n": count(r["n_pairs"]),
        "note": visible(r["note"] or ""),
    }
