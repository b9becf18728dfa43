"""GT1, toy models of superposition: n sparse features squeezed through m < n dimensions.

x_i ~ Bernoulli(p) U[0, 1], out = ReLU(W^T W x + b), loss = E sum_i I_i (out_i - x_i)^2 (Elhage et al.,
arXiv 2209.10652). Many models train at once: the leading axis of every array is the model. `phase_losses` has
the exact expected loss of two features in one dimension, by Gauss-Legendre quadrature, so that its optima
carry no sampling noise. Cost: seconds on one core.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polysem.saes.base import SAE
from polysem.seeds import rng_for
from polysem.types import Site
from polysem.worlds.model import Tap, WorldModel
from polysem.worlds.tables import plain_sae

SITE = Site(0, "hook_resid_post")
NODES = 12
"""of the quadrature per axis: polynomials to degree 23 are exact, the kinks of ReLU cost about 1e-4"""


@dataclass(frozen=True)
class Toys:
    """Trained toy models."""

    W: Float[np.ndarray, "models m n"]
    b: Float[np.ndarray, "models n"]
    loss: Float[np.ndarray, " models"]


class ToyModel(WorldModel):
    """One toy model behind the seam: token 1 + i is feature i, the residual is the sum over tokens so far,
    logits are the outputs (BOS reads 0)."""

    def __init__(self, W: Float[np.ndarray, "m n"], b: Float[np.ndarray, " n"]):
        rows = torch.tensor(np.concatenate([np.zeros((1, len(W))), W.T]))
        self.bias = torch.tensor(np.concatenate([[0.0], b]))
        super().__init__(rows, rows, name="toy", widths={SITE: len(W)})

    def run(self, tokens: Tensor, tap: Tap) -> Float[Tensor, "batch pos d_vocab"]:
        h = tap(SITE, self.W_E[tokens].cumsum(dim=1))
        return torch.relu(h @ self.W_U.T + self.bias)

    @property
    def sae(self) -> SAE:
        """The features themselves as an SAE: feature i writes the direction of W's column i."""
        return plain_sae(self.W_U[1:].numpy(), site=SITE)


