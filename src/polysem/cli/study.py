"""The verbs of a study: run it, or one stage of it; look at a run folder; begin a new one."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer import Argument, Option

from polysem.boundary.files import exists, local_path
from polysem.cli.shell import (
    FAILED,
    USAGE,
    AsJson,
    Engine,
    Force,
    IgnoreVersions,
    Out,
    RunArgument,
    Shard,
    StudyFile,
    Where,
    Workers,
    folder_for,
    print_json,
    print_template,
    result,
    say,
    shard_of,
    verb,
    working,
)
from polysem.errors import ConfigError, typed
from polysem.store.stages import ORDER, StageName, command

if TYPE_CHECKING:
    from polysem.profiling import Profile

DEMO = Path(__file__).with_name("demo.toml")
WEIGHTS = (".safetensors", ".pt", ".npz", ".json")
"""endings of files that an SAE is made of"""


@verb
def run(
    study_file: StudyFile,
    out: Out = None,
    shard: Shard = "",
    workers: Workers = 0,
    engine: Where = "processes",
    force: Force = False,
    ignore_versions: IgnoreVersions = False,
    track: Annotated[
        str, Option(metavar="TRACKER:PROJECT", help="Log what was found, once: trackio, wandb, mlflow.")
    ] = "",
    profile: Annotated[
        bool, Option("--profile", help="Count CPU seconds by stage and kind of work; kept in profile.json.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a study; what is finished and fresh is not done again. Says what was found; prints the path of the report.

    With --shard only that part of the trials is run, of a study whose plan is made; run it once more without, to
    collect the shards and go on. With preset `paper` or `both` the paper's estimates are said beside the strict ones.
    """
    from polysem.profiling import profile_lines, profiled

    with profiled() if profile else nullcontext() as seen:
        keep = None if seen is None else kept_profile(folder_for(study_file, out), seen)
        done = _run(
            *(study_file, out, ["trials"] if shard else None),
            shard=shard, workers=workers, engine=engine, force=force, ignore_versions=ignore_versions,
        )  # fmt: skip
    for line in profile_lines(keep()) if keep else ():
        say(line)
    if shard:
        result(done, as_json=as_json, stage="trials", shard=shard)
        return
    from polysem.cli.said import say_presets

    if track:
        from polysem.report.publish import track as log_run

        log_run(done.parent, track)
    _found(done, as_json=as_json)
    say_presets(done.parent)


def kept_profile(folder: Path, seen: "Profile") -> Callable[[], dict[str, Any]]:
    """Has where the CPU time goes written to the run folder after every stage, so that a stop later loses none of it.

    Returns:
        a function that writes it once more and gives it: stages that an earlier run made, and this one did not, included.
    """
    from polysem.onednn import bare_rate
    from polysem.store.io import write_json

    path = folder / "profile.json"
    earlier = _stages_of(path) if path.exists() else None
    rate = bare_rate(768)

    def keep() -> dict[str, Any]:
        table = seen.table(rate, earlier=earlier)
        write_json(path, table)
        return table

    seen.after_stage = keep
    return keep


def _stages_of(path: Path) -> dict[str, dict[str, float]]:
    """The stages of a profile that was kept. Raises StoreError if it is none."""
    from polysem.errors import StoreError
    from polysem.profiling import ROW
    from polysem.store.io import read_json

    again = f"delete {path}: the profile of the stages that a run makes is kept anew"
    stages = read_json(path, rebuild=again).get("stages")
    if isinstance(stages, dict):
        rows = cast(dict[str, Any], stages)
        if all(isinstance(row, dict) and sorted(row) == sorted(ROW) for row in rows.values()) and all(
            isinstance(value, int | float) for row in rows.values() for value in row.values()
        ):
            return rows
    raise StoreError(f"{path}: no profile of stages, each with {', '.join(ROW)}", hint=again)


@verb
def demo(
    out: Annotated[Path, Option(metavar="DIR", help="Run folder.")] = Path("runs/demo"),
    force: Force = False,
    ignore_versions: IgnoreVersions = False,
    as_json: AsJson = False,
) -> None:
    """Run the study that is shipped with polysem, on the models of the zoo, offline. Prints the path of the report."""
    _found(_run(DEMO, out, force=force, ignore_versions=ignore_versions), as_json=as_json)


