"""GT4, a compiled transformer in superposition: a circuit written as weights, then squeezed by a known map.

On D axes live: the current token (one axis each), the previous token, and one axis per planted bigram. Block 0 has
one attention head with a relative position bias that looks one token back and turns "current" into "previous"
by a fixed orthogonal map, so that nothing is lost on the way.
Block 1 has one MLP neuron per bigram (b, a): ReLU(current a + previous b - 1.5), which writes the bigram's axis.
The unembedding reads a bigram's axis for its token t, and the current token's axis for its successor.
A fixed map R [d, D] with unit columns squeezes the D axes into d dimensions: everything is written through R's
columns and read through them, so the Gram matrix of the features is R^T R, and off-diagonal entries are the
interference. Without compression R is the identity. No norm, so all of it is in closed form.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.saes.base import SAE
from polysem.seeds import rng_for
from polysem.types import Site
from polysem.worlds.model import Tap, WorldModel
from polysem.worlds.tables import plain_sae

ATTENTION = Site(0, "hook_attn_out")
MIDDLE = Site(0, "hook_resid_post")
NEURONS = Site(1, "mlp.hook_post")
MLP = Site(1, "hook_mlp_out")
FINAL = Site(1, "hook_resid_post")
THRESHOLD = 1.5
"""a neuron needs both of its inputs; interference below a half of an input does not pass"""


@dataclass(frozen=True)
class CompiledTruth:
    """The circuit."""

    R: Float[np.ndarray, "d D"]
    gram: Float[np.ndarray, "D D"]
    bigrams: Int[np.ndarray, "k 3"]
    """previous token, current token, token that is written; row k is neuron k"""
    successors: Int[np.ndarray, " n"]
    """successor of token 1 + i"""
    n_tokens: int

    def current(self, token: int) -> int:
        """Axis of "the current token is `token`"."""
        return token - 1

    def previous(self, token: int) -> int:
        """Axis of "the previous token is `token`"."""
        return self.n_tokens + token - 1

    def bigram(self, k: int) -> int:
        """Axis of bigram k."""
        return 2 * self.n_tokens + k

    def activations(self, tokens: Int[np.ndarray, "batch pos"]) -> Float[np.ndarray, "batch pos D"]:
        """What each axis holds at the end of an uncompressed pass, by the circuit's rule."""
        n, k = self.n_tokens, len(self.bigrams)
        held = np.zeros((*tokens.shape, 2 * n + k))
        for row, ids in enumerate(tokens.tolist()):
            for pos, now in enumerate(ids):
                before = ids[pos - 1] if pos else 0
                if now:
                    held[row, pos, self.current(now)] = 1.0
                if before:
                    held[row, pos, self.previous(before)] = 1.0
                for number, (b, a, _) in enumerate(self.bigrams.tolist()):
                    if (b, a) == (before, now):
                        held[row, pos, self.bigram(number)] = 1.0
        return held


@dataclass(frozen=True)
class CompiledWorld:
    """The model, its features as an SAE at the end of block 0, and the circuit."""

    model: "CompiledTransformer"
    sae: SAE
    truth: CompiledTruth


class CompiledTransformer(WorldModel):
    """Two blocks: attention to the previous token, then an MLP."""

    def __init__(
        self,
        W_E: Float[Tensor, "d_vocab d"],
        W_U: Float[Tensor, "d_vocab d"],
        *,
        W_OV: Float[Tensor, "d d"],
        W_in: Float[Tensor, "neurons d"],
        W_out: Float[Tensor, "neurons d"],
    ):
        d = W_E.shape[1]
        widths = {ATTENTION: d, MIDDLE: d, NEURONS: len(W_in), MLP: d, FINAL: d}
        super().__init__(W_E, W_U, name="compiled", widths=widths)
        self.W_OV, self.W_in, self.W_out = W_OV, W_in, W_out

    def run(self, tokens: Tensor, tap: Tap) -> Float[Tensor, "batch pos d_vocab"]:
        h = self.W_E[tokens]
        # the head's relative position bias leaves exactly the token before; the first token finds nothing
        before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], dim=1)
        h = tap(MIDDLE, h + tap(ATTENTION, before @ self.W_OV))
        neurons = tap(NEURONS, torch.relu(h @ self.W_in.T - THRESHOLD))
        h = tap(FINAL, h + tap(MLP, neurons @ self.W_out))
        return h @ self.W_U.T


def compiled_world(
    *,
    n_tokens: int = 24,
    n_bigrams: int = 16,
    compression: float | None = None,
    bigram_gain: float = 6.0,
    successor_gain: float = 2.0,
    seed: int = 0,
) -> CompiledWorld:
    """The world.

    Args:
        n_tokens: tokens 1 to n; token 0 is BOS and has no axis.
        n_bigrams: planted bigrams, with distinct neurons.
        compression: d / D; None for no compression.
        bigram_gain: logits that a bigram's axis gives its token.
        successor_gain: logits that a token's axis gives its successor.
    """
    rng = rng_for(seed, "compiled world")
    D = 2 * n_tokens + n_bigrams
    d = D if compression is None else round(compression * D)
    if compression is None:
        R, turn = np.eye(D), np.roll(np.eye(D), n_tokens, axis=1)
    else:
        R, turn = rng.standard_normal((d, D)), np.linalg.qr(rng.standard_normal((d, d)))[0]
        R = R / np.linalg.norm(R, axis=0)
        R[:, n_tokens : 2 * n_tokens] = turn.T @ R[:, :n_tokens]
    chosen = rng.choice(n_tokens**2, n_bigrams, replace=False)
    written = 1 + rng.permutation(n_tokens)[:n_bigrams]
    bigrams = np.column_stack([1 + chosen // n_tokens, 1 + chosen % n_tokens, written])
    successors = 1 + np.roll(np.arange(n_tokens), -1)
    truth = CompiledTruth(R, R.T @ R, bigrams, successors, n_tokens)
    current, previous, pairs = R[:, :n_tokens], R[:, n_tokens : 2 * n_tokens], R[:, 2 * n_tokens :]
    W_U = np.zeros((n_tokens + 1, d))
    W_U[successors] += successor_gain * current.T
    W_U[written] += bigram_gain * pairs.T
    W_in = np.stack([previous[:, b - 1] + current[:, a - 1] for b, a, _ in bigrams])
    model = CompiledTransformer(
        torch.tensor(np.concatenate([np.zeros((1, d)), current.T])),
        torch.tensor(W_U),
        W_OV=torch.tensor(turn),
        W_in=torch.tensor(W_in),
        W_out=torch.tensor(2 * pairs.T),  # a firing neuron is at 2 - 1.5
    )
    return CompiledWorld(model, plain_sae(R.T, site=MIDDLE), truth)
