"""The planted world of side effects: its truth is what its weights say, and a forecast that knows nothing breaks its line."""

import numpy as np

from polysem.selftest.runner import RunSize
from polysem.selftest.side_effects import planted, planted_world
from polysem.side_effects import forecast


def test_a_forecast_that_knows_only_the_mean_is_caught(monkeypatch):
    monkeypatch.setattr(forecast, "_ridge", lambda X, y, new, penalty: np.full(len(new), y.mean()))
    first = next(iter(planted(RunSize(full=False, seed=0))))
    assert not first.value >= 0.9


def test_reach_is_the_number_of_targets_that_a_push_moves():
    """Straight from the weights: the logits of other features' tokens that read the direction, or its dual."""
    for causal in (True, False):
        world = planted_world(causal=causal, seed=1)
        moved = world.scene.model.W_U.double().numpy() @ world.directions.T
        tokens = [ids[0] for ids in world.scene.sets]
        assert ((np.abs(moved[tokens]) > 0.5).sum(0) == world.reach).all()
