"""Graphs of circuit-tracer and Neuronpedia: one of a prompt out, any of theirs in, and links coloured by what is known of them.

Written is what their viewers read (schema_version 1): nodes `layer_feature_position` of type "cross layer transcoder",
`feature` the Cantor pairing of layer and feature, logits under layer n_layers + 1, links source, target, weight. The weight
of a link is what it carries directly: activation of its source times virtual weight, at one position. Attention carries
nothing here. A link that is overlaid gets `cofiring` (over chance), `effectiveness` (nats) and `interference`: whether its
ends fire together below chance.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from polysem.boundary.door import Door, brief
from polysem.boundary.text import read_json
from polysem.errors import FormatError, MismatchError
from polysem.layers.ends import Ends, final_norm, linked, logit_columns, norm_before, summed, with_scale
from polysem.layers.hypotheses import BELOW
from polysem.layers.weights import virtual_weights
from polysem.models.base import WhiteBoxModel
from polysem.store import io

FEATURE, LOGIT = "cross layer transcoder", "logit"
_NODE = re.compile(r"^(\d+)_(\d+)_(\d+)$")
_DOOR = Door("attribution graph", "save it again from circuit-tracer or Neuronpedia", missing=FormatError)


@dataclass(frozen=True)
class Graph:
    """A graph as their files have it."""

    content: Mapping[str, Any]

    @property
    def nodes(self) -> dict[str, Mapping[str, Any]]:
        """By node_id."""
        return {node["node_id"]: node for node in self.content["nodes"]}

    @property
    def links(self) -> Sequence[Mapping[str, Any]]:
        return self.content["links"]


def cantor(layer: int, feature: int) -> int:
    """The one number that stands for both."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def uncantor(number: int) -> tuple[int, int]:
    """(layer, feature) of a Cantor pairing."""
    s = (math.isqrt(8 * number + 1) - 1) // 2
    feature = number - s * (s + 1) // 2
    return s - feature, feature


def prompt_graph(
    model: WhiteBoxModel,
    tokens: Sequence[int],
    dictionaries: Sequence[Ends],
    *,
    slug: str,
    scan: str,
    n_logits: int = 5,
    most: int = 2000,
) -> Graph:
    """What features of one prompt carry to each other and to its most likely next tokens, directly.

    Args:
        tokens: the prompt, BOS included.
        dictionaries: one a layer.
        slug: name of the graph.
        scan: name of the dictionaries, as viewers look features up by it.
        n_logits: next tokens.
        most: links, the largest by |weight|.

    Raises:
        MismatchError: two dictionaries of one layer.
    """
    layers = [one.first.layer or 0 for one in dictionaries]
    if len(set(layers)) < len(layers):
        raise MismatchError(
            f"dictionaries of the layers {layers}: a node is named by its layer, so that each may have one",
            hint="leave one of them out",
        )
    ids = torch.tensor([list(tokens)], dtype=torch.long, device=model.spec.device)
    p = model.logits(ids)[0, -1].float().cpu().softmax(-1)
    norms = {one.label: norm_before(model, one.reads) for one in dictionaries} | {"": final_norm(model)}
    sites = {one.reads for one in dictionaries} | {n.stream for n in norms.values() if n and n.stream}
    stream = {site: x[0].float().cpu() for site, x in model.capture(ids, sorted(sites)).items()}
    acts = {one.label: one.encoder.encode(stream[one.reads]).detach() for one in dictionaries}
    nodes: dict[str, dict[str, Any]] = {}
    for one, layer in zip(dictionaries, layers, strict=True):
        for pos, feature in torch.nonzero(acts[one.label]).tolist():
            nodes[f"{layer}_{feature}_{pos}"] = _feature_node(
                layer, feature, pos, float(acts[one.label][pos, feature])
            )
    links: list[dict[str, Any]] = []
    for a, la in zip(dictionaries, layers, strict=True):
        for b, lb in zip(dictionaries, layers, strict=True):
            if not linked(a, b):
                continue
            norm = norms[b.label]
            for pos in range(len(tokens)):
                i, j = (torch.nonzero(acts[x.label][pos])[:, 0].numpy() for x in (a, b))
                own = (
                    norm
                    if norm is None or norm.stream is None
                    else with_scale(norm, stream[norm.stream][pos : pos + 1])
                )
                carried = (
                    virtual_weights(a, b, own).of(i, j) * acts[a.label][pos, i].double().numpy()[:, None]
                )
                links += _links([f"{la}_{x}_{pos}" for x in i], [f"{lb}_{x}_{pos}" for x in j], carried)
    last = len(tokens) - 1
    end = norms[""]
    columns = logit_columns(
        model, end if end is None or end.stream is None else with_scale(end, stream[end.stream][last:])
    )
    best = torch.argsort(p, descending=True, stable=True)[:n_logits]
    strings = model.token_strings(best.tolist())
    for token, text in zip(best.tolist(), strings, strict=True):
        node = _logit_node(
            model.spec.n_layers, token, last, text, float(p[token]), first=token == int(best[0])
        )
        nodes[node["node_id"]] = node
    for a, la in zip(dictionaries, layers, strict=True):
        i = torch.nonzero(acts[a.label][last])[:, 0]
        rows = summed(a.rows, i).double() * acts[a.label][last, i].double()[:, None]
        carried = (rows @ columns[best].double().T).numpy()
        links += _links(
            [f"{la}_{x}_{last}" for x in i.tolist()],
            [f"{model.spec.n_layers + 1}_{t}_{last}" for t in best.tolist()], carried,
        )  # fmt: skip
    links.sort(key=lambda link: (-abs(link["weight"]), link["source"], link["target"]))
    kept = links[:most]
    used = {link[end] for link in kept for end in ("source", "target")}
    shown = [node for name, node in nodes.items() if name in used or node["feature_type"] == LOGIT]
    metadata = {
        "slug": slug, "scan": scan, "transcoder_list": [], "prompt_tokens": model.token_strings(list(tokens)),
        "prompt": model.detokenize(list(tokens)), "node_threshold": None, "schema_version": 1,
    }  # fmt: skip
    asked = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    return Graph({"metadata": metadata, "qParams": asked, "nodes": shown, "links": kept})


