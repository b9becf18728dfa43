"""Arms: which target is read while which direction is pushed.

For every SAE a set of targets is drawn; each gets sources from every interference bin (`pair`), its own
direction (`self`) and the random controls. Bins that the map of pairs covers take sources from its rows;
lower bins, which the map leaves out, are sampled from all features, with cosines in float64 from W_dec and
similarities from the gloss embeddings. Every draw has its own generator, named by SAE, target and bin (or
draw), so adding a target or a bin changes no other draw.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from polysem.categories import builtin
from polysem.config import PairsConfig, PlanConfig
from polysem.interventions.atlas import Atlas
from polysem.interventions.base import Recipe
from polysem.interventions.controls import MAX_ALIGNMENT, matched_features
from polysem.seeds import rng_for
from polysem.types import Relation

log = logging.getLogger(__name__)


class Arm(NamedTuple):
    """One direction to push for one target."""

    relation: Relation
    target: int
    source: int | None
    draw: int
    recipe: str
    interference_bin: int
    interference: float | None
    similarity: float | None


def draw_targets(atlas: Atlas, *, pairs: PairsConfig, plan: PlanConfig, seed: int) -> list[int]:
    """The targets of one SAE, rising; fewer than `plan.n_targets` (with a warning) where there are fewer.

    A target is glossed, neither dead nor dense, has tokens in every set that is read, and has a partner in
    the map that is no duplicate. As in arXiv 2505.11611, targets with partners in all interference bins
    come first; then those with most bins. With `plan.about` the categories take turns, each with the feature
    that is most about it.
    """
    readable = np.ones(atlas.sae.d_sae, dtype=bool)
    for name in plan.token_sets:
        readable &= np.array([len(s) > 0 for s in (atlas.tokens_in if name == "in" else atlas.tokens_out)])
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
    atlas: Atlas, eligible: Int[np.ndarray, " n"], order: Int[np.ndarray, " n"], about: Sequence[str]
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


def arms_of(
    atlas: Atlas, targets: Sequence[int], *, pairs: PairsConfig, plan: PlanConfig, seed: int
) -> list[Arm]:
    """All arms of some targets: self, sources by bin, and the controls of `plan.controls`."""
    geometry = zip(targets, atlas.alignments(targets), atlas.similarities(targets), strict=True)
    found: list[Arm] = []
    for target, alignment, similarity in geometry:
        paired = _pair_arms(atlas, target, alignment, similarity, pairs=pairs, plan=plan, seed=seed)
        found.append(Arm("self", target, target, 0, Recipe.of("decoder", feature=target).text, -1, 1.0, 1.0))
        found += paired
        found += _control_arms(atlas, target, alignment, similarity, plan=plan, seed=seed)
        two_concepts = [arm for arm in paired if arm.relation == "pair"]
        found += _pair_control_arms(atlas, target, targets, two_concepts, plan=plan, seed=seed)
        if "high_attribution" in plan.controls:
            found += _attribution_arms(atlas, target, alignment, similarity, plan=plan, seed=seed)
    return found


def _pair_arms(
    atlas: Atlas,
    target: int,
    alignment: np.ndarray,
    similarity: np.ndarray,
    *,
    pairs: PairsConfig,
    plan: PlanConfig,
    seed: int,
) -> list[Arm]:
    arms = []
    for index, sources in enumerate(_sources(atlas, target, alignment, similarity, pairs=pairs)):
        rng = rng_for(seed, "source", atlas.label, target, index)
        size = min(plan.sources_per_bin, len(sources))
        for source, cosine, gloss in sorted(
            sources[k] for k in rng.choice(len(sources), size, replace=False)
        ):
            recipe = Recipe.of("decoder", feature=source).text
            relation = "split_pair" if (target, source) in atlas.split else "pair"
            arms.append(Arm(relation, target, source, 0, recipe, index, cosine, gloss))
    return arms


def _control_arms(
    atlas: Atlas,
    target: int,
    alignment: np.ndarray,
    similarity: np.ndarray,
    *,
    plan: PlanConfig,
    seed: int,
) -> list[Arm]:
    arms, draws = [], range(plan.n_random)
    if "random_feature" in plan.controls:
        rngs = [rng_for(seed, "control", "random_feature", atlas.label, target, draw) for draw in draws]
        matched = matched_features(
            target,
            alignment=alignment,
            norms=atlas.norms,
            deciles=atlas.deciles,
            usable=atlas.usable,
            rngs=rngs,
        )
        for draw, source in enumerate(matched):
            arms.append(_feature_arm("random_feature", target, source, draw, alignment, similarity))
    for relation, kind in (("random_direction", "covariance"), ("isotropic", "isotropic")):
        if relation in plan.controls:
            for draw in draws:
                recipe = Recipe.of(kind, target=target, draw=draw, seed=seed).text
                arms.append(Arm(relation, target, None, draw, recipe, -1, None, None))
    return arms


def _feature_arm(
    relation: Relation,
    target: int,
    source: int | None,
    draw: int,
    alignment: np.ndarray,
    similarity: np.ndarray,
) -> Arm:
    """A control that is another feature, or the lack of one."""
    if source is None:
        return Arm(relation, target, None, draw, Recipe.of("unmatched").text, -1, None, None)
    gloss = float(similarity[source])
    known = None if np.isnan(gloss) else gloss
    recipe = Recipe.of("decoder", feature=source).text
    return Arm(relation, target, source, draw, recipe, -1, float(alignment[source]), known)


def _pair_control_arms(
    atlas: Atlas, target: int, targets: Sequence[int], paired: Sequence[Arm], *, plan: PlanConfig, seed: int
) -> list[Arm]:
    """Controls of single pairs: the cosine-matched direction in both signs, and another target's tokens."""
    arms = []
    for index, pair in enumerate(paired):
        assert pair.source is not None
        if "cosine_matched" in plan.controls:
            for draw in (0, 1):
                recipe = Recipe.of(
                    "cosine_matched", target=target, source=pair.source, draw=draw, seed=seed
                ).text
                arms.append(
                    Arm("cosine_matched", target, None, 2 * index + draw, recipe, -1, pair.interference, None)
                )
    if "swapped_target" in plan.controls:
        others = np.array([t for t in targets if t != target])
        for index, pair in enumerate(paired):
            rng = rng_for(seed, "control", "swapped_target", atlas.label, target, index)
            away = np.abs(atlas.alignments(others.tolist())[:, pair.source]) if len(others) else np.empty(0)
            far = others[away < MAX_ALIGNMENT]
            if len(far):
                other = int(far[int(rng.integers(len(far)))])
                aligned = float(atlas.alignments([other])[0, pair.source])
                # counted by the pair it comes from: two pairs may meet on one target
                draw = target * (1 << 12) + index
                arms.append(Arm("swapped_target", other, pair.source, draw, pair.recipe, -1, aligned, None))
    return arms


