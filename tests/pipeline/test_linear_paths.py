"""Worlds in which a push acts only directly, or only through a later block, as the stages of a study see them."""

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from polysem.geometry.unit import unit_rows
from polysem.linear.decompose import decompose, split_push
from polysem.linear.response import membership
from polysem.report.why import decomposition_panels
from polysem.response import DECOMPOSED_PROMPTS, respond
from polysem.selftest.studies import study_of
from polysem.types import Site
from polysem.worlds.compiled import MIDDLE, compiled_world
from polysem.worlds.linear import LinearWorld
from polysem.worlds.model import WorldModel
from polysem.worlds.tables import FeatureRow, WorldTables, feature_table, plain_sae, random_prompts

N, D, TOKENS = 16, 12, 3
SITE = Site(0, "hook_resid_post")
END = Site(1, "hook_resid_post")


class PathWorld(WorldModel):
    """Block 1 copies the first half of the stream into the second. The unembedding reads the first half (a push acts
    directly, and only so) or the second (only through the block)."""

    def __init__(self, directions: np.ndarray, *, direct: bool, rng: np.random.Generator):
        d_vocab = 1 + N * TOKENS
        W_U = torch.zeros(d_vocab, 2 * D, dtype=torch.float64)
        half = slice(0, D) if direct else slice(D, 2 * D)
        W_U[1:, half] = torch.as_tensor(directions).repeat_interleave(TOKENS, 0)
        W_E = torch.as_tensor(unit_rows(rng.standard_normal((d_vocab, 2 * D))))
        super().__init__(W_E, W_U, name="paths", widths={SITE: 2 * D, END: 2 * D})

    def run(self, tokens, tap):
        h = tap(SITE, self.W_E[tokens])
        copied = torch.cat([torch.zeros_like(h[..., :D]), h[..., :D]], dim=-1)
        return tap(END, h + copied) @ self.W_U.T


def parts(*, direct):
    rng = np.random.default_rng(0)
    directions = unit_rows(rng.standard_normal((N, D)))
    model = PathWorld(directions, direct=direct, rng=rng)
    W_dec = np.concatenate([directions, np.zeros((N, D))], axis=1)
    sae = plain_sae(W_dec, site=SITE)
    ids = [list(range(1 + k * TOKENS, 1 + (k + 1) * TOKENS)) for k in range(N)]
    rows = [FeatureRow(tokens, tokens, f"feature {k}") for k, tokens in enumerate(ids)]
    table = feature_table("world", rows, site=SITE, W_dec=W_dec, embeddings=np.eye(N))
    return WorldTables(model, {"world": sae}, table, random_prompts(4, model.spec.d_vocab, rng))


@pytest.mark.parametrize("direct", [True, False])
def test_a_study_says_by_which_path(direct):
    world = parts(direct=direct)
    made = study_of(
        world, seed=0, n_targets=8, sources_per_bin=2, doses=(0.1,), n_random=1, token_sets=("in", "out")
    )
    tables = respond(
        made.plan.plan, made.plan.prompts, made.trials, world.features, world.model, world.saes, seed=0
    )
    found = tables["decomposition"]
    total, straight, around = (found[n].to_numpy() for n in ("total", "direct", "indirect"))
    assert set(found["token_set"].to_pylist()) == {"in", "out"}
    assert len(total) >= 16
    assert np.abs(total).min() > 1e-4
    np.testing.assert_allclose(straight + around, total, atol=1e-5)
    np.testing.assert_allclose(straight / total, 1.0 if direct else 0.0, atol=0.02)
    response = tables["response"].filter(pc.equal(tables["response"]["relation"], "pair"))
    share = response["linear_direct"].to_numpy() / response["linear"].to_numpy()
    np.testing.assert_allclose(share, 1.0 if direct else 0.0, atol=1e-6)
    figures = list(decomposition_panels(found))
    assert len(figures) == 2
    for figure in figures:
        assert (
            "direct 100 % · through later blocks 0 %" if direct else "direct 0 % · through later blocks 100 %"
        ) in str(figure.drawing)


