"""Targets: the features whose tokens are read, drawn for every SAE by a generator of their own."""

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from polysem.categories import builtin
from polysem.config import PairsConfig, PlanConfig
from polysem.plan.index import FeatureIndex
from polysem.seeds import rng_for

log = logging.getLogger(__name__)


def draw_targets(atlas: FeatureIndex, *, pairs: PairsConfig, plan: PlanConfig, seed: int) -> list[int]:
    """The targets of one SAE, rising; fewer than `plan.n_targets` (with a warning) where there are fewer.

    A target is glossed, neither dead nor dense, has tokens in every set that is read, and has a partner in
    the map that is no duplicate. As in arXiv 2505.11611, targets with partners in all interference bins
    come first; then those with most bins. With `plan.about` the categories take turns, each with the feature
    that is most about it.
    """
    readable = np.ones(atlas.sae.d_sae, dtype=bool)
    for name in plan.token_sets:
        readable &= np.array([len(tokens) > 0 for tokens in atlas.tokens_of(name)])
    eligible = np.flatnonzero(atlas.usable & atlas.glossed & readable & _has_partner(atlas, pairs))
    filled = _bins_filled(atlas, pairs)[eligible]
    shuffled = rng_for(seed, "targets", atlas.label).permutation(len(eligible))
    order = shuffled[np.argsort(-filled[shuffled], kind="stable")]
    if plan.about:
        order = _in_turn(atlas, eligible, order, plan.about)
    chosen = order[: plan.n_targets]
    n_bins, full = len(pairs.bins) - 1, int((filled[chosen] == len(pairs.bins) - 1).sum())
    if full < plan.n_targets:
        log.warning(
            "SAE %s: %d targets of %d asked for, %d of them with partners in all %d interference bins "
            "(%d features are glossed, %d could be targets%s)",
            *(
                atlas.label,
                len(chosen),
                plan.n_targets,
                full,
                n_bins,
                int(atlas.glossed.sum()),
                len(eligible),
                f", {len(order)} of them about {', '.join(plan.about)}" if plan.about else "",
            ),
        )
    return sorted(int(t) for t in eligible[chosen])


def _in_turn(
    atlas: FeatureIndex, eligible: Int[np.ndarray, " n"], order: Int[np.ndarray, " n"], about: Sequence[str]
) -> Int[np.ndarray, " m"]:
    """Places in `eligible`: the first of every category, then the second, and so on; a feature once, and none that is
    about no category. Within a category the largest share of its words comes first, equals in the order given."""
    ranks: list[list[int]] = []
    for name in about:
        share = atlas.share_of(builtin().words[name])[eligible[order]]
        first = order[np.argsort(-share, kind="stable")]
        ranks.append(first[: int((share > 0).sum())].tolist())
    found: dict[int, None] = {}
    while any(ranks):
        for rank in ranks:
            # What another category took before is skipped, so that every turn gives a target.
            while rank:
                place = rank.pop(0)
                if place not in found:
                    found[place] = None
                    break
    return np.array(list(found), dtype=np.int64)


def _has_partner(atlas: FeatureIndex, pairs: PairsConfig) -> Bool[np.ndarray, " d_sae"]:
    """Features with a partner in the map that could be their source."""
    i, j, cosine, gloss, flagged = _mined_columns(atlas)
    could = atlas.usable & atlas.glossed
    good = (cosine > 0) & (gloss < pairs.max_similarity) & ~flagged & could[i] & could[j]
    if atlas.excluded:
        good &= np.array(
            [pair not in atlas.excluded for pair in zip(i.tolist(), j.tolist(), strict=True)], dtype=bool
        )
    result = np.zeros(atlas.sae.d_sae, dtype=bool)
    result[i[good]] = result[j[good]] = True
    return result


def _bins_filled(atlas: FeatureIndex, pairs: PairsConfig) -> Int[np.ndarray, " d_sae"]:
    """How many interference bins hold a partner of each feature, by PARTNERS (which counts over all
    pairs)."""
    table = atlas.partners
    at = table.filter(pc.less(pc.abs(pc.subtract(table["max_similarity"], pairs.max_similarity)), 1e-9))
    filled = np.zeros((atlas.sae.d_sae, len(pairs.bins) - 1), dtype=bool)
    if at.num_rows:
        at = at.filter(pc.and_(pc.greater(at["count"], 0), pc.greater_equal(at["interference_bin"], 0)))
        filled[at["feature"].to_numpy(), at["interference_bin"].to_numpy()] = True
        return filled.sum(axis=1)
    # The thresholds counted do not include this one: the map itself knows the bins above its cut, and those
    # below are never bare.
    i, j, cosine, gloss, _ = _mined_columns(atlas)
    good = (cosine > 0) & (gloss < pairs.max_similarity)
    bins = atlas.mined["interference_bin"].to_numpy()
    good &= bins >= 0
    filled[i[good], bins[good]] = filled[j[good], bins[good]] = True
    filled[:, np.array(pairs.bins[:-1]) < pairs.min_interference] = True
    return filled.sum(axis=1)


def _mined_columns(atlas: FeatureIndex) -> Sequence[np.ndarray]:
    """i, j, interference, similarity (infinite where unknown), flagged as duplicate or dense."""
    rows = atlas.mined
    i, j = (rows[c].to_numpy().astype(np.int64) for c in "ij")
    gloss = np.nan_to_num(rows["similarity"].to_numpy(zero_copy_only=False).astype(np.float64), nan=np.inf)
    flagged = pc.or_(rows["is_duplicate"], rows["is_dense"]).to_numpy(zero_copy_only=False)
    return i, j, rows["interference"].to_numpy(), gloss, flagged.astype(bool)
