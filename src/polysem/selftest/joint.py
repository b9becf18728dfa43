"""GT3, several pushes at once: planted products of pushes, pairs that interact on average not at all, and wishes whose cheapest
strengths an optimiser finds from the closed form."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float

from polysem.geometry.unit import unit_rows
from polysem.joint.additivity import EXACT, ORDERS, pool_energies, subsets
from polysem.joint.bench import JointBench
from polysem.joint.pairs import pairs_seen, tested
from polysem.joint.wishes import Wish, wish_rows
from polysem.readouts import log_odds
from polysem.seeds import rng_for
from polysem.selftest.lines import Measured, at_most, near, rate
from polysem.selftest.runner import RunSize
from polysem.selftest.side_effects import exact_responses
from polysem.side_effects.directions import Direction
from polysem.side_effects.scene import Scene
from polysem.worlds.joint import InteractingWorld, Term
from polysem.worlds.linear import SITE, LinearWorld
from polysem.worlds.tables import FeatureRow, feature_table, plain_sae, prompt_table

VOCAB, WIDTH, INNER, DOSE, SETS = 200, 40, 20, 0.05, 128
EFFECT = 0.1
"""nats of a wish"""


def pushes(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions of the first INNER coordinates, which embeddings leave empty, and what reads each of them alone."""
    rows = np.zeros((n, WIDTH))
    rows[:, :INNER] = unit_rows(rng.standard_normal((n, INNER)))
    return rows, np.linalg.pinv(rows).T


def interacting(n: int, *, pair: float, triple: float, seed: int) -> tuple[InteractingWorld, list[Direction]]:
    """Every pair of pushes has a product of size `pair`, every triple one of size `triple`."""
    rng = rng_for(seed, "joint", n)
    rows, readers = pushes(n, rng)
    W_E = np.zeros((VOCAB, WIDTH))
    W_E[:, INNER:] = unit_rows(rng.standard_normal((VOCAB, WIDTH - INNER)))
    terms = [
        Term(torch.tensor(readers[list(some)]), torch.tensor(size * rng.standard_normal(VOCAB)))
        for k, size in ((2, pair), (3, triple))
        for some in combinations(range(n), k)
    ]
    model = InteractingWorld(torch.tensor(W_E), torch.tensor(rng.standard_normal((VOCAB, WIDTH))), terms)
    return model, [Direction(f"push {k}", "file", SITE, row) for k, row in enumerate(rows)]


def planted_shares(
    model: InteractingWorld, directions: Sequence[Direction], lengths: Float[np.ndarray, " n"], part: str
) -> tuple[Float[np.ndarray, " orders"], float]:
    """(energy above each order, total) from the planted rows: with w = (1 + chi) / 2 a product of k pushes has weight 2^-k in
    each of the sets that it holds."""
    n = len(directions)
    rows = model.W_U.numpy() @ np.stack([d.unit for d in directions], axis=1) * lengths
    terms = [((s,), rows[:, s]) for s in range(n)]
    sets = [some for k in (2, 3) for some in combinations(range(n), k)]
    terms += [(s, t.row.numpy() * lengths[list(s)].prod()) for s, t in zip(sets, model.terms, strict=True)]
    if part != "whole":
        terms = [(s, row) for s, row in terms if len(s) % 2 == (part == "odd")]
    coefficients: dict[tuple[int, ...], np.ndarray] = {}
    for some, row in terms:
        centred = (row - row.mean()) / 2 ** len(some)
        for k in range(1, len(some) + 1):
            for inner in combinations(some, k):
                coefficients[inner] = coefficients.get(inner, 0.0) + centred
    by_order = np.zeros(4)
    for some, row in coefficients.items():
        by_order[len(some)] += float(row @ row)
    above = np.array([by_order[k + 1 :].sum() for k in range(1, ORDERS + 1)])
    return above, float(by_order.sum())


def planted(size: RunSize) -> Iterator[Measured]:
    """Interactions of planted order are told by their order, none where there is none, and plans cost what they must."""
    for n, pair, triple in ((5, 2.5, 0.0), (5, 2.5, 8.0), (9, 1.2, 2.0)):
        yield from _orders(size, n, pair, triple)
    yield from _no_interaction(size)
    yield from _plans(size)


def _orders(size: RunSize, n: int, pair: float, triple: float) -> Iterator[Measured]:
    model, directions = interacting(n, pair=pair, triple=triple, seed=size.seed)
    prompts = rng_for(size.seed, "joint", "prompts").integers(1, VOCAB, (size.of(24, 80), 4)).tolist()
    found = {part: [np.zeros(ORDERS), 0.0, np.zeros(ORDERS), 0.0] for part in ("whole", "odd")}
    for k, ids in enumerate(prompts):
        bench = JointBench(model, ids, directions)
        lengths = bench.lengths(DOSE)
        sets = subsets(n, SETS, rng_for(size.seed, "joint", "sets", k))
        seen = pool_energies(bench, lengths, range(n), sets, np.eye(n))
        for part, sums in found.items():
            above, total = planted_shares(model, directions, lengths, part)
            for place, value in enumerate((seen[part].above, seen[part].total, above, total)):
                sums[place] = sums[place] + value
    way = "all sets" if n <= EXACT else f"{SETS} sets"
    for part, (above, total, true_above, true_total) in found.items():
        for order in range(ORDERS):
            name = f"SAR_{order + 1}, {part}, pool of {n}, triples {triple:g}"
            note = f"{way}, {len(prompts)} prompts"
            yield near(name, above[order] / total, true_above[order] / true_total, 0.02, note=note)


