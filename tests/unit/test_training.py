"""Dictionaries trained here: the sparse gradients, a run killed and gone on with, and what is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from polysem.errors import StoreError
from polysem.progress import Silent
from polysem.saes import load_sae
from polysem.training import dictionary
from polysem.training.dictionary import Weights, decode, encode
from polysem.training.fit import TrainingRecipe, rate, token_weights
from polysem.training.harvest import StoredActivations, harvest
from polysem.training.run import Split, train_dictionary
from polysem.types import Site
from polysem.worlds.tiny import tiny_model

READS, WRITES = Site.parse("blocks.1.hook_resid_post"), Site.parse("blocks.1.hook_mlp_out")
ABOUT = {"model": "tiny", "corpus": "drawn"}


@pytest.fixture
def weights() -> Weights:
    g = torch.Generator().manual_seed(0)
    shapes = ((40, 12), (40,), (40, 10), (10,), (10, 12))
    return Weights(*(torch.randn(s, generator=g).requires_grad_(True) for s in shapes))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("select", "prefixes"), [("topk", (40,)), ("batchtopk", (5, 15, 40))])
def test_losses_and_gradients_are_those_of_dense_arithmetic(weights, select, prefixes, dense, monkeypatch):
    monkeypatch.setattr(dictionary, "_dense", lambda device: dense)
    monkeypatch.setattr(dictionary, "_fast_product", lambda x, W: x @ W.t())
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(30, 12, generator=g), torch.randn(30, 10, generator=g)
    codes = encode(weights, x, k=6, select=select)
    loss = sum((y - guess).pow(2).sum() for guess in decode(weights, codes, x, prefixes=prefixes))
    seen = torch.autograd.grad(loss, list(weights.named().values()))
    pre = x @ weights.W_enc.t() + weights.b_enc
    flat = pre if select == "topk" else pre.reshape(1, -1)
    values, chosen = flat.topk(6 if select == "topk" else 6 * 30, dim=1)
    acts = torch.zeros_like(flat).scatter(1, chosen, values.relu()).reshape(pre.shape)
    base = weights.b_dec + x @ weights.W_skip.t()
    expected_loss = sum((y - base - acts[:, :p] @ weights.W_dec[:p]).pow(2).sum() for p in prefixes)
    expected = torch.autograd.grad(expected_loss, list(weights.named().values()))
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    for one, two in zip(seen, expected, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-3)


def test_massive_tokens_weigh_no_more_than_one_at_the_limit():
    x = torch.eye(4) * torch.tensor([1.0, 2.9, 6.0, 300.0])[:, None]
    assert token_weights(x, 3.0).tolist() == pytest.approx([1.0, 1.0, 0.25, 1e-4])


def test_the_learning_rate_rises_and_falls():
    found = [rate(step, 300) for step in range(300)]
    assert found[0] == pytest.approx(1 / 15)
    assert max(found) == 1.0
    assert found[-1] == pytest.approx(0.01)


@pytest.fixture
def activations(tmp_path: Path) -> StoredActivations:
    model = tiny_model("gpt2")
    tokens = np.random.default_rng(0).integers(0, 48, (300, 24)).astype(np.int32)
    return harvest(model, tokens, [READS, WRITES], tmp_path / "acts", n_special=1, about=ABOUT)


def test_a_harvest_goes_on_with_what_is_missing(activations, tmp_path):
    model = tiny_model("gpt2")
    tokens = np.random.default_rng(0).integers(0, 48, (300, 24)).astype(np.int32)
    expected = model.capture(torch.from_numpy(tokens[128:130].astype(np.int64)), [READS])[READS][:, 1:]
    assert np.allclose(activations.part(READS, 1)[:2], expected, atol=2e-3)
    part = tmp_path / "acts" / str(READS) / "part-00001.npy"
    before = part.read_bytes()
    part.unlink()
    again = harvest(model, tokens, [READS, WRITES], tmp_path / "acts", n_special=1, about=ABOUT)
    assert part.read_bytes() == before
    assert again.n_tokens == 300 * 23
    with pytest.raises(StoreError, match="corpus is 'drawn' there, 'other'"):
        harvest(model, tokens, [READS], tmp_path / "acts", n_special=1, about={**ABOUT, "corpus": "other"})


class Killed(Exception):
    pass


class KillsAt(Silent):
    """A reporter that ends the run at a step."""

    def __init__(self, step: int):
        self.step = step

    def track(self, items, *, total, label, done=0):
        for item in items:
            if item == self.step:
                raise Killed
            yield item


@pytest.mark.parametrize(
    ("recipe", "writes", "activation"),
    [
        (TrainingRecipe(d_sae=64, k=4, steps=60, batch=256, dead_after=3000), READS, "topk"),
        (
            TrainingRecipe(d_sae=64, k=4, steps=60, batch=256, select="batchtopk", prefixes=(8, 16)),
            READS,
            "jumprelu",
        ),
    ],
)
def test_a_killed_run_goes_on_to_the_same_weights(
    activations, recipe, writes, activation, tmp_path, monkeypatch
):
    monkeypatch.setattr("polysem.training.run.CHECKPOINT_EVERY", 20)
    split = Split(activations, READS, writes)
    card = train_dictionary(split, recipe, tmp_path / "whole", checkpoint=tmp_path / "a")
    with pytest.raises(Killed):
        train_dictionary(split, recipe, tmp_path / "cut", checkpoint=tmp_path / "b", reporter=KillsAt(33))
    again = train_dictionary(split, recipe, tmp_path / "cut", checkpoint=tmp_path / "b")
    assert again == card
    one, two = load_sae(str(tmp_path / "whole")), load_sae(str(tmp_path / "cut"))
    assert torch.equal(one.W_dec, two.W_dec)
    assert one.activation == activation
    x = torch.from_numpy(np.array(activations.part(READS, 2))).flatten(0, 1).float()
    acts = one.encode(x)
    fvu = float((x - one.decode(acts)).pow(2).sum() / (x - x.mean(dim=0)).pow(2).sum())
    assert fvu == pytest.approx(card["fvu_all"], rel=1e-3)
    assert float((acts > 0).float().sum(dim=1).mean()) == pytest.approx(card["l0"], rel=1e-3)
    assert fvu < 0.9
    with pytest.raises(StoreError, match="another recipe"):
        train_dictionary(split, TrainingRecipe(d_sae=64, k=5), tmp_path / "x", checkpoint=tmp_path / "a")


def test_a_skip_transcoder_is_one_that_sae_lens_reads(activations, tmp_path):
    lens = pytest.importorskip("sae_lens", reason="the package sae-lens is not installed")
    recipe = TrainingRecipe(d_sae=64, k=4, steps=40, batch=256, select="batchtopk", skip=True)
    train_dictionary(Split(activations, READS, WRITES), recipe, tmp_path / "tc", checkpoint=tmp_path / "c")
    config = json.loads((tmp_path / "tc" / "cfg.json").read_text())
    assert config["architecture"] == "jumprelu_skip_transcoder"
    assert config["metadata"]["hook_name_out"] == str(WRITES)
    loaded = lens.SAE.load_from_disk(str(tmp_path / "tc"), dtype="float32")
    assert loaded.W_skip.shape == (16, 16)
