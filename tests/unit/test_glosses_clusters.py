"""Gloss clusters against scipy's average linkage on cosine distance, and against facts that need no reference."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from polysem.errors import ConfigError
from polysem.glosses import clusters, gloss_clusters
from polysem.glosses.clusters import average_linkage

CUTS = (0.40, 0.30, 0.20, 0.15)


def blobs(*, n: int, d: int, centres: int, spread: float, seed: int) -> np.ndarray:
    """Vectors around random centres that share a common direction, as gloss embeddings do."""
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(centres, d)) + 0.4 * rng.normal(size=d)
    return middle[rng.integers(centres, size=n)] + spread * rng.normal(size=(n, d))


def by_smallest_member(labels: np.ndarray) -> np.ndarray:
    order: dict[int, int] = {}
    return np.array([order.setdefault(int(label), len(order)) for label in labels])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("n", "d", "centres", "spread"), [(2, 4, 1, 1.0), (60, 8, 5, 1.5), (300, 24, 40, 2.5), (150, 3, 9, 0.4)]
)
def test_partition_is_scipys_average_linkage(n, d, centres, spread, seed):
    vectors = blobs(n=n, d=d, centres=centres, spread=spread, seed=seed)
    tree = linkage(vectors, method="average", metric="cosine")
    ours = gloss_clusters(vectors, CUTS)
    for cut in CUTS:
        reference = by_smallest_member(fcluster(tree, t=1 - cut, criterion="distance"))
        np.testing.assert_array_equal(ours[cut], reference)
    assert n == 2 or 1 < len(set(ours[0.40])) < n


def test_merge_similarities_are_scipys_heights():
    vectors = blobs(n=200, d=16, centres=12, spread=1.2, seed=7)
    heights = linkage(vectors, method="average", metric="cosine")[:, 2]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    merges = average_linkage(unit, lowest=-1.0)
    assert len(merges) == 199
    np.testing.assert_allclose(sorted(1 - s for _, _, s in merges), heights, atol=1e-12)


def test_lowest_cut_saves_work_and_changes_nothing():
    vectors = blobs(n=120, d=8, centres=6, spread=1.0, seed=3)
    alone = gloss_clusters(vectors, (0.40,))[0.40]
    np.testing.assert_array_equal(alone, gloss_clusters(vectors, (0.40, -0.99))[0.40])


def test_identical_vectors_are_one_cluster_at_every_cut():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 32))
    other -= one * (one @ other) / (one @ one)
    vectors = np.stack([one, other, one * 3.0, one, other * 0.5])
    for cut in (1.0 - 1e-12, 0.4):
        np.testing.assert_array_equal(gloss_clusters(vectors, (cut,))[cut], [0, 1, 0, 0, 1])


def test_many_equal_vectors_are_scipys_partition_and_merge_at_one():
    """As in real tables of glosses: most features share the text of another one."""
    rng = np.random.default_rng(5)
    distinct = blobs(n=130, d=12, centres=9, spread=1.1, seed=5).astype(np.float32)
    copies = rng.integers(130, size=1500)
    vectors = distinct[copies]
    tree = linkage(vectors, method="average", metric="cosine")
    ours = gloss_clusters(vectors, CUTS)
    for cut in CUTS:
        reference = by_smallest_member(fcluster(tree, t=1 - cut, criterion="distance"))
        np.testing.assert_array_equal(ours[cut], reference)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    merges = average_linkage(unit, lowest=-1.0)
    n_distinct = len(np.unique(copies))
    assert len(merges) == 1499
    assert sum(similarity == 1.0 for _, _, similarity in merges) == 1500 - n_distinct
    np.testing.assert_allclose(sorted(1 - s for _, _, s in merges), np.maximum(tree[:, 2], 0), atol=1e-12)


def test_vectors_that_float32_cannot_tell_apart_are_told_apart():
    """Some hundred neighbours lie within float32's error of the nearest one: float64 decides."""
    rng = np.random.default_rng(11)
    vectors = blobs(n=4, d=48, centres=4, spread=0.1, seed=11)[rng.integers(4, size=400)]
    vectors = vectors + 1e-5 * rng.normal(size=vectors.shape)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    # Heights near 1e-10: scipy gets them from distances, to some 1e-16.
    heights = linkage(unit, method="average", metric="cosine")[:, 2]
    merges = average_linkage(unit, lowest=-1.0)
    np.testing.assert_allclose(sorted(1 - s for _, _, s in merges), heights, atol=2e-14)


