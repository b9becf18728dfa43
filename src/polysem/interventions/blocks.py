"""Blocks: the arms of every locus with the strengths they are pushed by, a study's own and the paper's.

A study's own strengths are those of its section `plan`, each in both signs. Presets `paper` and `both` add a second
block for the loci that arXiv 2505.11611 has, on the same arms and prompts: its grids of strengths, added at all
positions, its gradient of the sum of all coordinates, its snippets between asterisks, and isotropic random vectors.
Their rows have a unit of their own (`PAPER_UNITS`), by which everything that reads a plan tells the two apart.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from polysem.config import PlanConfig, Study
from polysem.interventions.arms import Arm, arms_of, draw_targets
from polysem.interventions.atlas import Atlas
from polysem.interventions.loci import clamp_arms, gradient_arms, neuron_arms, prompt_arms
from polysem.interventions.mlp import mlp_neuron_arms
from polysem.interventions.negative import negative_arms
from polysem.interventions.strengths import PAPER_CHANGES, PAPER_SCALES
from polysem.types import DoseUnit, Locus, Positions

_PAPER_RELATIONS = ("pair", "self", "random_feature", "random_direction", "isotropic", "rotated")
"""arms that are pushed by the paper's strengths too: what is compared in the presets table"""


class Block(NamedTuple):
    """What is planned at one locus."""

    locus: Locus
    arms: Sequence[Arm]
    doses: tuple[float, ...]
    """signed"""
    dose_unit: DoseUnit
    positions: Positions


def blocks_of(atlas: Atlas, study: Study) -> list[Block]:
    """The blocks of one SAE: those of the study's own strengths, then those of the paper's. None is empty."""
    plan, pairs, seed = _with_isotropic(study), study.pairs, study.seed
    targets = draw_targets(atlas, pairs=pairs, plan=plan, seed=seed)
    arms = arms_of(atlas, targets, pairs=pairs, plan=plan, seed=seed)
    arms += negative_arms(atlas, targets, pairs=pairs, plan=plan, seed=seed)
    neurons = {
        "neuron": lambda: neuron_arms(atlas, targets, pairs=pairs, plan=plan, seed=seed),
        "mlp_neuron": lambda: mlp_neuron_arms(atlas, targets, pairs=pairs, plan=plan, seed=seed),
    }
    made = [_own(atlas, locus, arms, neurons, plan=plan, seed=seed) for locus in plan.loci]
    if study.preset != "strict":
        made += _papers(atlas, arms, {block.locus: block for block in made}, plan=plan, seed=seed)
    return [block for block in made if block.arms]


def _with_isotropic(study: Study) -> PlanConfig:
    """The plan's settings; the paper's only control is isotropic, so its estimates need that arm."""
    plan = study.plan
    if study.preset == "strict" or "isotropic" in plan.controls:
        return plan
    return plan.model_copy(update={"controls": (*plan.controls, "isotropic")})


def _own(
    atlas: Atlas,
    locus: Locus,
    arms: Sequence[Arm],
    neurons: dict[str, Callable[[], list[Arm]]],
    *,
    plan: PlanConfig,
    seed: int,
) -> Block:
    factors = plan.dose_unit != "kl"
    match locus:
        case "feature":
            chosen, doses, unit = arms, plan.doses, plan.dose_unit
        case "gradient":
            chosen, doses, unit = gradient_arms(atlas, arms, plan=plan), plan.doses, plan.dose_unit
        case "clamp":
            chosen, doses, unit = clamp_arms(atlas, arms), plan.clamps, "max_act"
        case "prompt":
            chosen, doses, unit = prompt_arms(atlas, arms, plan=plan, seed=seed), (1.0,), "injection"
        case _:
            chosen = neurons[locus]()
            doses, unit = (plan.factors, "factor") if factors else (plan.doses, "kl")
    signed = tuple(sorted({sign * dose for dose in doses for sign in (-1.0, 1.0)}))
    return Block(locus, chosen, signed, unit, plan.positions)


def _papers(
    atlas: Atlas, arms: Sequence[Arm], own: dict[Locus, Block], *, plan: PlanConfig, seed: int
) -> list[Block]:
    """The paper's blocks for those of its four interventions that the study has."""
    compared = [arm for arm in arms if arm.relation in _PAPER_RELATIONS]
    as_paper = plan.model_copy(update={"probe": "ones", "snippet_form": "wrapped"})
    found: list[Block] = []
    if "feature" in own:
        found.append(Block("feature", compared, PAPER_SCALES, "paper_scale", "all"))
    if "gradient" in own:
        pushed = gradient_arms(atlas, compared, plan=as_paper)
        found.append(Block("gradient", pushed, PAPER_SCALES, "paper_scale", "all"))
    if "prompt" in own:
        snippets = prompt_arms(atlas, compared, plan=as_paper, seed=seed)
        found.append(Block("prompt", snippets, (1.0,), "paper_injection", "all"))
    if "neuron" in own:
        found.append(Block("neuron", own["neuron"].arms, PAPER_CHANGES, "paper_factor", "all"))
    return found