def train_toys(
    *,
    n: int,
    m: int,
    p: Float[np.ndarray, " models"],
    importance: Float[np.ndarray, " n"] | None = None,
    steps: int = 4000,
    batch: int = 1024,
    rate: float = 1e-2,
    seed: int = 0,
) -> Toys:
    """Toy models trained on samples, one for every p; the learning rate falls to zero along a cosine.

    Args:
        n, m: features and dimensions.
        p: probability that a feature is present, per model.
        importance: weight of each feature's error; None for ones.
        steps, batch, rate: of Adam; only samples with a feature present are drawn, and weighted so.
    """
    rng = rng_for(seed, "toys", n, m)
    scale = torch.tensor(np.asarray(p), dtype=torch.float32)[:, None, None]
    weight = torch.ones(n) if importance is None else torch.tensor(importance, dtype=torch.float32)
    W = torch.tensor(rng.standard_normal((len(p), m, n)) / np.sqrt(m), dtype=torch.float32).requires_grad_(
        True
    )
    b = torch.zeros(len(p), 1, n, requires_grad=True)
    optimizer = torch.optim.Adam([W, b], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    loss = torch.zeros(len(p))
    for _ in range(steps):
        x = _present(len(p), batch, n, scale, generator)
        loss = _toy_loss(W, b, x, weight, scale[:, 0, 0])
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        schedule.step()
    return Toys(
        W.detach().double().numpy(), b.detach()[:, 0].double().numpy(), loss.detach().double().numpy()
    )


def _present(models: int, batch: int, n: int, p: Tensor, generator: torch.Generator) -> Tensor:
    """Samples with at least one feature: the first present one is drawn, those after it are free."""
    u = torch.rand(models, batch, 1, generator=generator)
    none = (1 - p) ** n
    # inverse of the distribution of the first present feature, given that there is one
    first = torch.floor(torch.log1p(-u * (1 - none)) / torch.log1p(-p.clamp(max=1 - 1e-6)))
    place = torch.arange(n)
    free = torch.rand(models, batch, n, generator=generator) < p
    present = (place == first) | ((place > first) & free)
    return present * torch.rand(models, batch, n, generator=generator)


def _toy_loss(W: Tensor, b: Tensor, x: Tensor, weight: Tensor, p: Tensor) -> Tensor:
    """Expected loss per model: given a feature, weighted by its chance, plus that of the empty sample."""
    out = torch.relu(x @ W.transpose(1, 2) @ W + b)
    some = 1 - (1 - p) ** x.shape[-1]
    empty = (weight * torch.relu(b[:, 0]) ** 2).sum(-1)
    return some * (weight * (out - x) ** 2).sum(-1).mean(-1) + (1 - some) * empty


@dataclass(frozen=True)
class Phases:
    """Two features in one dimension, trained to the optimum of their exact expected loss."""

    w: Float[np.ndarray, "cells restarts 2"]
    b: Float[np.ndarray, "cells restarts 2"]
    loss: Float[np.ndarray, "cells restarts"]

    @property
    def best(self) -> Float[np.ndarray, "cells 2"]:
        """w of the best restart."""
        return self.w[np.arange(len(self.w)), self.loss.argmin(axis=1)]


def train_phases(
    p: Float[np.ndarray, " cells"],
    importance: Float[np.ndarray, " cells"],
    *,
    restarts: int = 10,
    steps: int = 500,
    seed: int = 0,
    start: Float[np.ndarray, " 2"] | None = None,
) -> Phases:
    """The phase diagram's cells: presence p, importances (1, I), all restarts at once.

    Args:
        start: weights to begin at, jittered, instead of random ones: follows one phase beyond its boundary.
    """
    rng = rng_for(seed, "phases")
    shape = (len(p), restarts, 2)
    begin = rng.standard_normal(shape) if start is None else start + 0.01 * rng.standard_normal(shape)
    w = torch.tensor(begin).requires_grad_(True)
    b = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    chance, weight = (torch.tensor(v, dtype=torch.float64)[:, None] for v in (p, importance))
    optimizer = torch.optim.Adam([w, b], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        phase_losses(w, b, chance, weight).sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        loss = phase_losses(w, b, chance, weight)
    return Phases(w.detach().numpy(), b.detach().numpy(), loss.numpy())


def phase_losses(
    w: Float[Tensor, "cells restarts 2"],
    b: Float[Tensor, "cells restarts 2"],
    p: Float[Tensor, "cells 1"],
    importance: Float[Tensor, "cells 1"],
) -> Float[Tensor, "cells restarts"]:
    """Exact expected loss of two features in one dimension, by quadrature over who is present."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    x, v = torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    total = 0.0
    for first, second in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x1, v1 = (x, v) if first else (zero, one)
        x2, v2 = (x, v) if second else (zero, one)
        X = torch.stack(torch.meshgrid(x1, x2, indexing="ij"), -1).reshape(-1, 2)
        V = (v1[:, None] * v2[None]).reshape(-1)
        hidden = (X * w[..., None, :]).sum(-1)
        error = (torch.relu(hidden[..., None] * w[..., None, :] + b[..., None, :]) - X) ** 2
        mean = (error * V[:, None]).sum(-2)
        chance = p ** (first + second) * (1 - p) ** (2 - first - second)
        total = total + chance * (mean[..., 0] + importance * mean[..., 1])
    return total  # pyright: ignore[reportReturnType]  (a tensor after the first term)


def boundary(importance: float) -> float:
    """p* = 4 I / (2 + 5 I): below it two features share a dimension in opposite directions, above it the less
    important one is dropped.

    It equates I (p/3 - p^2/4), the loss of dropping, with (1 + I) p^2 / 6, that of the pair w = (1, -1) without
    bias; the optimum over weights and biases of the pair lies a little higher.
    """
    return 4 * importance / (2 + 5 * importance)


def dimensionality(W: Float[np.ndarray, "m n"]) -> Float[np.ndarray, " n"]:
    """D_i = |W_i|^2 / sum_j (W_i . W_j)^2 / |W_i|^2: the share of a dimension that feature i has; at most m in
    all (arXiv 2209.10652)."""
    unit = W / np.maximum(np.linalg.norm(W, axis=0), 1e-12)
    return (W**2).sum(axis=0) / np.maximum(((unit.T @ W) ** 2).sum(axis=1), 1e-12)


def polytope(name: str) -> Float[np.ndarray, "m n"]:
    """Unit vectors of the arrangements that toy models find.

    Raises:
        ValueError: if the name is not known.
    """
    match name:
        case "digon":
            return np.array([[1.0, -1.0]])
        case "triangle" | "pentagon":
            angles = 2 * np.pi * np.arange(3 if name == "triangle" else 5) / (3 if name == "triangle" else 5)
            return np.stack([np.cos(angles), np.sin(angles)])
        case "tetrahedron":
            return np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).T / np.sqrt(3)
        case "square antiprism":
            angles = np.pi / 4 * np.arange(8)
            height = np.where(np.arange(8) % 2, -1, 1) * np.sqrt(1 / 3)
            return np.stack([np.sqrt(2 / 3) * np.cos(angles), np.sqrt(2 / 3) * np.sin(angles), height])
    raise ValueError(f"no polytope is called {name!r}")


DIMENSIONALITY = {
    "digon": 1 / 2,
    "triangle": 2 / 3,
    "pentagon": 2 / 5,
    "tetrahedron": 3 / 4,
    "square antiprism": 3 / 8,
}


def vulnerability(W: Float[np.ndarray, "m n"], b: Float[np.ndarray, " n"], *, budget: float = 0.1) -> float:
    """Largest change of an output that a perturbation of the other inputs, of length `budget`, can make, as a
    share of the budget; mean over features, each present at 1 and pushed in its worst direction."""
    moved = []
    for j in range(W.shape[1]):
        reach = W.T @ W[:, j]
        reach[j] = 0.0
        size = np.linalg.norm(reach)
        x = np.zeros(W.shape[1])
        x[j] = 1.0
        worst = budget * reach / size if size > 0 else 0 * reach
        out = [np.maximum(W[:, j] @ (W @ (x + s * worst)) + b[j], 0.0) for s in (1, -1, 0)]
        moved.append(max(abs(out[0] - out[2]), abs(out[1] - out[2])) / budget)
    return float(np.mean(moved))


def unit_columns(W: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
    """Directions of the features."""
    return W / np.linalg.norm(W, axis=0)
