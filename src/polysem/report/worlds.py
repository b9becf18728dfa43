"""Pictures of worlds: SVG files that stand alone, for docs and for whoever studies the worlds."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from markupsafe import Markup

from polysem.report.svg import WIDTH, Axis, Frame, drawing, el, padded
from polysem.report.text import Real

STYLE = """
svg{background:#fff;font:13px system-ui,sans-serif}
.grid{stroke:#ddd;stroke-width:1}.tick,.axis,.name{fill:#333}
.shared{fill:#3b6ea5}.dropped{fill:#e6d9a8}.mark{fill:#b3412e}
.left{text-anchor:end}.thin{fill:none;stroke:#b3412e;stroke-width:1}
.line{fill:none;stroke:#111;stroke-width:2}.ray{stroke:#3b6ea5;stroke-width:2.5}.tip{fill:#3b6ea5}
"""


def phase_diagram(
    importance: Float[np.ndarray, " cells"],
    p: Float[np.ndarray, " cells"],
    shared: Bool[np.ndarray, " cells"],
    *,
    boundary: Sequence[tuple[Real, Real]],
) -> Markup:
    """Which of two features' arrangements was found at each (p, importance), and the closed-form boundary.

    Args:
        importance, p: of every cell of a full grid.
        shared: whether both features were represented.
        boundary: (p, importance) along the closed form.
    """
    x, y = (np.unique(a) for a in (p, importance))
    # cells are drawn around their values: half a cell more on every side
    ends = [(float(a[0] - (a[1] - a[0]) / 2), float(a[-1] + (a[1] - a[0]) / 2)) for a in (x, y)]
    frame = Frame.of(ends[0], ends[1], height=360)
    width = (frame.x(x[1]) - frame.x(x[0])) * 0.9
    height = (frame.y(y[0]) - frame.y(y[1])) * 0.9
    cells = []
    for a, b, both in zip(p, importance, shared, strict=True):
        at = {"x": frame.x(a) - width / 2, "y": frame.y(b) - height / 2}
        class_ = "shared" if both else "dropped"
        cells.append(el("rect", class_=class_, **at, width=width, height=height))
    line = frame.path([point for point in boundary if x[0] <= point[0] <= x[-1]], "line")
    axes = frame.axes(
        x_label="probability that a feature is present", y_label="importance of the second feature"
    )
    return _standing(
        [*cells, *axes, line],
        height=360,
        title="Two features in one dimension",
        description=f"{int(shared.sum())} of {len(shared)} cells share it; the line is p = 4I / (2 + 5I)",
    )


def arrangement(W: Float[np.ndarray, "2 n"], *, title: str) -> Markup:
    """Directions of the features of a toy model with two dimensions, to scale."""
    reach = 1.1 * float(np.abs(W).max())
    size = 340.0
    left = (WIDTH - size) / 2
    x, y = Axis(-reach, reach, left, left + size), Axis(-reach, reach, size, 0)
    parts = [
        el("line", class_="grid", x1=left, x2=left + size, y1=size / 2, y2=size / 2),
        el("line", class_="grid", x1=WIDTH / 2, x2=WIDTH / 2, y1=0, y2=size),
    ]
    for a, b in W.T.tolist():
        parts.append(el("line", class_="ray", x1=x(0), y1=y(0), x2=x(a), y2=y(b)))
        parts.append(el("circle", class_="tip", cx=x(a), cy=y(b), r=5))
    found = f"{W.shape[1]} features in 2 dimensions"
    return _standing(parts, height=size, title=title, description=found)


def curve(points: Sequence[tuple[Real, Real, str]], *, x_label: str, y_label: str, title: str) -> Markup:
    """Named points, joined in the order of x."""
    frame = Frame.of(
        padded([p[0] for p in points]), padded([p[1] for p in points], include=(0.0,)), height=340
    )
    parts = frame.axes(x_label=x_label, y_label=y_label)
    parts.append(frame.path(sorted((a, b) for a, b, _ in points), "line"))
    for a, b, name in points:
        parts.append(el("circle", class_="mark", cx=frame.x(a), cy=frame.y(b), r=4.5))
        parts.append(el("text", name, class_="name left", x=frame.x(a) - 7, y=frame.y(b) - 6))
    return _standing(parts, height=340, title=title, description=f"{len(points)} points")


def recovery(series: Mapping[str, Sequence[tuple[Real, Real]]]) -> Markup:
    """How the precision of pairs falls with the MCC of learnt dictionaries, one line per kind of SAE.

    Args:
        series: (MCC, precision) of every dictionary of a kind; the name stands at the one of lowest MCC.
    """
    points = [point for line in series.values() for point in line]
    frame = Frame.of(
        padded([p[0] for p in points]), padded([p[1] for p in points], include=(0.0,)), height=340
    )
    parts = frame.axes(
        x_label="mean cosine of features with their latents (MCC)",
        y_label="share of close pairs close in truth",
    )
    middle = (min(p[0] for p in points) + max(p[0] for p in points)) / 2
    for name, line in sorted(series.items()):
        parts.append(frame.path(sorted(line), "thin"))
        parts += [el("circle", class_="mark", cx=frame.x(a), cy=frame.y(b), r=4) for a, b in line]
        x, y = min(line)
        side = ("name left", -7) if x > middle else ("name", 7)
        parts.append(el("text", name, class_=side[0], x=frame.x(x) + side[1], y=frame.y(y) - 6))
    described = f"{len(points)} dictionaries of {len(series)} kinds"
    return _standing(parts, height=340, title="Recovery of pairs and of features", description=described)


def _standing(parts: Sequence[Markup], *, height: Real, title: str, description: str) -> Markup:
    """A drawing with its own style, as a file needs it."""
    style = el("style", Markup(STYLE))
    about = {"title": title, "description": description, "xmlns": "http://www.w3.org/2000/svg"}
    return drawing([style, *parts], height=height, **about)
