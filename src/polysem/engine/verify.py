"""Verification: does a run folder hold what its manifests say, is it complete, and do trials give the same numbers again?"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import Study
from polysem.engine.context import StudyContext
from polysem.engine.status import Standings
from polysem.errors import PolysemError, StoreError
from polysem.places import Places
from polysem.progress import SILENT, Reporter
from polysem.seeds import rng_for
from polysem.store.manifest import (
    Manifest,
    Output,
    damaged_files,
    damaged_outputs,
    other_format,
    platform_facts,
    version_of,
)
from polysem.store.run import Part, RunFolder, trial_parts
from polysem.store.stages import REGISTRY, StageName, command, packages_of

log = logging.getLogger(__name__)

RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""Tolerance where device, packages or machine are not those of the run: float32 forward passes differ in the last bits,
and log-odds of rare tokens magnify them."""


def verify_run(
    folder: Path, *, sample: int = 3, inputs: Mapping[str, str] | None = None, reporter: Reporter = SILENT
) -> list[str]:
    """Everything that is wrong with a run folder, in words; empty if nothing is.

    1. Files against the hashes in manifests, manifests against their own fingerprints and the records of parts.
    2. Every table against its schema.
    3. Every stage fresh: made from what the folder and the sources hold now, with whatever versions of packages.
    4. What a stage has to say for itself (`Stage.verify`): embeddings against the feature table; no planned trial
       without a row, no row without a planned trial; effects of a transfer study against its trials.
    5. A sample of batches run again: equal to the bit where device, dtype, packages and machine are those of the run, within
       tolerance elsewhere.

    Args:
        folder: the run folder.
        sample: how many batches to run again; which, follows from the study's seed and the plan. 0 loads no model.
        inputs: models, SAEs and files that lie elsewhere now: reference as the study has it -> where it is.
        reporter: is told of the batches.

    Raises:
        StoreError: if the folder is no run folder, or one of another version of polysem.
        ConfigError: if its study.toml is not a study.
    """
    run = RunFolder.open(folder)
    study = run.study() if run.holds("study.toml") else None
    if error := other_format(folder):
        raise error
    places = run.places(inputs)
    seen = Standings(run, study, ignore_versions=True, places=places).all()
    findings = [words for stage in seen for words in _files(run, stage)]
    findings += [
        f"{name}: {status.state}: {status.reason}"
        for name, status in seen.items()
        if status.state not in ("fresh", "absent", "partial")
        and status.reason not in findings  # each said once
    ]
    if findings:
        return findings  # what is not whole is not worth running again
    for stage in seen:
        if REGISTRY[stage].verify:
            findings += REGISTRY[stage].load("verify")(run)
    return findings + (
        _again(study, run, places, sample=sample, reporter=reporter) if sample and study else []
    )


def _files(run: RunFolder, stage: StageName) -> Iterator[str]:
    """What of a stage is not as its manifest and the records of its parts say."""
    try:
        manifest = run.manifest(stage)
        if manifest is None:
            yield f"{stage}: not finished"
            return
        yield from (f"{stage}: {words}" for words in damaged_outputs(run.root, manifest.outputs))
        yield from (f"{stage}: {words}" for words in damaged_files(run.root, manifest.records))
        yield from _parts(run, stage, manifest)
    except StoreError as error:
        yield _line(error)
        return
    for schema in REGISTRY[stage].tables:
        try:
            rows = run.table(schema.name).num_rows
            recorded = sum(manifest.outputs[file].rows or 0 for file in run.files(schema.name))
        except StoreError as error:
            yield _line(error)
            continue
        if rows != recorded:
            yield f"table {schema.name} has {rows} rows, {recorded} were written"


def _parts(run: RunFolder, stage: StageName, manifest: Manifest) -> Iterator[str]:
    """Records of parts against the manifest that was made of them."""
    kept: dict[str, Output] = {}
    records = sorted(run.folder(stage).glob("part-*.json"))
    for path in records:
        record = Manifest.read(path, rebuild=command(stage, run.root))
        kept |= record.outputs
        if record.made_from.differences(manifest.made_from, ignore_versions=True):
            yield f"{stage}: {path.name} is of a part that was made from something else"
    if records and kept != manifest.outputs:
        yield f"{stage}: the records of its parts name other files than its manifest"


