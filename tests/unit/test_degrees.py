"""Degrees of neurons: by hand, and a planted super-neuron against rotated bases."""

import numpy as np
import pytest

from polysem.errors import MismatchError
from polysem.plan.degrees import Neurons, degree_tables, tied


def test_ties_by_hand():
    """Three most aligned at a cosine above 0.2; features of one cluster count once; a zero write ties nothing."""
    unit = np.array(
        [[1.0, 0, 0, 0], [0.6, 0.8, 0, 0], [0.5, 0.5, 0.5, 0.5], [0, 0, -1.0, 0], [0.98, 0.199, 0, 0]]
    )
    writes = np.vstack([np.eye(4)[:3] * 5.0, np.zeros(4)])
    degree, features = tied(unit, np.array([0, 0, 1, 2, 3]), writes)
    # neuron 0: features 0, 1 (cluster 0), 2, 4; neuron 1: features 1 and 2, not 4 (0.199); neuron 2: 2, not 3 (negative)
    assert degree.tolist() == [3, 2, 1, 0]
    assert features.tolist() == [4, 2, 1, 0]


def test_only_the_three_most_aligned_count():
    unit = np.array([[0.6, 0.5, 0.45, 0.43]])
    degree, _ = tied(unit / np.linalg.norm(unit), np.array([7]), np.eye(4))
    assert degree.tolist() == [1, 1, 1, 0]


def world(shared, *, n=300, d=24):
    """Features of `n` clusters; a fraction `shared` of every direction is along coordinate 0."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, d)) / np.sqrt(d)
    rows[:, 0] += shared
    acts = rng.standard_normal((200, d))
    acts[:, 0] *= 9.0
    return rows, np.arange(n), [Neurons("coordinate", np.eye(d), acts)]


def rows_of(tables):
    return {r["quantity"]: r for r in tables["neuron_degrees"].to_pylist()}


def test_a_planted_super_neuron_is_larger_than_in_any_rotated_basis_and_none_is_invented():
    made = {shared: degree_tables("s", *world(shared), np.eye(24), seed=0) for shared in (0.0, 0.6)}
    planted, nothing = rows_of(made[0.6]), rows_of(made[0.0])
    assert planted["largest_degree"]["value"] > planted["largest_degree"]["null_hi"]
    assert planted["largest_degree"]["p"] == pytest.approx(0.05)
    neurons = made[0.6]["neurons"].to_pylist()
    assert max(neurons, key=lambda r: r["degree"])["neuron"] == 0
    assert neurons[0]["variance"] == max(r["variance"] for r in neurons)
    assert (
        nothing["largest_degree"]["null_lo"]
        <= nothing["largest_degree"]["value"]
        <= nothing["largest_degree"]["null_hi"]
    )
    assert nothing["largest_degree"]["p"] > 0.05


def test_what_does_not_vary_has_no_rank_correlation_and_no_p():
    """Coordinates write vectors of one length, and an identity for W_U keeps it: both are null, not 0."""
    rows = rows_of(degree_tables("s", *world(0.6), np.eye(24), seed=0))
    for name in ("rank_correlation_write_norm", "rank_correlation_logit_norm"):
        assert (rows[name]["value"], rows[name]["p"]) == (None, None)
    assert rows["rank_correlation_variance"]["value"] is not None


def test_features_without_a_gloss_tie_nothing_and_equal_inputs_give_equal_tables():
    directions, clusters, kinds = world(0.6)
    none = degree_tables("s", directions, np.full(len(clusters), -1), kinds, np.eye(24), seed=0, rotations=3)
    assert set(none["neurons"]["degree"].to_pylist()) == {0}
    twice = [
        degree_tables("s", directions, clusters, kinds, np.eye(24), seed=1, rotations=3) for _ in range(2)
    ]
    assert all(twice[0][name].equals(twice[1][name]) for name in twice[0])


def test_parts_of_different_saes_are_refused():
    directions, clusters, kinds = world(0.6)
    with pytest.raises(MismatchError, match="300 directions but 299 cluster numbers"):
        degree_tables("s", directions, clusters[1:], kinds, np.eye(24), seed=0)
