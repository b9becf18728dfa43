"""Interference as the model sees it: how alike two small pushes move the logits of the next token.

    jacobian   correlation over the vocabulary of J d_i and J d_j, J = dz / dh: the causal inner product (Park et al.,
               arXiv 2311.03658) pulled back from the unembedding to the site
    fisher     the same with tokens weighed by their probability: F_ij / sqrt(F_ii F_jj), where
               F_ij = E_x[(J d_i)^T (diag p - p p^T) (J d_j)] and KL of a push of length a is a^2 F_ii / 2

J d is a central difference at a small step, so one pair of forward passes per direction and prompt gives all pairs
of directions; no target set enters. Memory: one row of logits per direction, in float32.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.errors import NumericsError
from polysem.linear.response import odd_change
from polysem.models.base import WhiteBoxModel
from polysem.types import Site

STEP = 1e-2
"""of the mean norm of the activation: far above the rounding of float32 logits, and in the linear range"""
_ROWS = 32
_PAIRS = 256
"""pairs whose logits are multiplied at a time"""


class PromptFootprint(NamedTuple):
    """One prompt and the positions that a push goes to."""

    tokens: Int[Tensor, " pos"]
    pushed: Bool[Tensor, " pos"]


def logit_footprints(
    model: WhiteBoxModel, prompt: PromptFootprint, *, site: Site, directions: Float[Tensor, "n d"]
) -> Float[Tensor, "n d_vocab"]:
    """J d of every direction on one prompt: logits per unit of push.

    Raises:
        NumericsError: if the site's activations are zero, so that no step is small.
    """
    tokens, pushed = prompt
    norm = float(model.capture(tokens[None], [site])[site][0][pushed].double().norm(dim=-1).mean())
    if not norm > 0:
        raise NumericsError(
            f"the activations at {site} are zero on this prompt", hint="leave the prompt out of the study"
        )
    step = STEP * norm
    rows = []
    for part in directions.split(_ROWS):
        plus, minus = odd_change(model, tokens, site=site, pushed=pushed, pushes=step * part)
        rows.append(((plus - minus) / (2 * step)).float())
    return torch.cat(rows)


def footprint_metrics(
    model: WhiteBoxModel,
    prompts: Sequence[PromptFootprint],
    *,
    site: Site,
    directions: Float[Tensor, "k d"],
    pairs: Int[np.ndarray, "n 2"],
) -> dict[str, Float[np.ndarray, " n"]]:
    """`jacobian` and `fisher` of the pairs, numbers of rows of `directions`, over the prompts together."""
    ends = [torch.as_tensor(column.copy()) for column in pairs.T]
    sums = {name: (np.zeros(len(pairs)), np.zeros(len(directions))) for name in ("jacobian", "fisher")}
    for prompt in prompts:
        moved = logit_footprints(model, prompt, site=site, directions=directions)
        p = model.logits(prompt.tokens[None], last_only=True)[0, -1].double().cpu().softmax(-1)
        for name, weight in (("jacobian", torch.full_like(p, 1 / len(p))), ("fisher", p)):
            rows = (moved - moved @ weight.float()[:, None]) * weight.sqrt().float()
            both, own = sums[name]
            own += (rows.double() ** 2).sum(-1).numpy()
            for start in range(0, len(pairs), _PAIRS):
                a, b = (rows[end[start : start + _PAIRS]].double() for end in ends)
                both[start : start + _PAIRS] += (a * b).sum(-1).numpy()
    return {
        name: both / np.sqrt(np.maximum(own[pairs[:, 0]] * own[pairs[:, 1]], 1e-300))
        for name, (both, own) in sums.items()
    }
