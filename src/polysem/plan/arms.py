"""Arms of the features: which target is read while which direction is steered.

Every target gets sources from every interference bin (`pair`), as many that lie as far on the other side
(`negative_pair`), its own direction (`self`), and the arms of the study's
controls, each drawn by the function that its record in `vocabulary.CONTROLS` names. Bins that the map of pairs covers
take sources from its rows; lower bins, which the map leaves out, are sampled from all features, with cosines in float64
from W_dec and similarities from the gloss embeddings.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from polysem.act.arms import Arm, ArmsRequest
from polysem.act.base import UNMATCHED, Recipe
from polysem.seeds import rng_for
from polysem.vocabulary import CONTROLS, attribute

MAX_ALIGNMENT = 0.05
"""|cosine| of a matched feature with the target: about one standard deviation of chance in 512 dimensions"""
POOL = 20
"""a matched feature is drawn from this many of its density decile that are nearest in decoder norm"""


class Source(NamedTuple):
    """A feature that may be steered for a target."""

    feature: int
    bin: int
    interference: float
    similarity: float


def pair_arms(request: ArmsRequest) -> list[Arm]:
    """`self` and the sources by interference bin and sign, of every target."""
    found: list[Arm] = []
    for target, alignment, similarity in _geometry(request):
        found.append(Arm("self", target, target, 0, Recipe.of("decoder", feature=target).text, -1, 1.0, 1.0))
        bins = sources_by_bin(request, target, alignment, similarity, mined=True)
        for source in drawn(request, target, bins):
            recipe = Recipe.of("decoder", feature=source.feature).text
            found.append(Arm("pair", target, source.feature, 0, recipe, *source[1:]))
        across = sources_by_bin(request, target, alignment, similarity, mined=True, sign=-1)
        for source in nearest_in_size(
            [a for a in found if (a.relation, a.target) == ("pair", target)], across
        ):
            recipe = Recipe.of("decoder", feature=source.feature).text
            found.append(Arm("negative_pair", target, source.feature, 0, recipe, *source[1:]))
    return found


def nearest_in_size(pairs: Sequence[Arm], across: Sequence[Sequence[Source]]) -> list[Source]:
    """For every pair of a target the source of negative interference, of the same bin, whose |interference| is nearest to
    its own; none twice, so that pairs without one stay alone."""
    left = [list(sources) for sources in across]
    chosen: list[Source] = []
    for arm in pairs:
        pool, size = left[arm.interference_bin], abs(arm.interference or 0.0)
        if pool:
            best = min(pool, key=lambda s: (abs(abs(s.interference) - size), s.feature))
            pool.remove(best)
            chosen.append(best)
    return sorted(chosen, key=lambda s: (s.bin, s.feature))


def control_arms(request: ArmsRequest) -> list[Arm]:
    """The arms of the plan's controls; `request.arms` holds the pairs that some of them are made for."""
    return [arm for name in request.plan.controls for arm in attribute(CONTROLS[name].arms)(request)]


def random_feature(request: ArmsRequest) -> list[Arm]:
    """Other features, matched to the target in density and norm."""
    index, draws = request.index, range(request.plan.n_random)
    found: list[Arm] = []
    for target, alignment, similarity in _geometry(request):
        rngs = [
            rng_for(request.seed, "control", "random_feature", index.label, target, draw) for draw in draws
        ]
        matched = matched_features(
            target,
            alignment=alignment,
            norms=index.norms,
            deciles=index.deciles,
            usable=index.usable,
            rngs=rngs,
        )
        found += [
            _feature_arm("random_feature", target, source, draw, alignment, similarity)
            for draw, source in enumerate(matched)
        ]
    return found


def random_direction(request: ArmsRequest) -> list[Arm]:
    """Draws from the covariance of the site."""
    return _directions(request, "random_direction")


def isotropic(request: ArmsRequest) -> list[Arm]:
    """Draws from all directions."""
    return _directions(request, "isotropic")


