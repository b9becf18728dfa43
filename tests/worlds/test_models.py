"""Models of worlds keep the promises of the seam, and SAE worlds those of the codec."""

import numpy as np
import pytest
import torch

from polysem.edits import Add
from polysem.errors import MismatchError, NumericsError, SiteError
from polysem.types import Site
from polysem.worlds import compiled
from polysem.worlds.incidental import NEURONS, IncidentalModel
from polysem.worlds.layer_norm import layer_norm_world
from polysem.worlds.toy import SITE, ToyModel


def models():
    rng = np.random.default_rng(0)
    return {
        "toy": ToyModel(rng.standard_normal((4, 9)), np.abs(rng.standard_normal(9))),
        "incidental": IncidentalModel(rng.standard_normal((8, 6))),
        "compiled": compiled.compiled_world(compression=0.5).model,
    }


@pytest.mark.parametrize("name", ["toy", "incidental", "compiled"])
def test_gradients_are_those_of_the_logits(name):
    model = models()[name]
    tokens = torch.tensor([[0, 3, 1], [2, 2, 5]])
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(2, model.spec.d_vocab, generator=generator, dtype=torch.float64)
    for site in model.sites():
        g = model.vjp(tokens, site, cotangent)
        v = torch.randn(2, model.site_width(site), generator=generator, dtype=torch.float64)
        mask = torch.tensor([[False, True, True], [False, True, False]])
        up, down = (model.logits(tokens, [Add(site, s * 1e-6 * v, mask)], last_only=True) for s in (1, -1))
        seen = (((up - down) / 2e-6)[:, -1] * cotangent).sum(-1)
        expected = (g * v[:, None] * mask[..., None]).sum((1, 2))
        np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["toy", "incidental", "compiled"])
def test_captures_see_the_edits(name):
    model = models()[name]
    tokens = torch.tensor([[0, 3, 1]])
    for site in model.sites():
        v = torch.ones(1, model.site_width(site), dtype=torch.float64)
        edit = Add(site, v, torch.tensor([[False, False, True]]))
        moved = model.capture(tokens, [site], [edit])[site] - model.capture(tokens, [site])[site]
        assert torch.allclose(moved[:, -1], v)
        assert not moved[:, :-1].any()


def test_bad_input_is_refused():
    model = models()["toy"]
    with pytest.raises(SiteError, match=r"blocks.7"):
        model.site_width(Site(7, "hook_resid_post"))
    with pytest.raises(MismatchError, match="0 to 9"):
        model.logits(torch.tensor([[0, 10]]))
    with pytest.raises(MismatchError, match="shape"):
        model.logits(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(MismatchError, match="vector"):
        model.logits(
            torch.zeros(1, 1, dtype=torch.long), [Add(SITE, torch.zeros(1, 3), torch.ones(1, 1) > 0)]
        )
    infinite = Add(SITE, torch.full((1, 4), torch.inf), torch.ones(1, 1) > 0)
    with pytest.raises(NumericsError, match="world:toy"):
        model.logits(torch.zeros(1, 1, dtype=torch.long), [infinite])


def test_compiled_circuit_writes_its_bigrams():
    world = compiled.compiled_world()
    for b, a, t in world.truth.bigrams.tolist():
        logits = world.model.logits(torch.tensor([[0, b, a]]), last_only=True)[0, -1]
        alone = world.model.logits(torch.tensor([[0, 0, a]]), last_only=True)[0, -1]
        assert float(logits[t] - alone[t]) == pytest.approx(6.0)
        assert int(logits.argmax()) == t


def test_compression_plants_the_gram_matrix():
    world = compiled.compiled_world(compression=0.5)
    rows = world.sae.W_dec.double().numpy()
    np.testing.assert_allclose(rows @ rows.T, world.truth.gram, atol=1e-6)
    np.testing.assert_allclose(np.diag(world.truth.gram), 1.0)
    n = world.truth.n_tokens  # the head turns "current" into "previous": the same angles again
    np.testing.assert_allclose(world.truth.gram[:n, :n], world.truth.gram[n : 2 * n, n : 2 * n], atol=1e-12)


def test_incidental_output_by_hand():
    W = np.array([[1.0, 0.0], [-1.0, 0.0]])
    model = IncidentalModel(W)
    logits = model.logits(torch.tensor([[1], [2]]))[:, -1]
    np.testing.assert_allclose(logits[:, 1:], np.eye(2))
    assert model.site_width(NEURONS) == 2


def test_layer_norm_world_is_exact_and_shows_a_forgotten_norm():
    world = layer_norm_world()
    x = world.activations
    torch.testing.assert_close(world.sae.encode(x), world.truth.codes, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(world.sae.decode(world.truth.codes, like=x), x, atol=1e-2, rtol=1e-3)
    from dataclasses import replace

    raw = replace(world.sae, normalization="none").encode(x)
    assert float((raw - world.truth.codes).abs().mean()) > 0.1
