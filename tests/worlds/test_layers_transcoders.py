"""Transcoders where the truth is known: steering with them, the splice test, and the toy whose weights have a closed form."""

import numpy as np
import pytest
import torch

from polysem.edits import Add
from polysem.layers.ends import Ends
from polysem.layers.splice import splice
from polysem.layers.steer import seen_push, two_ways, written_push
from polysem.saes.base import Provenance
from polysem.saes.transcoder import Writer, made_set, made_transcoder
from polysem.types import Site
from polysem.worlds.edges import READ, WRITTEN, TwoLayers
from polysem.worlds.interference import LEVELS, SHARP, interference_world

N = 4
PLANTED = Provenance(ref="planted", revision="memory", dialect="memory")


def layers(*, overlap: float):
    """A model whose MLP is the transcoder: N neurons, whose readers overlap or not, each writing an axis of its own."""
    g = torch.Generator().manual_seed(0)
    readers = torch.zeros(N, 2 * N)
    readers[:, :N] = torch.eye(N) + overlap * (1 - torch.eye(N))
    rows = torch.eye(2 * N)[N:] * 2
    W_E, W_U = torch.randn(12, 2 * N, generator=g), torch.randn(12, 2 * N, generator=g)
    W_U[:, :N] = 0  # what is read is in the stream here: only what is written shows in the logits
    bias = torch.full((N,), -0.1)
    model = TwoLayers(W_E, W_U, W_in=readers, W_out=rows, bias=bias)
    one = made_transcoder(
        W_enc=readers.T, b_enc=bias, writers=[Writer(WRITTEN, rows, torch.zeros(2 * N))], activation="relu", reads=READ,
        model_id=None, provenance=PLANTED,
    )  # fmt: skip
    return model, one


def test_where_the_transcoder_is_the_mlp_both_ways_are_one():
    model, one = layers(overlap=0.0)
    tokens = torch.tensor([[0, 3, 5], [0, 7, 2], [0, 1, 9]])
    found = two_ways(model, one, tokens, features=[0, 2], values=[1.5, 0.7])
    for name, expected in {"cosine": 1, "share": 1, "told": 1, "logits": 1, "apart": 0}.items():
        np.testing.assert_allclose(getattr(found, name), expected, atol=1e-5)
    np.testing.assert_allclose(found.kl_written, found.kl_seen, rtol=1e-4)
    assert (found.kl_both > found.kl_written).all()


def test_others_that_read_along_are_the_difference_and_are_foretold():
    model, one = layers(overlap=0.4)
    tokens = torch.tensor([[0, 3, 5], [0, 7, 2], [0, 1, 9]])
    found = two_ways(model, one, tokens, features=[0, 2], values=[1.5, 1.5])
    assert found.cosine.max() < 0.999
    np.testing.assert_allclose(found.told, 1, atol=1e-5)
    # by hand: what the reader is shown, through the neurons
    x = model.W_E[tokens[:, -1]]
    column = one.W_enc[:, 0]
    shown = x + (1.5 - x @ column + 0.1)[:, None] * column / column.square().sum()
    neurons = torch.relu(shown @ one.W_enc - 0.1) - torch.relu(x @ one.W_enc - 0.1)
    along = neurons[:, 0] / neurons.norm(dim=1)  # rows are orthogonal and of one length
    np.testing.assert_allclose(found.cosine[0], along.numpy(), atol=1e-5)
    estimate = found.mean("cosine")
    assert estimate.value == pytest.approx(found.cosine.mean(1).mean())
    same = two_ways(model, one, tokens[:1], features=[0], values=[float(one.encode(x)[0, 0])])
    assert np.isnan(same.cosine).all() or one.encode(x)[0, 0] == 0
    assert np.isnan(same.mean("cosine").value) == np.isnan(same.cosine).all()


