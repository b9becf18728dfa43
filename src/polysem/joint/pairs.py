"""Interactions of two pushes: y(ij) - y(i) - y(j), its odd and even parts apart, and what it is known from.

To second order the even part is a_i a_j d_i . H d_j, H the Hessian of the target's log-odds: one Hessian-vector product a prompt,
target and source, for all j at once. The odd part is of third order. Pairs share no feature, so that pairs are independent.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysem.errors import MismatchError
from polysem.joint.bench import Changes, JointBench
from polysem.linear.response import membership
from polysem.models.base import WhiteBoxModel
from polysem.models.clean import clean_run
from polysem.models.gradients import hessian_products, pushed_gradients
from polysem.models.hf import HFModel
from polysem.rank import rank_correlation
from polysem.saes.base import SAE
from polysem.side_effects.directions import Direction
from polysem.side_effects.forecast import over_features, partial_correlation
from polysem.side_effects.measures import mean_of
from polysem.side_effects.push import Sets

EDGES = (0.0, 0.05, 0.2, 0.35, 0.6, 0.95)
"""of |cosine|: pairs are drawn from each in turn"""
LEAST = 1.0
"""co-firings expected by chance, below which a lift is not known"""
ROWS = 32
MIN_PAIRS = 10


def draw_pairs(
    unit: Float[np.ndarray, "n d"], able: Bool[np.ndarray, " n"], n: int, rng: np.random.Generator
) -> Int[np.ndarray, "m 2"]:
    """Pairs of rows without a row in common, over the whole range of |cosine|; fewer where there are not as many."""
    ids = rng.permutation(np.flatnonzero(able))
    found: list[tuple[int, int]] = []
    used = np.zeros(len(unit), dtype=bool)
    bands = list(itertools.pairwise(EDGES))
    for step in range(4 * n):
        lo, hi = bands[step % len(bands)]
        for i in ids[~used[ids]]:
            cosine = np.abs(unit[ids] @ unit[i])
            others = ids[(cosine >= lo) & (cosine < hi) & ~used[ids] & (ids != i)]
            if len(others):
                j = int(rng.choice(others))
                used[[i, j]] = True
                found.append((int(i), j))
                break
        if len(found) == n:
            break
    return np.array(found, dtype=np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class PairsSeen:
    """Pairs on one prompt; y is the log-odds of the first feature's tokens, nats."""

    odd: Float[np.ndarray, " pairs"]
    """squared length of the odd interaction of centred logits"""
    even: Float[np.ndarray, " pairs"]
    both: Float[np.ndarray, " pairs"]
    """squared length of the sum of the two odd changes"""
    y_odd: Float[np.ndarray, " pairs"]
    y_even: Float[np.ndarray, " pairs"]
    scale: Float[np.ndarray, " pairs"]
    """root of the product of the two costs"""
    second: Float[np.ndarray, " pairs"]
    """even interaction of y by the Hessian; NaN without one"""


def pairs_seen(
    bench: JointBench,
    lengths: Float[np.ndarray, " n"],
    pairs: Int[np.ndarray, "pairs 2"],
    sets: Sequence[Sequence[int]],
) -> PairsSeen:
    """Every pair on one prompt.

    Args:
        bench: the prompt with all directions.
        lengths: of all directions.
        pairs: places among them.
        sets: token ids of each pair's target.
    """
    inside = np.zeros((len(pairs), len(lengths)))
    np.put_along_axis(inside, pairs, 1.0, axis=1)
    alone = [bench.changes(np.diag(lengths)[pairs[:, side]]) for side in (0, 1)]
    seen = bench.changes(inside * lengths)
    odd = [one.odd for one in alone]
    many = Sets(sets, bench.base.shape[-1])
    y = [_odds(many, one) for one in (seen, *alone)]
    rest = [y[0][part] - y[1][part] - y[2][part] for part in (0, 1)]
    return PairsSeen(
        odd=((seen.odd - odd[0] - odd[1]) ** 2).sum(1),
        even=((seen.even - alone[0].even - alone[1].even) ** 2).sum(1),
        both=((odd[0] + odd[1]) ** 2).sum(1),
        y_odd=rest[0],
        y_even=rest[1],
        scale=np.sqrt(alone[0].kl * alone[1].kl),
        second=second_order(bench, lengths, pairs, sets),
    )


def _odds(many: Sets, seen: Changes) -> tuple[np.ndarray, np.ndarray]:
    """Odd and even change of the log-odds of every row's own set."""
    own = torch.arange(many.n)
    up, down, base = (many.log_odds(z) for z in (seen.up, seen.down, seen.base))
    up, down = up[own, own], down[own, own]
    return ((up - down) / 2).numpy(), ((up + down) / 2 - base[0]).numpy()


