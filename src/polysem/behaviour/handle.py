"""A feature as a handle: clamped, and what brings the behaviour back; neurons one by one; and pushes that a monitor does not see.

Behaviour is the log-odds of the concept's tokens as the next one, on prompts behind which such a token stood. The clamp holds
features at a value at every position but the first. Recovery adds a move at the last position, on the clamped state: of least
length by radii, along the gradient there, taken again at every step, orthogonal to the clamped features' encoder rows, so that
none of their pre-activations changes. For a readout that is linear in the site this is the best move there is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.act.clamp import clamp_change
from polysem.edits import Add, Edit, Scale
from polysem.models.base import WhiteBoxModel
from polysem.readouts import kl
from polysem.saes.base import SAE, decoder_norms
from polysem.side_effects.push import Sets
from polysem.types import Site

RADII = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""of a move, in norms of the site at the last position"""
STEPS = 6
MOST = 3.0
"""longest push, in norms of the site"""
HALVINGS = 12
ROWS = 64


@dataclass(frozen=True)
class Handle:
    """A model, a dictionary, what is clamped, and the tokens that are the behaviour."""

    model: WhiteBoxModel
    sae: SAE
    features: tuple[int, ...]
    tokens: tuple[int, ...]
    value: float = 0.0

    @property
    def encoders(self) -> Float[np.ndarray, "k d"]:
        """What the clamped features read: rows of the encoder, centred where the dictionary centres what it reads."""
        rows = self.sae.W_enc[:, list(self.features)].detach().T.cpu().double().numpy()
        return rows - rows.mean(1, keepdims=True) if self.sae.centre_input else rows

    @property
    def decoders(self) -> Float[np.ndarray, "k d"]:
        """What they write."""
        return self.sae.W_dec[list(self.features)].detach().cpu().double().numpy()

    def odds(self, logits: Float[Tensor, "rows d_vocab"], tokens: Sequence[int] | None = None) -> np.ndarray:
        """Log-odds of the behaviour's tokens, nats."""
        one = Sets([self.tokens if tokens is None else tokens], logits.shape[-1])
        return one.log_odds(logits.cpu())[:, 0].numpy()

    def clamp(self, ids: Sequence[int]) -> list[Edit]:
        """The clamp of one prompt, as one `Add` for each position but the first."""
        row = torch.tensor([list(ids)], device=self.model.spec.device)
        h = self.model.capture(row, [self.sae.reads])[self.sae.reads][0].cpu()
        added = clamp_change(self.sae, h, self.features, self.value).detach()
        made: list[Edit] = []
        for k in range(1, len(ids)):
            if bool(added[k].any()):
                mask = torch.zeros_like(row, dtype=torch.bool)
                mask[:, k] = True
                made.append(Add(self.sae.writes, added[k][None].to(row.device), mask))
        return made

    def logits(
        self, ids: Sequence[int], edits: Sequence[Edit], *, rows: int = 1
    ) -> Float[Tensor, "rows d_vocab"]:
        """Of the last position, float64."""
        tokens = torch.tensor([list(ids)], device=self.model.spec.device).expand(rows, -1)
        return self.model.logits(tokens, edits, last_only=True)[:, -1].double().cpu()


def projector(rows: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "d d"]:
    """Onto what is orthogonal to all rows."""
    basis, size, _ = np.linalg.svd(rows.T, full_matrices=False)
    kept = basis[:, size > 1e-10 * max(float(size.max(initial=0.0)), 1e-300)]
    return np.eye(rows.shape[1]) - kept @ kept.T


@dataclass(frozen=True)
class Recovered:
    """One prompt: what the clamp took, and what moves brought back."""

    drop: float
    """nats"""
    cost: float
    """nats of KL of the next token that the clamp costs"""
    norm: float
    """of the site at the last position"""
    gain: Float[np.ndarray, " radii"]
    """nats"""
    drift: float
    in_decoders: float


