"""The section on the instrument itself: what the selftest that comes with this version of polysem measured."""

from typing import NamedTuple

import polysem.selftest as instrument
from polysem.report.text import count
from polysem.selftest import Line, Verdict


class World(NamedTuple):
    """The lines of one world."""

    name: str
    held: str
    """12 of 12"""
    rows: list[Line]


class SelftestSection(NamedTuple):
    """What the template prints."""

    summary: str
    versions: list[tuple[str, str]]
    worlds: list[World]
    broken: list[str]


def section() -> SelftestSection | None:
    """The last full selftest; None if this version comes without one."""
    verdict = instrument.latest()
    return None if verdict is None else section_of(verdict)


def section_of(verdict: Verdict) -> SelftestSection:
    """The section of a verdict."""
    judged = [line for line in verdict.lines if line.held is not None]
    held = sum(line.held is True for line in judged)
    seen = f"{count(held)} of {count(len(judged))} lines hold"
    names = list(dict.fromkeys(line.world for line in verdict.lines))
    return SelftestSection(
        summary=f"{seen} ({verdict.scale} run, seed {verdict.seed})",
        versions=sorted(verdict.versions.items()),
        worlds=[_world(name, [line for line in verdict.lines if line.world == name]) for name in names],
        broken=[f"{line.world} {line.name}" for line in verdict.broken],
    )


def _world(name: str, lines: list[Line]) -> World:
    judged = [line for line in lines if line.held is not None]
    held = f"{sum(line.held is True for line in judged)} of {len(judged)}"
    return World(name, held, lines)
