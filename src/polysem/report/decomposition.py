"""Of what the effects are made, as stacked bars, and how much of interference the readout compensates."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from polysem.report import charts
from polysem.report.charts import Bar
from polysem.report.panels import Panel
from polysem.report.svg import WIDTH, Scale, drawing, el
from polysem.report.text import number, visible

SPLITS = (
    (("shared", "interference proper"), ("common", "common mode"), ("own", "own route")),
    (("direct", "direct"), ("indirect", "through later blocks")),
    (("mediated", "through the target's latent"), ("remainder", "not through it")),
)
_BAR, _GAP, _LEFT = 18, 8, 12


def decomposition_panels(table: pa.Table) -> list[Panel]:
    """One figure per SAE: every split of the mean effect as one bar."""
    panels = []
    for sae in sorted(set(table["sae"].to_pylist())):
        rows = table.filter(pc.equal(table["sae"], sae)).to_pylist()
        total = np.array([r["total"] for r in rows], dtype=np.float64)
        size = float(np.abs(total).sum())
        if size == 0:
            continue
        bars = []
        for split in SPLITS:
            if all(r[name] is not None for r in rows for name, _ in split):
                parts = [
                    float((np.array([r[n] for r in rows]) * np.sign(total)).sum() / size) for n, _ in split
                ]
                bars.append([(words, share) for (_, words), share in zip(split, parts, strict=True)])
        title = f"{visible(sae)}: of what the effects are made"
        caption = (
            f"{len(rows)} pairs at dose {rows[0]['dose']:g}, {rows[0]['n_prompts']} prompts each. "
            "Shares of the summed size of the effects; the parts of a bar add up to 100 %, and a part left of zero "
            "works against the whole. Only the share of interference proper is due to the angle between the two "
            "directions."
        )
        panels.append(Panel(title, _stacked(bars, title), caption))
    return panels


def _stacked(bars: Sequence[Sequence[tuple[str, float]]], title: str) -> Markup:
    ends = [0.0, 1.0]
    for bar in bars:
        ends += [sum(min(v, 0.0) for _, v in bar), sum(max(v, 0.0) for _, v in bar)]
    x = Scale(min(ends), max(ends), _LEFT, WIDTH - _LEFT)
    parts, y, said = [], 14.0, []
    for bar in bars:
        left = right = 0.0
        names = []
        for k, (words, share) in enumerate(bar):
            start = right if share >= 0 else left + share
            left, right = (left, right + share) if share >= 0 else (left + share, right)
            text = f"{words} {round(100 * share)} %".replace("-", "−")
            names.append(text)
            box = el("rect", el("title", text), x=x(start), y=y, width=x(abs(share)) - x(0), height=_BAR)
            parts.append(el("g", box, class_=f"part part-{k}"))
        parts.append(el("text", " · ".join(names), class_="tick", x=_LEFT, y=y + _BAR + 15))
        said.append(", ".join(names))
        y += _BAR + 22 + _GAP
    parts.append(el("line", class_="zero", x1=x(0), x2=x(0), y1=6, y2=y - 22))
    return drawing(parts, height=y, title=title, description="; ".join(said), class_="chart")


def compensation_panel(table: pa.Table, *, tokens: str) -> Panel | None:
    """lambda of every SAE and band, for one token set."""
    rows = table.filter(pc.equal(table["token_set"], tokens)).to_pylist()
    drawn, floors = [], []
    for sae in sorted({r["sae"] for r in rows}):
        mine = [r for r in rows if r["sae"] == sae]
        for r in sorted(mine, key=lambda r: (r["band_hi"] - r["band_lo"] < 1, r["band_lo"])):
            band = (
                "all pairs" if r["band_hi"] - r["band_lo"] >= 1 else f"{r['band_lo']:g} to {r['band_hi']:g}"
            )
            shown = [None if r[k] is None else min(max(r[k], -1.0), 2.0) for k in ("estimate", "lo", "hi")]
            bar = Bar("pair", shown[0], shown[1], shown[2], f"{r['n_pairs']} pairs")
            drawn.append((f"{visible(sae)}, {band}", [bar]))
        r = max(mine, key=lambda r: r["n_pairs"])
        floors.append(
            f"{visible(sae)}: at least {number(r['floor'], digits=2)}, cosines {number(r['rms_cosine'], digits=2)}"
        )
    if not drawn:
        return None
    title = f"Does the model undo the overlap? Readout compensation λ, T-{tokens}"
    caption = (
        "0: a push along one feature reaches the other in full proportion to their cosine. 1: the layers behind "
        "cancel it, so that a high cosine has no effect. From the gradients of all targets to all features; intervals "
        "say how far λ would move with other targets and sources, and are cut at −1 and 2. With more features than dimensions no readout can cancel "
        f"everything. Least possible root mean square crosstalk, beside that of the cosines: {'; '.join(floors)}."
    )
    plot = charts.dot_plot(drawn, title=title, x_label="λ", left=236)
    return Panel(title, plot, caption)
