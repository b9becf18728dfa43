"""Effects of arms by category as one picture: categories as rows, arms under each other, with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from polysem.report import text
from polysem.report.charts import Bar, dot_plot
from polysem.report.svg import el

KINDS = {"target": "self", "shared": "pair", "source_only": "random_feature", "neither": "random_direction"}
"""arm -> its colour, as a class of the style sheet"""
NAMES = {
    "target": "the category's own (ceiling)",
    "shared": "shared",
    "source_only": "source only",
    "neither": "neither",
}


def forest(rows: Sequence[Mapping[str, Any]], *, title: str) -> Markup:
    """A figure of rows with arm, category, estimate, lo, hi; nothing where there is no estimate."""
    known = [r for r in rows if r["estimate"] is not None and r["arm"] in KINDS]
    if not known:
        return Markup("")
    arms = [arm for arm in KINDS if any(r["arm"] == arm for r in known)]
    found = {(r["category"], r["arm"]): r for r in known}
    categories = list(dict.fromkeys(r["category"] for r in known))
    drawn = [(text.visible(c, limit=18), [_bar(found.get((c, a)), a) for a in arms]) for c in categories]
    chart = dot_plot(drawn, title=title, x_label="difference from the reference, nats", left=110)
    keys = Markup("").join(
        Markup("<li>{}{}</li>").format(
            el("svg", el("g", el("circle", cx=8, cy=8, r=5), class_=f"mark k-{KINDS[a]}"), viewBox="0 0 16 16", aria_hidden="true"),
            NAMES[a],
        )
        for a in arms
    )  # fmt: skip
    return Markup(
        '<figure class="panel"><h4>{}</h4>{}<figcaption><ul class="legend">{}</ul></figcaption></figure>'
    ).format(escape(title), chart, keys)


def _bar(row: Mapping[str, Any] | None, arm: str) -> Bar:
    if row is None:
        return Bar(KINDS[arm], None, None, None, "")
    return Bar(KINDS[arm], row["estimate"], row["lo"], row["hi"], f"{NAMES[arm]}")
