"""Polysemanticity degrees: how many gloss clusters each neuron is tied to (arXiv 2505.11611, section 3.6).

A neuron is tied to a feature if it is among the three that the feature's unit direction is most aligned with, at a
cosine above 0.2; its degree is the number of gloss clusters (cut 0.4) of those features, and above 500 it is called a
super-neuron. Coordinates of the site are the paper's neurons; those of the MLP are taken by what they write.

A degree may say no more than that a direction is large, or that every basis has such neurons. So two things stand
beside it: the rank correlation of degree with the variance of the neuron's activation and with the norm of what it
writes, and all of it again in bases that are rotated at random, which have the same features, clusters and activations
but no neurons. A number that lies inside the range of the rotated ones is a property of the space, not of neurons.

Cost: one product of decoder and basis per rotation, O(d_sae d_in n_neurons), in blocks.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from polysem.errors import MismatchError
from polysem.geometry.unit import unit_rows
from polysem.seeds import random_rotation, rng_for
from polysem.store.tables import NEURON_DEGREES, NEURONS

ALIGNED = 3
"""neurons per feature that can count as tied to it"""
MIN_COSINE = 0.2
CLUSTER_CUT = 0.4
"""gloss similarity above which glosses are one cluster, in the paper"""
SUPER = 500
"""clusters above which a neuron is called a super-neuron, in the paper"""
BINS = ((1, 1), (2, 5), (6, 20), (21, 50), (51, 100), (101, 200), (201, 500), (501, None))
"""of degree, in the paper"""
ROTATIONS = 39
"""so that the smallest two-sided p is 0.05"""
_BLOCK = 4096


class Neurons(NamedTuple):
    """One kind of neuron at one SAE's site."""

    kind: str
    """coordinate | mlp"""
    writes: Float[np.ndarray, "n d_in"]
    """what one unit more of each adds to the site"""
    activations: Float[np.ndarray, "n_tokens n"]
    """of each, on the study's prompts"""


def degree_tables(
    label: str,
    directions: Float[np.ndarray, "d_sae d_in"],
    clusters: Int[np.ndarray, " n_clustered"],
    kinds: Sequence[Neurons],
    unembedding: Float[np.ndarray, "d_in d_in"],
    *,
    seed: int,
    rotations: int = ROTATIONS,
) -> dict[str, pa.Table]:
    """NEURONS and NEURON_DEGREES of one SAE.

    Args:
        directions: decoder rows, of any length.
        clusters: gloss cluster of every feature; -1 for features without a gloss, which tie nothing.
        kinds: the neurons to judge.
        unembedding: W_U^T W_U, for the norm of what a neuron writes into the logits.
        seed: root seed, for the rotations.

    Raises:
        MismatchError: if the parts are not of one SAE.
    """
    if len(directions) != len(clusters):
        raise MismatchError(
            f"SAE {label!r}: {len(directions)} directions but {len(clusters)} cluster numbers; expected as many",
            hint="polysem features STUDY.toml",
        )
    unit = unit_rows(directions[clusters >= 0])
    kept = clusters[clusters >= 0]
    neurons: list[dict[str, Any]] = []
    summary: list[dict[str, object]] = []
    for kind in kinds:
        moments = (np.atleast_2d(np.cov(kind.activations, rowvar=False)), kind.activations.mean(axis=0))
        seen = _basis(unit, kept, kind.writes, *moments, unembedding)
        turned = [
            _rotated(unit, kept, kind, unembedding, rng_for(seed, "degrees", label, kind.kind, k))
            for k in range(rotations)
        ]
        null = [_summary(one) for one in turned]
        for basis, of in enumerate((seen, *turned[:1])):
            neurons += [
                {"sae": label, "kind": kind.kind, "basis": basis, "neuron": n}
                | {name: column[n].item() for name, column in of.items()}
                for n in range(len(kind.writes))
            ]
        summary += [
            {"sae": label, "kind": kind.kind} | row
            for row in _against(_summary(seen), null, rotations=rotations)
        ]
    return {
        "neurons": NEURONS.of(neurons),
        "neuron_degrees": NEURON_DEGREES.of(summary),
    }


