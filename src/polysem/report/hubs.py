"""Features that interfere with many unrelated ones: a ranking of every SAE, and its first as a graph."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.categories import own_words
from polysem.report.html import Figure
from polysem.report.network import Edge, Node, neighbourhood
from polysem.report.pairs import NO_GLOSS, features
from polysem.report.source import Run
from polysem.report.text import count, fixed, plural, visible

RANKED = 8
"""features of every SAE in the ranking"""
NEIGHBOURS = 18
"""partners around a hub; more would hide each other, the explorer adds them on request"""
DRAWN = 6
"""SAEs with a graph"""


def hubs_section(run: Run) -> list[dict[str, Any]]:
    """What the template prints of every SAE with pairs that are neither duplicate nor dense."""
    columns = ("sae", "i", "j", "interference", "is_duplicate", "is_dense")
    table = run.table("pairs", columns=columns)
    table = table.filter(pc.invert(pc.or_(table["is_duplicate"], table["is_dense"])))
    found = []
    for k, sae in enumerate(sorted(pc.unique(table["sae"]).to_pylist())):
        found.append(_of_sae(run, sae, table.filter(pc.equal(table["sae"], sae)), drawn=k < DRAWN))
    return found


def _of_sae(run: Run, sae: str, pairs: pa.Table, *, drawn: bool) -> dict[str, Any]:
    i, j, x = (pairs[name].to_numpy() for name in ("i", "j", "interference"))
    size = int(max(i.max(), j.max())) + 1
    degree = np.bincount(i, minlength=size) + np.bincount(j, minlength=size)
    positive = np.bincount(i[x > 0], minlength=size) + np.bincount(j[x > 0], minlength=size)
    strongest = np.zeros(size)
    for side in (i, j):
        np.maximum.at(strongest, side, np.abs(x))
    order = np.lexsort((np.arange(size), -strongest, -degree))[:RANKED]
    order = order[degree[order] > 0]
    hub = int(order[0])
    near = _strongest(i, j, x, hub)
    known = features(run, {(sae, f) for f in (*order.tolist(), *near)})

    def gloss(feature: int) -> str:
        # Without the text that it quotes: names have to be short here.
        whole = known.get((sae, feature), {}).get("gloss") or NO_GLOSS
        return visible(own_words(whole).strip() or whole, limit=120)

    return {
        "sae": visible(sae),
        "rows": [
            {
                "feature": f,
                "gloss": gloss(f),
                "degree": count(int(degree[f])),
                "signs": f"{count(int(positive[f]))} / {count(int(degree[f] - positive[f]))}",
                "strongest": fixed(float(strongest[f])),
            }
            for f in order.tolist()
        ],
        "panel": _panel(hub, near, (i, j, x), gloss, int(degree[hub])) if drawn else None,
    }


def _strongest(i: np.ndarray, j: np.ndarray, x: np.ndarray, hub: int) -> list[int]:
    """The partners of a feature, the strongest first."""
    mine = np.flatnonzero((i == hub) | (j == hub))
    other = np.where(i[mine] == hub, j[mine], i[mine])
    return other[np.lexsort((other, -np.abs(x[mine])))][:NEIGHBOURS].tolist()


def _panel(
    hub: int, near: list[int], pairs: tuple[np.ndarray, np.ndarray, np.ndarray], gloss: Any, degree: int
) -> Figure:
    i, j, x = pairs
    place = {feature: k for k, feature in enumerate((hub, *near))}
    inside = np.flatnonzero(np.isin(i, list(place)) & np.isin(j, list(place)))
    edges = [Edge(place[int(i[k])], place[int(j[k])], float(x[k])) for k in inside]
    nodes = [Node(feature, gloss(feature)) for feature in place]
    title = f"Feature {hub} and its strongest partners"
    caption = (
        f"{len(near)} of {plural(degree, 'unrelated feature')} that it interferes with, and the listed pairs among them. "
        "Solid: positive interference; dashed: negative; wide: strong. Glosses stand where there is room."
    )
    return Figure(title, neighbourhood(nodes, edges, title=title), caption)
