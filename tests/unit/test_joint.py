"""Several pushes at once against brute force, finite differences and closed forms."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from polysem.edits import Add
from polysem.engine.joint import JointOptions
from polysem.errors import ConfigError
from polysem.geometry.unit import unit_rows
from polysem.joint import additivity
from polysem.joint.additivity import energies, krawtchouk, low_sets, subsets, sum_preserving
from polysem.joint.bench import JointBench
from polysem.joint.layers import layers_seen
from polysem.joint.pairs import draw_pairs, hypotheses, lifts, pairs_seen, second_order, slopes
from polysem.joint.planner import (
    LinearPlan,
    best_single,
    corrected,
    equal_doses,
    few_by_penalty,
    fewest,
    least_kl,
    penalised,
    quadratic,
)
from polysem.models.hf import HFModel
from polysem.readouts import kl, log_odds
from polysem.side_effects.directions import Direction
from polysem.types import Site
from polysem.worlds.tables import plain_sae
from polysem.worlds.tiny import TINY_FAMILIES, tiny_model

RNG = np.random.default_rng(0)
IDS = RNG.integers(2, 48, 9).tolist()
EARLY, LATE = Site(0, "hook_resid_post"), Site(1, "hook_resid_post")
SETS = [[3, 7], [11], [40, 41], [5, 30]]


def double(family: str) -> HFModel:
    model = tiny_model(family, n_layers=3)
    return HFModel.from_parts(model.model.double(), model.tokenizer)


def some_directions(*sites: Site) -> list[Direction]:
    draws = np.random.default_rng(5).standard_normal((len(sites), 16))
    return [Direction(f"d{k}", "file", s, v) for k, (s, v) in enumerate(zip(sites, draws, strict=True))]


def plain(model, edits) -> torch.Tensor:
    """Last-position logits with (site, vector) added at all positions but the first."""
    mask = torch.ones(1, len(IDS), dtype=torch.bool)
    mask[:, 0] = False
    made = [Add(site, torch.as_tensor(vector)[None], mask) for site, vector in edits]
    return model.logits(torch.tensor([IDS]), made, last_only=True)[0, -1].double()


# the bench


def test_rows_of_a_bench_are_edits_at_several_sites_at_once():
    model, directions = double("llama"), some_directions(EARLY, LATE, EARLY)
    bench = JointBench(model, IDS, directions)
    rows = np.array([[0.3, 0.0, 0.0], [0.3, -0.2, 0.5], [0.0, 0.0, 0.0]])
    seen = bench.changes(rows)
    for k, row in enumerate(rows):
        for sign, z in ((1, seen.up), (-1, seen.down)):
            edits = [(d.site, sign * a * d.unit) for d, a in zip(directions, row, strict=True)]
            torch.testing.assert_close(z[k], plain(model, edits))
    lengths = bench.lengths(1e-3)
    assert bench.of([1]).lengths(1e-3) == pytest.approx(lengths[[1]])
    alone = bench.changes(np.diag(lengths))
    np.testing.assert_allclose(alone.kl, 1e-3, rtol=0.03)
    base = plain(model, [])
    np.testing.assert_allclose(
        alone.kl,
        [np.mean([float(kl(base, z)) for z in (u, d)]) for u, d in zip(alone.up, alone.down, strict=True)],
    )


# additivity


def walsh(values: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Energies by order, from every coefficient."""
    n = sets.shape[1]
    found = np.zeros(n + 1)
    for k in range(n + 1):
        for some in combinations(range(n), k):
            coefficient = ((2 * sets[:, list(some)] - 1).prod(1)[:, None] * values).mean(0)
            found[k] += coefficient @ coefficient
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 2**31))
def test_exact_energies_are_those_of_all_walsh_coefficients(n, d, seed):
    values = np.random.default_rng(seed).standard_normal((2**n, d))
    sets = subsets(n, 1, np.random.default_rng(0))
    expected = walsh(values, sets)
    found = energies(values, sets)
    assert found.total == pytest.approx(expected[1:].sum())
    np.testing.assert_allclose(found.above, [expected[2:].sum(), expected[3:].sum()], atol=1e-12)


