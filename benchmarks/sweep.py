"""The intervention sweep: (prompt, direction, dose) -> c and overlap, against the ways in which it is done elsewhere."""

from collections.abc import Iterator

from benchmarks.harness import Line, Point, Size, benchmark, curve, interleaved, peer, require, shares

# isort: split
import torch

from benchmarks.worlds import DOSES, World, largest_gap, make_world
from polysem.edits import Add
from polysem.models.sweep import Sweep

torch.set_num_threads(1)

SAME_C = 1e-6
N_DIRECTIONS = 4
ALL = "all positions, 32 doses"


def ours(world: World, sweep: Sweep, n_directions: int = N_DIRECTIONS) -> torch.Tensor:
    """Every prompt x direction x dose, from nothing: the clean run of each prompt is part of it."""
    sweep._clean.clear()  # the clean run of each prompt is part of the work
    found = []
    for ids in world.prompts:
        rows = ids.repeat(len(DOSES), 1)
        everywhere = torch.ones(rows.shape, dtype=torch.bool)
        for direction in world.directions[:n_directions]:
            edit = Add(world.site, DOSES[:, None] * direction, everywhere)
            found.append(world.read(sweep.logits(rows, [edit])))
    return torch.cat(found)


def hook(world: World, doses: torch.Tensor) -> torch.Tensor:
    """One forward pass a dose with a forward hook; softmax, sort, c with the similarity at hand."""
    found = []
    for dose in doses:
        push = dose * world.directions[0]

        def add(_module, _args, output, push=push):
            return (output[0] + push, *output[1:]) if isinstance(output, tuple) else output + push

        handle = world.block.register_forward_hook(add)
        with torch.no_grad():
            logits = world.model.model(world.prompts[:1], use_cache=False).logits
        handle.remove()
        p, order = torch.softmax(logits[0, -1], -1).sort(descending=True)
        overlap = p[torch.isin(order, torch.tensor(world.targets))].sum()
        found.append(torch.stack([(p * world.similarity[order]).sum(), overlap]))
    return torch.stack(found)


def paper(world: World, doses: torch.Tensor) -> torch.Tensor:
    """The paper's loop as its protocol is written: similarity of all tokens anew, and two rank correlations, for
    every forward pass (arXiv 2505.11611, sections 3 and 4)."""
    from scipy.stats import kendalltau, spearmanr

    unit = torch.nn.functional.normalize(world.model.W_E, dim=1)
    found = []
    for dose in doses:
        (values,) = hook(world, dose[None])
        similarity = (unit @ unit[world.targets].T).amax(1)
        order, other = similarity.argsort().numpy(), torch.randperm(len(unit)).numpy()
        spearmanr(order, other)
        kendalltau(order, other)
        found.append(values)
    return torch.stack(found)


