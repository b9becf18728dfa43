"""Strengths of pushes, over features and sites, that reach wanted effects at least KL.

To first order the effects of strengths a are G a and their cost is a . F a / 2, F joining all sites (`atlas.PromptResponse`:
what each does to the last normed stream, and what that costs). The plan is the minimum of the cost, and of what it does to
protected sets, under G a = wanted. What a push bends is then corrected: measured on the prompts that made the plan, the
missing part is asked for again, in the plan's own directions. The closed loop does so on every prompt by itself, with the
gradients as they are at each site once all edits stand. All numbers that are reported are of other prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from polysem.atlas import PromptResponse
from polysem.errors import ConfigError
from polysem.side_effects.directions import Direction
from polysem.types import Site

PROTECT = 10.0
"""of protected effects against KL, both at the scale of their traces"""
RIDGE = 1e-9
"""of the mean eigenvalue"""
ROUNDS = 4
"""corrections"""
MOST = 2.0
"""nats, to first order, of strengths that are tried at once"""
FEW = 4
"""features of the plan that may use few"""
STEPS, SMALL = 300, 1e-3
"""of the plan with an absolute penalty: rounds of weights, and the share of the largest push below which one is none"""


@dataclass(frozen=True)
class LinearPlan:
    """What strengths do to first order, mean over prompts."""

    effects: Float[np.ndarray, "n_sets n"]
    """nats per unit of activation"""
    fisher: Float[np.ndarray, "n n"]
    """nats per squared unit"""

    def cost(self, a: Float[np.ndarray, " n"]) -> float:
        """KL, nats."""
        return float(a @ self.fisher @ a) / 2

    def bounded(self, a: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Strengths scaled down to a cost of at most MOST."""
        cost = self.cost(a)
        return a * (MOST / cost) ** 0.5 if cost > MOST else a

    def take(self, some: Sequence[int]) -> "LinearPlan":
        """Some of the directions."""
        return LinearPlan(self.effects[:, list(some)], self.fisher[np.ix_(list(some), list(some))])


def joint_linear(
    directions: Sequence[Direction], responses: Mapping[Site, Sequence[PromptResponse]]
) -> LinearPlan:
    """The effects and the joint cost of directions at several sites, from the responses of the same prompts at each."""
    effects, costs = [], []
    for k in range(len(next(iter(responses.values())))):
        seen = {site: some[k] for site, some in responses.items()}
        metric = next(iter(seen.values())).metric
        stream = np.stack([seen[d.site].jacobian @ d.unit for d in directions], axis=1)
        effects.append(np.stack([seen[d.site].gradients @ d.unit for d in directions], axis=1))
        costs.append(stream.T @ metric @ stream)
    return LinearPlan(np.mean(effects, axis=0), np.mean(costs, axis=0))


def least_kl(
    linear: LinearPlan,
    targets: Sequence[int],
    wanted: Float[np.ndarray, " t"],
    protected: Sequence[int] = (),
) -> Float[np.ndarray, " n"]:
    """The strengths with effects `wanted` on the target sets at least cost.

    Raises:
        ConfigError: directions that cannot move the targets apart.
    """
    return _cheapest(quadratic(linear, protected), linear.effects[list(targets)], wanted)


def quadratic(linear: LinearPlan, protected: Sequence[int]) -> Float[np.ndarray, "n n"]:
    """What a plan minimises: a . M a / 2, the cost and what protected sets do."""
    U, F = linear.effects[list(protected)], linear.fisher
    kept = U.T @ U
    weight = PROTECT * np.trace(F) / np.trace(kept) if kept.any() else 0.0
    return F + weight * kept + RIDGE * np.trace(F) / len(F) * np.eye(len(F))


def _cheapest(
    whole: Float[np.ndarray, "n n"], G: Float[np.ndarray, "t n"], wanted: Float[np.ndarray, " t"]
) -> Float[np.ndarray, " n"]:
    along = np.linalg.solve(whole, G.T)
    reach = G @ along
    if np.linalg.matrix_rank(reach, tol=1e-9 * np.trace(reach)) < len(G):
        raise ConfigError(
            f"{len(whole)} pushes cannot move {len(G)} targets each by its own amount",
            hint="want less at once, or allow more pushes: joint.candidates",
        )
    return along @ np.linalg.solve(reach, np.asarray(wanted, dtype=np.float64))


