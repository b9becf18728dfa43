"""Arms: which target is read while which direction is pushed.

For every SAE a set of targets is drawn; each gets sources from every interference bin (`pair`), its own
direction (`self`) and the random controls. Bins that the map of pairs covers take sources from its rows;
lower bins, which the map leaves out, are sampled from all features, with cosines in float64 from W_dec and
similarities from the gloss embeddings. Every draw has its own generator, named by SAE, target and bin (or
draw), so adding a target or a bin changes no other draw.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from polysem.config import PairsConfig, PlanConfig
from polysem.errors import MismatchError
from polysem.interventions.base import Recipe
from polysem.interventions.controls import MAX_ALIGNMENT, density_deciles, matched_features
from polysem.interventions.snippets import Contexts
from polysem.pairs import DEAD, DENSE, DUPLICATE_INTERFERENCE, DUPLICATE_TOKENS
from polysem.saes.base import SAE
from polysem.seeds import rng_for
from polysem.types import Relation

log = logging.getLogger(__name__)

_BLOCK = 8192


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


@dataclass(frozen=True)
class Atlas:
    """What is known of one SAE's features, as arrays over all rows of W_dec (absent features are
    unusable)."""

    label: str
    sae: SAE
    density: Float[np.ndarray, " d_sae"]
    """NaN where unknown"""
    tokens_in: list[frozenset[int]]
    tokens_out: list[frozenset[int]]
    embeddings: Float[np.ndarray, "d_sae d_embed"]
    """of the glosses, of any length; zero rows where there is none"""
    mined: pa.Table
    """rows of PAIRS of this SAE"""
    partners: pa.Table
    """rows of PARTNERS of this SAE"""
    contexts: Contexts = field(default_factory=lambda: Contexts({}, {}, {}))
    max_act: Float[np.ndarray, " d_sae"] = field(default_factory=lambda: np.empty(0))
    """largest activation seen of every feature; NaN where unknown"""
    mlp_writes: Float[np.ndarray, "d_mlp d_in"] | None = None
    """what each neuron of the MLP writes into the site; None where it was not asked for"""

    @classmethod
    def of(
        cls,
        label: str,
        sae: SAE,
        *,
        features: pa.Table,
        embeddings: np.ndarray,
        pairs: pa.Table,
        partners: pa.Table,
        contexts: pa.Table | None = None,
    ) -> "Atlas":
        """The atlas of one SAE from whole tables; `embeddings` has a row per row of its part of `features`.

        Raises:
            MismatchError: if tables, embeddings and SAE do not belong together.
        """
        own = features.filter(pc.equal(features["sae"], label))
        ids = own["feature"].to_numpy().astype(np.int64)
        if len(ids) != len(embeddings):
            raise MismatchError(
                f"SAE {label!r}: {len(ids)} features but {len(embeddings)} rows of gloss embeddings; "
                "expected as many",
                hint="polysem features",
            )
        if len(ids) and (ids.min() < 0 or ids.max() >= sae.d_sae):
            raise MismatchError(
                f"SAE {label!r} has features 0 to {sae.d_sae - 1} but the feature table goes "
                f"from {ids.min()} to {ids.max()}",
                hint="polysem features, with the SAE that is loaded now",
            )
        density = np.full(sae.d_sae, np.nan)
        density[ids] = own["density"].to_numpy(zero_copy_only=False)
        placed = np.zeros((sae.d_sae, embeddings.shape[1]), dtype=embeddings.dtype)
        glossed = ~own["gloss"].is_null().to_numpy()
        placed[ids[glossed]] = embeddings[glossed]
        known = np.zeros(sae.d_sae, dtype=bool)
        known[ids] = True
        density[~known] = 0.0  # a feature without a row is as good as dead
        tokens = {
            column: _sets(sae.d_sae, ids, own[column].to_pylist()) for column in ("tokens_in", "tokens_out")
        }
        return cls(
            label=label,
            sae=sae,
            density=density,
            embeddings=placed,
            mined=pairs.filter(pc.equal(pairs["sae"], label)),
            partners=partners.filter(pc.equal(partners["sae"], label)),
            contexts=Contexts.of(label, contexts),
            max_act=_placed(sae.d_sae, ids, own["max_act"].to_numpy(zero_copy_only=False)),
            tokens_in=tokens["tokens_in"],
            tokens_out=tokens["tokens_out"],
        )

    @cached_property
    def norms(self) -> Float[np.ndarray, " d_sae"]:
        """Norms of the decoder rows, float64."""
        W_dec = self.sae.W_dec.detach().cpu()
        blocks = [W_dec[k : k + _BLOCK].double().norm(dim=1) for k in range(0, len(W_dec), _BLOCK)]
        return np.concatenate([block.numpy() for block in blocks])

    @cached_property
    def usable(self) -> Bool[np.ndarray, " d_sae"]:
        """Neither dead nor dense (an unknown density passes), with a direction."""
        alive = np.isnan(self.density) | ((self.density >= DEAD) & (self.density <= DENSE))
        return alive & np.isfinite(self.norms) & (self.norms > 0)

    @cached_property
    def glossed(self) -> Bool[np.ndarray, " d_sae"]:
        return np.abs(self.embeddings).max(axis=1, initial=0.0) > 0

    @cached_property
    def deciles(self) -> Int[np.ndarray, " d_sae"]:
        return density_deciles(self.density)

    def alignments(self, targets: Sequence[int]) -> Float[np.ndarray, "n_targets d_sae"]:
        """Cosine of every decoder row with each target's, float64; 0 for a row without direction."""
        return _cosines(self.sae.W_dec.detach().cpu().float().numpy(), targets)

    def similarities(self, targets: Sequence[int]) -> Float[np.ndarray, "n_targets d_sae"]:
        """Gloss similarity of every feature with each target; NaN where either has no gloss."""
        both = self.glossed[None, :] & self.glossed[list(targets), None]
        return np.where(both, _cosines(self.embeddings, targets), np.nan)

    def duplicates(self, target: int, alignment: Float[np.ndarray, " d_sae"]) -> Bool[np.ndarray, " d_sae"]:
        """Features that are likely the target's own concept: by angle, by shared tokens, or as the map of
        pairs says."""
        own = self.tokens_in[target]
        overlap = [len(own & other) / len(own | other) if own and other else 0.0 for other in self.tokens_in]
        result = (np.abs(alignment) > DUPLICATE_INTERFERENCE) | (np.array(overlap) > DUPLICATE_TOKENS)
        partner, rows = self.mined_with(target)
        result[partner[rows["is_duplicate"].to_numpy(zero_copy_only=False)]] = True
        return result

    def mined_with(self, target: int) -> tuple[Int[np.ndarray, " n"], pa.Table]:
        """Partners of the target in the map of pairs, and their rows."""
        rows = self.mined.filter(pc.or_(pc.equal(self.mined["i"], target), pc.equal(self.mined["j"], target)))
        i, j = rows["i"].to_numpy().astype(np.int64), rows["j"].to_numpy().astype(np.int64)
        return np.where(i == target, j, i), rows


