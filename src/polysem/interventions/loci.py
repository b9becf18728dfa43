"""The arms of the loci that do not push along decoder rows: token gradients, prompts, neurons.

Each takes the pairs that `arms.py` drew for the feature locus, so that all loci are asked about the same targets and
sources, and carries them over. What cannot be carried over (a feature without a context, a snippet that holds the
target's own tokens) stays in the plan as a control that could not be matched, and is counted.
"""

from collections.abc import Sequence

import numpy as np

from polysem.config import PairsConfig, PlanConfig
from polysem.interventions.arms import Arm
from polysem.interventions.atlas import Atlas
from polysem.interventions.base import Recipe
from polysem.seeds import rng_for

UNMATCHED = Recipe.of("unmatched").text
_CARRIED = ("pair", "self", "random_feature")


def clamp_arms(atlas: Atlas, arms: Sequence[Arm]) -> list[Arm]:
    """Every push of a feature as its clamping."""
    found = []
    for arm in arms:
        if arm.relation not in _CARRIED:
            continue
        largest = float("nan") if arm.source is None else float(atlas.max_act[arm.source])
        known = arm.source is not None and 0 < largest < float("inf")
        recipe = Recipe.of("clamp", feature=arm.source, largest=largest).text if known else UNMATCHED  # pyright: ignore[reportArgumentType]  (known: not None)
        found.append(arm._replace(recipe=recipe))
    return found


def gradient_arms(atlas: Atlas, arms: Sequence[Arm], *, plan: PlanConfig) -> list[Arm]:
    """Every push of a feature as a push along its token gradient; random directions as they are."""
    found = []
    for arm in arms:
        if arm.relation not in _CARRIED:
            if arm.relation in ("random_direction", "isotropic"):
                found.append(arm)
            continue
        contexts = atlas.contexts.by_feature.get(-1 if arm.source is None else arm.source, [])
        recipe = UNMATCHED
        if arm.source is not None and contexts:
            best = contexts[0]
            recipe = Recipe.of(
                "gradient",
                feature=arm.source,
                position=best.position,
                probe=plan.probe,
                tokens=_text(best.token_ids[: best.position + 1]),
            ).text
        found.append(arm._replace(recipe=recipe))
    return found


def prompt_arms(atlas: Atlas, arms: Sequence[Arm], *, plan: PlanConfig, seed: int) -> list[Arm]:
    """Every push of a feature as the injection of a snippet on which it fires."""
    found = []
    for arm in arms:
        if arm.relation not in _CARRIED:
            continue
        recipe = UNMATCHED
        if arm.source is not None:
            own = atlas.tokens_in[arm.target] | atlas.tokens_out[arm.target]
            # a target's own snippet holds its tokens, or it would not be its snippet
            tokens = atlas.contexts.snippet(
                arm.source, plan.snippet_tokens, without=() if arm.relation == "self" else own
            )
            rng = rng_for(seed, "match", atlas.label, arm.target, arm.source)
            match = tokens and atlas.contexts.match(tokens, rng, without=own)
            if tokens and match:
                recipe = Recipe.of(
                    "snippet", form=plan.snippet_form, match=_text(match), tokens=_text(tokens)
                ).text
        found.append(arm._replace(recipe=recipe))
    return found


def neuron_arms(
    atlas: Atlas, targets: Sequence[int], *, pairs: PairsConfig, plan: PlanConfig, seed: int
) -> list[Arm]:
    """Coordinates of the site by their share of the target's direction, and rotated ones of the same share.

    A neuron stands in the column `source` as d_sae + its number. Its similarity is that of the target with the
    feature, other than the target, that is most aligned with it.
    """
    rows = atlas.sae.W_dec.detach().cpu().double().numpy()
    norms = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    unit_rows = rows / norms
    found: list[Arm] = []
    for target, similarity in zip(targets, atlas.similarities(targets), strict=True):
        share = unit_rows[target]
        others = np.where(atlas.usable[:, None], unit_rows, -np.inf)
        others[target] = -np.inf
        strongest = others.argmax(axis=0)
        chosen: list[tuple[str, int, int]] = [("self", int(share.argmax()), -1)]
        for index, (low, high) in enumerate(zip(pairs.bins, pairs.bins[1:], strict=False)):
            inside = np.flatnonzero(
                (share >= low) & (share < high) & (np.arange(len(share)) != share.argmax())
            )
            rng = rng_for(seed, "neuron", atlas.label, target, index)
            drawn = rng.choice(inside, min(plan.sources_per_bin, len(inside)), replace=False)
            chosen += [("pair", int(n), index) for n in sorted(drawn.tolist())]
        for relation, neuron, index in chosen:
            gloss = float(similarity[strongest[neuron]])
            known = 1.0 if relation == "self" else None if np.isnan(gloss) else gloss
            cosine = float(share[neuron])
            plain = Recipe.of("neuron", neuron=neuron).text
            source = atlas.sae.d_sae + neuron
            found.append(Arm(relation, target, source, 0, plain, index, cosine, known))  # pyright: ignore[reportArgumentType]
            if relation == "pair":
                recipe = Recipe.of("rotated", draw=0, neuron=neuron, seed=seed, target=target).text
                found.append(Arm("rotated", target, None, neuron, recipe, -1, cosine, None))
    return found


def _text(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))
