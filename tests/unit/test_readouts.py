"""Readouts against plain loops, torch, scipy, and the identities of the first-order theory."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from scipy.stats import entropy

from polysem import readouts
from polysem.errors import ConfigError, MismatchError, NumericsError
from polysem.readouts import (
    TokenSets,
    kl,
    log_odds,
    read_sets,
    target_similarity,
    weighted_cosine,
    weighted_overlap,
)

EXACT = 1e-12  # float64 throughout: a few ulp over sums of 50 terms
FINITE_DIFFERENCE = 1e-6  # steps of 1e-4, errors of second order removed by symmetry


@pytest.fixture
def world():
    rng = np.random.default_rng(0)
    return {
        "E": rng.standard_normal((50, 7)),
        "z": rng.standard_normal((3, 50)) * 2,
        "dz": rng.standard_normal(50),
        "T": [3, 41, 17],
    }


def loop_similarity(E, T):
    out = []
    for e in E:
        cosines = [np.dot(e, E[t]) / math.sqrt(np.dot(e, e) * np.dot(E[t], E[t])) for t in T]
        out.append(max(cosines))
    return np.array(out)


def loop_log_odds(z, T):
    return logsumexp(z[list(T)]) - logsumexp([v for t, v in enumerate(z) if t not in set(T)])


def test_weighted_cosine_is_the_double_loop(world):
    E, T = world["E"], world["T"]
    p = softmax(world["z"], axis=1)
    expected = [sum(p[b, t] * loop_similarity(E, T)[t] for t in range(50)) for b in range(3)]
    assert np.allclose(weighted_cosine(p, T, E), expected, atol=EXACT, rtol=0)
    assert float(weighted_cosine(p[0], T, E)) == pytest.approx(expected[0], abs=EXACT)


def test_weighted_overlap_counts_each_target_once(world):
    p = softmax(world["z"], axis=1)
    expected = p[:, 3] + p[:, 41] + p[:, 17]
    assert np.allclose(weighted_overlap(p, [3, 41, 17, 3, 3, 41]), expected, atol=EXACT, rtol=0)


def test_toy_numbers_by_hand():
    E = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [1.0, 1.0]])
    p = np.array([0.5, 0.25, 0.125, 0.125])
    # s = (1, 0, -1, 1/sqrt 2) for T = {0}
    assert float(weighted_cosine(p, [0], E)) == pytest.approx(0.5 - 0.125 + 0.125 / math.sqrt(2), abs=EXACT)
    assert float(weighted_overlap(p, [0])) == 0.5
    assert float(log_odds(np.log(p), [0])) == pytest.approx(0.0, abs=EXACT)
    assert float(log_odds(np.log(p), [1])) == pytest.approx(math.log(1 / 3), abs=EXACT)
    # KL((1/2, 1/2) || (1/4, 3/4)) = log(2) / 2 + log(2/3) / 2
    value = kl(np.log([0.5, 0.5]), np.log([0.25, 0.75]))
    assert float(value) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=EXACT)


def test_torch_in_torch_out_and_numpy_in_numpy_out(world):
    p, E = softmax(world["z"], axis=1), world["E"]
    as_torch = weighted_cosine(torch.tensor(p), torch.tensor(world["T"]), torch.tensor(E))
    assert isinstance(as_torch, torch.Tensor)
    assert isinstance(weighted_cosine(p, np.array(world["T"]), E), np.ndarray)
    assert np.array_equal(as_torch.numpy(), weighted_cosine(p, world["T"], E))
    assert isinstance(kl(torch.tensor(world["z"]), torch.tensor(world["z"])), torch.Tensor)


def test_read_only_arrays_are_taken(world):
    p = softmax(world["z"], axis=1)
    p.flags.writeable = False
    assert weighted_overlap(p[:, ::-1], [0]) == pytest.approx(p[:, 49], abs=EXACT)


def test_log_odds_is_stable_far_out():
    z = np.array([2000.0, 0.0, -2000.0])
    assert float(log_odds(z, [0])) == pytest.approx(2000.0, abs=1e-9)
    assert float(log_odds(z, [2])) == pytest.approx(-4000.0, abs=1e-9)
    assert float(log_odds(z, [1, 2])) == pytest.approx(-2000.0, abs=1e-9)


def test_log_odds_is_the_logit_of_the_mass(world):
    w = weighted_overlap(softmax(world["z"], axis=1), world["T"])
    assert np.allclose(log_odds(world["z"], world["T"]), np.log(w / (1 - w)), atol=EXACT, rtol=0)


def test_kl_agrees_with_scipy_and_keeps_small_values(world):
    z, dz = world["z"], world["dz"]
    expected = entropy(softmax(z, axis=1), softmax(z + dz, axis=1), axis=1)
    assert np.allclose(kl(z, z + dz), expected, atol=EXACT, rtol=0)
    # At 1e-9 the divergence is 0.5 eps^2 Var_p(dz), twenty digits below the logits; a naive sum would be
    # noise.
    p = softmax(z[0])
    variance = (p * dz**2).sum() - (p * dz).sum() ** 2
    assert float(kl(z[0], z[0] + 1e-6 * dz)) == pytest.approx(0.5e-12 * variance, rel=1e-3)
    assert float(kl(z[0], z[0])) == 0.0
    far = float(kl(np.array([0.0, -3000.0]), np.array([-3000.0, 0.0])))
    assert far == pytest.approx(3000.0, rel=EXACT)


def test_kl_broadcasts_a_baseline_over_rows(world):
    z = world["z"]
    assert np.allclose(kl(z[:1], z), [float(kl(z[0], row)) for row in z], atol=EXACT, rtol=0)


def test_change_of_cosine_is_a_covariance(world):
    """dc = Cov_p(s, dz) to first order."""
    E, T, z, dz = world["E"], world["T"], world["z"][0], world["dz"]
    p, s, eps = softmax(z), loop_similarity(E, T), 1e-4
    covariance = (p * s * dz).sum() - (p * s).sum() * (p * dz).sum()
    up, down = (float(weighted_cosine(softmax(z + k * eps * dz), T, E)) for k in (1, -1))
    assert (up - down) / (2 * eps) == pytest.approx(covariance, abs=FINITE_DIFFERENCE)


def test_change_of_log_odds_is_exactly_a_difference_of_cumulants(world):
    """Dl = K_{p|T}(Dz) - K_{p|notT}(Dz) with K_q(x) = log E_q e^x, at any size of Dz."""
    z, T = world["z"][0], world["T"]
    for scale in (1e-3, 1.0, 30.0):
        dz = scale * world["dz"]
        p, inside = softmax(z), np.isin(np.arange(50), T)
        k_in = np.log((p[inside] * np.exp(dz[inside])).sum() / p[inside].sum())
        k_out = np.log((p[~inside] * np.exp(dz[~inside])).sum() / p[~inside].sum())
        seen = float(log_odds(z + dz, T)) - float(log_odds(z, T))
        assert seen == pytest.approx(k_in - k_out, abs=1e-10)


def test_equal_shift_of_all_targets_moves_log_odds_by_it(world):
    z, T = world["z"], world["T"]
    shifted = z.copy()
    shifted[:, T] += 1.75
    assert np.allclose(log_odds(shifted, T) - log_odds(z, T), 1.75, atol=EXACT, rtol=0)


def test_shift_bounded_by_kl(world):
    """Cauchy-Schwarz: |dw| <= sqrt(2 KL w (1 - w)) as the edit goes to zero."""
    z, T = world["z"][0], world["T"]
    w, edited = float(weighted_overlap(softmax(z), T)), z + 1e-4 * world["dz"]
    moved = float(weighted_overlap(softmax(edited), T)) - w
    assert abs(moved) <= math.sqrt(2 * float(kl(z, edited)) * w * (1 - w)) * 1.001


def test_many_sets_at_once_are_the_single_readouts(world, monkeypatch):
    monkeypatch.setattr(readouts, "_BLOCK", 8)  # several blocks of the embedding
    E, z = torch.tensor(world["E"]), torch.tensor(world["z"])
    sets = [[3, 41, 17], [0], list(range(49))]
    seen = read_sets(z, TokenSets.of(sets, E))
    p = z.softmax(-1)
    for k, T in enumerate(sets):
        assert torch.allclose(seen.cosine[:, k], weighted_cosine(p, T, E), atol=EXACT, rtol=0)
        assert torch.allclose(seen.mass[:, k], weighted_overlap(p, T), atol=EXACT, rtol=0)
        assert torch.allclose(seen.logodds[:, k], log_odds(z, T), atol=1e-11, rtol=0)
        assert np.allclose(
            target_similarity(T, world["E"]), loop_similarity(world["E"], T), atol=EXACT, rtol=0
        )
    taken = TokenSets.of(sets, E).take([2, 0])
    assert torch.equal(read_sets(z, taken).mass, seen.mass[:, [2, 0]])


def test_many_sets_survive_underflow():
    E = torch.eye(3, dtype=torch.float64)
    z = torch.tensor([[2000.0, 0.0, -2000.0]], dtype=torch.float64)
    seen = read_sets(z, TokenSets.of([[0], [2], [1, 2]], E)).logodds
    assert torch.allclose(seen, torch.tensor([[2000.0, -4000.0, -2000.0]], dtype=torch.float64), atol=1e-9)


def test_a_padding_row_of_the_embedding_counts_as_zero(world):
    E = world["E"].copy()
    E[5] = 0.0
    assert target_similarity([3], E)[5] == 0.0
    with pytest.raises(NumericsError, match="target token 5 has a zero embedding"):
        target_similarity([3, 5], E)


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ([], ConfigError, "no token"),
        ([50], MismatchError, "token id 50 .* 50 tokens"),
        ([-1, 3], MismatchError, "token id -1"),
    ],
)
def test_bad_target_sets(world, target, error, words):
    p = softmax(world["z"], axis=1)
    for call in (
        lambda: weighted_cosine(p, target, world["E"]),
        lambda: weighted_overlap(p, target),
        lambda: log_odds(world["z"], target),
        lambda: TokenSets.of([target], world["E"]),
    ):
        with pytest.raises(error, match=words):
            call()


def test_the_whole_vocabulary_has_no_log_odds(world):
    with pytest.raises(ConfigError, match="whole vocabulary of 50"):
        log_odds(world["z"], range(50))
    with pytest.raises(ConfigError, match="whole vocabulary of 50"):
        TokenSets.of([range(50)], world["E"])


def test_bad_probabilities(world):
    p = softmax(world["z"], axis=1)
    with pytest.raises(ConfigError, match=r"sum to 1 only within 0\.5"):
        weighted_overlap(p / 2, [1])
    with pytest.raises(ConfigError, match="negative value"):
        weighted_cosine(world["z"], [1], world["E"])
    broken = p.copy()
    broken[0, 0] = np.nan
    with pytest.raises(NumericsError, match="1 non-finite values of 150"):
        weighted_overlap(broken, [1])
    with pytest.raises(MismatchError, match="probs is over 50 tokens but embedding over 40"):
        weighted_cosine(p, [1], world["E"][:40])


def test_bad_logits(world):
    broken = world["z"].copy()
    broken[1, 2] = np.inf
    for call in (lambda: log_odds(broken, [1]), lambda: kl(broken, broken)):
        with pytest.raises(NumericsError, match="non-finite"):
            call()
    with pytest.raises(MismatchError, match=r"over 50 tokens .* over 40"):
        kl(world["z"], world["z"][:, :40])


def test_float32_probabilities_over_a_large_vocabulary_pass():
    z = torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0)) * 5
    assert 0 < float(weighted_overlap(z.softmax(-1), [1, 2])[0]) < 1
