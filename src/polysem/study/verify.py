"""Verification: does a run folder hold what its manifests say, is it complete, and do trials give the same numbers again?"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import Study
from polysem.errors import PolysemError, StoreError
from polysem.progress import SILENT, Reporter
from polysem.seeds import rng_for
from polysem.store.manifest import Manifest, StageStatus, damaged_outputs, platform_facts, version_of
from polysem.store.run import Part, RunFolder, trial_parts
from polysem.store.stages import NEEDS, ORDER, Stage
from polysem.store.tables import STAGES
from polysem.study.bench import Bench
from polysem.study.status import standing

log = logging.getLogger(__name__)

RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""Tolerance where device, packages or machine are not those of the run: float32 forward passes differ in the last bits,
and log-odds of rare tokens magnify them."""


def verify_run(folder: Path, *, sample: int = 3, reporter: Reporter = SILENT) -> list[str]:
    """Everything that is wrong with a run folder, in words; empty if nothing is.

    1. Files against the hashes in manifests, manifests against their own fingerprints.
    2. Every table against its schema; embeddings against the feature table.
    3. Every stage fresh: made from what the folder and the sources hold now, with whatever versions of packages.
    4. Plan and trials: no planned trial without a row, no row without a planned trial.
    5. A sample of batches run again: equal to the bit where device, dtype, packages and machine are those of the run, within
       tolerance elsewhere.

    Args:
        folder: the run folder.
        sample: how many batches to run again; which, follows from the study's seed and the plan. 0 loads no model.
        reporter: is told of the batches.

    Raises:
        StoreError: if the folder is no run folder.
        ConfigError: if its study.toml is not a study.
    """
    run = RunFolder.open(folder)
    study = run.study()
    findings = [*_files(run), *_stages(study, run)]
    if findings:
        return findings  # what is not whole is not worth running again
    findings += _complete(run)
    return findings + (_again(study, run, sample=sample, reporter=reporter) if sample else [])


def _files(run: RunFolder) -> Iterator[str]:
    for stage in ORDER:
        try:
            manifest = run.manifest(stage)
        except StoreError as error:
            yield _line(error)
            continue
        if manifest is None:
            yield f"{stage}: not finished"
            continue
        yield from (f"{stage}: {words}" for words in damaged_outputs(run.root, manifest.outputs))
        yield from (f"{stage}: {words}" for words in _tables(run, stage, manifest))


def _tables(run: RunFolder, stage: Stage, manifest: Manifest) -> Iterator[str]:
    for schema in STAGES.get(stage, ()):
        try:
            rows = run.table(schema.name).num_rows
            recorded = sum(manifest.outputs[file].rows or 0 for file in run.files(schema.name))
        except StoreError as error:
            yield _line(error)
            continue
        if rows != recorded:
            yield f"table {schema.name} has {rows} rows, {recorded} were written"
    if stage == "features":
        try:
            yield from _embeddings(run)
        except StoreError as error:
            yield _line(error)


def _embeddings(run: RunFolder) -> Iterator[str]:
    features, arrays = run.table("features", columns=["sae"]), run.embeddings()
    counts = {row["values"]: row["counts"] for row in pc.value_counts(features["sae"]).to_pylist()}
    if sorted(counts) != sorted(arrays):
        yield f"embeddings are of {sorted(arrays)}, features of {sorted(counts)}"
    for label in sorted({*counts} & {*arrays}):
        if len(arrays[label]) != counts[label]:
            yield f"embeddings of {label} have {len(arrays[label])} rows, features {counts[label]}"
        if not np.isfinite(arrays[label]).all():
            yield f"embeddings of {label} are not finite"


def _stages(study: Study, run: RunFolder) -> Iterator[str]:
    if reason := run.foreign(study):
        yield f"foreign: {reason}"
    known: dict[Stage, StageStatus] = {}
    for stage in ORDER:
        known[stage] = standing(study, run, stage, known, ignore_versions=True).status
        if known[stage].state not in ("fresh", "absent", "partial"):
            yield f"{stage}: {known[stage].state}: {known[stage].reason}"


def _complete(run: RunFolder) -> list[str]:
    planned = set(run.table("plan", columns=["trial_id"])["trial_id"].to_pylist())
    done = set(run.table("trials", columns=["trial_id"])["trial_id"].to_pylist())
    findings = []
    for words, odd in (
        ("planned trials have no row", planned - done),
        ("rows were never planned", done - planned),
    ):
        if odd:
            findings.append(f"trials: {len(odd)} {words} (first: {min(odd)})")
    return findings


def _again(study: Study, run: RunFolder, *, sample: int, reporter: Reporter) -> list[str]:
    """Findings of a sample of batches, run again."""
    from polysem.trials import run_batches

    plan, prompts, trials = run.table("plan"), run.table("prompts"), run.table("trials")
    batches = sorted(set(plan["batch"].to_pylist()))
    count = min(sample, len(batches))
    chosen = sorted(rng_for(study.seed, "verify").choice(batches, count, replace=False).tolist())
    bench = Bench(study, run)
    findings = []
    for batch in reporter.track(chosen, total=count, label="verify"):
        try:
            seen = run_batches(plan, prompts, bench.features, bench.model, bench.saes, batches=[batch])
        except PolysemError as error:
            return [*findings, f"batch {batch} cannot be run again: {_line(error)}"]
        recorded = trials.filter(pc.is_in(trials["trial_id"], seen["trial_id"].combine_chunks()))
        exact = _same_machine(run, bench, plan, batch)
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
            # top1_kept may flip on a tie and dtype is a name: both are facts, not numbers
            unequal = sum(a != b for a, b in zip(old.to_pylist(), new.to_pylist(), strict=True))
            if not exact and name == "top1_kept":
                log.warning("top1_kept differs in %d rows", unequal)
                continue
            yield f"{name} differs in {unequal} of {len(old)} rows" + ("" if exact else " (not a rounding)")
            continue
        a, b = (np.asarray(column.drop_null()) for column in (old, new))
        far = ~np.isclose(a, b, rtol=RELATIVE, atol=ABSOLUTE)
        if far.any():
            yield f"{name} differs in {far.sum()} of {len(old)} rows, by up to {np.abs(a - b).max():.3g}"


def _same_machine(run: RunFolder, bench: Bench, plan: pa.Table, batch: int) -> bool:
    """Whether the part that holds a batch was made where and with what we are now."""
    groups = trial_parts(plan)
    k = next(k for k, group in enumerate(groups) if batch in group)
    try:
        record = Manifest.read(run.root / Part("trials", k, len(groups)).record, rebuild="polysem trials")
    except StoreError:
        return False
    here: dict[str, Any] = {**bench.facts(), "platform": platform_facts()}
    packages = {name: version_of(name) for name in NEEDS["trials"].packages}
    keys = ("model", "threads", "platform")
    return record.recipe.packages == packages and all(record.facts.get(k) == here.get(k) for k in keys)


def _line(error: PolysemError) -> str:
    return str(error).splitlines()[0]
