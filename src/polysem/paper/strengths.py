"""The paper's strengths (arXiv 2505.11611). Their rows in a plan have dose units of their own.

Presets `paper` and `both` add a second block for the loci that the paper has, on the same arms and prompts: its grids
of strengths, applied at all positions, its gradient of the sum of all coordinates, its snippets between asterisks, and
isotropic random vectors. Imports no torch, so that who only reads tables needs none.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from polysem.config import PlanConfig

_SIZES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 14.0, 17.0, 20.0)
PAPER_SCALES = tuple(sorted(sign * size for size in _SIZES for sign in (-1.0, 1.0)))
"""strengths of unit directions, in the activation's own units (protocol 2.6)"""
_FACTORS = (0, 0.1, 0.2, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 15, 18, 20)
PAPER_CHANGES = tuple(round(factor - 1, 10) for factor in _FACTORS if factor != 1)
"""relative changes of a coordinate (protocol 2.9); times 1 changes nothing and is left out"""
RELATIONS = ("pair", "self", "random_feature", "random_direction", "isotropic", "rotated")
"""arms that are steered by the paper's strengths too: what is compared in the presets table"""
T_F_RATIO, T_F_TOKENS = 0.5, 5
"""the paper's code reads the five best tokens with at least half the largest activation (protocol 2.4)"""
DEGREE_CLUSTERS, DEGREE_FEATURES = 3, 3
"""one neuron of every bin of degree is read on so many of its clusters, and on at most so many features of each (2.9)"""
NEIGHBOURS = 5
"""of neurons it reads the nearest tokens, by embedding, to the one that activates the target most (protocol 2.9)"""


class Strengths(NamedTuple):
    """What the paper does at one locus."""

    doses: tuple[float, ...]
    """signed"""
    unit: str
    settings: Mapping[str, Any]
    """of the section `plan`, where its arms are made in another way"""
    positions: str
    """BOS is left out but before injections (protocol 2.6, W19)"""


DEGREE_UNIT = "paper_degree"
"""of its neurons, one of every bin of degree"""
STRENGTHS: Mapping[str, Strengths] = {
    "feature": Strengths(PAPER_SCALES, "paper_scale", {}, "all_no_bos"),
    "gradient": Strengths(
        PAPER_SCALES, "paper_scale", {"probe": "ones", "gradient_positions": "firing"}, "all_no_bos"
    ),
    "prompt": Strengths((1.0,), "paper_injection", {"snippet_form": "wrapped"}, "all"),
    "neuron": Strengths(PAPER_CHANGES, "paper_factor", {}, "all_no_bos"),
}
"""the paper's four interventions"""


def with_isotropic(plan: PlanConfig) -> PlanConfig:
    """The plan's settings with the paper's only control, which its estimates need."""
    if "isotropic" in plan.controls:
        return plan
    return plan.model_copy(update={"controls": (*plan.controls, "isotropic")})
