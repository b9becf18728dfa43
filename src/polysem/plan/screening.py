"""Screening: what a plan finds out with the model at hand, before anything is steered: pairs that are one concept twice,
pairs that another measure finds related, degrees of neurons."""

import logging

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from polysem.act.arms import Arm, ArmsRequest
from polysem.act.base import intervention
from polysem.config import Study
from polysem.models.base import WhiteBoxModel
from polysem.plan.degrees import CLUSTER_CUT, Neurons, degree_tables
from polysem.plan.index import Features
from polysem.plan.signals import activations_on, apart_from, flagged_pairs, pair_signals
from polysem.plan.similarities import similarity_tables
from polysem.saes.base import decoder_rows

log = logging.getLogger(__name__)


def screen(
    request: ArmsRequest, study: Study, features: Features, model: WhiteBoxModel, prompts: pa.Table
) -> tuple[list[Arm], dict[str, pa.Table]]:
    """The arms of a request, with pairs that are one concept twice under the relation `split_pair` and those that another
    measure finds related under `related_pair`, and the tables SIGNALS, SIMILARITIES, CONCEPTS, SENSES, NEURONS and
    NEURON_DEGREES of its SAE.

    Args:
        request: the features of one SAE; `arms` holds their pairs, `writes` what its neurons write.
        prompts: PROMPTS.
    """
    signals = pair_signals(request.index, request.arms, model, prompts, seed=request.seed)
    arms, found = similarity_tables(
        request.index, study, features, apart_from(request.arms, flagged_pairs(signals))
    )
    found["signals"] = signals
    if request.writes:
        found |= _degrees(request, model, prompts)
    return arms, found


def _degrees(request: ArmsRequest, model: WhiteBoxModel, prompts: pa.Table) -> dict[str, pa.Table]:
    """NEURONS and NEURON_DEGREES; none where the features have no clusters at the paper's cut."""
    index, clusters = request.index, request.clusters
    if clusters is None:
        log.warning(
            "SAE %s: no gloss clusters at a cut of %g, so neurons get no degree", index.label, CLUSTER_CUT
        )
        return {}
    texts = prompts["token_ids"].to_pylist()
    loci = {intervention(locus): writes for locus, writes in request.writes.items()}
    kinds = [
        Neurons(acts.neurons, writes, activations_on(model, acts.site(index.sae), texts))
        for acts, writes in loci.items()
    ]
    directions = decoder_rows(index.sae)
    gram = _gram(model, index.sae.d_out)
    return degree_tables(index.label, directions, clusters, kinds, gram, seed=request.seed)


def _gram(model: WhiteBoxModel, width: int) -> Float[np.ndarray, "d_in d_in"]:
    """W_U^T W_U; zeros where the site does not write into the stream (its neurons' norms in logits are then 0)."""
    W_U = model.W_U.detach().double().cpu().numpy()
    return W_U.T @ W_U if W_U.shape[1] == width else np.zeros((width, width))
