"""Making the stages of a run folder: those of a study one after the other, and what is asked for beside them.

Each stage is a function of tables and weights that knows nothing of files; here is decided whether it has to be made, it
is called, and what it gives is written with a manifest. A stage whose fingerprint is that of its manifest is left alone.
The model is loaded once, by the first stage that has something to compute with it.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from polysem import profiling
from polysem.config import Study, parse_study, read_text
from polysem.engine.check import check_study
from polysem.engine.context import StudyContext
from polysem.engine.options import StageOptions
from polysem.engine.status import Standings
from polysem.engine.task import How, Task
from polysem.engine.toml import to_toml
from polysem.engine.workers import check_workers, lock_name, run_workers
from polysem.errors import ConfigError, StoreError
from polysem.http import Retries
from polysem.places import Places
from polysem.progress import SILENT, Reporter, waiting
from polysem.store.manifest import StageInputs, StageStatus
from polysem.store.run import REPORT, RunFolder, now
from polysem.store.stages import ORDER, REGISTRY, StageName, command, has, inputs_of, order_of
from polysem.transfer.config import TransferStudy, parse_transfer

log = logging.getLogger(__name__)
EngineName = Literal["processes", "ray"]
Say = Callable[[str], None]
S = TypeVar("S", bound=BaseModel)


def run_study(
    study: Study | Path,
    out: Path,
    *,
    reporter: Reporter = SILENT,
    stages: Sequence[StageName] | None = None,
    shard: tuple[int, int] | None = None,
    force: bool = False,
    ignore_versions: bool = False,
    workers: int = 0,
    engine: EngineName = "processes",
) -> Path:
    """Run a study, or some stages of it, in a run folder; what is finished and fresh is not done again.

    Args:
        study: the study, or its TOML file, which is then kept verbatim in the run folder.
        out: the run folder; made if it does not exist.
        reporter: is told of stages and steps.
        stages: only these; the stages they read from must be fresh. None runs all.
        shard: (k, n), 1 <= k <= n: only every n-th part of the trials, beginning with the k-th; for `stages=["trials"]` only.
            Shards may run at the same time; a run without shard then finishes the stage.
        force: take over a folder that holds another study.
        ignore_versions: keep what was made with other versions of packages.
        workers: run the trials on so many processes of one thread each; 0 runs them in this one.
        engine: where workers run: on this machine, or as tasks of a Ray cluster (0 workers: as many as it has
            CPUs, or GPUs for a study on `cuda`).

    Returns:
        The report, where it was asked for; otherwise the folder of the last stage.

    Raises:
        ConfigError: if `stages` or `shard` is not as said above, or the study is not one.
        StoreError: if the folder is foreign, being written, or full, or an earlier stage is not fresh.
        PolysemError: of the stage functions.
    """
    base = study.parent if isinstance(study, Path) else Path.cwd()
    text, study = (to_toml(study), study) if isinstance(study, Study) else _read(study, parse_study, "study")
    wanted = _wanted(stages, shard, study)
    fan_out = "trials" in wanted and (workers > 0 or engine == "ray" or workers < 0)
    if fan_out and shard is not None:
        raise ConfigError(
            "a shard is run by one worker", hint="give --shard, or --workers or --engine, not both"
        )
    if fan_out and (workers or engine == "processes"):
        check_workers(workers)
    run, how = RunFolder(out), How(reporter, shard=shard, ignore_versions=ignore_versions)
    if not run.holds("study.toml"):
        with reporter.stage("check"):  # a wrong study leaves no folder behind
            check_study(study, Places(base), out).refuse()
    if fan_out:
        with run.writing():
            run.claim(study, text, base=base, force=force)
            force = False  # the folder is this study's by now
            runner = _Runner(run, study, how)
            runner.bring_all([stage for stage in wanted if stage in ORDER[: ORDER.index("trials")]])
            # where something is missing or nothing is left to do, the run below says so
            left = runner.state("plan") == "fresh" and runner.state("trials") != "fresh"
        if left:
            _fan_out(run, workers, engine, how)
    with run.writing(shard=lock_name(*shard) if shard else ""):
        run.claim(study, text, base=base, force=force)
        _Runner(run, study, how).bring_all(wanted)
    return out / REPORT if "report" in wanted else run.folder(max(wanted, key=ORDER.index))


def _fan_out(run: RunFolder, workers: int, engine: EngineName, how: How) -> None:
    """Let workers write the parts of the trials; collecting them, and what follows, is left to do."""
    with how.reporter.stage("trials"):
        if engine == "ray":
            from polysem.engine.ray import run_on_ray

            run_on_ray(run.root, workers, reporter=how.reporter, ignore_versions=how.ignore_versions)
        else:
            options = ["--ignore-versions"] if how.ignore_versions else []
            run_workers(run.root, workers, reporter=how.reporter, options=options)


def make_beside(
    stage: StageName,
    out: Path,
    options: StageOptions,
    *,
    reporter: Reporter = SILENT,
    say: Say = log.info,
    estimate_only: bool = False,
    retries: Retries | None = None,
    ignore_versions: bool = False,
) -> Path:
    """Make a stage that is asked for beside a study, or a transfer study, in its run folder; gives the folder of the tables.

    Args:
        stage: what it does, what it reads and whether that must be fresh or only finished is in `store.stages`.
        out: the run folder. Responses of judges are kept below it, so that a rerun costs nothing.
        options: those of the stage: `AtlasOptions`, ..., a `JudgePanel` for judge and explain.
        reporter: is told of progress.
        say: is told what will be sent and cost before it is sent, and what is left out.
        estimate_only: say it and end.
        retries: of the servers.
        ignore_versions: keep what was made with other versions of packages.

    Raises:
        StoreError: no run folder, what the stage reads is not there, or a file cannot be written.
        ConfigError: what is asked for cannot be, or a budget is too small.
        MismatchError: SAE, model and tables do not belong together.
        PolysemError: of models, SAEs, files and servers; what was answered is kept.
    """
    options.check()
    how = How(reporter, say, ignore_versions=ignore_versions, estimate_only=estimate_only, retries=retries)
    return _beside(stage, RunFolder.open(out), how, options, options.recorded()).folder(stage)


def run_transfer(
    study_file: Path,
    out: Path,
    *,
    reporter: Reporter = SILENT,
    say: Say = log.info,
    estimate_only: bool = False,
    retries: Retries | None = None,
) -> Path:
    """Run a transfer study; what was answered before is not asked again.

    Args:
        study_file: the study; kept verbatim in `out`.
        out: folder; made if it does not exist, and may be the folder of another study.
        reporter: is told of progress.
        say: is told what will be sent and cost before it is sent, and what is not run.
        estimate_only: say it and end.
        retries: of served targets.

    Returns:
        The folder of the tables.

    Raises:
        ConfigError: the study is not one, a budget is too small, or nothing can be run.
        PolysemError: of models, SAEs, servers and files; what was paid for is kept.
    """
    text, study = _read(study_file, parse_transfer, "transfer study")
    how = How(reporter, say, estimate_only=estimate_only, retries=retries)
    claim = (study, text, study_file.parent)
    return _beside("transfer", RunFolder(out), how, claim=claim).folder("transfer")


def _beside(
    stage: StageName,
    run: RunFolder,
    how: How,
    options: Any = None,
    recorded: dict[str, Any] | None = None,
    *,
    claim: tuple[TransferStudy, str, Path] | None = None,
) -> RunFolder:
    """Make a stage that is no part of a study's run; `recorded` are its options as they stand in the manifest. A report
    that shows it is made again, where it was made before and what else it reads is fresh."""
    with run.writing():
        if claim is not None:
            settings, text, base = claim
            run.claim(settings, text, base=base, file="transfer.toml")
        study = run.study() if run.holds("study.toml") else None
        runner = _Runner(run, study, how)
        runner.bring(stage, options, recorded or {})
        report = REGISTRY["report"]
        made = stage in report.shows and run.seen("report")[0] is not None
        if made and all(runner.state(name) == "fresh" for name in inputs_of("report", study)):
            runner.bring("report")
    return run


class _Runner:
    """Brings stages of a run folder up to date, one after the other."""

    def __init__(self, run: RunFolder, study: Study | None, how: How):
        self.run = run
        self.study = study
        self.how = how
        self.seen = Standings(run, study, ignore_versions=how.ignore_versions)

    @cached_property
    def context(self) -> StudyContext | None:
        """Loads nothing until a stage asks for it; None where the folder holds no study."""
        return StudyContext(self.study, self.run) if self.study else None

    def state(self, stage: StageName) -> str:
        return self.seen.status(stage).state

    def bring_all(self, wanted: Sequence[StageName]) -> None:
        """The wanted ones of a study's stages, in their order."""
        for stage in ORDER:
            if stage in wanted:
                self.bring(stage)

    def bring(self, stage: StageName, options: Any = None, recorded: dict[str, Any] | None = None) -> None:
        """Make a stage if it is not fresh.

        Raises:
            StoreError: if a stage that it reads is not there.
        """
        with waiting(self.how.reporter, f"{stage}: has anything changed?"):  # large files are hashed
            status, made_from = self.seen.look(stage, recorded)
        for name in inputs_of(stage, self.seen.settings(stage)):
            found = self.seen.status(name)
            finished = REGISTRY[stage].reads == "finished" and self.run.seen(name)[0] is not None
            if found.state != "fresh" and not finished:
                raise StoreError(
                    f"{stage} needs {name}, which is {found.state} in {self.run.root}: {found.reason}",
                    hint=command(name, self.run.root),
                )
        if status.state == "fresh" and not self.how.estimate_only:
            log.info("%s is fresh", stage)
            return
        log.info("%s is %s: %s", stage, status.state, status.reason)
        with self.how.reporter.stage(stage), profiling.stage(stage):
            self._make(stage, made_from, options)

    def _make(self, stage: StageName, made_from: StageInputs, options: Any) -> None:
        started = now()
        settings = self.seen.places.settings(self.seen.settings(stage))
        task = Task(stage, self.run, settings, self.context, made_from, self.how, options)
        made = REGISTRY[stage].load("make")(task)
        if made is None:
            return
        if stage == "features" and self.context:  # by now it is known which commits the sources are at
            made_from, _ = self.seen.inputs_now(stage, None, None, pins=self.context.pins)
        self.run.finish(stage, made_from, made.outputs, parts=made.parts, facts=made.facts, started=started)
        self.seen.known[stage] = StageStatus(stage, "fresh", "")


