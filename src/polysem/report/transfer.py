"""The report of a transfer study: one page of its own, and a section of a study's report where both share a folder."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from polysem.report import text
from polysem.report.write import _asset, _policy
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
_MISSING = "–"
Rows = list[dict[str, Any]]


def write_transfer_report(out: Path) -> Path:
    """Write `transfer.html` into the folder of a finished transfer study; gives its path. Equal tables give equal bytes.

    Raises:
        StoreError: if there is no finished study, or a table is not what was written.
    """
    style, script = _asset("report.css"), Markup("")
    policy = _policy(style, script)
    body = section(out)
    page = Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>Cross-model transfer</title><style>{style}</style></head>"
        '<body><header><div class="wrap"><p class="kicker">polysem report</p><h1>Cross-model transfer</h1>'
        '<p class="lead">Does what two small models share move another one?</p></div></header>'
        '<main class="wrap">{body}</main></body></html>\n'
    ).format(policy=policy, style=style, body=body)
    path = out / NAME
    io.write_text(path, str(page))
    return path


def section(out: Path) -> Markup:
    """The section as HTML."""
    tables = {
        name: table.to_pylist() for name, table in read_transfer(out).items() if name != "transfer_trials"
    }
    effects = tables["transfer_effects"]
    parts = [
        _found(effects),
        _shared(tables["transfer_shared"]),
        _effects(effects),
        _success(effects),
        _targets(tables["transfer_targets"]),
        _sets(tables["transfer_sets"]),
        _paper(effects),
        _limits(),
    ]
    return Markup('<section id="transfer">{}</section>').format(Markup("\n").join(parts))


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
    return Markup('<h2>What was found</h2><ul class="plain">{}</ul>').format(Markup("").join(sentences))


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
        n=text.count(r["n_shared"]), e=text.number(r["expected"]), lift=_interval(r, "lift", "lift_lo", "lift_hi"),
        f=_interval(r, "fraction", "fraction_lo", "fraction_hi"),
        p=_MISSING if r["p"] is None else text.p_value(r["p"], name="p"),
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
                    r["arm"], r["category"], _n(r["treated"]), _n(r["reference"]), _interval(r), _p(r["p"]), _p(r["p_adj"]),
                    _interval(other) if other else _MISSING, _p(other.get("p_adj")), _bounds(r), _n(r["noise_floor"]), _n(r["kl"]),
                )
            )  # fmt: skip
        parts.append(_table(head, body, caption=f"{key[0]}, template {key[1]}, position {key[2]}"))
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
            naive = f"{_n(w.get('estimate'))}, {_p(w.get('p'))}; {w.get('note') or ''}" if w else _MISSING
            body.append(
                (
                    r["target"], r["arm"], r["category"], _n(r["treated"]), _n(r["reference"]), _interval(r), naive,
                    _n(r["refused"]), r["note"] or "",
                )
            )  # fmt: skip
    return Markup(
        "<h2>Top-k success</h2><p>Share of prompts with more words of the category among the k most likely tokens, minus the "
        "share with fewer. Intervals resample sentences. The paper's test (Welch on trials, against the random arm) stands "
        "beside it with the rate at which it errs on simulated data of this shape.</p>{}"
    ).format(_table(head, body, caption="success"))


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
            r["target"], r["what"], r["asked"] or "all", r["granted"] or "all", _n(r["missing"]), r["n_lost"], _n(r["noise"]),
            text.count(r["n_prompts"]), f"{r['cost']:.4g} {r['cost_unit']}".strip(),
        )
        for r in rows
    ]  # fmt: skip
    names = sorted({c for r in rows for c in json.loads(r["coverage"])})
    seen = [(r["target"], *(json.loads(r["coverage"]).get(c, 0) for c in names)) for r in rows]
    return Markup("<h2>Targets, truncation and cost</h2>{}{}").format(
        _table(head, body, caption="targets"),
        _table(("target", *names), seen, caption="words of each category that are one token"),
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
                ", ".join(f"{k} {v}" for k, v in overlap.items()) or _MISSING,
                f"{worst} {gaps[worst]:+.2f}" if worst else _MISSING, r["reason"] or "",
            )
        )  # fmt: skip
    return Markup("<h2>Arms and pools</h2>{}").format(_table(head, body, caption="sets"))


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
    ).format(said, _table(head, body, caption="success rates as printed"))


def _limits() -> Markup:
    return Markup(
        "<h2>Limits</h2><ul><li>A shift in the next token is not a change of behaviour.</li><li>Reference pools are matched on what "
        "the table of arms lists, and on nothing else.</li><li>A category is a table of words; words that are several tokens are not "
        "seen.</li><li>No claim about a production system should be made without its owner's consent.</li></ul>"
    )


def _table(head: Iterable[str], body: Iterable[Iterable[object]], *, caption: str) -> Markup:
    row = Markup("<tr>{}</tr>")
    heads = Markup("").join(Markup("<th>{}</th>").format(h) for h in head)
    rows = [
        row.format(
            Markup("").join(Markup("<td>{}</td>").format(escape(text.visible(str(cell)))) for cell in cells)
        )
        for cells in body
    ]
    return Markup(
        '<div class="scroll"><table><caption>{}</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(text.visible(caption), heads, Markup("\n").join(rows))


def _interval(row: Mapping[str, Any], name: str = "estimate", lo: str = "lo", hi: str = "hi") -> str:
    if row.get(name) is None:
        return _MISSING
    ends = [row[lo], row[hi]]
    if any(v is None or not math.isfinite(v) for v in ends):
        return text.number(row[name], sign=True)
    return f"{text.number(row[name], sign=True)} [{text.number(ends[0])}, {text.number(ends[1])}]"


def _bounds(row: Mapping[str, Any]) -> str:
    if row["bound_lo"] is None and row["bound_hi"] is None:
        return "none" if row["estimate"] is not None else _MISSING
    ends = (
        ("−∞" if row["bound_lo"] is None else _n(row["bound_lo"])),
        ("∞" if row["bound_hi"] is None else _n(row["bound_hi"])),
    )
    return f"[{ends[0]}, {ends[1]}]"


def _n(value: float | int | None) -> str:
    return _MISSING if value is None else text.number(value)


def _p(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return _MISSING if value is None else f"{100 * value:.2f}"
