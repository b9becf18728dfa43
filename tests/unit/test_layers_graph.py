"""Graphs as circuit-tracer and Neuronpedia write them: out, in, and coloured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polysem.errors import FormatError, MismatchError
from polysem.layers.ends import Ends
from polysem.layers.graph import cantor, overlaid, prompt_graph, read_graph, uncantor, write_graph
from polysem.layers.weights import virtual_weights
from polysem.store.tables import LAYER_EDGES
from polysem.worlds.edges import READ, edges_world


@given(st.integers(0, 100), st.integers(0, 1 << 20))
def test_a_pairing_is_undone(layer: int, feature: int):
    assert uncantor(cantor(layer, feature)) == (layer, feature)


@pytest.fixture(scope="module")
def world():
    return edges_world(n_rows=20)


def made(world):
    ends = [Ends.of("a", world.source), Ends.of("b", world.target)]
    return prompt_graph(world.model, world.rows.tokens[0, :8].tolist(), ends, slug="s", scan="world")


def test_links_are_what_is_carried(world, tmp_path: Path):
    graph = made(world)
    tokens = torch.from_numpy(world.rows.tokens[:1, :8].astype(np.int64))
    x = world.model.capture(tokens, [READ])[READ][0]
    a, b = world.source.encode(x), world.target.encode(x)
    W = virtual_weights(Ends.of("a", world.source), Ends.of("b", world.target), None).of(slice(None))
    inner = [link for link in graph.links if link["target"].startswith("1_")]
    assert inner
    for link in inner:
        (_, i, pos), (_, j, at) = (tuple(map(int, link[end].split("_"))) for end in ("source", "target"))
        assert pos == at
        assert b[pos, j] > 0
        assert link["weight"] == pytest.approx(float(a[pos, i] * W[i, j]), rel=1e-5)
    pos = int(inner[0]["target"].split("_")[2])
    for j in {int(link["target"].split("_")[1]) for link in inner if link["target"].endswith(f"_{pos}")}:
        total = sum(link["weight"] for link in inner if link["target"] == f"1_{j}_{pos}")
        assert total - 1.5 == pytest.approx(float(b[pos, j]), abs=1e-3)  # all of what it reads
    write_graph(tmp_path / "g.json", graph)
    assert read_graph(tmp_path / "g.json").content == graph.content
    assert graph.content["metadata"]["schema_version"] == 1
    for node in graph.nodes.values():
        if node["feature_type"] == "cross layer transcoder":
            layer, feature = uncantor(node["feature"])
            assert node["node_id"] == f"{layer}_{feature}_{node['ctx_idx']}"


def test_links_are_coloured_by_co_firing(world):
    graph = made(world)
    link = next(one for one in graph.links if one["target"].startswith("1_"))
    i, j = (int(link[end].split("_")[1]) for end in ("source", "target"))
    row = {"source": "a", "i": i, "target": "b", "j": j, "chosen": "era", "weight": 1.0, "weight_raw": 1.0, "co_tokens": 3,
           "lift": 0.2, "era": 0.1, "effectiveness": 1e-3, "n_events": 0}  # fmt: skip
    coloured, found = overlaid(graph, LAYER_EDGES.of_rows([row]), {"a": 0, "b": 1})
    assert found == sum(
        one["source"].startswith(f"0_{i}_") and one["target"].startswith(f"1_{j}_") for one in graph.links
    )
    marked = [one for one in coloured.links if "interference" in one]
    assert len(marked) == found
    assert marked[0]["interference"] is True
    assert marked[0]["cofiring"] == pytest.approx(0.2)


def test_what_is_no_graph_is_refused(world, tmp_path: Path):
    path = tmp_path / "g.json"
    path.write_text(
        json.dumps(
            {"nodes": [{"node_id": "0_1_2"}], "links": [{"source": "0_1_2", "target": "x", "weight": 1}]}
        )
    )
    with pytest.raises(FormatError, match="expected source and target among the nodes"):
        read_graph(path)
    path.write_text(json.dumps({"nodes": {}, "links": []}))
    with pytest.raises(FormatError, match=r"nodes is \{\}, expected a list"):
        read_graph(path)
    ends = [Ends.of("a", world.source), Ends.of("b", world.source)]
    with pytest.raises(MismatchError, match="each may have one"):
        prompt_graph(world.model, [0, 1], ends, slug="s", scan="w")
