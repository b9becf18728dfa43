"""What the presets `paper` and `both` plan beside a study's own: the paper's strengths, on the same arms and prompts; and
the neurons that it draws by their degree."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from polysem.act.arms import Arm, ArmsRequest
from polysem.act.base import Recipe, intervention
from polysem.geometry.unit import unit_rows
from polysem.paper.strengths import (
    DEGREE_CLUSTERS,
    DEGREE_FEATURES,
    DEGREE_UNIT,
    NEIGHBOURS,
    RELATIONS,
    STRENGTHS,
    T_F_RATIO,
    T_F_TOKENS,
)
from polysem.plan.blocks import LocusBlock
from polysem.plan.degrees import bin_of, ties
from polysem.saes.base import decoder_rows
from polysem.seeds import rng_for


def paper_blocks(own: Sequence[LocusBlock], request: ArmsRequest) -> list[LocusBlock]:
    """The paper's blocks beside a study's own, for the loci that both have, in the paper's order; and its own neurons."""
    by_locus = {block.locus: block for block in own}
    made = [_beside(by_locus[locus], request) for locus in STRENGTHS if locus in by_locus]
    return [*made, *(_by_degree(locus, request) for locus in STRENGTHS if locus in request.writes)]


def _by_degree(locus: str, request: ArmsRequest) -> LocusBlock:
    """One neuron of every bin of degree, read on features of some of the clusters that it is tied to (protocol 2.9); no arms
    where glosses have no clusters."""
    doses, _, _, positions = STRENGTHS[locus]
    arms = [] if request.clusters is None else _neurons(locus, request, request.clusters)
    reads = {t: ids for t in sorted({arm.target for arm in arms}) if (ids := _reads(locus, t, request))}
    return LocusBlock(locus, arms, doses, DEGREE_UNIT, positions, reads)


def _neurons(locus: str, request: ArmsRequest, clusters: Int[np.ndarray, " d_sae"]) -> list[Arm]:
    index, writes = request.index, request.writes[locus]
    unit = unit_rows(decoder_rows(index.sae))
    neuron, feature = ties(np.where(clusters[:, None] >= 0, unit, 0.0), writes)
    by_neuron = [feature[neuron == n] for n in range(len(writes))]
    bins = np.array([bin_of(len(np.unique(clusters[tied]))) for tied in by_neuron])
    readable = index.usable & np.array([bool(t) for t in index.tokens_in])
    found: list[Arm] = []
    for k in np.unique(bins[bins > 0]).tolist():
        rng = rng_for(request.seed, "the paper's neurons", index.label, locus, k)
        n = int(rng.choice(np.flatnonzero(bins == k)))
        tied = by_neuron[n][readable[by_neuron[n]]]
        own = np.unique(clusters[tied])
        for cluster in rng.choice(own, min(DEGREE_CLUSTERS, len(own)), replace=False):
            members = tied[clusters[tied] == cluster]
            for target in sorted(
                rng.choice(members, min(DEGREE_FEATURES, len(members)), replace=False).tolist()
            ):
                cosine = float(unit[target] @ writes[n] / max(float(np.linalg.norm(writes[n])), 1e-300))
                at = (index.sae.d_sae + n, 0, Recipe.of(locus, neuron=n).text, k, cosine, None)
                found.append(Arm("single_neuron", int(target), *at))
    return found


def _beside(own: LocusBlock, request: ArmsRequest) -> LocusBlock:
    doses, unit, settings, positions = STRENGTHS[own.locus]
    arms = own.arms
    if settings:
        plan = request.plan.model_copy(update=dict(settings))
        arms = intervention(own.locus).arms(replace(request, plan=plan))
    compared = [arm for arm in arms if arm.relation in RELATIONS]
    reads = {t: ids for t in request.targets if (ids := _reads(own.locus, t, request))}
    return LocusBlock(own.locus, compared, doses, unit, positions, reads)


def _reads(locus: str, target: int, request: ArmsRequest) -> tuple[int, ...]:
    """What the paper reads for the tokens that activate a target; () where its texts have no token ids."""
    contexts = request.index.contexts
    if locus != "neuron":
        return tuple(contexts.top_tokens(target, T_F_TOKENS, ratio=T_F_RATIO))
    (best,) = contexts.top_tokens(target, 1, ratio=1.0) or (None,)
    return () if best is None or request.embedding is None else nearest(request.embedding, best, NEIGHBOURS)


def nearest(embedding: Float[np.ndarray, "d_vocab d_model"], token: int, n: int) -> tuple[int, ...]:
    """The `n` tokens whose embeddings have the largest cosine with that of a token, itself first; none without one."""
    norms = np.linalg.norm(embedding, axis=1)
    cosine = np.divide(embedding @ embedding[token], norms, out=np.full(len(norms), -np.inf), where=norms > 0)
    order = np.argsort(-cosine, kind="stable")[:n]
    return tuple(int(t) for t in order if norms[t] > 0)
