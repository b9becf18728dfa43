"""The loop: batches in, a trained dictionary out, resumable at any checkpoint.

Inputs are scaled to a mean norm of sqrt(d) while training, and the scale is folded into the weights at the
end, so that the dictionary reads and writes the model's own activations. A token whose norm is far beyond the
median's (`recipe.massive` times: attention sinks and the like) would by its square outweigh thousands of others; its
error is weighted down to that of a token at that limit, so that the dictionary knows such tokens and is not
made for them. Adam with warm-up and linear decay; the order of the batches comes from the seed alone, and a
run that goes on from a checkpoint sees the batches that an uninterrupted one would have seen.
Why not sae-lens's trainer: it weighs every token alike, leaves the place in stored activations to its caller,
and costs 15 s and 600 MB to import. With those in our hands only the loss would be left of it; what is written
is its format.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from polysem.positions import PLAIN
from polysem.training.dictionary import (
    AUXILIARY,
    Select,
    Weights,
    auxiliary,
    decode,
    encode,
    initial,
    keep_decoder,
    unit_rows,
)


@dataclass(frozen=True)
class TrainingRecipe:
    """How one dictionary is trained."""

    d_sae: int = 4608
    k: int = 48
    select: Select = "topk"
    prefixes: tuple[int, ...] = ()
    """sizes of nested dictionaries, ascending and below d_sae; none for a plain one"""
    skip: bool = False
    """a linear path beside the latents (skip transcoder)"""
    seed: int = 0
    batch: int = 4096
    steps: int = 2000
    lr: float = 1e-3
    dead_after: int = 250_000
    """a latent is dead if it has not fired on so many tokens"""
    massive: float = PLAIN.massive
    """a token is massive if its norm is more than this many times the median: as everywhere (`positions`)"""

    @property
    def nested(self) -> tuple[int, ...]:
        """All sizes, d_sae the last."""
        return (*self.prefixes, self.d_sae)


@dataclass(frozen=True)
class Scales:
    """What the activations look like, measured on a sample before training."""

    read: float
    """mean norm of ordinary inputs"""
    write: float
    """mean norm of ordinary outputs"""
    read_median: float
    """median norm of all inputs"""
    write_median: float
    mean: Float[Tensor, " d_out"]
    """mean of ordinary outputs"""
    variance: float
    """mean squared distance of ordinary outputs to it"""


@dataclass
class State:
    """Everything that a checkpoint holds."""

    weights: Weights
    optimizer: torch.optim.Optimizer
    step: int = 0
    since_fired: Tensor = field(default_factory=lambda: torch.zeros(0))
    """tokens since each latent fired, [d_sae]"""
    threshold: float = 0.0
    """running mean of the smallest active value of a batch (batchtopk), in scaled units"""


Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""from a step on, (input, output) of each batch; the same tensor twice for an autoencoder"""


def measure(
    x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"], *, times: float = PLAIN.massive
) -> Scales:
    """Scales of a sample, of tokens that are not massive: at most `times` the median norm."""
    x, y = x.float(), y.float()
    read, write = x.norm(dim=1), y.norm(dim=1)
    usual = ~(read > times * read.median()) & ~(write > times * write.median())
    mean = y[usual].mean(dim=0)
    return Scales(
        read=float(read[usual].mean()),
        write=float(write[usual].mean()),
        read_median=float(read.median()),
        write_median=float(write.median()),
        mean=mean,
        variance=float((y[usual] - mean).pow(2).sum(dim=1).mean()),
    )


def start(recipe: TrainingRecipe, scales: Scales, *, d_in: int, autoencoder: bool) -> State:
    """A state before the first step."""
    device = scales.mean.device
    generator = torch.Generator(device=device).manual_seed(recipe.seed)
    weights = initial(
        d_in=d_in,
        d_sae=recipe.d_sae,
        mean=scales.mean * (math.sqrt(len(scales.mean)) / scales.write),
        skip=recipe.skip,
        generator=generator,
        autoencoder=autoencoder,
    )
    for tensor in weights.named().values():
        tensor.requires_grad_(True)
    optimizer = torch.optim.Adam(list(weights.named().values()), lr=recipe.lr, fused=True)
    return State(weights, optimizer, since_fired=torch.zeros(recipe.d_sae, device=device))