def test_krawtchouk_counts_products_of_signs():
    n = 5
    sets = subsets(n, 1, RNG)
    signs = 2 * sets - 1
    for k in range(n + 1):
        told = sum(np.outer(p, p) for p in (signs[:, list(s)].prod(1) for s in combinations(range(n), k)))
        distance = np.abs(sets[:, None] - sets[None]).sum(-1)
        np.testing.assert_array_equal(krawtchouk(distance, n, k), told)


def test_sampled_energies_are_right_on_average_and_squares_are_not(monkeypatch):
    n, rng = 7, np.random.default_rng(2)
    every = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    terms = {s: rng.standard_normal(3) for k in (1, 2, 3) for s in combinations(range(n), k)}

    def change(sets):
        return sum(np.outer(sets[:, list(s)].prod(1), row) for s, row in terms.items())

    expected = walsh(change(every), every)

    def mean_of_draws() -> np.ndarray:
        rows = []
        for k in range(100):
            drawn = subsets(n, 48, np.random.default_rng(k))
            found = energies(change(drawn), drawn, change(low_sets(n)))
            rows.append([*found.above, found.total])
        return np.array(rows)

    rows = mean_of_draws()
    error = rows.std(0) / len(rows) ** 0.5
    truth = np.array([expected[2:].sum(), expected[3:].sum(), expected[1:].sum()])
    assert (np.abs(rows.mean(0) - truth) < 4 * error).all()
    monkeypatch.setattr(additivity, "_pair_weights", lambda m, exact: np.full((m, m), 1 / m**2))
    assert (np.abs(mean_of_draws().mean(0) - truth)[:2] > 8 * error[:2]).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 9), st.integers(0, 2**31))
def test_other_coordinates_have_the_same_span_and_the_same_sum(n, seed):
    basis = sum_preserving(n, np.random.default_rng(seed))
    np.testing.assert_allclose(basis @ basis.T, np.eye(n), atol=1e-12)
    np.testing.assert_allclose(basis.sum(0), 1, atol=1e-12)


# pairs


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_hessian_products_equal_finite_differences(family):
    model, directions = double(family), some_directions(EARLY, EARLY, LATE)
    bench = JointBench(model, IDS, directions)
    pairs, lengths = np.array([[0, 1], [0, 2], [2, 1]]), np.array([2.0, 3.0, 0.5])
    # the others compute norms in float32, which leaves rounding of 1e-7 in the logits
    step, loose = (1e-3, 1e-4) if family in ("gpt2", "gpt_neox") else (3e-2, 0.05)
    told = second_order(bench, lengths, pairs, SETS[:3])

    def y(edits, ids) -> float:
        return float(log_odds(plain(model, edits), ids))

    for k, (i, j) in enumerate(pairs.tolist()):
        a, b = directions[i], directions[j]
        corners = [
            s * t * y([(a.site, s * step * a.unit), (b.site, t * step * b.unit)], SETS[k])
            for s in (1, -1)
            for t in (1, -1)
        ]
        expected = sum(corners) / (4 * step**2) * lengths[i] * lengths[j]
        assert told[k] == pytest.approx(expected, rel=loose, abs=loose * abs(told).max())


def test_even_interactions_of_small_pushes_are_what_the_hessian_says():
    model, directions = double("gpt2"), some_directions(LATE, LATE, EARLY, LATE)
    bench = JointBench(model, IDS, directions)
    pairs = np.array([[0, 1], [2, 3]])
    seen = pairs_seen(bench, np.full(4, 0.02), pairs, SETS[:2])
    np.testing.assert_allclose(seen.y_even, seen.second, rtol=1e-2)
    assert (seen.odd < seen.even).all()
    for k, (i, j) in enumerate(pairs.tolist()):
        y = {}
        for name, some in (("ij", (i, j)), ("i", (i,)), ("j", (j,)), ("", ())):
            for sign in (1, -1):
                edits = [(directions[p].site, sign * 0.02 * directions[p].unit) for p in some]
                y[name, sign] = float(log_odds(plain(model, edits), SETS[k]))
        even = {name: (y[name, 1] + y[name, -1]) / 2 - y["", 1] for name in ("ij", "i", "j")}
        assert seen.y_even[k] == pytest.approx(even["ij"] - even["i"] - even["j"], abs=1e-12)


