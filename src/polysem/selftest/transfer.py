"""GT6: what two models share, and whether a test of transfer keeps its level."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from polysem.edits import Add
from polysem.geometry import pair_blocks
from polysem.seeds import rng_for
from polysem.selftest.lines import Measured, at_least, near, rate, reported
from polysem.selftest.runner import Scale
from polysem.worlds import transfer
from polysem.worlds.linear import SITE

CUT = 0.35
PHIS = (0.0, 0.25, 0.5, 0.75)


def shared(size: Scale) -> Iterator[Measured]:
    """The share of A's pairs that B has, with its interval, over many worlds; and the test that it is zero."""
    n = size.of(60, 200)
    matched, covered, found, drift = [], 0, {phi: [] for phi in PHIS}, []
    for k in range(n):
        phi = PHIS[1 + k % (len(PHIS) - 1)]
        world = transfer.transfer_world(phi=phi, seed=100_000 * size.seed + k)
        partner, right = _match(world)
        matched.append(right)
        estimate, lo, hi = _lift(world, partner)
        covered += lo <= phi <= hi
        found[phi].append(estimate)
        drift.append(_effect_share(world, partner) - world.truth.share)
    yield at_least("features matched rightly by activation", np.mean(matched), 0.99, unit="share")
    yield rate("coverage of the 95 % interval of the share", covered, n, nominal=0.95, at=0.02)
    for phi in PHIS[1:]:
        error = np.std(found[phi], ddof=1) / np.sqrt(len(found[phi]))
        yield near(f"share estimated at phi = {phi:g}", np.mean(found[phi]), phi, 3 * error, error=error)
    error = np.std(drift, ddof=1) / np.sqrt(n)
    yield near(
        "share of A's effect that is there in B, minus the truth",
        np.mean(drift),
        0.0,
        max(0.02, 3 * error),
        error=error,
    )
    rejected = sum(
        _qap(transfer.transfer_world(phi=0.0, seed=200_000 + 100_000 * size.seed + k), k) <= 0.05
        for k in range(n)
    )
    yield rate("rejections at phi = 0 (node permutation)", rejected, n, nominal=0.05, at=0.02)
    hits = sum(
        _qap(transfer.transfer_world(phi=0.5, seed=300_000 + k), k) <= 0.05 for k in range(size.of(10, 50))
    )
    yield at_least("rejections at phi = 0.5", hits / size.of(10, 50), 0.95, unit="share of replicates")


def _match(world: transfer.TransferWorld) -> tuple[np.ndarray, float]:
    """For every feature of A the one of B with the most alike activations, and the share that is right."""
    a, b = (_standard(side.codes) for side in (world.a, world.b))
    partner = (a.T @ b).argmax(axis=1)
    return partner, float((world.truth.order[partner] == np.arange(len(partner))).mean())


class Share(NamedTuple):
    """Share of A's close pairs that are close in B, beyond chance, with its 95 % interval."""

    estimate: float
    lo: float
    hi: float


def estimate_share(world: transfer.TransferWorld) -> Share:
    """The share, features matched by activation; Wilson's interval, less what chance alone gives."""
    return _lift(world, _match(world)[0])


def _lift(world: transfer.TransferWorld, partner: np.ndarray) -> Share:
    from scipy.stats import norm

    in_a, in_b = _close(world.a), _close(world.b)
    renamed = [tuple(sorted((int(partner[i]), int(partner[j])))) for i, j in in_a]
    hits, n = sum(pair in in_b for pair in renamed), len(renamed)
    total = len(partner) * (len(partner) - 1) / 2
    chance = len(in_b) / total
    z = norm.ppf(0.975)
    centre = (hits + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(hits * (n - hits) / n + z**2 / 4)
    values = np.array([hits / n, centre - half, centre + half])
    estimate, lo, hi = (values - chance) / (1 - chance)
    return Share(float(estimate), float(lo), float(hi))


def _close(side: transfer.Side) -> set[tuple[int, int]]:
    """Pairs at cosine >= CUT, as the pair kernel finds them."""
    none = np.zeros((len(side.directions), 1), dtype=np.float32)
    blocks = pair_blocks(
        side.directions.astype(np.float32), none, min_interference=CUT, max_similarity=None, signed=True
    )
    return {(int(i), int(j)) for block in blocks for i, j in zip(block.i, block.j, strict=True)}


def _effect_share(world: transfer.TransferWorld, partner: np.ndarray) -> float:
    """Effect in B of A's pairs as a share of the effect in A: log-odds of the target's token, through both models."""
    pairs = sorted(world.truth.pairs_a)
    i, j = np.array(pairs).T
    return _effects(world.b, partner[i], partner[j]) / _effects(world.a, i, j)


def _effects(side: transfer.Side, source: np.ndarray, target: np.ndarray, dose: float = 0.05) -> float:
    """Mean shift of the target's own logit when the source is pushed."""
    tokens = torch.ones(len(source), 1, dtype=torch.long)
    vector = torch.as_tensor(dose * side.directions[source])
    edit = Add(SITE, vector, torch.ones(tokens.shape, dtype=torch.bool))
    moved = side.model.logits(tokens, [edit]) - side.model.logits(tokens)
    return float(moved[torch.arange(len(source)), -1, torch.as_tensor(1 + target)].mean())


def _qap(world: transfer.TransferWorld, seed: int, permutations: int = 99) -> float:
    """p of the correlation of the two Gram matrices under permutation of B's features."""
    partner, _ = _match(world)
    rng = rng_for(seed, "qap")
    a = world.a.directions @ world.a.directions.T
    b = (world.b.directions @ world.b.directions.T)[np.ix_(partner, partner)]
    upper = np.triu_indices(len(a), 1)
    flat = a[upper] - a[upper].mean()
    seen = flat @ b[upper]
    null = []
    for _ in range(permutations):
        order = rng.permutation(len(b))
        null.append(flat @ b[np.ix_(order, order)][upper])
    return (1 + sum(value >= seen for value in null)) / (permutations + 1)


def pools(size: Scale) -> Iterator[Measured]:
    """Randomisation over pools keeps its level where pools differ in potency; a t test on sentences does not."""
    from scipy.stats import ttest_ind

    n = size.of(400, 2000)
    rejected = naive = 0
    for k in range(n):
        trials = transfer.pool_trials(seed=100_000 * size.seed + k)
        rejected += _pool_p(trials) <= 0.05
        naive += (
            ttest_ind(trials.treated, trials.matched[0], equal_var=False, alternative="greater").pvalue
            <= 0.05
        )
    yield rate("rejections of no transfer, pool randomisation", rejected, n, nominal=0.05, at=0.02)
    error = np.sqrt(naive / n * (1 - naive / n) / n)
    yield reported(
        "the same by Welch's t on sentences",
        naive / n,
        error=error,
        unit="share of replicates",
        note="nominal 0.05",
    )
    m = size.of(100, 500)
    power = sum(_pool_p(transfer.pool_trials(effect=1.5, seed=900_000 + k)) <= 0.05 for k in range(m)) / m
    yield at_least(
        "power at an effect of three standard deviations of potency",
        power,
        0.8,
        error=np.sqrt(power * (1 - power) / m),
    )


def _pool_p(trials: transfer.PoolTrials) -> float:
    seen = trials.treated.mean()
    return float((1 + (trials.matched.mean(axis=1) >= seen).sum()) / (len(trials.matched) + 1))


def _standard(codes: np.ndarray) -> np.ndarray:
    return (codes - codes.mean(axis=0)) / codes.std(axis=0)
