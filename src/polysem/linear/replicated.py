"""The same pairs in two SAEs of one site: what steering does, and its linear response, for features that both have.

Features are matched one to one by the cosine of their directions. Of those with target tokens in both SAEs a few are
drawn, without looking at any effect or cosine between them; every ordered pair of them is the same pair twice,
once with the directions and tokens of either SAE. Every feature is steered once for all targets, at one KL in both SAEs.
Cost: one backward pass and the rows of two steered passes per feature, SAE, token set and prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polysem.linear.footprint import PromptFootprint
from polysem.linear.matching import match_features
from polysem.linear.response import membership, odds_gradients
from polysem.models.base import WhiteBoxModel
from polysem.saes.base import SAE

SHARED_FEATURES = 20
"""drawn of those that both SAEs have"""
Rows = list[dict[str, Any]]
Steered = Callable[["SeedSide", PromptFootprint, Tensor, Tensor], Tensor]
"""(side, prompt, unit directions [n d], sets [n_sets d_vocab]) -> odd changes of the sets' log-odds under real steering
[n_sets n], nats; NaN where the KL was not reached"""


@dataclass(frozen=True)
class SeedSide:
    """One SAE of the two."""

    label: str
    sae: SAE
    tokens: Mapping[int, Sequence[int]]
    """target tokens of every feature whose set can be read out"""


def replicated_pairs(
    first: SeedSide,
    second: SeedSide,
    model: WhiteBoxModel,
    prompts: Sequence[PromptFootprint],
    *,
    token_set: str,
    steered: Steered,
    rng: np.random.Generator,
) -> Rows:
    """Rows of REPLICATED for one token set; none where fewer than two features are shared."""
    decoders = [side.sae.W_dec.detach().double().cpu() for side in (first, second)]
    match = match_features(decoders[0].numpy(), decoders[1].numpy())
    both = [
        (i, j)
        for i, j in zip(match.first.tolist(), match.second.tolist(), strict=True)
        if i in first.tokens and j in second.tokens
    ]
    drawn = [both[k] for k in sorted(rng.permutation(len(both))[:SHARED_FEATURES].tolist())]
    if len(drawn) < 2:
        return []
    found = []
    for side, W, mine in zip((first, second), decoders, zip(*drawn, strict=True), strict=True):
        unit = W[list(mine)]
        unit = unit / unit.norm(dim=-1, keepdim=True)
        inside = membership([side.tokens[k] for k in mine], model.spec.d_vocab)
        gradients = [
            odds_gradients(model, p.tokens, site=side.sae.writes, pushed=p.pushed, inside=inside)
            for p in prompts
        ]
        pushed = torch.stack([steered(side, p, unit, inside) for p in prompts]).numpy()
        counts = np.isfinite(pushed).sum(0)
        total = np.nansum(pushed, axis=0)
        measured = np.divide(total, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
        found.append(((torch.stack(gradients).mean(0) @ unit.T).numpy(), measured, counts))
    return [
        {"sae": first.label, "other": second.label, "token_set": token_set}
        | {"target": target[0], "source": source[0], "other_target": target[1], "other_source": source[1]}
        | {"linear": float(found[0][0][j, i]), "other_linear": float(found[1][0][j, i])}
        | {"steered": _number(found[0][1][j, i]), "other_steered": _number(found[1][1][j, i])}
        | {"n_steered": int(min(found[0][2][j, i], found[1][2][j, i]))}
        | {"matched": match.share, "best_cosine": match.mean_max_cosine, "n_prompts": len(prompts)}
        for j, target in enumerate(drawn)
        for i, source in enumerate(drawn)
        if i != j
    ]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
