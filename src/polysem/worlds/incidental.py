"""GT2, incidental polysemanticity: neurons shared though there is room for all features.

A tied autoencoder y = ReLU(W W^T x) of n one-hot features in m >= n neurons, with an L1 price on the neurons'
activations, started at random. Each feature's weights grow on the neuron where they began largest and vanish on
the others, so two features meet on one neuron by accident, C(n, 2) / m times; if they meet with equal signs one
of them is driven away, if with opposite signs ReLU hides the interference and they stay. About n^2 / (4 m)
neurons end up shared, decided by the initialisation (Lecomte et al., arXiv 2312.03096). The gradient is exact:
the data are the n unit vectors. Cost: about a second for 20 seeds of n = 32, m = 64.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polysem.seeds import rng_for
from polysem.types import Site
from polysem.worlds.model import Tap, WorldModel

NEURONS = Site(0, "mlp.hook_post")
PRESENT = 0.5
"""a feature lives on a neuron if its weight there is at least this (it is 1 or 0 after training)"""


@dataclass(frozen=True)
class Incidental:
    """Trained autoencoders, one per seed."""

    start: Float[np.ndarray, "seeds n m"]
    W: Float[np.ndarray, "seeds n m"]

    @property
    def lives(self) -> Bool[np.ndarray, "seeds n m"]:
        """Which feature lives on which neuron."""
        return np.abs(self.W) >= PRESENT

    @property
    def shared(self) -> Bool[np.ndarray, "seeds m"]:
        """Neurons with two features or more."""
        return self.lives.sum(axis=1) >= 2


class IncidentalModel(WorldModel):
    """One autoencoder behind the seam: token 1 + i is feature i, the site is the neurons."""

    def __init__(self, W: Float[np.ndarray, "n m"]):
        rows = torch.tensor(np.concatenate([np.zeros((1, W.shape[1])), W]))
        super().__init__(rows, rows, name="incidental", widths={NEURONS: W.shape[1]})

    def run(self, tokens: Tensor, tap: Tap) -> Float[Tensor, "batch pos d_vocab"]:
        return torch.relu(tap(NEURONS, self.W_E[tokens]) @ self.W_U.T)


def train_incidental(
    *, n: int, m: int, seeds: int, price: float = 0.05, rate: float = 0.1, steps: int = 1500, seed: int = 0
) -> Incidental:
    """Autoencoders from random starts of standard deviation 1 / sqrt(m), by gradient descent.

    Args:
        n, m: features and neurons.
        price: of the L1 norm of a feature's activations, against its squared error.
        rate, steps: of plain gradient descent on the exact loss.
    """
    start = rng_for(seed, "incidental", n, m).standard_normal((seeds, n, m)) / np.sqrt(m)
    W = torch.tensor(start, dtype=torch.float32)
    eye = torch.eye(n)
    for _ in range(steps):
        out = W @ W.transpose(1, 2)
        error = (torch.relu(out) - eye) * (out > 0)
        # d/dW of sum over inputs of |relu(W W^T) - 1|^2 / 2 + price |W|_1
        gradient = (error + error.transpose(1, 2)) @ W + price * torch.sign(W)
        W = W - rate * gradient / 2
    return Incidental(start, W.double().numpy())
