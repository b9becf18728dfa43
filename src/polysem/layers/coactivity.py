"""One corpus pass: who fires with whom across layers, how strongly, in two halves of the documents.

    lift   = P(i and j fire) / (P(i fires) P(j fires))
    ERA    = E[a_i 1(a_j > 0)] weight[i, j]                  expected residual attribution
    TWERA  = E[a_i a_j] / E[a_j] weight[i, j]                target-weighted

(Circuit Tracing, transformer-circuits.pub 2025.) Sums of products of sparse activations; a token of k_A and k_B active
features costs k_A k_B products. The first position of a row and massive tokens of either site are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.corpus import TokenRows
from polysem.features.encoder import ActiveEncoder
from polysem.layers.ends import Ends, ReadNorm, with_scale
from polysem.models.base import WhiteBoxModel
from polysem.positions import PLAIN
from polysem.progress import SILENT, Reporter
from polysem.types import Site

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
else:
    csr_matrix = Any

BATCH = 32
"""rows of a forward pass"""
HALVES = 2
SAMPLED = 4096
"""tokens of the stream from which the mean scale of a norm is taken"""
BLOCK = 256
"""sources of which all pairs are held at a time"""
EVERY = slice(None)


Places = Int[np.ndarray, " _n"] | Sequence[int] | slice
"""features by number"""


@dataclass(frozen=True, eq=False)
class Coactivity:
    """Who fires with whom on the tokens of some documents. Sums are made of the pairs that are asked for, from what fires:
    all pairs of two wide dictionaries would not fit into memory."""

    source: csr_matrix
    """activations [n_i, tokens] above zero, float64"""
    target: csr_matrix
    """activations [tokens, n_j]"""

    @property
    def n_tokens(self) -> int:
        """Tokens that count."""
        return self.target.shape[0]

    @cached_property
    def fires_i(self) -> Float[np.ndarray, " n_i"]:
        """Tokens on which a source fires."""
        return np.diff(self.source.indptr).astype(np.float64)

    @cached_property
    def fires_j(self) -> Float[np.ndarray, " n_j"]:
        """Tokens on which a target fires."""
        return np.bincount(self.target.indices, minlength=self.target.shape[1]).astype(np.float64)

    def both(self, i: Places = EVERY, j: Places = EVERY) -> Float[np.ndarray, "_m _k"]:
        """Tokens on which both fire, of all pairs of some sources and targets."""
        return _sums(_ones(self.source[i]), self._target_fires, j)

    def both_of(self, i: Int[np.ndarray, " m"], j: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """Tokens on which both fire, of single pairs."""
        found = np.empty(len(i))
        for start in range(0, self.source.shape[0], BLOCK):
            mine = np.flatnonzero((i >= start) & (i < start + BLOCK))
            if len(mine):
                found[mine] = self.both(slice(start, start + BLOCK))[i[mine] - start, j[mine]]
        return found

    def lift(self, i: Places = EVERY, j: Places = EVERY) -> Float[np.ndarray, "_m _k"]:
        """Co-firing over chance; NaN where one never fires."""
        both = self.both(i, j)
        expected = np.outer(self.fires_i[i], self.fires_j[j]) / max(self.n_tokens, 1)
        return np.divide(both, expected, out=np.full_like(both, np.nan), where=expected > 0)

    def onto(self, i: Places = EVERY, j: Places = EVERY) -> Float[np.ndarray, "_m _k"]:
        """Sum of a_i where j fires."""
        return _sums(self.source[i], self._target_fires, j)

    def product(self, i: Places = EVERY, j: Places = EVERY) -> Float[np.ndarray, "_m _k"]:
        """Sum of a_i a_j."""
        return _sums(self.source[i], self.target, j)

    def era(
        self, weight: Float[np.ndarray, "_m _k"], i: Places = EVERY, j: Places = EVERY
    ) -> Float[np.ndarray, "_m _k"]:
        """Expected residual attribution, in pre-activation of j a token; `weight` is of the same pairs."""
        return self.onto(i, j) / max(self.n_tokens, 1) * weight

    def twera(
        self, weight: Float[np.ndarray, "_m _k"], i: Places = EVERY, j: Places = EVERY
    ) -> Float[np.ndarray, "_m _k"]:
        """Target-weighted; NaN where j never fires."""
        total, product = np.asarray(self.target.sum(0)).ravel()[j], self.product(i, j)
        return np.divide(product, total, out=np.full_like(product, np.nan), where=total > 0) * weight

    @cached_property
    def _target_fires(self) -> csr_matrix:
        return _ones(self.target)


def _ones(matrix: csr_matrix) -> csr_matrix:
    """1 where something fires; the places are shared."""
    return type(matrix)((np.ones_like(matrix.data), matrix.indices, matrix.indptr), shape=matrix.shape)


def _sums(a: csr_matrix, b: csr_matrix, j: Places) -> Float[np.ndarray, "_m _k"]:
    return (a @ b).toarray()[:, j]


@dataclass(frozen=True)
class Pass:
    """What one pass over the corpus gives."""

    rows: TokenRows
    document: Int[np.ndarray, "n_rows pos"]
    """number of the document of every position"""
    counted: Bool[np.ndarray, "n_rows pos"]
    """positions that count, at every site"""
    active: Mapping[str, "Firing"]
    scales: Mapping[str, ReadNorm]
    """norms by the name they were asked for, with their scales"""

    @property
    def half(self) -> Int[np.ndarray, "n_rows pos"]:
        """0 or 1: documents take turns."""
        return self.document % HALVES

    def between(self, source: str, target: str, *, half: int | None = None) -> Coactivity:
        """The sums of two dictionaries, over one half of the documents or over all."""
        kept = self.counted if half is None else self.counted & (self.half == half)
        return fired_together(self.active[source], self.active[target], kept)


def fired_together(source: "Firing", target: "Firing", kept: Bool[np.ndarray, "n_rows pos"]) -> Coactivity:
    """Two dictionaries over the kept positions."""
    return Coactivity(source.matrix(kept).T.tocsr(), target.matrix(kept))


@dataclass(frozen=True)
class Firing:
    """The activations of one dictionary on the rows of a corpus, above zero."""

    shape: tuple[int, int, int]
    """rows, positions, features"""
    place: Int[np.ndarray, " n"]
    """row times positions plus position, rising"""
    feature: Int[np.ndarray, " n"]
    value: Float[np.ndarray, " n"]

    def matrix(self, kept: Bool[np.ndarray, "n_rows pos"]) -> csr_matrix:
        """[kept tokens, features], compressed rows, float64."""
        from scipy import sparse

        flat = kept.ravel()
        at = flat[self.place]
        number = np.cumsum(flat) - 1
        values = self.value[at].astype(np.float64)
        return sparse.csr_matrix(
            (values, (number[self.place[at]], self.feature[at])), shape=(int(flat.sum()), self.shape[2])
        )

    def of(
        self, feature: int, kept: Bool[np.ndarray, "n_rows pos"]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(row, position, activation) of one feature, at kept positions."""
        at = (self.feature == feature) & kept.ravel()[self.place]
        row, position = np.divmod(self.place[at], self.shape[1])
        return row, position, self.value[at].astype(np.float64)


