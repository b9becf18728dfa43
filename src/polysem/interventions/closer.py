"""What a plan finds out with the model at hand, before anything is pushed: pairs that are one concept twice, a second
measure of gloss similarity, degrees of neurons."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float

from polysem.config import Study
from polysem.interventions.arms import arms_of, draw_targets
from polysem.interventions.atlas import Atlas
from polysem.interventions.degrees import CLUSTER_CUT, Neurons, degree_tables
from polysem.interventions.mlp import site_of
from polysem.interventions.signals import activations_on, flagged_pairs, pair_signals, second_texts
from polysem.models.base import WhiteBoxModel

log = logging.getLogger(__name__)


def look_closer(
    atlas: Atlas, study: Study, features: Any, model: WhiteBoxModel, prompts: pa.Table
) -> tuple[Atlas, dict[str, pa.Table]]:
    """The atlas with the pairs that are one concept twice, and the tables SIGNALS, NEURONS, NEURON_DEGREES of its SAE.

    Args:
        atlas: of one SAE.
        study: the study.
        features: the feature table; where it has no glosses or clusters, what needs them is left out.
        model: the model.
        prompts: PROMPTS.
    """
    plan, pairs, seed = study.plan, study.pairs, study.seed
    targets = draw_targets(atlas, pairs=pairs, plan=plan, seed=seed)
    arms = arms_of(atlas, targets, pairs=pairs, plan=plan, seed=seed)
    planned = sorted(
        {f for arm in arms if arm.relation == "pair" for f in (arm.target, arm.source) if f is not None}
    )
    vectors, measure = _second_measure(atlas, study, features, planned)
    signals = pair_signals(atlas, arms, model, prompts, second=vectors, measure=measure, seed=seed)
    found = {"signals": signals}
    if {"neuron", "mlp_neuron"} & set(plan.loci):
        found |= _degrees(atlas, study, features, model, prompts)
    return replace(atlas, split=flagged_pairs(signals)), found


def _second_measure(
    atlas: Atlas, study: Study, features: Any, planned: list[int]
) -> tuple[Float[np.ndarray, "d_sae d_embed"] | None, str]:
    """Gloss vectors by the second measure, and what it is: the second gloss of features that have two, by the second
    embedder where the study names one; (None, "") where there is neither."""
    embedder = study.glosses.second_embedder
    glosses = getattr(features, "glosses", None)
    if glosses is None:
        return None, ""
    texts = second_texts(glosses, atlas.label)
    what = "second gloss"
    if sum(f in texts for f in planned) < len(planned):
        if embedder is None:
            return None, ""
        own = glosses.filter(
            pc.and_(pc.equal(glosses["sae"], atlas.label), pc.equal(glosses["gloss_index"], 0))
        )
        texts = dict(zip(own["feature"].to_pylist(), own["text"].to_pylist(), strict=True))
        what = "the same gloss"
    from polysem.glosses.embed import embed_texts

    wanted = [f for f in planned if texts.get(f, "").strip()]
    if not wanted:
        return None, ""
    used = embedder or study.glosses.embedder
    if used == "export":
        log.warning("SAE %s: the second glosses carry no vectors; name glosses.second_embedder", atlas.label)
        return None, ""
    made = embed_texts([texts[f] for f in wanted], used, cache=None).vectors
    vectors = np.zeros((atlas.sae.d_sae, made.shape[1]))
    vectors[wanted] = made
    return vectors, f"{what}, embedded by {used}"


def _degrees(
    atlas: Atlas, study: Study, features: Any, model: WhiteBoxModel, prompts: pa.Table
) -> dict[str, pa.Table]:
    """NEURONS and NEURON_DEGREES; none where the features have no clusters at the paper's cut."""
    clusters: pa.Table | None = getattr(features, "clusters", None)
    if clusters is None:
        return {}
    near = pc.less(pc.abs(pc.subtract(clusters["similarity_cut"], CLUSTER_CUT)), 1e-9)
    own = clusters.filter(pc.and_(pc.equal(clusters["sae"], atlas.label), near))
    if not own.num_rows:
        log.warning(
            "SAE %s: no gloss clusters at a cut of %g, so neurons get no degree", atlas.label, CLUSTER_CUT
        )
        return {}
    number = np.full(atlas.sae.d_sae, -1)
    number[own["feature"].to_numpy()] = own["cluster"].to_numpy()
    texts = prompts["token_ids"].to_pylist()
    kinds: Mapping[str, np.ndarray | None] = {
        "coordinate": np.eye(atlas.sae.d_in) if "neuron" in study.plan.loci else None,
        "mlp": atlas.mlp_writes if "mlp_neuron" in study.plan.loci else None,
    }
    sites = {"coordinate": atlas.sae.site, "mlp": site_of("mlp_neuron", atlas.sae)}
    return degree_tables(
        atlas.label,
        atlas.sae.W_dec.detach().double().cpu().numpy(),
        number,
        [
            Neurons(kind, writes, activations_on(model, sites[kind], texts))
            for kind, writes in kinds.items()
            if writes is not None
        ],
        _gram(model, atlas.sae.d_in),
        seed=study.seed,
    )


def _gram(model: WhiteBoxModel, width: int) -> Float[np.ndarray, "d_in d_in"]:
    """W_U^T W_U; zeros where the site does not write into the stream (its neurons' norms in logits are then 0)."""
    W_U = model.W_U.detach().double().cpu().numpy()
    return W_U.T @ W_U if W_U.shape[1] == width else np.zeros((width, width))