def test_edits_of_pushes_compose_with_others():
    model, one = layers(overlap=0.0)
    tokens = torch.tensor([[0, 3, 5], [0, 7, 2]])
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    mask[:, 1] = True
    ends, amounts = Ends.of("x", one), torch.tensor([0.5, 2.0])
    other = Add(READ, torch.ones(2, 2 * N), mask)  # an SAE's push in the stream
    edits = [other, *written_push(ends, [1, 3], amounts, mask), *seen_push(ends, [0, 2], amounts, mask)]
    seen = model.capture(tokens, [READ, WRITTEN], edits)
    plain = model.capture(tokens, [READ])[READ]
    moved = (
        plain[:, 1] + 1 + torch.stack([amounts[0] * torch.eye(2 * N)[0], amounts[1] * torch.eye(2 * N)[2]])
    )
    torch.testing.assert_close(seen[READ][:, 1], moved)
    expected = torch.relu(moved @ model.W_in.T + model.bias) @ model.W_out
    expected = expected + amounts[:, None] * model.W_out[[1, 3]]
    torch.testing.assert_close(seen[WRITTEN][:, 1], expected)


def test_a_splice_is_the_model_with_each_output_put_in_its_place():
    """Against the public seam: one added vector for every position and layer, each from what the run so far shows."""
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    from polysem.models import load_model
    from polysem.saes.transcoders import load_transcoders

    model = load_model("zoo:gpt2", device="cpu")
    found = load_transcoders("zoo:gpt2/clt")
    tokens = torch.tensor([model.tokenize("The sea was calm that night.", prepend_bos=True)])
    edits: list[Add] = []
    made: dict[Site, torch.Tensor] = {}
    for one in found.layers:
        x = model.capture(tokens, [one.reads], edits)[one.reads]
        for site, part in one.parts(x).items():
            made[site] = made.get(site, 0) + part
        site = one.writes[0]  # by now all that write there have read
        own = model.capture(tokens, [site], edits)[site]
        for pos in range(1, tokens.shape[1]):
            mask = torch.zeros(tokens.shape, dtype=torch.bool)
            mask[:, pos] = True
            edits.append(Add(site, (made[site] - own)[:, pos].detach(), mask))
    said = model.logits(tokens, edits)[0, 1:-1].double().log_softmax(-1)
    expected = -said[torch.arange(len(said)), tokens[0, 2:]].mean()
    got = splice(model, found, tokens)
    assert got.spliced[0] == pytest.approx(float(expected), abs=1e-4)
    clean = model.logits(tokens)[0, 1:-1].double().log_softmax(-1)
    assert got.clean[0] == pytest.approx(
        float(-clean[torch.arange(len(clean)), tokens[0, 2:]].mean()), abs=1e-5
    )
    # a set that writes next to nothing is a set of zeros
    silent = made_set(
        [
            made_transcoder(
                W_enc=one.W_enc, b_enc=one.encoder.b_enc, activation="relu", reads=one.reads, model_id=None, provenance=PLANTED,
                writers=[Writer(one.writes[0], torch.full_like(one.encoder.W_dec, 1e-30), torch.zeros(one.encoder.d_out))],
            )
            for one in found.layers
        ], whole=True, provenance=PLANTED,
    )  # fmt: skip
    nothing = splice(model, silent, tokens)
    assert nothing.spliced[0] == pytest.approx(nothing.zeroed[0], abs=1e-6)
    assert nothing.zeroed[0] == pytest.approx(got.zeroed[0])


def test_what_an_edge_of_the_toy_saves_is_what_its_logits_lose():
    """The closed form against the model itself, run with the edge's contribution taken out of the stream."""
    world = interference_world(n=5, m=3, n_rows=4, steps=200)
    d, p = world.closed_form()
    for i, j, level in ((0, 0, 3), (1, 4, 2), (3, 2, 0)):
        token = 1 + i * len(LEVELS) + level
        tokens = torch.tensor([[0, token]])
        logits = world.model.logits(tokens)[0, 1].double()
        odds = logits.softmax(-1)
        mine = odds[1 + j * len(LEVELS) : 1 + (j + 1) * len(LEVELS)].sum()
        assert float(mine) == pytest.approx(p[i, level, j], rel=1e-5)
        without = logits.clone()
        change = SHARP * (world.outputs[0][i, level, j] - world.outputs[1][j])
        assert change == d[i, level, j]
        without[1 + j * len(LEVELS) : 1 + (j + 1) * len(LEVELS)] -= change
        saved = logits.log_softmax(-1) - without.log_softmax(-1)
        assert float(saved[0]) == pytest.approx(
            float(np.log1p(-p[i, level, j] * -np.expm1(-d[i, level, j]))), abs=1e-6
        )
    assert np.isfinite(np.diag(world.saved()[0])).any()
