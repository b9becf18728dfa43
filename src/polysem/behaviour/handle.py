"""A feature as a handle: clamped, and what brings the behaviour back; neurons one by one; and pushes to one effect.

Behaviour is the log-odds of the concept's tokens as the next one, on prompts behind which such a token stood. The clamp holds
features at a value at every position but the first. Recovery adds a move at the last position, on the clamped state: of least
length by radii, along the gradient there, taken again at every step, orthogonal to the clamped features' encoder rows, so that
none of their pre-activations changes. For a readout that is linear in the site this is the best move there is. At a later site
it is orthogonal to what arrives there of what the clamped features write, too: the Jacobian of the blocks between, times their
decoder rows, on the clamped state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.act.clamp import clamp_change
from polysem.edits import Add, Edit, Scale
from polysem.geometry.unit import unit_rows
from polysem.models.base import WhiteBoxModel
from polysem.models.gradients import pull_back_edited, scale_slopes
from polysem.models.hf import HFModel
from polysem.models.sweep import sweep_of
from polysem.readouts import kl
from polysem.saes.base import SAE, decoder_norms, decoder_rows
from polysem.side_effects.push import Sets
from polysem.types import Site

RADII = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""of a move, in norms of the site at the last position"""
STEPS = 6
STEP = 0.02
"""of the Jacobian's central difference, in norms of the site"""
MOST = 3.0
"""longest push, in norms of the site"""
FIRST = 0.05
"""the first one tried"""
TRIES = 14
CLOSE = 1e-3
"""of the effect: near enough"""
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
        return decoder_rows(self.sae)[list(self.features)]

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
        return sweep_of(self.model).logits(tokens, edits).double().cpu()

    def slopes(
        self, ids: Sequence[int], edits: Sequence[Edit], site: Site, tokens: Sequence[int], *, rows: int = 1
    ) -> tuple[Float[Tensor, "rows d_vocab"], Float[np.ndarray, "rows pos d"]]:
        """(logits of the last position, gradient of the log-odds of some tokens with respect to a site)."""
        model = self.model
        row = torch.tensor([list(ids)], device=model.spec.device)
        wide = row.expand(rows, -1)
        if isinstance(model, HFModel):
            clean = sweep_of(model).clean(model, row)
            logits, slope = pull_back_edited(
                model, clean, wide, edits, site, lambda z: odds_slope(z.cpu(), tokens).to(z)
            )
        else:
            logits = model.logits(wide, edits, last_only=True)[:, -1]
            slope = model.vjp(wide, site, odds_slope(logits.cpu(), tokens).to(wide.device), edits)
        return logits.double().cpu(), slope.double().cpu().numpy()

    def carried(self, ids: Sequence[int], to: Site) -> Float[np.ndarray, "k d"]:
        """What arrives at the last position of a later site of a unit that each clamped feature writes at every position but the
        first, on the clamped state: by central differences."""
        row = torch.tensor([list(ids)], device=self.model.spec.device)
        site, D, k = self.sae.writes, self.decoders, len(self.features)
        mask = torch.ones_like(row, dtype=torch.bool)
        mask[:, 0] = False
        size = STEP * float(self.model.capture(row, [site])[site][0, 1:].norm(dim=-1).mean())
        unit = unit_rows(D)
        push = Add(site, self.tensor(size * np.concatenate([unit, -unit])), mask.expand(2 * k, -1))
        edits = [*widened(self.clamp(ids), 2 * k), push]
        seen = self.model.capture(row.expand(2 * k, -1), [to], edits)[to][:, -1].double().cpu().numpy()
        return (seen[:k] - seen[k:]) / (2 * size)

    def tensor(self, x: Float[np.ndarray, "rows d"]) -> Tensor:
        """As the model adds it."""
        dtype = torch.float64 if self.model.spec.dtype == "float64" else torch.float32
        return torch.as_tensor(x, dtype=dtype, device=self.model.spec.device)


def widened(edits: Sequence[Edit], rows: int) -> list[Edit]:
    """The additions of one row, for several."""
    return [
        replace(e, vector=e.vector.expand(rows, -1), mask=e.mask.expand(rows, -1))
        for e in edits
        if isinstance(e, Add)
    ]


def projector(rows: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "d d"]:
    """Onto what is orthogonal to all rows."""
    basis, size, _ = np.linalg.svd(rows.T, full_matrices=False)
    kept = basis[:, size > 1e-10 * max(float(size.max(initial=0.0)), 1e-300)]
    return np.eye(rows.shape[1]) - kept @ kept.T