def _attribution_arms(
    atlas: Atlas, target: int, alignment: np.ndarray, similarity: np.ndarray, *, plan: PlanConfig, seed: int
) -> list[Arm]:
    """Features that promote the target's tokens, nearly orthogonal to it."""
    wanted = atlas.tokens_in[target] | atlas.tokens_out[target]
    fits = atlas.usable & (np.abs(alignment) < MAX_ALIGNMENT)
    fits[target] = False
    candidates = [int(k) for k in np.flatnonzero(fits) if wanted & atlas.tokens_out[int(k)]]
    order = rng_for(seed, "control", "high_attribution", atlas.label, target).permutation(len(candidates))
    chosen = [candidates[int(k)] for k in order[: plan.n_random]]
    return [
        _feature_arm(
            "high_attribution",
            target,
            chosen[draw] if draw < len(chosen) else None,
            draw,
            alignment,
            similarity,
        )
        for draw in range(plan.n_random)
    ]


def _sources(
    atlas: Atlas, target: int, alignment: np.ndarray, similarity: np.ndarray, *, pairs: PairsConfig
) -> list[list[tuple[int, float, float]]]:
    """Per interference bin, every admissible (source, interference, similarity), by source."""
    admissible = atlas.usable & atlas.glossed & ~atlas.duplicates(target, alignment)
    admissible &= np.nan_to_num(similarity, nan=np.inf) < pairs.max_similarity
    admissible[target] = False
    partner, rows = atlas.mined_with(target)
    mined_bin = rows["interference_bin"].to_numpy()
    mined_cosine, mined_gloss = (
        rows[c].to_numpy(zero_copy_only=False) for c in ("interference", "similarity")
    )
    result = []
    last = len(pairs.bins) - 2
    for index, (low, high) in enumerate(zip(pairs.bins, pairs.bins[1:], strict=False)):
        if low >= pairs.min_interference:
            inside = np.flatnonzero((mined_bin == index) & (mined_cosine > 0) & admissible[partner])
            found = [(int(partner[k]), float(mined_cosine[k]), float(mined_gloss[k])) for k in inside]
        else:
            below = alignment <= high if index == last else alignment < high
            inside = np.flatnonzero(admissible & (alignment >= low) & below)
            found = [(int(k), float(alignment[k]), float(similarity[k])) for k in inside]
        result.append(sorted(found))
    return result


def _has_partner(atlas: Atlas, pairs: PairsConfig) -> Bool[np.ndarray, " d_sae"]:
    """Features with a partner in the map that could be their source."""
    i, j, cosine, gloss, flagged = _mined_columns(atlas)
    could = atlas.usable & atlas.glossed
    good = (cosine > 0) & (gloss < pairs.max_similarity) & ~flagged & could[i] & could[j]
    result = np.zeros(atlas.sae.d_sae, dtype=bool)
    result[i[good]] = result[j[good]] = True
    return result


def _bins_filled(atlas: Atlas, pairs: PairsConfig) -> Int[np.ndarray, " d_sae"]:
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


def _mined_columns(atlas: Atlas) -> Sequence[np.ndarray]:
    """i, j, interference, similarity (infinite where unknown), flagged as duplicate or dense."""
    rows = atlas.mined
    i, j = (rows[c].to_numpy().astype(np.int64) for c in "ij")
    gloss = np.nan_to_num(rows["similarity"].to_numpy(zero_copy_only=False).astype(np.float64), nan=np.inf)
    flagged = pc.or_(rows["is_duplicate"], rows["is_dense"]).to_numpy(zero_copy_only=False)
    return i, j, rows["interference"].to_numpy(), gloss, flagged.astype(bool)
