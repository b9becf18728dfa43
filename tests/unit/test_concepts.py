"""Concepts in the contexts of a feature: how many there are, where they are planted."""

import numpy as np
import pytest

from polysem.glosses.concepts import Groupless, Senses, _grouped, _silhouette, concepts_of

D = 96


def contexts(rng, concepts, n=24, within=0.5):
    """Unit vectors about `concepts` directions, at a cosine of `within` to each other; their noise has a few strong
    directions and many weak ones, as embeddings do."""
    centre = rng.standard_normal((concepts, D))
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    spread = 1 / np.sqrt(1 + np.arange(D))
    noise = rng.standard_normal((n, D)) * spread / np.linalg.norm(spread)
    rows = np.sqrt(within) * centre[np.arange(n) % concepts] + np.sqrt(1 - within) * noise
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pool(seed):
    rng = np.random.default_rng(seed)
    return Groupless([contexts(rng, 1 + k % 3 if k % 3 else 1) for k in range(60)])


@pytest.fixture(scope="module")
def groupless():
    return pool(0)


def test_planted_concepts_are_counted_and_flat_features_are_not_called_polysemantic():
    """Over several pools: what passes for ungrouped differs more from pool to pool than from feature to feature."""
    right, flat = [], []
    for seed in range(4):
        groupless, rng = pool(seed), np.random.default_rng(100 + seed)
        right += [concepts_of(contexts(rng, k), groupless).k == k for k in (2, 3, 4, 5) for _ in range(5)]
        flat += [concepts_of(contexts(rng, 1), groupless).k > 1 for _ in range(75)]
    assert np.mean(right) >= 0.9
    assert np.mean(flat) <= 0.05


def test_the_score_rises_with_the_distance_of_concepts_and_is_0_for_one(groupless):
    rng = np.random.default_rng(2)
    scores = []
    for cosine in (0.8, 0.4, 0.0):
        a, b = np.linalg.qr(rng.standard_normal((D, 2)))[0].T
        b = cosine * a + np.sqrt(1 - cosine**2) * b
        rows = np.array([a, b])[np.arange(24) % 2] + 0.02 * rng.standard_normal((24, D))
        found = concepts_of(rows / np.linalg.norm(rows, axis=1, keepdims=True), groupless)
        assert found.k == 2
        scores.append(found.score)
        assert found.score == pytest.approx(1 - cosine, abs=0.05)
    assert scores == sorted(scores)
    assert concepts_of(contexts(rng, 1)[:3], groupless).score == 0.0  # too few to be grouped


def test_the_silhouette_is_that_of_scikit_learn():
    reference = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    from scipy.spatial.distance import pdist, squareform

    rng = np.random.default_rng(3)
    points = rng.standard_normal((20, 3))
    for labels in (np.arange(20) % 4, (np.arange(20) > 0).astype(int), np.minimum(np.arange(20) // 3, 3)):
        own = _silhouette(squareform(pdist(points)), labels)
        assert own == pytest.approx(reference.silhouette_score(points, labels), abs=1e-12)


def test_contexts_that_are_all_the_same_or_few_are_one_concept(groupless):
    same = np.tile(contexts(np.random.default_rng(4), 1, n=1), (12, 1))
    assert concepts_of(same, groupless).k == 1
    assert np.isnan(_grouped(same)[1])
    small = Groupless([same[:2]] * 3)  # too small a pool says nothing
    found = concepts_of(contexts(np.random.default_rng(5), 2, within=0.9), small)
    assert (found.k, np.isnan(found.limit)) == (1, True)


def test_equal_vectors_give_equal_concepts_and_the_largest_comes_first(groupless):
    rng = np.random.default_rng(6)
    rows = np.concatenate([contexts(rng, 1, n=6, within=0.8), contexts(rng, 1, n=18, within=0.8)])
    one, two = (concepts_of(rows, groupless) for _ in range(2))
    np.testing.assert_array_equal(one.centroids, two.centroids)
    assert np.bincount(one.labels).tolist() == [18, 6]


def test_features_are_as_near_as_their_nearest_concepts(monkeypatch):
    """The second sense of one feature is the only sense of another."""
    words = {f"{kind}{k}": kind for kind in ("sea", "tax", "dog") for k in range(12)}
    rng = np.random.default_rng(7)
    base = dict(zip(("sea", "tax", "dog"), np.linalg.qr(rng.standard_normal((D, 3)))[0].T, strict=True))
    vectors = {w: base[kind] + 0.03 * rng.standard_normal(D) for w, kind in words.items()}
    senses = Senses("minilm")
    monkeypatch.setattr(senses._texts, "vectors", lambda texts: vectors)
    both = (*(f"sea{k}" for k in range(8)), *(f"tax{k}" for k in range(4)))
    tax, dog = (tuple(f"{kind}{k}" for k in range(12)) for kind in ("tax", "dog"))
    fillers = [tuple(f"f{n}.{k}" for k in range(12)) for n in range(25)]
    vectors |= {t: v for f in fillers for t, v in zip(f, contexts(rng, 1, n=12), strict=True)}
    near, far = senses.compare([both, both, *fillers], [tax, dog, *fillers])[:2]
    assert near > 0.9
    assert abs(far) < 0.2
    between = senses.between(both, tax)
    assert between.shape == (2, 1)
    assert abs(between[0, 0]) < 0.2 < between[1, 0]
    assert np.isnan(senses.compare([()], [tax])[0])
