"""Token gradients of many contexts against one context at a time."""

from collections.abc import Iterator

from benchmarks.harness import Line, Size, benchmark, interleaved, require

# isort: split
import torch

from benchmarks.worlds import Shape, largest_gap, make_world
from polysem.models.gradients import logit_gradients

torch.set_num_threads(1)

SAME_GRADIENT = 1e-6
N_CONTEXTS = 32


def _line(shape: Shape, size: Size, must: float, aim: float) -> Line:
    world = make_world(shape, n_prompts=N_CONTEXTS, quick=size == "quick")
    model, contexts = world.model, world.prompts.tolist()
    targets = torch.randint(0, model.spec.d_vocab, (N_CONTEXTS,)).tolist()
    network, embed = model.model, model.model.get_input_embeddings()

    def one_by_one(n: int = 8) -> list[torch.Tensor]:
        """backward() of one context at a time, as in a plain training script: parameters as they were loaded."""
        found = []
        network.requires_grad_(True)
        for ids, target in zip(world.prompts[:n], targets, strict=False):
            embedded = embed(ids[None]).detach().requires_grad_(True)
            network.zero_grad()
            network(inputs_embeds=embedded, use_cache=False).logits[0, -1, target].backward()
            found.append(embedded.grad[0])
        network.zero_grad()
        network.requires_grad_(False)
        return found

    def together() -> list[torch.Tensor]:
        return logit_gradients(model, contexts, targets)

    pairs = list(zip(together(), one_by_one(), strict=False))
    gap = max(largest_gap(a, b) / float(b.abs().max()) for a, b in pairs)
    require(gap <= SAME_GRADIENT * 10, f"gradients differ by {gap:.2g} of the largest entry")
    best = interleaved({"ours": together, "per context": one_by_one})
    return Line(
        f"token gradients, {shape} shape, {N_CONTEXTS} contexts of 12 tokens",
        "backward() of one context at a time",
        best["ours"] / N_CONTEXTS,
        best["per context"] / 8,
        "cpu s a context",
        f"largest difference {gap:.1e} of the largest entry over {len(pairs)} contexts",
        must,
        aim,
    )


@benchmark
def pythia(size: Size) -> Iterator[Line]:
    yield _line("Pythia-70M", size, 11, 15)


@benchmark
def gpt2(size: Size) -> Iterator[Line]:
    yield _line("GPT-2", size, 5, 7)
