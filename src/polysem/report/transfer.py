"""The report of a transfer study: one page of its own, and a section of a study's report where both share a folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from polysem.report import text
from polysem.report.forest import forest
from polysem.report.inside import cost, directions
from polysem.report.matrix import matrix
from polysem.report.parts import MISSING, interval, page, shown, table
from polysem.store import io
from polysem.transfer.paper_tables import (
    ARMS,
    holm_survivors,
    large,
    printed_cells,
    sign_counts,
    strictly_ordered,
    survivors,
)
from polysem.transfer.result import FOLDER, read_transfer

NAME = "transfer.html"
Rows = list[dict[str, Any]]


def write_transfer_report(out: Path) -> Path:
    """Write `transfer.html` into the folder of a finished transfer study; gives its path. Equal tables give equal bytes.

    Raises:
        StoreError: if there is no finished study, or a table is not what was written.
    """
    path = out / NAME
    body = section(out)
    io.write_text(
        path, page("Cross-model transfer", "Does what two small models share move another one?", body)
    )
    return path


def section(out: Path) -> Markup:
    """The section as HTML."""
    tables = {
        name: table.to_pylist()
        for name, table in read_transfer(out).items()
        if name not in ("transfer_trials", "transfer_steered")
    }
    effects = tables["transfer_effects"]
    parts = [
        _found(effects),
        _at_a_glance(effects),
        _shared(tables["transfer_shared"]),
        _effects(effects),
        _success(effects),
        directions(tables["transfer_directions"]),
        cost(tables["transfer_cost"]),
        _targets(tables["transfer_targets"]),
        _sets(tables["transfer_sets"]),
        _paper(effects),
        _limits(),
    ]
    return Markup('<section id="transfer" class="part">{}</section>').format(Markup("\n").join(parts))


def has_transfer(out: Path) -> bool:
    """Whether a folder holds a finished transfer study."""
    return (out / FOLDER / "manifest.json").is_file()


def _found(effects: Rows) -> Markup:
    """One sentence per target: what was resolved after adjustment, of all that was tested."""
    sentences = []
    for target in sorted({r["target"] for r in effects}):
        tested = [
            r for r in effects
            if r["target"] == target and r["contrast"] == "specific" and r["arm"] == "shared" and r["p_adj"] is not None
        ]  # fmt: skip
        up = [r["category"] for r in tested if r["p_adj"] <= 0.05]
        said = f"resolved in {', '.join(up)}" if up else "resolved in none"
        if not tested:
            said = "not tested: see the arms that were not run"
        sentences.append(
            Markup(
                "<li><strong><bdi>{}</bdi></strong>: strings of shared pairs raise their category more than matched "
            ).format(text.visible(target))
            + Markup(
                "strings do, and more than other categories: {}, of {} tested (max-T over categories).</li>"
            ).format(said, len(tested))
        )
    return Markup("<h2>What was found</h2><ul>{}</ul>").format(Markup("").join(sentences))


def _at_a_glance(effects: Rows) -> Markup:
    """One matrix of categories by arms per target and way of asking."""
    figures = []
    for key in sorted({(r["target"], r["template"], r["position"]) for r in effects}):
        mine = [r for r in effects if (r["target"], r["template"], r["position"]) == key]
        contrast = next((c for c in ("specific", "logodds") if any(r["contrast"] == c for r in mine)), None)
        rows = [r for r in mine if r["contrast"] == contrast]
        if rows:
            what = "more than other categories" if contrast == "specific" else "log-odds"
            title = f"{text.visible(key[0])}, {key[1]}, {key[2]}: {what}"
            figures.append(matrix(rows, title=title, unit=rows[0]["unit"]))
    return Markup('<div class="grid">{}</div>').format(Markup("").join(figures))


def _shared(rows: Rows) -> Markup:
    (r,) = rows
    body = Markup(
        "<h2>What the sources share</h2><p><bdi>{a}</bdi> and <bdi>{b}</bdi>: {m} features matched by activation on the "
        "same text ({s} segments). Of their pairs {na} pass in the first and {nb} in the second; {n} pass in both, where "
        "a permuted matching gives {e}. Lift {lift}; chance-corrected fraction of common structure {f}; {p}.</p>"
    )
    return body.format(
        a=text.visible(r["source_a"]), b=text.visible(r["source_b"]), m=text.count(r["n_matched"]),
        s=text.count(r["n_segments"]), na=text.count(r["n_pairs_a"]), nb=text.count(r["n_pairs_b"]),
        n=text.count(r["n_shared"]), e=text.number(r["expected"]), lift=interval(r, "lift", "lift_lo", "lift_hi"),
        f=interval(r, "fraction", "fraction_lo", "fraction_hi"),
        p=MISSING if r["p"] is None else text.p_value(r["p"], name="p"),
    )  # fmt: skip


def _effects(effects: Rows) -> Markup:
    """Log-odds, raw and specific, of every category, arm and target; nothing that was declared is left out."""
    parts = [
        Markup(
            "<h2>Log-odds by category, arm and target</h2><p>Mean change of the log-odds of the category's words (nats), "
            "treated pools minus their matched reference pools; <em>specific</em> is the same less the change of all other "
            "categories. p: pool randomisation, one-sided; adjusted over categories by max-T. Bounds: what truncated "
            "answers allow. Floor: what jitter alone would give.</p>"
        )
    ]
    for key in sorted({(r["target"], r["template"], r["position"]) for r in effects}):
        head = (
            "arm",
            "category",
            "change, treated",
            "reference",
            "difference",
            "p",
            "p adj.",
            "specific",
            "p adj.",
            "bounds",
            "floor",
            "KL",
        )
        body = []
        mine = [r for r in effects if (r["target"], r["template"], r["position"]) == key]
        specific = {(r["arm"], r["category"]): r for r in mine if r["contrast"] == "specific"}
        for r in mine:
            if r["contrast"] != "logodds":
                continue
            other: Mapping[str, Any] = specific.get((r["arm"], r["category"]), {})
            body.append(
                (
                    r["arm"], r["category"], shown(r["treated"]), shown(r["reference"]), interval(r), _p(r["p"]), _p(r["p_adj"]),
                    interval(other) if other else MISSING, _p(other.get("p_adj")), _bounds(r), shown(r["noise_floor"]), shown(r["kl"]),
                )
            )  # fmt: skip
        shown_as = f"{key[0]}, template {key[1]}, position {key[2]}"
        drawn = [r for r in mine if r["contrast"] == ("specific" if specific else "logodds")]
        what = "more than other categories" if specific else "log-odds"
        parts.append(forest(drawn, title=f"{key[0]}, {key[1]}, {key[2]}: {what}"))
        parts.append(table(head, body, caption=shown_as))
    return Markup("").join(parts)


def _success(effects: Rows) -> Markup:
    head = (
        "target",
        "arm",
        "category",
        "treated",
        "reference",
        "difference",
        "paper's test",
        "refused",
        "note",
    )
    welch = {
        (r["target"], r["arm"], r["category"], r["template"], r["position"]): r
        for r in effects
        if r["contrast"] == "welch"
    }
    body = []
    for r in effects:
        if r["contrast"] == "success":
            w: Mapping[str, Any] = welch.get(
                (r["target"], r["arm"], r["category"], r["template"], r["position"]), {}
            )
            naive = f"{shown(w.get('estimate'))}, {_p(w.get('p'))}; {w.get('note') or ''}" if w else MISSING
            body.append(
                (
                    r["target"], r["arm"], r["category"], shown(r["treated"]), shown(r["reference"]), interval(r), naive,
                    shown(r["refused"]), r["note"] or "",
                )
            )  # fmt: skip
    return Markup(
        "<h2>Top-k success</h2><p>Share of prompts with more words of the category among the k most likely tokens, minus the "
        "share with fewer. Intervals resample sentences. The paper's test (Welch on trials, against the random arm) stands "
        "beside it with the rate at which it errs on simulated data of this shape.</p>{}"
    ).format(table(head, body, caption="success"))


def _targets(rows: Rows) -> Markup:
    head = (
        "target",
        "what",
        "asked",
        "granted",
        "mass not granted",
        "answers with lost tokens",
        "noise (nats)",
        "prompts",
        "cost",
    )
    body = [
        (
            r["target"], r["what"], r["asked"] or "all", r["granted"] or "all", shown(r["missing"]), r["n_lost"], shown(r["noise"]),
            text.count(r["n_prompts"]), f"{r['cost']:.4g} {r['cost_unit']}".strip(),
        )
        for r in rows
    ]  # fmt: skip
    names = sorted({c for r in rows for c in json.loads(r["coverage"])})
    seen = [(r["target"], *(json.loads(r["coverage"]).get(c, 0) for c in names)) for r in rows]
    return Markup("<h2>Targets, truncation and cost</h2>{}{}").format(
        table(head, body, caption="targets"),
        table(("target", *names), seen, caption="words of each category that are one token"),
    )


def _sets(rows: Rows) -> Markup:
    head = (
        "category",
        "arm",
        "strings",
        "treated pools",
        "reference pools",
        "overlap before sets were made disjoint",
        "worst imbalance (SD)",
        "not run because",
    )
    body = []
    for r in rows:
        overlap = {k: v for k, v in json.loads(r["overlap"]).items() if v}
        gaps = json.loads(r["imbalance"])
        worst = max(gaps, key=lambda k: abs(gaps[k])) if gaps else None
        body.append(
            (
                r["category"], r["arm"], r["n_strings"], r["n_treated"], r["n_reference"],
                ", ".join(f"{k} {v}" for k, v in overlap.items()) or MISSING,
                f"{worst} {gaps[worst]:+.2f}" if worst else MISSING, r["reason"] or "",
            )
        )  # fmt: skip
    return Markup("<h2>Arms and pools</h2>{}").format(table(head, body, caption="sets"))


def _paper(effects: Rows) -> Markup:
    """The paper's tables beside this study's, and what is left of them at a design effect."""
    mine = {
        (r["category"], r["arm"], r["target"]): r["treated"]
        for r in effects if r["contrast"] == "welch" and r["treated"] is not None
    }  # fmt: skip
    targets = sorted({key[2] for key in mine})
    head = ("category", "model", *ARMS, *(f"{t}: {a}" for t in targets for a in ("target", "high", "low")))
    body = [
        (
            c.category, c.model,
            *(f"{rate:.2f}{'*' * stars}" for rate, stars in zip(c.rate, (*c.stars, 0), strict=True)),
            *(_percent(mine.get((c.category, a, t))) for t in targets for a in ("target", "high", "low")),
        )
        for c in printed_cells()
    ]  # fmt: skip
    counts = {(s.cells, s.arm, s.other): s for s in sign_counts()}
    above = counts["large", "high", "random"]
    left = survivors([1.0, 5.0, 10.0, 20.0])
    said = (
        f"Of the paper's 40 cells {len(strictly_ordered())} have original > high > low > random. On large models high is above "
        f"random in {above.positive} of {above.n} cells (mean {above.mean:+.2f} points, sign test p = {above.p:.3f}). With "
        f"trials taken as independent, Holm over all 120 tests leaves {len(holm_survivors())} of {len(large())} large-model "
        f"cells; but trials share 100 sentences: at a design effect of 5, {len(left[5.0])} exceed 1.96 standard errors; at 10, "
        f"{len(left[10.0])}; at 20, {len(left[20.0])}."
    )
    return Markup(
        "<h2>The paper's Tables 1 and 5</h2><p>{}</p><details><summary>All 40 cells (percent; arXiv 2505.11611)</summary>{}</details>"
    ).format(said, table(head, body, caption="success rates as printed"))


def _limits() -> Markup:
    return Markup(
        "<h2>Limits</h2><ul><li>A shift in the next token is not a change of behaviour.</li><li>Reference pools are matched on what "
        "the table of arms lists, and on nothing else.</li><li>A category is a table of words; words that are several tokens are not "
        "seen.</li><li>No claim about a production system should be made without its owner's consent.</li></ul>"
    )


def _bounds(row: Mapping[str, Any]) -> str:
    if row["bound_lo"] is None and row["bound_hi"] is None:
        return "none" if row["estimate"] is not None else MISSING
    ends = (
        ("−∞" if row["bound_lo"] is None else shown(row["bound_lo"])),
        ("∞" if row["bound_hi"] is None else shown(row["bound_hi"])),
    )
    return f"[{ends[0]}, {ends[1]}]"


def _p(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.2f}"
