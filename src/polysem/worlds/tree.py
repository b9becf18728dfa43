"""A planted tree of features, and two dictionaries of it in which every relation is known.

Features of the first level fire by themselves; each has children, at most one of which fires at a time and only where it does;
and so once more. Directions are random and independent, so that nothing but the text says who belongs to whom. The
dictionaries are planted, not learnt: a latent writes a direction, and the dual basis tells it where to fire.

    split      a whole without a latent of its own: two latents, each for half of its tokens, in nearly its direction
    absorbed   a feature whose latent is off where its first child is on; that child's latent writes both directions
    duplicate  a second latent of a feature, its direction a little off
    antipodal  a latent for either sign of one coordinate
    hedge      in the narrow dictionary, one latent for two features that often fire together
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from polysem.geometry.unit import unit_rows
from polysem.saes.base import SAE
from polysem.seeds import rng_for
from polysem.types import Site
from polysem.worlds.tables import plain_sae

SITE = Site(0, "hook_resid_post")
THRESHOLD = 0.2
"""of every latent: magnitudes are at least 0.5"""
CHILD, GRANDCHILD = (0.3, 3), (0.4, 2)
"""chance of each, given its parent, and how many there are"""
PART, ASIDE = 0.9, 0.4
"""length of a part's own direction beside its whole's; of a duplicate's deviation"""


@dataclass(frozen=True)
class PlantedRelations:
    """What is true of the latents of the wide dictionary; pairs with the more general, or the smaller, first."""

    parent: frozenset[tuple[int, int]]
    split: frozenset[tuple[int, int]]
    absorbed: frozenset[tuple[int, int]]
    duplicate: frozenset[tuple[int, int]]
    antipodal: frozenset[tuple[int, int]]
    hedge: frozenset[tuple[int, int]]
    absorption: float
    """share of an absorbed feature's tokens on which its latent is off"""


@dataclass(frozen=True)
class TreeWorld:
    """Activations, and the dictionaries."""

    directions: Float[np.ndarray, "m d"]
    chance: Float[np.ndarray, " m"]
    """of a feature that hangs on none"""
    kin: tuple[tuple[int, tuple[int, ...], float], ...]
    """(feature, those of which at most one fires with it, chance of each), from the first level down"""
    beside: tuple[tuple[int, int, float], ...]
    """(feature, another that fires with it too, with what chance)"""
    signed: tuple[int, ...]
    """features of either sign"""
    wide: SAE
    narrow: SAE
    truth: PlantedRelations
    noise: float

    def sample(self, n: int, *, seed: int) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n m"]]:
        """Activations and their codes."""
        rng = rng_for(seed, "tree world", "tokens")
        present = rng.random((n, len(self.chance))) < self.chance
        for feature, others, chance in self.kin:
            which = np.floor(rng.random(n) / chance).astype(np.int64)
            for k, other in enumerate(others):
                present[:, other] = present[:, feature] & (which == k)
        for feature, other, chance in self.beside:
            present[:, other] |= present[:, feature] & (rng.random(n) < chance)
        codes = present * (0.5 + rng.random(present.shape))
        codes[:, self.signed] *= rng.choice((-1.0, 1.0), size=(n, len(self.signed)))
        x = codes @ self.directions + self.noise * rng.standard_normal((n, self.directions.shape[1]))
        return x.astype(np.float32), codes


