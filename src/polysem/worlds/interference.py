"""GT7b, interference weights of a trained toy model, whose help and harm have a closed form.

n sparse features go through m < n dimensions and are read back by a matrix of its own (not the transpose, as in toy models):

    out_j = ReLU(sum_i x_i W_in[i] . W_out[j] + b_j),   trained to give x_j back

Nobody planted a weight between two features: what stands between i and j is what training left there. Behind the seam a token
is one feature at one level x, and the logits of all tokens of feature j are SHARP out_j. So a position has one active
feature, and without the edge i -> j the output there is ReLU(b_j). With d = SHARP (out_j - ReLU(b_j)) and P the probability
of all tokens of j, the loss that the edge saves is

    log(1 - P (1 - exp(-d))) + d 1(next token is of j)
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from polysem.corpus import TokenRows
from polysem.geometry.unit import unit_rows
from polysem.saes.base import SAE
from polysem.seeds import rng_for
from polysem.worlds.edges import FIRST, READ, ROW, WRITTEN, TwoLayers, dictionary

LEVELS = (0.25, 0.5, 0.75, 1.0)
SHARP = 6.0
"""logits a unit of output"""
STAYS = 0.7
"""chance that the next token is of the same feature; else it is any token"""


@dataclass(frozen=True)
class InterferenceWorld:
    """The model, its two dictionaries, text, and the trained matrices."""

    model: TwoLayers
    source: SAE
    target: SAE
    rows: TokenRows
    W_in: Float[np.ndarray, "n m"]
    W_out: Float[np.ndarray, "n m"]
    b: Float[np.ndarray, " n"]

    @property
    def outputs(self) -> tuple[Float[np.ndarray, "n levels n"], Float[np.ndarray, " n"]]:
        """(output of every feature at every token, output without what the token's feature writes)."""
        x = np.array(LEVELS)[None, :, None]
        return np.maximum(x * (self.W_in @ self.W_out.T)[:, None] + self.b, 0.0), np.maximum(self.b, 0.0)

    def closed_form(self) -> tuple[Float[np.ndarray, "n levels n"], Float[np.ndarray, "n levels n"]]:
        """(change of log-odds d that edge i -> j makes at token (i, level), probability P of all tokens of j there)."""
        with_it, without = self.outputs
        odds = np.exp(SHARP * with_it)  # as many tokens of every feature; BOS has logit 0
        return SHARP * (with_it - without), odds / (odds.sum(2, keepdims=True) + 1 / len(LEVELS))

    def saved(self) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
        """(mean loss that each edge saves where it acts and a next token is there, in this text; effectiveness a token)."""
        d, p = self.closed_form()
        n = len(self.b)
        tokens = self.rows.tokens[:, 1:].astype(np.int64) - 1
        feature, level = np.divmod(tokens, len(LEVELS))
        total, times = np.zeros((n, n)), np.zeros((n, n))
        squared = np.zeros((n, n))
        for row in range(len(tokens)):
            for pos in range(tokens.shape[1]):
                i, k = feature[row, pos], level[row, pos]
                acts = d[i, k] != 0
                squared[i] += 0.5 * d[i, k] ** 2 * p[i, k] * (1 - p[i, k])
                times[i] += acts
                if pos + 1 < tokens.shape[1]:
                    own = np.arange(n) == feature[row, pos + 1]
                    total[i] += acts * (np.log1p(-p[i, k] * -np.expm1(-d[i, k])) + d[i, k] * own)
        return np.divide(total, times, out=np.full((n, n), np.nan), where=times > 0), squared / tokens.size


def interference_world(
    *, n: int = 10, m: int = 5, p: float = 0.08, n_rows: int = 200, steps: int = 1500, seed: int = 0
) -> InterferenceWorld:
    """The world.

    Args:
        n, m: features and dimensions.
        p: probability that a feature is present while the toy is trained.
        n_rows: rows of text, each a document of its own.
    """
    W_in, W_out, b = _trained(n, m, p, steps, seed)
    levels = np.array(LEVELS)
    W_E = np.zeros((1 + n * len(levels), m + n))
    W_E[1:, :m] = (levels[None, :, None] * W_in[:, None]).reshape(-1, m)
    W_U = np.zeros_like(W_E)
    axes = np.eye(m + n)[m:]
    W_U[1:] = SHARP * np.repeat(axes, len(levels), 0)
    readers = np.pad(W_out, ((0, 0), (0, n)))
    model = TwoLayers(
        *(torch.tensor(x, dtype=torch.float32) for x in (W_E, W_U)), W_in=torch.tensor(readers, dtype=torch.float32),
        W_out=torch.tensor(axes, dtype=torch.float32), bias=torch.tensor(b, dtype=torch.float32),
    )  # fmt: skip
    unit = np.pad(unit_rows(W_in), ((0, 0), (0, n)))
    # a position has one feature: the direction closest to what stands there, whatever the others' overlap
    source = dictionary(unit.T, unit, FIRST, FIRST, bias=np.zeros(n), k=1)
    target = dictionary(readers.T, axes, READ, WRITTEN, bias=b)
    return InterferenceWorld(model, source, target, _text(n, n_rows, seed), W_in, W_out, b)


def _trained(n: int, m: int, p: float, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(W_in, W_out, b) after training on sparse features, uniform in [0, 1] where they are present."""
    g = torch.Generator().manual_seed(seed)
    W_in, W_out = ((torch.randn(n, m, generator=g) / m**0.5).requires_grad_(True) for _ in range(2))
    b = torch.zeros(n, requires_grad=True)
    optimiser = torch.optim.Adam([W_in, W_out, b], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        x = torch.rand(512, n, generator=g) * (torch.rand(512, n, generator=g) < p)
        loss = (torch.relu(x @ W_in @ W_out.T + b) - x).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return tuple(part.detach().double().numpy() for part in (W_in, W_out, b))  # pyright: ignore[reportReturnType]  (three)


def _text(n: int, n_rows: int, seed: int) -> TokenRows:
    rng = rng_for(seed, "interference world")
    feature = rng.integers(n, size=(n_rows, ROW))
    stays = rng.random((n_rows, ROW)) < STAYS
    for pos in range(2, ROW):
        feature[:, pos] = np.where(stays[:, pos], feature[:, pos - 1], feature[:, pos])
    tokens = 1 + feature * len(LEVELS) + rng.integers(len(LEVELS), size=feature.shape)
    tokens[:, 0] = 0
    starts: Int[np.ndarray, " rows"] = np.arange(n_rows, dtype=np.int64) * (ROW - 1)
    return TokenRows(tokens.astype(np.int32), tuple(f"row {k}" for k in range(n_rows)), starts, 1)
