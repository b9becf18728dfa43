"""How far the gradient can be trusted: R2 of linear response against the measured odd part, by dose. For tests and
benchmarks/linearity.py; a study's own is `stats.explain.validity`.

Directions are pushed to a stated KL divergence between the next-token distributions before and after, so that
"small" means the same at every site.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.act.steering import steered_at_kl
from polysem.edits import Add
from polysem.linear.response import log_odds_of, odd_change, odds_gradients, path_gradients, run_rows
from polysem.models.base import WhiteBoxModel
from polysem.types import Site

_FIRST = 0.05
"""the search for a dose begins at this share of the activation's norm"""


class Validity(NamedTuple):
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
    """R2 at one site for every dose (KL in nats), over prompts, directions and target sets; pushes go to all positions
    but the first."""
    found: dict[float, list[tuple[Tensor, ...]]] = {dose: [] for dose in doses}
    unit = directions.double() / directions.double().norm(dim=-1, keepdim=True)
    for tokens in prompts:
        pushed = torch.arange(len(tokens)) > 0
        where = {"site": site, "pushed": pushed}
        base = model.logits(tokens[None], last_only=True)[:, -1].double().cpu()
        before = log_odds_of(base, inside)
        gradients = odds_gradients(model, tokens, inside=inside, **where)
        norm = float(model.capture(tokens[None], [site])[site][0, 1:].double().norm(dim=-1).mean())

        def run(rows: np.ndarray, size: np.ndarray, tokens=tokens, pushed=pushed) -> Tensor:
            vector = (torch.as_tensor(size)[:, None] * unit[rows]).float()
            return run_rows(model, tokens, [Add(site, vector, pushed.expand(len(rows), -1))])

        for dose in doses:
            scale, _, missed = steered_at_kl(run, np.full(len(unit), dose), base, first=_FIRST * norm)
            assert not missed.any(), f"{dose:g} nats are not reached at {site} along {np.flatnonzero(missed)}"
            pushes = torch.as_tensor(scale)[:, None] * unit
            plus, minus = odd_change(model, tokens, pushes=pushes, **where)
            up, down = (log_odds_of(z[:, None], inside[None]) for z in (plus, minus))
            linear = pushes @ gradients.T
            path = torch.full_like(linear, torch.nan)
            if path_points:
                n, m = linear.shape
                each = {"inside": inside.repeat(n, 1), "pushes": pushes.repeat_interleave(m, 0)}
                average = path_gradients(model, tokens, points=path_points, **where, **each)
                path = (average.reshape(n, m, -1) * pushes[:, None]).sum(-1)
            found[dose].append(((up - down) / 2, up - before, linear, path))
    rows = []
    for dose, parts in found.items():
        odd, raw, linear, path = (torch.cat([p[k].ravel() for p in parts]) for k in range(4))
        told = [_r2(odd, linear), _r2(odd, path), _r2(raw, linear)]
        rows.append(Validity(site, dose, *told, len(odd)))
    return rows


def _r2(truth: Tensor, prediction: Tensor) -> float:
    """1 - SSE / SST about the mean of the truth."""
    return 1 - float(((truth - prediction) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())