def write_graph(path: Path, graph: Graph) -> None:
    """Write a graph as JSON. Raises StoreError if it cannot be written."""
    io.write_text(path, json.dumps(graph.content, indent=1, ensure_ascii=False) + "\n")


def read_graph(path: Path) -> Graph:
    """A graph from a file of circuit-tracer or Neuronpedia.

    Raises:
        FormatError: no such graph, or a link to a node that is not there.
    """
    content = read_json(path, door=_DOOR, ceiling=256 << 20)
    for name in ("nodes", "links"):
        if not isinstance(content.get(name), list) or not all(isinstance(x, dict) for x in content[name]):
            raise _DOOR.refuse(path, f"{name} is {brief(content.get(name))}, expected a list of objects")
    known = {str(node.get("node_id")) for node in content["nodes"]}
    for link in content["links"]:
        ends = (link.get("source"), link.get("target"))
        weight = link.get("weight")
        number = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
        if not number or not all(isinstance(end, str) and end in known for end in ends):
            raise _DOOR.refuse(
                path, f"a link {brief(link)}; expected source and target among the nodes, and a finite weight"
            )
    return Graph(content)


def overlaid(graph: Graph, edges: pa.Table, layers: Mapping[str, int]) -> tuple[Graph, int]:
    """A graph whose links say what LAYER_EDGES knows of them, and how many do.

    Args:
        graph: of this model and these dictionaries.
        edges: LAYER_EDGES.
        layers: layer of each dictionary in the graph's node names, by label.
    """
    known = {
        (layers[row["source"]], row["i"], layers[row["target"]], row["j"]): row
        for row in edges.to_pylist()
        if row["source"] in layers and row["target"] in layers
    }
    links, found = [], 0
    for link in graph.links:
        ends = [_NODE.match(str(link[end])) for end in ("source", "target")]
        numbers = [int(n) for match in ends if match for n in match.groups()[:2]]
        row = known.get(tuple(numbers)) if len(numbers) == 4 else None  # pyright: ignore[reportArgumentType]  (of length 4)
        more: dict[str, Any] = {}
        if row is not None:
            found += 1
            lift = row["lift"]
            more = {
                "cofiring": lift, "effectiveness": row["effectiveness"],
                "interference": None if lift is None else lift < BELOW,
            }  # fmt: skip
        links.append({**link, **more})
    return Graph({**graph.content, "links": links}), found


def _links(sources: Sequence[str], targets: Sequence[str], weights: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"source": a, "target": b, "weight": float(weights[n, m])}
        for n, a in enumerate(sources)
        for m, b in enumerate(targets)
        if weights[n, m] != 0
    ]


def _feature_node(layer: int, feature: int, pos: int, activation: float) -> dict[str, Any]:
    return {
        "node_id": f"{layer}_{feature}_{pos}", "feature": cantor(layer, feature), "layer": str(layer), "ctx_idx": pos,
        "feature_type": FEATURE, "token_prob": 0.0, "is_target_logit": False, "run_idx": 0, "reverse_ctx_idx": 0,
        "jsNodeId": f"{layer}_{feature}-0", "clerp": "", "influence": None, "activation": activation,
    }  # fmt: skip


def _logit_node(n_layers: int, token: int, pos: int, text: str, p: float, *, first: bool) -> dict[str, Any]:
    layer = n_layers + 1
    return {
        "node_id": f"{layer}_{token}_{pos}", "feature": token, "layer": str(layer), "ctx_idx": pos, "feature_type": LOGIT,
        "token_prob": p, "is_target_logit": first, "run_idx": 0, "reverse_ctx_idx": 0, "jsNodeId": f"L_{token}-{pos}",
        "clerp": f'Output "{text}" (p={p:.3f})', "influence": None, "activation": None,
    }  # fmt: skip
