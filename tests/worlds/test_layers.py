"""GT7a: the parts of a judgement of edges, each against brute force or a closed form."""

import numpy as np
import pytest
import torch

from polysem.errors import MismatchError
from polysem.layers.coactivity import Coactivity, corpus_pass
from polysem.layers.ends import (
    Ends,
    final_norm,
    linked,
    logit_columns,
    norm_before,
    norm_gain,
    why_not,
    with_scale,
)
from polysem.layers.influence import natural_influence
from polysem.layers.weights import LIFT_EDGES, WEIGHT_EDGES, VirtualWeights, joint_histogram, virtual_weights
from polysem.layers.worth import effectiveness, readings, token_weights, token_worth, without
from polysem.types import Site
from polysem.worlds.edges import READ, WRITTEN, edges_world

RTOL = 1e-5
"""float32 sums of some hundred terms"""


@pytest.fixture(scope="module")
def world():
    return edges_world(n_rows=40)


@pytest.fixture(scope="module")
def parts(world):
    source, target = Ends.of("a", world.source), Ends.of("b", world.target)
    return source, target, corpus_pass(world.model, world.rows, [source, target], {})


def dense(seen, label):
    return seen.active[label].matrix(seen.counted).toarray()


def test_co_firing_and_attribution_are_those_of_dense_products(world, parts):
    source, target, seen = parts
    a, b = dense(seen, "a"), dense(seen, "b")
    both = seen.between("a", "b")
    np.testing.assert_array_equal(both.both(), (a > 0).T.astype(float) @ (b > 0))
    np.testing.assert_allclose(both.onto(), a.T @ (b > 0), rtol=RTOL)
    np.testing.assert_allclose(both.product(), a.T @ b, rtol=RTOL)
    weight = virtual_weights(source, target, None).of(slice(None))
    era = (a[:, :, None] * (b > 0)[:, None]).mean(0) * weight
    np.testing.assert_allclose(both.era(weight), era, rtol=RTOL)
    fired = np.where(b.any(0), b.sum(0), np.nan)
    np.testing.assert_allclose(both.twera(weight), a.T @ b / fired * weight, rtol=RTOL)
    np.testing.assert_array_equal(both.fires_i, (a > 0).sum(0))
    np.testing.assert_array_equal(both.fires_j, (b > 0).sum(0))
    halves = [seen.between("a", "b", half=half) for half in (0, 1)]
    np.testing.assert_allclose(sum(one.product() for one in halves), both.product(), rtol=RTOL)
    assert sum(one.n_tokens for one in halves) == both.n_tokens == 40 * 15
    i, j = [3, 0], np.array([1, 4, 2])  # some pairs are those of all
    for of_some, of_all in (
        (both.both(i, j), both.both()), (both.lift(i, j), both.lift()), (both.era(weight[i][:, j], i, j), both.era(weight)),
        (both.twera(weight[i][:, j], i, j), both.twera(weight)),
    ):  # fmt: skip
        np.testing.assert_allclose(of_some, of_all[np.ix_(i, j)], rtol=RTOL)
    assert set(np.unique(seen.document)) == set(range(40))


def test_the_weight_is_the_planted_one(world, parts):
    source, target, _ = parts
    weight = virtual_weights(source, target, None).of(slice(None))
    W_in = world.model.W_in.double().numpy()
    np.testing.assert_allclose(weight, world.source.W_dec.double().numpy() @ W_in.T, atol=1e-6)
    assert np.abs(weight[tuple(world.real.T)] - 1).max() < 0.5
    assert linked(source, target)
    assert (
        why_not(target, source) == "blocks.0.hook_resid_post is in no later layer than blocks.1.hook_mlp_out"
    )


def test_every_pair_that_fires_is_in_the_histogram_once(parts):
    source, target, seen = parts
    weights, both = virtual_weights(source, target, None), seen.between("a", "b")
    found = joint_histogram(weights, both)
    rms, counts = found.rms, found.counts
    live = np.ix_(both.fires_i > 0, both.fires_j > 0)
    size, lift, never = np.abs(weights.of(slice(None)))[live] / rms, both.lift()[live], both.both()[live] == 0
    assert rms == pytest.approx(np.sqrt((weights.of(slice(None))[live] ** 2).mean()))
    assert counts.sum() == size.size
    assert counts[:, 0].sum() == never.sum()
    for k in range(len(WEIGHT_EDGES) - 1):
        inside = (size >= WEIGHT_EDGES[k]) & (size < WEIGHT_EDGES[k + 1])
        assert counts[k].sum() == inside.sum()
        high = inside & ~never & (lift >= LIFT_EDGES[-2])
        assert counts[k, -1] == high.sum()
    assert found.top_never == never[size >= np.quantile(size, 0.99)].mean()