def corpus_pass(
    model: WhiteBoxModel,
    rows: TokenRows,
    dictionaries: Sequence[Ends],
    norms: Mapping[str, ReadNorm],
    *,
    reporter: Reporter = SILENT,
) -> Pass:
    """Run the model over the rows once.

    Args:
        rows: text of equal length.
        dictionaries: whose activations are kept.
        norms: whose mean scale is wanted, by name.

    Raises:
        NumericsError: of models and dictionaries.
    """
    sites = sorted(
        {one.reads for one in dictionaries} | {n.stream for n in norms.values() if n.stream is not None}
    )
    encoders = {one.label: ActiveEncoder(one.encoder) for one in dictionaries}
    n_rows, n_pos = rows.tokens.shape
    counted = np.zeros((n_rows, n_pos), dtype=bool)
    kept: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {label: [] for label in encoders}
    stream: dict[Site, list[Tensor]] = {site: [] for site in sites}
    limits: dict[Site, float] = {}
    starts = range(0, n_rows, BATCH)
    for at in reporter.track(starts, total=len(starts), label="corpus"):
        tokens = torch.from_numpy(rows.tokens[at : at + BATCH].astype(np.int64)).to(model.spec.device)
        seen = {site: x.float().cpu() for site, x in model.capture(tokens, sites).items()}
        usual = np.ones(tokens.shape, dtype=bool)
        usual[:, : PLAIN.n_first] = False
        for site, x in seen.items():
            norms_here = x.norm(dim=2).double().numpy()
            limits.setdefault(site, PLAIN.limit(norms_here[:, PLAIN.n_first :].ravel()))
            usual &= PLAIN.ordinary(norms_here.ravel(), limit=limits[site]).reshape(usual.shape)
            if sum(len(part) for part in stream[site]) < SAMPLED:
                stream[site].append(x[torch.from_numpy(usual)])
        counted[at : at + len(tokens)] = usual
        for one in dictionaries:
            fires = encoders[one.label](seen[one.reads].flatten(0, 1))
            kept[one.label].append((fires.place + at * n_pos, fires.feature, fires.value))
    scales = {
        name: norm if norm.stream is None else with_scale(norm, torch.cat(stream[norm.stream])[:SAMPLED])
        for name, norm in norms.items()
    }
    active = {
        one.label: Firing(
            (n_rows, n_pos, one.encoder.d_sae),
            *(np.concatenate(c) for c in zip(*kept[one.label], strict=True)),
        )
        for one in dictionaries
    }
    return Pass(rows, _documents(rows), counted, active, scales)


def _documents(rows: TokenRows) -> Int[np.ndarray, "n_rows pos"]:
    n_rows, n_pos = rows.tokens.shape
    length = n_pos - rows.n_special
    place = np.arange(n_rows)[:, None] * length + np.maximum(np.arange(n_pos) - rows.n_special, 0)
    return np.searchsorted(rows.starts, place.ravel(), side="right").reshape(place.shape) - 1
