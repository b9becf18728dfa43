"""What explains the effects: held-out R2 of nested models and metrics, where the gradient stops, of what effects are made,
and how much of interference the readout compensates."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa

from polysem.report import charts, words
from polysem.report.charts import Bar
from polysem.report.html import Figure
from polysem.report.source import where
from polysem.report.text import fixed, number, visible
from polysem.stats import POOLED
from polysem.vocabulary import TOKEN_SETS

HOLDS = 0.9
"""below this R2 the gradient no longer stands for the effect"""
_SPLITS = (
    {"shared": "interference proper", "common": "shared mean direction", "own": "own route"},
    {"direct": "direct", "indirect": "through later blocks"},
    {"mediated": "through the target's latent", "remainder": "not through it"},
)
"""`words.SPLITS` in a picture's few words"""


def explained_panels(table: pa.Table, locus: str) -> Iterator[Figure]:
    """One figure per token set: how well each model predicts targets and sources that it has not seen."""
    for tokens in TOKEN_SETS:
        rows = where(table, locus=locus, token_set=tokens).to_pylist()
        if not any(r["r2"] is not None for r in rows):
            continue
        by_model: dict[str, list[Bar]] = {}
        for unseen in ("targets", "sources"):
            for r in (r for r in rows if r["unseen"] == unseen):
                r2, lo, hi = (None if r[k] is None else max(-1.0, r[k]) for k in ("r2", "lo", "hi"))
                kind = "pair" if unseen == "targets" else "pair hollow"
                by_model.setdefault(r["model"], []).append(Bar(kind, r2, lo, hi, f"{r['n_pairs']} pairs"))
        drawn = [(label, by_model[model]) for model, label in words.MODELS.items() if model in by_model]
        title = f"How well each account predicts the {words.asked(tokens)}"
        drawing = charts.dot_plot(drawn, title=title, x_label="held-out R² (1: every effect; 0: none)")
        said = f"{_verdict(rows)} Filled: new targets. Hollow: new sources. Intervals resample them."
        yield Figure(title, drawing, said)


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """What may be concluded from linear response against cosine, for new targets."""
    found = {r["model"]: r for r in rows if r["unseen"] == "targets" and r["r2"] is not None}
    linear, cosine = found.get("linear_response"), found.get("cosine")
    if linear is None or cosine is None:
        return "The models cannot be compared here."
    told = f"{_share(cosine['r2'])} of it"
    if cosine["lo"] is not None and cosine["lo"] <= 0:
        told = f"nothing that can be told from zero (R² {number(cosine['r2'], digits=2)})"
    said = (
        f"For targets that they have not seen, the gradient explains {_share(linear['r2'])} of the variation between pairs, "
        f"and interference {told}."
    )
    if "all" in found:
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
    rows = where(table, locus=locus).to_pylist()
    rows.sort(key=lambda r: (r["sae"] != POOLED, r["sae"], r["token_set"], r["dose"]))
    return [
        {
            "sae": "all" if r["sae"] == POOLED else r["sae"],
            "tokens": f"T-{r['token_set']}",
            "dose": f"{r['dose']:g}",
            "kl": number(r["kl"], digits=2),
            "r2": fixed(r["r2"]),
            "n": f"{r['n_arms']}",
            "r2_path": fixed(r["r2_path"]),
            "n_path": f"{r['n_path']}" if r["n_path"] else "–",
            "bad": r["r2"] is not None and r["r2"] < HOLDS,
        }
        for r in rows
    ]


