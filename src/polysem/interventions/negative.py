"""Negative controls: the whole way from geometry and glosses to pairs, where there can be nothing to find.

`frozen_decoder`: decoder rows that were drawn once and never trained stand in for the SAE's. Sources are chosen by
their cosine with the target's own drawn row, pushed, and read at the target's real tokens, which know nothing of
these rows. A slope of effect on cosine there is an artefact of the procedure (arXiv 2602.14111 calls for it).
`shuffled_gloss`: glosses are dealt out anew among the features, and sources are chosen by the similarities that
follow. A slope of effect on similarity there is one.
Both choose sources as pairs are chosen: alive, not dense, glossed, under the similarity cut, some in every
interference bin.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from polysem.config import PairsConfig, PlanConfig
from polysem.interventions.arms import Arm
from polysem.interventions.atlas import Atlas
from polysem.interventions.base import Bench, Recipe
from polysem.interventions.feature import unit
from polysem.seeds import rng_for


def frozen_direction(recipe: Recipe, bench: Bench) -> Float[np.ndarray, " d_in"]:
    """The row of the frozen decoder that stands in for the recipe's feature."""
    feature, seed = recipe.integer("feature"), recipe.integer("seed")
    return frozen_row(feature, bench.sae.d_in, seed=seed, label=bench.label)


def frozen_row(feature: int, d_in: int, *, seed: int, label: str) -> Float[np.ndarray, " d_in"]:
    """One row, of norm 1, of the frozen decoder of an SAE: a function of seed, SAE and feature."""
    return unit(rng_for(seed, "frozen", label, feature).standard_normal(d_in))


def negative_arms(
    atlas: Atlas, targets: Sequence[int], *, pairs: PairsConfig, plan: PlanConfig, seed: int
) -> list[Arm]:
    """The arms of `frozen_decoder` and `shuffled_gloss`, as far as `plan.controls` names them."""
    arms: list[Arm] = []
    if "frozen_decoder" in plan.controls:
        rows = frozen_decoder(atlas, seed=seed)
        similarity = atlas.similarities(targets)
        for target, known in zip(targets, similarity, strict=True):
            drawn = _drawn(
                atlas, "frozen", target, rows @ rows[target], known, pairs=pairs, plan=plan, seed=seed
            )
            for pair in drawn:
                recipe = Recipe.of("frozen", feature=pair.source, seed=seed).text
                arms.append(Arm("frozen_decoder", target, pair.source, 0, recipe, pair.bin, *pair[2:]))
    if "shuffled_gloss" in plan.controls:
        shuffled = shuffled_glosses(atlas, seed=seed)
        geometry = zip(targets, atlas.alignments(targets), shuffled.similarities(targets), strict=True)
        for target, alignment, similarity in geometry:
            drawn = _drawn(
                atlas, "shuffled", target, alignment, similarity, pairs=pairs, plan=plan, seed=seed
            )
            for pair in drawn:
                recipe = Recipe.of("decoder", feature=pair.source).text
                arms.append(Arm("shuffled_gloss", target, pair.source, 0, recipe, pair.bin, *pair[2:]))
    return arms


def frozen_decoder(atlas: Atlas, *, seed: int) -> Float[np.ndarray, "d_sae d_in"]:
    """All rows of the frozen decoder of an SAE, float64, norm 1."""
    sae = atlas.sae
    return np.stack([frozen_row(f, sae.d_in, seed=seed, label=atlas.label) for f in range(sae.d_sae)])


def shuffled_glosses(atlas: Atlas, *, seed: int) -> Atlas:
    """The atlas with the glosses of its glossed features dealt out anew among them."""
    glossed = np.flatnonzero(atlas.glossed)
    dealt = atlas.embeddings.copy()
    dealt[glossed] = atlas.embeddings[rng_for(seed, "shuffled", atlas.label).permutation(glossed)]
    return replace(atlas, embeddings=dealt)


class _Drawn(NamedTuple):
    source: int
    bin: int
    interference: float
    similarity: float


def _drawn(
    atlas: Atlas,
    control: str,
    target: int,
    alignment: Float[np.ndarray, " d_sae"],
    similarity: Float[np.ndarray, " d_sae"],
    *,
    pairs: PairsConfig,
    plan: PlanConfig,
    seed: int,
) -> list[_Drawn]:
    """Sources of one target by interference bin, drawn as those of pairs are, from given geometry."""
    fits = atlas.usable & atlas.glossed & (np.nan_to_num(similarity, nan=np.inf) < pairs.max_similarity)
    fits &= ~atlas.duplicates(target, alignment)
    fits[target] = False
    found: list[_Drawn] = []
    last = len(pairs.bins) - 2
    for index, (low, high) in enumerate(zip(pairs.bins, pairs.bins[1:], strict=False)):
        below = alignment <= high if index == last else alignment < high
        inside = np.flatnonzero(fits & (alignment >= low) & below)
        rng = rng_for(seed, "source", control, atlas.label, target, index)
        chosen = rng.choice(inside, min(plan.sources_per_bin, len(inside)), replace=False)
        found += [_Drawn(int(s), index, float(alignment[s]), float(similarity[s])) for s in np.sort(chosen)]
    return found
