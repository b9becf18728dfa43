"""Clamping through the encoder, and neurons of the MLP: against what the SAE and the model themselves say."""

import dataclasses

import numpy as np
import pytest
import torch

from polysem.act.base import EditedPrompt, Recipe, Refused, SiteContext, Steer, intervention
from polysem.act.mlp import mlp_writes, neurons_of
from polysem.edits import Scale
from polysem.errors import ConfigError, MismatchError, SiteError
from polysem.types import Site
from polysem.worlds.tables import plain_sae
from polysem.worlds.tiny import TINY_FAMILIES, tiny_model

IDS = (1, 5, 9, 13, 2)
D = 16


def bench_of(family="gpt2", site="blocks.1.hook_resid_post", **changes):
    model = tiny_model(family)
    rows = np.linalg.qr(np.random.default_rng(0).standard_normal((D, D)))[0][:6]
    sae = dataclasses.replace(plain_sae(rows, site=Site.parse(site)), **changes)
    return SiteContext("s", sae, model.spec, activations=lambda: np.zeros((0, D)), model=model)


def prompt_of(first=1):
    return EditedPrompt(IDS, np.arange(len(IDS)) >= first)


def clamp(bench, doses, feature=2, largest=1.5, prompt=None):
    recipe = Recipe.of("clamp", feature=feature, largest=largest)
    realised = intervention("clamp").realise(recipe, bench)
    return intervention("clamp").prepare([Steer(realised, d) for d in doses], prompt or prompt_of(), bench)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "topk", "k": 2},
        {"activation": "jumprelu", "threshold": torch.full((6,), 0.2)},
        {"normalization": "layer_norm", "centre_input": False},
        {"subtract_b_dec": True, "b_dec": torch.linspace(-0.5, 0.5, D)},
    ],
)
def test_the_reconstruction_moves_to_the_value_and_the_error_stays(changes):
    """What is added is the SAE's own reconstruction with the feature at the value, minus the one it gave."""
    bench = bench_of(**changes)
    model, sae = bench.model, bench.sae
    tokens, edits = clamp(bench, (1.0, -2.0))
    before = model.capture(tokens, [sae.site])[sae.site]
    after = model.capture(tokens, [sae.site], edits)[sae.site]
    for row, value in enumerate((1.5, -3.0)):
        acts = sae.encode(before[row])
        wanted = acts.clone()
        wanted[:, 2] = value
        moved = sae.decode(wanted, like=before[row]) - sae.decode(acts, like=before[row])
        assert torch.equal(after[row, 0], before[row, 0])  # not edited
        torch.testing.assert_close(after[row, 1:] - before[row, 1:], moved[1:], atol=2e-5, rtol=1e-4)


def test_the_encoder_reads_the_value_afterwards():
    """With orthonormal rows and a transposed encoder the feature reads its own direction alone."""
    bench = bench_of()
    tokens, edits = clamp(bench, (0.5, 1.0, 2.0))
    after = bench.model.capture(tokens, [bench.sae.site], edits)[bench.sae.site]
    acts, clean = (
        bench.sae.encode(after)[:, 1:],
        bench.model.capture(tokens, [bench.sae.site])[bench.sae.site],
    )
    inactive = bench.sae.encode(clean)[:, 1:, 2] == 0
    # where it was inactive, its pre-activation was below zero, and stays as far below the value
    assert torch.allclose(
        acts[..., 2][~inactive], torch.tensor([0.75, 1.5, 3.0])[:, None].expand(3, 4)[~inactive], atol=1e-4
    )
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(
        acts[..., others], bench.sae.encode(clean)[:, 1:][..., others], atol=1e-4, rtol=0
    )


def test_clamping_to_what_is_there_changes_nothing():
    """At one position, to the activation that the feature has."""
    bench = bench_of()
    h = bench.model.capture(torch.tensor([IDS]), [bench.sae.site])[bench.sae.site][0]
    acts = bench.sae.encode(h)[-1]
    feature = int(acts.argmax())
    assert float(acts[feature]) > 0
    last = EditedPrompt(IDS, np.arange(len(IDS)) == len(IDS) - 1)
    tokens, edits = clamp(bench, (1.0,), feature=feature, largest=float(acts[feature]), prompt=last)
    assert torch.equal(bench.model.logits(tokens, edits), bench.model.logits(tokens))