def _found(report: Path, *, as_json: bool) -> None:
    """What a finished study found: on stderr, with the next command, or as JSON with the path of the report."""
    if not as_json:
        from polysem.cli.said import say_findings

        say_findings(report.parent)
        result(report)
        return
    from polysem.report.compare import findings
    from polysem.report.source import Run

    print_json({"report": report, "findings": findings(Run.open(report.parent))})


@verb
def compare(
    a: Annotated[str, Argument(metavar="A", help="A run folder, or the reference of an SAE.")],
    b: Annotated[str, Argument(metavar="B", help="Another.")],
    as_json: AsJson = False,
) -> None:
    """Put two runs side by side: settings that differ, sizes, findings, and the pairs that both measured; or two SAEs.

    SAEs of one site are matched feature by feature, as by `polysem replicate`.
    """
    from polysem.cli.said import side_by_side
    from polysem.report.compare import compare as compare_runs
    from polysem.report.source import Run

    if all(_is_sae(ref) for ref in (a, b)):
        from polysem.cli.replicate import beside_one_another

        beside_one_another(a, b, as_json=as_json)
        return
    with working("comparing"):
        found = compare_runs(Run.open(Path(a)), Run.open(Path(b)))
    if as_json:
        print_json(found)
    else:
        print("\n".join(side_by_side(found)))


def _is_sae(ref: str) -> bool:
    """Whether a reference is of an SAE rather than of a run folder."""
    there = local_path(ref)
    if any((there / name).is_file() for name in ("study.toml", "manifest.json")):  # a run, or a stage of one
        return False
    # of a folder without either the run's own words say more
    files = [there] if there.is_file() else there.iterdir() if there.is_dir() else ()
    return ":" in ref or any(file.suffix in WEIGHTS for file in files)


def _run(
    study_file: Path,
    out: Path | None,
    stages: Sequence[StageName] | None = None,
    *,
    shard: str = "",
    workers: int = 0,
    engine: Engine = "processes",
    force: bool = False,
    ignore_versions: bool = False,
) -> Path:
    part, folder = shard_of(shard), folder_for(study_file, out)
    from polysem.engine import run_study
    from polysem.engine.workers import end_with_parent
    from polysem.progress import on_stderr

    end_with_parent()
    return run_study(
        *(study_file, folder),
        reporter=on_stderr(),
        stages=stages,
        shard=part,
        force=force,
        ignore_versions=ignore_versions,
        workers=workers,
        engine=engine,
    )


def _plain(stage: StageName) -> Callable[..., None]:
    @verb
    def staged(
        study_file: StudyFile,
        out: Out = None,
        force: Force = False,
        ignore_versions: IgnoreVersions = False,
        as_json: AsJson = False,
    ) -> None:
        done = _run(study_file, out, [stage], force=force, ignore_versions=ignore_versions)
        result(done, as_json=as_json, stage=stage)

    return staged


@verb
def _plan(
    study_file: StudyFile,
    out: Out = None,
    cost: Annotated[
        bool, Option("--cost", help="Time a few batches, and say what the trials will take here.")
    ] = False,
    force: Force = False,
    ignore_versions: IgnoreVersions = False,
    as_json: AsJson = False,
) -> None:
    folder = _run(study_file, out, ["plan"], force=force, ignore_versions=ignore_versions)
    from polysem.cli.said import say_power

    say_power(folder.parent)
    if not as_json:
        result(folder)
    if cost or as_json:
        from polysem.engine.cost import estimate_cost

        with working("timing") as reporter:
            found = estimate_cost(folder.parent, reporter=reporter) if cost else None
        if as_json:
            print_json({"plan": folder, "cost": found and asdict(found)})
        elif found:
            print(found.text())


@verb
def _trials(
    study_file: StudyFile,
    out: Out = None,
    shard: Shard = "",
    workers: Workers = 0,
    engine: Where = "processes",
    ignore_versions: IgnoreVersions = False,
    as_json: AsJson = False,
) -> None:
    done = _run(
        *(study_file, out, ["trials"]),
        shard=shard, workers=workers, engine=engine, ignore_versions=ignore_versions,
    )  # fmt: skip
    result(done, as_json=as_json, stage="trials", shard=shard or None)


