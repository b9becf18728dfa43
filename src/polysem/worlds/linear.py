"""White-box models whose interventions have effects in closed form: logits = h @ W_U.T, h = the embedding
of the last token.

There is one site, `blocks.0.hook_resid_post`. Adding v at the last position changes the logit of token t by
exactly W_U[t] . v, so the change in the log-odds of a target set T is K_T - K_notT with K_q = log sum_{t in
q} p_t e^{W_U[t] . v} - log sum_{t in q} p_t (p the unedited distribution). Tests of the whole pipeline
compare with that.
"""

from jaxtyping import Float, Int
from torch import Tensor

from polysem.types import Site
from polysem.worlds.model import Tap, WorldModel

SITE = Site(0, "hook_resid_post")
LATER = Site(1, "hook_resid_post")


class LinearWorld(WorldModel):
    """A model without depth: the embedding of every token is its residual, read by the unembedding."""

    def __init__(
        self, W_E: Float[Tensor, "d_vocab d_model"], W_U: Float[Tensor, "d_vocab d_model"], *, n_ctx: int = 16
    ):
        super().__init__(W_E, W_U, name="linear", widths={SITE: W_E.shape[1]}, n_ctx=n_ctx)

    def run(self, tokens: Int[Tensor, "batch pos"], tap: Tap) -> Float[Tensor, "batch pos d_vocab"]:
        return tap(SITE, self.W_E[tokens]) @ self.W_U.T


class CarriedWorld(WorldModel):
    """A linear world with a second site, where what stands at the first arrives turned: logits = h A @ W_U.T."""

    def __init__(
        self,
        W_E: Float[Tensor, "d_vocab d_model"],
        A: Float[Tensor, "d_model d_model"],
        W_U: Float[Tensor, "d_vocab d_model"],
    ):
        widths = {SITE: W_E.shape[1], LATER: A.shape[1]}
        super().__init__(W_E, W_U, name="carried", widths=widths)
        self.A = A

    def run(self, tokens: Int[Tensor, "batch pos"], tap: Tap) -> Float[Tensor, "batch pos d_vocab"]:
        return tap(LATER, tap(SITE, self.W_E[tokens]) @ self.A) @ self.W_U.T
