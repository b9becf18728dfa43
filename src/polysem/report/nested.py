"""What explains the effects: held-out R2 of nested models, the race of metrics, and where the gradient stops."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from polysem.report import charts
from polysem.report.charts import Bar
from polysem.report.panels import TOKENS, Panel
from polysem.report.text import number, visible
from polysem.stats import POOLED

MODELS = {
    "linear_response": "gradient alone",
    "cosine": "interference alone",
    "cosine_similarity": "interference and gloss similarity",
    "all": "all three",
}
METRICS = {
    "centred": "cosine, mean removed",
    "residual_1": "cosine, mean and 1 PC removed",
    "residual_3": "cosine, mean and 3 PCs removed",
    "enc_dec": "what the SAE's encoder reads",
    "whitened": "cosine in whitened activations",
    "causal": "cosine of effects on all logits",
    "virtual_weight": "encoder reading, scaled",
    "coactivation": "reading of the same text",
    "jacobian": "push footprint on logits",
    "fisher": "the same, by probability",
}
HOLDS = 0.9
"""below this R2 the gradient no longer stands for the effect"""


def explained_panels(table: pa.Table, locus: str) -> Iterator[Panel]:
    """One figure per token set: how well each model predicts targets and sources that it has not seen."""
    for tokens, words in TOKENS.items():
        chosen = pc.and_(pc.equal(table["locus"], locus), pc.equal(table["token_set"], tokens))
        rows = table.filter(chosen).to_pylist()
        if not any(r["r2"] is not None for r in rows):
            continue
        drawn = []
        labels = MODELS | {f"metric:{name}": text for name, text in METRICS.items()}
        for model, label in labels.items():
            bars = [
                _bar(r)
                for u in ("targets", "sources")
                for r in rows
                if (r["model"], r["unseen"]) == (model, u)
            ]
            if bars:
                drawn.append((label, bars))
        title = f"How well each account predicts the {words}"
        drawing = charts.dot_plot(
            drawn, title=title, x_label="held-out R² (1: every effect; 0: none)", left=236
        )
        yield Panel(
            title,
            drawing,
            f"{_verdict(rows)} Filled: new targets. Hollow: new sources. Intervals resample them.",
        )


def _bar(row: dict[str, Any]) -> Bar:
    kind = "pair" if row["unseen"] == "targets" else "pair hollow"
    clip = [None if row[k] is None else max(-1.0, row[k]) for k in ("r2", "lo", "hi")]
    return Bar(kind, clip[0], clip[1], clip[2], f"{row['n_pairs']} pairs")


def _verdict(rows: list[dict[str, Any]]) -> str:
    """What may be concluded from linear response against cosine, for new targets."""
    found = {r["model"]: r for r in rows if r["unseen"] == "targets"}
    linear, cosine = found.get("linear_response"), found.get("cosine")
    if not linear or not cosine or linear["r2"] is None or cosine["r2"] is None:
        return "The models cannot be compared here."
    said = f"The gradient explains {_share(linear['r2'])} of the variation between pairs, interference {_share(cosine['r2'])}."
    if cosine["lo"] is not None and cosine["lo"] <= 0:
        said += " For targets it has not seen, interference predicts no better than the mean, as far as this study can tell."
    if found.get("all", {}).get("r2") is not None:
        more = found["all"]["r2"] - linear["r2"]
        size = "by less than 0.001" if abs(more) < 1e-3 else f"by {number(more, sign=True)}"
        said += f" Interference and similarity on top of the gradient change R² {size}."
    return said


def _share(r2: float) -> str:
    """A share in words; what rounds to all of it keeps its digits."""
    if r2 <= 0:
        return "none"
    if r2 < 0.99:
        return f"{100 * r2:.0f} %"
    return f"{100 * r2:.1f} %" if r2 < 0.9995 else "more than 99.9 %"


def validity_rows(table: pa.Table, locus: str) -> list[dict[str, str | bool]]:
    """R2 of measured effects by the gradient at every dose, nothing fitted; all SAEs together first."""
    rows = table.filter(pc.equal(table["locus"], locus)).to_pylist()
    rows.sort(key=lambda r: (r["sae"] != POOLED, r["sae"], r["token_set"], r["dose"]))
    return [
        {
            "sae": "all" if r["sae"] == POOLED else r["sae"],
            "tokens": f"T-{r['token_set']}",
            "dose": f"{r['dose']:g}",
            "kl": number(r["kl"], digits=2),
            "r2": _r2(r["r2"]),
            "n": f"{r['n_arms']}",
            "r2_path": _r2(r["r2_path"]),
            "n_path": f"{r['n_path']}" if r["n_path"] else "–",
            "bad": r["r2"] is not None and r["r2"] < HOLDS,
        }
        for r in rows
    ]


def stops(table: pa.Table, locus: str) -> str:
    """From which dose on the gradient no longer stands for the effect, and for whom; "" where nothing was compared."""
    rows = [r for r in table.filter(pc.equal(table["locus"], locus)).to_pylist() if r["r2"] is not None]
    if not rows:
        return ""
    bad = [r for r in rows if r["r2"] < HOLDS]
    if not bad:
        last = max(r["dose"] for r in rows)
        return (
            f"The gradient stands for the effects of every SAE at every dose of this study, up to {last:g}."
        )
    first = min(r["dose"] for r in bad)
    named = [
        f"{'all SAEs together' if r['sae'] == POOLED else visible(r['sae'])} (T-{r['token_set']}, R² {_r2(r['r2'])})"
        for r in bad
        if r["dose"] == first
    ]
    below = [r["dose"] for r in rows if r["dose"] < first]
    before = (
        f"At dose {max(below):g} the gradient still stands for the effects of every SAE. " if below else ""
    )
    return (
        f"{before}At dose {first:g} it no longer does (R² below {HOLDS:g}) for {', '.join(named)}: there a push is too "
        "large for the gradient, and small-dose theory says nothing of it."
    )


def _r2(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".replace("-", "−")
