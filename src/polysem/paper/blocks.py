"""What the presets `paper` and `both` plan beside a study's own: the paper's strengths, on the same arms and prompts."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from polysem.act.arms import ArmsRequest
from polysem.act.base import intervention
from polysem.paper.strengths import NEIGHBOURS, RELATIONS, STRENGTHS, T_F_RATIO, T_F_TOKENS
from polysem.plan.blocks import LocusBlock


def paper_blocks(own: Sequence[LocusBlock], request: ArmsRequest) -> list[LocusBlock]:
    """The paper's blocks beside a study's own, for the loci that both have, in the paper's order."""
    by_locus = {block.locus: block for block in own}
    return [_beside(by_locus[locus], request) for locus in STRENGTHS if locus in by_locus]


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