def _directions(request: ArmsRequest, name: str) -> list[Arm]:
    kind = CONTROLS[name].kind
    return [
        Arm(name, target, None, draw, recipe, -1, None, None)
        for target in request.targets
        for draw in range(request.plan.n_random)
        for recipe in [Recipe.of(kind, target=target, draw=draw, seed=request.seed).text]
    ]


def cosine_matched(request: ArmsRequest) -> list[Arm]:
    """For every pair a random direction at its cosine, in both signs."""
    found: list[Arm] = []
    for index, pair, source in _pairs(request):
        for draw in (0, 1):
            recipe = Recipe.of(
                "cosine_matched", target=pair.target, source=source, draw=draw, seed=request.seed
            )
            place = 2 * index + draw
            arm = Arm("cosine_matched", pair.target, None, place, recipe.text, -1, pair.interference, None)
            found.append(arm._replace(pair_target=pair.target, pair_source=source))
    return found


def swapped_target(request: ArmsRequest) -> list[Arm]:
    """Every pair's source, read on the tokens of another target that it is nearly orthogonal to."""
    found: list[Arm] = []
    for index, pair, source in _pairs(request):
        rng = rng_for(request.seed, "control", "swapped_target", request.index.label, pair.target, index)
        aligned = request.alignments[:, source]
        far = [
            place
            for place, other in enumerate(request.targets)
            if other != pair.target and abs(aligned[place]) < MAX_ALIGNMENT
        ]
        if far:
            place = far[int(rng.integers(len(far)))]
            # counted by the pair it comes from: two pairs may meet on one target
            draw = pair.target * (1 << 12) + index
            other, cosine = request.targets[place], float(aligned[place])
            arm = Arm("swapped_target", other, source, draw, pair.recipe, -1, cosine, None)
            found.append(arm._replace(pair_target=pair.target, pair_source=source))
    return found


def high_attribution(request: ArmsRequest) -> list[Arm]:
    """Features that promote the target's tokens, nearly orthogonal to it."""
    index, n = request.index, request.plan.n_random
    found: list[Arm] = []
    for target, alignment, similarity in _geometry(request):
        wanted = index.tokens_in[target] | index.tokens_out[target]
        fits = index.usable & (np.abs(alignment) < MAX_ALIGNMENT)
        fits[target] = False
        candidates = [int(k) for k in np.flatnonzero(fits) if wanted & index.tokens_out[int(k)]]
        rng = rng_for(request.seed, "control", "high_attribution", index.label, target)
        chosen = [candidates[int(k)] for k in rng.permutation(len(candidates))[:n]]
        found += [
            _feature_arm("high_attribution", target, source, draw, alignment, similarity)
            for draw, source in enumerate([*chosen, *[None] * (n - len(chosen))])
        ]
    return found


def sources_by_bin(
    request: ArmsRequest,
    target: int,
    alignment: Float[np.ndarray, " d_sae"],
    similarity: Float[np.ndarray, " d_sae"],
    *,
    mined: bool,
    sign: int = 1,
) -> list[list[Source]]:
    """Per bin of |interference|, every admissible source of a target: alive, not dense, glossed, no duplicate, under the
    similarity cut.

    Args:
        request: bins, cut and features.
        target: feature.
        alignment: cosine of every feature with it.
        similarity: gloss similarity of every feature with it.
        mined: take bins that the map of pairs covers from its rows.
        sign: 1 for sources of positive interference, -1 for those of negative.
    """
    index, pairs = request.index, request.pairs
    admissible = index.usable & index.glossed & ~index.duplicates(target, alignment)
    admissible &= np.nan_to_num(similarity, nan=np.inf) < pairs.max_similarity
    admissible[target] = False
    partner, rows = index.mined_with(target)
    cosine, gloss = (rows[c].to_numpy(zero_copy_only=False) for c in ("interference", "similarity"))
    found: list[list[Source]] = []
    for k, (low, high) in enumerate(zip(pairs.bins, pairs.bins[1:], strict=False)):
        from_map = mined and low >= pairs.min_interference
        size = sign * (cosine if from_map else alignment)
        inside = (size >= low) & (size <= high if k == len(pairs.bins) - 2 else size < high)
        if sign < 0:
            inside &= size > 0  # an interference of exactly 0 counts as positive
        if from_map:
            some = [
                Source(int(partner[n]), k, float(cosine[n]), float(gloss[n]))
                for n in np.flatnonzero(inside & (cosine * sign > 0) & admissible[partner])
            ]
        else:
            some = [
                Source(int(n), k, float(alignment[n]), float(similarity[n]))
                for n in np.flatnonzero(admissible & inside)
            ]
        found.append(sorted(some))
    return found


