"""Of what an observed effect is made (all in nats of log-odds, odd parts over the two signs of a push).

    total = shared + common + own        the push split: G_ij d_j, the shared mean direction, the rest
          = direct + indirect            what reaches the unembedding without passing another block; the rest
          = mediated + remainder         what the target's own latent does, read by the real encoder; the rest

*Shared* is interference proper; *common* is what all directions share; *own* is the source's own way to the
target's tokens. Parts interact in a nonlinear model, so each is averaged over the orders in which the parts can
be added (Shapley values); `interaction` is what would be missing if each were taken alone. Direct and indirect
effects are natural ones (Pearl 2001; Vig et al. 2020). That the parts add up is checked at run time.
Cost: 18 rows of a forward pass per pair and prompt, from the site on; equal rows are run once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from math import factorial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.edits import Add
from polysem.errors import NumericsError
from polysem.linear.response import log_odds_of, odd_change, run_rows
from polysem.models.base import WhiteBoxModel
from polysem.saes.base import SAE
from polysem.types import Site

IDENTITY_ATOL = 1e-5
"""nats by which parts may miss their sum; float32 logits are good to a few 1e-6"""
RESEMBLANCE = 0.5
"""cosine of two tokens' embeddings from which on they count as resembling; a token resembles itself"""
STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
"""points whose activation is, or is added to, the residual stream: a push there has a direct path"""


@dataclass(frozen=True)
class DirectionParts:
    """The push of each row, split; the three add up to it."""

    shared: Float[Tensor, "rows d"]
    common: Float[Tensor, "rows d"]
    own: Float[Tensor, "rows d"]


@dataclass(frozen=True)
class Decomposition:
    """One number per row, nats."""

    total: Float[Tensor, " rows"]
    shared: Float[Tensor, " rows"]
    common: Float[Tensor, " rows"]
    own: Float[Tensor, " rows"]
    interaction: Float[Tensor, " rows"]
    direct: Float[Tensor, " rows"]
    """nan where the site has no direct path"""
    indirect: Float[Tensor, " rows"]
    mediated: Float[Tensor, " rows"]
    """nan where no SAE is given"""
    remainder: Float[Tensor, " rows"]
    clean: Float[Tensor, " rows"]
    """total on the target tokens that do not resemble the source's own"""

    @property
    def leakage(self) -> Float[Tensor, " rows"]:
        """Share of the effect that sits on target tokens resembling the source's own."""
        return 1 - self.clean / self.total


def mean_direction(W_dec: Float[Tensor, "d_sae d"], *, components: int = 1) -> Float[Tensor, "rank d"]:
    """Orthonormal basis of what all decoder directions share: their mean and their first principal components.

    Args:
        components: how many principal components of the unit rows besides the mean.
    """
    rows = W_dec.detach().double().cpu()
    rows = rows[rows.norm(dim=-1) > 0]
    unit = rows / rows.norm(dim=-1, keepdim=True)
    mean = unit.mean(0)
    centred = unit - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    span = torch.cat([mean[None], vectors.flip(-1)[:, :components].T])
    q, r = torch.linalg.qr(span.T)
    return q[:, r.diagonal().abs() > 1e-9].T


def split_push(
    pushes: Float[Tensor, "rows d"], targets: Float[Tensor, "rows d"], basis: Float[Tensor, "rank d"]
) -> DirectionParts:
    """Shared, common and own part of each push: along its target's unit direction; the projection of the rest
    on the shared mean direction's part orthogonal to that direction; what is then left."""
    shared = (pushes * targets).sum(-1, keepdim=True) * targets
    rest = pushes - shared
    common = torch.zeros_like(rest)
    for row in range(len(rest)):
        outside = basis - (basis @ targets[row])[:, None] * targets[row]
        q, r = torch.linalg.qr(outside.T)
        q = q[:, r.diagonal().abs() > 1e-9]
        common[row] = q @ (q.T @ rest[row])
    return DirectionParts(shared, common, rest - common)


