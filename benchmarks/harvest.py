"""Harvest: encoding, best windows and tokens, and firing counts, against the bare product and a dense store."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.harness import Line, Point, Size, benchmark, curve, interleaved, require

# isort: split
import numpy as np
import torch

from polysem.features.best import Harvest, HarvestPlan
from polysem.features.encoder import ActiveEncoder
from polysem.saes.base import SAE, Provenance
from polysem.types import Site

torch.set_num_threads(1)
torch.set_grad_enabled(False)

CONTEXT, BATCH_ROWS = 128, 16
PLAN = HarvestPlan(n_contexts=20, window=24, n_tokens=10)
FLOAT32 = 2e-5
"""how far a float32 pre-activation may be from the exact one: inputs here have norms up to 25"""


@dataclass(frozen=True)
class World:
    sae: SAE
    inputs: torch.Tensor
    """[rows, context, d_in]"""
    tokens: np.ndarray


def make_world(d_sae: int, d_in: int, rows: int, *, parts: int = 40) -> World:
    """A ReLU SAE, and inputs that are sparse mixtures of its features with noise: some 50 are active at a
    token, common ones far more often than rare ones."""
    rng = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=rng), dim=1)
    n = rows * CONTEXT
    feature = (torch.rand(n, parts, generator=rng) ** 2 * d_sae).long()
    inputs = 0.3 * torch.randn(n, d_in, generator=rng)
    for k in range(parts):
        inputs += decoder[feature[:, k]] * (torch.rand(n, 1, generator=rng) * 2 + 0.5)
    sae = SAE(
        W_enc=decoder.T.contiguous(),
        W_dec=decoder,
        b_enc=torch.full((d_sae,), -1.48),
        b_dec=torch.zeros(d_in),
        activation="relu",
        reads=Site.parse("blocks.6.hook_resid_post"),
        writes=Site.parse("blocks.6.hook_resid_post"),
        model_id=None,
        model_revision=None,
        provenance=Provenance("memory", "memory", "benchmark"),
    )
    # tokens of a text: few are common, most are rare
    tokens = np.minimum(np.random.default_rng(0).zipf(1.3, (rows, CONTEXT)), 50_000)
    return World(sae, inputs.view(rows, CONTEXT, d_in), tokens)


def ours(world: World) -> Harvest:
    """Everything that a harvest does after the model: the preparation of the encoder included."""
    encode = ActiveEncoder(world.sae)
    state = Harvest.empty(world.sae.d_sae, PLAN, context=CONTEXT, first=0)
    for at in range(0, len(world.inputs), BATCH_ROWS):
        acts = encode(world.inputs[at : at + BATCH_ROWS].flatten(0, 1))
        state.add(acts, world.tokens[at : at + BATCH_ROWS], first_row=at)
    return state


def bare_product(world: World) -> torch.Tensor:
    """The float32 product of all inputs with the encoder, batch by batch into one buffer; nothing is looked
    at."""
    size = BATCH_ROWS * CONTEXT
    out = torch.empty(size, world.sae.d_sae)
    for batch in world.inputs.flatten(0, 1).split(size):
        torch.mm(batch, world.sae.W_enc, out=out[: len(batch)])
    return out


def dense_store(world: World) -> tuple[torch.Tensor, torch.Tensor]:
    """All activations kept; then the best rows of every feature, and how often it fires."""
    size = BATCH_ROWS * CONTEXT
    acts = torch.cat([world.sae.encode(batch) for batch in world.inputs.flatten(0, 1).split(size)])
    peaks = acts.view(len(world.inputs), CONTEXT, -1).amax(dim=1)
    return torch.topk(peaks, min(PLAN.n_contexts, len(peaks)), dim=0).values, (acts > 0).sum(dim=0)


def check(world: World) -> str:
    """Best windows and counts against the dense store: they may differ where a float32 pre-activation has
    the other sign than the exact one."""
    state, (best, fired) = ours(world), dense_store(world)
    mine = np.maximum(state.context_value, 0)[:, : len(best)]
    require(bool(np.abs(mine - best.T.numpy()).max() <= FLOAT32), "best windows differ")
    features = np.flatnonzero(state.n_active != fired.numpy())
    total, differ = int(fired.sum()), int(np.abs(state.n_active - fired.numpy()).sum())
    if len(features):
        columns = world.sae.W_enc[:, features].double()
        pre = world.inputs.flatten(0, 1).double() @ columns + world.sae.b_enc[features].double()
        require(
            bool((pre > 0).sum(dim=0).numpy().tolist() == state.n_active[features].tolist()), "counts differ"
        )
    return f"same best windows; same {total:,} firings, but for {differ} that float32 puts on the other side of 0"


@benchmark
def encode_and_keep(size: Size) -> Iterator[Line]:
    """Encoding with best windows, tokens and counts against the bare product."""
    world = make_world(24_576 if size == "full" else 4096, 768, 128 if size == "full" else 32)
    head = World(world.sae, world.inputs[:32], world.tokens[:32])
    equal = check(head)
    seconds = interleaved({"ours": lambda: ours(world), "bare": lambda: bare_product(world)}, warm=False)
    name = (
        f"harvest of {world.tokens.size:,} tokens, {world.sae.d_sae:,} x 768, best windows, tokens and counts"
    )
    yield Line(name, "bare fp32 encode product", seconds["ours"], seconds["bare"], "cpu s", equal, 1, 1.6)
    seconds = interleaved({"ours": lambda: ours(head), "dense": lambda: dense_store(head)}, warm=False)
    name = (
        f"harvest of {head.tokens.size:,} tokens, {world.sae.d_sae:,} x 768, best windows, tokens and counts"
    )
    yield Line(name, "dense store, then top-k", seconds["ours"], seconds["dense"], "cpu s", equal)


@curve
def growth(size: Size) -> Iterator[Point]:
    """CPU time a token against the number of features."""
    for d_sae in (4096, 8192, 16_384, 32_768, 65_536) if size == "full" else (1024, 2048):
        world = make_world(d_sae, 768, 64 if size == "full" else 16)
        seconds = interleaved(
            {"ours": lambda w=world: ours(w), "bare": lambda w=world: bare_product(w)}, rounds=1
        )
        values = {f"{who}, us a token": 1e6 * spent / world.tokens.size for who, spent in seconds.items()}
        yield Point("Harvest after the model, 768-d inputs", "features", d_sae, values)
