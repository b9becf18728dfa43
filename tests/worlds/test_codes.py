"""Sparse codes, learnt dictionaries, transfer and noise: truths by brute force."""

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from polysem.errors import UnknownReferenceError
from polysem.worlds import codes, training
from polysem.worlds.gloss import gloss_world
from polysem.worlds.group_bias import adapt
from polysem.worlds.incidental import train_incidental
from polysem.worlds.noise import noise_world
from polysem.worlds.transfer import pool_trials, transfer_world


def test_samples_are_what_they_say():
    world = codes.codes_world(n_features=32, d=24, n_pairs=4, noise=0.0)
    x, a = world.sample(50_000, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(x, a @ torch.tensor(world.truth.directions, dtype=torch.float32), atol=1e-5)
    np.testing.assert_allclose((a > 0).float().mean(0), world.truth.chance, atol=0.01)
    for i, j in world.truth.pairs:
        assert world.truth.directions[i] @ world.truth.directions[j] == pytest.approx(0.45)


def test_children_need_their_parents():
    world = codes.codes_world(n_features=20, d=24, n_pairs=2, hierarchy=True)
    _, a = world.sample(20_000, torch.Generator().manual_seed(0))
    for child in range(10, 20):
        alone = (a[:, child] > 0) & (a[:, world.truth.parent[child]] == 0)
        assert not bool(alone.any())
        assert bool((a[:, child] > 0).any())


def test_recovery_of_a_dictionary_made_by_hand():
    """Four features, one close pair; the dictionary has the pair, one wrong close pair, and misses a feature."""
    e = np.eye(5)
    close = 0.6 * e[0] + 0.8 * e[1]
    truth = codes.CodesTruth(np.stack([e[0], close, e[2], e[3]]), np.ones(4), np.full(4, -1), ((0, 1),), 0.6)
    assert truth.close(0.5) == {(0, 1)}
    learnt = 3.0 * np.stack([close, e[0], e[2], 0.6 * e[2] + 0.8 * e[4]])
    found = codes.recovery(truth, learnt, cut=0.5)
    assert found.matched == 0.75
    assert (found.precision, found.recall) == (0.5, 1.0)
    assert found.mcc == pytest.approx(0.75)


def test_a_dictionary_without_close_pairs_has_no_precision():
    truth = codes.CodesTruth(np.eye(3), np.ones(3), np.full(3, -1), (), 0.5)
    assert np.isnan(
        codes.recovery(codes.codes_world(n_features=3, d=3, n_pairs=1).truth, np.eye(3)).precision
    )
    assert truth.close(0.5) == set()


def test_adaptation_of_biases_by_hand():
    """One group of three: too frequent, right, dead."""
    pre = torch.tensor([[1.0, 0.5, -1.0], [2.0, -1.0, -2.0]])
    bias = torch.tensor([-0.1, -0.2, -0.3])
    new = adapt(bias, pre, target=torch.full((3,), 0.6), group=torch.zeros(3, dtype=torch.long), gamma=0.1)
    # reach 2, 0.5, 0; mean over those that fired 1.25
    np.testing.assert_allclose(new, [-0.1 - 0.2, -0.2, -0.3 + 0.125], atol=1e-6)
    low = adapt(
        torch.tensor([-0.95]),
        torch.tensor([[9.0]]),
        target=torch.zeros(1),
        group=torch.zeros(1, dtype=torch.long),
    )
    assert float(low) == -1.0


def test_codes_of_sae_lens_are_the_dictionarys():
    """Activations are codes times directions and noise; the same generator draws the same, and torch's own is left
    as it was."""
    pytest.importorskip("sae_lens")
    from polysem.worlds.training import lens_codes_world

    world = lens_codes_world(n_features=24, d=12, n_pairs=4, noise=0.0, seed=2)
    before = torch.random.get_rng_state()
    x, drawn = world.sample(4000, torch.Generator().manual_seed(5))
    again, _ = world.sample(4000, torch.Generator().manual_seed(5))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(x, again)
    directions = torch.as_tensor(world.truth.directions, dtype=torch.float32)
    np.testing.assert_allclose(x.numpy(), (drawn @ directions).numpy(), atol=1e-5)
    gram = world.truth.directions @ world.truth.directions.T
    assert all(gram[i, j] == pytest.approx(0.45) for i, j in world.truth.pairs)
    rate = (drawn > 0).double().mean(0).numpy()
    np.testing.assert_allclose(rate, world.truth.chance, atol=5 * np.sqrt(0.15 * 0.85 / 4000))


def test_sparse_codes_without_sae_lens_are_our_own(monkeypatch):
    def missing():
        raise UnknownReferenceError("not installed")

    monkeypatch.setattr(training, "sae_lens_package", missing)
    world = training.sparse_codes(n_features=16, d=8, n_pairs=2, seed=0)
    assert type(world) is codes.CodesWorld


def test_an_unknown_architecture():
    pytest.importorskip("sae_lens")
    with pytest.raises(UnknownReferenceError, match="rbf"):
        training.train_sae(
            codes.codes_world(n_features=8, d=8, n_pairs=1), "rbf", d_sae=8, steps=1, sparsity=1
        )


def test_gloss_world_has_its_reliability_and_bias_formula():
    world = gloss_world(n_targets=200, n_sources=200)
    assert world.truth.naive_bias == pytest.approx(0.25 / 0.875)
    assert np.corrcoef(world.similarity)[0, 1] == pytest.approx(0.5, abs=0.02)
    assert np.corrcoef(world.interference, world.truth.similarity)[0, 1] == pytest.approx(0.5, abs=0.02)


def test_noise_world_has_both_signs_and_the_mean_asked_for():
    world = noise_world(mean=3.0, target_sd=0.0, source_sd=0.0, slope_sd=0.0, pair_sd=0.0, row_sd=0.1)
    change = pc.subtract(world.trials["logodds_edit"], world.trials["logodds_base"]).to_numpy()
    sign = np.sign(world.plan["dose"].to_numpy())
    assert (change * sign).mean() == pytest.approx(3.0, abs=0.01)
    assert change.sum() == pytest.approx(0.0, abs=1e-9)
    assert world.plan["trial_id"].to_pylist() == world.trials["trial_id"].to_pylist()


def test_incidental_gradient_is_that_of_the_loss():
    """One step by autograd."""
    kwargs = {"n": 6, "m": 9, "seeds": 2, "price": 0.05, "rate": 0.1}
    before, after = (train_incidental(steps=s, **kwargs).W for s in (0, 1))
    W = torch.tensor(before).requires_grad_(True)
    out = torch.relu(W @ W.transpose(1, 2))
    loss = (out - torch.eye(6)).pow(2).sum() / 2 + 0.05 * W.abs().sum()
    loss.backward()
    np.testing.assert_allclose(after, before - 0.05 * W.grad.numpy(), atol=1e-6)


@pytest.mark.parametrize("phi", [0.0, 0.5, 1.0])
def test_transfer_world_keeps_what_it_says(phi):
    world = transfer_world(phi=phi, n_pairs=40)
    assert world.truth.share == pytest.approx(world.truth.kept.mean(), abs=0.06)
    for side, pairs in ((world.a, world.truth.pairs_a), (world.b, world.truth.pairs_b)):
        gram = side.directions @ side.directions.T
        assert len(pairs) == 40
        assert all(gram[i, j] == pytest.approx(0.45) for i, j in pairs)
        close = {(int(i), int(j)) for i, j in np.argwhere(np.triu(gram, 1) > 0.4)}
        assert close == set(pairs)
    correlation = np.corrcoef(world.a.codes.T, world.b.codes.T)[:80, 80:]
    assert (world.truth.order[correlation.argmax(axis=1)] == np.arange(80)).all()


def test_pool_trials_are_exchangeable_without_an_effect():
    trials = [pool_trials(sentences=10, draws=5, pools=9, seed=k) for k in range(400)]
    ranks = [(t.matched.mean(1) < t.treated.mean()).sum() for t in trials]
    counts = np.bincount(ranks, minlength=10)
    assert ((counts - 40) ** 2 / 40).sum() < 27.9  # chi-square with 9 df, 0.1 %