def second_order(
    bench: JointBench,
    lengths: Float[np.ndarray, " n"],
    pairs: Int[np.ndarray, "pairs 2"],
    sets: Sequence[Sequence[int]],
) -> Float[np.ndarray, " pairs"]:
    """a_i a_j d_i . H d_j of every pair, from one Hessian-vector product each; NaN for a model that is not of transformers."""
    found = np.full(len(pairs), np.nan)
    if not isinstance(bench.model, HFModel):
        return found
    clean, units = clean_run(bench.model, bench.tokens), [d.unit for d in bench.directions]
    sites = [[bench.directions[k].site for k in pair] for pair in pairs.tolist()]
    for places in dict.fromkeys(map(tuple, sites)):
        mine = [k for k, pair in enumerate(sites) if tuple(pair) == places]
        for at in range(0, len(mine), ROWS):
            some = mine[at : at + ROWS]
            inside = membership([sets[k] for k in some], bench.base.shape[-1])
            vectors = torch.from_numpy(np.stack([units[pairs[k, 0]] for k in some]))
            made = hessian_products(
                bench.model, clean, places[0], [places[1]], bench.edited, _outcome(inside), vectors
            )
            rows = made[places[1]].double().cpu().numpy()
            others = np.stack([units[pairs[k, 1]] for k in some])
            found[some] = (rows * others).sum(1) * lengths[pairs[some]].prod(1)
    return found


def slopes(
    bench: JointBench, strengths: Float[np.ndarray, " n"], sets: Sequence[Sequence[int]]
) -> Float[np.ndarray, "sets n"]:
    """d log-odds of every set / d strength of every direction, with all pushes at these strengths in place: nats per unit of
    activation.

    Raises:
        MismatchError: a model without gradients.
    """
    if not isinstance(bench.model, HFModel):
        raise MismatchError("slopes need the gradients of a transformers model")
    inside = membership(sets, bench.base.shape[-1])
    added = {
        site: torch.from_numpy(strengths[some] @ bench.units[site]).expand(len(sets), -1)
        for site, some in bench.at.items()
    }
    clean = clean_run(bench.model, bench.tokens)
    made = pushed_gradients(bench.model, clean, added, bench.edited, _outcome(inside))
    found = np.empty((len(sets), len(strengths)))
    for site, some in bench.at.items():
        found[:, some] = made[site].double().cpu().numpy() @ bench.units[site].T
    return found


def _outcome(inside: Bool[Tensor, "rows d_vocab"]):
    """Log-odds of each row's own set, differentiable twice."""

    def odds(logits: Tensor) -> Tensor:
        z, mine = logits.double(), inside.to(logits.device)
        return z.masked_fill(~mine, -torch.inf).logsumexp(-1) - z.masked_fill(mine, -torch.inf).logsumexp(-1)

    return odds


def pair_rows(
    directions: Sequence[Direction],
    pairs: Int[np.ndarray, "pairs 2"],
    seen: Sequence[PairsSeen],
    lift: Float[np.ndarray, " pairs"],
    *,
    confirm: Bool[np.ndarray, " prompts"],
) -> list[dict[str, Any]]:
    """Rows of JOINT_PAIRS: measured on the confirm prompts, forecast from the others."""

    def stacked(name: str, some: Bool[np.ndarray, " prompts"]) -> np.ndarray:
        return np.stack([getattr(one, name) for one, k in zip(seen, some, strict=True) if k])

    told, mine = stacked("second", ~confirm).mean(0), stacked("second", confirm).mean(0)
    both, scale = stacked("both", confirm).sum(0), stacked("scale", confirm).mean(0)
    rows = []
    for k, (i, j) in enumerate(pairs.tolist()):
        a, b = directions[i], directions[j]
        row: dict[str, Any] = {
            "pair": k, "sae_i": a.sae, "i": a.feature, "sae_j": b.sae, "j": b.feature,
            "cosine": float(a.unit @ b.unit) if len(a.vector) == len(b.vector) else np.nan, "lift": float(lift[k]),
            "odd": float(np.sqrt(stacked("odd", confirm)[:, k].sum() / both[k])),
            "even": float(np.sqrt(stacked("even", confirm)[:, k].sum() / both[k])),
            "forecast": float(told[k]), "second_order": float(mine[k]), "n_prompts": int(confirm.sum()),
        }  # fmt: skip
        for part in ("odd", "even"):
            y = stacked(f"y_{part}", confirm)[:, k]
            value, lo, hi, p = tested(y)
            row |= {f"y_{part}": value, f"y_{part}_lo": lo, f"y_{part}_hi": hi, f"p_{part}": p}
            row[f"y_{part}_scaled"] = value / float(scale[k])
        rows.append(row)
    return rows


