"""Two worlds that share a planted fraction of their interference structure, as arrays.

Features lie in blocks; within a block directions overlap, across blocks they do not, beyond chance. Each block is with
probability `phi` the same in both models, up to one rotation of the space; the features of all other blocks are dealt
to blocks anew, with new directions. Features carry other numbers in the second model, and fire on the same concepts of a
common text, with noise of their own. So the matching, the number of shared pairs and their fraction are known.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse


@dataclass(frozen=True)
class TransferWorld:
    """What is seen, and the truth behind it."""

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


def transfer_world(
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
) -> TransferWorld:
    """A world whose blocks are shared independently, with probability `phi`.

    Args:
        rng: draws everything.
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
    return TransferWorld(
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
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _noisy(rng: np.random.Generator, acts: Any, noise: float) -> sparse.csr_matrix:
    data = acts.data * np.exp(noise * rng.standard_normal(len(acts.data)))
    return sparse.csr_matrix((data, acts.indices, acts.indptr), shape=acts.shape)
