"""A feature and its neighbours as a drawing: a force layout that is the same each time, lines by interference, and
labels that do not lie on each other."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup

from polysem.report.svg import WIDTH, drawing, el
from polysem.report.text import Real, fixed

HEIGHT = 430.0
LABEL = 24
"""characters of a gloss beside its node"""
_STEPS = 160
_SIDES = ((12, 0, "start"), (-12, 0, "end"), (0, -18, "middle"), (0, 18, "middle"))
"""where a label may stand: right, left, down, anchor"""
_GOLDEN = 2.399963
"""the golden angle: it spreads the start evenly and needs no chance"""


class Node(NamedTuple):
    """One feature; the first of a drawing is its centre."""

    feature: int
    gloss: str


class Edge(NamedTuple):
    """Two features, by their places among the nodes."""

    a: int
    b: int
    interference: float


def layout(
    n: int, ends: Int[np.ndarray, "edges 2"], pull: Float[np.ndarray, " edges"]
) -> Float[np.ndarray, "n 2"]:
    """Places in the unit square, the first node pinned to the middle of the others while they settle.

    All nodes repel each other and lines pull, stronger lines more (Fruchterman and Reingold 1991); moves get
    smaller, and nothing is drawn at random.
    """
    k = np.arange(n)
    radius = np.where(k > 0, 0.25 + 0.75 * np.sqrt(k / n), 0.0)
    at = np.column_stack([radius * np.cos(k * _GOLDEN), radius * np.sin(k * _GOLDEN)])
    ideal = 1.1 / np.sqrt(n + 1)
    for step in range(_STEPS):
        apart = at[:, None] - at[None]
        near = np.maximum(1e-5, (apart**2).sum(-1))
        force = (apart * (ideal**2 / near)[..., None]).sum(1)
        along = at[ends[:, 0]] - at[ends[:, 1]]
        drawn = along * (np.linalg.norm(along, axis=1) / ideal * pull)[:, None]
        np.subtract.at(force, ends[:, 0], drawn)
        np.add.at(force, ends[:, 1], drawn)
        size = np.maximum(np.linalg.norm(force, axis=1, keepdims=True), 1e-12)
        move = force / size * np.minimum(size, 0.12 * (1 - step / _STEPS) + 0.004) - 0.01 * at
        move[0] = 0.0
        at = at + move
    low, span = at.min(0), np.ptp(at, axis=0)
    return (at - low) / np.where(span > 0, span, 1.0)


def neighbourhood(nodes: Sequence[Node], edges: Sequence[Edge], *, title: str) -> Markup:
    """The first node in the middle, the others around it; solid lines are positive interference, dashed ones
    negative, wide ones strong."""
    ends = np.array([[e.a, e.b] for e in edges], dtype=np.int64).reshape(-1, 2)
    size = np.array([abs(e.interference) for e in edges])
    # Lines among neighbours say who belongs together; pulling as hard as the others they would hide the centre's.
    pull = np.where((ends == 0).any(1), 0.3, 0.04) * (0.4 + size)
    places = layout(len(nodes), ends, pull)
    at = [(40 + x * (WIDTH - 80), 28 + y * (HEIGHT - 56)) for x, y in places.tolist()]
    parts = [
        _line(at[e.a], at[e.b], e, nodes)
        for e in sorted(edges, key=lambda e: (abs(e.interference), e.a, e.b))
    ]
    labels = _labels(nodes, at)
    for k, node in enumerate(nodes):
        x, y = at[k]
        dot = el(
            "circle", el("title", f"feature {node.feature}: {node.gloss}"), cx=x, cy=y, r=9 if k == 0 else 5
        )
        parts.append(el("g", dot, class_="node centre" if k == 0 else "node"))
    parts += labels.values()
    told = f"{nodes[0].gloss} and its {len(nodes) - 1} strongest partners: " + "; ".join(
        f"{nodes[e.b if e.a == 0 else e.a].gloss} {fixed(e.interference, places=2, sign=True)}"
        for e in sorted(edges, key=lambda e: (-abs(e.interference), e.a, e.b))
        if 0 in (e.a, e.b)
    )
    return drawing(parts, height=HEIGHT, title=title, description=told, class_="chart network")


def _line(p: tuple[Real, Real], q: tuple[Real, Real], edge: Edge, nodes: Sequence[Node]) -> Markup:
    strength = abs(edge.interference)
    said = f"{nodes[edge.a].feature} and {nodes[edge.b].feature}: {fixed(edge.interference, places=2, sign=True)}"
    return el(
        "line",
        el("title", said),
        class_="edge" if edge.interference >= 0 else "edge negative",
        x1=p[0],
        y1=p[1],
        x2=q[0],
        y2=q[1],
        stroke_width=0.8 + 5 * max(0.0, strength - 0.15),
        stroke_opacity=min(1.0, 0.3 + strength) if 0 in (edge.a, edge.b) else 0.25,
    )


def _labels(nodes: Sequence[Node], at: Sequence[tuple[Real, Real]]) -> Mapping[int, Markup]:
    """Labels that cover no node and no other label: the centre's always, the others' where there is room."""
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in at]
    found: dict[int, Markup] = {}
    for k, node in enumerate(nodes):
        text = node.gloss if len(node.gloss) <= LABEL else node.gloss[: LABEL - 1] + "…"
        x, y = at[k]
        long = (7.7 if k == 0 else 6.9) * len(text)
        for side, down, anchor in _SIDES:
            left = x + side - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * long
            box = (left, y + down - 8, left + long, y + down + 8)
            free = left > 0 and box[2] < WIDTH and not any(_meet(box, other) for other in taken)
            if free or (k == 0 and (side, down, anchor) == _SIDES[-1]):
                taken.append(box)
                style = "halo strong" if k == 0 else "halo"
                found[k] = el("text", text, class_=style, x=x + side, y=y + down + 4.5, text_anchor=anchor)
                break
    return found


def _meet(a: tuple[Real, Real, Real, Real], b: tuple[Real, Real, Real, Real]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
