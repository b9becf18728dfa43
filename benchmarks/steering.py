"""Side effects and interactions from derivatives, against pushing one direction or pair after the other."""

from collections.abc import Callable, Iterator
from typing import Any, cast

from benchmarks.harness import Line, Size, benchmark, interleaved, require

# isort: split
import numpy as np
import torch

from benchmarks.sweep import hook
from benchmarks.worlds import DOSES, World, make_world
from polysem.atlas import Responder
from polysem.edits import Add
from polysem.joint.bench import JointBench
from polysem.joint.pairs import second_order
from polysem.joint.planner import candidates, joint_linear, least_kl
from polysem.linear.response import membership
from polysem.models.clean import clean_run
from polysem.models.generate import recomputed
from polysem.models.gradients import hessian_products
from polysem.readouts import log_odds
from polysem.side_effects.directions import Direction
from polysem.side_effects.linear import linear_effects

torch.set_num_threads(1)
PUSHES = "one measured intervention (HF hook, batch 1) each"


def _rows(n: int, width: int) -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((n, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _world(size: Size) -> tuple[World, list[list[int]]]:
    world = make_world("Pythia-70M", quick=size == "quick")
    draws = np.random.default_rng(1).integers(0, world.model.spec.d_vocab, (100, 10))
    return world, draws.tolist()


def _pushed(world: World) -> tuple[int, Callable[[], object]]:
    """A few pushes through a hook: how many, and what makes them."""
    few = DOSES[::8]
    return len(few), lambda: hook(world, few)


@benchmark
def all_features(size: Size) -> Iterator[Line]:
    world, sets = _world(size)
    n = 2048 if size == "quick" else 32_768
    rows, ids = _rows(n, world.model.spec.d_model), world.prompts[0].tolist()

    def scored():
        return linear_effects(rows, [Responder(world.model, world.site, sets)(ids)], dose=1e-4)

    told = scored()
    bench = JointBench(world.model, ids, [Direction(f"{k}", "file", world.site, rows[k]) for k in range(8)])
    seen = bench.changes(np.diag(bench.lengths(1e-4)))
    odd = [
        [(float(log_odds(u, s)) - float(log_odds(d, s))) / 2 for s in sets]
        for u, d in zip(seen.up, seen.down, strict=True)
    ]
    error = float(np.abs(told.effect[:8] - odd).max() / np.abs(odd).max())
    require(error < 0.05, f"gradients and pushes at 10^-4 nats differ by {error:.2g} of the largest effect")
    n_pushed, pushed = _pushed(world)
    best = interleaved({"ours": scored, "measured": pushed})
    yield Line(
        f"side effects of {n:,} features on 100 targets, with cost, reach and stability, one prompt",
        f"{PUSHES}, both ways at a known strength",
        best["ours"] / n,
        2 * best["measured"] / n_pushed,
        "cpu s a feature",
        f"8 features pushed at 10^-4 nats: effects within {error:.1e} of the largest",
    )


@benchmark
def hessian(size: Size) -> Iterator[Line]:
    world, sets = _world(size)
    n = 2048 if size == "quick" else 32_768
    rows, ids = _rows(n, world.model.spec.d_model), world.prompts[0].tolist()
    bench = JointBench(world.model, ids, [Direction(f"{k}", "file", world.site, rows[k]) for k in range(16)])
    inside = membership(sets[:1], world.model.spec.d_vocab)

    def odds(logits: torch.Tensor) -> torch.Tensor:
        z = logits.double()
        return z.masked_fill(~inside, -torch.inf).logsumexp(-1) - z.masked_fill(inside, -torch.inf).logsumexp(
            -1
        )

    def one_source() -> np.ndarray:
        made = hessian_products(
            world.model, clean_run(world.model, bench.tokens), world.site, [world.site], bench.edited, odds,
            torch.from_numpy(rows[:1]),
        )  # fmt: skip
        return rows @ made[world.site][0].double().numpy()

    pairs = np.array([[0, k] for k in range(1, 16)])
    told, direct = one_source()[1:16], second_order(bench, np.ones(16), pairs, sets[:1] * 15)
    error = float(np.abs(told - direct).max() / np.abs(direct).max())
    require(error < 1e-3, f"one source at a time and pairs in a batch differ by {error:.2g}")
    n_pushed, pushed = _pushed(world)
    best = interleaved({"ours": one_source, "measured": pushed})
    yield Line(
        f"interactions of one feature with {n:,} others on one target, one prompt",
        f"{PUSHES}, both ways, of every pair",
        best["ours"] / n,
        2 * best["measured"] / n_pushed,
        "cpu s a pair",
        f"15 pairs by themselves: within {error:.1e} of the largest; equal to finite differences in the tests",
        None,
        1000,
    )


@benchmark
def plan(size: Size) -> Iterator[Line]:
    world, sets = _world(size)
    n = 2048 if size == "quick" else 32_768
    rows, ids = _rows(n, world.model.spec.d_model), world.prompts[0].tolist()
    response = Responder(world.model, world.site, sets)(ids)

    def planned() -> np.ndarray:
        effects = response.gradients[:2] @ rows.T
        costs = np.einsum("nd,nd->n", rows @ response.fisher, rows)
        chosen = candidates(effects, costs, 16)
        some = [Direction(f"{k}", "file", world.site, rows[k]) for k in chosen.tolist()]
        linear = joint_linear(some, {world.site: [response]})
        a = least_kl(linear, [0, 1], np.array([0.5, 0.5]), range(2, 12))
        return linear.effects[:2] @ a

    error = float(np.abs(planned() - 0.5).max())
    require(error < 1e-6, f"a plan misses what is wanted by {error:.2g} nats to first order")
    n_pushed, pushed = _pushed(world)
    best = interleaved({"ours": planned, "measured": pushed})
    yield Line(
        f"a plan for 2 targets and 10 protected sets among {n:,} features, gradients at hand",
        "one measured intervention of every feature",
        best["ours"],
        n * best["measured"] / n_pushed,
        "cpu s",
        f"wanted effects to first order within {error:.0e} nats; cheapest of all in the selftest",
    )


@benchmark
def generation(size: Size) -> Iterator[Line]:
    """Tokens drawn under an edit at every position, against `generate` of transformers without one."""
    world = make_world("Pythia-70M", quick=size == "quick")
    model, rows, n = world.model, 8, 8 if size == "quick" else 24
    tokens = world.prompts[0].expand(rows, -1)
    vector = torch.from_numpy(_rows(rows, model.spec.d_model)).float()
    edit = Add(world.site, vector, torch.ones_like(tokens, dtype=torch.bool))

    def ours() -> torch.Tensor:
        return model.generate(tokens, [edit], n=n, temperature=0.0).tokens

    def again() -> torch.Tensor:
        def last(whole, now):
            return model.logits(whole, now, last_only=True)

        return recomputed(last, tokens, [edit], n=n, n_ctx=model.spec.n_ctx, temperature=0.0).tokens

    def theirs() -> torch.Tensor:
        return cast(Any, model.model).generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=n,
            min_new_tokens=n,
            do_sample=False,
            pad_token_id=0,
        )

    differ = int((ours() != again()).sum())
    require(differ == 0, f"kept keys and values change {differ} of {rows * n} tokens")
    plain = model.generate(tokens, n=n, temperature=0.0).tokens
    require(
        torch.equal(plain, theirs()[:, tokens.shape[1] :]),
        "without an edit the texts are not those of transformers",
    )
    best = interleaved({"ours": ours, "theirs": theirs, "again": again})
    said = f"the same {rows * n} tokens as by reading the text again; without an edit those of transformers"
    what = f"generation, Pythia-70M shape, {rows} rows of {n} tokens, an edit at every position"
    for other, name in (
        ("theirs", "transformers generate, no edit"),
        ("again", "the text read again for every token"),
    ):
        yield Line(what, name, best["ours"] / rows / n, best[other] / rows / n, "cpu s a token", said)
