"""GT5, sparse codes: activations that are sums of a known dictionary's features.

x = sum_i a_i d_i + noise, feature i present with probability p_i (Zipf), magnitude U[0.5, 1.5]. Unit directions are
random, but for planted pairs at a chosen cosine; with `hierarchy`, the second half of the features are
children, present only with their parent. Two questions are asked of it (validity document, section 4): does
the map of pairs recover the planted pairs when the dictionary is given, and how does that fall when the
dictionary was learnt? Matching of learnt latents to features is Hungarian on cosines; MCC is the mean of the
matched cosines (mean correlation coefficient).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.geometry.unit import unit_rows
from polysem.saes.base import SAE
from polysem.seeds import rng_for
from polysem.types import Site
from polysem.worlds.tables import plain_sae

SITE = Site(0, "hook_resid_post")
MATCHED = 0.7
"""a latent is a feature if their matched cosine is above this"""


@dataclass(frozen=True)
class CodesTruth:
    """What was planted."""

    directions: Float[np.ndarray, "n d"]
    chance: Float[np.ndarray, " n"]
    """probability that a feature is present, given its parent where it has one"""
    parent: Int[np.ndarray, " n"]
    """-1 for none"""
    pairs: tuple[tuple[int, int], ...]
    """planted at `cosine`"""
    cosine: float

    def close(self, cut: float) -> set[tuple[int, int]]:
        """All pairs i < j with |cosine| >= cut, planted or by chance."""
        gram = self.directions @ self.directions.T
        return {(int(i), int(j)) for i, j in np.argwhere(np.triu(np.abs(gram) >= cut, 1))}


@dataclass(frozen=True)
class CodesWorld:
    """A source of activations."""

    truth: CodesTruth
    noise: float

    @property
    def sae(self) -> SAE:
        """The true dictionary as an SAE."""
        return plain_sae(self.truth.directions, site=SITE)

    def sample(
        self, n: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n features"]]:
        """Activations and their codes."""
        chance = torch.tensor(self.truth.chance, dtype=torch.float32)
        size = (n, len(chance))
        present = torch.rand(size, generator=generator) < chance
        child = torch.as_tensor(np.flatnonzero(self.truth.parent >= 0))
        present[:, child] &= present[:, torch.as_tensor(self.truth.parent)[child]]
        codes = present * (0.5 + torch.rand(size, generator=generator))
        x = codes @ torch.tensor(self.truth.directions, dtype=torch.float32)
        return x + self.noise * torch.randn(x.shape, generator=generator), codes


def codes_world(
    *,
    n_features: int = 128,
    d: int = 64,
    n_pairs: int = 24,
    cosine: float = 0.45,
    l0: float = 4.0,
    zipf: float = 0.7,
    hierarchy: bool = False,
    noise: float = 0.01,
    seed: int = 0,
) -> CodesWorld:
    """The world.

    Args:
        n_pairs: planted pairs (2 k, 2 k + 1) at `cosine`.
        cosine: of planted pairs.
        l0: mean number of features present, hierarchy apart.
        zipf: exponent of the firing chances over ranks.
        hierarchy: the last half are children of the first half, present in half of their parents' cases.
        noise: standard deviation per coordinate.
    """
    rng = rng_for(seed, "codes world")
    directions = unit_rows(rng.standard_normal((n_features, d)))
    first = directions[0 : 2 * n_pairs : 2]
    rest = directions[1 : 2 * n_pairs : 2]
    rest = unit_rows(rest - (rest * first).sum(1, keepdims=True) * first)
    directions[1 : 2 * n_pairs : 2] = cosine * first + np.sqrt(1 - cosine**2) * rest
    chance = np.minimum(0.5, (1.0 + np.arange(n_features)) ** -zipf)
    chance = rng.permutation(np.minimum(0.5, chance * l0 / chance.sum()))
    parent = np.full(n_features, -1)
    if hierarchy:
        half = n_features // 2
        parent[half:] = np.arange(n_features - half) % half
        chance[half:] = 0.5
    pairs = tuple((2 * k, 2 * k + 1) for k in range(n_pairs))
    return CodesWorld(CodesTruth(directions, chance, parent, pairs, cosine), noise)


@dataclass(frozen=True)
class Recovery:
    """A learnt dictionary against the truth."""

    mcc: float
    """mean cosine of features with their matched latents"""
    matched: float
    """share of features whose latent is above MATCHED"""
    precision: float
    """share of the learnt dictionary's close pairs that are close in truth; nan if it has none"""
    recall: float
    """share of the truth's close pairs that are close in the learnt dictionary"""
    true_pairs: frozenset[tuple[int, int]]
    """pairs of features found, whether right or wrong"""


def recovery(truth: CodesTruth, W_dec: Float[np.ndarray, "d_sae d"], *, cut: float = 0.3) -> Recovery:
    """How well a dictionary recovers features, and pairs of features at |cosine| >= cut.

    A close pair of latents counts as found for their features if both latents are matched; one with an unmatched
    latent is false.
    """
    from scipy.optimize import linear_sum_assignment

    norms = np.linalg.norm(W_dec, axis=1)
    rows = unit_rows(W_dec[norms > 1e-8])
    cosines = truth.directions @ rows.T
    feature, latent = linear_sum_assignment(-cosines)
    values = np.zeros(len(truth.directions))
    values[feature] = cosines[feature, latent]
    owner = np.full(len(rows), -1)
    good = cosines[feature, latent] > MATCHED
    owner[latent[good]] = feature[good]
    close = np.argwhere(np.triu(np.abs(rows @ rows.T) >= cut, 1))
    owners = [(int(owner[a]), int(owner[b])) for a, b in close]
    named = [(min(pair), max(pair)) for pair in owners]
    found = {pair for pair in named if pair[0] >= 0}
    real = truth.close(cut)
    right = sum(pair in real for pair in named)
    return Recovery(
        mcc=float(values.mean()),
        matched=float((values > MATCHED).mean()),
        precision=right / len(named) if named else float("nan"),
        recall=len(found & real) / len(real),
        true_pairs=frozenset(found),
    )
