"""Negative controls: the whole way from geometry and glosses to pairs, where there can be nothing to find.

`frozen_decoder`: decoder rows that were drawn once and never trained stand in for the SAE's. Sources are chosen by
their cosine with the target's own drawn row, steered along, and read at the target's real tokens, which know nothing of
these rows. A slope of effect on cosine there is an artefact of the procedure (arXiv 2602.14111 calls for it).
`shuffled_gloss`: glosses are dealt out anew among the features, and sources are chosen by the similarities that
follow. A slope of effect on similarity there is one.
Both choose sources as pairs are chosen: alive, not dense, glossed, under the similarity cut, some in every
interference bin.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from polysem.act.arms import Arm, ArmsRequest, KnownFeatures
from polysem.act.base import Recipe
from polysem.act.directions import frozen_row
from polysem.plan.arms import drawn, sources_by_bin
from polysem.plan.index import cosines
from polysem.seeds import rng_for


def frozen_arms(request: ArmsRequest) -> list[Arm]:
    """The arms of `frozen_decoder`."""
    rows = frozen_decoder(request.index, seed=request.seed)
    found: list[Arm] = []
    for target, similarity in zip(request.targets, request.similarities, strict=True):
        bins = sources_by_bin(request, target, rows @ rows[target], similarity, mined=False)
        for source in drawn(request, target, bins, "frozen"):
            recipe = Recipe.of("frozen", feature=source.feature, seed=request.seed).text
            found.append(Arm("frozen_decoder", target, source.feature, 0, recipe, *source[1:]))
    return found


def shuffled_arms(request: ArmsRequest) -> list[Arm]:
    """The arms of `shuffled_gloss`."""
    similarities = shuffled_similarities(request.index, request.targets, seed=request.seed)
    found: list[Arm] = []
    for target, alignment, similarity in zip(request.targets, request.alignments, similarities, strict=True):
        bins = sources_by_bin(request, target, alignment, similarity, mined=False)
        for source in drawn(request, target, bins, "shuffled"):
            recipe = Recipe.of("decoder", feature=source.feature).text
            found.append(Arm("shuffled_gloss", target, source.feature, 0, recipe, *source[1:]))
    return found


def frozen_decoder(index: KnownFeatures, *, seed: int) -> Float[np.ndarray, "d_sae d_in"]:
    """All rows of the frozen decoder of an SAE, float64, norm 1."""
    sae = index.sae
    return np.stack([frozen_row(f, sae.d_out, seed=seed, label=index.label) for f in range(sae.d_sae)])


def shuffled_glosses(index: KnownFeatures, *, seed: int) -> Float[np.ndarray, "d_sae d_embed"]:
    """The glosses' embeddings, dealt out anew among the glossed features."""
    glossed = np.flatnonzero(index.glossed)
    dealt = index.embeddings.copy()
    dealt[glossed] = index.embeddings[rng_for(seed, "shuffled", index.label).permutation(glossed)]
    return dealt


def shuffled_similarities(
    index: KnownFeatures, targets: Sequence[int], *, seed: int
) -> Float[np.ndarray, "n_targets d_sae"]:
    """Similarity of every feature's dealt gloss with each target's; NaN where either has none."""
    both = index.glossed[None, :] & index.glossed[list(targets), None]
    return np.where(both, cosines(shuffled_glosses(index, seed=seed), targets), np.nan)
