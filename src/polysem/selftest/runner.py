"""Which checks there are, and running them.

A check is a generator of `Measured`; the time until it gives a number is that number's. A check that raises a
deliberate error, or whose assertion fails, leaves one broken line under its own name, and the others go on;
anything else is a bug of the selftest and stops it.
"""

import importlib
import logging
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from polysem.errors import ConfigError, PolysemError
from polysem.progress import SILENT, Reporter
from polysem.selftest.lines import Line, Measured, Verdict

log = logging.getLogger(__name__)
PACKAGES = ("polysem", "torch", "transformers", "numpy", "scipy", "statsmodels", "pyarrow", "sae-lens")


@dataclass(frozen=True)
class RunSize:
    """How much a check may do."""

    full: bool
    seed: int

    def of(self, quick: int, full: int) -> int:
        """The size for this scale."""
        return full if self.full else quick


@dataclass(frozen=True)
class Check:
    """One check: where it is, and what it points at."""

    world: str
    name: str
    where: str
    """module:function below polysem.selftest"""
    full_only: bool = False

    def load(self) -> Callable[[RunSize], Iterator[Measured]]:
        module, _, function = self.where.partition(":")
        return getattr(importlib.import_module(f"polysem.selftest.{module}"), function)


CHECKS = (
    Check("GT0", "edits", "identities:edits"),
    Check("GT0", "readouts", "identities:readouts"),
    Check("GT0", "linear response", "identities:linear_response"),
    Check("GT0", "decomposition", "parts:decomposition"),
    Check("GT0", "token gradient", "parts:guard"),
    Check("GT0", "sae", "identities:sae_on_disk"),
    Check("GT0", "invariance", "identities:invariance"),
    Check("GT1", "phases", "toy:phases"),
    Check("GT1", "geometry", "toy:geometry"),
    Check("GT1", "adversarial", "toy:adversarial"),
    Check("GT2", "scaling", "incidental:scaling"),
    Check("GT2", "ablation", "incidental:ablation"),
    Check("GT3", "pipeline", "readout:pipeline"),
    Check("GT3", "compensation", "readout:compensation"),
    Check("GT3", "response", "readout:response"),
    Check("GT3", "duplicates", "traps:duplicates"),
    Check("GT3", "common mode", "traps:common_mode"),
    Check("GT3", "gloss noise", "traps:gloss_noise"),
    Check("GT3", "token overlap", "traps:token_overlap"),
    Check("GT3", "identity", "traps:identity"),
    Check("GT3", "apart", "effects:apart"),
    Check("GT3", "dealt decoder", "effects:dealt"),
    Check("GT3", "dose", "null:dose"),
    Check("GT3", "null", "null:size"),
    Check("GT3", "signs", "null:signs"),
    Check("GT3", "power", "null:power"),
    Check("GT3", "discoveries", "null:discoveries"),
    Check("GT3", "side effects", "side_effects:planted"),
    Check("GT3", "joint", "joint:planted"),
    Check("GT4", "whole", "compiled:whole"),
    Check("GT4", "squeezed", "compiled:squeezed"),
    Check("GT4", "paths", "compiled:paths"),
    Check("GT5", "given", "codes:given"),
    Check("GT5", "group bias", "codes:group_bias"),
    Check("GT5", "formats", "codes:sae_lens_formats", full_only=True),
    Check("GT5", "sae-lens codes", "codes:sae_lens_codes", full_only=True),
    Check("GT5", "learnt", "codes:learnt", full_only=True),
    Check("GT5", "remedies", "codes:remedies", full_only=True),
    Check("GT6", "shared pairs", "transfer:shared"),
    Check("GT6", "nothing shared", "transfer:unshared"),
    Check("GT6", "pools", "transfer:pools"),
    Check("GT7", "edges", "layers:planted"),
    Check("GT7", "interference", "layers:interference"),
    Check("GT7", "hops", "layers:hops"),
    Check("GT8", "texts", "texts:planted"),
    Check("GT8", "handles", "handles:planted"),
)
"""In the order in which they run."""


def run(
    *,
    full: bool = False,
    seed: int = 0,
    worlds: Sequence[str] = (),
    checks: Sequence[Check] | None = None,
    reporter: Reporter = SILENT,
    on_line: Callable[[Line], None] | None = None,
) -> Verdict:
    """Run the checks.

    Args:
        full: the sizes of the published table, instead of those of every test run.
        worlds: only these (GT0 to GT8); empty for all.
        checks: what there is to run; None for all of `CHECKS`.
        on_line: called with every line as soon as it is known.

    Raises:
        ConfigError: if a world is unknown.
    """
    checks = CHECKS if checks is None else checks
    known = {check.world for check in checks}
    if unknown := [world for world in worlds if world not in known]:
        raise ConfigError(f"no world is called {unknown[0]!r}; expected some of {', '.join(sorted(known))}")
    scale = RunSize(full, seed)
    chosen = [c for c in checks if (not worlds or c.world in worlds) and (full or not c.full_only)]
    lines: list[Line] = []
    for check in reporter.track(chosen, total=len(chosen), label="selftest"):
        log.info("%s %s", check.world, check.name)
        for line in _timed(check, scale):
            lines.append(line)
            if on_line is not None:
                on_line(line)
    return Verdict(tuple(lines), "full" if full else "quick", seed, versions())


def _timed(check: Check, scale: RunSize) -> Iterator[Line]:
    started = time.monotonic()
    try:
        for measured in check.load()(scale):
            now = time.monotonic()
            name, rest = f"{check.name}: {measured.name}", measured[1:]
            yield Line(check.world, name, *rest, seconds=now - started)
            started = time.monotonic()
    except (PolysemError, AssertionError) as error:
        said = f"{type(error).__name__}: {error}".replace("\n", " ")
        took = time.monotonic() - started
        yield Line(check.world, f"{check.name}: runs", float("nan"), 0.0, 0.0, None, "", said, took)


def versions() -> dict[str, str]:
    """Versions of what a verdict depends on; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            log.debug("%s is not installed", package)
    return found
