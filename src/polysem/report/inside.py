"""Sections of a transfer report on targets whose inside is at hand: directions, and what injections cost."""

from typing import Any

from markupsafe import Markup

from polysem.report import text
from polysem.report.forest import forest
from polysem.report.parts import MISSING, interval, shown, table

Rows = list[dict[str, Any]]


def directions(rows: Rows) -> Markup:
    """Effects of directions by category, arm and kind."""
    if not rows:
        return Markup("")
    parts = [
        Markup(
            "<h2>Directions at one dose</h2><p>Matched features of the target, pushed at the last position at KL {} nats: "
            "<em>feature</em> along their decoder rows, <em>gradient</em> along their token gradients. Odd part of the change "
            "of the log-odds of the category's words (nats); an arm's features against matched features of neither arm, in "
            "strata of frequency and leakage. p: labels permuted within strata, one-sided; adjusted by Holm over categories."
            "</p>"
        ).format(text.number(rows[0]["kl"]))
    ]
    head = (
        "arm", "category", "features", "mean", "difference", "p", "p adj.", "specific", "p adj.", "references",
        "alone", "refused",
    )  # fmt: skip
    specific = {
        (r["target"], r["kind"], r["arm"], r["category"]): r for r in rows if r["contrast"] == "specific"
    }
    for target, kind in sorted({(r["target"], r["kind"]) for r in rows}):
        body = []
        for r in rows:
            if (r["target"], r["kind"], r["contrast"]) != (target, kind, "logodds"):
                continue
            other = specific.get((target, kind, r["arm"], r["category"]), {})
            body.append(
                (
                    r["arm"], r["category"], r["n_treated"], shown(r["treated"]), interval(r), _p(r["p"]), _p(r["p_adj"]),
                    interval(other) if other else MISSING, _p(other.get("p_adj")), r["n_reference"], r["n_alone"],
                    r["n_refused"],
                )
            )  # fmt: skip
        drawn = [
            r for r in rows
            if (r["target"], r["kind"]) == (target, kind) and r["contrast"] == ("specific" if specific else "logodds")
        ]  # fmt: skip
        parts.append(forest(drawn, title=f"{target}, {kind} directions"))
        parts.append(table(head, body, caption=f"{target}, {kind}"))
    return Markup("").join(parts)


def cost(rows: Rows) -> Markup:
    """What injections cost on ordinary text and on questions."""
    if not rows:
        return Markup(
            "<h2>Cost of the injections</h2><p>Not measured: it needs a target on this machine, and cost.n_texts above 0.</p>"
        )
    head = (
        "target",
        "what",
        "arm",
        "category",
        "measure",
        "without",
        "change",
        "reference",
        "difference",
        "n",
    )
    body = [
        (
            r["target"], r["kind"], r["arm"], r["category"], f"{r['measure']}, {r['unit']}", shown(r["base"]),
            text.number(r["treated"], sign=True), shown(r["reference"]), interval(r), r["n"],
        )
        for r in rows
    ]  # fmt: skip
    return Markup(
        "<h2>Cost of the injections</h2><p>The same strings in front of held-out text, and the same pushes at the same strength "
        "on all its positions: change of cross-entropy (nats per token), or of accuracy on questions. Intervals resample texts "
        "or questions.</p>{}"
    ).format(table(head, body, caption="cost at the dose that is claimed"))


def _p(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"
