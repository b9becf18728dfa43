"""GT8, beyond the next token: W-G, texts of a Markov chain under planted pushes, whose rates are known in closed form."""

from collections.abc import Iterator

import numpy as np
import torch

from polysem.behaviour.generate import TextArm, TextPlan, text_rows
from polysem.edits import Add
from polysem.models.generate import Scope
from polysem.seeds import rng_for
from polysem.selftest.lines import Measured, at_most, exactly, near
from polysem.selftest.runner import RunSize
from polysem.worlds.linear import SITE
from polysem.worlds.markov import MarkovWorld, expected_rate
from polysem.worlds.tables import plain_sae

VOCAB, TARGET, FALSE, TOPIC = 24, (1, 2, 3), (4, 5), (6, 7, 8)
"""the target's tokens, those on which its feature fires besides, and a topic that is all but never left"""
START, STEPS, DOSE, LEAK = 23, 16, 0.3, 1e-6


def chain(seed: int, *, absorbing: bool) -> torch.Tensor:
    """A drawn chain; into the topic a twentieth of the time, and never out of it."""
    M = torch.from_numpy(rng_for(seed, "texts", "chain").dirichlet(np.ones(VOCAB), size=VOCAB))
    if absorbing:
        topic = torch.tensor(TOPIC)
        outside = torch.ones(VOCAB, dtype=torch.bool)
        outside[topic] = False
        M[:, topic] = 0
        M = 0.95 * M / M.sum(1, keepdim=True)
        M[:, topic] = 0.05 / 3
        # all but: with a probability of 1 there would be no log-odds
        M[topic] = LEAK / (VOCAB - len(TOPIC))
        M[topic[:, None], topic] = (1 - LEAK) / len(TOPIC)
    return M


