"""Is one way of pushing stronger than another? Sizes of effects on the same pairs, at one KL and per unit of norm."""

from collections.abc import Mapping, Sequence
from typing import Any

from polysem.report import words
from polysem.report.source import Run
from polysem.report.text import count, fixed, interval, number, visible

TENFOLD = 10.0
"""the ratio that arXiv 2505.11611 gives for token gradients against feature directions"""


def budgets_section(run: Run) -> dict[str, Any] | None:
    """What the template prints; None where a study has one locus."""
    rows = run.table("budgets").to_pylist()
    return budgets_rows(rows) if rows else None


def budgets_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of BUDGETS as sentences and as a table."""
    return {
        "said": [
            _said(r)
            for r in rows
            if r["ratio"] is not None and r["budget"] == "nats" and r["token_set"] == rows[0]["token_set"]
        ],
        "rows": [_row(r) for r in rows],
        "reference": words.locus(rows[0]["reference"]),
    }


def _budget(r: Mapping[str, Any]) -> str:
    return f"At {number(r['at'])} nats of KL" if r["budget"] == "nats" else "Per mean norm of the site"


def _said(r: Mapping[str, Any]) -> str:
    """The ratio, and whether ten times as strong is inside its interval."""
    who, other = words.locus(r["locus"]), words.locus(r["reference"])
    said = f"{_budget(r)}, {who.lower()} move the {words.tokens(r['token_set'])} {fixed(r['ratio'])} times as much "
    said += f"as {other.lower()} do on the same {count(r['n_pairs'])} pairs"
    if r["lo"] is None or r["hi"] is None:
        return f"{said} (no interval)."
    inside = r["lo"] <= TENFOLD <= r["hi"]
    return f"{said} ({fixed(r['lo'])} to {fixed(r['hi'])}): ten times as much is {'not excluded' if inside else 'excluded'}."


def _row(r: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "what": f"{words.locus(r['locus'])}, {words.tokens(r['token_set'])}",
        "budget": _budget(r),
        "size": fixed(r["size"]),
        "reference": fixed(r["reference_size"]),
        "ratio": fixed(r["ratio"]),
        "interval": "–" if r["ratio"] is None else interval(r["lo"], r["hi"]).replace("+", ""),
        "spent": number(r["spent"]),
        "n": f"{count(r['n_pairs'])} / {count(r['n_targets'])}",
        "note": visible(r["note"] or ""),
    }
