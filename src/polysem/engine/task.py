"""What a stage's make function is given, and what it gives back.

    def make(task: Task) -> Made | None

It reads tables of earlier stages from `task.run`, takes model, SAEs and features from `task.context`, which loads them
once for all stages of a run, and writes either with `task.whole` or with `task.in_parts`. None says that the stage is not
finished: a shard of it was made, or only its cost was asked for.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from polysem.config import Study
from polysem.engine.context import StudyContext
from polysem.engine.sources import Settings
from polysem.errors import StoreError
from polysem.http import Retries
from polysem.progress import SILENT, Reporter
from polysem.store.manifest import Manifest, Output, StageInputs
from polysem.store.run import Arrays, Part, RunFolder, now, trial_parts
from polysem.store.stages import REGISTRY, StageName, command
from polysem.transfer.config import TransferStudy

log = logging.getLogger(__name__)
T = TypeVar("T")
Tables = Mapping[str, pa.Table | Arrays]
"""tables of the stage by name, and arrays under any other name"""


@dataclass(frozen=True)
class How:
    """How stages are made: nothing here changes what comes out."""

    reporter: Reporter = SILENT
    say: Callable[[str], None] = log.info
    """is told what will be sent and cost before it is sent, and what is not run"""
    shard: tuple[int, int] | None = None
    ignore_versions: bool = False
    """keep what was made with other versions of packages"""
    estimate_only: bool = False
    """say what would be sent, and make nothing"""
    retries: Retries | None = None
    """of servers; None takes the usual ones"""


class Made(NamedTuple):
    """The files of a stage and what was found out while making them."""

    outputs: dict[str, Output]
    facts: dict[str, Any]
    parts: Sequence[Part] = ()


@dataclass(frozen=True)
class Task:
    """One stage to be made."""

    stage: StageName
    run: RunFolder
    settings: Settings
    study_context: StudyContext | None
    """None where the folder holds a transfer study only"""
    made_from: StageInputs
    how: How
    options: Any = None
    """of the command, `engine.options.StageOptions`; None for the stages of a study"""

    @property
    def context(self) -> StudyContext:
        """Model, SAEs and features of a study."""
        assert self.study_context is not None, f"{self.stage} is no stage of a study"
        return self.study_context

    @property
    def study(self) -> Study:
        """The settings of a stage of a study."""
        assert isinstance(self.settings, Study), f"{self.stage} is no stage of a study"
        return self.settings

    @property
    def transfer(self) -> TransferStudy:
        """The settings of a stage of a transfer study."""
        assert isinstance(self.settings, TransferStudy), f"{self.stage} is no stage of a transfer study"
        return self.settings

    def whole(self, made: Tables, facts: Mapping[str, Any] | None = None) -> Made:
        """Write the tables of a stage that has no parts."""
        return Made(self.run.write(self.stage, made), {**self.context.facts(), **(facts or {})})

    def in_parts(
        self, compute: Callable[[Part, Reporter], Tables], *, sizes: Sequence[int] | None = None
    ) -> Made | None:
        """Make the parts that are not there yet, those of this shard, and collect them all.

        Args:
            compute: gives what one part holds.
            sizes: steps of every part, of which `compute` tells the reporter that it is given; None: a part is a step.

        Raises:
            StoreError: if a part is missing or damaged after all.
        """
        parts = parts_of(self.study, self.run, self.stage)
        k, n = self.how.shard or (1, 1)
        mine = parts[k - 1 :: n]
        todo = [part for part in mine if self._good(part) is None]
        steps = sizes or [1] * len(parts)
        if todo:
            total, left = (sum(steps[part.k] for part in some) for some in (mine, todo))
            bar = Steps(self.how.reporter, total=total, done=total - left, label=self.stage)
            for part in todo:
                started = now()
                made = compute(part, bar)
                self.run.write_part(
                    part, made, made_from=self.made_from, facts=self.context.facts(), started=started
                )
                if sizes is None:
                    bar.step()
            bar.close()
        # other shards may be at work; a run without shard finishes the stage
        return None if self.how.shard else self._collect(parts)

    def _good(self, part: Part) -> Manifest | None:
        return self.run.good_part(part, self.made_from, ignore_versions=self.how.ignore_versions)

    def _collect(self, parts: Sequence[Part]) -> Made:
        """The files of all parts, from their records."""
        outputs: dict[str, Output] = {}
        facts: dict[str, Any] = {}
        machines: set[str] = set()
        for part in parts:
            record = self._good(part)
            if record is None:
                raise StoreError(
                    f"{self.run.root / part.record} is missing or does not fit its files",
                    hint=command(part.stage, self.run.root),
                )
            outputs |= record.outputs
            facts = record.facts
            device = facts.get("model", {}).get("device", "cpu")
            machines.add(f"{device}, {facts.get('platform')}")
        if len(machines) > 1:
            shown = "; ".join(sorted(machines))
            log.warning("parts of %s were made on different machines: %s", self.stage, shown)
        return Made(outputs, facts, parts)


def parts_of(study: Study, run: RunFolder, stage: StageName) -> list[Part]:
    """The parts of a stage that has parts; none for the others.

    Raises:
        StoreError: if the plan, which says how many parts the trials have, cannot be read.
    """
    match REGISTRY[stage].parts:
        case "saes":
            n = len(study.saes)
        case "writers":
            n = len(study.saes) + len(study.transcoders)
        case "batches":
            n = len(trial_parts(run.table("plan")))
        case _:
            n = 0
    return [Part(stage, k, n) for k in range(n)]


class Steps:
    """One bar over the steps of all parts, where each part reports its own."""

    def __init__(self, reporter: Reporter, *, total: int, done: int, label: str):
        left = range(done, total)
        self._ticks = iter(reporter.track(left, total=total, label=label, done=done))
        self.step()

    def step(self) -> None:
        next(self._ticks, None)

    def track(self, items: Iterable[T], *, total: int, label: str, done: int = 0) -> Iterator[T]:
        for item in items:
            yield item
            self.step()

    def stage(self, label: str) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        """Let the bar end."""
        for _ in self._ticks:
            pass