def embeddings(run: RunFolder) -> Iterator[str]:
    """Gloss embeddings against the feature table."""
    features, arrays = run.table("features", columns=["sae"]), run.embeddings()
    counts = {row["values"]: row["counts"] for row in pc.value_counts(features["sae"]).to_pylist()}
    if sorted(counts) != sorted(arrays):
        yield f"embeddings are of {sorted(arrays)}, features of {sorted(counts)}"
    for label in sorted({*counts} & {*arrays}):
        if len(arrays[label]) != counts[label]:
            yield f"embeddings of {label} have {len(arrays[label])} rows, features {counts[label]}"
        if not np.isfinite(arrays[label]).all():
            yield f"embeddings of {label} are not finite"


def complete(run: RunFolder) -> Iterator[str]:
    """Trials against the plan."""
    planned = set(run.table("plan", columns=["trial_id"])["trial_id"].to_pylist())
    done = set(run.table("trials", columns=["trial_id"])["trial_id"].to_pylist())
    for words, odd in (
        ("planned trials have no row", planned - done),
        ("rows were never planned", done - planned),
    ):
        if odd:
            yield f"trials: {len(odd)} {words} (first: {min(odd)})"


def _again(study: Study, run: RunFolder, places: Places, *, sample: int, reporter: Reporter) -> list[str]:
    """Findings of a sample of batches, run again."""
    from polysem.trials import run_batches

    plan, prompts, trials = run.table("plan"), run.table("prompts"), run.table("trials")
    batches = sorted(set(plan["batch"].to_pylist()))
    count = min(sample, len(batches))
    chosen = sorted(rng_for(study.seed, "verify").choice(batches, count, replace=False).tolist())
    context = StudyContext(study, run, places)
    findings = []
    for batch in reporter.track(chosen, total=count, label="verify"):
        try:
            seen = run_batches(
                *(plan, prompts, context.features, context.model, context.dictionaries),
                batches=[batch],
                word_start=not study.prompts.chat_template,
            )
        except PolysemError as error:
            return [*findings, f"batch {batch} cannot be run again: {_line(error)}"]
        recorded = trials.filter(pc.is_in(trials["trial_id"], seen["trial_id"].combine_chunks()))
        exact = _same_machine(run, context, plan, batch)
        findings += [f"batch {batch}: {words}" for words in compare_trials(recorded, seen, exact=exact)]
    return findings


def compare_trials(recorded: pa.Table, seen: pa.Table, *, exact: bool) -> Iterator[str]:
    """In words, every column in which two TRIALS tables of the same trials differ.

    Args:
        recorded: what is in the run folder.
        seen: what came out now.
        exact: to the bit; otherwise within RELATIVE and ABSOLUTE.
    """
    for name in recorded.column_names:
        old, new = recorded[name].combine_chunks(), seen[name].combine_chunks()
        if old.equals(new):
            continue
        if exact or not pa.types.is_floating(old.type) or not old.is_null().equals(new.is_null()):
            unequal = sum(a != b for a, b in zip(old.to_pylist(), new.to_pylist(), strict=True))
            yield f"{name} differs in {unequal} of {len(old)} rows" + ("" if exact else " (not a rounding)")
            continue
        a, b = (np.asarray(column.drop_null()) for column in (old, new))
        far = ~np.isclose(a, b, rtol=RELATIVE, atol=ABSOLUTE)
        if far.any():
            yield f"{name} differs in {far.sum()} of {len(old)} rows, by up to {np.abs(a - b).max():.3g}"


def _same_machine(run: RunFolder, context: StudyContext, plan: pa.Table, batch: int) -> bool:
    """Whether the part that holds a batch was made where and with what we are now."""
    groups = trial_parts(plan)
    k = next(k for k, group in enumerate(groups) if batch in group)
    try:
        record = run.record(Part("trials", k, len(groups)))
    except StoreError:
        return False
    here: dict[str, Any] = {**context.facts(), "platform": platform_facts()}
    packages = {name: version_of(name) for name in packages_of("trials")}
    keys = ("model", "threads", "platform")
    return record.made_from.packages == packages and all(record.facts.get(k) == here.get(k) for k in keys)


def _line(error: PolysemError) -> str:
    return str(error).splitlines()[0]
