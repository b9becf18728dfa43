"""Matching and shared structure: planted matchings are found, intervals cover, chance is chance."""

import numpy as np
import pytest
from scipy import sparse

from polysem.errors import MismatchError
from polysem.transfer.matching import match_features, max_by_segment, segments
from polysem.transfer.shared import passing_pairs, shared_structure
from polysem.worlds.transfer import block_world

WORLDS = 200
MIN_Z = 4.0


def structure_of(world, rng, *, permutations):
    matching = match_features(world.acts_a, world.acts_b)
    pairs = [
        passing_pairs(directions, features, min_z=MIN_Z)
        for directions, features in ((world.directions_a, matching.a), (world.directions_b, matching.b))
    ]
    return matching, shared_structure(*pairs, m=matching.m, level=0.95, rng=rng, permutations=permutations)


def test_the_interval_covers_the_planted_fraction_in_200_worlds():
    phis = (0.0, 0.1, 0.3, 0.6, 0.9)
    covered = 0
    for n in range(WORLDS):
        rng = np.random.default_rng([11, n])
        phi = phis[n % len(phis)]
        world = block_world(rng, phi=phi, n_tokens=1000)
        matching, found = structure_of(world, rng, permutations=1)
        assert (world.partner[matching.a] == matching.b).mean() > 0.99
        covered += found.lo <= phi <= found.hi
    assert covered >= 0.93 * WORLDS


def test_nothing_shared_is_rejected_at_the_nominal_rate():
    rejected = 0
    for n in range(WORLDS):
        rng = np.random.default_rng([12, n])
        world = block_world(rng, phi=0.0, block=8, n_blocks=24, n_tokens=4)
        m = 24 * 8
        a = passing_pairs(world.directions_a, np.arange(m), min_z=MIN_Z)
        b = passing_pairs(world.directions_b, world.partner, min_z=MIN_Z)
        rejected += shared_structure(a, b, m=m, level=0.95, rng=rng, permutations=99).p <= 0.05
    assert 0.015 <= rejected / WORLDS <= 0.085  # 0.05 +- 2.3 standard errors of 200 worlds


def test_expectation_is_that_of_permuted_matchings():
    rng = np.random.default_rng(3)
    m = 30
    every = np.array([(i, j) for i in range(m) for j in range(i + 1, m)])
    a, b = (every[rng.random(len(every)) < q] for q in (0.2, 0.3))
    found = shared_structure(a, b, m=m, level=0.95, rng=rng)
    codes = set((a[:, 0] * m + a[:, 1]).tolist())
    counts = []
    for _ in range(4000):
        moved = np.sort(rng.permutation(m)[b], axis=1)
        counts.append(sum(c in codes for c in (moved[:, 0] * m + moved[:, 1]).tolist()))
    assert found.expected == pytest.approx(np.mean(counts), rel=0.01)
    assert found.p > 0.01


def test_equal_structures_are_wholly_shared_and_bounded():
    pairs = np.array([(0, 1), (2, 3), (4, 5), (6, 7)])
    found = shared_structure(pairs, pairs, m=40, level=0.95, rng=np.random.default_rng(0))
    assert (found.fraction, found.n_shared, found.hi) == (1.0, 4, 1.0)
    assert found.lo < 0.8, "four pairs do not prove a fraction of 1"
    none = shared_structure(pairs[:2], pairs[2:], m=40, level=0.95, rng=np.random.default_rng(0))
    assert none.n_shared == 0
    assert none.lift == 0
    assert none.lo == 0 < none.hi
    empty = shared_structure(pairs[:0], pairs, m=40, level=0.95, rng=np.random.default_rng(0))
    assert np.isnan(empty.lift)
    with pytest.raises(MismatchError, match="must be i < j < 5"):
        shared_structure(pairs, pairs, m=5, level=0.95, rng=np.random.default_rng(0))


def test_the_order_of_features_changes_nothing():
    world = block_world(np.random.default_rng(4), phi=0.5, n_blocks=30)
    order = np.random.default_rng(5).permutation(120)
    straight, turned = (match_features(acts, world.acts_b) for acts in (world.acts_a, world.acts_a[:, order]))
    assert {(a, b) for a, b in zip(straight.a.tolist(), straight.b.tolist(), strict=True)} == {
        (int(order[a]), b) for a, b in zip(turned.a.tolist(), turned.b.tolist(), strict=True)
    }


def test_correlations_are_pearsons():
    rng = np.random.default_rng(6)
    a = np.maximum(rng.normal(size=(400, 6)), 0)
    b = np.maximum(a[:, [2, 0, 1, 5, 4, 3]] + 0.2 * rng.normal(size=(400, 6)), 0)
    found = match_features(sparse.csr_matrix(a), sparse.csr_matrix(b))
    assert dict(zip(found.a.tolist(), found.b.tolist(), strict=True)) == {2: 0, 0: 1, 1: 2, 5: 3, 4: 4, 3: 5}
    for i, j, r in zip(found.a, found.b, found.r, strict=True):
        assert r == pytest.approx(np.corrcoef(a[:, i], b[:, j])[0, 1], abs=1e-9)
    assert match_features(sparse.csr_matrix(a), sparse.csr_matrix(b), min_r=0.9999).m == 0
    with pytest.raises(MismatchError, match="400 and 399 segments"):
        match_features(sparse.csr_matrix(a), sparse.csr_matrix(b[1:]))


def test_rare_features_are_not_matched_by_chance():
    rng = np.random.default_rng(7)
    a, b = np.zeros((500, 40)), np.zeros((500, 40))
    for acts in (a, b):
        acts[rng.integers(0, 500, 40), np.arange(40)] = 1.0
    b[:, 0] = a[:, 0]
    assert match_features(sparse.csr_matrix(a), sparse.csr_matrix(b)).m == 0


def test_segments_lie_between_common_ends():
    """'the old man' cut as the| old| man and th|e o|ld| m|an."""
    a, b, n = segments(np.array([3, 7, 11]), np.array([2, 5, 7, 9, 11]))
    assert (a.tolist(), b.tolist(), n) == ([0, 0, 1], [0, 0, 0, 1, 1], 2)
    same = segments(np.array([3, 7, 11]), np.array([3, 7, 11]))
    assert same[0].tolist() == same[1].tolist() == [0, 1, 2]
    acts = sparse.csr_matrix(np.array([[1.0, 0.0], [3.0, 0.5], [0.0, 2.0]]))
    np.testing.assert_array_equal(max_by_segment(acts, a, n).toarray(), [[3.0, 0.5], [0.0, 2.0]])
    beyond = max_by_segment(acts, np.array([0, 1, 1]), 1)
    np.testing.assert_array_equal(beyond.toarray(), [[1.0, 0.0]])
