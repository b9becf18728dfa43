"""GT7a, edges between layers whose kind is known: real ones, and interference of equal weight, silent or harmful.

Features of the first layer are directions r_i that come in twins at a chosen cosine; a token is a set of features, its
embedding their sum. Neuron j of block 1 needs two features, ReLU(r_a . h + r_b . h - 1.5), and writes an axis of its own,
which raises the token that the text has next. So the weight r_i . (r_a + r_b) is real for a and b, and for the twin of a
it is as large, planted through R^T R alone: a twin is longer by what its cosine lacks. Three kinds of text decide what such
a weight does:

    real      {a, b, ...}      the neuron fires, and the next token is its own
    silent    {twin of a, ...} without b: the weight is there, and never takes the neuron over its threshold
    harmful   {twin of a, b}   of some neurons: it fires although the next token is any
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.corpus import TokenRows
from polysem.geometry.unit import unit_rows
from polysem.saes.base import SAE, Provenance
from polysem.seeds import rng_for
from polysem.types import Site
from polysem.worlds.model import Tap, WorldModel

FIRST, READ, WRITTEN = Site(0, "hook_resid_post"), Site(1, "hook_resid_pre"), Site(1, "hook_mlp_out")
THRESHOLD = 1.5
"""a neuron needs both of its features"""
WRITES, RAISES = 2.0, 6.0
"""a neuron's row, and logits a unit of its axis: a firing neuron is at 0.5"""
ROW = 16


@dataclass(frozen=True)
class EdgesWorld:
    """The model, its two dictionaries, text, and the kind of every edge."""

    model: "TwoLayers"
    source: SAE
    target: SAE
    rows: TokenRows
    real: Int[np.ndarray, "real 2"]
    """(source, target) that the circuit has"""
    harmful: Int[np.ndarray, "harmful 2"]
    """twins that make a neuron fire wrongly"""
    silent: Int[np.ndarray, "silent 2"]
    """twins that never make one fire"""


class TwoLayers(WorldModel):
    """Token features, then neurons that read them."""

    def __init__(
        self,
        W_E: Float[Tensor, "d_vocab d"],
        W_U: Float[Tensor, "d_vocab d"],
        *,
        W_in: Float[Tensor, "neurons d"],
        W_out: Float[Tensor, "neurons d"],
        bias: Float[Tensor, " neurons"],
    ):
        widths = dict.fromkeys((FIRST, READ, WRITTEN), W_E.shape[1])
        super().__init__(W_E, W_U, name="edges", widths=widths, n_ctx=ROW)
        self.W_in, self.W_out, self.bias = W_in, W_out, bias

    def run(self, tokens: Tensor, tap: Tap) -> Float[Tensor, "batch pos d_vocab"]:
        h = tap(READ, tap(FIRST, self.W_E[tokens]))
        neurons = torch.relu(h @ self.W_in.T + self.bias)
        return (h + tap(WRITTEN, neurons @ self.W_out)) @ self.W_U.T


def edges_world(
    *, n_neurons: int = 10, n_harmful: int = 3, cosine: float = 0.8, n_rows: int = 300, seed: int = 0
) -> EdgesWorld:
    """The world.

    Args:
        n_neurons: each with two features of its own, and those with twins.
        n_harmful: neurons that a twin makes fire wrongly in some text.
        cosine: between a feature and its twin.
        n_rows: rows of text, each a document of its own.
    """
    rng = rng_for(seed, "edges world")
    n = 2 * n_neurons
    plain = rng.standard_normal((n, 3 * n))
    aside = rng.standard_normal((n, 3 * n))
    plain = unit_rows(plain)
    aside = unit_rows(aside - (aside * plain).sum(1, keepdims=True) * plain)
    R = np.concatenate([plain, plain + np.sqrt(1 / cosine**2 - 1) * aside])
    sets, kinds = _tokens(n_neurons, n_harmful, rng)
    codes = np.zeros((len(sets) + 1, 2 * n))
    for token, members in enumerate(sets, start=1):
        codes[token, members] = 1.0
    d = 3 * n + n_neurons
    W_E, W_U = np.zeros((len(codes), d)), np.zeros((len(codes), d))
    W_E[:, : 3 * n] = codes @ R
    axes = np.eye(d)[3 * n :]
    own = 1 + rng.permutation(np.flatnonzero(kinds == "other"))[:n_neurons]
    W_U[own] = RAISES * axes
    W_in = np.zeros((n_neurons, d))
    W_in[:, : 3 * n] = R[:n:2] + R[1:n:2]
    model = TwoLayers(
        *(torch.tensor(x, dtype=torch.float32) for x in (W_E, W_U)),
        W_in=torch.tensor(W_in, dtype=torch.float32),
        W_out=torch.tensor(WRITES * axes, dtype=torch.float32),
        bias=torch.full((n_neurons,), -THRESHOLD),
    )
    rows = np.zeros((d, 2 * n))
    rows[: 3 * n] = np.linalg.pinv(R)
    source = dictionary(
        rows, np.pad(R, ((0, 0), (0, n_neurons))), FIRST, FIRST, bias=np.zeros(2 * n), least=0.5
    )
    target = dictionary(W_in.T, WRITES * axes, READ, WRITTEN, bias=np.full(n_neurons, -THRESHOLD))
    neurons = np.arange(n_neurons)
    real = np.concatenate([np.column_stack([2 * neurons + k, neurons]) for k in (0, 1)])
    twins = np.column_stack([n + 2 * neurons, neurons])
    silent = np.concatenate([twins[n_harmful:], np.column_stack([n + 2 * neurons + 1, neurons])])
    return EdgesWorld(model, source, target, _text(kinds, own, n_rows, rng), real, twins[:n_harmful], silent)