def _wanted(
    stages: Sequence[StageName] | None, shard: tuple[int, int] | None, study: Study | None = None
) -> tuple[StageName, ...]:
    wanted = order_of(study) if stages is None else tuple(stages)
    unknown = [stage for stage in wanted if stage not in ORDER]
    if unknown or not wanted:
        raise ConfigError(f"unknown stages {unknown or '(none)'}; expected some of {', '.join(ORDER)}")
    if lacking := [stage for stage in wanted if not has(study, stage)]:
        section, fewest = REGISTRY[lacking[0]].asked, REGISTRY[lacking[0]].fewest
        what = f"{fewest} sections [[{section}]]" if fewest else f"the section [{section}]"
        raise ConfigError(
            f"{lacking[0]} is made where a study has {what}, and this one has {'fewer' if fewest else 'none'}",
            hint=f"add a line [{f'[{section}]' if fewest else section}] to the study; what it may hold: polysem init",
        )
    if shard is not None:
        if wanted != ("trials",):
            raise ConfigError(
                "only the trials can be run in shards", hint="polysem trials STUDY.toml --shard 1/8"
            )
        if not 1 <= shard[0] <= shard[1]:
            raise ConfigError(f"shard {shard[0]}/{shard[1]} does not exist; expected K/N with 1 <= K <= N")
    return wanted


def _read(path: Path, parse: Callable[..., S], what: str) -> tuple[str, S]:
    """The text of a settings file, and what it asks for."""
    init = "polysem init > study.toml" if what == "study" else "polysem transfer --init > transfer.toml"
    text = read_text(path, what=f"{what} file", hint=init)
    return text, parse(text, origin=str(path))
