"""Linear response, decomposition, compensation and metrics in worlds where the answer has a closed form."""

import numpy as np
import pytest
import torch

from polysem.edits import Add
from polysem.errors import NumericsError
from polysem.linear.compensation import compensation, crosstalk_floor
from polysem.linear.decompose import (
    Decomposition,
    check_identities,
    clean_tokens,
    decompose,
    mean_direction,
    split_push,
)
from polysem.linear.metrics import pair_metrics
from polysem.linear.response import (
    log_odds_of,
    membership,
    odd_change,
    odds_cotangent,
    odds_gradients,
    run_rows,
)
from polysem.readouts import log_odds
from polysem.saes.base import SAE, Provenance
from polysem.seeds import rng_for
from polysem.types import Site
from polysem.worlds.linear import SITE, LinearWorld
from polysem.worlds.tiny import TINY_FAMILIES, tiny_model
from support.linearity import linear_validity

IDENTITY = 1e-5
REPLICATES = 300
"""of the coverage of lambda"""


def tokens_of(model, n=8, seed=0):
    return torch.as_tensor(rng_for(seed, "tokens").integers(0, model.spec.d_vocab, n))


def all_but_first(n):
    mask = torch.ones(n, dtype=torch.bool)
    mask[0] = False
    return mask


def directions(n, d, *path):
    rows = torch.as_tensor(rng_for(0, "directions", *path).standard_normal((n, d)))
    return rows / rows.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_gradient_is_the_derivative_of_the_log_odds(family):
    model = tiny_model(family, n_layers=3)
    tokens, site = tokens_of(model), Site(1, "hook_mlp_out")
    sets = [[1, 5, 9], [2]]
    inside = membership(sets, model.spec.d_vocab)
    pushed = all_but_first(len(tokens))
    g = odds_gradients(model, tokens, site=site, pushed=pushed, inside=inside)
    d = directions(4, 16, family)
    step = 1e-2
    plus, minus = odd_change(model, tokens, site=site, pushed=pushed, pushes=step * d)
    slope = (log_odds_of(plus[:, None], inside) - log_odds_of(minus[:, None], inside)) / (2 * step)
    torch.testing.assert_close(d @ g.T, slope, rtol=2e-3, atol=2e-4)
    for k, ids in enumerate(sets):  # the readout is the one that trials use
        assert float(log_odds_of(plus[0], inside[k])) == pytest.approx(
            float(log_odds(plus[0], ids)), abs=1e-9
        )


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_rows_and_gradients_are_those_of_the_plain_pass(family):
    """Through the sweep, equal rows once, gradients from the site on: as the model itself gives them, to rounding."""
    model = tiny_model(family, n_layers=3)
    tokens, site = tokens_of(model), Site(1, "hook_resid_post")
    pushed, inside = all_but_first(len(tokens)), membership([[1, 5, 9], [2]], model.spec.d_vocab)
    pushes = directions(3, 16, family).float()[[0, 1, 0, 2, 1]]
    edit = Add(site, pushes, pushed.expand(5, -1))
    plain = model.logits(tokens.expand(5, -1), [edit], last_only=True)[:, -1].double()
    seen = run_rows(model, tokens, [edit])
    torch.testing.assert_close(seen, plain, atol=1e-5, rtol=1e-5)
    assert torch.equal(seen[[0, 1]], seen[[2, 4]])
    weights = odds_cotangent(model.logits(tokens[None], last_only=True)[0, -1], inside).float()
    expected = model.vjp(tokens.expand(2, -1), site, weights)[:, pushed].sum(1).double()
    g = odds_gradients(model, tokens, site=site, pushed=pushed, inside=inside)
    torch.testing.assert_close(g, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_small_doses_are_linear_and_the_path_average_is_exact(family):
    model = tiny_model(family, n_layers=3)
    inside = membership([[1, 5, 9], [2, 3]], model.spec.d_vocab)
    for site in (Site(0, "hook_resid_post"), Site(1, "hook_attn_out"), Site(2, "hook_mlp_out")):
        rows = linear_validity(
            model,
            [tokens_of(model, seed=k) for k in range(2)],
            site=site,
            directions=directions(6, 16, family, str(site)),
            inside=inside,
            doses=(1e-4, 0.1),
            path_points=24,
        )
        small, large = rows
        assert (
            small.r2 >= 0.99
        )  # random weights bend earlier than trained ones: 0.01 nats is measured on those
        assert small.r2_path >= 0.999
        assert large.r2_path >= 0.999
        assert large.r2 <= large.r2_path + 1e-6
        assert large.n == 24


# ---- decomposition


def test_parts_of_a_push_add_up_and_are_orthogonal():
    W = torch.as_tensor(rng_for(0, "W").standard_normal((60, 12)) + 0.8)
    basis = mean_direction(W, components=2)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64), atol=1e-10, rtol=0)
    unit = W / W.norm(dim=-1, keepdim=True)
    push, target = 2.5 * unit[:9], unit[20:29]
    parts = split_push(push, target, basis)
    torch.testing.assert_close(parts.shared + parts.common + parts.own, push)
    for a, b in ((parts.shared, parts.common), (parts.shared, parts.own), (parts.common, parts.own)):
        assert float((a * b).sum(-1).abs().max()) < 1e-10
    # Nothing of the shared mean direction is left in the own part but what lies along the target.
    outside = basis - (basis @ target[0])[:, None] * target[0]
    assert float((outside @ parts.own[0]).abs().max()) < 1e-10


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_identities_hold_in_every_family(family):
    model = tiny_model(family, n_layers=3)
    W = directions(20, 16, family)
    basis = mean_direction(W)
    parts = split_push(0.3 * W[:4], W[4:8], basis)
    inside = membership([[k, k + 9] for k in range(4)], model.spec.d_vocab)
    for site in (Site(0, "hook_attn_out"), Site(1, "hook_resid_post")):
        found = decompose(
            model, tokens_of(model), site=site, pushed=all_but_first(8), parts=parts, inside=inside
        )
        assert float((found.shared + found.common + found.own - found.total).abs().max()) < IDENTITY
        assert float((found.direct + found.indirect - found.total).abs().max()) < IDENTITY
        assert bool(found.mediated.isnan().all())
        assert float(found.direct.abs().max()) > 1e-4