STAGES: dict[StageName, Callable[..., None]] = {
    **{stage: _plain(stage) for stage in ORDER},
    "plan": _plan,
    "trials": _trials,
}
"""one verb per stage of a study"""


@verb
def check(study_file: StudyFile, out: Out = None, as_json: AsJson = False) -> None:
    """Look for everything that is wrong with a study before it is run: files, sites, widths, labels, glosses, disk."""
    folder = folder_for(study_file, out)
    from polysem.config import load_study
    from polysem.engine import check_study
    from polysem.places import Places

    with working("checking"):
        found = check_study(load_study(study_file), Places(study_file.parent), folder)
    if as_json:
        problems = [{"problem": error.args[0], "next": error.hint} for error in found.problems]
        print_json({"study": study_file, "problems": problems, "not looked at": found.unseen})
        if problems:
            raise typer.Exit(USAGE)
        return
    for words in found.unseen:
        print(f"not looked at: {words}", file=sys.stderr)
    found.refuse()
    result(f"{study_file}: nothing wrong was found")


@verb
def status(run: RunArgument, as_json: AsJson = False, ignore_versions: IgnoreVersions = False) -> None:
    """Say of every stage whether it is absent, partial, fresh, stale or foreign, and why."""
    from polysem.engine import run_status
    from polysem.store.manifest import other_format

    with working("looking"):
        found = [asdict(stage) for stage in run_status(run, ignore_versions=ignore_versions)]
    if as_json:
        print_json(found)
        return
    if error := other_format(run):
        print(f"stale    {error.args[0]}")
        print(f"  next: {error.hint}", file=sys.stderr)
        return
    for stage in found:
        print(f"{stage['stage']:<9} {stage['state']:<8} {stage['reason']}".rstrip())
    behind = [stage["stage"] for stage in found if stage["state"] in ("partial", "stale")]
    if behind:
        goes_on = (
            f"polysem run {typed(run)}/study.toml --out {typed(run)}"
            if behind[0] in ORDER
            else command(behind[0], run)
        )
        print(f"  next: {goes_on}", file=sys.stderr)


@verb
def verify(
    run: RunArgument,
    sample: Annotated[int, Option(min=0, help="Batches of trials to run again; 0 runs none.")] = 3,
    inputs: Annotated[
        list[str] | None,
        Option(
            "--input",
            metavar="OLD=NEW",
            help="A model, SAE or file that lies elsewhere now: OLD as the study has it.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hash every file, check every table, look for trials that are missing, and run a sample of them again."""
    from polysem.engine import verify_run

    moved = dict(_moved(item) for item in inputs or [])
    with working("verifying") as reporter:
        findings = verify_run(run, sample=sample, inputs=moved, reporter=reporter)
    if as_json:
        print_json({"run": run, "findings": findings})
    else:
        print("\n".join(map(str, findings)) or f"{run}: verified")
    if findings:
        raise typer.Exit(FAILED)


def _moved(item: str) -> tuple[str, str]:
    old, mark, new = item.partition("=")
    if not (old and mark and new):
        raise ConfigError(f"--input {item!r}: expected OLD=NEW, OLD being a reference as the study has it")
    return old, str(local_path(new).resolve()) if exists(local_path(new)) else new


@verb
def init(as_json: AsJson = False) -> None:
    """Print a study file with every key, its default and what it means; write it with `polysem init > study.toml`."""
    print_template("study.toml", as_json=as_json)


@verb
def zoo(as_json: AsJson = False) -> None:
    """List the models, SAEs, transcoders and texts that come with polysem-zoo and polysem-zoo-real, as they are written in a study."""
    from polysem.errors import UnknownReferenceError
    from polysem.registry import zoo_names

    known = [
        (kind, f"zoo:{name}")
        for kind in ("models", "saes", "transcoders", "texts")
        for name in zoo_names(kind)
    ]
    try:
        real = ("saes", "transcoders")
        known += [(kind, f"zoo-real:{name}") for kind in real for name in zoo_names(kind, "zoo-real")]
    except UnknownReferenceError as error:
        say(f"{error.args[0]}; {error.hint}")
    if as_json:
        print_json([{"kind": kind, "ref": ref} for kind, ref in known])
    else:
        print("\n".join(f"{kind:<11} {ref}" for kind, ref in known))