def draw_targets(atlas: Atlas, *, pairs: PairsConfig, plan: PlanConfig, seed: int) -> list[int]:
    """The targets of one SAE, rising; fewer than `plan.n_targets` (with a warning) where there are fewer.

    A target is glossed, neither dead nor dense, has tokens in every set that is read, and has a partner in
    the map that is no duplicate. As in arXiv 2505.11611, targets with partners in all interference bins
    come first; then those with most bins.
    """
    readable = np.ones(atlas.sae.d_sae, dtype=bool)
    for name in plan.token_sets:
        readable &= np.array([len(s) > 0 for s in (atlas.tokens_in if name == "in" else atlas.tokens_out)])
    eligible = np.flatnonzero(atlas.usable & atlas.glossed & readable & _has_partner(atlas, pairs))
    filled = _bins_filled(atlas, pairs)[eligible]
    shuffled = rng_for(seed, "targets", atlas.label).permutation(len(eligible))
    order = shuffled[np.argsort(-filled[shuffled], kind="stable")]
    chosen = order[: plan.n_targets]
    n_bins, full = len(pairs.bins) - 1, int((filled[chosen] == len(pairs.bins) - 1).sum())
    if full < plan.n_targets:
        log.warning(
            "SAE %s: %d targets of %d asked for, %d of them with partners in all %d interference bins "
            "(%d features are glossed, %d could be targets)",
            *(
                atlas.label,
                len(chosen),
                plan.n_targets,
                full,
                n_bins,
                int(atlas.glossed.sum()),
                len(eligible),
            ),
        )
    return sorted(int(t) for t in eligible[chosen])


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
        found += _pair_control_arms(atlas, target, targets, paired, plan=plan, seed=seed)
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
            arms.append(Arm("pair", target, source, 0, recipe, index, cosine, gloss))
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


def _cosines(rows: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    """Cosine of every row with each of some rows, in float64 block by block; 0 for a zero row.

    One product per target and block, so that a target's numbers do not depend on which others are asked for.
    """
    wanted = rows[list(targets)].astype(np.float64)
    wanted /= np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    result = np.zeros((len(wanted), len(rows)))
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK].astype(np.float64)
        norms = np.linalg.norm(block, axis=1)
        for found, target in zip(result, wanted, strict=True):
            np.divide(block @ target, norms, out=found[start : start + _BLOCK], where=norms > 0)
    return result


def _placed(size: int, ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    result = np.full(size, np.nan)
    result[ids] = values
    return result


def _sets(size: int, ids: np.ndarray, lists: list[list[int]]) -> list[frozenset[int]]:
    result: list[frozenset[int]] = [frozenset()] * size
    for feature, tokens in zip(ids.tolist(), lists, strict=True):
        result[feature] = frozenset(tokens)
    return result
