"""The same pairs in two SAEs of one site: linear responses of the features that both have.

Features are matched one to one by the cosine of their directions. Of those with target tokens in both SAEs a few are
drawn, without looking at any effect or cosine between them; every ordered pair of them is the same pair twice,
once with the directions and tokens of either SAE. Cost: one backward pass per feature, SAE, token set and prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from polysem.linear.footprint import Prompt
from polysem.linear.matching import match_features
from polysem.linear.response import membership, odds_gradients
from polysem.models.base import WhiteBoxModel
from polysem.saes.base import SAE

SHARED_FEATURES = 20
"""drawn of those that both SAEs have"""
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Side:
    """One SAE of the two."""

    label: str
    sae: SAE
    tokens: Mapping[int, Sequence[int]]
    """target tokens of every feature whose set can be read out"""


def replicated_pairs(
    first: Side,
    second: Side,
    model: WhiteBoxModel,
    prompts: Sequence[Prompt],
    *,
    token_set: str,
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
            odds_gradients(model, p.tokens, site=side.sae.site, pushed=p.pushed, inside=inside)
            for p in prompts
        ]
        found.append((torch.stack(gradients).mean(0) @ unit.T).numpy())
    return [
        {"sae": first.label, "other": second.label, "token_set": token_set}
        | {"target": target[0], "source": source[0], "other_target": target[1], "other_source": source[1]}
        | {"linear": float(found[0][j, i]), "other_linear": float(found[1][j, i])}
        | {"matched": match.share, "best_cosine": match.mean_max_cosine, "n_prompts": len(prompts)}
        for j, target in enumerate(drawn)
        for i, source in enumerate(drawn)
        if i != j
    ]
