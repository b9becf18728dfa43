"""Drawings of one pair and of one feature: change over dose above its noise floor, and a histogram.

There are hundreds of them in a report, so each is a few elements: bars and floors are one path.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

from polysem.report.charts import Curve
from polysem.report.svg import Frame, drawing, el, padded, tick_text
from polysem.report.text import Real, interval, number


class Floor(NamedTuple):
    """Where the effects of a control lie at one dose."""

    dose: Real
    lo: Real
    hi: Real


def pair_doses(
    curves: Sequence[Curve],
    *,
    floor: Sequence[Floor],
    title: str,
    x_label: str,
    headline: Real,
    by_root: bool,
) -> Markup:
    """Effect of a push over its dose, with intervals, over the noise floor.

    Args:
        curves: points (dose > 0, effect, lo, hi); at dose 0 nothing changes, so every line starts there.
        floor: of a control that says what any push does; empty where there is none.
        headline: dose of the pooled results, drawn as a line.
        by_root: the dose axis grows with the square root: an effect does so with a KL.
    """
    to = math.sqrt if by_root else float
    doses = sorted({p[0] for c in curves for p in c.points})
    ys = [v for c in curves for p in c.points for v in p[1:] if v is not None]
    ys += [v for f in floor for v in (f.lo, f.hi)]
    x_range = 0.0, to(doses[-1]) * 1.06
    frame = Frame.of(x_range, padded(ys, include=(0.0,)), height=250, bottom=46)
    values = {to(d): d for d in (0.0, *_apart(doses, to=to, room=0.09 * x_range[1]))}
    parts = frame.axes(
        x_label=x_label,
        y_label="log-odds (nats)",
        x_ticks=list(values),
        y_ticks=frame.y.ticks(4),
        x_text=lambda v: tick_text(values[v]),
    )
    if floor:
        parts.append(
            frame.band([(0.0, 0.0, 0.0), *((to(f.dose), f.lo, f.hi) for f in sorted(floor))], "floor")
        )
    parts += [frame.hline(0.0, "zero"), frame.vline(to(headline), "headline")]
    for curve in curves:
        points = sorted(curve.points, key=lambda p: p[0])
        inside = [frame.path([(0.0, 0.0), *((to(p[0]), p[1]) for p in points)], f"line k-{curve.kind}")]
        inside += [_point(frame, to(dose), y, lo, hi, dose=dose) for dose, y, lo, hi in points]
        parts.append(el("g", *inside, class_=f"mark k-{curve.kind}"))
    return drawing(
        parts, height=frame.height, title=title, description=_told(curves, floor), class_="chart small"
    )


def _apart(doses: Sequence[Real], *, to, room: Real) -> list[Real]:
    """Doses whose labels do not lie on each other, from the largest down; 0 keeps its place."""
    kept: list[Real] = []
    for dose in sorted(doses, reverse=True):
        if to(dose) > room and (not kept or to(kept[-1]) - to(dose) > room):
            kept.append(dose)
    return kept[::-1]


def _point(frame: Frame, x: Real, y: Real, lo: Real | None, hi: Real | None, *, dose: Real) -> Markup:
    said = f"dose {tick_text(dose)}: {number(y, sign=True)} ({interval(lo, hi)})"
    parts = [el("title", said), el("circle", cx=frame.x(x), cy=frame.y(y), r=4)]
    if lo is not None and hi is not None:
        parts.append(el("line", x1=frame.x(x), x2=frame.x(x), y1=frame.y(lo), y2=frame.y(hi)))
    return el("g", *parts)


def _told(curves: Sequence[Curve], floor: Sequence[Floor]) -> str:
    """The largest dose in words, for those who do not see the drawing."""
    told = []
    for curve in curves:
        dose, y, lo, hi = max(curve.points, key=lambda p: p[0])
        told.append(
            f"{curve.label}: {number(y, sign=True)} nats ({interval(lo, hi)}) at dose {tick_text(dose)}"
        )
    if floor:
        last = max(floor)
        told.append(f"noise floor there {interval(last.lo, last.hi)}")
    return "; ".join(told)


def histogram(edges: Sequence[Real], counts: Sequence[int], *, title: str, x_label: str) -> Markup:
    """Counts between edges (one more than counts) as one path of bars; heights are proportional.

    A bar of a single count stays visible.
    """
    tallest = max([1, *counts])
    frame = Frame.of((edges[0], edges[-1]), (0.0, tallest * 1.05), height=150, bottom=46, top=8)
    ends = {"x_ticks": (edges[0], edges[-1]), "y_ticks": (0, tallest)}
    parts = frame.axes(x_label=x_label, y_label="tokens", x_text=lambda v: number(v), **ends)
    bars = []
    for (low, high), n in zip(pairwise(edges), counts, strict=True):
        if n:
            top = min(frame.y(n), frame.y.start - 2)
            bars.append(
                f"M{frame.x(low) + 0.6:.1f} {frame.y.start:.1f}V{top:.1f}H{frame.x(high) - 0.6:.1f}V{frame.y.start:.1f}z"
            )
    parts.append(el("path", class_="bars", d="".join(bars)))
    total = sum(counts)
    half = next((k for k in range(len(counts)) if 2 * sum(counts[: k + 1]) >= total), 0)
    description = f"{total} values from {tick_text(edges[0])} to {number(edges[-1])}; half of them below {number(edges[half + 1])}"
    return drawing(parts, height=frame.height, title=title, description=description, class_="chart small")