def train(
    recipe: TrainingRecipe,
    scales: Scales,
    state: State,
    batches: Batches,
    *,
    each: Callable[[State, dict[str, float]], Any],
) -> State:
    """Take the steps that are left; `each` is called after every one, with the loss and the share of dead latents
    where they were read (every fiftieth step)."""
    for x, y in batches(state.step):
        if state.step >= recipe.steps:
            break
        for group in state.optimizer.param_groups:
            group["lr"] = recipe.lr * rate(state.step, recipe.steps)
        loss, dead = _step(recipe, scales, state, x, y)
        state.step += 1
        read = state.step % 50 == 0 or state.step == recipe.steps
        each(state, {"loss": float(loss), "dead": float(dead.float().mean())} if read else {})
    return state


def rate(step: int, steps: int) -> float:
    """Factor of the learning rate: up over the first twentieth, down to nothing over the last third."""
    warm, cool = max(1, steps // 20), max(1, steps // 3)
    return min(1.0, (step + 1) / warm, (steps - step) / cool)


def _step(
    recipe: TrainingRecipe, scales: Scales, state: State, x: Tensor, y: Tensor
) -> tuple[Float[Tensor, ""], Tensor]:
    weights = state.weights
    same = x is y
    d_in, d_out = x.shape[1], y.shape[1]
    x = x.float()
    limit = token_weights(x, recipe.massive * scales.read_median)
    x = x * (math.sqrt(d_in) / scales.read)
    if same:
        y, scale = x, math.sqrt(d_in) / scales.read
    else:
        y = y.float()
        limit = torch.minimum(limit, token_weights(y, recipe.massive * scales.write_median))
        scale = math.sqrt(d_out) / scales.write
        y = y * scale
    total = scales.variance * scale**2
    codes = encode(weights, x, k=recipe.k, select=recipe.select)
    guesses = decode(weights, codes, x, prefixes=recipe.nested)
    losses = [((y - guess).pow(2).sum(dim=1) * limit).mean() / total for guess in guesses]
    loss = torch.stack(losses).mean()
    fired = torch.zeros(recipe.d_sae, dtype=torch.bool, device=x.device)
    fired[codes.col[codes.values.detach() > 0]] = True
    state.since_fired += len(x)
    state.since_fired[fired] = 0
    dead = state.since_fired > recipe.dead_after
    whole = loss
    if bool(dead.any()):
        rest = (y - guesses[-1]).detach()
        whole = loss + AUXILIARY * auxiliary(weights, x, rest, limit, dead=dead)
    if recipe.select == "batchtopk":
        lowest = float(codes.values.detach().min())
        state.threshold = lowest if state.step == 0 else 0.99 * state.threshold + 0.01 * lowest
    state.optimizer.zero_grad(set_to_none=True)
    whole.backward()
    keep_decoder(weights)
    torch.nn.utils.clip_grad_norm_(list(weights.named().values()), 1.0)
    state.optimizer.step()
    unit_rows(weights)
    return losses[-1].detach(), dead


def token_weights(x: Float[Tensor, "n d"], limit: float) -> Float[Tensor, " n"]:
    """1 for an ordinary token; for a massive one what brings its squared norm down to the limit's."""
    return (limit / x.norm(dim=1).clamp(min=1e-6)).clamp(max=1.0).pow(2)


def finished(recipe: TrainingRecipe, scales: Scales, state: State) -> dict[str, Tensor]:
    """Weights in the layout and units of a finished dictionary: W_enc [d_in d_sae], for the model's own
    activations; `threshold` [d_sae] for batchtopk."""
    weights = {name: tensor.detach().float() for name, tensor in state.weights.named().items()}
    d_in, d_out = weights["W_enc"].shape[1], weights["W_dec"].shape[1]
    read, write = math.sqrt(d_in) / scales.read, math.sqrt(d_out) / scales.write
    # Activations in the units of the output, so that decoder rows stay of unit norm: the reconstruction is
    # divided by `write`, therefore the latents are.
    found = {
        "W_enc": weights["W_enc"].t() * (read / write),
        "b_enc": weights["b_enc"] / write,
        "W_dec": weights["W_dec"],
        "b_dec": weights["b_dec"] / write,
    }
    if "W_skip" in weights:
        found["W_skip"] = weights["W_skip"] * (read / write)
    if recipe.select == "batchtopk":
        found["threshold"] = torch.full((recipe.d_sae,), state.threshold / write)
    return {name: tensor.contiguous() for name, tensor in found.items()}