def _lines(
    world: World, *, hooks: tuple[float, float], papers: tuple[float, float] | None, n: int
) -> Iterator[Line]:
    sweep = Sweep(world.model)
    few = DOSES[:: len(DOSES) // n]
    gap = largest_gap(ours(world, sweep, 1)[:: len(DOSES) // n], hook(world, few))
    require(gap <= SAME_C, f"c or overlap differs from the hook's by {gap:.2g}")
    contestants = {"ours": lambda: ours(world, sweep), "hook": lambda: hook(world, few)}
    if papers:
        contestants["paper"] = lambda: paper(world, DOSES[::16])
    best = interleaved(contestants, rounds=5)
    name = f"sweep, {world.shape} shape, {world.prompts.shape[1]} tokens, mid layer, exact fp32"
    mine = best["ours"] / (len(DOSES) * N_DIRECTIONS)
    check = f"|dc| <= {gap:.1e} over {len(few)} doses (allowed {SAME_C})"
    unit = "cpu s an intervention"
    flops, rate = flop_floor(world), product_rate(world)
    floor = flops / rate
    yield Line(name, "HF hook, batch 1", mine, best["hook"] / len(few), unit, check, *hooks, floor=floor)
    if papers:
        yield Line(name, "the paper's loop", mine, best["paper"] / 2, unit, check, *papers, floor=floor)
    yield Line(
        name,
        "its arithmetic at the rate of a bare product",
        mine,
        floor,
        unit,
        check,
        0.5,
        0.75,
        note=f"{flops / 1e6:.0f} MFLOP an intervention; products of this size run at {rate / 1e9:.0f} GFLOP/s here; "
        f"{shares(lambda: ours(world, sweep))}",
    )


def flop_floor(world: World) -> float:
    """Operations of an intervention that runs later blocks only: all of them at every position, of the last one
    keys and values, and the rest at the last position; unembedding of the last position. Norms, activations and
    attention scores are not counted. (Ours does fewer: the first reads behind the edit are not made row by row.)
    """
    spec, pos = world.model.spec, world.prompts.shape[1]
    later, d = spec.n_layers - 1 - int(world.site.layer or 0), spec.d_model
    blocks = max(later - 1, 0) * 24 * d * d * pos + (4 * d * d * pos + 20 * d * d)
    return blocks + 2 * d * spec.d_vocab


def product_rate(world: World, *, plain: bool = False) -> float:
    """Operations a second of one product like those of a sweep, by the library that the sweep uses; or by torch's own."""
    from polysem.onednn import Linear

    d, rows = world.model.spec.d_model, len(DOSES) * world.prompts.shape[1]
    x, weight = torch.randn(rows, d), torch.randn(4 * d, d)
    linear = (lambda x: torch.nn.functional.linear(x, weight)) if plain else Linear(weight, None, pack=True)
    best = interleaved({"product": lambda: [linear(x) for _ in range(20)]}, rounds=5)
    return 20 * 2 * rows * d * 4 * d / best["product"]


@benchmark
def pythia(size: Size) -> Iterator[Line]:
    world = make_world("Pythia-70M", n_directions=N_DIRECTIONS, quick=size == "quick")
    yield from _lines(world, hooks=(17, 30), papers=(35, 60), n=8)


@benchmark
def gpt2(size: Size) -> Iterator[Line]:
    world = make_world("GPT-2", n_directions=N_DIRECTIONS, quick=size == "quick")
    yield from _lines(world, hooks=(9, 14), papers=None, n=8)


@benchmark
def transformer_lens(size: Size) -> Iterator[Line]:
    """The same shape and arithmetic; TransformerLens draws its own weights, so ours is checked against the hook."""
    lens = peer("transformer_lens")
    world = make_world("Pythia-70M", n_directions=N_DIRECTIONS, quick=size == "quick")
    spec = world.model.spec
    shape = lens.HookedTransformerConfig(
        n_layers=spec.n_layers, d_model=spec.d_model, n_ctx=1024, d_vocab=spec.d_vocab, d_mlp=4 * spec.d_model,
        n_heads=8, d_head=64, act_fn="gelu", parallel_attn_mlp=True, positional_embedding_type="rotary",
        rotary_dim=16, normalization_type="LNPre", device="cpu",
    )  # fmt: skip
    theirs, sweep = lens.HookedTransformer(shape).eval(), Sweep(world.model)
    name = f"blocks.{world.site.layer}.hook_resid_post"

    @torch.no_grad()
    def run(doses: torch.Tensor) -> torch.Tensor:
        push = doses[:, None, None] * world.directions[0]
        rows = world.prompts[:1].expand(len(doses), -1)
        logits = theirs.run_with_hooks(rows, fwd_hooks=[(name, lambda h, hook: h + push)])
        return world.read(logits[:, -1])

    few = DOSES[::8]
    gap = largest_gap(ours(world, sweep, 1)[::8], hook(world, few))
    require(gap <= SAME_C, f"c or overlap differs from the hook's by {gap:.2g}")
    best = interleaved(
        {
            "ours": lambda: ours(world, sweep),
            "one": lambda: [run(dose[None]) for dose in few],
            "batch": lambda: run(DOSES),
        }
    )
    mine = best["ours"] / (len(DOSES) * N_DIRECTIONS)
    check = f"ours against the HF hook: |dc| <= {gap:.1e}"
    what, unit = "sweep, Pythia-70M shape, 12 tokens, mid layer, exact fp32", "cpu s an intervention"
    note = f"theirs {shares(lambda: run(DOSES[:1]))}"
    floor = flop_floor(world) / product_rate(world)
    one, batch = best["one"] / len(few), best["batch"] / len(DOSES)
    yield Line(what, "TransformerLens, batch 1", mine, one, unit, check, 55, 90, note, floor=floor)
    yield Line(what, "TransformerLens, batch 32", mine, batch, unit, check, 6, 10, floor=floor)


def _point(world: World, name: str, axis: str, at: float) -> Point:
    sweep = Sweep(world.model)
    few = DOSES[::16]
    gap = largest_gap(ours(world, sweep, 1)[::16], hook(world, few))
    require(gap <= SAME_C, f"c or overlap differs from the hook's by {gap:.2g}")
    best = interleaved({"ours": lambda: ours(world, sweep, 1), "hook": lambda: hook(world, few)})
    mine, other = best["ours"] / len(DOSES), best["hook"] / len(few)
    return Point(
        name, axis, at, {"ours, cpu ms": 1e3 * mine, "HF hook, cpu ms": 1e3 * other, "ratio": other / mine}
    )


@curve
def by_length(size: Size) -> Iterator[Point]:
    for pos in (8, 16) if size == "quick" else (8, 16, 32, 64, 128):
        world = make_world("Pythia-70M", pos=pos, quick=size == "quick")
        yield _point(world, f"sweep by prompt length, Pythia-70M shape, one direction, {ALL}", "tokens", pos)


@curve
def by_depth(size: Size) -> Iterator[Point]:
    for layers in (2, 4) if size == "quick" else (2, 4, 6, 12, 24):
        world = make_world("Pythia-70M", n_layers=layers, quick=size == "quick")
        yield _point(
            world, f"sweep by depth, width of Pythia-70M, one direction, mid layer, {ALL}", "blocks", layers
        )