def drawn(
    request: ArmsRequest, target: int, bins: Sequence[Sequence[Source]], *name: str
) -> Iterator[Source]:
    """Some sources of every bin, by feature; `name` tells the draws of controls from those of pairs."""
    for k, sources in enumerate(bins):
        rng = rng_for(request.seed, "source", *name, request.index.label, target, k)
        chosen = rng.choice(len(sources), min(request.plan.sources_per_bin, len(sources)), replace=False)
        yield from sorted(sources[int(n)] for n in chosen)


def matched_features(
    target: int,
    *,
    alignment: Float[np.ndarray, " d_sae"],
    norms: Float[np.ndarray, " d_sae"],
    deciles: Int[np.ndarray, " d_sae"],
    usable: Bool[np.ndarray, " d_sae"],
    rngs: Sequence[np.random.Generator],
) -> list[int | None]:
    """One matched feature per generator, none twice; None where no candidate is left.

    Candidates share the target's density decile and have |alignment| < MAX_ALIGNMENT; each draw is uniform
    over the POOL of them that are nearest in log decoder norm.

    Args:
        alignment: cosine of every decoder row with the target's.
        norms: norms of the decoder rows.
        deciles: density decile of every feature, as `plan.index.density_deciles`.
        usable: features that may be drawn at all (neither dead nor dense).
    """
    fits = usable & (np.abs(alignment) < MAX_ALIGNMENT) & (deciles == deciles[target]) & (norms > 0)
    fits[target] = False
    candidates = np.flatnonzero(fits)
    if norms[target] > 0:
        distance = np.abs(np.log(norms[candidates]) - np.log(norms[target]))
        candidates = candidates[np.lexsort((candidates, distance))]
    chosen: list[int | None] = []
    for rng in rngs:
        pool = [int(c) for c in candidates if int(c) not in chosen][:POOL]
        chosen.append(pool[int(rng.integers(len(pool)))] if pool else None)
    return chosen


def _geometry(request: ArmsRequest) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(target, cosine with every feature, gloss similarity with every feature)."""
    return zip(request.targets, request.alignments, request.similarities, strict=True)


def _pairs(request: ArmsRequest) -> Iterator[tuple[int, Arm, int]]:
    """(number among the target's, pair, its source) of every pair of two concepts."""
    number: dict[int, int] = {}
    for arm in request.arms:
        if arm.relation == "pair" and arm.source is not None:
            number[arm.target] = number.get(arm.target, -1) + 1
            yield number[arm.target], arm, arm.source


def _feature_arm(
    relation: str, target: int, source: int | None, draw: int, alignment: np.ndarray, similarity: np.ndarray
) -> Arm:
    """A control that is another feature, or the lack of one."""
    if source is None:
        return Arm(relation, target, None, draw, UNMATCHED, -1, None, None)
    gloss = float(similarity[source])
    known = None if np.isnan(gloss) else gloss
    recipe = Recipe.of("decoder", feature=source).text
    return Arm(relation, target, source, draw, recipe, -1, float(alignment[source]), known)
