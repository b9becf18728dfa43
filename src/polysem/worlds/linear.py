"""A white-box model whose interventions have effects in closed form: logits = h @ W_U.T, h = the embedding
of the last token.

There is one site, `blocks.0.hook_resid_post`. Adding v at the last position changes the logit of token t by
exactly W_U[t] . v, so the change in the log-odds of a target set T is K_T - K_notT with K_q = log sum_{t in
q} p_t e^{W_U[t] . v} - log sum_{t in q} p_t (p the unedited distribution). Tests of the whole pipeline
compare with that.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.edits import Edit
from polysem.errors import SiteError
from polysem.models.base import ModelSpec
from polysem.models.hooks import apply_edit, check_edit
from polysem.types import Site

SITE = Site(0, "hook_resid_post")


class LinearWorld:
    """A model without depth, behind the seam `models.base.WhiteBoxModel`; tokens are the numbers of its
    vocabulary as text."""

    def __init__(
        self, W_E: Float[Tensor, "d_vocab d_model"], W_U: Float[Tensor, "d_vocab d_model"], *, n_ctx: int = 16
    ):
        self._W_E, self._W_U = W_E, W_U
        d_vocab, d_model = W_E.shape
        dtype = str(W_E.dtype).removeprefix("torch.")
        self.spec = ModelSpec("world:linear", "memory", "linear", 1, d_model, d_vocab, n_ctx, dtype, "cpu")

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        return self._W_E

    @property
    def W_U(self) -> Float[Tensor, "d_vocab d_model"]:
        return self._W_U

    @property
    def bos_id(self) -> int | None:
        return 0

    def tokenize(self, text: str, *, prepend_bos: bool) -> list[int]:
        ids = [int(word) for word in text.split()]
        return [0, *ids] if prepend_bos else ids

    def detokenize(self, ids: Sequence[int]) -> str:
        return " ".join(str(i) for i in ids)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        return [f" {i}" for i in ids]

    def sites(self) -> list[Site]:
        return [SITE]

    def site_width(self, site: Site) -> int:
        if site != SITE:
            raise SiteError(f"the linear world has no site {site}; it has {SITE}")
        return self.spec.d_model

    def logits(
        self, tokens: Int[Tensor, "batch pos"], edits: Sequence[Edit] = (), *, last_only: bool = False
    ) -> Float[Tensor, "batch pos_out d_vocab"]:
        """Logits of every position, or of the last."""
        h = self._residual(tokens, edits)
        return (h[:, -1:] if last_only else h) @ self._W_U.T

    def capture(
        self, tokens: Int[Tensor, "batch pos"], sites: Sequence[Site], edits: Sequence[Edit] = ()
    ) -> dict[Site, Float[Tensor, "batch pos d"]]:
        """The embedding of every token, after the edits."""
        for site in sites:
            self.site_width(site)
        return {site: self._residual(tokens, edits) for site in sites}

    def vjp(
        self,
        tokens: Int[Tensor, "batch pos"],
        site: Site,
        cotangent: Float[Tensor, "batch d_vocab"],
        edits: Sequence[Edit] = (),
    ) -> Float[Tensor, "batch pos d"]:
        """cotangent @ W_U at the last position, zero elsewhere; the same everywhere, as the model is linear."""
        self.site_width(site)
        gradient = torch.zeros(*tokens.shape, self.spec.d_model, dtype=self._W_E.dtype)
        gradient[:, -1] = cotangent.to(self._W_E.dtype) @ self._W_U
        return gradient

    def _residual(
        self, tokens: Int[Tensor, "batch pos"], edits: Sequence[Edit]
    ) -> Float[Tensor, "batch pos d_model"]:
        h = self._W_E[tokens]
        for edit in edits:
            self.site_width(edit.site)
            check_edit(edit, batch=h.shape[0], pos=h.shape[1], width=h.shape[2])
            h = apply_edit(h, edit)
        return h