def tree_world(
    *,
    roots: int = 8,
    absorbed: int = 2,
    wholes: int = 6,
    twice: int = 3,
    signed: int = 3,
    mixes: int = 4,
    flat: int = 24,
    cosine: float = 0.45,
    noise: float = 0.01,
    seed: int = 0,
) -> TreeWorld:
    """The world.

    Args:
        roots: features of the first level, each with three children of two children each.
        absorbed: roots whose first child absorbs them.
        wholes: features that the wide dictionary has in two parts.
        twice: of the flat features, those with two latents.
        signed: features of either sign.
        mixes: pairs of features that often fire together.
        flat: features that hang on nothing; every two beside each other at `cosine`.
        cosine: of those pairs, which is interference and no relation.
        noise: standard deviation per coordinate.
    """
    rng = rng_for(seed, "tree world", "directions")
    chance: list[float] = []
    kin: list[tuple[int, tuple[int, ...], float]] = []

    def more(n: int, p: float = 0.0) -> list[int]:
        chance.extend([p] * n)
        return list(range(len(chance) - n, len(chance)))

    tree = more(roots, 0.06)
    lower: list[tuple[int, tuple[int, ...], float]] = []
    for root in tree:
        children = tuple(more(CHILD[1]))
        kin.append((root, children, CHILD[0]))
        lower += [(child, tuple(more(GRANDCHILD[1])), GRANDCHILD[0]) for child in children]
    whole = more(wholes, 0.06)
    parts = [(feature, tuple(more(2)), 0.5) for feature in whole]
    mixed = [(more(1, 0.05)[0], more(1, 0.01)[0], 0.5) for _ in range(mixes)]
    either, alone = more(signed, 0.05), more(flat, 0.04)
    m = len(chance)
    directions = unit_rows(rng.standard_normal((m, m + 40)))
    for a, b in zip(alone[::2], alone[1::2], strict=False):
        rest = unit_rows(directions[b] - (directions[b] @ directions[a]) * directions[a])
        directions[b] = cosine * directions[a] + np.sqrt(1 - cosine**2) * rest
    dual = np.linalg.pinv(directions).T

    rows, columns, own = [], [], {}

    def latent(column: np.ndarray, row: np.ndarray) -> int:
        rows.append(unit_rows(row))
        columns.append(column)
        return len(rows) - 1

    first = {root: children[0] for root, children, _ in kin[:absorbed]}
    below = {feature: others for feature, others, _ in (*kin, *lower)}
    for f in [f for f in range(m) if f not in whole and not any(f in some for _, some, _ in parts)]:
        takes = [root for root, child in first.items() if child == f]
        column = dual[f] - 4 * dual[first[f]] if f in first else dual[f]
        own[f] = latent(column, directions[f] + sum(directions[root] for root in takes))
    split = {
        (latent(dual[a], directions[f] + PART * directions[a]), latent(dual[b], directions[f] + PART * directions[b]))
        for f, (a, b), _ in parts
    }  # fmt: skip
    side = unit_rows(rng.standard_normal((twice, directions.shape[1])))
    duplicate = {
        (own[f], latent(dual[f], directions[f] + ASIDE * s)) for f, s in zip(alone, side, strict=False)
    }
    antipodal = {(own[f], latent(-dual[f], -directions[f])) for f in either}
    above = {(a, b) for a, some in below.items() for b in some}
    above |= {(a, c) for a, b in above for c in below.get(b, ())}
    hidden = {(a, c) for a, b in first.items() for c in (b, *below[b])}
    # Where a latent is off, it covers nothing.
    parent = {(own[a], own[b]) for a, b in above - hidden}
    wide = planted_sae(np.array(rows), np.array(columns))
    kept = [f for f in range(m) if any(f in below[root] for root in tree) or (chance[f] and f not in {g for a, b, _ in mixed for g in (a, b)})]  # fmt: skip
    narrow = planted_sae(
        np.array([*directions[kept], *(unit_rows(directions[a] + directions[b]) for a, b, _ in mixed)]),
        np.array([*dual[kept], *((dual[a] + dual[b]) / 2 for a, b, _ in mixed)]),
    )
    truth = PlantedRelations(
        frozenset(parent), frozenset(split), frozenset((own[a], own[b]) for a, b in first.items()),
        frozenset(duplicate), frozenset(antipodal), frozenset((own[a], own[b]) for a, b, _ in mixed), CHILD[0],
    )  # fmt: skip
    return TreeWorld(
        directions, np.array(chance), (*kin, *lower, *parts), tuple(mixed), tuple(either), wide, narrow, truth, noise
    )  # fmt: skip


def planted_sae(rows: Float[np.ndarray, "n d"], columns: Float[np.ndarray, "n d"]) -> SAE:
    """A JumpReLU dictionary that writes `rows` and reads `columns`."""
    sae = plain_sae(rows, site=SITE)
    return replace(
        sae,
        W_enc=torch.tensor(columns.T, dtype=torch.float32).contiguous(),
        activation="jumprelu",
        threshold=torch.full((len(rows),), THRESHOLD),
    )