@dataclass(frozen=True)
class Recovered:
    """One prompt: what the clamp took, and what moves brought back. Shares are of a move's squared length."""

    drop: float
    """nats"""
    cost: float
    """nats of KL of the next token that the clamp costs"""
    norm: float
    """of the site at the last position"""
    gain: Float[np.ndarray, " radii"]
    """nats"""
    drift: float
    """largest change of what the move may not touch, over the lengths of move and row"""
    in_decoders: Float[np.ndarray, " radii"]
    """in the span of what the clamped features write"""
    in_dictionary: Float[np.ndarray, " radii"]
    """along the change of the reconstruction; the rest is what the dictionary does not see. NaN at a later site"""
    in_neuron: Float[np.ndarray, " radii"]
    """along what one neuron of the layer's MLP writes, the most of any; NaN where the model has none"""


def recover(
    handle: Handle,
    ids: Sequence[int],
    *,
    arm: str,
    rng: np.random.Generator,
    tokens: Sequence[int] | None = None,
    site: Site | None = None,
) -> Recovered:
    """The best moves of every radius from the clamped state.

    Args:
        handle: what is clamped.
        ids: the prompt.
        arm: handle | free | random | other.
        tokens: what the move is towards; the behaviour's own if left out.
        site: where the move is made; the dictionary's own if left out.
    """
    wanted, own = handle.tokens if tokens is None else tokens, handle.sae.writes
    site, n = site or own, len(RADII)
    clamp = handle.clamp(ids)
    plain, clamped = handle.logits(ids, []), handle.logits(ids, clamp)
    row = torch.tensor([list(ids)], device=handle.model.spec.device)
    norm = float(handle.model.capture(row, [site])[site][0, -1].norm())
    length = norm * np.array(RADII)
    E, D = handle.encoders, handle.decoders if site == own else handle.carried(ids, site)
    if site != own:  # the stream is added to: what a feature reads can be read later, too
        E = np.concatenate([D, E]) if E.shape[1] == D.shape[1] else D
    width = D.shape[1]
    keep = projector(E) if arm in ("handle", "random") else np.eye(width)
    start = rng.standard_normal(width) @ keep
    move = np.tile(start / np.linalg.norm(start), (n, 1)) if arm == "random" else np.zeros((n, width))
    wide = widened(clamp, n)
    best, best_move = np.full(n, -np.inf), move * length[:, None]
    for step in range(1 if arm == "random" else STEPS + 1):
        last = arm == "random" or step == STEPS
        edits = [*wide, _last(site, handle.tensor(move * length[:, None]), row.expand(n, -1))]
        if last:
            logits, gradient = handle.logits(ids, edits, rows=n), None
        else:
            logits, gradient = handle.slopes(ids, edits, site, wanted, rows=n)
        gain = handle.odds(logits, wanted) - handle.odds(clamped, wanted)
        better = gain > best
        best, best_move = (
            np.where(better, gain, best),
            np.where(better[:, None], move * length[:, None], best_move),
        )
        if gradient is None:
            break
        move = unit_rows(move + unit_rows(gradient[:, -1] @ keep))
    if arm != "random":
        for r in range(1, n):  # a longer radius allows the shorter move
            if best[r - 1] > best[r]:
                best[r], best_move[r] = best[r - 1], best_move[r - 1]
    sizes = np.maximum(np.linalg.norm(best_move, axis=1)[:, None] * np.linalg.norm(E, axis=1), 1e-300)
    inside = best_move - best_move @ projector(D)
    return Recovered(
        float(handle.odds(plain)[0] - handle.odds(clamped)[0]),
        float(np.asarray(kl(plain, clamped)).ravel()[0]),
        norm,
        best,
        float((np.abs(best_move @ E.T) / sizes).max()),
        _share(inside, best_move).clip(min=0.0),  # a square, to rounding
        _share(_seen_change(handle, ids, best_move), best_move) if site == own else np.full(n, np.nan),
        _neuron_share(handle.model, site, best_move),
    )


