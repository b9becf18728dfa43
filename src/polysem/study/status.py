"""Where every stage of a study stands, computed from fingerprints: no model is loaded, no torch imported."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from polysem.config import Study
from polysem.errors import StoreError
from polysem.store.manifest import Manifest, Recipe, StageStatus, State, compare
from polysem.store.run import Part, RunFolder, trial_parts
from polysem.store.stages import NEEDS, ORDER, Stage
from polysem.study.sources import Pins, content_of


class Standing(NamedTuple):
    """A stage's status, and the recipe by which it would be made now."""

    status: StageStatus
    recipe: Recipe


def study_status(study: Study, folder: Path, *, ignore_versions: bool = False) -> list[StageStatus]:
    """The state of every stage of `study` in `folder`, with the reason, in the order in which they run.

    Args:
        study: what is asked for; usually the folder's own study.toml.
        folder: the run folder.
        ignore_versions: do not count another version of a package as a change.

    Raises:
        StoreError: if a table of the plan cannot be read.
    """
    run = RunFolder(folder)
    if reason := run.foreign(study):
        return [StageStatus(stage, "foreign", reason) for stage in ORDER]
    known: dict[Stage, StageStatus] = {}
    for stage in ORDER:
        known[stage] = standing(study, run, stage, known, ignore_versions=ignore_versions).status
    return list(known.values())


def standing(
    study: Study,
    run: RunFolder,
    stage: Stage,
    upstream: Mapping[Stage, StageStatus],
    *,
    ignore_versions: bool = False,
) -> Standing:
    """Where one stage stands, given where the stages before it stand."""
    manifest, damage = _manifest(run, stage)
    recipe, unseen = recipe_now(study, run, stage, recorded=manifest.recipe.sources if manifest else None)
    behind: list[Stage] = [name for name in NEEDS[stage].inputs if upstream[name].state != "fresh"]
    if manifest is None:
        state, reason = ("stale", damage) if damage else _unfinished(study, run, stage, recipe, behind)
    elif behind:
        state, reason = "stale", f"{behind[0]} is {upstream[behind[0]].state}"
    else:
        state, reason = compare(run.root, manifest, recipe, ignore_versions=ignore_versions)
        if state == "fresh" and unseen:
            reason = f"as far as can be seen: {'; '.join(unseen)}"
    return Standing(StageStatus(stage, state, reason), recipe)


def recipe_now(
    study: Study,
    run: RunFolder,
    stage: Stage,
    *,
    recorded: Mapping[str, str] | None = None,
    pins: Pins | None = None,
) -> tuple[Recipe, list[str]]:
    """The recipe of a stage from what is there now, and what of it could not be looked at.

    Args:
        study: what is asked for.
        run: where earlier stages lie.
        stage: which stage.
        recorded: sources of its manifest, taken where a source is not here.
        pins: commits on the Hub; None takes those of the run folder.
    """
    inputs: dict[str, str] = {}
    for name in NEEDS[stage].inputs:
        manifest, _ = _manifest(run, name)
        inputs |= manifest.hashes if manifest else {}
    settled = pins or Pins.of(_manifest(run, "features")[0])
    sources, unseen = content_of(study, stage, pins=settled, recorded=recorded)
    return Recipe.of(study, stage, sources=sources, inputs=inputs), unseen


def parts_of(study: Study, run: RunFolder, stage: Stage) -> list[Part]:
    """The parts of a stage that has parts; none for the others.

    Raises:
        StoreError: if the plan, which says how many parts the trials have, cannot be read.
    """
    match stage:
        case "pairs":
            n = len(study.saes)
        case "trials":
            n = len(trial_parts(run.table("plan")))
        case _:
            n = 0
    return [Part(stage, k, n) for k in range(n)]


def _manifest(run: RunFolder, stage: Stage) -> tuple[Manifest | None, str]:
    try:
        return run.manifest(stage), ""
    except StoreError as error:
        return None, str(error).splitlines()[0]


def _unfinished(
    study: Study, run: RunFolder, stage: Stage, recipe: Recipe, behind: list[Stage]
) -> tuple[State, str]:
    folder = run.folder(stage)
    if not folder.is_dir() or not any(folder.iterdir()):
        return "absent", "not begun"
    if behind:
        return "partial", f"begun, but {behind[0]} is not fresh"
    parts = parts_of(study, run, stage)
    good = sum(run.good_part(part, recipe) is not None for part in parts)
    return "partial", f"{good} of {len(parts)} parts" if parts else "begun"