@pytest.mark.parametrize(("n_i", "n_j"), [(600, 300), (3, 1), (1, 1)])
def test_wide_dictionaries_are_counted_in_blocks_as_in_one(n_i, n_j):
    """More sources than a block holds, some of them silent, some weights equal: against dense matrices."""
    from scipy import sparse

    rng = np.random.default_rng(n_i)
    a, b = (np.where(rng.random((80, n)) < 0.1, rng.exponential(size=(80, n)), 0.0) for n in (n_i, n_j))
    a[0, :3], b[0, :3], a[:, 40::50] = 1.0, 1.0, 0.0
    seen = Coactivity(sparse.csr_matrix(a.T), sparse.csr_matrix(b))
    rows, columns = (torch.from_numpy(rng.integers(-3, 4, (n, 4))).float() for n in (n_i, n_j))
    rows[:3], columns[:3] = 1.0, 1.0
    found = joint_histogram(VirtualWeights(rows, columns, columns, "none"), seen)
    live = np.ix_(a.any(0), b.any(0))
    size, both = np.abs(rows.numpy() @ columns.numpy().T)[live], ((a > 0).T.astype(float) @ (b > 0))
    assert found.rms == pytest.approx(np.sqrt(np.square(size, dtype=np.float64).mean()))
    never = both[live] == 0
    assert found.counts.sum() == size.size
    assert found.counts[:, 0].sum() == never.sum()
    assert found.top_never == never[size >= np.quantile(size, 0.99)].mean()
    i, j = rng.integers(0, n_i, 50), rng.integers(0, n_j, 50)
    np.testing.assert_array_equal(seen.both_of(i, j), both[i, j])


@pytest.mark.parametrize("rule", ["relu", "jumprelu", "topk"])
def test_a_target_without_an_edge_follows_its_own_rule(rule: str):
    from dataclasses import replace

    from polysem.worlds.tables import plain_sae

    g = torch.Generator().manual_seed(0)
    rows = torch.randn(12, 6, generator=g).numpy()
    sae = replace(
        plain_sae(rows), activation=rule, k=3 if rule == "topk" else None,
        threshold=torch.rand(12, generator=g) if rule == "jumprelu" else None,
    )  # fmt: skip
    one, x = Ends.of("one", sae), torch.randn(30, 6, generator=g)
    change = torch.randn(30, 12, generator=g)
    found = without(one, one.pre(x), change, torch.arange(12))
    for j in range(12):  # brute force: the bias of one feature moves, row by row
        for n in range(30):
            moved = replace(sae, b_enc=sae.b_enc - change[n, j] * (torch.arange(12) == j))
            assert found[n, j] == pytest.approx(float(moved.encode(x[n : n + 1])[0, j]), abs=1e-5)
    torch.testing.assert_close(without(one, one.pre(x), 0 * change, torch.arange(12)), one.encoder.encode(x))


def test_effectiveness_is_the_second_order_kl_of_the_edge(world, parts):
    """At small steps: half the variance of the logits' change, against the KL itself."""
    source, target, seen = parts
    weights, columns = virtual_weights(source, target, None), logit_columns(world.model, None)
    every = np.arange(10)
    read = readings(world.model, seen, [(target, every)], columns, rng=np.random.default_rng(0))
    worth = effectiveness(seen, read, source, target, weights, sources=[0], targets=every)
    row, position, _ = seen.active["a"].of(0, seen.counted)
    tokens = torch.from_numpy(world.rows.tokens.astype(np.int64))
    logits = world.model.logits(tokens).double()[row, position]
    fires = world.target.encode(world.model.capture(tokens, [READ])[READ])[row, position, 0]
    x = world.model.capture(tokens, [READ])[READ][row, position]
    less = torch.relu(target.pre(x)[:, 0] - float(weights.of([0], np.array([0]))[0, 0]))
    df, p = (fires - less).double(), logits.softmax(-1)
    v = world.target.W_dec[0].double() @ columns.T.double()
    variance = (p * v**2).sum(-1) - (p * v).sum(-1) ** 2
    expected = 0.5 * (df**2 * variance).mean() * len(row) / seen.counted.sum()
    assert worth.nats[0, 0] == pytest.approx(float(expected), rel=1e-3)
    small = 1e-2
    kl = (p * (logits.log_softmax(-1) - (logits - small * df[:, None] * v).log_softmax(-1))).sum(-1)
    assert float((0.5 * (small * df) ** 2 * variance).sum()) == pytest.approx(float(kl.sum()), rel=0.05)


