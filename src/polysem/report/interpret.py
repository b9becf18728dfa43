"""Pages of `polysem judge` and `polysem explain`: what models said of pairs and features, with intervals."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from polysem.report import text
from polysem.report.parts import interval, page, shown, table
from polysem.seeds import rng_for
from polysem.store import io
from polysem.store.tables import JUDGED, JUDGEMENTS, WRITTEN_GLOSSES
from polysem.transfer.interpret import EXPLAIN, JUDGE, mean_detection

MOST = 200
"""rows of a table that are shown; all are in its file"""
Rows = list[dict[str, Any]]


def write_judge_page(run: Path) -> Path:
    """Write `judge.html` into a run folder; gives its path. Equal tables give equal bytes.

    Raises:
        StoreError: if nothing was judged, or a table is damaged.
    """
    rebuild = "polysem judge RUN JUDGES.toml"
    found: Rows = io.read_table(run / JUDGE / "judgements.parquet", JUDGEMENTS, rebuild=rebuild).to_pylist()
    pairs: Rows = io.read_table(run / JUDGE / "annotations.parquet", JUDGED, rebuild=rebuild).to_pylist()
    body = Markup("").join([_related(found), _kappa(found), _choice(found), _pairs(pairs)])
    path = run / "judge.html"
    io.write_text(path, page("Pairs, judged by models", "Are interfering features related after all?", body))
    return path


def _related(rows: Rows) -> Markup:
    head = ("judge", "related", "pairs", "no answer", "other answer in the other order")
    body = [
        (r["judge"], interval(r), r["n"], r["n_missing"], r["n_inconsistent"])
        for r in rows
        if r["measure"] == "related"
    ]
    return Markup(
        "<h2>Related or not</h2><p>Share of pairs that a judge calls related in both orders; Wilson's interval. The paper's "
        "judges: 10.8 and 28.7&nbsp;% (Pythia), 3.7 and 18.4&nbsp;% (GPT-2).</p>{}"
    ).format(table(head, body, caption="annotations"))


def _kappa(rows: Rows) -> Markup:
    head = ("judges", "kappa", "agreement", "pairs")
    body = [
        (f"{r['judge']}, {r['other']}", interval(r), shown(r["agreement"]), r["n"])
        for r in rows
        if r["measure"] == "kappa"
    ]
    if not body:
        return Markup("<p>One judge: no agreement can be told.</p>")
    return Markup(
        "<h2>Agreement</h2><p>Cohen's kappa over pairs that both judged without contradiction; the interval resamples pairs. "
        "The paper's: .408 (Pythia) and .221 (GPT-2).</p>{}"
    ).format(table(head, body, caption="kappa"))


def _choice(rows: Rows) -> Markup:
    head = (
        "judge",
        "interfering pair chosen",
        "p against 0.5",
        "trials",
        "no answer, or another in the other order",
    )
    body = [
        (
            r["judge"],
            interval(r),
            "–" if r["p"] is None else text.p_value(r["p"], name=""),
            r["n"],
            r["n_missing"],
        )
        for r in rows
        if r["measure"] == "forced choice"
    ]
    return Markup(
        "<h2>Forced choice</h2><p>Which of two pairs is the more related one: an interfering pair, or one of the same SAE and "
        "like gloss similarity that is not in the map? A trial counts if the answer is the same in both orders. The paper's: "
        "64.3&nbsp;% [62.8, 65.8].</p>{}"
    ).format(table(head, body, caption="forced choice"))


def _pairs(rows: Rows) -> Markup:
    head = ("SAE", "pair", "judge", "similarity", "related")
    body = [
        (r["sae"], f"{r['i']}, {r['j']}", r["judge"], shown(r["similarity"]), shown(r["related"]))
        for r in rows[:MOST]
    ]
    return Markup("<details><summary>{} of {} annotations</summary>{}</details>").format(
        len(body), len(rows), table(head, body, caption="annotations.parquet")
    )


def write_explain_page(run: Path) -> Path:
    """Write `explain.html` into a run folder; gives its path. Equal tables give equal bytes.

    Raises:
        StoreError: if nothing was explained, or the table is damaged.
    """
    rows: Rows = io.read_table(
        run / EXPLAIN / "written_glosses.parquet", WRITTEN_GLOSSES, rebuild="polysem explain RUN JUDGES.toml"
    ).to_pylist()
    body = []
    for explainer in sorted({r["explainer"] for r in rows}):
        mine = [r for r in rows if r["explainer"] == explainer]
        mean, lo, hi = mean_detection(
            mine, level=mine[0]["level"], rng=rng_for(0, "page", "detection", explainer)
        )
        by = ", ".join(sorted({r["judge"] for r in mine}))
        known = {"estimate": mean if mean == mean else None, "lo": lo, "hi": hi}
        body.append((explainer, by, len(mine), sum(r["gloss"] is None for r in mine), interval(known)))
    every = [
        (
            r["sae"],
            r["feature"],
            r["explainer"],
            r["gloss"] or "–",
            interval({**r, "estimate": r["detection"]}),
            r["n"],
        )
        for r in rows[:MOST]
    ]
    content = Markup(
        "<h2>Detection</h2><p>Share of contexts that a judge puts right, given the gloss; half of them are of the feature and "
        "none of these was shown to the explainer. Chance is 0.5. The interval resamples features.</p>{}"
        "<details><summary>{} of {} glosses</summary>{}</details>"
        "<p>As a second gloss of a study: <code>glosses.source = \"file:RUN/explain/SAE\"</code>.</p>"
    ).format(
        table(("explainer", "scored by", "features", "without a gloss", "detection"), body, caption="explainers"),
        len(every), len(rows),
        table(("SAE", "feature", "explainer", "gloss", "detection", "contexts"), every, caption="written_glosses.parquet"),
    )  # fmt: skip
    path = run / "explain.html"
    io.write_text(
        path, page("Glosses, written by models", "Does a gloss tell where its feature fires?", content)
    )
    return path
