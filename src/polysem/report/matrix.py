"""Transfer at a glance: categories down, arms across, one table per target; colour says how far, a star that it was
resolved."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from polysem.report import text
from polysem.report.forest import NAMES

ARMS = (*NAMES, "high", "low", "random")
STEPS = 4
"""shades of each sign"""
Rows = Sequence[Mapping[str, Any]]


def matrix(rows: Rows, *, title: str, unit: str) -> Markup:
    """A figure of rows with arm, category, estimate, lo, hi, p_adj, level; nothing where there is no estimate."""
    known = [r for r in rows if r["estimate"] is not None]
    if not known:
        return Markup("")
    arms = [arm for arm in ARMS if any(r["arm"] == arm for r in rows)]
    most = max(abs(r["estimate"]) for r in known)
    found = {(r["category"], r["arm"]): r for r in rows}
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(escape(NAMES.get(a, a))) for a in arms)
    body = Markup("\n").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            text.visible(category, limit=40),
            Markup("").join(_cell(found.get((category, arm)), most=most) for arm in arms),
        )
        for category in dict.fromkeys(r["category"] for r in rows)
    )
    return Markup(
        '<figure class="panel"><h4>{title}</h4><div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        '<table class="numbers matrix"><thead><tr><th scope="col">category</th>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div><figcaption>Treated minus reference, {unit}. Blue is up, orange down, darker is further. "
        "*: resolved, adjusted over categories. –: no estimate.</figcaption></figure>"
    ).format(title=title, head=head, body=body, unit=unit)


def _cell(row: Mapping[str, Any] | None, *, most: float) -> Markup:
    if row is None or row["estimate"] is None:
        return Markup("<td>–</td>")
    step = round(STEPS * abs(row["estimate"]) / most) if most else 0
    shade = f"{'plus' if row['estimate'] > 0 else 'minus'}{step}" if step else ""
    resolved = row["p_adj"] is not None and row["p_adj"] < 1 - row["level"]
    return Markup('<td class="{}" title="{}">{}{}</td>').format(
        f"{shade} resolved".strip() if resolved else shade,
        f"{text.number(row['estimate'], sign=True)} ({text.interval(row['lo'], row['hi'])})",
        text.fixed(row["estimate"], places=2, sign=True),
        " *" if resolved else "",
    )