def test_the_last_stream_is_all_direct_and_earlier_positions_all_indirect():
    model = tiny_model("llama", n_layers=3)
    W = directions(8, 16)
    parts = split_push(0.5 * W[:4], W[4:], mean_direction(W))
    inside = membership([[k] for k in range(4)], model.spec.d_vocab)
    end = decompose(
        model,
        tokens_of(model),
        site=Site(2, "hook_resid_post"),
        pushed=all_but_first(8),
        parts=parts,
        inside=inside,
    )
    torch.testing.assert_close(end.direct, end.total)
    earlier = torch.zeros(8, dtype=torch.bool)
    earlier[2:5] = True
    before = decompose(
        model, tokens_of(model), site=Site(0, "hook_resid_post"), pushed=earlier, parts=parts, inside=inside
    )
    assert float(before.direct.abs().max()) == 0.0
    assert float(before.indirect.abs().max()) > 1e-4


def test_a_readout_of_the_target_direction_alone_is_all_shared():
    # Logits of a set's tokens read d_j, those of others nothing: only the shared part can matter.
    d, target = 12, directions(1, 12)[0]
    W_U = torch.zeros(20, d, dtype=torch.float64)
    W_U[:3] = 4 * target
    world = LinearWorld(
        torch.randn(20, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), W_U
    )
    W = directions(30, d, "others")
    parts = split_push(0.2 * W[:5], target.expand(5, -1), mean_direction(W))
    inside = membership([[0, 1, 2]] * 5, 20)
    clean = inside.clone()
    clean[:, 1:] = False
    found = decompose(
        world,
        tokens_of(world),
        site=SITE,
        pushed=torch.ones(8, dtype=torch.bool),
        parts=parts,
        inside=inside,
        clean=clean,
    )
    torch.testing.assert_close(found.shared, found.total, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.total, 4 * (parts.shared @ target), atol=1e-6, rtol=1e-5)
    # One of three equal tokens: against the other two, which rise as much, a part of the effect is gone.
    assert bool((found.leakage > 0.1).all())


def test_clean_tokens_are_those_that_resemble_none_of_the_sources():
    W_E = torch.eye(8, dtype=torch.float64)
    W_E[1] = 3 * (0.51 * W_E[6] + (1 - 0.51**2) ** 0.5 * W_E[1])  # lengths do not count
    W_E[2] = 0.49 * W_E[6] + (1 - 0.49**2) ** 0.5 * W_E[2]
    W_E[3] = -W_E[6]
    W_E[4] = 0.0
    inside = membership([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 4], [1]], 8)
    clean = clean_tokens(inside, [[6, 0], [7, 99], [4], []], W_E)
    assert [row.nonzero().flatten().tolist() for row in clean] == [[2, 3, 4], [0, 1, 2, 3, 4], [0], [1]]
    strict = clean_tokens(inside, [[6], [], [], []], W_E, resemblance=0.45)
    assert strict[0].nonzero().flatten().tolist() == [0, 3, 4]
    assert bool(inside[0, :5].all())  # the argument is left alone


def test_parts_that_do_not_add_up_are_refused():
    one = torch.ones(3, dtype=torch.float64)
    wrong = Decomposition(one, one, one, one, one, one, 0 * one, one, 0 * one, one)
    with pytest.raises(NumericsError, match="shared"):
        check_identities(wrong)


