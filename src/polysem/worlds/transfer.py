"""GT6, transfer: two planted readout models that share a known fraction of their interfering pairs.

Model A has n_pairs disjoint pairs of features at one cosine. Model B lives in a rotated basis; each pair of A is
kept there with probability phi, and the features of the others are paired anew. Feature i means the same in
both: its codes on the same text agree but for noise, so matching by activation has an answer. `pool_trials`
is the other half: trials of a transfer test in which nothing transfers, though token pools differ in potency.

`block_world` is the same question without models, as arrays. Features lie in blocks; within a block directions
overlap, across blocks they do not, beyond chance. Each block is with probability `phi` the same in both models, up to
one rotation of the space; the features of all other blocks are dealt to blocks anew, with new directions. Features
carry other numbers in the second model, and fire on the same concepts of a common text, with noise of their own. So
the matching, the number of shared pairs and their fraction are known.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse

from polysem.geometry.unit import unit_rows
from polysem.seeds import rng_for
from polysem.worlds.linear import LinearWorld


@dataclass(frozen=True)
class TransferTruth:
    """What was planted."""

    phi: float
    pairs_a: frozenset[tuple[int, int]]
    pairs_b: frozenset[tuple[int, int]]
    kept: Bool[np.ndarray, " pairs"]
    order: np.ndarray
    """feature order[k] of A is feature k of B"""

    @property
    def share(self) -> float:
        """Share of A's pairs that B has: those kept, and those that pairing anew happened to make again."""
        in_b = {tuple(sorted((int(self.order[i]), int(self.order[j])))) for i, j in self.pairs_b}
        return len(self.pairs_a & in_b) / len(self.pairs_a)


@dataclass(frozen=True)
class ModelSide:
    """One of the two models."""

    model: LinearWorld
    directions: Float[np.ndarray, "n d"]
    codes: Float[np.ndarray, "positions n"]
    """activations of every feature on the common text"""


@dataclass(frozen=True)
class TransferWorld:
    """Two models."""

    a: ModelSide
    b: ModelSide
    truth: TransferTruth


def transfer_world(
    *, phi: float, n_pairs: int = 60, d: int = 256, cosine: float = 0.45, gain: float = 2.0, seed: int = 0
) -> TransferWorld:
    """The world; features 2 k and 2 k + 1 of A are its pair k."""
    rng = rng_for(seed, "transfer world")
    n = 2 * n_pairs
    pairs_a = [(2 * k, 2 * k + 1) for k in range(n_pairs)]
    kept = rng.random(n_pairs) < phi
    loose = [f for k in np.flatnonzero(~kept) for f in pairs_a[k]]
    again = rng.permutation(loose).reshape(-1, 2).tolist() if loose else []
    pairs_b = [pairs_a[k] for k in np.flatnonzero(kept)] + [tuple(sorted(p)) for p in again]
    order = rng.permutation(n)
    place = np.argsort(order)
    codes = (rng.random((2000, n)) < 0.05) * rng.uniform(0.5, 1.5, (2000, n))
    sides = []
    for pairs, renamed in ((pairs_a, np.arange(n)), (pairs_b, order)):
        rows = _paired(pairs, n, d, cosine, rng)[renamed]
        seen = codes[:, renamed] * rng.uniform(0.8, 1.25, codes.shape)
        W_U = np.concatenate([np.zeros((1, d)), gain * rows, np.zeros((n, d))])
        W_E = unit_rows(rng.standard_normal(W_U.shape))
        sides.append(ModelSide(LinearWorld(torch.tensor(W_E), torch.tensor(W_U)), rows, seen))
    ends = [(int(place[i]), int(place[j])) for i, j in pairs_b]
    renamed_pairs = [(min(pair), max(pair)) for pair in ends]
    truth = TransferTruth(phi, frozenset(pairs_a), frozenset(renamed_pairs), kept, order)
    return TransferWorld(sides[0], sides[1], truth)


def _paired(
    pairs: list[tuple[int, int]], n: int, d: int, cosine: float, rng: np.random.Generator
) -> np.ndarray:
    """Random unit rows with these pairs at the cosine; everything else as chance has it, in a random basis."""
    rows = unit_rows(rng.standard_normal((n, d)))
    for i, j in pairs:
        rest = rows[j] - (rows[j] @ rows[i]) * rows[i]
        rows[j] = cosine * rows[i] + np.sqrt(1 - cosine**2) * rest / np.linalg.norm(rest)
    return rows @ np.linalg.qr(rng.standard_normal((d, d)))[0]