def test_help_of_an_edge_to_a_token_is_what_the_loss_loses_without_it(world, parts):
    _, target, seen = parts
    columns = logit_columns(world.model, None)
    tokens, weight = token_weights(target, 0, columns, 3)
    read = readings(world.model, seen, [], columns, tokens=tokens.tolist(), rng=np.random.default_rng(0))
    _, saved, documents = token_worth(seen, read, target, 0, tokens=tokens, weight=weight, p=read.p)
    row, position, value = seen.active["b"].of(0, seen.counted)
    inner = position < 15
    row, position, value = row[inner], position[inner], value[inner]
    ids = torch.from_numpy(world.rows.tokens.astype(np.int64))
    logits = world.model.logits(ids).double()[row, position]
    following = ids[row, position + 1]
    for k in range(3):
        lower = logits.clone()
        lower[:, tokens[k]] -= torch.from_numpy(value) * weight[k]
        loss = [-z.log_softmax(-1).gather(1, following[:, None])[:, 0] for z in (logits, lower)]
        order = np.lexsort((position, row))
        np.testing.assert_allclose(saved[:, k], (loss[1] - loss[0]).numpy()[order], atol=1e-4)
    assert len(documents) == len(saved)


def test_what_is_lost_is_what_the_contribution_made(world, parts):
    source, target, seen = parts
    found = natural_influence(
        world.model, seen, source, target, sources=[0, 1], targets=np.arange(10), half=1, n_events=5,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    assert set(found.document % 2) == {1}
    mean = found.mean(np.arange(len(found.source)), 2)
    assert mean[0].argmax() == mean[1].argmax() == 0  # both are inputs of neuron 0
    assert mean[:, 0].min() > 0.05
    assert np.isnan(found.mean(np.flatnonzero(found.source == 0), 2)[1]).all()


def test_the_gain_of_a_norm_is_found_from_outside():
    zoo = pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    assert zoo
    from polysem.models import load_model

    model = load_model("zoo:gpt2", device="cpu")
    site = Site(2, "mlp.hook_in")
    norm = norm_before(model, site)
    module = model.model.transformer.h[2].ln_2
    torch.testing.assert_close(norm.gain, module.weight.detach().float(), rtol=1e-4, atol=1e-5)
    ids = torch.tensor(
        [model.tokenize("The sea was calm that night, and nobody spoke of the storm.", prepend_bos=True)]
    )
    seen = model.capture(ids, [norm.stream, site])
    stream, behind = seen[norm.stream][0, 1:], seen[site][0, 1:]
    for k in range(len(stream)):  # with the scale of one token the fold is exact
        own = with_scale(norm, stream[k : k + 1])
        column = torch.randn(1, 192, generator=torch.Generator().manual_seed(k))
        told = stream[k].double() @ own.fold(column)[0].double() + module.bias.double() @ column[0].double()
        assert float(told) == pytest.approx(float(behind[k].double() @ column[0].double()), abs=1e-3)
    last = final_norm(model)
    torch.testing.assert_close(last.gain, norm_gain(model, "transformer.ln_f"))
    assert why_not(Ends.of("x", edges_world().target), Ends.of("y", edges_world().source))
    assert WRITTEN.layer == 1


def test_hops_are_counted_where_they_are_compiled_in():
    from polysem.layers.hops import hop_index
    from polysem.worlds.chain import WRITES, chain_world, compiled, per_layer

    world = chain_world(n=3, rows=200)
    for made, expected in (
        (compiled(world, ahead=False), 0.0), (compiled(world, ahead=True), 1.0), (per_layer(world), 0.0)
    ):  # fmt: skip
        for site, y in zip(WRITES, world.written, strict=True):  # all of them write what the model writes
            torch.testing.assert_close(made.written(world.seen)[site], y, rtol=0, atol=1e-6)
        found = hop_index(made, world.seen, site=WRITES[1], directions=world.axes)
        torch.testing.assert_close(found, torch.full((3,), expected, dtype=torch.float64), rtol=0, atol=1e-6)
    with pytest.raises(MismatchError, match="nothing writes"):
        hop_index(per_layer(world), world.seen, site=READ, directions=world.axes)
