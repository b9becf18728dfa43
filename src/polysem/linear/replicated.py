"""The same pairs in two SAEs of one site: what steering does, and its linear response, for features that both have.

Features are matched one to one by the cosine of their directions. Of those with target tokens in both SAEs a few are
drawn, without looking at any effect or cosine between them, and a few more of those whose best match is not stable (`polysem.replicate`);
every ordered pair of them is the same pair twice, once with the directions and tokens of either SAE. Every feature is steered once
for all targets, at one KL in both SAEs. Beside it, what the effects would be were the matches alike by their cosine alone: directions
at the same cosine with the first SAE's, what differs dealt out among the features that were drawn.
Cost: one backward pass and the rows of two steered passes (four in the second SAE) per feature, token set and prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.linear.footprint import PromptFootprint
from polysem.linear.matching import match_features
from polysem.linear.response import membership, odds_gradients
from polysem.models.base import WhiteBoxModel
from polysem.saes.base import SAE
from polysem.store.schema import or_null

SHARED_FEATURES = 20
"""drawn of those that both SAEs have"""
UNSTABLE_FEATURES = 10
"""drawn of those whose match is not stable"""
Rows = list[dict[str, Any]]
Steered = Callable[["SeedSide", PromptFootprint, Tensor, Tensor], Tensor]
"""(side, prompt, unit directions [n d], sets [n_sets d_vocab]) -> odd changes of the sets' log-odds under real steering
[n_sets n], nats; NaN where the KL was not reached"""


class Matched(NamedTuple):
    """The best one-to-one matching of two SAEs, in any order."""

    first: Int[np.ndarray, " n"]
    second: Int[np.ndarray, " n"]
    cosine: Float[np.ndarray, " n"]
    """of decoder rows, signed"""
    stable: Bool[np.ndarray, " n"]


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
    matched: Matched | None = None,
) -> Rows:
    """Rows of REPLICATED for one token set; none where fewer than two features are shared.

    Args:
        prompts: on which both are steered.
        token_set: whose tokens are read.
        matched: which matches are stable; without it all that are drawn count as such.
    """
    decoders = [side.sae.W_dec.detach().double().cpu() for side in (first, second)]
    match = match_features(decoders[0].numpy(), decoders[1].numpy())
    both = [
        (i, j)
        for i, j in zip(match.first.tolist(), match.second.tolist(), strict=True)
        if i in first.tokens and j in second.tokens
    ]
    drawn = [both[k] for k in sorted(rng.permutation(len(both))[:SHARED_FEATURES].tolist())]
    alike = dict.fromkeys(drawn, True)
    if matched is not None:
        kind = dict(
            zip(
                zip(matched.first.tolist(), matched.second.tolist(), strict=True),
                matched.stable.tolist(),
                strict=True,
            )
        )
        ahead = dict(zip(kind, matched.cosine.tolist(), strict=True))
        taken = [{pair[k] for pair in both} for k in (0, 1)]
        loose = [
            (i, j)
            for (i, j), firm in kind.items()
            if not firm and ahead[i, j] > 0 and i not in taken[0] and j not in taken[1] and i in first.tokens and j in second.tokens
        ]  # fmt: skip
        alike = {pair: kind.get(pair, False) for pair in drawn}
        drawn += [loose[k] for k in sorted(rng.permutation(len(loose))[:UNSTABLE_FEATURES].tolist())]
        alike |= {pair: False for pair in drawn if pair not in alike}
    if len(drawn) < 2:
        return []
    units = [_units(W[list(mine)]) for W, mine in zip(decoders, zip(*drawn, strict=True), strict=True)]
    dealt = _dealt(*units, order=rng.permutation(len(drawn)))
    shared = set(both)
    n, found = len(drawn), []
    for side, unit, mine in zip(
        (first, second), (units[0], torch.cat([units[1], dealt])), zip(*drawn, strict=True), strict=True
    ):
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
        | {"steered": or_null(found[0][1][j, i]), "other_steered": or_null(found[1][1][j, i])}
        | {"dealt_linear": float(found[1][0][j, n + i]), "dealt_steered": or_null(found[1][1][j, n + i])}
        | {"stable_target": alike[target], "stable_source": alike[source]}
        | {"shared": target in shared and source in shared}
        | {"n_steered": int(min(found[0][2][j, i], found[1][2][j, i]))}
        | {"matched": match.share, "best_cosine": match.mean_max_cosine, "n_prompts": len(prompts)}
        for j, target in enumerate(drawn)
        for i, source in enumerate(drawn)
        if i != j
    ]


def _units(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def _dealt(first: Tensor, second: Tensor, *, order: np.ndarray) -> Tensor:
    """Unit directions at the cosine of every second with its first; the rest is that of the next in a random circle."""
    cosine = (first * second).sum(-1, keepdim=True)
    rest = second - cosine * first
    moved = torch.empty_like(rest)
    moved[order] = rest[np.roll(order, 1)]
    moved = moved - (moved * first).sum(-1, keepdim=True) * first
    size = moved.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return cosine * first + (1 - cosine**2).clamp_min(0).sqrt() * moved / size
