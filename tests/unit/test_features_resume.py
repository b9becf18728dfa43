"""The checkpoint of a harvest: continued where it fits, left aside with a warning where it does not."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from polysem.corpus import TokenRows
from polysem.features.best import HarvestPlan
from polysem.features.harvest import harvest
from polysem.saes.base import SAE, Provenance
from polysem.store.io import write_arrays
from polysem.types import Site
from polysem.worlds.tiny import tiny_model

D_SAE = 12
PLAN = HarvestPlan(3, 5, 3)
N_BATCHES = 4


def make_sae(seed: int) -> SAE:
    decoder = torch.randn(D_SAE, 16, generator=torch.Generator().manual_seed(seed))
    return SAE(
        W_enc=decoder.T.contiguous(),
        W_dec=decoder,
        b_enc=torch.full((D_SAE,), -4.0),
        b_dec=torch.zeros(16),
        activation="relu",
        reads=Site.parse("blocks.0.hook_resid_post"),
        writes=Site.parse("blocks.0.hook_resid_post"),
        model_id=None,
        model_revision=None,
        provenance=Provenance("memory", "memory", "test"),
    )


def rows(seed: int = 0, n_special: int = 1) -> TokenRows:
    tokens = np.random.default_rng(seed).integers(1, 60, (16 * N_BATCHES - 4, 10)).astype(np.int32)
    return TokenRows(tokens, ("doc",), np.zeros(1, np.int64), n_special)


class Stop(Exception):
    pass


class Counts:
    """A reporter that counts steps, and stops before the n-th."""

    def __init__(self, stop=None):
        self.stop, self.steps, self.done = stop, 0, None

    def track(self, items, *, total, label, done=0):
        assert (total, label) == (N_BATCHES, "harvest")
        self.done = done
        for item in items:
            if self.steps == self.stop:
                raise Stop
            self.steps += 1
            yield item

    def stage(self, label):
        raise AssertionError


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A checkpoint after two of four batches, and what the whole harvest gives."""
    monkeypatch.setattr("polysem.features.harvest.CHECKPOINT_EVERY", 1)
    model = tiny_model("llama")
    saes = {"a": make_sae(0), "b": make_sae(1)}
    path = tmp_path / "state.safetensors"
    with pytest.raises(Stop):
        harvest(model, saes, rows(), plan=PLAN, checkpoint=path, reporter=Counts(2))
    return path, model, saes


def equal(one, other):
    assert list(one) == list(other)
    for label in one:
        for name, values in one[label].arrays().items():
            np.testing.assert_array_equal(values, other[label].arrays()[name], err_msg=f"{label} {name}")


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_continued_harvest_gives_the_same_bits(tmp_path, monkeypatch, stop):
    monkeypatch.setattr("polysem.features.harvest.CHECKPOINT_EVERY", 1)
    model = tiny_model("llama")
    saes = {"a": make_sae(0), "b": make_sae(1)}
    path = tmp_path / "state.safetensors"
    with pytest.raises(Stop):
        harvest(model, saes, rows(), plan=PLAN, checkpoint=path, reporter=Counts(stop))
    counts = Counts()
    resumed = harvest(model, saes, rows(), plan=PLAN, checkpoint=path, reporter=counts)
    assert (counts.done, counts.steps) == (stop, N_BATCHES - stop)
    equal(harvest(model, saes, rows(), plan=PLAN), resumed)


def changed(kind, model, saes):
    """(model, saes, rows, plan) with one thing changed."""
    match kind:
        case "text":
            return model, saes, rows(seed=1), PLAN
        case "bos":
            return model, saes, rows(n_special=0), PLAN
        case "plan":
            return model, saes, rows(), replace(PLAN, window=4)
        case "model of the same name":
            model.model.get_input_embeddings().weight.data[5:] += 0.25
            return model, saes, rows(), PLAN
        case "weights of the same provenance":
            return model, {"a": make_sae(2), "b": saes["b"]}, rows(), PLAN
        case "activation rule":
            return model, {"a": replace(saes["a"], activation="topk", k=3), "b": saes["b"]}, rows(), PLAN
        case "order of SAEs":
            return model, dict(reversed(saes.items())), rows(), PLAN
        case "names of SAEs":
            return model, {"a": saes["a"], "c": saes["b"]}, rows(), PLAN
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "text",
        "bos",
        "plan",
        "model of the same name",
        "weights of the same provenance",
        "activation rule",
        "order of SAEs",
        "names of SAEs",
    ],
)
def test_checkpoint_of_other_inputs_is_left_aside_and_said(stopped, caplog, kind):
    path, model, saes = stopped
    model, saes, text, plan = changed(kind, model, saes)
    counts = Counts()
    with caplog.at_level(logging.WARNING):
        got = harvest(model, saes, text, plan=plan, checkpoint=path, reporter=counts)
    assert (counts.done, counts.steps) == (0, N_BATCHES)
    assert "state.safetensors is of another model, SAE, corpus or setting" in caplog.text
    equal(harvest(model, saes, text, plan=plan), got)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_checkpoint_is_left_aside_and_said(stopped, caplog, keep):
    path, model, saes = stopped
    path.write_bytes(path.read_bytes()[:keep])
    counts = Counts()
    with caplog.at_level(logging.WARNING):
        got = harvest(model, saes, rows(), plan=PLAN, checkpoint=path, reporter=counts)
    assert counts.done == 0
    assert "truncated or damaged" in caplog.text
    equal(harvest(model, saes, rows(), plan=PLAN), got)


def test_file_of_another_kind_is_left_aside_and_said(stopped, caplog):
    path, model, saes = stopped
    write_arrays(path, {"x": np.zeros(3)})
    counts = Counts()
    with caplog.at_level(logging.WARNING):
        harvest(model, saes, rows(), plan=PLAN, checkpoint=path, reporter=counts)
    assert counts.done == 0
    assert "starts again" in caplog.text
