"""The readout world: its truth against brute force."""

import numpy as np
import pytest
import torch

from polysem.edits import Add
from polysem.worlds.linear import SITE
from polysem.worlds.readout import identity_pairs, readout_world


@pytest.fixture(scope="module")
def world():
    return readout_world(n_features=24, d=64, compensation=0.3, route_share=0.1, route=0.7, n_prompts=4)


def test_logits_of_a_target_move_as_planted(world):
    """Closed form of the truth against the model itself, every pair."""
    truth = world.truth
    tokens = torch.zeros(len(truth.directions), 2, dtype=torch.long)
    mask = torch.tensor([[False, True]]).repeat(len(tokens), 1)
    edit = Add(SITE, torch.as_tensor(0.3 * truth.directions), mask)
    moved = (world.model.logits(tokens, [edit]) - world.model.logits(tokens))[:, -1].numpy()
    for target, ids in enumerate(truth.tokens):
        expected = 0.3 * truth.logit_shift()[target]
        np.testing.assert_allclose(moved[:, ids], np.repeat(expected[:, None], 3, axis=1), atol=1e-12)


def test_odd_effect_is_the_softmax_token_by_token(world):
    """One pair, by a loop over tokens."""
    base, dose = world.base_logits(), 0.2
    seen = world.truth.odd_effect(base, dose)[3, 7]
    shift = world.truth.W_U @ world.truth.directions[7]
    values = []
    for z in base:
        sides = []
        for signed in (dose, -dose):
            e = [np.exp(a + signed * b) for a, b in zip(z, shift, strict=True)]
            inside = sum(e[t] for t in world.truth.tokens[3])
            sides.append(np.log(inside / (sum(e) - inside)))
        values.append((sides[0] - sides[1]) / 2)
    assert seen == pytest.approx(np.mean(values), abs=1e-12)


def test_dual_readout_cancels_everything():
    truth = readout_world(n_features=24, d=64, compensation=1.0).truth
    shift = truth.logit_shift()
    np.testing.assert_allclose(shift - np.diag(np.diag(shift)), 0.0, atol=1e-12)
    off = truth.gram[~np.eye(24, dtype=bool)]
    assert np.abs(off).max() > 0.3  # though the angles are there


def test_routes_are_no_part_of_the_angle(world):
    planted = identity_pairs(world.truth)
    assert 0.05 < planted.mean() < 0.15
    assert not planted.diagonal().any()


def test_the_common_mode_is_there_and_can_be_left_out():
    along = readout_world(n_features=64, d=128).truth
    without = readout_world(n_features=64, d=128, common=0.0).truth
    mean = [truth.gram[~np.eye(64, dtype=bool)].mean() for truth in (along, without)]
    assert mean[0] > 0.1
    assert abs(mean[1]) < 0.02


def test_duplicates_are_close_or_share_tokens():
    truth = readout_world(n_features=40, d=96, duplicates=8).truth
    assert len(truth.duplicates) == 8
    for k, (original, copy) in enumerate(truth.duplicates):
        assert truth.gram[original, copy] == pytest.approx(0.9 if k % 2 == 0 else 0.45)
        shared = set(truth.tokens[original]) & set(truth.tokens[copy])
        assert len(shared) == (0 if k % 2 == 0 else 2)


def test_rotation_changes_the_basis_and_nothing_else():
    plain, turned = readout_world(n_features=20, d=48), readout_world(n_features=20, d=48, rotation_seed=3)
    assert np.abs(plain.truth.directions - turned.truth.directions).max() > 0.1
    np.testing.assert_allclose(plain.truth.gram, turned.truth.gram, atol=1e-12)
    np.testing.assert_allclose(plain.base_logits(), turned.base_logits(), atol=1e-10)


def test_too_many_features_are_refused():
    with pytest.raises(ValueError, match="no dual basis"):
        readout_world(n_features=60, d=64, duplicates=5)


def test_same_seed_same_world():
    one, two, other = readout_world(seed=4), readout_world(seed=4), readout_world(seed=5)
    assert torch.equal(one.sae.W_dec, two.sae.W_dec)
    assert one.prompts.equals(two.prompts)
    assert not torch.equal(one.sae.W_dec, other.sae.W_dec)