def drawn(
    size: RunSize, *, memory: float, absorbing: bool, scope: Scope, n_prompts: int, draws: int
) -> tuple[dict, torch.Tensor, TextArm]:
    """Rows of one push: towards the target's tokens, or into the topic."""
    M = chain(size.seed, absorbing=absorbing)
    wanted = TOPIC if absorbing else TARGET
    tilt = torch.zeros(VOCAB, 1, dtype=torch.float64)
    tilt[list(wanted)] = 1.0
    model = MarkovWorld(M, tilt, memory=memory)
    rows = np.zeros((2, VOCAB + 1))
    rows[0, [*TARGET, *FALSE]], rows[1, VOCAB] = 1.0, 1.0
    sae = plain_sae(rows)
    arm = TextArm("pair", 0, 1, "world", SITE, rows[1], 0.0, tuple(wanted))
    prompts = [(f"{k}", [k // VOCAB, k % VOCAB, START]) for k in range(n_prompts)]
    plan = TextPlan((DOSE,), STEPS, draws=draws, scope=scope, positions="last", seed=size.seed)
    return text_rows(model, sae, [arm], prompts, plan, label="world"), M, arm


def planted(size: RunSize) -> Iterator[Measured]:
    """Rates, hits, horizon and decay are those of the chain."""
    yield from _rates(size)
    yield from _horizon(size)
    yield from _absorbed(size)


def _rates(size: RunSize) -> Iterator[Measured]:
    n_prompts, draws = size.of(40, 400), 8
    rows, M, arm = drawn(size, memory=0.0, absorbing=False, scope="both", n_prompts=n_prompts, draws=draws)
    (effect,) = rows["text_effects"]
    texts, tilt = rows["texts"], torch.zeros(VOCAB, dtype=torch.float64)
    tilt[list(arm.tokens)] = effect["strength"]
    for name, sign in (("rate", 0), ("rate_up", 1), ("rate_down", -1)):
        expected = expected_rate(M, (sign * tilt).expand(STEPS, -1), START, torch.tensor(TARGET))
        per_text = [np.isin(row["tokens"], TARGET).mean() for row in texts if row["sign"] == sign]
        error = 100 * np.std(per_text) / np.sqrt(len(per_text))
        yield near(
            f"{name}, per 100 tokens",
            effect[name],
            100 * expected,
            3.5 * error,
            error=error,
            note=f"{len(per_text)} texts",
        )
    fires = torch.tensor([*TARGET, *FALSE])
    expected = expected_rate(M, torch.zeros(STEPS, VOCAB, dtype=torch.float64), START, fires)
    error = np.std([np.isin(r["tokens"], fires).mean() for r in texts if r["sign"] == 0]) / np.sqrt(
        n_prompts * draws
    )
    yield near(
        "hits without a push, false ones with them", effect["hits_base"], expected, 3.5 * error, error=error
    )
    false = sum(np.isin(r["tokens"], FALSE).sum() for r in texts if r["sign"] == 0)
    told = effect["hits_base"] * STEPS * n_prompts * draws - sum(
        np.isin(r["tokens"], TARGET).sum() for r in texts if r["sign"] == 0
    )
    yield near("hits that are no target's tokens", told, false, 1e-6, note="counted in the texts")
    yield exactly(
        "pushes that did not run at each token", sum(r["edited"] != STEPS for r in texts if r["sign"]), 0
    )
    model = MarkovWorld(M, torch.zeros(VOCAB, 1, dtype=torch.float64))
    prompts = torch.tensor([[k, START] for k in range(VOCAB)])
    zero = torch.zeros(VOCAB, VOCAB + 1, dtype=torch.float64)
    edit = Add(SITE, zero, torch.ones_like(prompts, dtype=torch.bool))
    a, b = (model.generate(prompts, e, n=STEPS, seed=size.seed).tokens for e in ((), (edit,)))
    yield exactly("tokens that a push of zero changes", int((a != b).sum()), 0)


def _horizon(size: RunSize) -> Iterator[Measured]:
    for memory in (0.5, 0.8, 0.9):
        rows, _, _ = drawn(size, memory=memory, absorbing=False, scope="prompt", n_prompts=4, draws=1)
        (effect,) = rows["text_effects"]
        yield near(f"decay, memory {memory}", effect["decay"], memory, 0.05 * memory)
        a, steps = effect["strength"], np.arange(STEPS)
        curves = {"prompt": a * memory**steps, "both": a * (1 - memory ** (steps + 1)) / (1 - memory)}
        for scope, curve in curves.items():
            told = np.array(
                [
                    r["effect"]
                    for r in sorted(rows["text_horizon"], key=lambda r: r["step"])
                    if r["scope"] == scope
                ]
            )
            yield at_most(
                f"horizon, push of {scope}, memory {memory}: off by",
                np.abs(told - curve).max(),
                1e-6,
                unit="nats",
            )


def _absorbed(size: RunSize) -> Iterator[Measured]:
    n_prompts, draws = size.of(60, 500), 8
    rows, M, _ = drawn(size, memory=0.0, absorbing=True, scope="prompt", n_prompts=n_prompts, draws=draws)
    (effect,) = rows["text_effects"]
    shifts = torch.zeros(STEPS, VOCAB, dtype=torch.float64)
    shifts[0, list(TOPIC)] = effect["strength"]
    for name, sign in (("rate_up", 1), ("rate_down", -1)):
        expected = expected_rate(M, sign * shifts, START, torch.tensor(TOPIC))
        per_text = [np.isin(row["tokens"], TOPIC).mean() for row in rows["texts"] if row["sign"] == sign]
        error = 100 * np.std(per_text) / np.sqrt(len(per_text))
        yield near(
            f"{name} of a topic that absorbs, push of the prompt",
            effect[name],
            100 * expected,
            3.5 * error,
            error=error,
        )
    late = [abs(r["effect"]) for r in rows["text_horizon"] if r["scope"] == "prompt" and r["step"] > 0]
    yield at_most("its horizon behind the first token", max(late), 1e-9, unit="nats")
