"""Features without a counterpart in another dictionary: are their spans there all the same?

A dictionary may divide one subspace of a model in another way from every seed: no feature comes back, what they span does
(arXiv 2606.12138). A group is a feature and its nearest neighbours among those without a counterpart; its span holds `ENERGY` of
their squared length. Beside it stands the span, of equal rank, of as many such features of the other dictionary, those that lie
most in the first. Choosing them makes any two spans alike, so chance chooses in the same way: for spans of that rank drawn at
random (the same as a dictionary turned at random), and for rows drawn with the mean and covariance of the other's.
Cost: of each group and draw, a product of one span with the other dictionary.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from polysem.geometry.unit import unit_rows

SIZE, GROUPS = 16, 64
"""features of a group, and groups drawn at most"""
ENERGY = 0.9
"""share of the squared length of a group's rows that its span holds"""
DRAWS, DRAWN = 20, 3
"""random spans for each group; dictionaries drawn with a covariance"""


@dataclass(frozen=True)
class SharedSpans:
    """Of the first dictionary's features without a counterpart, and the other's."""

    group: str
    """neighbours, or all of them as one group"""
    n_groups: int
    size: int
    """features of a group in the first"""
    rank: float
    """of its span, mean over groups"""
    shared: float
    """squared cosine of principal angles, mean over angles and groups: the share of one span that lies in the other"""
    angle: float
    """principal angle in degrees, mean over angles and groups"""
    random: float
    """`shared` of random spans of equal rank, mean of the draws"""
    lo: float
    hi: float
    """smallest and largest of the draws"""
    drawn: float
    """`shared` with rows drawn with the second's mean and covariance, mean of the draws"""


def span(rows: Float[np.ndarray, "n d"], rank: int | None = None) -> Float[np.ndarray, "r d"]:
    """Orthonormal rows that hold `ENERGY` of the squared length of `rows`, largest part first; or the first `rank`."""
    _, size, basis = np.linalg.svd(rows, full_matrices=False)
    if rank is None:
        held = np.cumsum(size**2)
        rank = int(np.searchsorted(held, ENERGY * held[-1] * (1 - 1e-12))) + 1
    return basis[:rank]


def principal_cosines(
    first: Float[np.ndarray, "r d"], second: Float[np.ndarray, "r d"]
) -> Float[np.ndarray, " r"]:
    """Cosines of the principal angles of two spans, given by orthonormal rows; the largest first."""
    return np.clip(np.linalg.svd(first @ second.T, compute_uv=False), 0.0, 1.0)


def shared_spans(
    first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"], *, rng: np.random.Generator
) -> list[SharedSpans]:
    """Groups of neighbours, and all as one group; nothing with fewer than `SIZE` rows on either side.

    Args:
        first: unit decoder rows of features without a counterpart.
        second: of the other dictionary's.
    """
    if min(len(first), len(second)) < SIZE:
        return []
    centres = np.sort(rng.permutation(len(first))[:GROUPS])
    groups = [first[np.argsort(-np.abs(first @ first[c]), kind="stable")[:SIZE]] for c in centres]
    return [
        _beside("neighbours", groups, second, most=SIZE, rng=rng),
        _beside("all", [first], second, most=len(second), rng=rng),
    ]


def _beside(
    name: str, groups: list[np.ndarray], second: np.ndarray, *, most: int, rng: np.random.Generator
) -> SharedSpans:
    spans = [span(rows) for rows in groups]

    def nearest(own: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Cosines of principal angles with the span of the rows that lie most in it."""
        inside = ((rows @ own.T) ** 2).sum(axis=1) if most < len(rows) else np.zeros(len(rows))
        return principal_cosines(own, span(rows[np.argsort(-inside, kind="stable")[:most]], len(own)))

    def mean_share(bases: list[np.ndarray], rows: np.ndarray) -> float:
        return float(np.mean([(nearest(own, rows) ** 2).mean() for own in bases]))

    cosines = [nearest(own, second) for own in spans]
    turned = [mean_share([_random(own.shape, rng) for own in spans], second) for _ in range(DRAWS)]
    mean, d = second.mean(axis=0), second.shape[1]
    root = np.linalg.cholesky(np.cov(second.T) + 1e-12 * np.eye(d))
    drawn = []
    for _ in range(DRAWN):
        rows = mean + rng.standard_normal(second.shape) @ root.T
        drawn.append(mean_share(spans, unit_rows(rows)))
    return SharedSpans(
        name, len(groups), len(groups[0]), float(np.mean([len(own) for own in spans])),
        float(np.mean([(c**2).mean() for c in cosines])), float(np.mean([np.degrees(np.arccos(c)).mean() for c in cosines])),
        float(np.mean(turned)), min(turned), max(turned), float(np.mean(drawn)),
    )  # fmt: skip


def _random(shape: tuple[int, ...], rng: np.random.Generator) -> Float[np.ndarray, "r d"]:
    """Orthonormal rows of a span drawn at random."""
    return np.linalg.qr(rng.standard_normal(shape[::-1]))[0].T