def test_a_feature_without_activation_cannot_be_clamped():
    for largest in (0.0, -1.0, float("inf"), 3):
        with pytest.raises(Refused) as refusal:
            intervention("clamp").realise(Recipe.of("clamp", feature=2, largest=largest), bench_of())
        assert refusal.value.reason == "no_activation"
    with pytest.raises(MismatchError, match="feature 9"):
        intervention("clamp").realise(Recipe.of("clamp", feature=9, largest=1.0), bench_of())


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("point", ["hook_mlp_out", "hook_resid_post"])
def test_what_a_neuron_writes_is_its_row_of_w_out(family, point):
    bench = bench_of(family, f"blocks.1.{point}")
    if family.startswith("gemma"):
        with pytest.raises(SiteError, match="normalises what its MLP writes"):
            mlp_writes(bench.model, bench.sae)
        return
    writes = mlp_writes(bench.model, bench.sae)
    assert writes.shape == (bench.model.site_width(neurons_of(bench.sae)), D)
    if family == "gpt2":
        weight = bench.model.model.transformer.h[1].mlp.c_proj.weight.detach().double().numpy()
        np.testing.assert_allclose(writes, weight, atol=1e-5)
    elif family == "llama":
        weight = bench.model.model.model.layers[1].mlp.down_proj.weight.detach().double().numpy().T
        np.testing.assert_allclose(writes, weight, atol=1e-5)
    assert np.linalg.matrix_rank(writes) == D


def test_what_a_neuron_writes_is_seen_behind_a_first_token_of_great_length():
    """Where the first token's stream is a hundred thousand times as long, float32 has no room left for a write."""
    bench = bench_of("llama")
    bench.model.model.model.embed_tokens.weight.data[0] *= 1e6
    weight = bench.model.model.model.layers[1].mlp.down_proj.weight.detach().double().numpy().T
    np.testing.assert_allclose(mlp_writes(bench.model, bench.sae), weight, atol=1e-5)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_neuron_of_the_mlp_is_multiplied(family):
    bench, locus = bench_of(family), intervention("mlp_neuron")
    site = neurons_of(bench.sae)
    along = locus.realise(Recipe.of("mlp_neuron", neuron=7), bench)
    tokens, edits = locus.prepare([Steer(along, -1.0), Steer(along, 0.5)], prompt_of(), bench)
    mask = torch.as_tensor(prompt_of().edited).repeat(2, 1)
    scale = Scale(site, torch.tensor([7, 7]), torch.tensor([0.0, 1.5]), mask)
    ours, theirs = (bench.model.logits(tokens, e) for e in (edits, [scale]))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    tokens, edits = locus.prepare([Steer(along, 0.0)] * 2, prompt_of(), bench)
    assert torch.equal(bench.model.logits(tokens, edits), bench.model.logits(tokens))
    with pytest.raises(MismatchError, match=r"neuron 999 of blocks\.1\.mlp\.hook_post"):
        locus.realise(Recipe.of("mlp_neuron", neuron=999), bench)


def test_a_rotated_neuron_of_the_mlp_writes_at_the_same_angle():
    """Its output has the cosine with the target that the neuron's has, and it is no neuron."""
    bench, locus = bench_of(), intervention("mlp_neuron")
    writes = mlp_writes(bench.model, bench.sae)
    target = bench.sae.W_dec[3].double().numpy()
    share = writes @ target / np.linalg.norm(writes, axis=1) / np.linalg.norm(target)
    for neuron in np.flatnonzero(np.abs(share) < 0.4)[:6].tolist():
        drawn = []
        for draw in (0, 1):
            recipe = Recipe.of("rotated_mlp", target=3, neuron=neuron, draw=draw, seed=0)
            found = locus.realise(recipe, bench)
            out = found @ writes
            assert np.linalg.norm(found) == pytest.approx(1.0)
            cosine = out @ target / np.linalg.norm(out) / np.linalg.norm(target)
            assert cosine == pytest.approx(share[neuron], abs=1e-9)
            assert np.abs(found).max() < 0.99
            drawn.append(found)
        assert not np.allclose(*drawn)


def test_an_sae_before_the_mlp_is_refused():
    bench = bench_of(site="blocks.1.hook_attn_out")
    with pytest.raises(ConfigError, match=r"got blocks\.1\.hook_attn_out"):
        mlp_writes(bench.model, bench.sae)
    with pytest.raises(ConfigError, match="needs the model"):
        mlp_writes(None, bench.sae)
