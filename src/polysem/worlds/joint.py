"""A linear readout with planted interactions: logits = W_U h + sum of products of coordinates, each written into the logits.

A term (readers, row) adds the product of <reader, h> over its readers, times its row of the vocabulary. Readers that no embedding
has a part along see only what is pushed, so the effect of any set of pushes is a polynomial whose coefficients are planted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from polysem.worlds.linear import SITE
from polysem.worlds.model import Tap, WorldModel


@dataclass(frozen=True)
class Term:
    """One product."""

    readers: Float[Tensor, "order d_model"]
    row: Float[Tensor, " d_vocab"]


class InteractingWorld(WorldModel):
    """`LinearWorld` with products."""

    def __init__(
        self,
        W_E: Float[Tensor, "d_vocab d_model"],
        W_U: Float[Tensor, "d_vocab d_model"],
        terms: Sequence[Term],
    ):
        super().__init__(W_E, W_U, name="interacting", widths={SITE: W_E.shape[1]})
        self.terms = list(terms)

    def run(self, tokens: Int[Tensor, "batch pos"], tap: Tap) -> Float[Tensor, "batch pos d_vocab"]:
        h = tap(SITE, self.W_E[tokens])
        logits = h @ self.W_U.T
        for term in self.terms:
            logits = logits + (h @ term.readers.T).prod(-1, keepdim=True) * term.row
        return logits
