"""Blocks: the arms of every locus with the strengths they are steered by, a study's own and those of its preset."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from polysem.act.arms import Arm, ArmsRequest
from polysem.act.base import intervention
from polysem.config import PlanConfig, Study
from polysem.saes.base import SAE
from polysem.vocabulary import PRESETS, attribute


class LocusBlock(NamedTuple):
    """What is planned at one locus."""

    locus: str
    arms: Sequence[Arm]
    doses: tuple[float, ...]
    """signed"""
    dose_unit: str
    positions: str
    reads: Mapping[int, tuple[int, ...]] = {}
    """target -> tokens that are read in place of those that activate it"""
    dictionary: SAE | None = None
    """whose site is edited, where it is another than the targets'"""


def settings_of(study: Study) -> PlanConfig:
    """The section `plan`, with what the study's preset needs beside it."""
    settings = PRESETS[study.preset].settings
    return attribute(settings)(study.plan) if settings else study.plan


def blocks_of(request: ArmsRequest, study: Study) -> list[LocusBlock]:
    """The blocks of one SAE: those of the study's own strengths, then those of its preset. None is empty.

    Args:
        request: `arms` holds all arms of the features.
        study: loci, strengths, positions and preset.
    """
    made: list[LocusBlock] = []
    for locus in study.plan.loci:
        acts = intervention(locus)
        doses, unit = acts.doses(study.plan)
        signed = tuple(sorted({sign * dose for dose in doses for sign in (-1.0, 1.0)}))
        made.append(LocusBlock(locus, acts.arms(request), signed, unit, study.plan.positions))
    if PRESETS[study.preset].blocks:
        made += attribute(PRESETS[study.preset].blocks)(made, request)
    return [block for block in made if block.arms]