def penalised(
    linear: LinearPlan,
    targets: Sequence[int],
    wanted: Float[np.ndarray, " t"],
    protected: Sequence[int],
    penalty: float,
) -> Float[np.ndarray, " n"]:
    """`least_kl` with an absolute penalty: the minimum of a . M a / 2 + penalty * sum_k sqrt(F_kk) |a_k| under G a = wanted,
    by reweighted squares. What is less than SMALL of the largest push, each at its own KL, is none.

    Raises:
        ConfigError: as `least_kl`.
    """
    whole, G = quadratic(linear, protected), linear.effects[list(targets)]
    scale = np.sqrt(np.maximum(np.diag(linear.fisher), 1e-300))
    a = _cheapest(whole, G, wanted)
    for _ in range(STEPS):
        sizes = scale * np.abs(a)
        a = _cheapest(whole + np.diag(penalty * scale**2 / np.maximum(sizes, 1e-9 * sizes.max())), G, wanted)
    sizes = scale * np.abs(a)
    return np.where(sizes > SMALL * sizes.max(), a, 0.0)


def few_by_penalty(
    linear: LinearPlan,
    targets: Sequence[int],
    wanted: Float[np.ndarray, " t"],
    protected: Sequence[int],
    n: int,
) -> list[int]:
    """The pushes that an absolute penalty leaves: the smallest one that leaves at most n, each twice the one before; the n
    largest where none does."""
    a = least_kl(linear, targets, wanted, protected)
    penalty = 1e-2 * (linear.cost(a) / len(a)) ** 0.5
    scale = np.sqrt(np.diag(linear.fisher))
    for _ in range(20):
        a = penalised(linear, targets, wanted, protected, penalty)
        if (a != 0).sum() <= max(n, len(targets)):
            break
        penalty *= 2
    order = np.argsort(-scale * np.abs(a), kind="stable")[: max(n, len(targets))]
    return sorted(k for k in order.tolist() if a[k] != 0)


def fewest(
    linear: LinearPlan,
    targets: Sequence[int],
    wanted: Float[np.ndarray, " t"],
    protected: Sequence[int],
    n: int,
) -> Float[np.ndarray, " n"]:
    """`least_kl` with at most n of the pushes: the one that matters least, by its own KL, goes first."""
    left = list(range(len(linear.fisher)))
    while True:
        a = least_kl(linear.take(left), targets, wanted, protected)
        if len(left) <= max(n, len(targets)):
            whole = np.zeros(len(linear.fisher))
            whole[left] = a
            return whole
        del left[int(np.argmin(a**2 * np.diag(linear.fisher)[left]))]


def best_single(
    linear: LinearPlan, targets: Sequence[int], wanted: Float[np.ndarray, " t"]
) -> Float[np.ndarray, " n"]:
    """One push, as near to the wanted effects as any comes, and of those the one of least KL."""
    G = linear.effects[list(targets)]
    with np.errstate(divide="ignore", invalid="ignore"):
        size = wanted @ G / (G**2).sum(0)
        missed = np.round(np.linalg.norm(G * size - wanted[:, None], axis=0), 6)
        order = np.lexsort((size**2 * np.diag(linear.fisher), np.nan_to_num(missed, nan=np.inf)))
    a = np.zeros(len(size))
    a[order[0]] = size[order[0]]
    return a


def equal_doses(
    linear: LinearPlan, targets: Sequence[int], wanted: Float[np.ndarray, " t"]
) -> Float[np.ndarray, " n"]:
    """Every push at the same KL, the way that helps, together as near to the wanted effects as they come."""
    G = linear.effects[list(targets)]
    ways = np.where(wanted @ G >= 0, 1.0, -1.0) / np.sqrt(np.maximum(np.diag(linear.fisher), 1e-300))
    seen = G @ ways
    return ways * float(wanted @ seen / (seen @ seen))


def corrected(
    start: Float[np.ndarray, " n"],
    wanted: Float[np.ndarray, " t"],
    measure: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " t"]],
    ask: Callable[[Float[np.ndarray, " t"], Float[np.ndarray, " n"]], Float[np.ndarray, " n"]],
) -> Float[np.ndarray, " n"]:
    """Strengths after the missing part has been asked for up to ROUNDS times, as long as that helps.

    Args:
        start: strengths of the open loop.
        wanted: effects.
        measure: the effects that strengths have, by pushing.
        ask: what to add to strengths for the effects that they lack, to first order.
    """
    a, best, least = start, start, np.inf
    for _ in range(ROUNDS + 1):
        gap = wanted - measure(a)
        if not np.linalg.norm(gap) < least:
            break  # what cannot be reached would be asked for ever louder
        best, least = a, float(np.linalg.norm(gap))
        a = a + ask(gap, a)
    return best


def candidates(
    effects: Float[np.ndarray, "n_targets n"], costs: Float[np.ndarray, " n"], each: int
) -> Int[np.ndarray, " m"]:
    """For every target the `each` directions that move it most at equal KL."""
    with np.errstate(divide="ignore", invalid="ignore"):
        clean = np.nan_to_num(np.abs(effects) / np.sqrt(costs))
    return np.unique(np.argsort(-clean, axis=1, kind="stable")[:, :each])
