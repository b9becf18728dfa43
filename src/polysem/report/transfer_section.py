"""The report of a transfer study: one page of its own, and a section of a study's report where both share a folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from polysem.paper import tables as paper
from polysem.report import text
from polysem.report.charts import Bar, dot_plot
from polysem.report.html import MISSING, Chapter, Column, Figure, Row, interval, probability, table
from polysem.report.words import ARMS

STEPS = 4
"""shades of each sign"""
Rows = Sequence[Mapping[str, Any]]
Place = tuple[str, str, str]
"""target, template, position"""


def page(found: Mapping[str, Rows], *, switched: bool = False) -> Chapter:
    """What the stage has to show; its body is a section as it stands.

    Args:
        found: rows of its tables.
        switched: at a glance every measure, each in a part that names it (`data-measure`), for the explorer to choose from.
    """
    effects = found["transfer_effects"]
    parts = [
        _found(effects),
        *_glances(effects, switched=switched),
        _shared(found["transfer_shared"]),
        _effects(effects),
        _success(effects),
        _directions(found["transfer_directions"]),
        _cost(found["transfer_cost"]),
        _targets(found["transfer_targets"]),
        _sets(found["transfer_sets"]),
        _paper(effects),
        _LIMITS,
    ]
    body = Markup('<section id="transfer" class="part">{}</section>').format(Markup("\n").join(parts))
    return Chapter("Cross-model transfer", "Does what two small models share move another one?", body)


def _found(effects: Rows) -> Markup:
    """One sentence per target: what was resolved after adjustment, of all that was tested."""
    sentences = []
    for target in sorted({r["target"] for r in effects}):
        mine = [
            r for r in effects if (r["target"], r["contrast"], r["arm"]) == (target, "specific", "shared")
        ]
        tested = [r for r in mine if r["p_adj"] is not None]
        up = [r["category"] for r in tested if r["p_adj"] <= 0.05]
        said = f"resolved in {', '.join(up)}" if up else "resolved in none"
        sentences.append(
            Markup(
                "<li><strong><bdi>{}</bdi></strong>: strings of shared pairs raise their category more than matched "
                "strings do, and more than other categories: {}, of {} tested (max-T over categories).</li>"
            ).format(
                text.visible(target),
                said if tested else "not tested: see the arms that were not run",
                len(tested),
            )
        )
    return Markup("<h2>What was found</h2><ul>{}</ul>").format(Markup("").join(sentences))


def _places(effects: Rows) -> Iterator[tuple[Place, list[Mapping[str, Any]], str]]:
    """Every target and way of asking, its rows, and the contrast to draw: specific where there is one."""
    for place in sorted({(r["target"], r["template"], r["position"]) for r in effects}):
        mine = [r for r in effects if (r["target"], r["template"], r["position"]) == place]
        yield place, mine, "specific" if any(r["contrast"] == "specific" for r in mine) else "logodds"


def _of(rows: Rows, contrast: str, *names: str) -> dict[tuple[Any, ...], Row]:
    """The rows of a contrast by the values of some columns."""
    return {tuple(r[n] for n in names): r for r in rows if r["contrast"] == contrast}


_DRAWN = {
    "specific": "more than other categories",
    "logodds": "log-odds",
    "success": "more words in the top k",
    "welch": "the paper's test, trial by trial",
}


def _glances(effects: Rows, *, switched: bool) -> Iterator[Markup]:
    there = {r["contrast"] for r in effects}
    for measure in [m for m in _DRAWN if m in there] if switched else [None]:
        marks = (
            Markup(' data-measure="{}" data-words="{}"').format(measure, _DRAWN[measure]) if measure else ""
        )
        drawn = Markup("").join(_at_a_glance(effects, measure))
        yield Markup('<div class="figures"{}>{}</div>').format(marks, drawn)


def _at_a_glance(effects: Rows, measure: str | None) -> Iterator[Markup]:
    """One matrix of categories by arms per target and way of asking."""
    for place, mine, contrast in _places(effects):
        shown = measure or contrast
        rows = [r for r in mine if r["contrast"] == shown]
        if rows:
            title = f"{text.visible(place[0])}, {place[1]}, {place[2]}: {_DRAWN[shown]}"
            yield matrix(rows, title=title, unit=rows[0]["unit"])


def matrix(rows: Rows, *, title: str, unit: str) -> Markup:
    """Categories down, arms across: colour says how far, a star that it was resolved. Nothing where there is no estimate.

    Args:
        rows: with arm, category, estimate, lo, hi, p_adj, level.
    """
    known = [r for r in rows if r["estimate"] is not None]
    if not known:
        return Markup("")
    arms = [arm for arm in ARMS if any(r["arm"] == arm for r in rows)]
    most = max(abs(r["estimate"]) for r in known)
    found = {(r["category"], r["arm"]): r for r in rows}
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(ARMS[a][1]) for a in arms)
    body = Markup("\n").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            text.visible(category, limit=40),
            Markup("").join(_shaded(found.get((category, arm)), most=most) for arm in arms),
        )
        for category in dict.fromkeys(r["category"] for r in rows)
    )
    return Markup(
        '<figure class="panel"><h4>{title}</h4><div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        '<table class="numbers matrix"><thead><tr><th scope="col">category</th>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div><figcaption>Treated minus reference, {unit}. Blue is up, orange down, darker is further. "
        "*: resolved, adjusted over categories. –: no estimate.</figcaption></figure>"
    ).format(title=title, head=head, body=body, unit=unit)


def _shaded(row: Row | None, *, most: float) -> Markup:
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


def _forest(rows: Rows, *, title: str) -> Markup:
    """Categories as rows, arms under each other, with intervals; nothing where there is no estimate."""
    drawn = {name: arm for name, arm in ARMS.items() if arm[0]}
    known = [r for r in rows if r["estimate"] is not None and r["arm"] in drawn]
    if not known:
        return Markup("")
    arms = [arm for arm in drawn if any(r["arm"] == arm for r in known)]
    found = {(r["category"], r["arm"]): r for r in known}

    def bar(category: str, arm: str) -> Bar:
        row = found.get((category, arm), {"estimate": None, "lo": None, "hi": None})
        return Bar(ARMS[arm][0], row["estimate"], row["lo"], row["hi"], ARMS[arm][1])

    categories = dict.fromkeys(r["category"] for r in known)
    shown = [(text.visible(c, limit=18), [bar(c, a) for a in arms]) for c in categories]
    drawing = dot_plot(shown, title=title, x_label="difference from the reference, nats")
    return Figure(title, drawing, "", [ARMS[a][:2] for a in arms]).__html__()


def _shared(rows: Rows) -> Markup:
    if not rows:
        return Markup("")
    (r,) = rows
    counted = ("n_matched", "n_segments", "n_pairs_a", "n_pairs_b", "n_shared")
    return Markup(
        "<h2>What the sources share</h2><p><bdi>{a}</bdi> and <bdi>{b}</bdi>: {n_matched} features matched by activation on "
        "the same text ({n_segments} segments). Of their pairs {n_pairs_a} pass in the first and {n_pairs_b} in the second; "
        "{n_shared} pass in both, where a permuted matching gives {e}. Lift {lift}; chance-corrected fraction of common "
        "structure {f}; {p}.</p>"
    ).format(
        a=text.visible(r["source_a"]),
        b=text.visible(r["source_b"]),
        e=text.number(r["expected"]),
        lift=interval(r, "lift", "lift_lo", "lift_hi"),
        f=interval(r, "fraction", "fraction_lo", "fraction_hi"),
        p=MISSING if r["p"] is None else text.p_value(r["p"], name="p"),
        **{name: text.count(r[name]) for name in counted},
    )


def _beside(specific: Mapping[tuple[Any, ...], Row]) -> tuple[Column, ...]:
    """What a row of log-odds is read beside: the same less the change of all other categories."""

    def other(r: Row) -> Row | None:
        return specific.get((r["arm"], r["category"]))

    return (
        ("difference", interval),
        ("p", probability),
        ("p adj.", lambda r: probability(r, "p_adj")),
        ("specific", lambda r: interval(other(r))),
        ("p adj.", lambda r: probability(other(r), "p_adj")),
    )


def _effects(effects: Rows) -> Markup:
    """Log-odds, raw and specific, of every category, arm and target; nothing that was declared is left out."""
    parts = [
        Markup(
            "<h2>Log-odds by category, arm and target</h2><p>Mean change of the log-odds of the category's words (nats), "
            "treated pools minus their matched reference pools; <em>specific</em> is the same less the change of all other "
            "categories. p: pool randomisation, one-sided; adjusted over categories by max-T. Of truncated "
            "answers the probability that was not granted is estimated from all of them together; the error of that is in the "
            "interval, and stands beside it. Bounds: what truncated answers allow at most. Floor: what jitter alone would "
            "give.</p>"
        )
    ]
    for place, mine, contrast in _places(effects):
        drawn = [r for r in mine if r["contrast"] == contrast]
        parts.append(_forest(drawn, title=f"{place[0]}, {place[1]}, {place[2]}: {_DRAWN[contrast]}"))
        columns = (
            *("arm", "category"),
            ("change, treated", "treated"),
            "reference",
            *_beside(_of(mine, "specific", "arm", "category")),
            ("truncation (SD)", "truncation_sd"),
            ("bounds", _bounds),
            ("floor", "noise_floor"),
            ("KL", "kl"),
            ("note", lambda r: r["note"] or ""),
        )
        rows = [r for r in mine if r["contrast"] == "logodds"]
        parts.append(table(columns, rows, caption=f"{place[0]}, template {place[1]}, position {place[2]}"))
    return Markup("").join(parts)


def _bounds(row: Row) -> str:
    if row["bound_lo"] is None and row["bound_hi"] is None:
        return "none" if row["estimate"] is not None or row["n_treated"] else MISSING
    lo, hi = ("∞" if row[k] is None else text.number(row[k]) for k in ("bound_lo", "bound_hi"))
    return f"[{'−' if row['bound_lo'] is None else ''}{lo}, {hi}]"


def _success(effects: Rows) -> Markup:
    names = ("target", "arm", "category", "template", "position")
    welch = _of(effects, "welch", *names)

    def naive(r: Row) -> str:
        w = welch.get(tuple(r[n] for n in names))
        if w is None:
            return MISSING
        estimate = MISSING if w["estimate"] is None else text.number(w["estimate"])
        return f"{estimate}, {probability(w)}; {w['note'] or ''}"

    columns: tuple[Column, ...] = (
        *("target", "arm", "category", "treated", "reference"),
        ("difference", interval),
        ("paper's test", naive),
        "refused",
        ("note", lambda r: r["note"] or ""),
    )
    rows = [r for r in effects if r["contrast"] == "success"]
    return Markup(
        "<h2>Top-k success</h2><p>Share of prompts with more words of the category among the k most likely tokens, minus the "
        "share with fewer. Intervals resample sentences. The paper's test (Welch on trials, against the random arm) stands "
        "beside it with the rate at which it errs on simulated data of this shape.</p>{}"
    ).format(table(columns, rows, caption="success"))


def _directions(rows: Rows) -> Markup:
    """Effects of directions by category, arm and kind."""
    if not rows:
        return Markup("")
    parts = [
        Markup(
            "<h2>Directions at one dose</h2><p>Matched features of the target, steered at the last position at KL {} nats: "
            "<em>feature</em> along their decoder rows, <em>gradient</em> along their token gradients. Odd part of the change "
            "of the log-odds of the category's words (nats); an arm's features against matched features of neither arm, in "
            "strata of frequency and leakage. p: labels permuted within strata, one-sided; adjusted by Holm over categories."
            "</p>"
        ).format(text.number(rows[0]["kl"]))
    ]
    drawn = "specific" if any(r["contrast"] == "specific" for r in rows) else "logodds"
    for target, kind in sorted({(r["target"], r["kind"]) for r in rows}):
        mine = [r for r in rows if (r["target"], r["kind"]) == (target, kind)]
        columns = (
            *("arm", "category"),
            ("features", "n_treated"),
            ("mean", "treated"),
            *_beside(_of(mine, "specific", "arm", "category")),
            ("references", "n_reference"),
            ("alone", "n_alone"),
            ("refused", "n_refused"),
        )
        parts.append(
            _forest([r for r in mine if r["contrast"] == drawn], title=f"{target}, {kind} directions")
        )
        parts.append(
            table(columns, [r for r in mine if r["contrast"] == "logodds"], caption=f"{target}, {kind}")
        )
    return Markup("").join(parts)


def _cost(rows: Rows) -> Markup:
    """What injections cost on ordinary text and on questions."""
    if not rows:
        return Markup(
            "<h2>Cost of the injections</h2><p>Not measured: it needs a target on this machine, and cost.n_texts above 0.</p>"
        )
    columns: tuple[Column, ...] = (
        "target",
        ("what", "kind"),
        *("arm", "category"),
        ("measure", lambda r: f"{r['measure']}, {r['unit']}"),
        ("without", "base"),
        ("change", lambda r: text.number(r["treated"], sign=True)),
        "reference",
        ("difference", interval),
        "n",
    )
    return Markup(
        "<h2>Cost of the injections</h2><p>The same strings in front of held-out text, and the same steering at the same "
        "strength on all its positions: change of cross-entropy (nats per token), or of accuracy on questions. Intervals "
        "resample texts or questions.</p>{}"
    ).format(table(columns, rows, caption="cost at the dose that is claimed"))


def _targets(rows: Rows) -> Markup:
    columns: tuple[Column, ...] = (
        *("target", "what"),
        ("asked", lambda r: r["asked"] or "all"),
        ("granted", lambda r: r["granted"] or "all"),
        ("mass not granted", "missing"),
        ("answers with lost tokens", "n_lost"),
        "conventions",
        ("noise (nats)", "noise"),
        ("prompts", lambda r: text.count(r["n_prompts"])),
        ("cost", lambda r: f"{r['cost']:.4g} {r['cost_unit']}".strip()),
    )
    seen = [{"target": r["target"], **json.loads(r["coverage"])} for r in rows]
    names = sorted({name for row in seen for name in row} - {"target"})
    covered: list[Column] = ["target", *((name, lambda r, name=name: r.get(name, 0)) for name in names)]
    return Markup("<h2>Targets, truncation and cost</h2>{}{}").format(
        table(columns, rows, caption="targets"),
        table(covered, seen, caption="words of each category that are one token"),
    )


def _sets(rows: Rows) -> Markup:
    def overlap(r: Row) -> str:
        return ", ".join(f"{k} {v}" for k, v in json.loads(r["overlap"]).items() if v) or MISSING

    def worst(r: Row) -> str:
        gaps = json.loads(r["imbalance"])
        name = max(gaps, key=lambda k: abs(gaps[k])) if gaps else None
        return f"{name} {gaps[name]:+.2f}" if name else MISSING

    columns: tuple[Column, ...] = (
        *("category", "arm"),
        ("strings", "n_strings"),
        ("treated pools", "n_treated"),
        ("reference pools", "n_reference"),
        ("overlap before sets were made disjoint", overlap),
        ("worst imbalance (SD)", worst),
        ("not run because", lambda r: r["reason"] or ""),
    )
    return Markup("<h2>Arms and pools</h2>{}").format(table(columns, rows, caption="sets"))


def _paper(effects: Rows) -> Markup:
    """The paper's tables beside this study's, and what is left of them at a design effect."""
    mine = {
        key: r["treated"]
        for key, r in _of(effects, "welch", "category", "arm", "target").items()
        if r["treated"] is not None
    }
    columns: list[Column] = ["category", "model"]
    for k, arm in enumerate(paper.ARMS):
        columns.append((arm, lambda r, k=k: f"{r['rate'][k]:.2f}{'*' * r['stars'][k]}"))
    for target in sorted({key[2] for key in mine}):
        for arm in ("target", "high", "low"):
            columns.append(
                (f"{target}: {arm}", lambda r, a=arm, t=target: _percent(mine.get((r["category"], a, t))))
            )
    cells = [
        {"category": c.category, "model": c.model, "rate": c.rate, "stars": (*c.stars, 0)}
        for c in paper.printed_cells()
    ]
    counts = {(s.cells, s.arm, s.other): s for s in paper.sign_counts()}
    above = counts["large", "high", "random"]
    left = paper.survivors([1.0, 5.0, 10.0, 20.0])
    said = (
        f"Of the paper's 40 cells {len(paper.strictly_ordered())} have original > high > low > random. On large models high is "
        f"above random in {above.positive} of {above.n} cells (mean {above.mean:+.2f} points, sign test p = {above.p:.3f}). "
        f"With trials taken as independent, Holm over all 120 tests leaves {len(paper.holm_survivors())} of "
        f"{len(paper.large())} large-model cells; but trials share 100 sentences: at a design effect of 5, {len(left[5.0])} "
        f"exceed 1.96 standard errors; at 10, {len(left[10.0])}; at 20, {len(left[20.0])}."
    )
    return Markup(
        "<h2>The paper's Tables 1 and 5</h2><p>{}</p><details><summary>All 40 cells (percent; arXiv 2505.11611)</summary>{}</details>"
    ).format(said, table(columns, cells, caption="success rates as printed"))


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.2f}"


_LIMITS = Markup(
    "<h2>Limits</h2><ul><li>A shift in the next token is not a change of behaviour.</li><li>Reference pools are matched on what "
    "the table of arms lists, and on nothing else.</li><li>A category is a table of words; words that are several tokens are not "
    "seen.</li><li>No claim about a production system should be made without its owner's consent.</li></ul>"
)