def test_pairs_share_no_feature_and_span_the_cosines():
    rows = unit_rows(
        RNG.standard_normal((12, 8))[RNG.integers(0, 12, 200)] + 0.5 * RNG.standard_normal((200, 8))
    )
    able = np.ones(200, dtype=bool)
    able[:20] = False
    pairs = draw_pairs(rows, able, 40, np.random.default_rng(0))
    assert len(pairs) == 40
    assert len(np.unique(pairs)) == 80
    assert pairs.min() >= 20
    cosine = np.abs((rows[pairs[:, 0]] * rows[pairs[:, 1]]).sum(1))
    assert np.histogram(cosine, [0, 0.05, 0.2, 0.35, 0.6, 0.95])[0].min() == 8


def test_lifts_count_tokens_on_which_both_fire():
    model = double("gpt2")
    sae = plain_sae(RNG.standard_normal((6, 16)), site=LATE)
    text = RNG.integers(2, 48, (5, 12))
    counted = np.arange(12) > 0
    found = lifts(model, [(sae, np.array([0, 1])), (sae, np.array([2, 3]))], text, counted)
    rows = model.capture(torch.tensor(text), [LATE])[LATE][:, 1:].flatten(0, 1)
    fires = (sae.encode(rows) > 0).numpy()
    for k, (i, j) in enumerate(((0, 2), (1, 3))):
        expected = fires[:, i].sum() * fires[:, j].sum() / len(fires)
        if expected >= 1:
            assert found[k] == pytest.approx((fires[:, i] & fires[:, j]).sum() / expected)
        else:
            assert np.isnan(found[k])


def test_hypotheses_are_told_from_planted_pairs():
    n = 40
    cosine, y = RNG.uniform(-1, 1, n), RNG.standard_normal(n)
    rows = [
        {
            "cosine": c,
            "lift": None,
            "odd": abs(c),
            "even": 1 - abs(c),
            "y_even": v,
            "forecast": v,
            "second_order": v,
        }
        for c, v in zip(cosine.tolist(), y.tolist(), strict=True)
    ]
    found = {name: value for name, value, *_ in hypotheses(rows)}
    assert found["J1 odd interaction and |cosine|"] == pytest.approx(1)
    assert found["J1 even interaction and |cosine|"] == pytest.approx(-1)
    assert found["J3 Hessian of other prompts"] == pytest.approx(1)
    assert abs(found["J3 cosine, its sign held out by pair"]) < 0.4
    assert not [name for name in found if name.startswith("J2")]
    noise = RNG.standard_normal(n)
    by_cosine = [row | {"lift": abs(row["cosine"]) + 0.2 * e} for row, e in zip(rows, noise, strict=True)]
    by_itself = [row | {"lift": -row["odd"] + e} for row, e in zip(rows, noise, strict=True)]
    for row, e in zip(by_cosine, RNG.standard_normal(n), strict=True):
        row["odd"] += 0.2 * e  # lift and interaction have nothing but the cosine in common
    for row, e in zip(by_itself, noise, strict=True):
        row["odd"] -= e
    found = {name: value for name, value, *_ in hypotheses(by_cosine)}
    assert found["J2 odd interaction and lift"] > 0.5
    assert abs(found["J2 odd interaction and lift, |cosine| given"]) < 0.4
    assert {n: v for n, v, *_ in hypotheses(by_itself)}["J2 odd interaction and lift, |cosine| given"] < -0.7


# layers


