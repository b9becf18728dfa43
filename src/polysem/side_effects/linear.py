"""Side effects to first order, for any number of directions from one pass of gradients a prompt.

At a dose of D nats the strength is a = sqrt(2 D / v . F v), and a set's log-odds move by a g . v. Both are of the prompt
(`atlas.Responder`); what is averaged is what pushing each prompt at that dose would give.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from polysem.atlas import PromptResponse


@dataclass(frozen=True)
class LinearEffects:
    """What the gradient says of every direction at one dose."""

    effect: Float[np.ndarray, "n n_sets"]
    """change of log-odds, nats, mean over prompts"""
    ratio: Float[np.ndarray, " n"]
    """participation ratio of the sets: how many move"""
    kl: Float[np.ndarray, " n"]
    """nats that one unit of activation along the direction costs, mean over prompts"""
    strength: Float[np.ndarray, " n"]
    """of the dose, in mean norms of the site"""
    stability: Float[np.ndarray, " n"]
    """mean cosine of the change of logits with its mean over prompts"""
    dose: float

    def on(self, own: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Change of each direction's own set; NaN where it has none (-1)."""
        chosen = self.effect[np.arange(len(own)), np.maximum(own, 0)]
        return np.where(own >= 0, chosen, np.nan)

    def cleanliness(self, own: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """On-target change / sqrt(2 KL), which is the same at every small dose."""
        return self.on(own) / np.sqrt(2 * self.dose)


def linear_effects(
    directions: Float[np.ndarray, "n d"], responses: Iterable[PromptResponse], *, dose: float
) -> LinearEffects:
    """Of unit directions; zero rows give NaN.

    Args:
        directions: rows of length 1.
        responses: one for each prompt.
        dose: nats.
    """
    effect, square = np.zeros(()), np.zeros(())
    costs, strengths, logits = [], [], []
    for one in responses:
        fisher = np.einsum("nd,nd->n", directions @ one.fisher, directions)
        with np.errstate(divide="ignore", invalid="ignore"):
            a = np.sqrt(2 * dose / np.where(fisher > 0, fisher, np.nan))
        moved = a[:, None] * (directions @ one.gradients.T)
        # sums, not lists: of all features on all their sets every prompt has gigabytes
        effect, square = effect + moved, square + moved**2
        costs.append(fisher / 2)
        strengths.append(a / one.norm)
        logits.append(directions @ one.logits.T)
    stacked = np.stack(logits, axis=1)
    return LinearEffects(
        effect=effect / len(costs),
        ratio=np.asarray(participation(square / len(costs))),
        kl=np.mean(costs, axis=0),
        strength=np.mean(strengths, axis=0),
        stability=np.asarray(stability(np.einsum("npv,nqv->npq", stacked, stacked))),
        dose=dose,
    )


def participation(weights: Float[np.ndarray, "*n m"]) -> Float[np.ndarray, "*n"] | np.floating:
    """(sum w)^2 / sum w^2: how many of m things carry the weight, 1 to m; NaN where nothing does."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return weights.sum(-1) ** 2 / (weights**2).sum(-1)


def cosines(products: Float[np.ndarray, "*n p q"]) -> Float[np.ndarray, "*n p"]:
    """Cosine of each prompt's change with the mean change, from inner products between prompts."""
    own = np.einsum("...pp->...p", products)
    with np.errstate(divide="ignore", invalid="ignore"):
        return products.sum(-1) / np.sqrt(own * products.sum((-2, -1))[..., None])


def stability(products: Float[np.ndarray, "*n p q"]) -> Float[np.ndarray, "*n"] | np.floating:
    """Mean over prompts of the cosine with the mean change."""
    return cosines(products).mean(-1)


def against(products: Float[np.ndarray, " p q"]) -> float:
    """Share of prompts whose change points away from the mean of the others."""
    others = products.sum(1) - np.diag(products)
    return float((others < 0).mean())


def own_sets(tokens: Sequence[Sequence[int]], sets: list[list[int]]) -> Int[np.ndarray, " n"]:
    """Place of every list of tokens among `sets`, which grows by what it lacks; -1 for an empty list."""
    places = {tuple(one): k for k, one in reversed(list(enumerate(sets)))}
    found = []
    for one in tokens:
        if one and tuple(one) not in places:
            places[tuple(one)] = len(sets)
            sets.append(list(one))
        found.append(places[tuple(one)] if one else -1)
    return np.array(found, dtype=np.int64)
