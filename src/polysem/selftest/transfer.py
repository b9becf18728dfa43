"""GT6: what two models share, and whether a test of transfer keeps its level.

Features are matched, pairs judged and counted, and pools compared by the functions that a study of transfer uses.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy import sparse

from polysem.edits import Add
from polysem.seeds import rng_for
from polysem.selftest.lines import Measured, at_least, near, rate, reported
from polysem.selftest.runner import RunSize
from polysem.stats.units import pool_test
from polysem.transfer.matching import Matching, match_features
from polysem.transfer.shared import SharedStructure, passing_pairs, shared_structure
from polysem.worlds import transfer
from polysem.worlds.linear import SITE

MIN_Z = 4.0
PHIS = (0.25, 0.5, 0.75)


def shared(size: RunSize) -> Iterator[Measured]:
    """The share of the structure that two models have in common, with its interval, over many worlds."""
    n = size.of(60, 200)
    matched, covered, found, drift = [], 0, {phi: [] for phi in PHIS}, []
    for k in range(n):
        phi = PHIS[k % len(PHIS)]
        world = transfer.transfer_world(phi=phi, seed=100_000 * size.seed + k)
        matching, structure = shared_pairs(world)
        matched.append((world.truth.order[matching.b] == matching.a).sum() / len(world.truth.order))
        covered += structure.lo <= phi <= structure.hi
        found[phi].append(structure.fraction)
        drift.append(_effect_share(world, matching) - world.truth.share)
    yield at_least("features matched rightly by activation", np.mean(matched), 0.99, unit="share")
    error = np.sqrt(0.95 * 0.05 / n)
    floor = 0.93 if size.full else 0.95 - 3 * error
    note = f"{covered} of {n}"
    yield at_least("coverage of the 95 % interval of the share", covered / n, floor, error=error, note=note)
    for phi in PHIS:
        error = np.std(found[phi], ddof=1) / np.sqrt(len(found[phi]))
        yield near(f"share estimated at phi = {phi:g}", np.mean(found[phi]), phi, 3 * error, error=error)
    error = np.std(drift, ddof=1) / np.sqrt(n)
    name, reach = "share of A's effect that is there in B, minus the truth", max(0.02, 3 * error)
    yield near(name, np.mean(drift), 0.0, reach, error=error)


def unshared(size: RunSize) -> Iterator[Measured]:
    """The test that nothing is shared: its level where nothing is, and that it sees half. Features lie in blocks of
    eight, so that many pairs are shared by chance and the count is not too coarse for a level of 5 %."""
    n = size.of(60, 1000)
    rejected = sum(_p_shared(0.0, seed=200_000 + 10_000 * size.seed + k) <= 0.05 for k in range(n))
    band = (0.03, 0.07) if size.full else None
    yield rate("rejections at phi = 0 (permuted matching)", rejected, n, nominal=0.05, band=band)
    m = size.of(10, 50)
    hits = sum(_p_shared(0.5, seed=300_000 + 10_000 * size.seed + k) <= 0.05 for k in range(m))
    yield at_least(
        "rejections at phi = 0.5", hits / m, 0.95, unit="share of replicates", note=f"{hits} of {m}"
    )


def _p_shared(phi: float, *, seed: int, n_blocks: int = 24, block: int = 8) -> float:
    rng = rng_for(seed, "blocks")
    world = transfer.block_world(rng, phi=phi, block=block, n_blocks=n_blocks, n_tokens=4)
    m = n_blocks * block
    pairs = (
        passing_pairs(world.directions_a, np.arange(m), min_z=MIN_Z),
        passing_pairs(world.directions_b, world.partner, min_z=MIN_Z),
    )
    return shared_structure(*pairs, m=m, level=0.95, rng=rng, permutations=199).p


def shared_pairs(world: transfer.TransferWorld) -> tuple[Matching, SharedStructure]:
    """Features matched by activation, and how much of their interference the two models share."""
    matching = match_features(*(sparse.csr_matrix(side.codes) for side in (world.a, world.b)))
    pairs = [
        passing_pairs(side.directions, features, min_z=MIN_Z)
        for side, features in ((world.a, matching.a), (world.b, matching.b))
    ]
    rng = rng_for(0, "shared pairs")
    return matching, shared_structure(*pairs, m=matching.m, level=0.95, rng=rng, permutations=1)


def _effect_share(world: transfer.TransferWorld, matching: Matching) -> float:
    """Effect in B of A's pairs as a share of the effect in A: log-odds of the target's token, through both models."""
    partner = dict(zip(matching.a.tolist(), matching.b.tolist(), strict=True))
    pairs = [(i, j) for i, j in sorted(world.truth.pairs_a) if i in partner and j in partner]
    i, j = np.array(pairs).T
    in_b = np.array([(partner[a], partner[b]) for a, b in pairs]).T
    return _effects(world.b, *in_b) / _effects(world.a, i, j)


def _effects(side: transfer.ModelSide, source: np.ndarray, target: np.ndarray, dose: float = 0.05) -> float:
    """Mean shift of the target's own logit when the source is pushed."""
    tokens = torch.ones(len(source), 1, dtype=torch.long)
    vector = torch.as_tensor(dose * side.directions[source])
    edit = Add(SITE, vector, torch.ones(tokens.shape, dtype=torch.bool))
    moved = side.model.logits(tokens, [edit]) - side.model.logits(tokens)
    return float(moved[torch.arange(len(source)), -1, torch.as_tensor(1 + target)].mean())


def pools(size: RunSize) -> Iterator[Measured]:
    """Randomisation over pools keeps its level where pools differ in potency; a t test on sentences does not."""
    from scipy.stats import ttest_ind

    n = size.of(400, 2000)
    rejected = naive = 0
    for k in range(n):
        trials = transfer.pool_trials(seed=100_000 * size.seed + k)
        rejected += _pool_p(trials) <= 0.05
        t = ttest_ind(trials.treated, trials.matched[0], equal_var=False, alternative="greater")
        naive += t.pvalue <= 0.05
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
    treated, reference = trials.treated.mean(), trials.matched.mean(axis=1)
    found = pool_test(np.array([[treated]]), reference[None], level=0.95, rng=rng_for(0, "pools"))
    return float(found.p[0])
