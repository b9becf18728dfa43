"""GT2: incidental polysemanticity, its scaling laws, and finding it by ablation."""

from collections.abc import Iterator

import numpy as np
import torch

from polysem.edits import Scale
from polysem.selftest.lines import Measured, at_least, between, exactly, near
from polysem.selftest.runner import RunSize
from polysem.worlds.incidental import NEURONS, Incidental, IncidentalModel, train_incidental


def scaling(size: RunSize) -> Iterator[Measured]:
    """Shared neurons grow with the square of the features and fall with the neurons."""
    cells = ((16, 64), (32, 64), (64, 64), (32, 128), (64, 128))
    cells = (*cells, (16, 128), (32, 256), (64, 256)) if size.full else cells
    seeds = size.of(20, 60)
    found = [train_incidental(n=n, m=m, seeds=seeds, seed=size.seed) for n, m in cells]
    counts = np.array([trained.shared.sum() for trained in found])
    slopes, errors = _poisson_slopes(counts, np.log(np.array(cells, dtype=np.float64)))
    for name, k, expected in (("features", 0, 2.0), ("neurons", 1, -1.0)):
        reach = max(0.15, 3 * errors[k])
        note = f"{counts.sum()} shared neurons in {len(cells)} cells of {seeds} seeds"
        yield near(f"log-log slope in {name}", slopes[k], expected, reach, error=errors[k], note=note)
    pairs = np.array([n * (n - 1) / 2 / m for n, m in cells]) * seeds
    constant, error = counts.sum() / pairs.sum(), np.sqrt(counts.sum()) / pairs.sum()
    yield between("shared neurons per expected meeting", constant, 0.25, 0.5, error=error)
    spread = [int((trained.lives.sum(axis=2) != 1).sum()) for trained in found]
    alone = 1 - sum(spread) / (seeds * sum(n for n, _ in cells))
    yield at_least("features that live on one neuron", alone, 0.95, note="the others on two, or on none")
    yield from _decided_at_the_start(found[1])


def _decided_at_the_start(trained: Incidental) -> Iterator[Measured]:
    """Where features end, against where they began: the sign always, the neuron mostly."""
    end = np.abs(trained.W).argmax(axis=2)[..., None]
    began, became = (np.take_along_axis(array, end, axis=2) for array in (trained.start, trained.W))
    yield at_least("features that keep the sign they began with", (began * became > 0).mean(), 0.99)
    rank = (np.abs(trained.start) > np.abs(began)).sum(axis=2)
    m = trained.W.shape[2]
    yield at_least(
        "features that end on one of their 5 largest starts",
        (rank < 5).mean(),
        0.8,
        note=f"chance {5 / m:.3f}",
    )


def _poisson_slopes(counts: np.ndarray, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes of log E[count] on the logs, and their standard errors."""
    import statsmodels.api as sm

    fit = sm.GLM(counts, sm.add_constant(logs), family=sm.families.Poisson()).fit()
    return fit.params[1:], fit.bse[1:]


def ablation(size: RunSize) -> Iterator[Measured]:
    """Switching one neuron off at a time finds the pairs that share it, and no others."""
    n, m, seeds = 32, 64, size.of(5, 20)
    found = train_incidental(n=n, m=m, seeds=seeds, seed=size.seed)
    planted, seen = set(), set()
    for k in range(seeds):
        planted |= {(k, *pair) for neuron in range(m) for pair in _pairs(found.lives[k][:, neuron])}
        drop = _drops(IncidentalModel(found.W[k]))
        seen |= {(k, *pair) for neuron in range(m) for pair in _pairs(drop[neuron] > 0.25)}
    yield at_least(
        "shared pairs found", len(planted & seen) / max(1, len(planted)), 0.95, note=f"{len(planted)} planted"
    )
    yield exactly("false pairs", len(seen - planted), 0, unit="pairs")


def _drops(model: IncidentalModel) -> np.ndarray:
    """[neuron, feature]: by how much the feature's own output falls when the neuron is scaled to zero."""
    n, m = model.spec.d_vocab - 1, model.site_width(NEURONS)
    tokens = torch.arange(1, n + 1).repeat(m)[:, None]
    index = torch.arange(m).repeat_interleave(n)
    edit = Scale(NEURONS, index, torch.zeros(n * m), torch.ones(n * m, 1, dtype=torch.bool))
    own = tokens[:, 0]
    rows = torch.arange(n * m)
    before, after = model.logits(tokens)[rows, -1, own], model.logits(tokens, [edit])[rows, -1, own]
    return (before - after).reshape(m, n).numpy()


def _pairs(lives: np.ndarray) -> list[tuple[int, int]]:
    who = np.flatnonzero(lives).tolist()
    return [(a, b) for k, a in enumerate(who) for b in who[k + 1 :]]