def stops(table: pa.Table, locus: str) -> str:
    """From which dose on the gradient no longer stands for the effect, and for whom; "" where nothing was compared."""
    rows = [r for r in where(table, locus=locus).to_pylist() if r["r2"] is not None]
    bad = [r for r in rows if r["r2"] < HOLDS]
    if not bad:
        last = max((r["dose"] for r in rows), default=None)
        said = "The gradient stands for the effects of every SAE at every dose of this study, up to"
        return "" if last is None else f"{said} {last:g}."
    first = min(r["dose"] for r in bad)
    named = [
        f"{'all SAEs together' if r['sae'] == POOLED else visible(r['sae'])} (T-{r['token_set']}, R² {fixed(r['r2'])})"
        for r in bad
        if r["dose"] == first
    ]
    below = [r["dose"] for r in rows if r["dose"] < first]
    before = (
        f"At dose {max(below):g} the gradient still stands for the effects of every SAE. " if below else ""
    )
    return (
        f"{before}At dose {first:g} it no longer does (R² below {HOLDS:g}) for {', '.join(named)}: there steering is too "
        "strong for the gradient, and small-dose theory says nothing of it."
    )


def decomposition_panels(table: pa.Table) -> Iterator[Figure]:
    """One figure per SAE and token set: every split of the mean effect as one bar."""
    for sae, tokens in product(sorted(set(table["sae"].to_pylist())), TOKEN_SETS):
        rows = where(table, sae=sae, token_set=tokens).to_pylist()
        total = np.array([r["total"] for r in rows], dtype=np.float64)
        size = float(np.abs(total).sum())
        if size == 0:
            continue
        bars = [
            [
                (said, float((np.array([r[n] for r in rows]) * np.sign(total)).sum() / size))
                for n, said in split.items()
            ]
            for split in _SPLITS
            if all(r[name] is not None for r in rows for name in split)
        ]
        title = f"{visible(sae)}: of what the effects on {words.tokens(tokens)} are made"
        caption = (
            f"{len(rows)} pairs at dose {rows[0]['dose']:g}, {rows[0]['n_prompts']} prompts each. "
            "Shares of the summed size of the effects; the parts of a bar add up to 100 % before they are rounded, and a part left of zero "
            "works against the whole. Only the share of interference proper is due to the angle between the two "
            "directions."
        )
        yield Figure(title, charts.stacked(bars, title=title), caption)


def compensation_panels(table: pa.Table) -> Iterator[Figure]:
    """lambda of every SAE and band, for every token set that has any."""
    for tokens in TOKEN_SETS:
        rows = where(table, token_set=tokens).to_pylist()
        drawn, floors = [], []
        for sae in sorted({r["sae"] for r in rows}):
            mine = [r for r in rows if r["sae"] == sae]
            for r in sorted(mine, key=lambda r: (r["band_hi"] - r["band_lo"] < 1, r["band_lo"])):
                whole = r["band_hi"] - r["band_lo"] >= 1
                band = "all pairs" if whole else f"{r['band_lo']:g} to {r['band_hi']:g}"
                estimate, lo, hi = (
                    None if r[k] is None else min(max(r[k], -1.0), 2.0) for k in ("estimate", "lo", "hi")
                )
                bar = Bar("pair", estimate, lo, hi, f"{r['n_pairs']} pairs")
                drawn.append((f"{visible(sae)}, {band}", [bar]))
            r = max(mine, key=lambda r: r["n_pairs"])
            least, cosines = (number(r[k], digits=2) for k in ("floor", "rms_cosine"))
            floors.append(f"{visible(sae)}: at least {least}, cosines {cosines}")
        if not drawn:
            continue
        title = f"Does the model undo the overlap? Readout compensation λ, T-{tokens}"
        caption = (
            "0: steering along one feature reaches the other in full proportion to their cosine. 1: the layers behind "
            "cancel it, so that a high cosine has no effect. From the gradients of all targets to all features; intervals "
            "say how far λ would move with other targets and sources, and are cut at −1 and 2. With more features than "
            "dimensions no readout can cancel everything. Least possible root mean square crosstalk, beside that of the "
            f"cosines: {'; '.join(floors)}."
        )
        yield Figure(title, charts.dot_plot(drawn, title=title, x_label="λ"), caption)