# ---- compensation


def planted(lam, *, d=64, n=32, extra=0, seed=0, noise=0.0, spread=0.0):
    """E_ij = (1 - lambda) G_ij a_j - B_i off the diagonal, a_j - B_j on it, with a common mode in the cosines;
    `spread`: SD of lambda from target to target."""
    rng = rng_for(seed, "planted")
    W = rng.standard_normal((n + extra, d)) + 0.5 * np.abs(rng.standard_normal((n + extra, 1)))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    G = W[:n] @ W.T
    a = np.exp(0.5 * rng.standard_normal(n))
    B = 0.1 * rng.standard_normal(n + extra)
    lam = lam + spread * rng.standard_normal((n, 1))
    E = (1 - lam) * G * a[:, None] - B
    own = np.arange(n)
    E[own, own] = a - B[:n]
    return E + noise * rng.standard_normal(E.shape), G, own


@pytest.mark.parametrize("lam", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_lambda_is_recovered(lam):
    for seed in range(5):
        found = compensation(
            *planted(lam, seed=seed, extra=20, noise=0.01), level=0.95, rng=rng_for(seed, "b")
        )
        assert found.estimate == pytest.approx(lam, abs=0.03)
        assert found.hi - found.lo < 0.2


@pytest.mark.parametrize(("n", "extra", "spread"), [(24, 60, 0.3), (24, 0, 0.0)])
def test_interval_of_lambda_covers(n, extra, spread):
    """Targets that differ in lambda (SD 0.3) and, log-normally, in potency: what a real model is like; and only noise."""
    covered = []
    for seed in range(REPLICATES):
        E, G, own = planted(0.4, seed=seed, noise=0.05, n=n, extra=extra, d=48, spread=spread)
        found = compensation(E, G, own, level=0.95, rng=rng_for(seed, "c"))
        covered.append(found.lo <= 0.4 <= found.hi)
    assert np.mean(covered) >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / REPLICATES)


def test_compensation_says_why_there_is_none():
    E, G, own = planted(0.5)
    few = compensation(E[:2], G[:2], own[:2], level=0.95, rng=rng_for(0, "x"))
    assert "only 2 targets" in few.reason
    assert np.isnan(few.estimate)
    flat = compensation(E, np.zeros_like(G), own, level=0.95, rng=rng_for(0, "x"))
    assert "cosines do not vary" in flat.reason


def test_floor_of_crosstalk():
    assert crosstalk_floor(32768, 768) == pytest.approx(0.036, abs=1e-3)
    assert crosstalk_floor(512, 768) == 0.0
    # No readouts do better: the pseudo-inverse's mean square off the diagonal is above the floor.
    W = rng_for(0, "floor").standard_normal((40, 10))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    M = W @ np.linalg.pinv(W)
    M /= np.diag(M)[:, None]
    off = M[~np.eye(40, dtype=bool)]
    assert np.sqrt((off**2).mean()) >= crosstalk_floor(40, 10) - 1e-12


# ---- metrics


def test_metrics_are_their_formulas():
    weights = torch.as_tensor(rng_for(0, "sae").standard_normal((2, 40, 12))).float()
    sae = SAE(
        W_enc=weights[0].T,
        W_dec=weights[1],
        b_enc=torch.zeros(40),
        b_dec=torch.zeros(12),
        activation="relu",
        reads=SITE,
        writes=SITE,
        model_id=None,
        model_revision=None,
        provenance=Provenance("memory", "memory", "test"),
    )
    pairs = np.array([[0, 1], [2, 3], [3, 2]])
    U = torch.as_tensor(rng_for(0, "U").standard_normal((50, sae.d_in)))
    X = rng_for(0, "X").standard_normal((400, sae.d_in))
    found = pair_metrics(sae, pairs, W_U=U, activations=X)
    W = sae.W_dec.double().numpy()
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    a, b = U.numpy() @ unit[0], U.numpy() @ unit[1]
    assert found["causal"][0] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)
    assert found["decoder_cosine"][1] == pytest.approx(unit[2] @ unit[3], abs=1e-6)
    assert found["decoder_cosine"][1] == pytest.approx(found["decoder_cosine"][2])
    assert found["enc_dec"][1] == pytest.approx(sae.W_enc.double().numpy()[:, 3] @ unit[2], abs=1e-6)
    S = np.cov(X, rowvar=False)
    S += 1e-2 * np.diag(S).mean() * np.eye(len(S))
    P = np.linalg.inv(S)
    q = unit[0] @ P @ unit[1] / np.sqrt((unit[0] @ P @ unit[0]) * (unit[1] @ P @ unit[1]))
    assert found["whitened"][0] == pytest.approx(q, abs=1e-6)
