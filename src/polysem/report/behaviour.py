"""The page of `polysem generate`: what pushes do to texts, and what the next token says of it."""

from collections.abc import Mapping

from markupsafe import Markup

from polysem.report.charts import Bar, dot_plot, legend
from polysem.report.html import NOTE, Chapter, Column, Row, Rows, ends, interval, probability, section, table
from polysem.report.pairs import shaded
from polysem.report.text import plural

SHOWN, TEXTS_SHOWN = 40, 12
"""rows of a table; the files hold all"""
_BRIDGE: tuple[Column, ...] = (
    *("dose", "outcome", "term"),
    ("slope", lambda r: interval(r)),
    ("p", probability),
    ("found with 80 % power", "mde"),
    ("slope x reach within", "margin"),
    ("p of beyond", lambda r: probability(r, "p_equivalent")),
    ("R2 held out by target", "r2"),
    ("arms", "n"),
    NOTE,
)
_EFFECTS: tuple[Column, ...] = (
    *("dose", "relation", "target", "source", "interference"),
    ends("next token", "next"),
    ends("every token", "horizon"),
    ("falls by, a token", "decay"),
    ends("log rate", "log_rate"),
    ("per 100: none", "rate"),
    ("along", "rate_up"),
    ("against", "rate_down"),
    ends("hits", "hits"),
    ends("cross-entropy", "nats"),
    ends("spent", "spent"),
    ("parts after", "same"),
)
_TEXTS: tuple[Column, ...] = (
    *("relation", "target", "dose"),
    ("without", "base"),
    ("along", "up"),
    ("against", "down"),
    ("largest activation", "most"),
)
_TASKS: tuple[Column, ...] = (
    *("dose", "relation", "target", "source"),
    ("way", "sign"),
    "right",
    ends("change", "change"),
    ("answer over others, nats", "gap"),
    "n",
)


def page(found: Rows) -> Chapter:
    """What the stage has to show."""
    arms = {row["arm"]: row for row in found["text_arms"]}
    parts = [_bridge(found), _effects(found, arms), _texts(found, arms), _tasks(found, arms)]
    lead = "When does a push on the next token become a push on the text?"
    return Chapter("Texts under pushes", lead, Markup("").join(parts))


_KINDS = {"log_rate": "pair", "horizon": "self"}


def _bridge(found: Rows) -> Markup:
    rows = found["text_bridge"]
    bars = [
        (f"{dose:g} nats", [Bar(_KINDS[r["outcome"]], r["estimate"], r["lo"], r["hi"], plural(r["n"], "arm")) for r in rows if r["dose"] == dose and r["term"] == "next" and r["outcome"] in _KINDS])
        for dose in dict.fromkeys(r["dose"] for r in rows)
    ]  # fmt: skip
    names = {"log_rate": "log rate in drawn texts", "horizon": "log-odds at every token"}
    figure = Markup("<figure>{}{}</figure>").format(
        dot_plot(bars, title="what a nat at the next token is in a text", x_label="nats per nat"),
        legend([(kind, names[name]) for name, kind in _KINDS.items()], plain=True),
    )
    said = (
        "One arm a row: its effect on texts on its odd effect on the next token, then with interference beside it, and the "
        "change of texts' cross-entropy on what the push spends. Targets' own directions are left out. R2 is of targets "
        "that the fit has not seen."
    )
    return section(
        "From the next token to the text",
        said,
        figure if rows else Markup(""),
        table(_BRIDGE, rows, caption="bridge"),
    )


def _effects(found: Rows, arms: Mapping[int, Row]) -> Markup:
    rows = [dict(arms[r["arm"]]) | dict(r) for r in found["text_effects"]]
    rows.sort(key=lambda r: (r["dose"], r["relation"], -abs(r["log_rate"] or 0.0)))
    said = (
        "Odd changes, in nats. Every token: texts without the push, read under it, so that nothing is drawn. Falls by: the "
        "factor from token to token where the push ends with the prompt. Hits: positions at which the target fires when "
        "the model without a push reads the text. Spent: sequence KL per token."
    )
    more = f"; the first {SHOWN}" if len(rows) > SHOWN else ""
    return section("Pushes", said, table(_EFFECTS, rows[:SHOWN], caption=plural(len(rows), "effect") + more))


def _texts(found: Rows, arms: Mapping[int, Row]) -> Markup:
    by = {(r["arm"], r["prompt_id"], r["dose"], r["sign"]): r for r in found["texts"] if r["draw"] == 0}
    base = {(r["prompt_id"], r["target"]): r["acts"] for r in found["text_firing"] if r["draw"] == 0}
    largest = max(r["dose"] for r in found["texts"])
    pushed = [key for key in by if key[0] >= 0 and key[2:] == (largest, 1)]
    rows = []
    for arm, prompt, dose, _ in pushed[:: max(1, len(pushed) // TEXTS_SHOWN)][:TEXTS_SHOWN]:
        target = arms[arm]["target"]
        three = [(by[-1, prompt, 0.0, 0], base[prompt, target])]
        three += [(r, r["acts"]) for sign in (1, -1) for r in [by[arm, prompt, dose, sign]]]
        most = max(value for _, acts in three for value in acts)
        drawn = [shaded(r["pieces"], acts, most) for r, acts in three]
        told = dict(zip(("base", "up", "down"), drawn, strict=True)) | {"dose": dose, "most": most}
        rows.append(dict(arms[arm]) | told)
    said = (
        "At the largest dose; the three texts of a line share their chance, token by token. Shaded: where the target fires when "
        "the model without a push reads the text, the darkest at the line's largest activation."
    )
    return section("Texts side by side", said, table(_TEXTS, rows, caption="some texts"))


def _tasks(found: Rows, arms: Mapping[int, Row]) -> Markup:
    rows = found["text_tasks"]
    if not rows:
        return Markup("")
    base = rows[0]
    mine = [dict(arms[r["arm"]]) | dict(r) for r in rows if r["arm"] >= 0]
    said = f"{base['n']} items; without a push {100 * base['right']:.0f} % are right."
    return section("Tasks", said, table(_TASKS, mine[:SHOWN], caption=f"{len(mine)} pushes"))
