"""Planned pairs under the microscope: is each two concepts, or one twice?

The four signals of `splitting.py` need activations. They are read on the top contexts of the planned features, so
that every one of them fires, and on the study's prompts. A pair that any signal flags is steered like the others but
stands apart, under the relation `split_pair`: the declared hypotheses are about pairs of two concepts.
Cost: one pass over the contexts, and one encoding of `N_CONTEXTS` activations per planned feature.
"""

import logging
from collections.abc import Mapping, Sequence, Set

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float

from polysem.act.arms import Arm, KnownFeatures
from polysem.models.base import WhiteBoxModel
from polysem.plan.splitting import splitting_signals
from polysem.positions import PLAIN, ordinary_rows, positions_of
from polysem.seeds import rng_for
from polysem.store.tables import SIGNALS
from polysem.types import Site

log = logging.getLogger(__name__)

N_CONTEXTS = 64
"""activations on which a feature is written, to see what it switches on"""
CONTEXTS_PER_FEATURE = 2
"""top contexts of every planned feature that are read"""


def pair_signals(
    index: KnownFeatures,
    arms: Sequence[Arm],
    model: WhiteBoxModel,
    prompts: pa.Table,
    *,
    seed: int,
) -> pa.Table:
    """SIGNALS of the pairs among some arms of one SAE.

    Args:
        index: the SAE and what is known of its features.
        arms: those with the relation `pair` are looked at.
        prompts: PROMPTS; read beside the contexts.
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
        for context in index.contexts.by_feature.get(feature, [])[:CONTEXTS_PER_FEATURE]
    ]
    positions = positions_of(model, index.sae)
    texts = [positions.row(ids) for ids in texts] + prompts["token_ids"].to_pylist()
    found = splitting_signals(
        index.sae,
        activations_on(model, index.sae.reads, texts),
        np.array([[source, target] for target, source in pairs]),
        tokens_in=index.tokens_in,
        n_contexts=N_CONTEXTS,
        rng=rng_for(seed, "signals", index.label),
    )
    columns: Mapping[str, np.ndarray] = {
        "interference": found.interference,
        "firing": found.firing,
        "switch_source": found.switch_ij,
        "switch_target": found.switch_ji,
        "tokens": found.tokens,
    }
    n_flagged = int(found.flagged.sum())
    if n_flagged:
        log.info(
            "SAE %s: %d of %d planned pairs look like one concept twice", index.label, n_flagged, len(pairs)
        )
    table = pa.table(
        {
            "sae": pa.repeat(pa.scalar(index.label), len(pairs)),
            "target": pa.array([target for target, _ in pairs], pa.int32()),
            "source": pa.array([source for _, source in pairs], pa.int32()),
            **{name: pa.array(values, pa.float64(), from_pandas=True) for name, values in columns.items()},
            "flagged": pa.array(found.flagged.tolist(), pa.bool_()),
        }
    )
    return SIGNALS.conform(table.select(SIGNALS.arrow().names))


def flagged_pairs(signals: pa.Table) -> frozenset[tuple[int, int]]:
    """(target, source) of the pairs of one SAE that are one concept twice."""
    bad = signals.filter(signals["flagged"])
    return frozenset(zip(bad["target"].to_pylist(), bad["source"].to_pylist(), strict=True))


def apart_from(
    arms: Sequence[Arm], pairs: Set[tuple[int, int]], *, relation: str = "split_pair"
) -> list[Arm]:
    """The arms, with some of the pairs, (target, source), under another relation: those that are one concept twice."""
    return [
        arm._replace(relation=relation)
        if arm.relation == "pair" and (arm.target, arm.source) in pairs
        else arm
        for arm in arms
    ]


def activations_on(
    model: WhiteBoxModel, site: Site, texts: Sequence[Sequence[int]]
) -> Float[np.ndarray, "n d_in"]:
    """Activations of a site on some texts, at every position but the first and massive ones, float64."""
    seen = [np.empty((0, model.site_width(site)))]
    for ids in texts:
        cut = list(ids)[: model.spec.n_ctx]
        if len(cut) > 1:
            tokens = torch.tensor([cut], device=model.spec.device)
            here = model.capture(tokens, [site])[site][0].cpu().double().numpy()
            seen.append(here[PLAIN.counted(len(here))])
    return ordinary_rows(np.concatenate(seen))
