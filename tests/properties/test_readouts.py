"""Laws of the readouts that hold whatever the distribution."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from polysem.readouts import kl, log_odds, target_similarity, weighted_cosine, weighted_overlap

V, D = 12, 4
logits = arrays(np.float64, V, elements=st.floats(-30, 30))
# Rows of the embedding that are not zero: a zero target row is an error, tested elsewhere.
embeddings = arrays(np.float64, (V, D), elements=st.floats(-5, 5)).map(lambda E: E + 10 * np.eye(V, D) + 0.01)
targets = st.lists(st.integers(0, V - 1), min_size=1, max_size=2 * V).filter(lambda T: len(set(T)) < V)
ROUNDING = 1e-9


@settings(deadline=None)
@given(logits, embeddings, targets, st.randoms(use_true_random=False))
def test_order_and_repetition_of_targets_change_nothing(z, E, T, random):
    p, shuffled = softmax(z), T + T[:2]
    random.shuffle(shuffled)
    assert weighted_cosine(p, T, E) == weighted_cosine(p, shuffled, E)
    assert weighted_overlap(p, T) == weighted_overlap(p, shuffled)
    assert log_odds(z, T) == log_odds(z, shuffled)


@settings(deadline=None)
@given(logits, embeddings, targets, st.permutations(range(V)))
def test_renaming_the_vocabulary_changes_nothing(z, E, T, names):
    names = np.array(names)
    old_to_new = np.argsort(names)
    renamed = [int(old_to_new[t]) for t in T]
    p = softmax(z)
    assert math.isclose(
        weighted_cosine(p, T, E), weighted_cosine(p[names], renamed, E[names]), abs_tol=ROUNDING
    )
    assert math.isclose(log_odds(z, T), log_odds(z[names], renamed), abs_tol=ROUNDING)


@settings(deadline=None)
@given(logits, embeddings, targets)
def test_bounds(z, E, T):
    p = softmax(z)
    s = target_similarity(T, E)
    assert -1 <= s.min() <= s.max() <= 1
    assert np.allclose(s[T], 1.0, atol=ROUNDING)
    assert -1 - ROUNDING <= weighted_cosine(p, T, E) <= 1 + ROUNDING
    assert 0 <= weighted_overlap(p, T) <= 1 + ROUNDING
    assert np.isfinite(log_odds(z, T))


@settings(deadline=None)
@given(logits, logits, st.floats(-100, 100))
def test_divergence_is_positive_and_blind_to_a_common_shift(z, y, shift):
    assert kl(z, y) >= 0
    assert math.isclose(kl(z, y), kl(z + shift, y), rel_tol=ROUNDING, abs_tol=ROUNDING)
    assert kl(z, z) == 0


@settings(deadline=None)
@given(logits, embeddings, targets, st.floats(0.1, 10))
def test_scale_of_embeddings_and_shift_of_logits_change_nothing(z, E, T, scale):
    p = softmax(z)
    scales = scale * (1 + np.arange(V))[:, None]
    assert math.isclose(weighted_cosine(p, T, E), weighted_cosine(p, T, E * scales), abs_tol=ROUNDING)
    assert math.isclose(log_odds(z, T), log_odds(z + scale, T), abs_tol=ROUNDING)
    assert math.isclose(log_odds(z, T), -log_odds(z, sorted(set(range(V)) - set(T))), abs_tol=ROUNDING)
