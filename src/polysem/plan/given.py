"""Steering vectors of one's own as sources: each is a dictionary of one feature, pushed for every target of every SAE.

In the plan a vector is the source d_sae + k, k its place in the study, and `source_sae` is its name. Its interference is its
cosine with the target's direction, where the two are of one width. Where the study has the control `cosine_matched`, and the
vector is added where the SAE writes, random directions at its cosine stand beside it; all other controls are the targets'.
"""

from collections.abc import Iterator, Mapping

import torch

from polysem.act.arms import Arm, ArmsRequest
from polysem.act.base import Recipe, intervention
from polysem.config import Study
from polysem.plan.blocks import LocusBlock
from polysem.plan.index import cosines
from polysem.saes.base import SAE

RELATION, MATCHED = "given", "given_matched"
LOCUS = "feature"


def given_blocks(request: ArmsRequest, study: Study, vectors: Mapping[str, SAE]) -> Iterator[LocusBlock]:
    """A block for each vector, and one for all that is matched to them.

    Args:
        request: the features and targets of one SAE.
        study: strengths, positions and controls.
        vectors: by name, in the order of the study; dictionaries of one feature.
    """
    if not vectors or not request.targets:
        return
    doses, unit = intervention(LOCUS).doses(study.plan)
    how = (tuple(sorted({sign * dose for dose in doses for sign in (-1.0, 1.0)})), unit, study.plan.positions)
    sae = request.index.sae
    matched: list[Arm] = []
    for k, (name, vector) in enumerate(vectors.items()):
        source, recipe = sae.d_sae + k, Recipe.of("decoder", feature=0, sae=name).text
        angles: list[float | None] = [None] * len(request.targets)
        if vector.d_out == sae.d_out:
            rows = torch.cat([vector.W_dec, sae.W_dec[list(request.targets)]]).detach().cpu().numpy()
            angles = cosines(rows, [0])[0, 1:].tolist()
        arms = [
            Arm(RELATION, target, source, 0, recipe, -1, angle, None, dictionary=name)
            for target, angle in zip(request.targets, angles, strict=True)
        ]
        yield LocusBlock(LOCUS, arms, *how, dictionary=vector)
        if "cosine_matched" in study.plan.controls and vector.writes == sae.writes:
            matched += [_at_cosine(arm, 2 * k + draw, study.seed) for arm in arms for draw in (0, 1)]
    if matched:
        yield LocusBlock(LOCUS, matched, *how)


def _at_cosine(arm: Arm, draw: int, seed: int) -> Arm:
    recipe = Recipe.of("at_cosine", target=arm.target, cosine=arm.interference or 0.0, draw=draw, seed=seed)
    found = Arm(MATCHED, arm.target, None, draw, recipe.text, -1, arm.interference, None)
    return found._replace(pair_target=arm.target, pair_source=arm.source)
