"""The predicted effect of every (target, source) pair, against one measured intervention for each."""

from collections.abc import Iterator

from benchmarks.harness import Line, Size, benchmark, interleaved, require

# isort: split
import numpy as np
import torch

from benchmarks.sweep import hook
from benchmarks.worlds import DOSES, make_world
from polysem import atlas
from polysem.edits import Add
from polysem.readouts import log_odds

torch.set_num_threads(1)

RELATIVE = 1e-2
"""a push of 10^-3 of the stream is linear to a per cent, and float32 logits hold its effect to as much"""


@benchmark
def all_pairs(size: Size) -> Iterator[Line]:
    n = 1024 if size == "quick" else 4096
    world = make_world("Pythia-70M", n_prompts=2, quick=size == "quick")
    model, rng = world.model, np.random.default_rng(0)
    sets = [rng.integers(0, model.spec.d_vocab, 10).tolist() for _ in range(n)]
    dictionary = atlas.Dictionary.of(
        rng.standard_normal((n, model.spec.d_model)), rng.standard_normal((n, 384))
    )
    prompts = world.prompts.tolist()

    def whole() -> np.ndarray:
        gradients = atlas.set_responses(model, world.site, prompts, sets, positions="all")
        for block in atlas.effect_blocks(gradients, np.arange(n), dictionary):
            atlas.count_block(block)
            atlas.largest(block, 50)
        return gradients

    error = _against_pushes(world, whole(), sets, dictionary)
    require(
        error <= RELATIVE, f"predicted and finite-difference effects differ by {error:.2g} of the largest"
    )
    few = DOSES[::8]
    best = interleaved({"ours": whole, "measured": lambda: hook(world, few)})
    yield Line(
        f"atlas, {n:,} targets x {n:,} sources, 2 prompts, histograms and top-50 included",
        "one measured intervention (HF hook, batch 1) a pair and prompt",
        best["ours"] / (n * n),
        len(prompts) * best["measured"] / len(few),
        "cpu s a pair",
        f"largest difference from real pushes of a thousandth of the stream: {error:.1e} of the largest effect",
        10_000,
        100_000,
    )


def _against_pushes(world, gradients, sets, dictionary) -> float:
    """Predictions for 20 pairs against central differences of real pushes, relative to the largest."""
    seen, expected = [], []
    for k in range(20):
        source = (37 * k + 5) % len(sets)
        direction = torch.from_numpy(dictionary.directions[source])
        effects = []
        for ids in world.prompts:
            tokens, mask = ids[None], torch.ones(1, len(ids), dtype=torch.bool)
            norm = float(world.model.capture(tokens, [world.site])[world.site][0].norm(dim=1).mean())
            ends = [
                world.model.logits(
                    tokens, [Add(world.site, sign * 1e-3 * norm * direction[None], mask)], last_only=True
                )[0, -1]
                for sign in (1, -1)
            ]
            effects.append((float(log_odds(ends[0], sets[k])) - float(log_odds(ends[1], sets[k]))) / 2e-3)
        expected.append(np.mean(effects))
        seen.append(gradients[k] @ dictionary.directions[source])
    return float(np.abs(np.array(seen) - expected).max() / np.abs(expected).max())