@dataclass(frozen=True)
class PoolTrials:
    """Change in the target's log-odds, sentence by sentence: one treated pool and its matched ones."""

    treated: Float[np.ndarray, " sentences"]
    matched: Float[np.ndarray, "pools sentences"]


def pool_trials(
    *,
    sentences: int = 60,
    draws: int = 20,
    pools: int = 99,
    potency_sd: float = 0.5,
    sentence_sd: float = 0.5,
    noise_sd: float = 1.0,
    effect: float = 0.0,
    seed: int = 0,
) -> PoolTrials:
    """A transfer test; with effect = 0 the treated pool is one more of its kind.

    Args:
        sentences, draws: a sentence's value is the mean over this many draws of tokens.
        pools: matched pools.
        potency_sd: of pools, nats: how much a pool moves any target, for reasons of its own.
        sentence_sd: of how a sentence answers to a pool.
        noise_sd: of one draw.
        effect: of the treated pool, nats.
    """
    rng = rng_for(seed, "pool trials")
    potency = potency_sd * rng.standard_normal((pools + 1, 1))
    answer = sentence_sd * rng.standard_normal((pools + 1, sentences))
    noise = noise_sd / np.sqrt(draws) * rng.standard_normal((pools + 1, sentences))
    values = potency + answer + noise + rng.standard_normal(sentences)
    return PoolTrials(values[0] + effect, values[1:])


@dataclass(frozen=True)
class BlockWorld:
    """Two models whose features lie in blocks, as arrays: what is seen, and the truth behind it."""

    directions_a: Float[np.ndarray, "n d"]
    directions_b: Float[np.ndarray, "n d"]
    acts_a: sparse.csr_matrix
    """[tokens n]"""
    acts_b: sparse.csr_matrix
    partner: Int[np.ndarray, " n"]
    """number in the second model of each feature of the first"""
    phi: float
    """probability that a block is the same: what an estimate is of"""
    realised: float
    """fraction of blocks that are the same in this world"""


def block_world(
    rng: np.random.Generator,
    *,
    phi: float,
    n_blocks: int = 80,
    block: int = 4,
    d: int = 128,
    overlap: float = 0.6,
    n_tokens: int = 1500,
    density: float = 0.02,
    noise: float = 0.3,
) -> BlockWorld:
    """A world whose blocks are shared independently, with probability `phi`.

    Args:
        phi: planted probability, in [0, 1].
        n_blocks: blocks of each model.
        block: features of a block.
        d: width of both models.
        overlap: expected cosine within a block.
        n_tokens: of the common text.
        density: share of tokens on which a feature fires.
        noise: standard deviation of log activations around what the models have in common.
    """
    n, n_shared = n_blocks * block, int(rng.binomial(n_blocks, phi)) * block
    of_a = np.repeat(np.arange(n_blocks), block)
    of_b = of_a.copy()
    of_b[n_shared:] = rng.permutation(of_b[n_shared:])
    first = _directions(rng, of_a, d, overlap)
    second = _directions(rng, of_b, d, overlap)
    second[:n_shared] = first[:n_shared]
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    number = rng.permutation(n)
    turned = np.empty_like(second)
    turned[number] = second @ rotation
    fires = sparse.random(
        n_tokens, n, density=density, rng=rng, format="csr", data_rvs=rng.standard_exponential
    )
    order = np.argsort(number)
    return BlockWorld(
        directions_a=first,
        directions_b=turned,
        acts_a=_noisy(rng, fires, noise),
        acts_b=sparse.csr_matrix(_noisy(rng, fires, noise)[:, order]),
        partner=number,
        phi=phi,
        realised=n_shared / n,
    )


def _directions(rng: np.random.Generator, block: np.ndarray, d: int, overlap: float) -> np.ndarray:
    common = rng.standard_normal((int(block.max()) + 1, d)) / np.sqrt(d)
    own = rng.standard_normal((len(block), d)) / np.sqrt(d)
    rows = np.sqrt(overlap) * common[block] + np.sqrt(1 - overlap) * own
    return unit_rows(rows)


def _noisy(rng: np.random.Generator, acts: Any, noise: float) -> sparse.csr_matrix:
    data = acts.data * np.exp(noise * rng.standard_normal(len(acts.data)))
    return sparse.csr_matrix((data, acts.indices, acts.indptr), shape=acts.shape)