def tested(y: Float[np.ndarray, " prompts"]) -> tuple[float, float, float, float]:
    """(mean, lo, hi, p) over prompts, Student's t: whether an interaction is there."""
    from scipy import stats

    found = mean_of(y)
    p = 2 * stats.t.sf(abs(found.value) / found.se, len(y) - 1) if found.se > 0 else np.nan
    return found.value, found.lo, found.hi, float(p)


def lifts(
    model: WhiteBoxModel,
    saes: Sequence[tuple[SAE, Int[np.ndarray, " pairs"]]],
    rows: Int[np.ndarray, "n_rows context"],
    counted: Bool[np.ndarray, " context"],
) -> Float[np.ndarray, " pairs"]:
    """How often two features fire on one token, over what chance gives: n n_ij / (n_i n_j).

    Args:
        model: reads the rows.
        saes: for either side of the pairs its dictionary and its features.
        rows: text.
        counted: which positions count.

    Returns:
        NaN where chance gives fewer than LEAST.
    """
    sites = [sae.reads for sae, _ in saes]
    both, n = np.zeros(len(saes[0][1])), 0
    own = np.zeros((2, len(both)))
    for at in range(0, len(rows), ROWS):
        seen = model.capture(torch.as_tensor(rows[at : at + ROWS], device=model.spec.device).long(), sites)
        fires = []
        for (sae, features), site in zip(saes, sites, strict=True):
            x = seen[site][:, torch.from_numpy(counted)].flatten(0, 1).cpu()
            fires.append((sae.encode(x)[:, torch.from_numpy(features)] > 0).numpy())
        n += len(fires[0])
        own += [one.sum(0) for one in fires]
        both += (fires[0] & fires[1]).sum(0)
    expected = own[0] * own[1] / max(n, 1)
    return np.where(expected >= LEAST, both / np.maximum(expected, 1e-300), np.nan)


def hypotheses(rows: Sequence[dict[str, Any]]) -> list[tuple[str, float, float, float, int]]:
    """J1 to J3 of the pairs of one site: (name, value, lo, hi, pairs); intervals leave out one pair after the other."""
    columns = {
        name: np.array([np.nan if row[name] is None else row[name] for row in rows], dtype=np.float64)
        for name in ("cosine", "lift", "odd", "even", "y_even", "forecast", "second_order")
    }
    cosine = np.abs(columns["cosine"])
    found = []

    def tell(name: str, of, *inputs: np.ndarray) -> None:
        good = np.isfinite(np.stack(inputs)).all(0)
        n = int(good.sum())
        if n >= MIN_PAIRS:
            some = [x[good] for x in inputs]
            value, lo, hi, _ = over_features(lambda at: of(*(x[at] for x in some)), n)
            found.append((name, value, lo, hi, n))

    for part in ("odd", "even"):
        tell(f"J1 {part} interaction and |cosine|", rank_correlation, columns[part], cosine)
    for part in ("odd", "even"):
        tell(f"J2 {part} interaction and lift", rank_correlation, columns[part], columns["lift"])
        tell(
            f"J2 {part} interaction and lift, |cosine| given", _given, columns[part], columns["lift"], cosine
        )
    y, told, near = columns["y_even"], columns["forecast"], columns["second_order"]
    tell("J3 Hessian of the same prompts", rank_correlation, near, y)
    tell("J3 Hessian of other prompts", rank_correlation, told, y)
    tell("J3 R2 of the Hessian of the same prompts", _r2, near, y)
    tell("J3 R2 of the Hessian of other prompts", _r2, told, y)
    halves = np.arange(len(y)) % 2
    tell("J3 cosine, its sign held out by pair", _by_halves, columns["cosine"], y, halves)
    tell(
        "J3 Hessian of other prompts minus cosine",
        lambda t, c, v, h: rank_correlation(t, v) - _by_halves(c, v, h),
        *(told, columns["cosine"], y, halves),
    )
    return found


def _given(x: np.ndarray, y: np.ndarray, other: np.ndarray) -> float:
    return partial_correlation(x, y, other[:, None])


def _r2(told: np.ndarray, y: np.ndarray) -> float:
    return float(1 - ((y - told) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def _by_halves(x: np.ndarray, y: np.ndarray, half: np.ndarray) -> float:
    """Mean over halves of the correlation, its sign being that of the other half. A line fitted to all others and asked for
    the one left out would correlate negatively where there is nothing; this does not."""
    found = [rank_correlation(x[half == k], y[half == k]) for k in (0, 1)]
    return float(found[0] * np.sign(found[1]) + found[1] * np.sign(found[0])) / 2
