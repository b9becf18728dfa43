"""Jacobian and Fisher interference, and the same pairs in two SAEs, against closed forms and brute force."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from polysem.linear.footprint import PromptFootprint, footprint_metrics, logit_footprints
from polysem.linear.matching import match_features
from polysem.linear.metrics import pair_metrics
from polysem.linear.replicated import Matched, SeedSide, replicated_pairs
from polysem.linear.response import odd_change
from polysem.readouts import kl, log_odds
from polysem.response import REPLICATED_KL, steered_odds
from polysem.saes.base import SAE, Provenance
from polysem.seeds import rng_for
from polysem.stats.explain import held_out_r2
from polysem.types import Site
from polysem.worlds.linear import SITE, LinearWorld
from polysem.worlds.tiny import tiny_model

PAIRS = np.array([[0, 1], [2, 3], [3, 2], [0, 4]])


def unit(*path, n=5, d=16):
    rows = torch.as_tensor(rng_for(0, "unit", *path).standard_normal((n, d)))
    return rows / rows.norm(dim=-1, keepdim=True)


def prompt_of(model, n=8, seed=0):
    tokens = torch.as_tensor(rng_for(seed, "tokens").integers(0, model.spec.d_vocab, n))
    pushed = torch.ones(n, dtype=torch.bool)
    pushed[0] = False
    return PromptFootprint(tokens, pushed)


def sae_of(W_dec, W_enc=None, site=SITE):
    d_sae, d = W_dec.shape
    return SAE(
        W_enc=(W_dec if W_enc is None else W_enc).T.float(),
        W_dec=W_dec.float(),
        b_enc=torch.zeros(d_sae),
        b_dec=torch.zeros(d),
        activation="relu",
        reads=site,
        writes=site,
        model_id=None,
        model_revision=None,
        provenance=Provenance("memory", "memory", "test"),
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_footprints_are_the_jacobian_token_by_token(family):
    model = tiny_model(family, n_layers=2)
    prompt, site, d = prompt_of(model), Site(0, "hook_mlp_out"), unit(family)
    found = logit_footprints(model, prompt, site=site, directions=d).double()
    V = model.spec.d_vocab
    many = prompt.tokens.expand(V, -1)
    rows = model.vjp(many, site, torch.eye(V)).double()[:, prompt.pushed].sum(1)
    torch.testing.assert_close(found, d @ rows.T, rtol=5e-3, atol=5e-3 * float((d @ rows.T).abs().max()))
    # The Fisher metric by its definition, and as the curvature of KL.
    p = model.logits(prompt.tokens[None], last_only=True)[0, -1].double().softmax(-1)
    J = d @ rows.T
    F = J @ (torch.diag(p) - torch.outer(p, p)) @ J.T
    both = footprint_metrics(model, [prompt], site=site, directions=d, pairs=PAIRS)
    own = F.diagonal()
    for k, (i, j) in enumerate(PAIRS):
        assert both["fisher"][k] == pytest.approx(float(F[i, j] / (own[i] * own[j]).sqrt()), abs=5e-3)
        correlation = np.corrcoef(J[i].numpy(), J[j].numpy())[0, 1]
        assert both["jacobian"][k] == pytest.approx(correlation, abs=5e-3)
    a = 0.05
    after = odd_change(model, prompt.tokens, site=site, pushed=prompt.pushed, pushes=a * d)
    base = model.logits(prompt.tokens[None], last_only=True)[0, -1]
    mean = (kl(base, after[0]) + kl(base, after[1])) / 2
    np.testing.assert_allclose(mean, a**2 * own.numpy() / 2, rtol=0.05)


def test_where_logits_are_linear_the_jacobian_is_the_causal_product():
    rng = rng_for(0, "linear world")
    W_E, W_U = (torch.as_tensor(rng.standard_normal((30, 12))) for _ in range(2))
    world, W = LinearWorld(W_E, W_U), unit("rows", n=20, d=12)
    found = footprint_metrics(world, [prompt_of(world)], site=SITE, directions=W, pairs=PAIRS)
    causal = pair_metrics(sae_of(W), PAIRS, W_U=W_U, activations=None)["causal"]
    np.testing.assert_allclose(found["jacobian"], causal, atol=1e-5)
    assert np.abs(found["fisher"] - causal).max() > 1e-3  # tokens that are probable count for more


def test_coactivation_is_the_correlation_of_what_encoders_read():
    rng = rng_for(0, "coactivation")
    X = rng.standard_normal((400, 12)) @ rng.standard_normal((12, 12))
    W, E = (torch.as_tensor(rng.standard_normal((20, 12))) for _ in range(2))
    found = pair_metrics(sae_of(W, E), PAIRS, W_U=None, activations=X)["coactivation"]
    for k, (i, j) in enumerate(PAIRS):
        seen = X @ E[[i, j]].float().double().numpy().T
        assert found[k] == pytest.approx(np.corrcoef(seen.T)[0, 1], abs=1e-6)


def test_matching_is_the_hungarian_one_among_candidates():
    from scipy.optimize import linear_sum_assignment

    rng = rng_for(0, "hungarian")
    base = rng.standard_normal((6, 8))
    W = np.repeat(base, 5, axis=0) + 0.25 * rng.standard_normal((30, 8))  # groups in which members compete
    V = W[rng.permutation(30)] + 0.15 * rng.standard_normal((30, 8))
    found = match_features(W, V, threshold=0.6)
    a, b = (w / np.linalg.norm(w, axis=1, keepdims=True) for w in (W, V))
    c = a @ b.T
    best = np.where(c >= 0.6, c, 0.0)
    i, j = linear_sum_assignment(best, maximize=True)
    assert found.cosine.sum() == pytest.approx(best[i, j].sum())
    assert len(set(found.first)) == len(set(found.second)) == len(found.first)
    assert found.cosine.min() >= 0.6
    assert found.mean_max_cosine == pytest.approx(c.max(1).mean())
    assert match_features(np.eye(4), -np.eye(4)).share == 0.0


def test_the_same_pairs_in_two_saes_of_a_site():
    rng = rng_for(0, "two SAEs")
    W_E, W_U = (torch.as_tensor(rng.standard_normal((30, 12))) for _ in range(2))
    world = LinearWorld(W_E, W_U)
    W = torch.as_tensor(rng.standard_normal((9, 12)))
    order = rng.permutation(9)
    sides = [
        SeedSide(label, sae_of(rows), {k: [int(3 * i), int(3 * i + 1)] for k, i in enumerate(who)})
        for label, rows, who in (("a", W, np.arange(9)), ("b", 2 * W[order], order))
    ]
    at = {"token_set": "in", "steered": partial(steered_odds, world)}
    rows = replicated_pairs(*sides, world, [prompt_of(world)], **at, rng=rng_for(0, "draw"))
    assert len(rows) == 9 * 8
    assert all(order[r["other_target"]] == r["target"] for r in rows)
    np.testing.assert_allclose([r["linear"] for r in rows], [r["other_linear"] for r in rows], rtol=1e-6)
    # W_U makes the gradient known: the mean over the set's tokens minus the mean over the others, by p.
    z = (W_E[prompt_of(world).tokens[-1]] @ W_U.T).numpy()
    r = rows[5]
    inside = np.isin(np.arange(30), sides[0].tokens[r["target"]])
    p = np.exp(z - z.max())
    weight = np.where(inside, p / p[inside].sum(), -p / p[~inside].sum())
    d = (W[r["source"]] / W[r["source"]].norm()).numpy()
    assert r["linear"] == pytest.approx(weight @ W_U.numpy() @ d, rel=1e-4)
    # the world adds what is pushed at the last position to the stream that W_U reads: each sign is brought to 0.1 nats
    np.testing.assert_allclose([r["steered"] for r in rows], [r["other_steered"] for r in rows], rtol=1e-6)
    odds = []
    for sign in (1, -1):

        def spent(size, sign=sign):
            q = z + sign * size * (W_U.numpy() @ d)
            return float(kl(torch.as_tensor(z)[None], torch.as_tensor(q)[None]))

        size = brentq(lambda size: spent(size) - REPLICATED_KL, 1e-4, 50.0)
        odds.append(
            float(
                log_odds(torch.as_tensor(z + sign * size * (W_U.numpy() @ d)), sides[0].tokens[r["target"]])
            )
        )
    assert r["steered"] == pytest.approx((odds[0] - odds[1]) / 2, rel=0.02)
    assert {r["n_steered"] for r in rows} == {1}
    lonely = SeedSide("c", sae_of(-W), sides[0].tokens)
    assert replicated_pairs(sides[0], lonely, world, [prompt_of(world)], **at, rng=rng) == []


def test_features_without_a_stable_match_are_drawn_too_and_told_apart():
    rng = rng_for(0, "two SAEs, loosely")
    W_E, W_U = (torch.as_tensor(rng.standard_normal((30, 12))) for _ in range(2))
    world = LinearWorld(W_E, W_U)
    W = torch.as_tensor(rng.standard_normal((9, 12)))
    V = W.clone()
    V[5:] = 0.4 * W[5:] / W[5:].norm(dim=1, keepdim=True) + torch.as_tensor(
        0.4 * rng.standard_normal((4, 12))
    )
    tokens = {k: [3 * k, 3 * k + 1] for k in range(9)}
    sides = SeedSide("a", sae_of(W), tokens), SeedSide("b", sae_of(V), tokens)
    cosine = torch.nn.functional.cosine_similarity(W, V).numpy()
    assert (cosine[5:] < 0.7).all()
    matched = Matched(np.arange(9), np.arange(9), cosine, np.arange(9) < 5)
    at = {"token_set": "in", "steered": partial(steered_odds, world), "matched": matched}
    rows = replicated_pairs(*sides, world, [prompt_of(world)], **at, rng=rng_for(0, "draw"))
    drawn = {r["target"] for r in rows}
    assert drawn == {*range(5), *(k for k in range(5, 9) if cosine[k] > 0)}
    assert len(drawn) > 6
    assert len(rows) == len(drawn) * (len(drawn) - 1)
    for r in rows:
        assert (r["stable_target"], r["stable_source"]) == (r["target"] < 5, r["source"] < 5)
        assert r["shared"] == (r["target"] < 5 and r["source"] < 5)
        if r["source"] < 5:  # a match of cosine 1 leaves nothing to deal out
            assert r["dealt_linear"] == pytest.approx(r["other_linear"], rel=1e-5)
            assert r["dealt_steered"] == pytest.approx(r["other_steered"], rel=1e-5)
    assert any(r["dealt_linear"] != pytest.approx(r["other_linear"], rel=0.05) for r in rows)


RACERS = ("decoder_cosine", "enc_dec", "whitened", "causal", "coactivation", "fisher")
WORLDS = 60


def winner(seed: int) -> tuple[str, str]:
    """(the metric that makes the effects, the metric that predicts unseen targets best) in one world whose directions,
    encoder, unembedding and text are unrelated, so that the measures differ."""
    rng = rng_for(seed, "race of metrics")
    W, E = (torch.as_tensor(rng.standard_normal((60, 12))) for _ in range(2))
    X = rng.standard_normal((200, 12)) @ rng.standard_normal((12, 12))
    W_E, W_U = (
        torch.as_tensor(rng.standard_normal((40, 12)) @ rng.standard_normal((12, 12)) / 4) for _ in range(2)
    )
    pairs = np.array([(12 + int(i), j) for j in range(12) for i in rng.permutation(48)[:9]])
    found = pair_metrics(sae_of(W, E), pairs, W_U=W_U, activations=X)
    world = LinearWorld(W_E, W_U)
    unit_W = W / W.norm(dim=-1, keepdim=True)
    found |= footprint_metrics(
        world, [prompt_of(world, seed=seed)], site=SITE, directions=unit_W, pairs=pairs
    )
    true = RACERS[seed % len(RACERS)]
    kappa = np.exp(0.4 * rng.standard_normal(12))[pairs[:, 1]]
    y = kappa * found[true] / found[true].std() + 0.5 * rng.standard_normal(len(pairs))
    r2 = {}
    for name in RACERS:
        X = np.column_stack([np.ones(len(y)), found[name]])
        r2[name] = held_out_r2(y, X, pairs[:, 1], level=0.95, rng=rng, draws=10)["r2"]
    return true, max(r2, key=lambda name: r2[name])


def test_the_metric_that_makes_the_effects_wins_the_race():
    won = [true == best for true, best in map(winner, range(WORLDS))]
    assert np.mean(won) >= 0.95
