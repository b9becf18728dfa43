"""What a dictionary does on a text, kept sparse: who fires where, and what the reconstruction leaves over."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import gammaln

from polysem.corpus import TokenRows
from polysem.errors import ConfigError, NumericsError
from polysem.features.encoder import Active, ActiveEncoder
from polysem.models.base import WhiteBoxModel
from polysem.positions import PLAIN, ordinary_rows
from polysem.progress import SILENT, Reporter
from polysem.saes.base import SAE, decoder_norms
from polysem.types import Site

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
else:
    csr_matrix = Any

BATCH = 32
"""rows of a forward pass"""
TOKENS_AT_ONCE = 1024
"""whose active features' rows are held"""
_ENOUGH = 1e-17
"""terms of a tail below this share of it are left out"""


@dataclass(frozen=True)
class Fired:
    """A dictionary on `n` tokens; arrays of features are in the order of W_dec."""

    acts: csr_matrix
    """[n, d_sae] activations, float32"""
    fires: csr_matrix
    """[n, d_sae] 1 where active"""
    count: Int[np.ndarray, " d_sae"]
    """tokens on which each fires"""
    rows: Float[np.ndarray, "d_sae d_out"]
    """what a unit of activation writes, before the scale of its token"""
    units: Float[np.ndarray, "d_sae d_out"]
    """rows at norm 1; zero rows stay"""
    x: Float[np.ndarray, "n d_in"]
    error: Float[np.ndarray, "n d_out"]
    """x less its reconstruction"""
    scale: Float[np.ndarray, " n"]
    """of each token, where the dictionary normalises its input; else 1"""

    @property
    def n(self) -> int:
        """Tokens."""
        return len(self.x)

    @property
    def d_sae(self) -> int:
        return len(self.rows)

    def at(self, feature: int) -> Int[np.ndarray, " n_fires"]:
        """Tokens on which a feature fires, rising."""
        return self._columns.indices[self._columns.indptr[feature] : self._columns.indptr[feature + 1]]

    def activation(self, feature: int, tokens: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """Of a feature on some of the tokens on which it fires."""
        start = self._columns.indptr[feature]
        return self._columns.data[start + np.searchsorted(self.at(feature), tokens)]

    @cached_property
    def _columns(self) -> Any:
        return self.acts.tocsc()

    def raises(self, tokens: Int[np.ndarray, " m"]) -> Float[np.ndarray, " d_sae"]:
        """By how much taking each feature's part away raises the squared error, mean over some tokens."""
        part, gain = self._raised(tokens)
        return np.bincount(part.indices, weights=gain, minlength=self.d_sae) / max(len(tokens), 1)

    def needed(self, feature: int) -> Int[np.ndarray, " n_needed"]:
        """Tokens on which a feature fires and its part lowers the error, rising: elsewhere it fires by what leaks into it."""
        return self._needed.indices[self._needed.indptr[feature] : self._needed.indptr[feature + 1]]

    @cached_property
    def _needed(self) -> Any:
        on = self.fires.copy()
        for start in range(0, self.n, TOKENS_AT_ONCE):
            tokens = np.arange(start, min(start + TOKENS_AT_ONCE, self.n))
            on.data[on.indptr[start] : on.indptr[tokens[-1] + 1]] = self._raised(tokens)[1] > 0
        on.eliminate_zeros()
        return on.tocsc()

    def _raised(self, tokens: Int[np.ndarray, " m"]) -> tuple[Any, Float[np.ndarray, " n_active"]]:
        """Activations on some tokens; by how much the squared error rises without each of them."""
        part = self.acts[tokens]
        place = np.repeat(np.arange(len(tokens)), np.diff(part.indptr))
        moved = part.data * self.scale[tokens][place]
        rows = self.rows[part.indices]
        along = np.einsum("nd,nd->n", self.error[tokens][place], rows)
        return part, 2 * moved * along + moved**2 * np.einsum("nd,nd->n", rows, rows)


def fired(sae: SAE, x: Float[np.ndarray, "n d_in"]) -> Fired:
    """An autoencoder on activations of its site.

    Raises:
        ConfigError: if there are no activations.
        MismatchError: if it reads one site and writes another.
        NumericsError: if they, or weights or activations of the dictionary, are not finite.
    """
    from scipy import sparse

    assert sae.site is not None
    if not len(x):
        raise ConfigError(f"no activations of {sae.reads}; expected some", hint="give a longer --corpus")
    if bad := int((~np.isfinite(x)).any(axis=1).sum()):
        raise NumericsError(
            f"{bad} of {len(x)} activations of {sae.reads} are not finite",
            hint="load the model with dtype = float32",
        )
    inputs = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    on: Active = ActiveEncoder(sae)(inputs)
    shape = (len(x), sae.d_sae)
    acts = sparse.csr_matrix((on.value, (on.place, on.feature)), shape=shape, dtype=np.float32)
    fires = acts.copy()
    fires.data = np.ones_like(fires.data)
    W = sae.W_dec.detach().float().cpu()
    rows = (W / decoder_norms(sae)[:, None].cpu() if sae.rescale_by_decoder_norm else W).numpy()
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    # A dictionary of one row says what its normalisation adds and by how much it multiplies.
    at = slice(int(norms.argmax()), int(norms.argmax()) + 1)
    one = replace(
        sae,
        W_enc=sae.W_enc[:, at],
        W_dec=sae.W_dec[at],
        b_enc=sae.b_enc[at],
        threshold=None if sae.threshold is None else sae.threshold[at],
        gate=None if sae.gate is None else (sae.gate[0][at], sae.gate[1][at], sae.gate[2][at]),
    )
    with torch.no_grad():
        without, with_one = (
            one.decode(torch.full((len(x), 1), value), like=inputs).cpu().numpy() for value in (0.0, 1.0)
        )
    scale = np.linalg.norm(with_one - without, axis=1) / norms.max()
    if sae.normalization == "none":
        scale = np.ones(len(x), np.float32)
    error = x - without - scale[:, None] * (acts @ rows)
    units = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    count = np.bincount(on.feature, minlength=sae.d_sae).astype(np.int64)
    return Fired(acts, fires, count, rows, units, np.asarray(x, np.float32), error.astype(np.float32), scale)


def site_activations(
    model: WhiteBoxModel, rows: TokenRows, site: Site, *, reporter: Reporter = SILENT
) -> Float[np.ndarray, "n d_in"]:
    """Activations of a site on rows of text, float32, at every position but the first and massive ones."""
    parts = []
    starts = range(0, len(rows.tokens), BATCH)
    for at in reporter.track(starts, total=len(starts), label="corpus"):
        tokens = torch.from_numpy(rows.tokens[at : at + BATCH].astype(np.int64)).to(model.spec.device)
        parts.append(
            model.capture(tokens, [site])[site][:, PLAIN.n_first :].float().flatten(0, 1).cpu().numpy()
        )
    return ordinary_rows(np.concatenate(parts))


def cofiring_tail(
    both: Int[np.ndarray, " m"],
    n: int,
    first: Int[np.ndarray, " m"],
    second: Int[np.ndarray, " m"],
    *,
    above: bool,
) -> Float[np.ndarray, " m"]:
    """Exact chance that two features of `first` and `second` of `n` tokens meet on so many or more (`above`), or on so many or
    fewer: the hypergeometric tail, summed from its largest term."""
    both, first, second = (np.asarray(v, np.float64) for v in (both, first, second))
    expected = first * second / max(n, 1)
    outer = both >= expected if above else both <= expected
    # On the near side of the mean the other tail is the shorter sum.
    start = np.where(outer, both, both - 1 if above else both + 1)
    upward = outer == above
    tail = _summed(start, float(n), first, second, upward)
    return np.clip(np.where(outer, tail, 1 - tail), 0.0, 1.0)


def _summed(
    k: np.ndarray, n: float, a: np.ndarray, b: np.ndarray, upward: Bool[np.ndarray, " m"]
) -> np.ndarray:
    """P(K >= k) where upward, P(K <= k) elsewhere."""
    low, high = np.maximum(0, a + b - n), np.minimum(a, b)
    inside = (k >= low) & (k <= high)
    # Nothing lies beyond an end; everything lies on this side of it.
    outside = np.where(np.where(upward, k > high, k < low), 0.0, 1.0)
    k = np.where(inside, k, low)

    def choose(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return gammaln(x + 1) - gammaln(y + 1) - gammaln(x - y + 1)

    term = np.exp(choose(a, k) + choose(n - a, b - k) - choose(np.full_like(a, n), b))
    total = term.copy()
    at, live = k.copy(), np.flatnonzero(inside)
    while len(live):
        up, x, p, q = upward[live], at[live], a[live], b[live]
        rise = (p - x) * (q - x) / np.maximum((x + 1) * (n - p - q + x + 1), 1e-300)
        fall = x * (n - p - q + x) / np.maximum((p - x + 1) * (q - x + 1), 1e-300)
        term[live] *= np.where(up, rise, fall)
        total[live] += term[live]
        at[live] += np.where(up, 1, -1)
        live = live[term[live] > _ENOUGH * total[live]]
    return np.where(inside, total, outside)
