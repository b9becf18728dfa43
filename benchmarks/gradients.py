"""Token gradients of many contexts against one context at a time."""

from collections.abc import Iterator

from benchmarks.harness import Line, Size, benchmark, interleaved, require, shares

# isort: split
import torch

from benchmarks.sweep import product_rate
from benchmarks.worlds import Shape, World, largest_gap, make_world
from polysem.models.gradients import logit_gradients

torch.set_num_threads(1)

SAME_GRADIENT = 1e-6
"""of the largest entry; float32 itself is as far from float64"""
FLOAT32 = 5e-6
"""where sums run in another order"""
N_CONTEXTS = 32


def _lines(shape: Shape, size: Size, bars: tuple[float, float]) -> Iterator[Line]:
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

    ways = {
        "": lambda: logit_gradients(model, contexts, targets),
        ", fast=True": lambda: logit_gradients(model, contexts, targets, fast=True),
    }
    reference = one_by_one()
    gaps = {way: _gap(run(), reference) for way, run in ways.items()}
    require(gaps[""] <= SAME_GRADIENT, f"gradients differ by {gaps['']:.2g} of the largest entry")
    require(gaps[", fast=True"] <= FLOAT32, f"gradients differ by {gaps[', fast=True']:.2g}")
    best = interleaved({**ways, "per context": one_by_one})
    for way, run in ways.items():
        rate = product_rate(world, plain=not way)
        yield Line(
            f"token gradients{way}, {shape} shape, {N_CONTEXTS} contexts of 12 tokens",
            "backward() of one context at a time",
            best[way] / N_CONTEXTS,
            best["per context"] / len(reference),
            "cpu s a context",
            f"largest difference {gaps[way]:.1e} of the largest entry over {len(reference)} contexts",
            *((None, None) if way else bars),
            note=f"{_flops(world) / 1e6:.0f} MFLOP a context; the products it uses run at {rate / 1e9:.0f} GFLOP/s; "
            f"{shares(run)}{'' if way else '; sums in the order of the plain pass, so its products; fast=True, below'}",
            floor=_flops(world) / rate,
        )


def _flops(world: World) -> float:
    """Operations of a logit's gradient with respect to the embeddings: there and back, all blocks at every position, of
    the last one keys and values and the rest at the last position, one row of the unembedding. Norms, activations and
    attention scores are not counted."""
    spec, pos = world.model.spec, world.prompts.shape[1]
    d = spec.d_model
    return 2.0 * ((spec.n_layers - 1) * 24 * d * d * pos + 4 * d * d * pos + 20 * d * d + 2 * d)


def _gap(seen: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest difference of any context, as a share of its largest entry."""
    return max(largest_gap(a, b) / float(b.abs().max()) for a, b in zip(seen, expected, strict=False))


@benchmark
def pythia(size: Size) -> Iterator[Line]:
    yield from _lines("Pythia-70M", size, (11, 15))


@benchmark
def gpt2(size: Size) -> Iterator[Line]:
    yield from _lines("GPT-2", size, (5, 7))