def recover(
    handle: Handle,
    ids: Sequence[int],
    *,
    arm: str,
    rng: np.random.Generator,
    tokens: Sequence[int] | None = None,
) -> Recovered:
    """The best moves of every radius from the clamped state.

    Args:
        handle: what is clamped.
        ids: the prompt.
        arm: handle | free | random | other.
        rng: of random moves.
        tokens: what the move is towards; the behaviour's own if left out.
    """
    wanted = handle.tokens if tokens is None else tokens
    site, n = handle.sae.writes, len(RADII)
    clamp = handle.clamp(ids)
    plain, clamped = handle.logits(ids, []), handle.logits(ids, clamp)
    row = torch.tensor([list(ids)], device=handle.model.spec.device)
    norm = float(handle.model.capture(row, [site])[site][0, -1].norm())
    length = norm * np.array(RADII)
    keep = projector(handle.encoders) if arm in ("handle", "random") else np.eye(handle.sae.d_out)
    start = rng.standard_normal(handle.sae.d_out) @ keep
    move = np.tile(start / np.linalg.norm(start), (n, 1)) if arm == "random" else np.zeros((n, len(keep)))
    rows = row.expand(n, -1)
    wide = [
        type(e)(e.site, e.vector.expand(n, -1), e.mask.expand(n, -1)) for e in clamp if isinstance(e, Add)
    ]
    best, best_move = np.full(n, -np.inf), move * length[:, None]
    for step in range(1 if arm == "random" else STEPS + 1):
        edits = [*wide, *_last(site, move * length[:, None], rows, handle.model)]
        logits = handle.logits(ids, edits, rows=n)
        gain = handle.odds(logits, wanted) - handle.odds(clamped, wanted)
        better = gain > best
        best, best_move = (
            np.where(better, gain, best),
            np.where(better[:, None], move * length[:, None], best_move),
        )
        if arm == "random" or step == STEPS:
            break
        gradient = handle.model.vjp(rows, site, odds_slope(logits, wanted).to(rows.device), edits)[:, -1]
        g = gradient.double().cpu().numpy() @ keep
        size = np.linalg.norm(g, axis=1, keepdims=True)
        towards = move + np.divide(g, size, out=np.zeros_like(g), where=size > 0)
        long = np.linalg.norm(towards, axis=1, keepdims=True)
        move = np.divide(towards, long, out=np.zeros_like(towards), where=long > 0)
    if arm != "random":
        for r in range(1, n):  # a longer radius allows the shorter move
            if best[r - 1] > best[r]:
                best[r], best_move[r] = best[r - 1], best_move[r - 1]
    E, D = handle.encoders, handle.decoders
    sizes = np.maximum(np.linalg.norm(best_move, axis=1)[:, None] * np.linalg.norm(E, axis=1), 1e-300)
    inside = best_move - best_move @ projector(D)
    share = (inside**2).sum() / max(float((best_move**2).sum()), 1e-300)
    drop = float(handle.odds(plain)[0] - handle.odds(clamped)[0])
    cost = float(np.asarray(kl(plain, clamped)).ravel()[0])
    return Recovered(drop, cost, norm, best, float((np.abs(best_move @ E.T) / sizes).max()), float(share))


def _last(site: Site, moves: Float[np.ndarray, "rows d"], rows: Tensor, model: WhiteBoxModel) -> list[Edit]:
    mask = torch.zeros_like(rows, dtype=torch.bool)
    mask[:, -1] = True
    dtype = torch.float64 if model.spec.dtype == "float64" else torch.float32
    return [Add(site, torch.as_tensor(moves, dtype=dtype, device=rows.device), mask)]


def odds_slope(logits: Float[Tensor, "rows d_vocab"], tokens: Sequence[int]) -> Float[Tensor, "rows d_vocab"]:
    """Gradient of the log-odds with respect to the logits."""
    p = logits.double().softmax(-1)
    inside = torch.zeros(p.shape[-1], dtype=torch.bool)
    inside[list(tokens)] = True
    mass = p[:, inside].sum(1, keepdim=True)
    return (torch.where(inside, p / mass, -p / (1 - mass))).float()


def neuron_slopes(
    handle: Handle, prompts: Sequence[Sequence[int]], tokens: Sequence[int]
) -> Float[np.ndarray, "layers d_mlp"]:
    """Change of the log-odds of some tokens if a neuron is set to 0, by gradient: every neuron of every MLP, mean over prompts."""
    model = handle.model
    sites = [Site(layer, "mlp.hook_post") for layer in range(model.spec.n_layers)]
    found = np.zeros((len(sites), model.site_width(sites[0])))
    for ids in prompts:
        row = torch.tensor([list(ids)], device=model.spec.device)
        slope = odds_slope(handle.logits(ids, []), tokens).to(row.device)
        seen = model.capture(row, sites)
        for k, site in enumerate(sites):
            gradient = model.vjp(row, site, slope)
            found[k] -= (seen[site] * gradient)[0, 1:].sum(0).double().cpu().numpy() / len(prompts)
    return found


