"""The density of (gloss similarity, interference) over all pairs of an SAE, with the mined corners and what
chance gives."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from polysem.report.svg import Frame, drawing, el, scales, tick_text
from polysem.report.text import Real, plural

N_COLOURS = 17
COVERED = 0.999
"""share of random pairs inside the chance lines"""


class HeatCell(NamedTuple):
    """One cell of a joint histogram."""

    y_lo: Real
    y_hi: Real
    x_lo: Real
    x_hi: Real
    n_pairs: int


class Chance(NamedTuple):
    """|interference| that `COVERED` of the pairs stay below under one null."""

    label: str
    bound: Real


def chance_bound(dimensions: Real) -> Real:
    """|cosine| that two random unit vectors in `dimensions` stay below with probability COVERED: cos^2 ~ Beta(1/2, (d-1)/2)."""
    from scipy.special import betaincinv

    return math.sqrt(float(betaincinv(0.5, (dimensions - 1) / 2, COVERED)))


def pair_map(
    cells: Sequence[HeatCell],
    *,
    label: str,
    min_interference: Real,
    max_similarity: Real,
    n_listed: tuple[int, int],
    chance: Sequence[Chance],
    among: Sequence[HeatCell],
) -> Markup:
    """The map of one SAE's pairs: gloss similarity across, interference up, with the mined corners and what chance gives.

    Args:
        cells: at least one with a pair in it.
        n_listed: pairs in the corner of positive and of negative interference.
        among: the cells of all maps that are to be compared: they share scales and colours.
    """
    x, y = ranges(among)
    y = min(y[0], -min_interference - 0.05), max(y[1], min_interference + 0.05)
    x = x[0], max(x[1], max_similarity + 0.05)

    def over(frame: Frame) -> list[Markup]:
        corners = _corners(frame, min_interference, max_similarity, n_listed)
        return corners + _chance_lines(frame, chance)

    return heat_map(
        cells,
        title=f"All pairs of {label}",
        told=f"{sum(c.n_pairs for c in cells):,} pairs by gloss similarity and interference; {sum(n_listed):,} outlined",
        x=("gloss similarity (cosine)", x),
        y=("interference (cosine of directions)", y),
        most=max(c.n_pairs for c in among),
        over=over,
    )


def ranges(cells: Sequence[HeatCell]) -> tuple[tuple[Real, Real], tuple[Real, Real]]:
    """How far cells reach: (x, y)."""
    x = min(c.x_lo for c in cells), max(c.x_hi for c in cells)
    return x, (min(c.y_lo for c in cells), max(c.y_hi for c in cells))


def heat_map(
    cells: Sequence[HeatCell],
    *,
    title: str,
    told: str,
    x: tuple[str, tuple[Real, Real]],
    y: tuple[str, tuple[Real, Real]],
    most: int,
    y_ticks: Mapping[Real, str] | None = None,
    over: Callable[[Frame], list[Markup]] = lambda _: [],
) -> Markup:
    """A heat map: colour is the number of pairs, two steps a decade.

    Args:
        x, y: label and range of an axis.
        most: pairs in the fullest cell of all maps that share colours.
        y_ticks: labels of the y axis where they are not its values; then no cell is told under the pointer.
        over: what lies on the cells.
    """
    left = 66 if y_ticks is None else 88
    frame = Frame.of(x[1], y[1], height=426, bottom=94, left=left)
    steps = _steps(most)
    parts = frame.axes(
        x_label=x[0],
        y_label=y[0],
        y_ticks=None if y_ticks is None else list(y_ticks),
        y_text=tick_text if y_ticks is None else y_ticks.__getitem__,
    )
    parts += _cells(frame, cells, steps)
    parts += over(frame)
    parts += _legend(frame, steps)
    return drawing(
        parts,
        height=frame.height,
        title=title,
        description=told,
        class_="chart heat",
        **scales(frame),
        data_cells=cell_data(cells) if y_ticks is None else None,
    )


def _steps(most: int) -> int:
    """Half-decades needed for counts up to `most`."""
    return max(1, math.floor(2 * math.log10(most) + 1e-9) + 1)


def _colour(step: int, steps: int) -> int:
    return round(step / max(1, steps - 1) * (N_COLOURS - 1))


def _cells(frame: Frame, cells: Sequence[HeatCell], steps: int) -> list[Markup]:
    """One path per colour: a histogram of thousands of cells stays a few tens of kilobytes."""
    paths: dict[int, list[str]] = {}
    for c in sorted(cells):
        if c.n_pairs < 1:
            continue
        x0, x1, y0, y1 = frame.x(c.x_lo), frame.x(c.x_hi), frame.y(c.y_hi), frame.y(c.y_lo)
        step = math.floor(2 * math.log10(c.n_pairs) + 1e-9)
        paths.setdefault(_colour(step, steps), []).append(f"M{x0:.1f} {y0:.1f}H{x1:.1f}V{y1:.1f}H{x0:.1f}z")
    return [el("path", class_=f"v v{colour}", d="".join(d)) for colour, d in sorted(paths.items())]


def _corners(frame: Frame, low: Real, high: Real, n_listed: tuple[int, int]) -> list[Markup]:
    left, top, weak = frame.x.start, frame.y(frame.y.hi), frame.y(-low)
    width, height, weak_height = frame.x(high) - left, frame.y(low) - top, frame.y.start - weak
    words = [f"{plural(n, 'pair')} listed" for n in n_listed]
    return [
        el("rect", class_="corner", x=left, y=top, width=width, height=height),
        el("rect", class_="corner weak", x=left, y=weak, width=width, height=weak_height),
        el("text", words[0], class_="on-map strong", x=left + 7, y=top + 18),
        el("text", words[1], class_="on-map", x=left + 7, y=frame.y.start - 8),
    ]


def _chance_lines(frame: Frame, chance: Sequence[Chance]) -> list[Markup]:
    parts = []
    for k, line in enumerate(chance):
        for sign in (1, -1):
            if frame.y.lo < sign * line.bound < frame.y.hi:
                parts.append(frame.hline(sign * line.bound, f"chance c{k}"))
        if line.bound < frame.y.hi:
            # Two nulls close together would print over each other: one label above its line, the other below.
            y = frame.y(line.bound) + (-5 if (line.bound == max(c.bound for c in chance)) else 14)
            parts.append(el("text", line.label, class_="on-map", x=frame.x.stop - 5, y=y, text_anchor="end"))
    return parts


def _legend(frame: Frame, steps: int) -> list[Markup]:
    y, left = frame.height - 26, frame.x.start
    width = min(26.0, (frame.x.stop - left - 60) / steps)
    parts = []
    for step in range(steps):
        x = left + step * width
        parts.append(el("rect", class_=f"v v{_colour(step, steps)}", x=x, y=y - 12, width=width, height=12))
        if step % 2 == 0:
            power = step // 2
            text = ("1", "10", "100", "1k", "10k", "100k", "1M", "10M", "100M", "1G")[min(power, 9)]
            parts.append(el("text", text, class_="tick", x=x, y=y + 15))
    parts.append(el("text", "pairs per cell", class_="tick", x=left + steps * width + 10, y=y - 1))
    return parts


def cell_data(cells: Sequence[HeatCell]) -> str:
    """Cells for the pointer, as JSON: [x_lo, x_hi, y_lo, y_hi, count] of each."""
    rows = ([*(round(v, 6) for v in (c.x_lo, c.x_hi, c.y_lo, c.y_hi)), c.n_pairs] for c in sorted(cells))
    return json.dumps(list(rows), separators=(",", ":"))
