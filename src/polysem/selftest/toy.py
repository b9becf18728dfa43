"""GT1: toy models of superposition against their closed forms."""

from collections.abc import Iterator

import numpy as np
import torch

from polysem.edits import Add
from polysem.selftest.lines import Measured, at_least, at_most, between, near, reported
from polysem.selftest.runner import RunSize
from polysem.worlds import toy

PENTAGON = {"norm": 1.135, "bias": -0.247}
"""validity document, section 4; six seeds there and six here agree to 0.003"""


def phases(size: RunSize) -> Iterator[Measured]:
    """Two features in one dimension: shared or dropped."""
    low, high = np.array([0.2, 0.3, 0.35]), np.array([0.6, 0.7])
    found = toy.train_phases(np.concatenate([low, high]), np.full(5, 0.5), seed=size.seed)
    best = found.best
    sharing = np.sign(best[:3, 0] * best[:3, 1]) * np.minimum(*np.abs(best[:3]).T)
    yield at_most(
        "lesser weight, signed by its cosine, below the boundary (p <= 0.35)",
        sharing.max(),
        -0.5,
        note="-1: both represented, antipodal; 0: one is dropped",
    )
    cosines = np.sign(found.w[:3].prod(axis=2)) * (np.abs(found.w[:3]).min(axis=2) > 0.1)
    stuck = 1 - (cosines < -0.95).mean()
    yield reported("single restarts that do not share, p <= 0.35", stuck, note="so the best of 10 is taken")
    yield at_most("lesser weight above it (p >= 0.6)", np.abs(best[3:]).min(axis=1).max(), 0.1)
    p = torch.tensor([[0.3], [0.5]], dtype=torch.float64)
    importance = torch.full((2, 1), 0.5, dtype=torch.float64)
    w = torch.tensor([[[1.0, 0.0], [1.0, -1.0]]] * 2, dtype=torch.float64)
    b = torch.stack([torch.stack([torch.zeros(2), torch.zeros(2)])] * 2).double()
    b[:, 0, 1] = p[:, 0] / 2
    seen = toy.phase_losses(w, b, p, importance)
    expected = torch.cat([0.5 * (p / 3 - p**2 / 4), 1.5 * p**2 / 6], dim=1)
    off = float((seen / expected - 1).abs().max())
    yield at_most(
        "losses against closed forms", off, 0.02, unit="relative error", note="kinks in the quadrature"
    )
    yield from _crossing(size)
    if size.full:
        yield _agreement(size)


def _crossing(size: RunSize) -> Iterator[Measured]:
    """Where the two phases, each followed to its own optimum, cost the same."""
    p = np.linspace(0.44, 0.5, 13)
    half = np.full(13, 0.5)
    shared, dropped = (
        toy.train_phases(p, half, restarts=1, start=np.array(start), seed=size.seed).loss[:, 0]
        for start in ([1.0, -1.0], [1.0, 0.0])
    )
    later = np.flatnonzero(shared > dropped)
    crossing = float(p[later[0]]) if len(later) else float("nan")
    yield between("boundary of the full optimum at I = 0.5", crossing, 0.45, 0.5, unit="p")
    yield reported("closed form without bias tuning", toy.boundary(0.5), unit="p", note="4I / (2 + 5I)")


def _agreement(size: RunSize) -> Measured:
    """Share of the diagram's cells, 0.1 or more from the boundary, in the phase that it says."""
    importance, p = (a.ravel() for a in np.meshgrid(np.linspace(0.1, 1, 10), np.linspace(0.05, 0.9, 18)))
    best = np.abs(toy.train_phases(p, importance, seed=size.seed).best).min(axis=1)
    limit = np.array([toy.boundary(float(i)) for i in importance])
    clear = np.abs(p - limit) >= 0.1
    agree = (best[clear] > 0.2) == (p[clear] < limit[clear])
    return at_least(
        "cells of the phase diagram as the closed form says", agree.mean(), 0.95, note=f"{clear.sum()} cells"
    )