def neurons_removed(
    handle: Handle, ids: Sequence[int], neurons: Sequence[tuple[int, int]]
) -> Float[np.ndarray, " n"]:
    """Change of the log-odds with one (layer, neuron) after the other set to 0 at every position but the first."""
    base = handle.odds(handle.logits(ids, []))[0]
    found = np.empty(len(neurons))
    for layer in sorted({layer for layer, _ in neurons}):
        mine = [k for k, (at, _) in enumerate(neurons) if at == layer]
        for at in range(0, len(mine), ROWS):
            some = mine[at : at + ROWS]
            mask = torch.ones(len(some), len(ids), dtype=torch.bool)
            mask[:, 0] = False
            index = torch.tensor([neurons[k][1] for k in some])
            edit = Scale(Site(layer, "mlp.hook_post"), index, torch.zeros(len(some)), mask)
            found[some] = handle.odds(handle.logits(ids, [edit], rows=len(some))) - base
    return found


def gini(x: Float[np.ndarray, " n"]) -> float:
    """0 where all sizes are equal, towards 1 where one has all."""
    size = np.sort(np.abs(x))
    if not size.sum() > 0:
        return float("nan")
    n = len(size)
    return float((2 * np.arange(1, n + 1) - n - 1) @ size / (n * size.sum()))


def half_of(x: Float[np.ndarray, " n"]) -> int:
    """How many of the largest sizes have half of the sum."""
    size = np.sort(np.abs(x))[::-1].cumsum()
    return int(np.searchsorted(size, size[-1] / 2) + 1)


@dataclass(frozen=True)
class ToEffect:
    """Directions pushed on one prompt to one effect; NaN where it is not reached."""

    length: Float[np.ndarray, " n"]
    kl: Float[np.ndarray, " n"]
    seen: Float[np.ndarray, " n"]
    """the monitored feature's pre-activation at the last position, pushed"""
    clean: float


def pushed_to_effect(
    handle: Handle, ids: Sequence[int], vectors: Float[np.ndarray, "n d"], effect: float
) -> ToEffect:
    """Every direction at the length, either way, that raises the log-odds by `effect` on a prompt; all positions but the first.

    The smaller of the two ways is taken: twice as long until the effect is passed, then by halving.
    """
    model, site, n = handle.model, handle.sae.writes, len(vectors)
    row = torch.tensor([list(ids)], device=model.spec.device)
    mask = torch.ones_like(row, dtype=torch.bool)
    mask[:, 0] = False
    h = model.capture(row, [site])[site][0]
    norm = float(h[1:].norm(dim=-1).mean())
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    both = np.concatenate([unit, -unit])
    dtype = torch.float64 if model.spec.dtype == "float64" else torch.float32

    def run(length: np.ndarray) -> Tensor:
        push = torch.as_tensor(both * length[:, None], dtype=dtype, device=row.device)
        return handle.logits(ids, [Add(site, push, mask.expand(2 * n, -1))], rows=2 * n)

    base_logits = handle.logits(ids, [])
    base = handle.odds(base_logits)[0]
    low, high = np.zeros(2 * n), np.full(2 * n, np.nan)
    length = norm * 0.02
    while length <= MOST * norm and np.isnan(high).any():
        over = handle.odds(run(np.full(2 * n, length))) - base >= effect
        high = np.where(np.isnan(high) & over, length, high)
        low = np.where(np.isnan(high), length, low)
        length *= 2
    for _ in range(HALVINGS):
        middle = np.where(np.isnan(high), 0.0, (low + high) / 2)
        over = handle.odds(run(middle)) - base >= effect
        high, low = (
            np.where(over & ~np.isnan(high), middle, high),
            np.where(over | np.isnan(high), low, middle),
        )
    ends = high.reshape(2, n)
    way = np.nan_to_num(ends, nan=np.inf).argmin(0)
    signed = np.where(way == 0, 1.0, -1.0) * ends[way, np.arange(n)]
    logits = run(np.concatenate([np.nan_to_num(signed), np.zeros(n)]))[:n]
    cost = np.asarray(kl(base_logits, logits), dtype=np.float64).reshape(n)
    reader = handle.encoders[0]
    last = h[-1].double().cpu().numpy()
    seen = (last + unit * np.nan_to_num(signed)[:, None]) @ reader
    lost = np.isnan(signed)
    return ToEffect(
        np.abs(signed), np.where(lost, np.nan, cost), np.where(lost, np.nan, seen), float(last @ reader)
    )


def pre_activation_shares(
    sae: SAE, h: Float[Tensor, "n d"], feature: int, group: Int[np.ndarray, " k"]
) -> Float[np.ndarray, " n"]:
    """What a group of features writes into the pre-activation of a feature, activation units."""
    acts = sae.encode(h).detach().double()
    reads = sae.W_enc[:, feature].detach().double()
    if sae.rescale_by_decoder_norm:
        acts, reads = acts / decoder_norms(sae).double(), reads * decoder_norms(sae)[feature].double()
    return (acts[:, list(group)] @ (sae.W_dec[list(group)].detach().double() @ reads)).numpy()