def test_a_held_coordinate_stays_and_a_push_survives_in_the_stream():
    model, directions = double("gpt2"), some_directions(EARLY, LATE)
    bench = JointBench(model, IDS, directions)
    pairs, lengths, unit = np.array([[0, 1]]), np.array([0.5, 0.4]), directions[1].unit
    seen = layers_seen(bench, lengths, pairs, [SETS[0]], unit[None])
    tokens = torch.tensor([IDS])
    clean = model.capture(tokens, [LATE])[LATE][0].numpy()
    moved = model.capture(tokens, [LATE], bench.edits(np.array([[0.5, 0.0]])))[LATE][0].numpy()
    change = (moved - clean)[1:].mean(0)
    np.testing.assert_allclose(seen.survives[:, 0], [change @ directions[0].unit / 0.5, change @ unit / 0.5])

    def y(first: float, second: float, held: bool) -> float:
        """The later coordinate put back by a push of its own at every position."""
        edits = bench.edits(np.array([[first, 0.0]])) if first else []
        at = model.capture(tokens, [LATE], edits)[LATE][0].numpy() if first else clean
        for p in range(1, len(IDS)):
            back = (clean[p] - at[p]) @ unit if held else 0.0
            mask = torch.arange(len(IDS))[None] == p
            edits = [*edits, Add(LATE, torch.tensor((back + second) * unit)[None], mask)]
        return float(log_odds(model.logits(tokens, edits, last_only=True)[0, -1], SETS[0]))

    def odd(first: float, second: float, held: bool = False) -> float:
        return (y(first, second, held) - y(-first, -second, held)) / 2

    np.testing.assert_allclose(seen.first[:, 0], [odd(0.5, 0), odd(0.5, 0, True)], atol=1e-10)
    live = odd(0.5, 0.4) - odd(0.5, 0) - odd(0, 0.4)
    frozen = odd(0.5, 0.4, True) - odd(0.5, 0, True) - odd(0, 0.4)
    np.testing.assert_allclose(seen.y[:, 0], [live, frozen], atol=1e-10)


# plans


def some_linear(n: int = 6, n_sets: int = 8, seed: int = 0) -> LinearPlan:
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((n + 3, n))
    return LinearPlan(rng.standard_normal((n_sets, n)), factor.T @ factor)


def test_the_plan_is_the_cheapest_that_reaches_what_is_wanted():
    linear, wanted = some_linear(), np.array([0.5, -0.3])
    a = least_kl(linear, [0, 1], wanted)
    np.testing.assert_allclose(linear.effects[:2] @ a, wanted)
    found = minimize(
        linear.cost, np.ones(6), constraints={"type": "eq", "fun": lambda x: linear.effects[:2] @ x - wanted},
        tol=1e-12,
    )  # fmt: skip
    np.testing.assert_allclose(a, found.x, atol=1e-4)
    kept = least_kl(linear, [0, 1], wanted, [2, 3, 4])
    np.testing.assert_allclose(linear.effects[:2] @ kept, wanted)
    assert np.linalg.norm(linear.effects[2:5] @ kept) < np.linalg.norm(linear.effects[2:5] @ a)
    assert linear.cost(kept) > linear.cost(a)
    for n in (2, 3, 4):
        few = fewest(linear, [0, 1], wanted, [], n)
        assert (few != 0).sum() == n
        np.testing.assert_allclose(linear.effects[:2] @ few, wanted)
        assert linear.cost(few) > linear.cost(a)
    with pytest.raises(ConfigError, match="cannot move 2 targets"):
        least_kl(LinearPlan(np.ones((2, 6)), linear.fisher), [0, 1], wanted)