def _tokens(n_neurons: int, n_harmful: int, rng: np.random.Generator) -> tuple[list[list[int]], np.ndarray]:
    """Feature sets of tokens from 1 on, and the kind of each: the neuron's number, "harmful" or "other"."""
    n = 2 * n_neurons
    sets: list[list[int]] = []
    kinds: list[str] = []
    for j in range(n_neurons):
        a, b = 2 * j, 2 * j + 1
        for _ in range(3):  # with a feature that has nothing to do with it
            extra = int(rng.choice([k for k in range(2 * n) if k % n not in (a, b)]))
            sets.append([a, b, extra])
            kinds.append(str(j))
        if j < n_harmful:
            sets += [[n + a, b]] * 2
            kinds += ["harmful"] * 2
    for k in range(2 * n):
        # one feature, and one of another neuron: neither twin meets the other input of its neuron here
        other = int(rng.choice([m for m in range(2 * n) if (m % n) // 2 != (k % n) // 2]))
        sets.append([k, other])
        kinds.append("other")
    return sets, np.array(kinds)


def _text(kinds: np.ndarray, own: np.ndarray, n_rows: int, rng: np.random.Generator) -> TokenRows:
    """Rows of tokens behind BOS: after a token that makes a neuron fire rightly comes the neuron's own in nine of ten."""
    tokens = np.zeros((n_rows, ROW), dtype=np.int32)
    chance = np.where(kinds == "other", 1.0, np.where(kinds == "harmful", 2.0, 3.0))
    drawn = 1 + rng.choice(len(kinds), size=(n_rows, ROW), p=chance / chance.sum())
    sure = rng.random((n_rows, ROW)) < 0.9
    for row in range(n_rows):
        for pos in range(1, ROW):
            before = tokens[row, pos - 1]
            kind = str(kinds[before - 1]) if before else "other"
            rightly = kind.isdigit() and sure[row, pos]
            tokens[row, pos] = own[int(kind)] if rightly else drawn[row, pos]
    starts = np.arange(n_rows, dtype=np.int64) * (ROW - 1)
    return TokenRows(tokens, tuple(f"row {k}" for k in range(n_rows)), starts, 1)


def dictionary(
    W_enc: Float[np.ndarray, "d f"],
    W_dec: Float[np.ndarray, "f d"],
    reads: Site,
    writes: Site,
    *,
    bias: Float[np.ndarray, " f"],
    least: float | None = None,
    k: int | None = None,
) -> SAE:
    """A planted dictionary: a ReLU, a JumpReLU with one threshold `least`, or the k largest."""
    encoder = torch.tensor(W_enc, dtype=torch.float32).contiguous()
    decoder = torch.tensor(W_dec, dtype=torch.float32).contiguous()
    n = len(decoder)
    return SAE(
        W_enc=encoder, W_dec=decoder, b_enc=torch.tensor(bias, dtype=torch.float32), b_dec=torch.zeros(decoder.shape[1]),
        activation="topk" if k else "relu" if least is None else "jumprelu", k=k, reads=reads, writes=writes, model_id=None,
        model_revision=None, provenance=Provenance(ref="planted", revision="memory", dialect="memory"),
        threshold=None if least is None else torch.full((n,), least), subtract_b_dec=False,
    )  # fmt: skip
