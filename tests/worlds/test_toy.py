"""Toy models: losses by Monte Carlo, geometry by hand, gradients of the training by the optimum it finds."""

import numpy as np
import pytest
import torch

from polysem.worlds import toy


@pytest.mark.parametrize(("p", "importance"), [(0.2, 0.5), (0.7, 1.0)])
def test_exact_loss_against_samples(p, importance):
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal(2), 0.2 * rng.standard_normal(2)
    x = (rng.random((400_000, 2)) < p) * rng.random((400_000, 2))
    error = (np.maximum((x @ w)[:, None] * w + b, 0) - x) ** 2 @ np.array([1.0, importance])
    exact = toy.phase_losses(
        *(torch.tensor(v)[None, None] for v in (w, b)), torch.tensor([[p]]), torch.tensor([[importance]])
    )
    assert float(exact) == pytest.approx(error.mean(), abs=4 * error.std() / 400_000**0.5 + 2e-4)


def test_samples_are_those_of_bernoulli_given_a_feature():
    p = torch.tensor([0.3]).reshape(1, 1, 1)
    x = toy._present(1, 200_000, 3, p, torch.Generator().manual_seed(0))[0]
    assert bool((x > 0).any(-1).all())
    some = 1 - 0.7**3
    np.testing.assert_allclose((x > 0).float().mean(0), 0.3 / some, atol=0.005)
    both = float(((x[:, 0] > 0) & (x[:, 2] > 0)).float().mean())
    assert both == pytest.approx(0.09 / some, abs=0.005)
    assert float(x[x > 0].mean()) == pytest.approx(0.5, abs=0.005)


def test_boundary_equates_the_two_losses():
    for importance, expected in ((1.0, 0.571), (0.5, 0.444), (0.25, 0.308)):
        p = toy.boundary(importance)
        assert p == pytest.approx(expected, abs=5e-4)
        dropped = importance * (p / 3 - p**2 / 4)
        assert dropped == pytest.approx((1 + importance) * p**2 / 6)


@pytest.mark.parametrize("name", toy.DIMENSIONALITY)
def test_polytopes_are_unit_and_fill_their_space(name):
    W = toy.polytope(name)
    np.testing.assert_allclose(np.linalg.norm(W, axis=0), 1.0)
    assert toy.dimensionality(W).sum() == pytest.approx(len(W))


def test_an_unknown_polytope():
    with pytest.raises(ValueError, match="cube"):
        toy.polytope("cube")


def test_dimensionality_of_orthogonal_and_absent_features():
    W = np.diag([1.0, 2.0, 0.0])
    np.testing.assert_allclose(toy.dimensionality(W), [1.0, 1.0, 0.0], atol=1e-9)


def test_no_superposition_is_not_vulnerable_and_a_digon_is():
    zero = np.zeros(2)
    assert toy.vulnerability(np.eye(2), zero) == 0.0
    # pushing the opposite feature of a digon by 0.1 lowers the output by 0.1
    assert toy.vulnerability(toy.polytope("digon"), zero) == pytest.approx(1.0)


def test_toy_model_behind_the_seam():
    rng = np.random.default_rng(1)
    W, b = rng.standard_normal((2, 5)), rng.standard_normal(5)
    model = toy.ToyModel(W, b)
    x = np.zeros(5)
    x[[1, 3]] = 1.0
    seen = model.logits(torch.tensor([[0, 2, 4]]), last_only=True)[0, -1, 1:].numpy()
    np.testing.assert_allclose(seen, np.maximum(W.T @ W @ x + b, 0), atol=1e-12)
