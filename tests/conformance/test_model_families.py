"""Every family, tiny and random: the promises of the seam, and agreement with `transformers` run plainly."""

import pytest
import torch

from polysem.edits import Add
from polysem.models.hf import HFModel
from polysem.testing.conformance import check_model
from polysem.types import Site
from polysem.worlds.tiny import TINY_FAMILIES, tiny_model

VARIANTS = {family: {} for family in TINY_FAMILIES}
VARIANTS["gpt_neox sequential"] = {"use_parallel_residual": False}
# sqrt(24) is no power of two, so a scale applied twice, or not at all, or rounded, shows
VARIANTS["gemma2 d=24"] = {"d_model": 24}

STEP, FINITE_DIFFERENCE_RTOL = 1e-3, 1e-4
"""central differences in float64: the error of the formula is STEP^2; Llama and Gemma compute norms in
float32 even then, which leaves 1e-7 / STEP"""


@pytest.fixture(params=VARIANTS)
def model(request) -> HFModel:
    return tiny_model(request.param.split()[0], n_layers=2, **VARIANTS[request.param])


def double(model: HFModel) -> HFModel:
    return HFModel.from_parts(model.model.double(), model.tokenizer)


def tokens_of(model: HFModel, *, batch: int = 3, pos: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.spec.d_vocab, (batch, pos), generator=generator)


def test_the_promises_of_the_seam(model):
    check_model(model)


def test_unedited_logits_are_the_plain_forward_bit_for_bit(model):
    tokens = tokens_of(model)
    with torch.no_grad():
        plain = model.model(tokens).logits
    assert torch.equal(model.logits(tokens), plain)
    everywhere = torch.ones(3, 8, dtype=torch.bool)
    model.logits(tokens, [Add(Site(1, "hook_mlp_out"), torch.ones(3, model.spec.d_model), everywhere)])
    with torch.no_grad():
        assert torch.equal(model.model(tokens).logits, plain)


def test_resid_pre_is_the_hidden_state_that_transformers_reports(model):
    tokens = tokens_of(model)
    with torch.no_grad():
        reported = model.model(tokens, output_hidden_states=True).hidden_states
    sites = [Site(layer, "hook_resid_pre") for layer in range(model.spec.n_layers)]
    captured = model.capture(tokens, sites)
    for layer, site in enumerate(sites):
        assert torch.equal(captured[site], reported[layer])


def test_logits_are_the_final_norm_of_the_last_stream_times_the_unembedding(model):
    tokens = tokens_of(model)
    last = Site(model.spec.n_layers - 1, "hook_resid_post")
    stream = model.capture(tokens, [last])[last]
    norm = model.model.get_submodule(model.anatomy.final_norm)
    with torch.no_grad():
        logits = norm(stream) @ model.W_U.T
    if cap := getattr(model.model.config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    torch.testing.assert_close(model.logits(tokens), logits, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_finite_differences_in_float64(model):
    model = double(model)
    tokens = tokens_of(model, batch=2, pos=5)
    generator = torch.Generator().manual_seed(2)
    cotangent = torch.randn(2, model.spec.d_vocab, generator=generator, dtype=torch.float64)
    for site in model.sites():
        gradient = model.vjp(tokens, site, cotangent)
        assert gradient.dtype == torch.float64
        direction = torch.randn(2, model.site_width(site), generator=generator, dtype=torch.float64)
        mask = torch.rand(2, 5, generator=generator) < 0.7
        mask[:, 2] = True
        moved = [
            model.logits(tokens, [Add(site, sign * STEP * direction, mask)], last_only=True)[:, -1]
            for sign in (1, -1)
        ]
        expected = ((moved[0] - moved[1]) * cotangent).sum(1) / (2 * STEP)
        predicted = torch.einsum("bpd,bd,bp->b", gradient, direction, mask.double())
        size = float((gradient.norm(dim=2) * direction.norm(dim=1, keepdim=True)).sum())
        torch.testing.assert_close(
            predicted, expected, rtol=FINITE_DIFFERENCE_RTOL, atol=FINITE_DIFFERENCE_RTOL * size
        )


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen3"])
def test_the_gradient_at_the_embedding_is_that_of_plain_autograd(family):
    model = tiny_model(family)
    tokens = tokens_of(model)
    cotangent = torch.randn(3, model.spec.d_vocab, generator=torch.Generator().manual_seed(3))
    embedded = model.W_E[tokens].requires_grad_(True)
    last = model.model(inputs_embeds=embedded).logits[:, -1]
    (expected,) = torch.autograd.grad((last * cotangent).sum(), embedded)
    torch.testing.assert_close(
        model.vjp(tokens, Site(None, "hook_embed"), cotangent), expected, rtol=1e-5, atol=1e-5
    )
    assert all(
        parameter.grad is None and not parameter.requires_grad for parameter in model.model.parameters()
    )


def test_a_zero_edit_is_nothing_in_bfloat16_too():
    model = tiny_model("gpt_neox")
    model = HFModel.from_parts(model.model.bfloat16(), model.tokenizer)
    tokens = tokens_of(model)
    everywhere = torch.ones(3, 8, dtype=torch.bool)
    zeros = [Add(site, torch.zeros(3, model.site_width(site)), everywhere) for site in model.sites()]
    assert torch.equal(model.logits(tokens, zeros), model.logits(tokens))
    assert model.logits(tokens).dtype == torch.float32


def test_gemma_2_runs_with_its_attention_soft_cap():
    """Fused attention in transformers 4 drops the cap without a word, so the model must not run with it."""
    capped, uncapped = tiny_model("gemma2"), tiny_model("gemma2", attn_logit_softcapping=None)
    tokens = tokens_of(capped)
    assert capped.model.config._attn_implementation == "eager"
    assert (capped.logits(tokens) - uncapped.logits(tokens)).abs().max() > 1e-2


def test_in_a_parallel_layer_the_three_sites_are_one_intervention():
    model = tiny_model("gpt_neox")
    tokens = tokens_of(model)
    vector, mask = (
        torch.randn(3, 16, generator=torch.Generator().manual_seed(4)),
        torch.ones(3, 8, dtype=torch.bool),
    )
    logits = [
        model.logits(tokens, [Add(Site(0, point), vector, mask)])
        for point in ("hook_attn_out", "hook_mlp_out", "hook_resid_post")
    ]
    torch.testing.assert_close(logits[0], logits[2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits[1], logits[2], rtol=1e-5, atol=1e-5)
    assert (logits[2] - model.logits(tokens)).abs().max() > 0.1
