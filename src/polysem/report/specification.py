"""The slope on interference under every choice of pairs and fixed effects: one curve, one p value."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from polysem.report.panels import TOKENS, Panel
from polysem.report.svg import Frame, drawing, el, padded
from polysem.report.text import interval, number, p_value


def specification_panels(table: pa.Table, locus: str, *, level: float) -> Iterator[Panel]:
    """One figure per token set: specifications in the order of their estimates."""
    for tokens, words in TOKENS.items():
        chosen = pc.and_(pc.equal(table["locus"], locus), pc.equal(table["token_set"], tokens))
        rows = [r for r in table.filter(chosen).to_pylist() if r["estimate"] is not None]
        rows.sort(
            key=lambda r: (r["estimate"], r["min_interference"], r["max_similarity"], r["fixed_effects"])
        )
        if not rows:
            continue
        ends = [r[k] for r in rows for k in ("estimate", "lo", "hi") if r[k] is not None]
        frame = Frame.of((0.0, len(rows) + 1.0), padded(ends, include=(0.0,)), height=300)
        title = f"Every defensible analysis: {words}"
        parts = frame.axes(
            x_label="specifications, in the order of their slopes", y_label="slope (nats per cosine)"
        )
        parts.append(frame.hline(0.0, "zero"))
        for k, r in enumerate(rows, 1):
            text = (
                f"{number(r['estimate'], sign=True)}, {interval(r['lo'], r['hi'])}: |interference| ≥ "
                f"{r['min_interference']:g}, similarity < {r['max_similarity']:g}, within {r['fixed_effects'].replace('_', ' ')}s, "
                f"{r['n_pairs']} pairs"
            )
            marks = [el("title", text), el("circle", cx=frame.x(k), cy=frame.y(r["estimate"]), r=3.2)]
            if r["lo"] is not None:
                line = el(
                    "line",
                    class_="interval",
                    x1=frame.x(k),
                    x2=frame.x(k),
                    y1=frame.y(r["lo"]),
                    y2=frame.y(r["hi"]),
                )
                marks.insert(1, line)
            parts.append(el("g", *marks, class_="mark k-pair"))
        same = max(sum(r["estimate"] > 0 for r in rows), sum(r["estimate"] < 0 for r in rows))
        said = f"{same} of {len(rows)} specifications have the same sign. {_joint(rows[0]['p_joint'], level=level)}"
        drawn = drawing(parts, height=frame.height, title=title, description=said, class_="chart")
        yield Panel(
            title, drawn, f"{said} Each dot is one choice of thresholds and fixed effects, with its interval."
        )


def _joint(p: float | None, *, level: float) -> str:
    if p is None:
        return "There is no joint test."
    words = (
        "as a whole they are stronger than chance would give"
        if p < 1 - level
        else "as a whole they are not stronger than chance could give, however single ones look"
    )
    return f"Dealing effects to sources at random within each target: {words} (joint {p_value(p, name='p')})."
