"""Effect against interference, intervals side by side, and curves over dose."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from polysem.report.svg import WIDTH, Frame, Scale, drawing, el, padded, tick_text
from polysem.report.text import Real, interval, number

_ROW = 30
_LABEL_GAP = 16


class Point(NamedTuple):
    """One pair or control in the scatter."""

    x: Real
    y: Real
    se: Real | None
    kind: str
    """css class: pair, random_feature, random_direction"""
    text: str
    """shown on hover"""


class Bar(NamedTuple):
    """One estimate with its interval."""

    kind: str
    estimate: Real | None
    lo: Real | None
    hi: Real | None
    n: str


class Curve(NamedTuple):
    """One line over dose: (dose, value, lo, hi)."""

    label: str
    kind: str
    points: list[tuple[Real, Real, Real | None, Real | None]]


def scatter(
    points: Sequence[Point],
    *,
    line: Sequence[tuple[Real, Real, Real, Real]],
    title: str,
    y_label: str,
    y_range: tuple[Real, Real] | None = None,
) -> Markup:
    """Effect against interference: every pair, the controls where they happen to lie, and the fitted line
    with its band.

    Args:
        line: (interference, fit, lo, hi), rising; empty where nothing could be fitted.
        y_range: shared by charts that are to be compared.
    """
    frame = Frame.of(
        padded([p.x for p in points], include=(0.0,)), y_range or scatter_range(points), height=360
    )
    parts = frame.axes(x_label="interference (cosine of directions)", y_label=y_label)
    parts.append(frame.hline(0.0, "zero"))
    for p in sorted(points, key=lambda p: (p.kind == "pair", p.kind, p.x, p.y, p.text)):
        parts.append(_mark(frame, p))
    if line:
        parts.append(
            frame.band([(x, max(lo, frame.y.lo), min(hi, frame.y.hi)) for x, _, lo, hi in line], "band fit")
        )
        parts.append(frame.path([(x, y) for x, y, _, _ in line if frame.y.lo <= y <= frame.y.hi], "line fit"))
    n = sum(p.kind == "pair" for p in points)
    return drawing(
        parts,
        height=frame.height,
        title=title,
        description=f"{n} pairs and {len(points) - n} controls: means over prompts, with standard errors",
        class_="chart",
    )


def scatter_range(points: Sequence[Point]) -> tuple[Real, Real]:
    """A y range that holds all points."""
    return padded([p.y for p in points], include=(0.0,))


def _mark(frame: Frame, p: Point) -> Markup:
    x, y = frame.x(p.x), frame.y(p.y)
    shape = {
        "random_feature": el("rect", x=x - 3.2, y=y - 3.2, width=6.4, height=6.4),
        "random_direction": el("path", d=f"M{x:.2f} {y - 4.4:.2f}l4.2 7.4h-8.4z"),
    }.get(p.kind, el("circle", cx=x, cy=y, r=3.6))
    whisker = Markup("")
    if p.se is not None and math.isfinite(p.se):
        top, bottom = frame.y(min(p.y + p.se, frame.y.hi)), frame.y(max(p.y - p.se, frame.y.lo))
        whisker = el("line", class_="whisker", x1=x, x2=x, y1=top, y2=bottom)
    return el("g", el("title", p.text), whisker, shape, class_=f"mark k-{p.kind}")


def dot_plot(
    rows: Sequence[tuple[str, Sequence[Bar]]],
    *,
    title: str,
    x_label: str,
    reference: Real = 0.0,
    left: Real = 158,
    margin: Real | None = None,
) -> Markup:
    """Estimates and intervals, one labelled row each (several bars in a row are drawn under each other).

    Args:
        reference: where "nothing" is; drawn as a line.
        margin: half-width of the zone around it that counts as no effect.
    """
    values = [v for _, bars in rows for b in bars for v in (b.estimate, b.lo, b.hi) if v is not None]
    height = 62 + sum(_ROW + 14 * (len(bars) - 1) for _, bars in rows)
    x = Scale(*padded(values, include=(reference,)), left, WIDTH - 18)
    frame = Frame(x, Scale(0, 1, height - 50, 10), height)
    parts = frame.axes(x_label=x_label, y_label="", y_ticks=())
    if margin is not None:
        a, b = (x(min(max(reference + s * margin, x.lo), x.hi)) for s in (-1, 1))
        parts.append(el("rect", class_="margin", x=a, y=10, width=b - a, height=height - 60))
    parts.append(frame.vline(reference, "zero"))
    y = 10.0
    for label, bars in rows:
        size = _ROW + 14 * (len(bars) - 1)
        parts.append(
            el("text", label, class_="row-label", x=left - 10, y=y + size / 2 + 4.5, text_anchor="end")
        )
        for k, bar in enumerate(bars):
            parts.append(_bar(x, bar, y + _ROW / 2 + 14 * k))
        y += size
    shown = "; ".join(
        f"{label}: {number(b.estimate, sign=True)} ({interval(b.lo, b.hi)})"
        for label, bars in rows
        for b in bars
    )
    return drawing(parts, height=height, title=title, description=shown, class_="chart")


def _bar(x: Scale, bar: Bar, y: Real) -> Markup:
    if bar.estimate is None:
        return el("text", "not estimated", class_="tick", x=x.start + 6, y=y + 4.5)
    parts = [
        el("title", f"{number(bar.estimate, sign=True)}, 95 % interval {interval(bar.lo, bar.hi)}, {bar.n}")
    ]
    if bar.lo is not None and bar.hi is not None:
        parts.append(el("line", class_="interval", x1=x(bar.lo), x2=x(bar.hi), y1=y, y2=y))
        parts += [
            el("line", class_="interval", x1=x(v), x2=x(v), y1=y - 4, y2=y + 4) for v in (bar.lo, bar.hi)
        ]
    parts.append(el("circle", cx=x(bar.estimate), cy=y, r=4.6))
    return el("g", *parts, class_=f"mark k-{bar.kind}")


def dose_chart(curves: Sequence[Curve], *, title: str, x_label: str, headline: Real, y_label: str) -> Markup:
    """Change over signed dose with interval bands; lines are labelled at their right end."""
    xs = [p[0] for c in curves for p in c.points]
    ys = [v for c in curves for p in c.points for v in p[1:] if v is not None]
    frame = Frame.of(padded(xs, share=0.02), padded(ys, include=(0.0,)), height=390, right=126)
    parts = frame.axes(x_label=x_label, y_label=y_label)
    parts += [frame.hline(0.0, "zero"), frame.vline(0.0, "zero")]
    for sign in (1, -1):
        parts.append(frame.vline(sign * headline, "headline"))
    for curve in curves:
        # A dose of 0 changes nothing by definition; without it the line would hide that it passes the origin.
        banded = sorted(
            [(p[0], p[2], p[3]) for p in curve.points if p[2] is not None and p[3] is not None]
            + [(0.0, 0.0, 0.0)]
        )
        parts.append(frame.band(banded, f"band k-{curve.kind}"))
    for curve in curves:
        points = sorted([(p[0], p[1]) for p in curve.points] + [(0.0, 0.0)])
        parts.append(frame.path(points, f"line k-{curve.kind}"))
        parts += [
            el("circle", class_=f"dot k-{curve.kind}", cx=frame.x(a), cy=frame.y(b), r=2.6)
            for a, b in points
            if a
        ]
    ends = [(frame.y(max(c.points)[1]), c) for c in curves if c.points]
    parts += _end_labels(ends, x=frame.x.stop, top=20, bottom=frame.y.start)
    shown = "; ".join(
        f"{c.label}: {number(max(c.points)[1], sign=True)} at the largest dose" for c in curves if c.points
    )
    return drawing(parts, height=frame.height, title=title, description=shown, class_="chart")


def kl_chart(curves: Sequence[Curve], *, title: str, x_label: str, limit: Real, headline: Real) -> Markup:
    """Mean KL over |dose| in decades, the limit for headline contrasts, and the dose that was chosen."""
    known = [c._replace(points=[p for p in c.points if p[1] > 0]) for c in curves]
    known = [c for c in known if c.points]
    values = [p[1] for c in known for p in c.points] + [limit]
    xs = [p[0] for c in known for p in c.points] + [0.0, headline]
    y = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)) + 0.1)
    frame = Frame.of(padded(xs, share=0.02), y, height=390, right=126, log_y=True)
    parts = frame.axes(x_label=x_label, y_label="mean KL to the unedited model (nats)")
    parts += [frame.hline(limit, "limit"), frame.vline(headline, "headline")]
    parts.append(
        el("text", f"limit {tick_text(limit)}", class_="tick halo", x=frame.x.start + 6, y=frame.y(limit) - 6)
    )
    text = f"headline dose {tick_text(headline)}"
    side = "end" if headline > (frame.x.lo + frame.x.hi) / 2 else "start"
    x = frame.x(headline) + (-6 if side == "end" else 6)
    parts.append(el("text", text, class_="tick halo", x=x, y=frame.y.start - 9, text_anchor=side))
    for curve in known:
        points = sorted((p[0], p[1]) for p in curve.points)
        parts.append(frame.path(points, f"line k-{curve.kind}"))
        parts += [
            el("circle", class_=f"dot k-{curve.kind}", cx=frame.x(a), cy=frame.y(b), r=3.0) for a, b in points
        ]
    ends = [(frame.y(max(c.points)[1]), c) for c in known]
    parts += _end_labels(ends, x=frame.x.stop, top=20, bottom=frame.y.start)
    shown = "; ".join(f"{c.label}: {number(max(c.points)[1])} nats at the largest dose" for c in known)
    return drawing(parts, height=frame.height, title=title, description=shown, class_="chart")


def frontier_chart(curves: Sequence[Curve], *, title: str, limit: Real) -> Markup:
    """Effect over mean KL, and the limit of KL for headline contrasts."""
    xs = [p[0] for c in curves for p in c.points] + [0.0]
    ys = [p[1] for c in curves for p in c.points]
    frame = Frame.of(padded(xs, share=0.02), padded(ys, include=(0.0,)), height=390, right=126)
    parts = frame.axes(x_label="mean KL to the unedited model (nats)", y_label="change in log-odds (nats)")
    parts.append(frame.hline(0.0, "zero"))
    if limit <= frame.x.hi:
        parts.append(frame.vline(limit, "limit"))
    for curve in curves:
        points = [(0.0, 0.0), *sorted((p[0], p[1]) for p in curve.points)]
        parts.append(frame.path(points, f"line k-{curve.kind}"))
        parts += [
            el("circle", class_=f"dot k-{curve.kind}", cx=frame.x(a), cy=frame.y(b), r=3.0)
            for a, b in points[1:]
        ]
    ends = [(frame.y(max(c.points)[1]), c) for c in curves]
    parts += _end_labels(ends, x=frame.x.stop, top=20, bottom=frame.y.start)
    shown = "; ".join(
        f"{c.label}: {number(max(c.points)[1], sign=True)} for {number(max(c.points)[0])} nats"
        for c in curves
    )
    return drawing(parts, height=frame.height, title=title, description=shown, class_="chart")


def _end_labels(ends: Sequence[tuple[Real, Curve]], *, x: Real, top: Real, bottom: Real) -> list[Markup]:
    """Labels beside the line ends, pushed apart where they would overlap, with a leader to their line."""
    parts: list[Markup] = []
    order = sorted(ends, key=lambda e: (e[0], e[1].label))
    places: list[Real] = []
    for y, _ in order:
        places.append(max(y, (places[-1] + _LABEL_GAP) if places else top))
    # Whatever ran over the bottom is pushed back up.
    for k in range(len(places) - 1, -1, -1):
        ceiling = bottom if k == len(places) - 1 else places[k + 1] - _LABEL_GAP
        places[k] = min(places[k], ceiling)
    for (y, curve), place in zip(order, places, strict=True):
        parts.append(
            el("path", class_=f"leader k-{curve.kind}", d=f"M{x + 1:.2f} {y:.2f}L{x + 12:.2f} {place:.2f}")
        )
        parts.append(el("text", curve.label, class_="end-label", x=x + 16, y=place + 4.5))
    return parts


def strip(estimate: Real | None, lo: Real | None, hi: Real | None, *, margin: Real, reach: Real) -> Markup:
    """One interval on a line from -reach to reach, with zero and the margin around it: the finding at a
    glance."""
    width, height = 220.0, 30.0
    x = Scale(-reach * 1.05, reach * 1.05, 4, width - 4)
    parts = [
        el("rect", class_="margin", x=x(-margin), y=4, width=x(margin) - x(-margin), height=height - 8),
        el("line", class_="grid", x1=x.start, x2=x.stop, y1=height / 2, y2=height / 2),
        el("line", class_="zero", x1=x(0), x2=x(0), y1=2, y2=height - 2),
    ]
    if estimate is not None and lo is not None and hi is not None:
        line = el("line", class_="interval", x1=x(lo), x2=x(hi), y1=height / 2, y2=height / 2)
        parts.append(el("g", line, el("circle", cx=x(estimate), cy=height / 2, r=5.5), class_="mark"))
    return el("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", class_="strip", aria_hidden="true")
