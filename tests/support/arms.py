"""Arms of one SAE's features, for tests of how they are drawn."""

from collections.abc import Sequence
from dataclasses import replace

from polysem.act.arms import Arm, ArmsRequest
from polysem.config import PairsConfig, PlanConfig
from polysem.plan.arms import control_arms, pair_arms
from polysem.plan.index import FeatureIndex


def arms_of(
    index: FeatureIndex, targets: Sequence[int], *, pairs: PairsConfig, plan: PlanConfig, seed: int
) -> list[Arm]:
    """The pairs and the arms of the plan's controls, none of them screened."""
    request = ArmsRequest(index, targets, pairs, plan, seed)
    found = pair_arms(request)
    return [*found, *control_arms(replace(request, arms=found))]
