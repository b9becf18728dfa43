"""Running a study through the store.

Each stage is a function of tables and weights that knows nothing of files; here they are read, the function is called, and what
it gives is written with a manifest. A stage whose fingerprint is that of its manifest is left alone. The model is loaded once, by the
first stage that has something to compute with it.
"""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from polysem.config import Study, parse_study
from polysem.errors import ConfigError, StoreError
from polysem.progress import SILENT, Reporter
from polysem.store.manifest import Recipe, StageStatus
from polysem.store.run import REPORT, RunFolder, now
from polysem.store.stages import NEEDS, ORDER, Stage, command
from polysem.study import making
from polysem.study.bench import Bench
from polysem.study.status import recipe_now, standing
from polysem.study.toml import to_toml
from polysem.study.workers import check_workers, lock_name, run_workers

log = logging.getLogger(__name__)


def run_study(
    study: Study | Path,
    out: Path,
    *,
    reporter: Reporter = SILENT,
    stages: Sequence[Stage] | None = None,
    shard: tuple[int, int] | None = None,
    force: bool = False,
    ignore_versions: bool = False,
    workers: int = 0,
    engine: Literal["processes", "ray"] = "processes",
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
    wanted = _wanted(stages, shard)
    text, study = _texts(study)
    run = RunFolder(out)
    if "trials" in wanted and (workers or engine == "ray"):
        _fan_out(
            *(text, study, run, wanted, workers, engine, reporter),
            shard=shard,
            force=force,
            ignore_versions=ignore_versions,
        )
        force = False  # the folder is this study's by now
    with run.writing(shard=lock_name(*shard) if shard else ""):
        run.claim(study, text, force=force)
        runner = _Runner(study, run, reporter, ignore_versions=ignore_versions)
        for stage in ORDER:
            if stage in wanted:
                runner.bring(stage, shard=shard)
            elif ORDER.index(stage) < max(map(ORDER.index, wanted)):
                runner.look(stage)
    return out / REPORT if "report" in wanted else run.folder(max(wanted, key=ORDER.index))


def _fan_out(
    text: str,
    study: Study,
    run: RunFolder,
    wanted: Sequence[Stage],
    workers: int,
    engine: Literal["processes", "ray"],
    reporter: Reporter,
    *,
    shard: tuple[int, int] | None,
    force: bool,
    ignore_versions: bool,
) -> None:
    """Bring the stages before the trials up to date, then let workers write the parts of the trials; collecting
    them, and what follows, is left to do."""
    if shard is not None:
        raise ConfigError(
            "a shard is run by one worker", hint="give --shard, or --workers or --engine, not both"
        )
    if workers or engine == "processes":
        check_workers(workers)
    with run.writing():
        run.claim(study, text, force=force)
        runner = _Runner(study, run, reporter, ignore_versions=ignore_versions)
        for stage in ORDER[: ORDER.index("trials")]:
            if stage in wanted:
                runner.bring(stage, shard=None)
            else:
                runner.look(stage)
        runner.look("trials")
        if runner.known["plan"].state != "fresh" or runner.known["trials"].state == "fresh":
            return  # the run that follows says what is missing, or has nothing to do
    options = ["--ignore-versions"] if ignore_versions else []
    with reporter.stage("trials"):
        if engine == "ray":
            from polysem.study.ray import run_on_ray

            run_on_ray(run.root, workers, reporter=reporter, ignore_versions=ignore_versions)
        else:
            run_workers(run.root, workers, reporter=reporter, options=options)


def _wanted(stages: Sequence[Stage] | None, shard: tuple[int, int] | None) -> tuple[Stage, ...]:
    wanted = ORDER if stages is None else tuple(stages)
    unknown = [stage for stage in wanted if stage not in ORDER]
    if unknown or not wanted:
        raise ConfigError(f"unknown stages {unknown or '(none)'}; expected some of {', '.join(ORDER)}")
    if shard is not None:
        if wanted != ("trials",):
            raise ConfigError(
                "only the trials can be run in shards", hint="polysem trials STUDY.toml --shard 1/8"
            )
        if not 1 <= shard[0] <= shard[1]:
            raise ConfigError(f"shard {shard[0]}/{shard[1]} does not exist; expected K/N with 1 <= K <= N")
    return wanted


def _texts(study: Study | Path) -> tuple[str, Study]:
    if isinstance(study, Study):
        return to_toml(study), study
    try:
        text = study.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot read study file {study}: {reason}", hint="polysem init > study.toml"
        ) from error
    return text, parse_study(text, origin=str(study))


class _Runner:
    """Brings stages up to date, one after the other."""

    def __init__(self, study: Study, run: RunFolder, reporter: Reporter, *, ignore_versions: bool):
        self.study = study
        self.run = run
        self.reporter = reporter
        self.ignore_versions = ignore_versions
        self.known: dict[Stage, StageStatus] = {}

    @cached_property
    def bench(self) -> Bench:
        return Bench(self.study, self.run)

    def look(self, stage: Stage) -> Recipe:
        """Find out where a stage stands; gives the recipe by which it would be made."""
        found = standing(self.study, self.run, stage, self.known, ignore_versions=self.ignore_versions)
        self.known[stage] = found.status
        return found.recipe

    def bring(self, stage: Stage, *, shard: tuple[int, int] | None) -> None:
        """Make a stage if it is not fresh."""
        recipe = self.look(stage)
        for name in NEEDS[stage].inputs:
            status = self.known[name]
            if status.state != "fresh":
                raise StoreError(
                    f"{stage} needs {name}, which is {status.state} in {self.run.root}: {status.reason}",
                    hint=command(name, self.run.root),
                )
        status = self.known[stage]
        if status.state == "fresh":
            log.info("%s is fresh", stage)
            return
        log.info("%s is %s: %s", stage, status.state, status.reason)
        with self.reporter.stage(stage):
            self._make(stage, recipe, shard)
        if shard is None:
            self.known[stage] = StageStatus(stage, "fresh", "")

    def _make(self, stage: Stage, recipe: Recipe, shard: tuple[int, int] | None) -> None:
        bench, started, reporter = self.bench, now(), self.reporter
        self.run.begin(stage)
        match stage:
            case "features":
                made = making.make_features(bench, reporter)
                recipe, _ = recipe_now(self.study, self.run, stage, pins=bench.pins)
            case "pairs":
                made = making.make_pairs(
                    bench, recipe, ignore_versions=self.ignore_versions, reporter=reporter
                )
            case "plan":
                made = making.make_plan(bench)
            case "trials":
                parts = making.make_trials(
                    bench,
                    recipe,
                    shard=shard or (1, 1),
                    ignore_versions=self.ignore_versions,
                    reporter=reporter,
                )
                if shard is not None:
                    return  # other shards may be at work; a run without shard finishes the stage
                made = making.collect(bench, parts, recipe, ignore_versions=self.ignore_versions)
            case "response":
                made = making.make_response(bench, reporter)
            case "effects":
                made = making.make_effects(bench)
            case "report":
                made = making.make_report(bench)
        self.run.finish(stage, recipe, made.outputs, facts=made.facts, started=started)