def clean_tokens(
    inside: Bool[Tensor, "rows d_vocab"],
    sources: Sequence[Sequence[int]],
    W_E: Float[Tensor, "d_vocab d_model"],
    *,
    resemblance: float = RESEMBLANCE,
) -> Bool[Tensor, "rows d_vocab"]:
    """The target tokens of every row that are neither the source's own nor resemble one of them.

    A source may move a target because tokens of the two are neighbours (forms of one word, the same word with and
    without a space), which says nothing about interference.

    Args:
        inside: target tokens of every row.
        sources: the source's tokens of every row; ids outside the vocabulary are none.
        W_E: embeddings of the tokens. One that is zero resembles only itself.
        resemblance: cosine from which on two tokens resemble each other.
    """
    clean = inside.clone()
    for row, ids in enumerate(sources):
        own = torch.tensor([t for t in ids if 0 <= t < inside.shape[1]], dtype=torch.long)
        if not len(own):
            continue
        target = inside[row].nonzero().flatten().cpu()
        near = (_unit_rows(W_E, target) @ _unit_rows(W_E, own).T).amax(-1) >= resemblance
        clean[row, target[near | torch.isin(target, own)]] = False
    return clean


def _unit_rows(W_E: Tensor, ids: Tensor) -> Tensor:
    rows = W_E.detach()[ids.to(W_E.device)].cpu().double()
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-30)


def decompose(
    model: WhiteBoxModel,
    tokens: Int[Tensor, " pos"],
    *,
    site: Site,
    pushed: Bool[Tensor, " pos"],
    parts: DirectionParts,
    inside: Bool[Tensor, "rows d_vocab"],
    clean: Bool[Tensor, "rows d_vocab"] | None = None,
    sae: SAE | None = None,
    latents: Int[Tensor, " rows"] | None = None,
) -> Decomposition:
    """The decomposition of each row's push on one prompt.

    Args:
        pushed: positions that the push goes to.
        parts: of the push, in units of the activation.
        inside: target tokens of every row.
        clean: those of them that do not resemble the source's (`clean_tokens`); None takes all. A row without any
            gives nan.
        sae: read for mediation, with `latents`, the target feature of every row.

    Raises:
        NumericsError: if the parts of an effect do not add up to it within 1e-5 nats.
    """
    push = parts.shared + parts.common + parts.own

    def change(pushes: Tensor) -> Tensor:
        return _odd(odd_change(model, tokens, site=site, pushed=pushed, pushes=pushes), inside)

    both = odd_change(model, tokens, site=site, pushed=pushed, pushes=push)
    total = _odd(both, inside)
    players = (parts.shared, parts.common, parts.own)
    worth: dict[tuple[int, ...], Tensor] = {(): torch.zeros_like(total), (0, 1, 2): total}
    for size in (1, 2):
        for chosen in combinations(range(3), size):
            worth[chosen] = change(torch.stack([players[k] for k in chosen]).sum(0))
    shapley = [_shapley(worth, k) for k in range(3)]
    direct = _direct(model, tokens, site, pushed, push, inside)
    mediated = torch.full_like(total, torch.nan)
    if sae is not None and latents is not None:
        mediated = _mediated(model, tokens, site, pushed, push, inside, sae, latents)
    cleaned = total if clean is None else torch.where(clean.any(-1), _odd(both, _nonempty(clean)), torch.nan)
    result = Decomposition(
        total=total,
        shared=shapley[0],
        common=shapley[1],
        own=shapley[2],
        interaction=worth[0, 1, 2] - worth[(0,)] - worth[(1,)] - worth[(2,)],
        direct=direct,
        indirect=total - direct,
        mediated=mediated,
        remainder=total - mediated,
        clean=cleaned,
    )
    check_identities(result)
    return result


