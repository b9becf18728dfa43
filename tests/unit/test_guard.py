"""Monitors, clamps and moves: by hand, by another library, and against what a user may get wrong."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.api import Logit, add_constant

from polysem.act.clamp import clamp_change
from polysem.behaviour.guard import split_prompts
from polysem.behaviour.handle import (
    RADII,
    Handle,
    gini,
    half_of,
    neuron_slopes,
    neurons_removed,
    projector,
    recover,
)
from polysem.behaviour.monitors import aurocs, calibration_error, logistic
from polysem.engine.guard import load_concept
from polysem.errors import ConfigError
from polysem.transfer.defence import auroc
from polysem.types import Site
from polysem.worlds.tables import plain_sae
from polysem.worlds.tiny import tiny_model


def test_a_column_of_aurocs_is_each_auroc():
    rng = np.random.default_rng(0)
    x, on = rng.integers(0, 4, (40, 6)).astype(float), rng.random(40) < 0.4
    assert aurocs(x, on) == pytest.approx([auroc(x[~on, k], x[on, k]) for k in range(6)])


def test_a_logistic_regression_is_that_of_statsmodels():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, 3)) * [1, 10, 0.1] + [0, 5, 0]
    y = rng.random(200) < 1 / (1 + np.exp(-(x @ [1, 0.1, 5] - 0.5)))
    weights, constant = logistic(x, y, l2=1e-9)
    expected = Logit(y.astype(float), add_constant(x)).fit(disp=0).params
    assert np.append(constant, weights) == pytest.approx(expected, rel=1e-3)


def test_calibration_by_hand():
    p, on = np.array([0.05, 0.05, 0.95, 0.95]), np.array([False, True, True, True])
    assert calibration_error(p, on) == pytest.approx((2 * abs(0.5 - 0.05) + 2 * abs(1 - 0.95)) / 4)


def test_concentration_by_hand():
    assert gini(np.ones(10)) == pytest.approx(0.0)
    assert gini(np.eye(10)[0]) == pytest.approx(0.9)
    assert half_of(np.array([1.0, -5.0, 1.0, 1.0])) == 1
    assert half_of(np.ones(4)) == 2
    assert np.isnan(gini(np.zeros(3)))


@given(st.integers(1, 4), st.integers(0, 1000))
def test_a_projector_leaves_nothing_along_its_rows(k, seed):
    rows = np.random.default_rng(seed).standard_normal((k, 6))
    rows = np.concatenate([rows, rows[:1]])  # one of them twice
    P = projector(rows)
    assert np.abs(P @ rows.T).max() < 1e-9
    assert np.trace(P) == pytest.approx(6 - k)
    assert np.abs(P @ P - P).max() < 1e-9


def handle(features=(0, 1)) -> Handle:
    model = tiny_model("gpt2", n_layers=2)
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((12, model.spec.d_model))
    sae = plain_sae(rows / np.linalg.norm(rows, axis=1, keepdims=True), site=Site(0, "hook_resid_post"))
    return Handle(model, sae, features, (5, 6))


def test_a_clamp_of_several_is_the_change_of_the_reconstruction():
    one = handle()
    h = torch.randn(5, one.model.spec.d_model, generator=torch.Generator().manual_seed(1))
    codes = one.sae.encode(h)
    held = codes.clone()
    held[:, [0, 1]] = 2.0
    expected = one.sae.decode(held) - one.sae.decode(codes)
    torch.testing.assert_close(clamp_change(one.sae, h, [0, 1], 2.0), expected, rtol=1e-5, atol=1e-5)


def test_moves_leave_what_is_clamped_alone_and_a_free_one_goes_further():
    """On a model that is not linear: measured on the activations, not on the move."""
    one, ids = handle(), [1, 2, 3, 4]
    rng = np.random.default_rng(0)
    held, free = (recover(one, ids, arm=arm, rng=rng) for arm in ("handle", "free"))
    assert held.drift < 1e-6
    assert free.drift > 1e-2
    assert (np.diff(free.gain) > -1e-3).all()
    assert (free.gain >= held.gain - 2e-2).all()
    assert (held.gain > 0).all()
    assert len(held.gain) == len(RADII)


def test_slopes_of_neurons_are_what_removing_a_little_of_them_does():
    """A neuron whose activation is small is removed by little: gradient and removal agree there, and rank alike over all."""
    one, ids = handle(), [1, 2, 3, 4]
    slopes = neuron_slopes(one, [ids], one.tokens)
    neurons = [(layer, k) for layer in range(2) for k in range(slopes.shape[1])]
    measured = neurons_removed(one, ids, neurons)
    assert stats.spearmanr(slopes.ravel(), measured).statistic > 0.95


def test_prompts_of_a_concept_end_before_it_and_hold_none_of_it():
    inside = np.zeros(10, dtype=bool)
    inside[[7, 8]] = True
    rows = np.array(
        [
            [0, 1, 2, 3, 4, 5, 7, 1, 2, 3],
            [0, 1, 2, 3, 4, 5, 6, 1, 2, 3],
            [0, 1, 8, 3, 4, 7, 6, 1, 2, 3],
            [0, 7, 1, 1, 1, 1, 1, 1, 1, 1],
        ]
    )
    on, off = split_prompts(rows, inside, n=5, length=5)
    assert on == [[0, 2, 3, 4, 5]]
    assert off == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("words = 3", "words"),
        ('words = "emotion"\nfeature = [1]', "feature"),
        ('words = "emotion"\non = "a.txt"', "on and off go together"),
        ('words = "emotion"\ndocuments = 3', "documents"),
    ],
)
def test_a_wrong_concept_is_refused_with_its_key(tmp_path, text, said):
    (tmp_path / "c.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_concept(tmp_path / "c.toml")