def tied(
    unit: Float[np.ndarray, "n d_in"], clusters: Int[np.ndarray, " n"], writes: Float[np.ndarray, "m d_in"]
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """(degree, number of tied features) of every neuron: distinct clusters, and features, whose unit direction has the
    neuron among its `ALIGNED` most aligned ones at a cosine above `MIN_COSINE`."""
    neuron, feature = ties(unit, writes)
    pairs = np.unique(np.column_stack([neuron, clusters[feature]]), axis=0)
    degree = (
        np.bincount(pairs[:, 0], minlength=len(writes)) if len(pairs) else np.zeros(len(writes), np.int64)
    )
    return degree, np.bincount(neuron, minlength=len(writes))


def ties(
    unit: Float[np.ndarray, "n d_in"], writes: Float[np.ndarray, "m d_in"]
) -> tuple[Int[np.ndarray, " ties"], Int[np.ndarray, " ties"]]:
    """(neuron, feature) of every tie."""
    along = unit_rows(writes)
    top = min(ALIGNED, len(along))
    features, found = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for start in range(0, len(unit), _BLOCK):
        cosine = unit[start : start + _BLOCK] @ along.T
        best = np.argpartition(-cosine, top - 1, axis=1)[:, :top]
        row, place = np.nonzero(np.take_along_axis(cosine, best, axis=1) > MIN_COSINE)
        features.append(row + start)
        found.append(best[row, place])
    return np.concatenate(found), np.concatenate(features)


def bin_of(degree: int) -> int:
    """Number of the bin of degree; 0 for neurons that are tied to nothing."""
    return next(
        (k for k, (low, high) in enumerate(BINS, 1) if low <= degree and (high is None or degree <= high)), 0
    )


def gloss_clusters(clusters: pa.Table, label: str, d_sae: int) -> Int[np.ndarray, " d_sae"] | None:
    """The gloss cluster of every feature of one SAE at the paper's cut, -1 without; None where there are none.

    Args:
        clusters: CLUSTERS.
        d_sae: features of it.
    """
    near = pc.less(pc.abs(pc.subtract(clusters["similarity_cut"], CLUSTER_CUT)), 1e-9)
    own = clusters.filter(pc.and_(pc.equal(clusters["sae"], label), near))
    number = np.full(d_sae, -1)
    number[own["feature"].to_numpy()] = own["cluster"].to_numpy()
    return number if own.num_rows else None


def _basis(
    unit: np.ndarray,
    clusters: np.ndarray,
    writes: np.ndarray,
    covariance: np.ndarray,
    mean: np.ndarray,
    unembedding: np.ndarray,
) -> dict[str, np.ndarray]:
    degree, features = tied(unit, clusters, writes)
    logit = np.sqrt(np.maximum(np.einsum("nd,de,ne->n", writes, unembedding, writes, optimize=True), 0.0))
    return {
        "degree": degree,
        "n_features": features,
        "variance": np.diag(covariance).copy(),
        "mean": mean,
        "write_norm": np.linalg.norm(writes, axis=1),
        "logit_norm": logit,
    }


def _rotated(
    unit: np.ndarray, clusters: np.ndarray, kind: Neurons, unembedding: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The same in a basis rotated uniformly at random: neurons' activations a become Q^T a, their writes Q^T W."""
    Q = random_rotation(len(kind.writes), rng)
    turned = kind.activations @ Q
    moments = (np.diag(turned.var(axis=0, ddof=1)), turned.mean(axis=0))
    return _basis(unit, clusters, Q.T @ kind.writes, *moments, unembedding)


def _summary(seen: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The quantities that are compared with rotated bases."""
    degree = seen["degree"]
    some = degree[degree > 0]
    found = {
        "tied": float((degree > 0).mean()),
        "mean_degree": float(some.mean()) if len(some) else 0.0,
        "largest_degree": float(degree.max(initial=0)),
        "super_neurons": float((degree > SUPER).sum()),
        "one_or_two": float((some <= 2).mean()) if len(some) else float("nan"),
    }
    for name in ("variance", "write_norm", "logit_norm"):
        found[f"rank_correlation_{name}"] = _rank_correlation(degree, seen[name])
    return found


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; NaN where either does not vary (to rounding)."""
    from scipy import stats

    if np.ptp(a) == 0 or np.ptp(b) <= 1e-9 * np.abs(b).max(initial=0.0):
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


def _against(
    seen: Mapping[str, float], null: Sequence[Mapping[str, float]], *, rotations: int
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, value in seen.items():
        others = np.array([one[name] for one in null])
        others = others[np.isfinite(others)]
        known = np.isfinite(value) and len(others) == rotations
        above = 1 + int((others >= value).sum()) if known else 0
        below = 1 + int((others <= value).sum()) if known else 0
        rows.append(
            {
                "quantity": name,
                "value": value if np.isfinite(value) else None,
                "null_mean": float(others.mean()) if known else None,
                "null_lo": float(others.min()) if known else None,
                "null_hi": float(others.max()) if known else None,
                "p": min(1.0, 2 * min(above, below) / (rotations + 1)) if known else None,
                "n_rotations": rotations,
            }
        )
    return rows
