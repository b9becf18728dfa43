"""Batched gradients are those of one context at a time, at every site of every family."""

import pytest
import torch
import torch.nn.functional as F

from polysem.edits import Add
from polysem.errors import MismatchError, SiteError
from polysem.models.clean import clean_run
from polysem.models.gradients import logit_gradients, pull_back, pull_back_pushed
from polysem.onednn import FrozenLinears
from polysem.types import Site
from polysem.worlds.linear import LinearWorld
from polysem.worlds.tiny import TINY_FAMILIES, tiny_model

TOLERANCE = 1e-6
"""times the largest entry: float32 sums in another order"""
LENGTHS = (5, 9, 5, 1, 9, 12, 5)
VARIANTS = {family: {} for family in TINY_FAMILIES} | {
    "gpt_neox sequential": {"use_parallel_residual": False}
}


@pytest.fixture(params=VARIANTS)
def model(request):
    return tiny_model(request.param.split()[0], n_layers=2, **VARIANTS[request.param])


def contexts(model, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, model.spec.d_vocab, (n,), generator=generator).tolist() for n in lengths]


def one_by_one(model, context, target, site):
    cotangent = torch.zeros(1, model.spec.d_vocab)
    cotangent[0, target] = 1.0
    return model.vjp(torch.tensor([context]), site, cotangent)[0]


def assert_close(seen, expected):
    assert seen.shape == expected.shape
    assert (seen - expected).abs().max() <= 4 * TOLERANCE * expected.abs().max()


def test_every_context_has_its_own_gradient_at_every_site(model):
    rows, targets = contexts(model), [7, 0, 63, 5, 5, 11, 30]
    for site in model.sites():
        together = logit_gradients(model, rows, targets, site=site, batch=2)
        for seen, context, target in zip(together, rows, targets, strict=True):
            assert_close(seen, one_by_one(model, context, target, site))


def test_the_fast_products_give_the_same_at_every_site(model):
    some = contexts(model, lengths=(6, 6, 9))
    targets = list(range(3))
    for site in (Site(None, "hook_embed"), Site(0, "hook_resid_post"), Site(1, "hook_mlp_out")):
        exact = logit_gradients(model, some, targets, site=site)
        fast = logit_gradients(model, some, targets, site=site, fast=True)
        for seen, expected in zip(fast, exact, strict=True):
            assert_close(seen, expected)


def test_frozen_linears_leave_alone_what_they_may_not_touch():
    x, weight = torch.randn(3, 8), torch.randn(5, 8)
    learnt = weight.clone().requires_grad_(True)
    with FrozenLinears():
        (F.linear(x, learnt).sum()).backward()
        wide = F.linear(x.double(), weight.double())
    torch.testing.assert_close(learnt.grad, x.sum(0).expand(5, -1))
    assert wide.dtype == torch.float64
    assert torch.equal(wide, F.linear(x.double(), weight.double()))


def test_no_parameter_collects_a_gradient(model):
    logit_gradients(model, contexts(model), [1] * len(LENGTHS))
    assert all(p.grad is None and not p.requires_grad for p in model.model.parameters())


def test_many_functions_of_one_prompt_are_pulled_back_at_once(model):
    (context,) = contexts(model, (8,))
    cotangent = torch.randn(4, model.spec.d_vocab, generator=torch.Generator().manual_seed(5))
    clean = clean_run(model, torch.tensor([context]))
    for site in model.sites():
        if site.layer is None:
            continue
        seen = pull_back(model, clean, site, cotangent)
        expected = model.vjp(torch.tensor([context] * 4), site, cotangent)
        assert_close(seen, expected)


def test_pulled_back_where_pushes_have_brought_the_model(model):
    (context,) = contexts(model, (8,))
    g = torch.Generator().manual_seed(7)
    clean, mask = clean_run(model, torch.tensor([context])), torch.ones(3, 8, dtype=torch.bool)
    mask[:, 0] = False
    for site in (Site(0, "hook_resid_post"), Site(model.spec.n_layers - 1, "hook_attn_out")):
        vector = 0.3 * torch.randn(3, model.site_width(site), generator=g)
        added = vector[:, None] * mask[:, :, None]
        edit, tokens = Add(site, vector, mask), torch.tensor([context] * 3)
        seen = pull_back_pushed(model, clean, site, added, lambda logits: logits.softmax(-1))
        cotangent = model.logits(tokens, [edit], last_only=True)[:, -1].softmax(-1)
        assert_close(seen, model.vjp(tokens, site, cotangent, [edit]))


def test_other_models_give_their_own():
    g = torch.Generator().manual_seed(0)
    world = LinearWorld(torch.randn(9, 4, generator=g), torch.randn(9, 4, generator=g))
    (site,) = world.sites()
    (gradient,) = logit_gradients(world, [[1, 2, 3]], [5], site=site)
    torch.testing.assert_close(gradient[-1], world.W_U[5])
    assert not gradient[:-1].any()


def test_what_does_not_fit_is_refused():
    model = tiny_model("gpt2")
    with pytest.raises(MismatchError, match="2 contexts but 1 targets"):
        logit_gradients(model, [[1], [2]], [3])
    with pytest.raises(MismatchError, match="target token 64 is outside"):
        logit_gradients(model, [[1]], [64])
    with pytest.raises(MismatchError, match="outside the vocabulary"):
        logit_gradients(model, [[99]], [3])
    with pytest.raises(MismatchError, match="at least one token"):
        logit_gradients(model, [[]], [3])
    with pytest.raises(SiteError):
        logit_gradients(model, [[1]], [3], site=Site(9, "hook_resid_post"))
