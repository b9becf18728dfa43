"""W-G, a language model whose texts have rates in closed form: a Markov chain, tilted by what is pushed.

logits after token x = log M[x] + B c, where c is what stands in the push coordinates of the stream, kept from position to
position with factor `memory`: c_t = memory c_(t-1) + h_t. Embeddings leave the push coordinates empty, so c is 0 without an
edit. Under a push kept on, the token h steps on is drawn from M[x, .] exp(B c_h) / sum, c_h = a (1 + memory + ... + memory^h);
under one at the last position of the prompt alone, c_h = a memory^h. A block of tokens that M never leaves is a topic that
absorbs: a push that ends with the prompt stays in the text.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.worlds.linear import SITE
from polysem.worlds.model import Tap, WorldModel


class MarkovWorld(WorldModel):
    """The chain behind the seam."""

    def __init__(
        self,
        chain: Float[Tensor, "d_vocab d_vocab"],
        tilt: Float[Tensor, "d_vocab k"],
        *,
        memory: float = 0.0,
        n_ctx: int = 64,
    ):
        """
        Args:
            chain: M; rows sum to 1.
            tilt: B, logits for one unit of each push coordinate.
            memory: of a push, from one position to the next.
            n_ctx: longest text.
        """
        n, k = tilt.shape
        eye = torch.eye(n, dtype=chain.dtype)
        W_E = torch.cat([eye, torch.zeros(n, k, dtype=chain.dtype)], dim=1)
        # a token that cannot come has a logit so low that no chance lifts it, and is finite
        logs = chain.clamp(min=1e-30).log()
        super().__init__(
            W_E, torch.cat([logs.T, tilt], dim=1), name="markov", widths={SITE: n + k}, n_ctx=n_ctx
        )
        self.memory = memory

    def run(self, tokens: Int[Tensor, "batch pos"], tap: Tap) -> Float[Tensor, "batch pos d_vocab"]:
        n, pos = self.spec.d_vocab, tokens.shape[1]
        h = tap(SITE, self.W_E[tokens])
        apart = torch.arange(pos)[:, None] - torch.arange(pos)[None, :]
        kept = torch.where(apart >= 0, self.memory ** apart.clamp(min=0).to(h.dtype), 0.0)
        return h[..., :n] @ self.W_U[:, :n].T + (kept @ h[..., n:]) @ self.W_U[:, n:].T


def tilted(
    chain: Float[Tensor, "d_vocab d_vocab"], logits: Float[Tensor, " d_vocab"]
) -> Float[Tensor, "d_vocab d_vocab"]:
    """The chain with logits added to every row."""
    made = chain * logits.exp()
    return made / made.sum(1, keepdim=True)


def expected_rate(
    chain: Float[Tensor, "d_vocab d_vocab"],
    shifts: Float[Tensor, "n d_vocab"],
    start: int,
    tokens: Int[Tensor, " some"],
) -> float:
    """Expected share of some tokens among n drawn ones behind `start`, with the logits of each step shifted."""
    p = torch.zeros(len(chain), dtype=chain.dtype)
    p[start] = 1.0
    found = 0.0
    for shift in shifts:
        p = p @ tilted(chain, shift)
        found += float(p[tokens].sum())
    return found / len(shifts)
