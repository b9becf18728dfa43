"""Planned pairs under the microscope: is each two concepts or one twice, and how alike are its glosses by a second measure?

The four signals of `splitting.py` need activations. They are read on the top contexts of the planned features, so
that every one of them fires, and on the study's prompts. A pair that any signal flags is pushed like the others but
stands apart, under the relation `split_pair`: the declared hypotheses are about pairs of two concepts.

The second measure of gloss similarity is there where the study names a second embedder, or the features have two
glosses; it is what `stats/reliability.py` corrects the first by.
Cost: one pass over the contexts, and one encoding of `N_CONTEXTS` activations per planned feature.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float

from polysem.interventions.arms import Arm
from polysem.interventions.atlas import Atlas
from polysem.interventions.splitting import splitting_signals
from polysem.models.base import WhiteBoxModel
from polysem.seeds import rng_for
from polysem.store.tables import SIGNALS
from polysem.types import Site

log = logging.getLogger(__name__)

N_CONTEXTS = 64
"""activations on which a feature is written, to see what it switches on"""
CONTEXTS_PER_FEATURE = 2
"""top contexts of every planned feature that are read"""


def pair_signals(
    atlas: Atlas,
    arms: Sequence[Arm],
    model: WhiteBoxModel,
    prompts: pa.Table,
    *,
    second: Float[np.ndarray, "d_sae d_embed"] | None = None,
    measure: str = "",
    seed: int,
) -> pa.Table:
    """SIGNALS of the pairs among some arms of one SAE.

    Args:
        atlas: the SAE and what is known of its features.
        arms: those with the relation `pair` are looked at.
        model: that the SAE belongs to.
        prompts: PROMPTS; read beside the contexts.
        second: gloss vectors by the second measure, zero rows where there is none.
        measure: what the second measure is.
        seed: root seed.
    """
    pairs = sorted(
        {(arm.target, arm.source) for arm in arms if arm.relation == "pair" and arm.source is not None}
    )
    if not pairs:
        return SIGNALS.empty()
    wanted = sorted({feature for pair in pairs for feature in pair})
    texts = [
        context.token_ids
        for feature in wanted
        for context in atlas.contexts.by_feature.get(feature, [])[:CONTEXTS_PER_FEATURE]
    ]
    if atlas.sae.prepend_bos and model.bos_id is not None:
        texts = [[model.bos_id, *ids] for ids in texts]
    texts += prompts["token_ids"].to_pylist()
    found = splitting_signals(
        atlas.sae,
        activations_on(model, atlas.sae.site, texts),
        np.array([[source, target] for target, source in pairs]),
        tokens_in=atlas.tokens_in,
        n_contexts=N_CONTEXTS,
        rng=rng_for(seed, "signals", atlas.label),
    )
    columns: Mapping[str, np.ndarray] = {
        "interference": found.interference,
        "firing": found.firing,
        "switch_source": found.switch_ij,
        "switch_target": found.switch_ji,
        "tokens": found.tokens,
        "similarity_2": _similarities(second, pairs),
    }
    n_flagged = int(found.flagged.sum())
    if n_flagged:
        log.info(
            "SAE %s: %d of %d planned pairs look like one concept twice", atlas.label, n_flagged, len(pairs)
        )
    table = pa.table(
        {
            "sae": pa.repeat(pa.scalar(atlas.label), len(pairs)),
            "target": pa.array([target for target, _ in pairs], pa.int32()),
            "source": pa.array([source for _, source in pairs], pa.int32()),
            **{name: pa.array(values, pa.float64(), from_pandas=True) for name, values in columns.items()},
            "flagged": pa.array(found.flagged.tolist(), pa.bool_()),
            "measure_2": pa.repeat(pa.scalar(measure if second is not None else ""), len(pairs)),
        }
    )
    return SIGNALS.conform(table.select(SIGNALS.arrow().names))


def flagged_pairs(signals: pa.Table) -> frozenset[tuple[int, int]]:
    """(target, source) of the pairs of one SAE that are one concept twice."""
    bad = signals.filter(signals["flagged"])
    return frozenset(zip(bad["target"].to_pylist(), bad["source"].to_pylist(), strict=True))


def second_texts(glosses: pa.Table, label: str) -> dict[int, str]:
    """Feature -> its second gloss, of one SAE of a GLOSSES table; features with one gloss are absent."""
    own = glosses.filter(pc.and_(pc.equal(glosses["sae"], label), pc.equal(glosses["gloss_index"], 1)))
    return dict(zip(own["feature"].to_pylist(), own["text"].to_pylist(), strict=True))


def activations_on(
    model: WhiteBoxModel, site: Site, texts: Sequence[Sequence[int]]
) -> Float[np.ndarray, "n d_in"]:
    """Activations of a site on some texts, every position but the first, float64."""
    seen = [np.empty((0, model.site_width(site)))]
    for ids in texts:
        cut = list(ids)[: model.spec.n_ctx]
        if len(cut) > 1:
            tokens = torch.tensor([cut], device=model.spec.device)
            seen.append(model.capture(tokens, [site])[site][0, 1:].cpu().double().numpy())
    return np.concatenate(seen)


def _similarities(second: np.ndarray | None, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Cosine of every pair's second vectors; NaN where either is zero, or there are none."""
    if second is None:
        return np.full(len(pairs), np.nan)
    rows = np.array([[second[target], second[source]] for target, source in pairs], dtype=np.float64)
    norms = np.linalg.norm(rows, axis=2).prod(axis=1)
    products = (rows[:, 0] * rows[:, 1]).sum(axis=1)
    return np.divide(products, norms, out=np.full(len(pairs), np.nan), where=norms > 0)
