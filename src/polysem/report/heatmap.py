"""The density of (gloss similarity, interference) over all pairs of an SAE, with the mined corners and what
chance gives."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from polysem.report.svg import Frame, drawing, el
from polysem.report.text import Real, plural

N_COLOURS = 17
COVERED = 0.999
"""share of random pairs inside the chance lines"""


class HeatCell(NamedTuple):
    """One cell of the joint histogram."""

    interference_lo: Real
    interference_hi: Real
    similarity_lo: Real
    similarity_hi: Real
    n_pairs: int


class Chance(NamedTuple):
    """|interference| that `COVERED` of the pairs stay below under one null."""

    label: str
    bound: Real


def chance_bound(dimensions: Real, *, covered: Real = COVERED) -> Real:
    """|cosine| that two random unit vectors in `dimensions` stay below with probability `covered`: cos^2 ~
    Beta(1/2, (d-1)/2)."""
    from scipy.special import betaincinv

    return math.sqrt(float(betaincinv(0.5, (dimensions - 1) / 2, covered)))


def heat_map(
    cells: Sequence[HeatCell],
    *,
    label: str,
    min_interference: Real,
    max_similarity: Real,
    n_listed: tuple[int, int],
    chance: Sequence[Chance],
) -> Markup:
    """The heat map of one SAE: colour is the number of pairs, two steps a decade.

    Args:
        cells: at least one with a pair in it.
        n_listed: pairs in the corner of positive and of negative interference.
    """
    x_range = min(c.similarity_lo for c in cells), max(c.similarity_hi for c in cells)
    y_range = min(c.interference_lo for c in cells), max(c.interference_hi for c in cells)
    y_range = min(y_range[0], -min_interference - 0.05), max(y_range[1], min_interference + 0.05)
    x_range = x_range[0], max(x_range[1], max_similarity + 0.05)
    frame = Frame.of(x_range, y_range, height=426, bottom=94)
    steps = _steps(max(c.n_pairs for c in cells))
    parts = frame.axes(x_label="gloss similarity (cosine)", y_label="interference (cosine of directions)")
    parts += _cells(frame, cells, steps)
    parts += _corners(frame, min_interference, max_similarity, n_listed)
    parts += _chance_lines(frame, chance)
    parts += _legend(frame, steps)
    total = sum(c.n_pairs for c in cells)
    # report.js turns a pointer position into values with these.
    return drawing(
        parts,
        height=frame.height,
        title=f"All pairs of {label}",
        description=f"{total:,} pairs by gloss similarity and interference; {sum(n_listed):,} outlined",
        class_="chart heat",
        data_x0=frame.x.start,
        data_x1=frame.x.stop,
        data_xlo=repr(x_range[0]),
        data_xhi=repr(x_range[1]),
        data_y0=frame.y.start,
        data_y1=frame.y.stop,
        data_ylo=repr(y_range[0]),
        data_yhi=repr(y_range[1]),
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
        x0, x1 = frame.x(c.similarity_lo), frame.x(c.similarity_hi)
        y0, y1 = frame.y(c.interference_hi), frame.y(c.interference_lo)
        step = math.floor(2 * math.log10(c.n_pairs) + 1e-9)
        paths.setdefault(_colour(step, steps), []).append(f"M{x0:.1f} {y0:.1f}H{x1:.1f}V{y1:.1f}H{x0:.1f}z")
    return [el("path", class_=f"v v{colour}", d="".join(d)) for colour, d in sorted(paths.items())]


def _corners(frame: Frame, low: Real, high: Real, n_listed: tuple[int, int]) -> list[Markup]:
    left, right = frame.x.start, frame.x(high)
    top, bottom = frame.y(frame.y.hi), frame.y(low)
    words = [f"{plural(n, 'pair')} listed" for n in n_listed]
    return [
        el("rect", class_="corner", x=left, y=top, width=right - left, height=bottom - top),
        el(
            "rect",
            class_="corner weak",
            x=left,
            y=frame.y(-low),
            width=right - left,
            height=frame.y.start - frame.y(-low),
        ),
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


def cell_data(cells: Sequence[HeatCell]) -> list[list[Real]]:
    """Cells for hover: [similarity_lo, similarity_hi, interference_lo, interference_hi, count]."""
    return [
        [
            round(c.similarity_lo, 6),
            round(c.similarity_hi, 6),
            round(c.interference_lo, 6),
            round(c.interference_hi, 6),
            c.n_pairs,
        ]
        for c in sorted(cells)
        if c.n_pairs
    ]
