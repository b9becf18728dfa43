"""How far the gradient can be trusted: R2 of linear response against the measured odd part, by dose.

Directions are pushed to a stated KL divergence between the next-token distributions before and after, so that
"small" means the same at every site. For each site and dose the table gives R2 = 1 - sum (odd - LR)^2 / sum
(odd - mean)^2 over prompts, targets and directions, and the same for the gradient averaged along the push.
Cost: three to five forward passes for the dose, two for the effect, `points` backward passes for the path.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.edits import Add
from polysem.errors import NumericsError
from polysem.linear.response import log_odds_of, odd_change, odds_gradients, path_gradients, run_rows
from polysem.models.base import WhiteBoxModel
from polysem.readouts import kl
from polysem.types import Site

_STEPS = 20
_KL_RTOL = 0.02
_FIRST = 1e-2
"""the search for a dose begins at this share of the activation's norm, where KL is still quadratic"""
_LARGEST = 14.0
"""and goes to e^14 times as much: beyond, a final norm lets nothing change any more, and numbers overflow"""


@dataclass(frozen=True)
class Validity:
    """One site at one dose."""

    site: Site
    dose: float
    """KL in nats"""
    r2: float
    """of the odd part by linear response"""
    r2_path: float
    """of the odd part by the path-averaged gradient; nan where it was not asked for"""
    r2_raw: float
    """of the change at +dose, without taking the odd part"""
    n: int
    """prompts x targets x directions"""


def linear_validity(
    model: WhiteBoxModel,
    prompts: Sequence[Int[Tensor, " pos"]],
    *,
    site: Site,
    directions: Float[Tensor, "n d"],
    inside: Bool[Tensor, "n_sets d_vocab"],
    doses: Sequence[float],
    path_points: int = 0,
) -> list[Validity]:
    """R2 at one site for every dose (KL in nats), over prompts, directions and target sets.

    Pushes go to all positions but the first. Raises NumericsError if a dose cannot be reached.
    """
    found: dict[float, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {dose: [] for dose in doses}
    unit = directions.double() / directions.double().norm(dim=-1, keepdim=True)
    for tokens in prompts:
        pushed = torch.ones(len(tokens), dtype=torch.bool)
        pushed[0] = False
        base = model.logits(tokens[None], last_only=True)[0, -1].double().cpu()
        before = log_odds_of(base, inside)
        gradients = odds_gradients(model, tokens, site=site, pushed=pushed, inside=inside)
        norm = model.capture(tokens[None], [site])[site][0, 1:].double().norm(dim=-1).mean()
        scale = torch.full((len(unit),), _FIRST * float(norm), dtype=torch.float64)
        for dose in sorted(doses):
            scale = dose_scales(model, tokens, site=site, pushed=pushed, unit=unit, dose=dose, start=scale)
            pushes = scale[:, None] * unit
            plus, minus = odd_change(model, tokens, site=site, pushed=pushed, pushes=pushes)
            up, down = (log_odds_of(z[:, None], inside[None]) for z in (plus, minus))
            linear = pushes @ gradients.T
            path = torch.full_like(linear, torch.nan)
            if path_points:
                n, m = linear.shape
                average = path_gradients(
                    model,
                    tokens,
                    site=site,
                    pushed=pushed,
                    inside=inside.repeat(n, 1),
                    pushes=pushes.repeat_interleave(m, 0),
                    points=path_points,
                )
                path = (average.reshape(n, m, -1) * pushes[:, None]).sum(-1)
            found[dose].append(((up - down) / 2, up - before, linear, path))
    rows = []
    for dose, parts in found.items():
        odd, raw, linear, path = (torch.cat([p[k].ravel() for p in parts]) for k in range(4))
        rows.append(
            Validity(
                site, dose, r_squared(odd, linear), r_squared(odd, path), r_squared(raw, linear), len(odd)
            )
        )
    return rows


def dose_scales(
    model: WhiteBoxModel,
    tokens: Int[Tensor, " pos"],
    *,
    site: Site,
    pushed: Bool[Tensor, " pos"],
    unit: Float[Tensor, "n d"],
    dose: float,
    start: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """Lengths at which each unit direction gives a KL of `dose` nats within 2 %, by secant steps on log KL.

    Raises:
        NumericsError: if a direction does not reach it in 20 steps.
    """
    base = model.logits(tokens[None], last_only=True)[0, -1].double().cpu()
    mask = pushed.expand(len(unit), -1)

    def log_kl(x: Tensor) -> Tensor:
        logits = run_rows(model, tokens, [Add(site, (x.exp()[:, None] * unit).to(torch.float32), mask)])
        return torch.as_tensor(kl(base, logits)).clamp(min=1e-30).log()

    goal = torch.log(torch.tensor(dose, dtype=torch.float64))
    x = start.log()
    y = log_kl(x)
    low, high = torch.full_like(x, -torch.inf), torch.full_like(x, torch.inf)
    slope = torch.full_like(x, 2.0)  # KL is quadratic in a small push
    for _ in range(_STEPS):
        if bool(((y - goal).exp() - 1).abs().max() <= _KL_RTOL):
            return x.exp()
        low, high = torch.where(y < goal, x, low), torch.where(y > goal, x, high)
        after = x + ((goal - y) / slope).clamp(-3.0, 3.0)
        # A step out of the bracket, where KL bends, becomes a bisection.
        after = torch.where((after <= low) | (after >= high), (low + high) / 2, after)
        after = after.clamp(max=start.log() + _LARGEST)
        seen = log_kl(after)
        secant = (seen - y) / torch.where(after == x, 1.0, after - x)
        slope = torch.where((secant > 0.3) & (secant < 6.0), secant, slope)
        x, y = after, seen
    worst = int((y - goal).abs().argmax())
    raise NumericsError(
        f"a KL of {dose:g} nats was not reached at {site}: direction {worst} is at {float(y[worst].exp()):.3g}",
        hint="lower the dose, or leave the direction out",
    )


def r_squared(truth: Float[Tensor, " n"], prediction: Float[Tensor, " n"]) -> float:
    """1 - SSE / SST about the mean of the truth; nan where either holds nan or the truth does not vary."""
    total = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float(((truth - prediction) ** 2).sum()) / total if total > 0 else float("nan")