def _share(part: Float[np.ndarray, "n d"], move: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    return (part * move).sum(1) / np.maximum((move**2).sum(1), 1e-300)


def _seen_change(
    handle: Handle, ids: Sequence[int], moves: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "n d"]:
    """What moves at the last position change of the reconstruction, on the clamped state."""
    row = torch.tensor([list(ids)], device=handle.model.spec.device)
    site = handle.sae.writes
    h = handle.model.capture(row, [site], handle.clamp(ids))[site][0, -1:].cpu()
    both = torch.cat([h, h + torch.as_tensor(moves, dtype=h.dtype)])
    read = handle.sae.decode(handle.sae.encode(both), like=both).detach().double().cpu().numpy()
    return read[1:] - read[:1]


def neuron_rows(model: WhiteBoxModel, site: Site) -> Float[np.ndarray, "d_mlp d"] | None:
    """Unit rows of what the neurons of a layer's MLP write; None where the model has none."""
    point = Site(site.layer, "mlp.hook_post")
    if not isinstance(model, HFModel) or point not in model.sites():
        return None
    module = model.model.get_submodule(model.tap(point).path)
    weight = module.weight.detach().cpu().double().numpy()  # type: ignore[union-attr]
    return unit_rows(weight.T if isinstance(module, torch.nn.Linear) else weight)


def _neuron_share(
    model: WhiteBoxModel, site: Site, moves: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, " n"]:
    rows = neuron_rows(model, site)
    if rows is None or rows.shape[1] != moves.shape[1]:
        return np.full(len(moves), np.nan)
    return ((moves @ rows.T) ** 2).max(1) / np.maximum((moves**2).sum(1), 1e-300)


def _last(site: Site, moves: Float[Tensor, "rows d"], rows: Int[Tensor, "rows pos"]) -> Edit:
    mask = torch.zeros_like(rows, dtype=torch.bool)
    mask[:, -1] = True
    return Add(site, moves, mask)


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
    assert isinstance(model, HFModel)
    sites = [Site(layer, "mlp.hook_post") for layer in range(model.spec.n_layers)]
    found = np.zeros((len(sites), model.site_width(sites[0])))
    for ids in prompts:
        row = torch.tensor([list(ids)], device=model.spec.device)
        slope = odds_slope(handle.logits(ids, []), tokens)[0].to(row.device)
        edited = torch.arange(len(ids), device=row.device) > 0
        told = scale_slopes(model, sweep_of(model).clean(model, row), sites, edited, slope)
        found -= np.stack([told[site].double().cpu().numpy() for site in sites]) / len(prompts)
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


def lengths_to_effect(
    handle: Handle, ids: Sequence[int], vectors: Float[np.ndarray, "n d"], effect: float
) -> Float[np.ndarray, " n"]:
    """Signed lengths at which directions, added at every position but the first, raise the log-odds by `effect`; NaN where none does.

    The way is that of the slope at length 0. The length is doubled until the effect is passed, and then found by regula falsi
    (Illinois) between the last two.
    """
    model, site, n = handle.model, handle.sae.writes, len(vectors)
    row = torch.tensor([list(ids)], device=model.spec.device)
    mask = torch.ones_like(row, dtype=torch.bool)
    mask[:, 0] = False
    norm = float(model.capture(row, [site])[site][0, 1:].norm(dim=-1).mean())
    plain, slope = handle.slopes(ids, [], site, handle.tokens)
    base = handle.odds(plain)[0]
    unit = unit_rows(vectors)
    rises = unit @ slope[0, 1:].sum(0)
    unit = unit * np.where(rises < 0, -1.0, 1.0)[:, None]

    def over(length: np.ndarray, some: np.ndarray) -> np.ndarray:
        push = Add(site, handle.tensor(unit[some] * length[some, None]), mask.expand(len(some), -1))
        return handle.odds(handle.logits(ids, [push], rows=len(some))) - base - effect

    low, high = np.zeros(n), np.full(n, np.nan)
    at_low, at_high = np.full(n, -effect), np.full(n, np.nan)
    length = np.full(n, FIRST * norm)
    some = np.arange(n)
    while len(some) and length[some[0]] <= MOST * norm:
        told = over(length, some)
        passed = told >= 0
        high[some[passed]], at_high[some[passed]] = length[some[passed]], told[passed]
        low[some[~passed]], at_low[some[~passed]] = length[some[~passed]], told[~passed]
        some = some[~passed]
        length[some] *= 2
    found = np.where(np.isfinite(high), high, np.nan)
    some, side = np.flatnonzero(np.isfinite(high)), np.zeros(n)
    for _ in range(TRIES):
        if not len(some):
            break
        found[some] = (low[some] * at_high[some] - high[some] * at_low[some]) / (at_high[some] - at_low[some])
        told = over(found, some)
        up, down = some[told >= 0], some[told < 0]
        # Illinois: an end that stays twice counts half, so that both close in
        at_low[up[side[up] > 0]] /= 2
        at_high[down[side[down] < 0]] /= 2
        high[up], at_high[up], side[up] = found[up], told[told >= 0], 1
        low[down], at_low[down], side[down] = found[down], told[told < 0], -1
        some = some[np.abs(told) > CLOSE * effect]
    return np.where(rises < 0, -1.0, 1.0) * found


def pre_activation_shares(
    sae: SAE, h: Float[Tensor, "n d"], feature: int, group: Int[np.ndarray, " k"]
) -> Float[np.ndarray, " n"]:
    """What a group of features writes into the pre-activation of a feature, activation units."""
    acts = sae.encode(h).detach().double()
    reads = sae.W_enc[:, feature].detach().double()
    if sae.rescale_by_decoder_norm:
        acts, reads = acts / decoder_norms(sae).double(), reads * decoder_norms(sae)[feature].double()
    return (acts[:, list(group)] @ (sae.W_dec[list(group)].detach().double() @ reads)).numpy()