def check_identities(found: Decomposition) -> None:
    """Refuse a decomposition whose parts do not add up.

    Raises:
        NumericsError: naming the identity and by how much it is missed.
    """
    sums = {
        "shared + common + own": found.shared + found.common + found.own,
        "direct + indirect": found.direct + found.indirect,
        "mediated + remainder": found.mediated + found.remainder,
    }
    for name, value in sums.items():
        gap = (value - found.total).abs().nan_to_num(0.0)
        allowed = IDENTITY_ATOL * found.total.abs().clamp(min=1.0)
        if bool((gap > allowed).any()):
            raise NumericsError(
                f"{name} misses the total effect by {float(gap.max()):.2g} nats; expected at most {IDENTITY_ATOL:g}",
                hint="run the model in float32 or float64",
            )


def mean_of(parts: list[Decomposition]) -> Decomposition:
    """The mean over prompts of decompositions of the same rows."""
    names = [field.name for field in fields(Decomposition)]
    return Decomposition(**{n: torch.stack([getattr(p, n) for p in parts]).mean(0) for n in names})


def _odd(both: tuple[Tensor, Tensor], inside: Tensor) -> Tensor:
    up, down = (log_odds_of(logits, inside) for logits in both)
    return (up - down) / 2


def _shapley(worth: dict[tuple[int, ...], Tensor], player: int) -> Tensor:
    others = [k for k in range(3) if k != player]
    total = torch.zeros_like(worth[()])
    for size in range(3):
        for chosen in combinations(others, size):
            weight = factorial(size) * factorial(2 - size) / factorial(3)
            total = total + weight * (worth[tuple(sorted((*chosen, player)))] - worth[chosen])
    return total


def _direct(
    model: WhiteBoxModel, tokens: Tensor, site: Site, pushed: Tensor, push: Tensor, inside: Tensor
) -> Tensor:
    """The push added to the stream behind the last block, where only final norm and unembedding follow."""
    if site.point not in STREAM:
        return torch.full((len(push),), torch.nan, dtype=torch.float64)
    last = pushed.clone()
    last[:-1] = False
    end = Site(model.spec.n_layers - 1, "hook_resid_post")
    return _odd(odd_change(model, tokens, site=end, pushed=last, pushes=push), inside)


def _mediated(
    model: WhiteBoxModel,
    tokens: Tensor,
    site: Site,
    pushed: Tensor,
    push: Tensor,
    inside: Tensor,
    sae: SAE,
    latents: Tensor,
) -> Tensor:
    """The target's latent moved by as much as the encoder says the push moves it, and nothing else."""
    before = model.capture(tokens[None], [site])[site]
    written = _written(sae, before[0], latents)
    base = sae.encode(before[0])[:, latents].T
    places = pushed.nonzero().flatten().tolist()
    signed = []
    for sign in (1.0, -1.0):
        moved = before + (sign * push).to(before)[:, None, :] * pushed.to(before)[None, :, None]
        after = torch.stack([sae.encode(moved[r])[:, latents[r]] for r in range(len(push))])
        change = (after - base)[:, :, None] * written
        edits: list[Add] = []
        for p in places:
            mask = torch.zeros(len(push), len(tokens), dtype=torch.bool)
            mask[:, p] = True
            edits.append(Add(site, change[:, p].float(), mask))
        signed.append(run_rows(model, tokens, edits))
    return _odd((signed[0], signed[1]), inside)


def _written(sae: SAE, x: Tensor, latents: Tensor) -> Float[Tensor, "rows pos d"]:
    """What one unit of each latent adds to the activation at each position."""
    rows = []
    zero = torch.zeros(len(x), sae.d_sae)
    nothing = sae.decode(zero, like=x)
    for latent in latents.tolist():
        one = zero.clone()
        one[:, latent] = 1.0
        rows.append(sae.decode(one, like=x) - nothing)
    return torch.stack(rows)


def _nonempty(inside: Tensor) -> Tensor:
    """Rows without a token are read as their first token; the caller drops them."""
    filled = inside.clone()
    filled[~filled.any(-1), 0] = True
    return filled