@pytest.mark.parametrize("protected", [[], [2, 3, 4]])
def test_an_absolute_penalty_leaves_few_pushes_and_its_minimum(protected):
    """The conditions of a minimum, and no push that the penalty leaves could be spared at its size."""
    linear, wanted = some_linear(n=12, seed=2), np.array([0.5, -0.3])
    G, whole, scale = linear.effects[:2], quadratic(linear, protected), np.sqrt(np.diag(linear.fisher))
    np.testing.assert_allclose(
        penalised(linear, [0, 1], wanted, protected, 0.0), least_kl(linear, [0, 1], wanted, protected)
    )
    counts = []
    for penalty in (0.01, 0.1, 1.0, 1e5):
        a = penalised(linear, [0, 1], wanted, protected, penalty)
        np.testing.assert_allclose(G @ a, wanted, atol=1e-2 * np.abs(wanted).max())
        inside = a != 0
        # stationary: M a + penalty * scale * sign(a) is a combination of the rows of G, and no other slope is steeper
        slope = whole @ a + penalty * scale * np.sign(a)
        y = np.linalg.lstsq(G[:, inside].T, slope[inside], rcond=None)[0]
        np.testing.assert_allclose(
            slope[inside], G[:, inside].T @ y, atol=0.02 * penalty * scale.max() + 1e-6
        )
        assert (np.abs(whole @ a - G.T @ y) / scale)[~inside].max(initial=0) <= 1.02 * penalty + 1e-6
        counts.append(int(inside.sum()))
    assert counts[0] > counts[-1] == 2  # as many as there are targets
    some = few_by_penalty(linear, [0, 1], wanted, protected, 4)
    assert 2 <= len(some) <= 4
    made = least_kl(linear.take(some), [0, 1], wanted, protected)
    np.testing.assert_allclose(G[:, some] @ made, wanted)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_slopes_at_pushes_are_finite_differences_with_all_edits_in_place(family):
    model, directions = double(family), some_directions(EARLY, LATE, EARLY)
    bench, a, step = JointBench(model, IDS, directions), np.array([0.4, -0.7, 0.5]), 3e-3
    made = slopes(bench, a, SETS)
    moved = np.concatenate([a + step * np.eye(3), a - step * np.eye(3)])
    odds = np.array([[float(log_odds(z, ids)) for ids in SETS] for z in bench.logits(moved)])
    expected = (odds[:3] - odds[3:]).T / (2 * step)
    # families that compute norms in float32 leave rounding of 1e-7 in the logits
    np.testing.assert_allclose(made, expected, rtol=1e-3, atol=5e-4)
    assert np.abs(slopes(bench, 0 * a, SETS) - made).max() > 0.01


def test_what_plans_are_compared_with():
    linear, wanted = some_linear(seed=3), np.array([0.5])
    single = best_single(linear, [0], wanted)
    assert (single != 0).sum() == 1
    np.testing.assert_allclose(linear.effects[:1] @ single, wanted)
    costs = (wanted / linear.effects[0]) ** 2 * np.diag(linear.fisher) / 2
    assert linear.cost(single) == pytest.approx(costs.min())
    equal = equal_doses(linear, [0], wanted)
    np.testing.assert_allclose(linear.effects[:1] @ equal, wanted)
    assert np.ptp(equal**2 * np.diag(linear.fisher)) == pytest.approx(0, abs=1e-12)
    assert linear.cost(least_kl(linear, [0], wanted)) <= min(linear.cost(single), linear.cost(equal))


def test_what_bends_is_asked_for_again():
    linear, wanted = some_linear(), np.array([0.5, -0.3])
    start = least_kl(linear, [0, 1], wanted)

    def bent(a):
        y = linear.effects[:2] @ a
        return y - 0.2 * y**2

    found = corrected(start, wanted, bent, lambda gap, _: least_kl(linear, [0, 1], gap))
    assert np.abs(bent(start) - wanted).max() > 0.02
    assert np.abs(bent(found) - wanted).max() < 2e-3
    tried = []

    def never(a):
        tried.append(linear.cost(a))
        return 0 * wanted

    ask = lambda gap, _: linear.bounded(1e6 * least_kl(linear, [0, 1], gap))  # noqa: E731
    corrected(ask(wanted, wanted), wanted, never, ask)
    assert tried[0] == pytest.approx(2.0)
    assert len(tried) == 2  # what does not help is not asked for again


@pytest.mark.parametrize("words", ["happy", "=1", "happy=", "happy=much", "happy=0", "happy=inf"])
def test_a_wish_that_says_no_nats_is_refused(words):
    with pytest.raises(ConfigError, match="--towards"):
        JointOptions(towards=(words,)).check()


def test_protecting_without_a_wish_is_refused():
    with pytest.raises(ConfigError, match="nothing is wanted"):
        JointOptions(protect=("happy",)).check()