def null_pairs(n: int, n_prompts: int, seed: int) -> Float[np.ndarray, " n"]:
    """p of n pairs whose even interaction is drawn for every prompt, about zero."""
    rng = rng_for(seed, "joint", "null")
    rows = np.zeros((2 * n, 3 * n + 1))
    rows[np.arange(2 * n), np.arange(2 * n)] = 1.0
    tokens = n_prompts + 1 + np.arange(n)
    vocab = int(tokens[-1]) + 2
    W_U, W_E = np.zeros((2, vocab, 3 * n + 1))
    W_E[: n_prompts + 1, 2 * n : 3 * n] = rng.standard_normal((n_prompts + 1, n))
    W_U[tokens, np.arange(n)] = W_U[tokens, n + np.arange(n)] = 1.0
    W_U[:, -1], W_E[:, -1] = rng.standard_normal(vocab), 1.0
    terms = []
    for k, token in enumerate(tokens.tolist()):
        readers = np.zeros((3, 3 * n + 1))
        readers[[0, 1, 2], [k, n + k, 2 * n + k]] = 1.0
        row = torch.zeros(vocab, dtype=torch.float64)
        row[token] = 1.0
        terms.append(Term(torch.tensor(readers), row))
    model = InteractingWorld(torch.tensor(W_E), torch.tensor(W_U), terms)
    directions = [Direction(f"push {k}", "file", SITE, row) for k, row in enumerate(rows)]
    pairs = np.stack([np.arange(n), n + np.arange(n)], axis=1)
    y = []
    for x in range(1, n_prompts + 1):
        bench = JointBench(model, [0, x], directions)
        y.append(pairs_seen(bench, np.full(2 * n, 0.5), pairs, [[t] for t in tokens.tolist()]).y_even)
    return np.array([tested(one)[3] for one in np.stack(y, axis=1)])


def _no_interaction(size: RunSize) -> Iterator[Measured]:
    n = size.of(5, 20)
    p = np.concatenate([null_pairs(50, 10, size.seed + k) for k in range(n)])
    band = (0.03, 0.07) if size.full else None
    yield rate(
        "pairs said to interact that do not", int((p < 0.05).sum()), len(p), nominal=0.05, band=band,
        note="10 prompts each",
    )  # fmt: skip


def wish_scene(seed: int) -> Scene:
    """A linear readout; all prompts end on one token, so that what is planned on some holds on the others."""
    rng = rng_for(seed, "joint", "wish world")
    n = 24
    directions = unit_rows(rng.standard_normal((n, WIDTH)))
    W_U = 1.5 * rng.standard_normal((VOCAB, WIDTH)) / np.sqrt(WIDTH)
    model = LinearWorld(torch.tensor(unit_rows(rng.standard_normal((VOCAB, WIDTH)))), torch.tensor(W_U))
    tokens = rng.permutation(np.arange(1, VOCAB))[: 3 * n].reshape(n, 3)
    table = feature_table(
        "planted",
        [FeatureRow(t.tolist(), t.tolist()) for t in tokens],
        site=SITE,
        W_dec=directions,
        embeddings=np.zeros((n, 4)),
    )
    prompts = prompt_table([[0, int(a), 7] for a in rng.permutation(np.arange(1, VOCAB))[:6]])
    return Scene.of(model, plain_sae(directions), table.features, prompts, label="planted")


def _plans(size: RunSize) -> Iterator[Measured]:
    reached, costs = [], []
    for k in range(size.of(3, 20)):
        scene = wish_scene(size.seed + k)
        wish = Wish([(str(t), tuple(scene.sets[t]), EFFECT) for t in (0, 1)])
        rows = wish_rows(
            {"planted": scene}, [wish], each=24, budget=None, responses=lambda s, _: exact_responses(s)
        )
        (plan,) = (row for row in rows["plans"] if row["arm"] == "planned")
        measured = [
            r["measured"] for r in rows["plan_effects"] if (r["arm"], r["role"]) == ("planned", "wanted")
        ]
        reached.append(max(abs(y / EFFECT - 1) for y in measured))
        costs.append(plan["kl"] / _cheapest(scene, [scene.sets[t] for t in (0, 1)]) - 1)
    note = f"{len(costs)} wishes; the worst"
    yield at_most("wanted effect missed by", max(reached), 0.02, unit="of it", note=note)
    yield at_most("KL above the cheapest by", max(costs), 0.05, unit="of it", note=note)


def _cheapest(scene: Scene, sets: Sequence[Sequence[int]]) -> float:
    """KL of the cheapest vector in the span of the directions with these effects, by an optimiser on the closed form."""
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    W_U = scene.model.W_U.double().numpy()
    base = W_U @ scene.model.W_E[scene.prompts[0][-1]].double().numpy()
    log_p = log_softmax(base)
    before = [float(log_odds(base, ids)) for ids in sets]
    basis = np.linalg.svd(scene.all_rows, full_matrices=False)[2]

    def cost(x: Float[np.ndarray, " d"]) -> float:
        return float(np.exp(log_p) @ (log_p - log_softmax(base + W_U @ (x @ basis))))

    def gap(x: Float[np.ndarray, " d"]) -> Float[np.ndarray, " t"]:
        z = base + W_U @ (x @ basis)
        return np.array([float(log_odds(z, ids)) - b - EFFECT for ids, b in zip(sets, before, strict=True)])

    found = minimize(  # pyright: ignore[reportCallIssue]
        cost,
        np.zeros(len(basis)),
        constraints={"type": "eq", "fun": gap},  # pyright: ignore[reportArgumentType]  (the stubs want a class)
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert found.success, found.message
    return float(found.fun)
