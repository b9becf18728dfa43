"""A small model behind the seam for white-box models: a world says how activations flow, this does the rest.

`run(tokens, tap)` computes logits and passes the activation of every site through `tap(site, h)`; edits,
captures and gradients are three taps. Tokens are the numbers of the vocabulary as text; token 0 is BOS.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.edits import Edit
from polysem.errors import MismatchError, NumericsError, SiteError
from polysem.models.base import ModelSpec
from polysem.models.generate import Generated, recomputed
from polysem.models.hooks import apply_edit, check_edit
from polysem.types import Site

Tap = Callable[[Site, Tensor], Tensor]


class WorldModel(ABC):
    """A model of a world. Subclasses give `run` and call `__init__`."""

    def __init__(
        self,
        W_E: Float[Tensor, "d_vocab d_model"],
        W_U: Float[Tensor, "d_vocab d_model"],
        *,
        name: str,
        widths: dict[Site, int],
        n_ctx: int = 16,
    ):
        self._W_E, self._W_U, self._widths = W_E, W_U, widths
        d_vocab, d_model = W_E.shape
        layers = [site.layer for site in widths if site.layer is not None]
        dtype = str(W_E.dtype).removeprefix("torch.")
        self.spec = ModelSpec(
            f"world:{name}", "memory", name, max(layers) + 1, d_model, d_vocab, n_ctx, dtype, "cpu"
        )

    @abstractmethod
    def run(self, tokens: Int[Tensor, "batch pos"], tap: Tap) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of every position, every site's activation having gone through `tap`."""

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
        return " ".join(str(int(i)) for i in ids)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        return [f" {int(i)}" for i in ids]

    def sites(self) -> list[Site]:
        return list(self._widths)

    def site_width(self, site: Site) -> int:
        """Width of the activation at `site`.

        Raises:
            SiteError: if the world does not have it.
        """
        if site not in self._widths:
            raise SiteError(f"{self.spec.ref} has no site {site}; it has {', '.join(map(str, self._widths))}")
        return self._widths[site]

    def logits(
        self, tokens: Int[Tensor, "batch pos"], edits: Sequence[Edit] = (), *, last_only: bool = False
    ) -> Float[Tensor, "batch pos_out d_vocab"]:
        """Logits of every position, or of the last.

        Raises:
            MismatchError: if tokens or edits do not fit.
            NumericsError: if a logit is not finite.
        """
        with torch.no_grad():
            logits = self.run(self._checked(tokens), self._editor(tokens, edits))
        if not bool(torch.isfinite(logits).all()):
            raise NumericsError(
                f"logits of {self.spec.ref} are not finite", hint="lower the dose of the edits"
            )
        return logits[:, -1:] if last_only else logits

    def capture(
        self, tokens: Int[Tensor, "batch pos"], sites: Sequence[Site], edits: Sequence[Edit] = ()
    ) -> dict[Site, Float[Tensor, "batch pos d"]]:
        """Activations at `sites`, after the edits."""
        for site in sites:
            self.site_width(site)
        found: dict[Site, Tensor] = {}
        edit = self._editor(tokens, edits)

        def look(site: Site, h: Tensor) -> Tensor:
            found[site] = edit(site, h)
            return found[site]

        with torch.no_grad():
            self.run(self._checked(tokens), look)
        return {site: found[site].clone() for site in dict.fromkeys(sites)}

    def vjp(
        self,
        tokens: Int[Tensor, "batch pos"],
        site: Site,
        cotangent: Float[Tensor, "batch d_vocab"],
        edits: Sequence[Edit] = (),
    ) -> Float[Tensor, "batch pos d"]:
        """Gradient of sum_t cotangent[b, t] logits[b, last, t] with respect to the activation at `site`, taken
        where the edits have brought the model."""
        self.site_width(site)
        edit = self._editor(tokens, edits)
        leaves: list[Tensor] = []

        def cut(at: Site, h: Tensor) -> Tensor:
            h = edit(at, h)
            if at != site:
                return h
            leaves.append(h.detach().clone().requires_grad_(True))
            return leaves[-1]

        with torch.enable_grad():
            last = self.run(self._checked(tokens), cut)[:, -1]
            (gradient,) = torch.autograd.grad(last, leaves[0], grad_outputs=cotangent.to(last))
        return gradient

    def generate(
        self, tokens: Int[Tensor, "batch pos"], edits: Sequence[Edit] = (), *, n: int, **how: Any
    ) -> Generated:
        """n tokens behind every prompt; the text is read again for each.

        Raises:
            MismatchError, NumericsError: as `logits` and `models.generate.drawn`.
        """

        def last(whole: Tensor, now: list[Edit]) -> Tensor:
            return self.logits(whole, now, last_only=True)

        return recomputed(last, self._checked(tokens), edits, n=n, n_ctx=self.spec.n_ctx, **how)

    def _editor(self, tokens: Tensor, edits: Sequence[Edit]) -> Tap:
        for edit in edits:
            width = self.site_width(edit.site)
            check_edit(edit, batch=tokens.shape[0], pos=tokens.shape[1], width=width)

        def tap(site: Site, h: Tensor) -> Tensor:
            for edit in edits:
                if edit.site == site:
                    h = apply_edit(h, edit)
            return h

        return tap

    def _checked(self, tokens: Tensor) -> Tensor:
        if tokens.ndim != 2 or tokens.numel() == 0 or tokens.shape[1] > self.spec.n_ctx:
            raise MismatchError(
                f"tokens have shape {tuple(tokens.shape)}, expected (batch, 1 to {self.spec.n_ctx})"
            )
        if int(tokens.min()) < 0 or int(tokens.max()) >= self.spec.d_vocab:
            raise MismatchError(f"token ids must lie in 0 to {self.spec.d_vocab - 1}, got {tokens.tolist()}")
        return tokens
