"""The charts: effects against interference, intervals side by side, curves over dose, bars. One kit of marks, axes and
labels; what they show is chosen elsewhere."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

from polysem.report.svg import WIDTH, Axis, Frame, drawing, el, padded, scales, tick_text
from polysem.report.text import Real, interval, number
from polysem.report.words import relation

_ROW = 30
_UNDER = 14
"""between the bars of one row"""
_LABEL_GAP = 16
_LETTER = 6.6
"""width of a letter of a label, about"""
PREDICTED = "predicted"
"""kind of a curve that is no measurement"""


class Point(NamedTuple):
    """One pair or control in the scatter."""

    x: Real
    y: Real
    se: Real | None
    kind: str
    """the relation: it says shape and colour"""
    text: str
    """shown on hover"""
    of: str | None = None
    """the pair, `SAE/i/j`, where there is one"""


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
    points: Sequence[tuple[Real, Real, Real | None, Real | None]]


class Floor(NamedTuple):
    """Where the effects of a control lie at one dose."""

    dose: Real
    lo: Real
    hi: Real


def mark(kind: str, x: Real, y: Real) -> Markup:
    """The shape of a relation around a point."""
    match relation(kind).mark.shape:
        case "square":
            return el("rect", x=x - 3.2, y=y - 3.2, width=6.4, height=6.4)
        case "triangle":
            return el("path", d=f"M{x:.2f} {y - 4.4:.2f}l4.2 7.4h-8.4z")
        case "diamond":
            return el("path", d=f"M{x:.2f} {y - 4.8:.2f}l4.2 4.8l-4.2 4.8l-4.2 -4.8z")
        case "circle":
            return el("circle", cx=x, cy=y, r=3.6)


def legend(entries: Iterable[tuple[str, str]], *, plain: bool = False, more: Markup | str = "") -> Markup:
    """What marks mean: (kind, words) of each, as circles where the drawing has only those."""

    def key(kind: str) -> Markup:
        if kind == PREDICTED:
            line = el("path", class_=f"line dotted k-{kind}", d="M0 8h16")
            return el("svg", line, viewBox="0 0 16 16", aria_hidden="true")
        shape = el("circle", cx=8, cy=8, r=5) if plain else mark(kind, 8.0, 8.0)
        return el("svg", el("g", shape, class_=f"mark k-{kind}"), viewBox="0 0 16 16", aria_hidden="true")

    return el("ul", *(el("li", key(kind), words) for kind, words in entries), more, class_="legend")


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
        x, whisker = frame.x(p.x), Markup("")
        if p.se is not None and math.isfinite(p.se):
            top, bottom = frame.y(min(p.y + p.se, frame.y.hi)), frame.y(max(p.y - p.se, frame.y.lo))
            whisker = el("line", class_="whisker", x1=x, x2=x, y1=top, y2=bottom)
        shape = mark(p.kind, x, frame.y(p.y))
        parts.append(el("g", el("title", p.text), whisker, shape, class_=f"mark k-{p.kind}", data_pair=p.of))
    if line:
        inside = [(x, max(lo, frame.y.lo), min(hi, frame.y.hi)) for x, _, lo, hi in line]
        parts.append(frame.band(inside, "band fit"))
        parts.append(frame.path([(x, y) for x, y, _, _ in line if frame.y.lo <= y <= frame.y.hi], "line fit"))
    n = sum(p.kind == "pair" for p in points)
    told = f"{n} pairs and {len(points) - n} controls: means over prompts, with standard errors"
    return drawing(parts, height=frame.height, title=title, description=told)


def scatter_range(points: Sequence[Point]) -> tuple[Real, Real]:
    """A y range that holds all points."""
    return padded([p.y for p in points], include=(0.0,))


def dot_plot(rows: Sequence[tuple[str, Sequence[Bar]]], *, title: str, x_label: str) -> Markup:
    """Estimates and intervals around zero, one labelled row each (several bars in a row are drawn under each other)."""
    left = min(290.0, max(110.0, 16 + _LETTER * max((len(label) for label, _ in rows), default=0)))
    values = [v for _, bars in rows for b in bars for v in (b.estimate, b.lo, b.hi) if v is not None]
    sizes = [_ROW + _UNDER * (len(bars) - 1) for _, bars in rows]
    height = 62 + sum(sizes)
    x = Axis(*padded(values, include=(0.0,)), left, WIDTH - 18)
    frame = Frame(x, Axis(0, 1, height - 50, 10), height)
    parts = [*frame.axes(x_label=x_label, y_label="", y_ticks=()), frame.vline(0.0, "zero")]
    y = 10.0
    for (label, bars), size in zip(rows, sizes, strict=True):
        parts.append(
            el("text", label, class_="row-label", x=left - 10, y=y + size / 2 + 4.5, text_anchor="end")
        )
        parts += [_bar(x, bar, y + _ROW / 2 + _UNDER * k) for k, bar in enumerate(bars)]
        y += size
    told = "; ".join(
        f"{label}: {number(b.estimate, sign=True)} ({interval(b.lo, b.hi)})"
        for label, bars in rows
        for b in bars
    )
    return drawing(parts, height=height, title=title, description=told)


def _bar(x: Axis, bar: Bar, y: Real) -> Markup:
    if bar.estimate is None:
        return el("text", "not estimated", class_="tick", x=x.start + 6, y=y + 4.5)
    said = f"{number(bar.estimate, sign=True)}, 95 % interval {interval(bar.lo, bar.hi)}, {bar.n}"
    parts = [el("title", said)]
    if bar.lo is not None and bar.hi is not None:
        parts.append(el("line", class_="interval", x1=x(bar.lo), x2=x(bar.hi), y1=y, y2=y))
        parts += [
            el("line", class_="interval", x1=x(v), x2=x(v), y1=y - 4, y2=y + 4) for v in (bar.lo, bar.hi)
        ]
    parts.append(el("circle", cx=x(bar.estimate), cy=y, r=4.6))
    return el("g", *parts, class_=f"mark k-{bar.kind}")


def intervals(
    rows: Sequence[tuple[Real, Real | None, Real | None, str]],
    *,
    title: str,
    told: str,
    y_range: tuple[Real, Real],
) -> Markup:
    """Many estimates (estimate, lo, hi, words) beside each other in their order, as a specification curve. What runs
    beyond `y_range` ends in an arrow at its edge."""
    frame = Frame.of((0.0, len(rows) + 1.0), y_range, height=300)
    bottom, top = y_range
    parts = frame.axes(
        x_label="specifications, in the order of their slopes", y_label="slope (nats per cosine)"
    )
    parts.append(frame.hline(0.0, "zero"))
    for k, (estimate, lo, hi, said) in enumerate(rows, 1):
        x, marks = frame.x(k), [el("title", said)]
        for value, edge, tip in ((lo, bottom, 5.0), (hi, top, -5.0)):
            if value is not None and not bottom <= value <= top:
                at = frame.y(edge)
                arrow = f"M{x - 3:.2f} {at - tip:.2f}L{x:.2f} {at:.2f}l3 {-tip:.2f}"
                marks.append(el("path", class_="beyond", d=arrow))
        if lo is not None and hi is not None:
            ends = [frame.y(min(max(v, bottom), top)) for v in (lo, hi)]
            marks.append(el("line", class_="interval", x1=x, x2=x, y1=ends[0], y2=ends[1]))
        if bottom <= estimate <= top:
            marks.append(el("circle", cx=x, cy=frame.y(estimate), r=3.2))
        parts.append(el("g", *marks, class_="mark k-pair"))
    return drawing(parts, height=frame.height, title=title, description=told)


def percent(share: Real) -> str:
    """A share as whole per cent."""
    return f"{round(100 * share)} %".replace("-", "−")


def stacked(
    bars: Sequence[Sequence[tuple[str, float]]],
    *,
    title: str,
    whole: Real = 1.0,
    shown: Callable[[Real], str] = percent,
) -> Markup:
    """Parts that add up to a whole, (words, part) from left to right; those below zero stand left of it."""
    bar, gap, left = 18, 8, 12
    ends = [0.0, whole]
    for shares in bars:
        ends += [sum(min(v, 0.0) for _, v in shares), sum(max(v, 0.0) for _, v in shares)]
    x = Axis(min(ends), max(ends), left, WIDTH - left)
    parts, y, told = [], 14.0, []
    for shares in bars:
        below = above = 0.0
        names = []
        for k, (words, share) in enumerate(shares):
            start = above if share >= 0 else below + share
            below, above = (below, above + share) if share >= 0 else (below + share, above)
            names.append(f"{words} {shown(share)}")
            box = el("rect", el("title", names[-1]), x=x(start), y=y, width=x(abs(share)) - x(0), height=bar)
            parts.append(el("g", box, class_=f"part part-{k}"))
        for line in _lines_of(names):
            parts.append(el("text", line, class_="tick halo", x=left, y=y + bar + 15))
            y += 16
        told.append(", ".join(names))
        y += bar + 6 + gap
    lines = [
        el("line", class_=class_, x1=x(at), x2=x(at), y1=6, y2=y - 22)
        for class_, at in (("zero", 0.0), ("headline", whole))
    ]
    return drawing([*lines, *parts], height=y, title=title, description="; ".join(told))


def _lines_of(names: Sequence[str]) -> list[str]:
    """Names in as few lines as have room for them."""
    lines: list[str] = []
    for name in names:
        if lines and _LETTER * (len(lines[-1]) + len(name) + 3) < WIDTH - 24:
            lines[-1] += f" · {name}"
        else:
            lines.append(name)
    return lines


def dose_chart(curves: Sequence[Curve], *, title: str, x_label: str, headline: Real, y_label: str) -> Markup:
    """Change over signed dose with interval bands; lines are labelled at their right end."""
    ys = [v for c in curves for p in c.points for v in p[1:] if v is not None]
    frame = _lined(curves, padded(ys, include=(0.0,)))
    parts = frame.axes(x_label=x_label, y_label=y_label)
    parts += [frame.hline(0.0, "zero"), frame.vline(0.0, "zero")]
    parts += [frame.vline(sign * headline, "headline") for sign in (1, -1)]
    for curve in curves:
        # A dose of 0 changes nothing by definition; without it the line would hide that it passes the origin.
        banded = [(p[0], p[2], p[3]) for p in curve.points if p[2] is not None and p[3] is not None]
        parts.append(frame.band(sorted([*banded, (0.0, 0.0, 0.0)]), f"band k-{curve.kind}"))
    parts += _lines(frame, curves, origin=True, r=2.6)
    told = [
        f"{c.label}: {number(max(c.points)[1], sign=True)} at the largest dose" for c in curves if c.points
    ]
    return drawing(parts, height=frame.height, title=title, description="; ".join(told))


def kl_chart(curves: Sequence[Curve], *, title: str, x_label: str, limit: Real, headline: Real) -> Markup:
    """Mean KL over |dose| in decades, the limit for headline contrasts, and the dose that was chosen."""
    known = [c._replace(points=[p for p in c.points if p[1] > 0]) for c in curves]
    known = [c for c in known if c.points]
    values = [p[1] for c in known for p in c.points] + [limit]
    y = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)) + 0.1)
    frame = _lined(known, y, include=(0.0, headline), log_y=True)
    parts = frame.axes(x_label=x_label, y_label="mean KL to the unedited model (nats)")
    parts += [frame.hline(limit, "limit"), frame.vline(headline, "headline")]
    parts.append(
        el("text", f"limit {tick_text(limit)}", class_="tick halo", x=frame.x.start + 6, y=frame.y(limit) - 6)
    )
    side = "end" if headline > (frame.x.lo + frame.x.hi) / 2 else "start"
    x = frame.x(headline) + (-6 if side == "end" else 6)
    said = f"headline dose {tick_text(headline)}"
    parts.append(el("text", said, class_="tick halo", x=x, y=frame.y.start - 9, text_anchor=side))
    parts += _lines(frame, known, origin=False)
    told = "; ".join(f"{c.label}: {number(max(c.points)[1])} nats at the largest dose" for c in known)
    return drawing(parts, height=frame.height, title=title, description=told)


def frontier_chart(curves: Sequence[Curve], *, title: str, limit: Real) -> Markup:
    """Effect over mean KL, and the limit of KL for headline contrasts."""
    ys = [p[1] for c in curves for p in c.points]
    frame = _lined(curves, padded(ys, include=(0.0,)), include=(0.0,))
    parts = frame.axes(x_label="mean KL to the unedited model (nats)", y_label="change in log-odds (nats)")
    parts.append(frame.hline(0.0, "zero"))
    if limit <= frame.x.hi:
        parts.append(frame.vline(limit, "limit"))
    parts += _lines(frame, curves, origin=True)
    told = "; ".join(
        f"{c.label}: {number(max(c.points)[1], sign=True)} for {number(max(c.points)[0])} nats"
        for c in curves
    )
    return drawing(parts, height=frame.height, title=title, description=told)


def _lined(
    curves: Sequence[Curve], y: tuple[Real, Real], *, include: tuple[Real, ...] = (), log_y: bool = False
) -> Frame:
    """A frame with room for labels at the right ends of lines."""
    xs = [p[0] for c in curves for p in c.points]
    right = max([126.0, *(20 + 6.1 * len(c.label) for c in curves)])
    return Frame.of(padded(xs, include=include, share=0.02), y, height=390, right=right, log_y=log_y)


def _lines(frame: Frame, curves: Sequence[Curve], *, origin: bool, r: Real = 3.0) -> list[Markup]:
    """Lines with a dot at every point, through the origin or not, labelled at their right ends."""
    parts = []
    for curve in curves:
        points = sorted([(p[0], p[1]) for p in curve.points] + [(0.0, 0.0)] * origin)
        parts.append(frame.path(points, f"line k-{curve.kind}"))
        parts += [
            el("circle", class_=f"dot k-{curve.kind}", cx=frame.x(a), cy=frame.y(b), r=r)
            for a, b in points
            if a or not origin
        ]
    ends = [(frame.y(max(c.points)[1]), c) for c in curves if c.points]
    return parts + _end_labels(ends, x=frame.x.stop, top=20, bottom=frame.y.start)


def _end_labels(ends: Sequence[tuple[Real, Curve]], *, x: Real, top: Real, bottom: Real) -> list[Markup]:
    """Labels beside the line ends, moved apart where they would overlap, with a leader to their line."""
    parts: list[Markup] = []
    order = sorted(ends, key=lambda e: (e[0], e[1].label))
    places: list[Real] = []
    for y, _ in order:
        places.append(max(y, (places[-1] + _LABEL_GAP) if places else top))
    # Whatever ran over the bottom is moved back up.
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
    x = Axis(-reach * 1.05, reach * 1.05, 4, width - 4)
    parts = [
        el("rect", class_="margin", x=x(-margin), y=4, width=x(margin) - x(-margin), height=height - 8),
        el("line", class_="grid", x1=x.start, x2=x.stop, y1=height / 2, y2=height / 2),
        el("line", class_="zero", x1=x(0), x2=x(0), y1=2, y2=height - 2),
    ]
    if estimate is not None and lo is not None and hi is not None:
        line = el("line", class_="interval", x1=x(lo), x2=x(hi), y1=height / 2, y2=height / 2)
        parts.append(el("g", line, el("circle", cx=x(estimate), cy=height / 2, r=5.5), class_="mark"))
    return el("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", class_="strip", aria_hidden="true")


def pair_doses(
    curves: Sequence[Curve],
    *,
    floor: Sequence[Floor],
    title: str,
    x_label: str,
    headline: Real,
    by_root: bool,
    predicted: Sequence[Curve] = (),
) -> Markup:
    """Effect of steering one feature over its dose, with intervals, over the noise floor. There are hundreds of them in a
    report, so each is a few elements.

    Args:
        curves: points (dose > 0, effect, lo, hi); at dose 0 nothing changes, so every line starts there.
        floor: of a control that says what any direction does; empty where there is none.
        headline: dose of the pooled results, drawn as a line.
        by_root: the dose axis grows with the square root: an effect does so with a KL.
        predicted: lines without marks, within the doses of the others.
    """
    to = math.sqrt if by_root else float
    doses = sorted({p[0] for c in curves for p in c.points})
    ys = [v for c in curves for p in c.points for v in p[1:] if v is not None]
    ys += [v for f in floor for v in (f.lo, f.hi)]
    ys += [p[1] for c in predicted for p in c.points]
    x_range = 0.0, to(doses[-1]) * 1.06
    frame = Frame.of(x_range, padded(ys, include=(0.0,)), height=250, bottom=46)
    labelled = {to(d): d for d in (0.0, *_apart(doses, to=to, room=0.09 * x_range[1]))}
    parts = frame.axes(
        x_label=x_label,
        y_label="log-odds (nats)",
        x_ticks=list(labelled),
        y_ticks=frame.y.ticks(4),
        x_text=lambda v: tick_text(labelled[v]),
    )
    if floor:
        inside = [(0.0, 0.0, 0.0), *((to(f.dose), f.lo, f.hi) for f in sorted(floor))]
        parts.append(frame.band(inside, "floor"))
    parts += [frame.hline(0.0, "zero"), frame.vline(to(headline), "headline")]
    for curve in predicted:
        line = [(0.0, 0.0), *((to(p[0]), p[1]) for p in sorted(curve.points, key=lambda p: p[0]))]
        parts.append(frame.path(line, f"line dotted k-{curve.kind}"))
    told = []
    for curve in curves:
        points = sorted(curve.points, key=lambda p: p[0])
        marks = [frame.path([(0.0, 0.0), *((to(p[0]), p[1]) for p in points)], f"line k-{curve.kind}")]
        for dose, y, lo, hi in points:
            x = frame.x(to(dose))
            said = f"dose {tick_text(dose)}: {number(y, sign=True)} ({interval(lo, hi)})"
            point = [el("title", said), el("circle", cx=x, cy=frame.y(y), r=4)]
            if lo is not None and hi is not None:
                point.append(el("line", x1=x, x2=x, y1=frame.y(lo), y2=frame.y(hi)))
            marks.append(el("g", *point))
        parts.append(el("g", *marks, class_=f"mark k-{curve.kind}"))
        dose, y, lo, hi = points[-1]
        told.append(
            f"{curve.label}: {number(y, sign=True)} nats ({interval(lo, hi)}) at dose {tick_text(dose)}"
        )
    if floor:
        told.append(f"noise floor there {interval(max(floor).lo, max(floor).hi)}")
    return drawing(parts, height=frame.height, title=title, description="; ".join(told), class_="chart small")


def _apart(doses: Sequence[Real], *, to, room: Real) -> list[Real]:
    """Doses whose labels do not lie on each other, from the largest down; 0 keeps its place."""
    kept: list[Real] = []
    for dose in sorted(doses, reverse=True):
        if to(dose) > room and (not kept or to(kept[-1]) - to(dose) > room):
            kept.append(dose)
    return kept[::-1]


def histogram(
    edges: Sequence[Real], counts: Sequence[int], *, title: str, x_label: str, y_label: str = "tokens"
) -> Markup:
    """Counts between edges (one more than counts) as one path of bars; heights are proportional.

    A bar of a single count stays visible.
    """
    tallest = max([1, *counts])
    frame = Frame.of((edges[0], edges[-1]), (0.0, tallest * 1.05), height=150, bottom=46, top=8)
    ends = {"x_ticks": (edges[0], edges[-1]), "y_ticks": (0, tallest)}
    parts = frame.axes(x_label=x_label, y_label=y_label, x_text=lambda v: number(v), **ends)
    bars = []
    for (low, high), n in zip(pairwise(edges), counts, strict=True):
        if n:
            base, top = frame.y.start, min(frame.y(n), frame.y.start - 2)
            bars.append(
                f"M{frame.x(low) + 0.6:.1f} {base:.1f}V{top:.1f}H{frame.x(high) - 0.6:.1f}V{base:.1f}z"
            )
    parts.append(el("path", class_="bars", d="".join(bars)))
    total = sum(counts)
    half = next((k for k in range(len(counts)) if 2 * sum(counts[: k + 1]) >= total), 0)
    told = f"{total} values from {tick_text(edges[0])} to {number(edges[-1])}; half of them below {number(edges[half + 1])}"
    return drawing(parts, height=frame.height, title=title, description=told, class_="chart small")


def against(
    bars: Sequence[tuple[Real, Real, int]], bands: Sequence[Real], *, title: str, told: str
) -> Markup:
    """A cosine's line from -1 to 1: how all pairs are spread (lo, hi, count; heights in decades), how far chance reaches,
    and a mark that a script puts where one pair is."""
    height = 96.0
    x = Axis(-1.0, 1.0, 10.0, WIDTH - 10)
    frame = Frame(x, Axis(0.0, math.log10(1 + max([1, *(n for _, _, n in bars)])), height - 32, 16.0), height)
    columns = [
        f"M{x(lo):.1f} {frame.y.start:.1f}V{frame.y(math.log10(1 + n)):.1f}H{x(hi) - 0.5:.1f}V{frame.y.start:.1f}z"
        for lo, hi, n in bars
        if n
    ]
    parts = [el("path", class_="spread", d="".join(columns))]
    for k, bound in enumerate(bands):
        at, top = min(bound, 1.0), 22.0 + 10 * k
        width = x(at) - x(-at)
        box = {"x": x(-at), "y": top, "width": width, "height": frame.y.start - top}
        parts.append(el("rect", class_="chance-band", **box))
    parts.append(frame.hline(0.0, "zero"))
    for tick, anchor in ((-1, "start"), (-0.5, "middle"), (0, "middle"), (0.5, "middle"), (1, "end")):
        parts.append(el("text", tick_text(tick), class_="tick", x=x(tick), y=height - 6, text_anchor=anchor))
    here = (el("line", x1=0, x2=0, y1=4, y2=frame.y.start + 3), el("circle", cx=0, cy=9, r=5))
    parts.append(el("g", *here, class_="here", hidden=""))
    rows = json.dumps([[round(lo, 6), round(hi, 6), n] for lo, hi, n in bars if n], separators=(",", ":"))
    return drawing(
        parts, height=height, title=title, description=told, class_="chart", **scales(frame), data_bars=rows
    )