def two_stars(*, n: int) -> np.ndarray:
    """Two near centres, each with n rays of its own, so that their union is near to more than either."""
    axes = np.eye(2 + 2 * n)
    centres = np.stack([axes[0], 0.9 * axes[0] + np.sqrt(0.19) * axes[1]])
    near = np.linspace(0.8, 0.78, 2 * n)[:, None]
    return np.concatenate([centres, near * np.repeat(centres, n, axis=0) + np.sqrt(1 - near**2) * axes[2:]])


@pytest.mark.parametrize("lowest", [-1.0, 0.15])
@pytest.mark.parametrize(
    ("listed", "vectors"),
    [
        (4, blobs(n=500, d=4, centres=30, spread=1.6, seed=2)),
        (16, blobs(n=500, d=24, centres=30, spread=1.6, seed=2)),
        (16, two_stars(n=15)),
    ],
)
def test_bounds_hold_and_the_nearest_is_found_after_every_round(lowest, listed, vectors, monkeypatch):
    """What spares comparisons, against all comparisons in float64."""
    monkeypatch.setattr(clusters, "_LISTED", listed)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    rounds, scanned = [], []
    merge, scan = clusters._Clusters.merge, clusters._Clusters._scan

    def checked(self, pairs, alive):
        products = self.means @ self.means[alive].T
        products[alive, np.arange(len(alive))] = -np.inf
        products = products[alive]
        best = products.max(axis=1)
        near = best >= lowest
        np.testing.assert_array_equal(alive[products.argmax(axis=1)][near], self.nearest[alive][near])
        np.testing.assert_allclose(self.similarity[alive][near], best[near], atol=1e-14)
        for row, x in enumerate(alive):
            bounds = np.full(len(self.means) + 1, -np.inf)
            np.maximum.at(bounds, self.listed[x], self.ceiling[x])
            bounds[:-1][~np.isin(np.arange(len(self.means)), self.listed[x])] = self.rest[x]
            assert (products[row] <= bounds[alive] + 1e-12).all()
        rounds.append(len(pairs))
        return merge(self, pairs, alive)

    def counted(self, rows, alive):
        scanned.append(len(rows))
        return scan(self, rows, alive)

    monkeypatch.setattr(clusters._Clusters, "merge", checked)
    monkeypatch.setattr(clusters._Clusters, "_scan", counted)
    merges = clusters.average_linkage(unit, lowest=lowest)
    assert len(rounds) > 3
    assert sum(rounds) == len(merges)
    # Lists of the usual length do their work: few clusters are compared with all others more than once.
    assert len(unit) < 500 or listed < 16 or sum(scanned) < 1.5 * len(unit)


def test_many_equal_similarities_end():
    """A regular simplex: every pair is equally near, so rounding alone decides which neighbour is nearest."""
    vectors = np.eye(40) + 0.5
    labels = gloss_clusters(vectors, (0.15,))[0.15]
    assert set(labels) == {0}


def test_features_without_gloss_are_in_no_cluster():
    vectors = blobs(n=10, d=6, centres=2, spread=0.2, seed=1)
    padded = np.insert(vectors, [0, 5, 10], 0.0, axis=0)
    labels = gloss_clusters(padded, (0.4,))[0.4]
    np.testing.assert_array_equal(np.flatnonzero(labels == -1), [0, 6, 12])
    np.testing.assert_array_equal(labels[labels >= 0], gloss_clusters(vectors, (0.4,))[0.4])
    np.testing.assert_array_equal(gloss_clusters(np.zeros((3, 4)), (0.4,))[0.4], [-1, -1, -1])


@pytest.mark.parametrize("seed", range(3))
def test_order_of_features_does_not_change_the_partition(seed):
    vectors = blobs(n=90, d=10, centres=8, spread=1.0, seed=seed)
    shuffle = np.random.default_rng(seed).permutation(90)
    plain, shuffled = gloss_clusters(vectors, (0.3,))[0.3], gloss_clusters(vectors[shuffle], (0.3,))[0.3]
    np.testing.assert_array_equal(by_smallest_member(plain[shuffle]), shuffled)


def test_refusals():
    with pytest.raises(ConfigError, match="cuts"):
        gloss_clusters(np.eye(3), (1.5,))
    with pytest.raises(ConfigError, match="not finite"):
        gloss_clusters(np.array([[np.nan, 1.0]]), (0.4,))
