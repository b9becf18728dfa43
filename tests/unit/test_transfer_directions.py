"""Directions in a white-box target: the push is the dose that was asked for, its effect the first order's at a small dose,
and the stratified test has its size, its power and its coverage."""

import numpy as np
import pytest
import torch

from polysem.edits import Add
from polysem.errors import MismatchError
from polysem.seeds import rng_for
from polysem.stats.units import stratified_test
from polysem.transfer.capability import edited_nats
from polysem.transfer.directions import strata
from polysem.transfer.steering import steer
from polysem.types import Site
from polysem.worlds.tiny import tiny_model

SITE = Site(0, "hook_resid_post")


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def pushes(model):
    d = model.site_width(SITE)
    vectors = rng_for(0, "directions").normal(size=(6, d))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_push_has_its_dose_and_the_effect_of_the_first_order(model, pushes):
    tokens = model.tokenize("the old man looked at the", prepend_bos=True)
    inside = np.zeros((2, model.spec.d_vocab), dtype=bool)
    inside[0, 5:40] = True
    inside[1, 40:90] = True
    found = steer(model, tokens, site=SITE, directions=pushes, inside=inside, kl=1e-4)
    assert found.reached.all()
    np.testing.assert_allclose(found.kl, 1e-4, rtol=0.02)
    rows = torch.tensor([tokens])
    p = model.logits(rows)[0, -1].double().softmax(-1).numpy()
    for c, chosen in enumerate(inside):
        w = p[chosen].sum()
        # d ln(w / (1 - w)) / d logits, which is p within the set minus p without, each normalised
        slope = np.where(chosen, p / w, -p / (1 - w))
        g = model.vjp(rows, SITE, torch.tensor(slope, dtype=torch.float32)[None])[0, -1].double().numpy()
        np.testing.assert_allclose(found.log_odds[:, c], found.strength * (pushes @ g), rtol=0.05, atol=2e-4)
    again = steer(model, tokens, site=SITE, directions=pushes[::-1], inside=inside, kl=1e-4)
    np.testing.assert_allclose(again.log_odds[::-1], found.log_odds, atol=1e-5)


def test_a_push_that_does_nothing_is_no_effect_of_zero(model, pushes):
    d = pushes.shape[1]
    tokens = model.tokenize("the sea", prepend_bos=True)
    inside = np.zeros((1, model.spec.d_vocab), dtype=bool)
    inside[0, :9] = True
    found = steer(model, tokens, site=SITE, directions=np.zeros((1, d)), inside=inside, kl=0.01)
    assert not found.reached.any()
    assert np.isnan(found.log_odds).all()
    with pytest.raises(MismatchError, match=f"{d - 1} numbers for {d} coordinates"):
        steer(model, tokens, site=SITE, directions=pushes[:, 1:], inside=inside, kl=0.01)


def test_edited_cross_entropy_is_the_models_own(model, pushes):
    ids = model.tokenize("there is nothing in the house", prepend_bos=True)
    found = edited_nats(model, ids, SITE, np.concatenate([0 * pushes[:1], 3 * pushes[:1]]))
    rows, mask = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool)
    mask[0, 0] = False
    edit = Add(SITE, torch.tensor(3 * pushes[:1], dtype=torch.float32), mask)
    for value, edits in zip(found, ([], [edit]), strict=True):
        logprobs = model.logits(rows, edits)[0].double().log_softmax(-1)
        want = -np.mean([float(logprobs[t, ids[t + 1]]) for t in range(len(ids) - 1)])
        assert value == pytest.approx(want, abs=1e-6)


def world(rng, *, effect):
    """Units whose outcome and chance of treatment both depend on a covariate: without strata the test is biased."""
    frequency, leakage = rng.normal(size=(2, 150))
    groups = strata(frequency, leakage)
    treated = rng.random(150) < 0.1 + 0.1 * (groups // 3)
    values = 0.8 * (groups // 3) + rng.normal(size=150) + effect * treated
    return values, treated, groups


def test_the_stratified_test_has_its_size_and_covers():
    rejected, covered, naive, worlds = 0, 0, 0, 400
    for n in range(worlds):
        rng = rng_for(n, "strata")
        values, treated, groups = world(rng, effect=0.5)
        found = stratified_test(values, treated, groups, level=0.95, rng=rng, permutations=199)
        covered += found.lo <= 0.5 <= found.hi
        null = stratified_test(values - 0.5 * treated, treated, groups, level=0.95, rng=rng, permutations=199)
        rejected += null.p <= 0.05
        one = np.zeros_like(groups)
        naive += (
            stratified_test(values - 0.5 * treated, treated, one, level=0.95, rng=rng, permutations=199).p
            <= 0.05
        )
    assert 0.028 <= rejected / worlds <= 0.078, "nominal 0.05, two Monte-Carlo standard errors"
    assert covered / worlds >= 0.925
    assert naive / worlds > 0.15, "what the strata are for"


def test_what_cannot_be_compared_is_left_out_and_counted():
    values = np.array([1.0, 2.0, 3.0, 10.0])
    treated = np.array([True, False, False, True])
    found = stratified_test(
        values, treated, np.array([0, 0, 0, 1]), level=0.95, rng=np.random.default_rng(0), permutations=99
    )
    assert (found.estimate, found.n_treated, found.n_reference, found.n_alone) == (-1.5, 1, 2, 1)
    none = stratified_test(
        values, np.ones(4, bool), np.zeros(4, int), level=0.95, rng=np.random.default_rng(0), permutations=99
    )
    assert np.isnan(none.p)
    assert np.isnan(none.estimate)
