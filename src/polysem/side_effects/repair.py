"""The direction that moves a target as a given one does, with the least beside it.

    v = argmin v . S v + w sum_x sum_u (g_u(x) . v)^2   such that g_t . v is what it was

S is the second moment of the site's activations, with a ridge; g_u(x) are the gradients of the protected sets on prompt x and
g_t the mean gradient of the target's. Both terms are scaled to trace d, so w is a ratio. Closed form: v is along M^-1 g_t.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from polysem.atlas import PromptResponse
from polysem.errors import ConfigError
from polysem.side_effects.measures import Evidence, Places, jackknife
from polysem.vocabulary import SIDE_EFFECTS

WEIGHT = 10.0
"""of protected sets against the second moment"""
RIDGE = 1e-2
"""share of the mean variance of a coordinate"""
N_PROTECTED = 50
COMPARED = (
    "on_target",
    "cleanliness",
    "rho",
    "text",
    "stability",
    "reach_sets",
    "reach_features",
    "reach_count",
)
PROTECTED = "protected"


def least_collateral(
    vector: Float[np.ndarray, " d"],
    target: Float[np.ndarray, " d"],
    protected: Float[np.ndarray, "n_protected d"],
    moment: Float[np.ndarray, "d d"],
    *,
    weight: float = WEIGHT,
) -> Float[np.ndarray, " d"]:
    """The vector with `target . v` as of `vector` that costs least.

    Args:
        vector: the direction that is repaired.
        target: gradient of the wanted tokens' log-odds.
        protected: gradients that should be near 0, a row for each set and prompt.
        moment: second moment of activations.
        weight: of the protected against the moment.

    Raises:
        ConfigError: if the target does not move to first order.
    """
    wanted = float(target @ vector)
    if abs(wanted) <= 1e-9 * np.linalg.norm(target) * np.linalg.norm(vector):
        raise ConfigError(
            "the direction does not move its target to first order: there is nothing to keep",
            hint="say what it is meant to move: --target WORD,WORD",
        )
    d = len(vector)
    quadratic = protected.T @ protected
    scaled = [m * (d / np.trace(m)) if np.trace(m) > 0 else m for m in (moment, quadratic)]
    whole = scaled[0] + weight * scaled[1] + RIDGE * np.eye(d)
    along = np.linalg.solve(whole, target)
    return along * (wanted / float(target @ along))


def second_moment(activations: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"]:
    """Mean outer product of activations."""
    return activations.T @ activations / len(activations)


def protected_sets(
    effect: Float[np.ndarray, " n_sets"], own: int, sets: Sequence[Sequence[int]], n: int = N_PROTECTED
) -> list[int]:
    """The n sets that move most by gradient, without those that share a token with the target."""
    wanted = set(sets[own])
    order = np.argsort(-np.abs(effect), kind="stable").tolist()
    return [k for k in order if wanted.isdisjoint(sets[k]) and np.isfinite(effect[k])][:n]


def repaired(
    vector: Float[np.ndarray, " d"],
    own: int,
    protected: Sequence[int],
    responses: Sequence[PromptResponse],
    moment: Float[np.ndarray, "d d"],
    *,
    weight: float = WEIGHT,
) -> Float[np.ndarray, " d"]:
    """`least_collateral` with the gradients of some prompts."""
    target = np.mean([one.gradients[own] for one in responses], axis=0)
    rows = np.concatenate([one.gradients[list(protected)] for one in responses])
    return least_collateral(vector, target, rows, moment, weight=weight)


def repair_rows(
    name: str,
    before: Evidence,
    after: Evidence,
    row: int,
    *,
    protected: Sequence[int],
    cosine: float,
    confirm: Bool[np.ndarray, " prompts"],
) -> Iterator[dict[str, Any]]:
    """Rows of REPAIRS of one direction, at the same KL, on prompts that decided nothing."""
    both = np.intersect1d(before.good(row, confirm), after.good(row, confirm))
    chosen = list(protected)

    def value(measured: Evidence, measure: str, places: Places) -> float:
        if measure == PROTECTED:
            return float(np.sqrt((measured.pushed.sets[row, places][:, chosen] ** 2).mean()))
        return measured.value(measure, row, places)

    for measure in (*(m for m in SIDE_EFFECTS if m in COMPARED), PROTECTED):
        change = jackknife(lambda p, m=measure: value(after, m, p) - value(before, m, p), both)
        yield {
            "direction": name, "measure": measure, "cosine": cosine, "n_protected": len(chosen),
            "before": value(before, measure, both) if len(both) else np.nan,
            "after": value(after, measure, both) if len(both) else np.nan,
            **change.columns("difference"),
        }  # fmt: skip
