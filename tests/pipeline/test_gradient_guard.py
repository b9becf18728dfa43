"""The paper's token gradient where it is a gradient, and where it is rounding residue."""

import copy

import numpy as np
import pytest
import torch

from polysem.act.base import Recipe, Refused, SiteContext
from polysem.act.gradient import MIN_AGREEMENT, in_double, token_gradient
from polysem.models import HFModel, load_model
from polysem.models.gradients import probe_gradient
from polysem.saes import load_sae

SITES = ("blocks.1.hook_attn_out", "blocks.2.hook_mlp_out")
TEXT = "It was the best of times, it was the worst of times, and the king went to the sea"


@pytest.fixture(scope="module")
def uncentred() -> HFModel:
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    return load_model("zoo:gpt2", device="cpu")


@pytest.fixture(scope="module")
def centred(uncentred) -> HFModel:
    """The same function with the mean over d_model taken out of all that attention and MLPs write, as
    TransformerLens does when it loads a model: layer norm removes that mean anyway."""
    weights = copy.deepcopy(uncentred.model)
    with torch.no_grad():
        for block in weights.transformer.h:
            for writer in (block.attn.c_proj, block.mlp.c_proj):  # Conv1D: [in, d_model]
                writer.weight -= writer.weight.mean(dim=1, keepdim=True)
                writer.bias -= writer.bias.mean()
    return HFModel.from_parts(weights, uncentred.tokenizer, ref="centred", revision="centred")


def bench_of(model, site):
    sae = load_sae(f"zoo:gpt2/{site}")
    return SiteContext(site, sae, model.spec, activations=lambda: np.zeros((0, sae.d_in)), model=model)


def recipe_of(model, probe):
    ids = model.tokenize(TEXT, prepend_bos=True)
    return Recipe.of(
        "gradient", feature=3, position=len(ids) - 1, probe=probe, tokens=" ".join(map(str, ids))
    )


def agreement(model, site):
    """Cosine of the all-ones gradient in float32 with that in float64, and their norms."""
    bench, ids = bench_of(model, site), model.tokenize(TEXT, prepend_bos=True)
    tokens, ones = torch.tensor([ids]), torch.ones(bench.sae.d_in, dtype=torch.float64)
    pair = [
        probe_gradient(m, tokens, bench.sae.site, len(ids) - 1, ones).double()
        for m in (model, in_double(model))
    ]
    a, b = (float(g.norm()) for g in pair)
    return float(pair[0] @ pair[1]) / (a * b), a, b


def test_centring_changes_no_logit(uncentred, centred):
    tokens = torch.tensor([uncentred.tokenize(TEXT, prepend_bos=True)])
    p, q = (model.logits(tokens).log_softmax(-1) for model in (uncentred, centred))
    assert float((p - q).abs().max()) < 1e-3


@pytest.mark.parametrize("site", SITES)
def test_the_papers_probe_is_a_gradient_where_weights_are_not_centred(uncentred, site):
    cosine, single, double = agreement(uncentred, site)
    assert cosine > 1 - 1e-6
    assert single == pytest.approx(double, rel=1e-4)
    found = token_gradient(recipe_of(uncentred, "ones"), bench_of(uncentred, site))
    assert np.linalg.norm(found) == pytest.approx(1.0)


@pytest.mark.parametrize("site", SITES)
def test_the_papers_probe_is_refused_where_they_are(uncentred, centred, site):
    """It is zero in exact arithmetic. Float32 gives its own rounding, float64 that of the stored weights, which
    are centred to float32 only: both are tiny beside the uncentred gradient and point elsewhere. The paper's guard,
    a norm of 1e-8, lets either pass."""
    cosine, single, double = agreement(centred, site)
    assert cosine < MIN_AGREEMENT
    assert 1e-8 < single < 1e-4 * agreement(uncentred, site)[1]
    assert double < 0.5 * single
    with pytest.raises(Refused) as refusal:
        token_gradient(recipe_of(centred, "ones"), bench_of(centred, site))
    assert refusal.value.reason == "unstable_gradient"


@pytest.mark.parametrize("site", SITES)
def test_the_gradient_of_a_features_own_pre_activation_is_a_gradient_in_both(uncentred, centred, site):
    found = [token_gradient(recipe_of(m, "encoder"), bench_of(m, site)) for m in (uncentred, centred)]
    assert np.abs(found[0]).max() > 0
    for direction in found:
        assert np.linalg.norm(direction) == pytest.approx(1.0)