@pytest.mark.parametrize("neighbours", [True, False])
def test_leakage_is_what_neighbours_of_the_sources_tokens_carry(neighbours):
    """The first token of every set reads a direction at random, the others nothing. Where the first tokens lie at
    cosine 0.8 of each other, though no two sets share a token, the effect is leakage; else it is clean."""
    rng = np.random.default_rng(3)
    directions = unit_rows(rng.standard_normal((N, D)))
    first = 1 + TOKENS * np.arange(N)
    axes = np.eye(1 + N * TOKENS + 1)
    W_E = axes[:-1].copy()
    if neighbours:
        W_E[first] = np.sqrt(0.8) * axes[-1] + np.sqrt(0.2) * W_E[first]
    W_U = np.zeros((len(W_E), W_E.shape[1]))
    W_U[first, :D] = unit_rows(rng.standard_normal((N, D)))
    model = LinearWorld(torch.as_tensor(W_E), torch.as_tensor(W_U))
    W_dec = np.pad(directions, ((0, 0), (0, W_E.shape[1] - D)))
    ids = [list(range(f, f + TOKENS)) for f in first.tolist()]
    rows = [FeatureRow(tokens, tokens, f"feature {k}") for k, tokens in enumerate(ids)]
    table = feature_table("world", rows, site=SITE, W_dec=W_dec, embeddings=np.eye(N))
    prompts = random_prompts(4, len(W_E), rng)
    made = study_of(
        WorldTables(model, {"world": plain_sae(W_dec, site=SITE)}, table, prompts),
        **{"seed": 0, "response": True, "n_targets": 8, "sources_per_bin": 2, "doses": (0.1,), "n_random": 1},
    )
    lengths = {r["trial_id"]: r["dose_absolute"] for r in made.trials.to_pylist() if r["status"] == "ok"}
    plan = [r for r in made.plan.plan.to_pylist() if r["relation"] == "pair" and r["split"] == "confirm"]
    used = sorted({r["prompt_id"] for r in plan})[:DECOMPOSED_PROMPTS]
    base = {r["prompt_id"]: W_U @ W_E[r["token_ids"][-1]] for r in made.plan.prompts.to_pylist()}

    def odd(logits, shift, tokens):
        sides = []
        for sign in (1.0, -1.0):
            weight = np.exp(logits + sign * shift)
            sides.append(np.log(weight[tokens].sum() / (weight.sum() - weight[tokens].sum())))
        return (sides[0] - sides[1]) / 2

    found = made.response["decomposition"].to_pylist()
    assert len(found) >= 8
    for row in found:
        clean = ids[row["target"]][1 if neighbours else 0 :]
        truth = []
        for prompt in used:
            same = [r for r in plan if r["prompt_id"] == prompt and r["token_set"] == row["token_set"]]
            length = next(
                abs(lengths[r["trial_id"]])
                for r in same
                if (r["target"], r["source"]) == (row["target"], row["source"])
            )
            truth.append(odd(base[prompt], length * W_U[:, :D] @ directions[row["source"]], clean))
        assert row["clean"] == pytest.approx(np.mean(truth), abs=1e-6)
        assert neighbours or row["clean"] == row["total"]
    clean, total = (np.array([row[name] for row in found]) for name in ("clean", "total"))
    assert np.abs(total).mean() > 1e-3
    assert not neighbours or np.abs(clean).sum() < 0.4 * np.abs(total).sum()


@pytest.mark.parametrize("kind", ["direct", "indirect"])
def test_a_compiled_circuit_shows_its_paths(kind):
    """Successors are read straight from the current token's axis, bigrams only through a neuron of block 1."""
    gains = {"direct": (0.0, 2.0), "indirect": (6.0, 0.0)}[kind]
    world = compiled_world(bigram_gain=gains[0], successor_gain=gains[1], seed=1)
    truth, seen = world.truth, 0
    for b, a, t in truth.bigrams.tolist()[:6]:
        target = t if kind == "indirect" else int(truth.successors[a - 1])
        push = torch.as_tensor(truth.R[:, [truth.current(a)]].T)
        axis = torch.as_tensor(truth.R[:, [truth.current(1 + a % truth.n_tokens)]].T)
        found = decompose(
            world.model,
            torch.tensor([0, b, 0]),
            site=MIDDLE,
            pushed=torch.tensor([False, False, True]),
            parts=split_push(push, axis, torch.eye(push.shape[1], dtype=torch.float64)[:1]),
            inside=membership([[target]], world.model.spec.d_vocab),
        )
        assert float(found.total.abs().min()) > 0.1
        assert float(found.direct / found.total) == pytest.approx(float(kind == "direct"), abs=0.02)
        seen += 1
    assert seen == 6
