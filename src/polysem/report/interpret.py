"""Pages of `polysem judge` and `polysem explain`: what models said of pairs and features, with intervals."""

from collections.abc import Sequence

from markupsafe import Markup

from polysem.report import text
from polysem.report.html import MISSING, Chapter, Column, Row, Rows, interval, table
from polysem.seeds import rng_for
from polysem.transfer.interpret import mean_detection

MOST = 200
"""rows of a table that are shown; all are in its file"""
_MEASURES: dict[str, tuple[str, str, tuple[Column, ...]]] = {
    "related": (
        "annotations",
        "<h2>Related or not</h2><p>Share of pairs that a judge calls related in both orders; Wilson's interval. The paper's "
        "judges: 10.8 and 28.7&nbsp;% (Pythia), 3.7 and 18.4&nbsp;% (GPT-2).</p>",
        (
            "judge",
            ("related", interval),
            ("pairs", "n"),
            ("no answer", "n_missing"),
            ("other answer in the other order", "n_inconsistent"),
        ),
    ),
    "kappa": (
        "kappa",
        "<h2>Agreement</h2><p>Cohen's kappa over pairs that both judged without contradiction; the interval resamples pairs. "
        "The paper's: .408 (Pythia) and .221 (GPT-2).</p>",
        (
            ("judges", lambda r: f"{r['judge']}, {r['other']}"),
            ("kappa", interval),
            "agreement",
            ("pairs", "n"),
        ),
    ),
    "forced choice": (
        "forced choice",
        "<h2>Forced choice</h2><p>Which of two pairs is the more related one: an interfering pair, or one of the same SAE and "
        "like gloss similarity that is not in the map? A trial counts if the answer is the same in both orders. The paper's: "
        "64.3&nbsp;% [62.8, 65.8].</p>",
        (
            "judge",
            ("interfering pair chosen", interval),
            ("p against 0.5", lambda r: text.p_value(r["p"])),
            ("trials", "n"),
            ("no answer, or another in the other order", "n_missing"),
        ),
    ),
}
"""measure -> (caption, what is told of it, columns)"""
_PAIRS: tuple[Column, ...] = (
    ("SAE", "sae"),
    ("pair", lambda r: f"{r['i']}, {r['j']}"),
    "judge",
    "similarity",
    ("related", lambda r: MISSING if r["related"] is None else text.number(r["related"])),
)
_EXPLAINERS: tuple[Column, ...] = (
    "explainer",
    "scored by",
    "features",
    "without a gloss",
    ("detection", lambda r: interval(r, "mean")),
)
_GLOSSES: tuple[Column, ...] = (
    ("SAE", "sae"),
    *("feature", "explainer"),
    ("gloss", lambda r: r["gloss"] or MISSING),
    ("detection", lambda r: interval(r, "detection")),
    ("contexts", "n"),
)


def judged(found: Rows) -> Chapter:
    """What the stage `judge` has to show."""
    parts = []
    for measure, (caption, told, columns) in _MEASURES.items():
        rows = [r for r in found["judgements"] if r["measure"] == measure]
        alone = measure == "kappa" and not rows
        parts.append(
            Markup("<p>One judge: no agreement can be told.</p>")
            if alone
            else Markup(told) + table(columns, rows, caption=caption)
        )
    parts.append(_folded("annotations", _PAIRS, found["annotations"], file="annotations.parquet"))
    lead = "Are interfering features related after all?"
    return Chapter("Pairs, judged by models", lead, Markup("").join(parts))


def explained(found: Rows) -> Chapter:
    """What the stage `explain` has to show."""
    rows, body = found["written_glosses"], []
    for explainer in sorted({r["explainer"] for r in rows}):
        mine = [r for r in rows if r["explainer"] == explainer]
        rng = rng_for(0, "page", "detection", explainer)
        mean, lo, hi = mean_detection(mine, level=mine[0]["level"], rng=rng)
        by = ", ".join(sorted({r["judge"] for r in mine}))
        known = {"mean": mean if mean == mean else None, "lo": lo, "hi": hi}
        counts = {"features": len(mine), "without a gloss": sum(r["gloss"] is None for r in mine)}
        body.append({"explainer": explainer, "scored by": by} | counts | known)
    content = Markup(
        "<h2>Detection</h2><p>Share of contexts that a judge puts right, given the gloss; half of them are of the feature and "
        "none of these was shown to the explainer. Chance is 0.5. The interval resamples features.</p>{}{}"
        '<p>As a second gloss of a study: <code>glosses.source = "file:RUN/explain/SAE"</code>.</p>'
    ).format(
        table(_EXPLAINERS, body, caption="explainers"),
        _folded("glosses", _GLOSSES, rows, file="written_glosses.parquet"),
    )
    return Chapter("Glosses, written by models", "Does a gloss tell where its feature fires?", content)


def _folded(what: str, columns: Sequence[Column], rows: Sequence[Row], *, file: str) -> Markup:
    """The first rows of a long table, folded."""
    shown = rows[:MOST]
    return Markup("<details><summary>{} of {} {}</summary>{}</details>").format(
        len(shown), len(rows), what, table(columns, shown, caption=file)
    )