def geometry(size: RunSize) -> Iterator[Measured]:
    """Fractional dimensionality of constructed and of trained arrangements; pushing a pentagon."""
    for name, expected in toy.DIMENSIONALITY.items():
        seen = toy.dimensionality(toy.polytope(name))
        yield near(f"dimensionality of the {name}", seen[np.abs(seen - expected).argmax()], expected, 1e-12)
    steps, batch = (size.of(1500, 6000), size.of(512, 1024))
    found = toy.train_toys(n=5, m=2, p=np.full(6, 0.05), steps=steps, batch=batch, seed=size.seed)
    dimensions = np.array([toy.dimensionality(W) for W in found.W])
    good = (np.abs(dimensions - 0.4).max(axis=1) < 0.005).sum()
    yield at_least("trained pentagons with |D - 0.4| < 0.005", good, 5, unit="of 6 seeds")
    yield at_most(
        "sum of D over features, largest", dimensions.sum(axis=1).max(), 2.0 + 1e-6, note="dimensions: 2"
    )
    W, b = found.W[found.loss.argmin()], found.b[found.loss.argmin()]
    G = toy.unit_columns(W).T @ toy.unit_columns(W)
    neighbours, opposite = np.sort(G, axis=1)[:, 2:4], np.sort(G, axis=1)[:, :2]
    yield near("cosine of neighbours", neighbours.mean(), np.cos(2 * np.pi / 5), 0.01)
    yield near("cosine of the others", opposite.mean(), np.cos(4 * np.pi / 5), 0.01)
    yield near("norm", np.linalg.norm(W, axis=0).mean(), PENTAGON["norm"], 0.01)
    yield near("bias", b.mean(), PENTAGON["bias"], 0.01)
    yield from _steering(W, b, G)


def _steering(W: np.ndarray, b: np.ndarray, G: np.ndarray) -> Iterator[Measured]:
    """Pushing one feature from rest, through the seam: nothing, then a line."""
    model, i = toy.ToyModel(W, b), 0
    neighbour, other = int(np.argsort(G[i])[-2]), int(np.argsort(G[i])[0])
    doses = np.linspace(0, 2, 401)
    out = _outputs(model, W[:, i] / np.linalg.norm(W[:, i]), doses)
    reading = np.linalg.norm(W[:, neighbour]) * G[i, neighbour]
    moved = out[:, 1 + neighbour] > 0
    threshold = doses[moved][0] if moved.any() else float("nan")
    yield near(
        "dose at which a neighbour answers", threshold, -b[neighbour] / reading, 0.02, unit="activation"
    )
    slope = np.polyfit(doses[moved], out[moved, 1 + neighbour], 1)[0]
    yield near("slope beyond it", slope, reading, 0.02 * reading, unit="output per activation")
    yield at_most("answer of an opposite feature", np.abs(out[:, 1 + other]).max(), 0.0, unit="output")


def _outputs(model: toy.ToyModel, direction: np.ndarray, doses: np.ndarray) -> np.ndarray:
    """[dose, token]: outputs after BOS with the direction added."""
    tokens = torch.zeros(len(doses), 1, dtype=torch.long)
    vector = torch.as_tensor(doses[:, None] * direction)
    edit = Add(toy.SITE, vector, torch.ones(tokens.shape, dtype=torch.bool))
    return model.logits(tokens, [edit])[:, -1].numpy()


def adversarial(size: RunSize) -> Iterator[Measured]:
    """The sparser the features, the more of them share a dimension, and the further a small attack reaches."""
    from scipy.stats import spearmanr

    p = np.array([0.9, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01])
    steps, batch = size.of(800, 3000), 256
    found = toy.train_toys(
        n=20, m=5, p=p, importance=0.9 ** np.arange(20), steps=steps, batch=batch, seed=size.seed
    )
    per_dimension = (found.W**2).sum(axis=(1, 2)) / 5
    reach = np.array([toy.vulnerability(W, b) for W, b in zip(found.W, found.b, strict=True)])
    for chance, features, value in zip(p, per_dimension, reach, strict=True):
        yield reported(
            f"vulnerability at p = {chance:g}",
            value,
            unit="of the attack",
            note=f"{features:.2f} features per dimension",
        )
    found = float(spearmanr(per_dimension, reach).statistic)
    yield at_least("rank correlation with features per dimension", found, 0.9)
