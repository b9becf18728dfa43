"""Neurons one by one: which are drawn, what is done to them, and what a source may do beside its angle."""

import numpy as np
import pytest
import torch

from polysem.act.base import Recipe, Steer
from polysem.act.neuron import NEURON
from polysem.plan.degrees import BINS, Neurons, degree_tables
from polysem.plan.neurons import bin_of
from polysem.seeds import random_rotation, rng_for
from unit.test_loci import bench, prompt_of  # noqa: F401


def edited(bench_, steers):
    """Activations at the site after the edits, all positions of each row."""
    prompt = prompt_of([0, 5, 9, 12])
    tokens, edits = NEURON.prepare(steers, prompt, bench_)
    site = bench_.sae.writes
    return bench_.model.capture(tokens, [site], edits)[site], bench_.model.capture(tokens, [site])[site]


@pytest.mark.parametrize("centre", [0.0, 1.5])
def test_minus_one_sets_the_coordinate_to_its_centre_and_one_doubles_its_distance(bench, centre):  # noqa: F811
    recipe = Recipe.of("neuron", neuron=3, **({"centre": centre} if centre else {}))
    assert recipe.centre == centre
    along = NEURON.realise(recipe, bench)
    after, before = edited(bench, [Steer(along, d, recipe.centre) for d in (-1.0, 1.0)])
    h = before[0, 1:, 3]
    torch.testing.assert_close(after[0, 1:, 3], torch.full_like(h, centre), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after[1, 1:, 3], 2 * h - centre, atol=1e-4, rtol=1e-4)
    others = [k for k in range(before.shape[-1]) if k != 3]
    torch.testing.assert_close(after[:, :, others], before[:, :, others])


def test_a_turned_direction_is_that_of_the_basis_in_which_degrees_are_counted(bench):  # noqa: F811
    width = bench.sae.d_out
    Q = random_rotation(width, rng_for(7, "degrees", bench.label, "coordinate", 0))
    np.testing.assert_allclose(Q.T @ Q, np.eye(width), atol=1e-12)
    for n in (0, width - 1):
        along = NEURON.realise(Recipe.of("turned", neuron=n, seed=7), bench)
        np.testing.assert_allclose(along, Q[:, n], atol=1e-12)


def test_the_rotated_basis_is_in_the_table_with_its_own_degrees():
    rng = rng_for(0, "rows")
    acts = rng.standard_normal((60, 12)) + np.arange(12)
    made = degree_tables(
        "s",
        rng.standard_normal((50, 12)),
        np.arange(50),
        [Neurons("coordinate", np.eye(12), acts)],
        np.eye(12),
        seed=3,
        rotations=4,
    )["neurons"].to_pylist()
    Q = random_rotation(12, rng_for(3, "degrees", "s", "coordinate", 0))
    for basis, seen in ((0, acts), (1, acts @ Q)):
        own = [r for r in made if r["basis"] == basis]
        assert [r["neuron"] for r in own] == list(range(12))
        np.testing.assert_allclose([r["mean"] for r in own], seen.mean(0), atol=1e-9)
        np.testing.assert_allclose([r["variance"] for r in own], seen.var(0, ddof=1), atol=1e-9)


def test_bins_are_the_papers_and_zero_is_tied_to_nothing():
    assert [bin_of(d) for d in (0, 1, 2, 5, 6, 20, 21, 100, 101, 500, 501, 10**6)] == [
        *(0, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 8)
    ]
    assert len(BINS) == 8
