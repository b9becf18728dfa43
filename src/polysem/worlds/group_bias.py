"""Group Bias Adaptation: an SAE whose sparsity is set by its biases, not by a penalty (arXiv 2506.14002).

    f(x) = b_pre + sum_m a_m w_m ReLU(w_m . (x - b_pre) + b_m),   |w_m| = 1,   loss = |x - f(x)|^2

Biases are not trained by gradient. Neurons are in groups, group k with a target activation frequency p_k that
halves from group to group. Every few batches, with p the frequency of a neuron over those batches, r its
largest pre-activation there (at least 0), and T the mean of r over the group's neurons that fired:

    p > p_k:         b <- max(b - gamma r, -1)        a neuron that fires too often is made stricter
    p < epsilon:     b <- min(b + gamma T, 0)         a dead neuron is brought back

Inputs are scaled to unit mean square norm. The group sizes (equal), gamma, the first target and the number of
batches between updates are ours, and so is a fixed b_pre, the mean input: where the gradient may move b_pre, it
undoes in the inputs what the adaptation does in the biases. Written from the paper's description. Cost: that of a ReLU SAE.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polysem.saes.base import SAE
from polysem.seeds import rng_for
from polysem.types import Site
from polysem.worlds.tables import plain_sae

GAMMA = 0.01
DEAD = 1e-6


def train_group_bias(
    batches: Iterator[Float[Tensor, "batch d"]],
    *,
    d_sae: int,
    steps: int,
    site: Site,
    groups: int = 8,
    first_target: float = 0.2,
    every: int = 4,
    rate: float = 5e-3,
    seed: int = 0,
) -> SAE:
    """An SAE trained by Group Bias Adaptation.

    Args:
        batches: activations without end.
        site: where the activations are from.
        groups: groups of (nearly) equal size; group k aims at first_target / 2^k.
        first_target: activation frequency of the first group.
        every: batches between two updates of the biases.
        rate: of Adam; falls to zero over the last fifth.
        seed: of the initial directions, which are inputs (a neuron that starts at data is not dead).
    """
    first = next(batches)
    scale = float(first.pow(2).sum(-1).mean().rsqrt())
    rng = rng_for(seed, "group bias")
    chosen = rng.choice(len(first), d_sae, replace=len(first) < d_sae)
    start = first[torch.as_tensor(chosen)]
    start = start + 0.05 * start.norm(dim=-1).mean() * torch.tensor(
        rng.standard_normal(start.shape) / np.sqrt(start.shape[1]), dtype=start.dtype
    )
    w = torch.nn.functional.normalize(start, dim=-1).requires_grad_(True)
    a = torch.ones(d_sae, requires_grad=True)
    b_pre = scale * first.mean(0)
    bias = torch.zeros(d_sae)
    target = first_target * 0.5 ** (torch.arange(d_sae) * groups // d_sae).float()
    group = torch.arange(d_sae) * groups // d_sae
    optimizer = torch.optim.Adam([w, a], lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, 5 * (1 - k / steps)))
    seen: list[Tensor] = []
    for _ in range(steps):
        x = scale * next(batches)
        pre = (x - b_pre) @ w.T + bias
        out = b_pre + (torch.relu(pre) * a) @ w
        optimizer.zero_grad()
        (x - out).pow(2).sum(-1).mean().backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            w.copy_(torch.nn.functional.normalize(w, dim=-1))
        seen.append(pre.detach())
        if len(seen) == every:
            bias = adapt(bias, torch.cat(seen), target=target, group=group)
            seen = []
    with torch.no_grad():
        return _finished(w, a, b_pre, bias, scale, site)


def adapt(
    bias: Float[Tensor, " d_sae"],
    pre: Float[Tensor, "n d_sae"],
    *,
    target: Float[Tensor, " d_sae"],
    group: Tensor,
    gamma: float = GAMMA,
) -> Float[Tensor, " d_sae"]:
    """Biases after one adaptation.

    Args:
        bias: before.
        pre: pre-activations, bias included, since the last adaptation.
        target: activation frequency that each neuron's group aims at.
        group: number of each neuron's group.
    """
    frequency = (pre > 0).float().mean(0)
    reach = torch.relu(pre.max(0).values)
    number = int(group.max()) + 1
    fired = (reach > 0).float()
    total = torch.zeros(number).index_add(0, group, reach)
    count = torch.zeros(number).index_add(0, group, fired).clamp(min=1.0)
    lifted = (bias + gamma * (total / count)[group]).clamp(max=0.0)
    lowered = (bias - gamma * reach).clamp(min=-1.0)
    return torch.where(frequency > target, lowered, torch.where(frequency < DEAD, lifted, bias))


def _finished(w: Tensor, a: Tensor, b_pre: Tensor, bias: Tensor, scale: float, site: Site) -> SAE:
    """The SAE in the units of its inputs."""
    from dataclasses import replace

    # In scaled units the code is c = ReLU(w . (s x - b_pre) + b); s x^ = b_pre + (a c) w, so in input units the
    # decoder row is a w and the code c / s.
    sign = torch.where(a >= 0, 1.0, -1.0)
    sae = plain_sae((a[:, None] * w).double().numpy(), site=site)
    return replace(
        sae,
        W_enc=w.T.contiguous().clone(),
        b_enc=bias / scale,
        b_dec=b_pre.clone() / scale,
        W_dec=(a.abs()[:, None] * sign[:, None] * w).contiguous(),
    )
