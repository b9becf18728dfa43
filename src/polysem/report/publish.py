"""A finished run where others are: a data set or a page of the Hub, files for Neuronpedia, a line in an experiment tracker.

Nothing is sent unless it is asked for, and `polysem push --list` says before what would be.
"""

import gzip
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.errors import ConfigError, StoreError
from polysem.report.compare import findings
from polysem.report.source import Run, where
from polysem.store import io
from polysem.store.run import ORIGIN, SETTINGS
from polysem.store.stages import REGISTRY, command

BATCH = 1024
"""features in one file of Neuronpedia's layout"""
NEIGHBOURS = 128
"""interfering features that a row of it lists, as many as the site's own search gives"""
TRACKERS = ("trackio", "wandb", "mlflow")
"""names in `--track`, which are those of the modules"""
_CARD = """\
---
tags: [polysem, interpretability, sparse-autoencoders]
{front}---

# {name}

A study of polysemantic interference by polysem {version}: `{model}`, {saes}.

{findings}

`study.toml` is what was asked, each folder a stage with its manifest (hashes of everything that decided it), `report.html` the report. To look at it:

    hf download {repo} --repo-type {kind} --local-dir run
    polysem explore run
    polysem verify run
"""


def files_of(folder: Path) -> list[str]:
    """What a push takes of a run folder: settings, stages and pages. Not `origin.json`, which names folders of this machine (manifests do name the host that made them), no locks, caches or
    answers of servers.

    Raises:
        StoreError: if there is no report yet.
    """
    if not (folder / "report.html").is_file():
        Run.open(folder)  # which says what is no run folder
        raise StoreError(f"{folder} has no report: the study is not finished", hint=command("report", folder))
    stages = [
        path
        for name in REGISTRY
        for path in (folder / name).rglob("*")
        if (folder / name / "manifest.json").is_file()
    ]
    tops = [path for path in folder.iterdir() if path.name in SETTINGS or path.suffix == ".html"]
    taken = {
        path.relative_to(folder).as_posix()
        for path in (*tops, *stages)
        if path.is_file() and path.suffix != ".lock"
    }
    return sorted(taken - {ORIGIN})


def push_to_hub(folder: str | Path, repo: str, *, private: bool = True, space: bool = False) -> str:
    """Upload a finished run to the Hugging Face Hub; gives its address.

    Args:
        folder: the run folder.
        repo: OWNER/NAME; made if it does not exist.
        private: whether a repository that is made is private. One that exists stays as it is.
        space: the explorer's static export as a Space (a page in the browser), instead of the tables as a data set.

    Raises:
        StoreError: if the study is not finished, or the Hub refuses.
    """
    folder, kind = Path(folder), "space" if space else "dataset"
    files, card = files_of(folder), card_text(Run.open(folder), repo, space=space)
    with _hub(repo) as api:
        made = api.create_repo(
            repo, repo_type=kind, private=private, exist_ok=True, space_sdk="static" if space else None
        )
        api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repo, repo_type=kind)
        if not space:
            api.upload_folder(folder_path=folder, repo_id=repo, repo_type=kind, allow_patterns=files)
    return str(made)


def upload_space(export: Path, repo: str) -> None:
    """Upload a static export of the explorer into a Space that `push_to_hub(space=True)` made.

    Raises:
        StoreError: if the Hub refuses.
    """
    with _hub(repo) as api:
        api.upload_folder(folder_path=export, repo_id=repo, repo_type="space")


@contextmanager
def _hub(repo: str) -> Iterator[Any]:
    """The Hub's client; what it and the network refuse is said in our words."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield HfApi()
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise StoreError(
            f"{repo} could not be written: {error}", hint="hf auth login, then the same command"
        ) from error


def card_text(run: Run, repo: str, *, space: bool = False) -> str:
    """README.md of a pushed run."""
    rows = [f"- {row['question']}: {row['claim']}" for row in findings(run)]
    labels = ", ".join(f"`{entry.ref}`" for entry in run.study.saes)
    front = f"title: {json.dumps(run.study.name)}\nsdk: static\napp_file: index.html\n" if space else ""
    return _CARD.format(
        front=front, name=run.study.name, version=version("polysem"), model=run.study.model.ref, saes=labels,
        findings="\n".join(rows) or "No finding yet.", repo=repo, kind="space" if space else "dataset",
    )  # fmt: skip


def export_neuronpedia(folder: str | Path, out: Path, *, label: str, model_id: str, source_id: str) -> Path:
    """Glosses and pairs of one dictionary in the layout of Neuronpedia's bucket: `features/batch-N.jsonl.gz` (density, tokens that are written, and
    the interfering features as `topkCosSim*`) and `explanations/batch-N.jsonl.gz`; gives the folder.

    Activations and strengths are in units of unit-norm decoder rows there, so `maxActApprox` is the largest activation times `dec_norm`.

    Args:
        folder: the run.
        out: a new folder.
        label: which dictionary.
        model_id: Neuronpedia's name of the model, e.g. gemma-2-2b.
        source_id: its name of the dictionary, e.g. 20-gemmascope-res-16k.

    Raises:
        ConfigError: if the run has no such dictionary.
        StoreError: if `out` holds something.
    """
    run = Run.open(Path(folder))
    features = where(run.table("features"), sae=label)
    if not features.num_rows:
        known = sorted(set(run.table("features", columns=["sae"])["sae"].to_pylist()))
        raise ConfigError(f"the run has no dictionary {label!r}", hint=f"one of {', '.join(known) or 'none'}")
    if out.exists() and any(out.iterdir()):
        raise StoreError(f"{out} is not empty", hint="name a new folder")
    same = {"modelId": model_id, "layer": source_id}
    near = _neighbours(where(run.table("pairs"), sae=label, sae_j=label))
    rows = [
        same | _feature(row, near.get(row["feature"], ())) for row in features.sort_by("feature").to_pylist()
    ]
    glosses = where(run.table("glosses"), sae=label).sort_by(
        [("feature", "ascending"), ("gloss_index", "ascending")]
    )
    texts = [
        same
        | {
            "id": f"polysem-{source_id}-{row['feature']}-{row['gloss_index']}",
            "index": str(row["feature"]),
            "description": row["text"],
            "explanationModelName": row["explainer"] or row["source"],
            "typeName": "polysem",
        }
        for row in glosses.to_pylist()
    ]
    for kind, some in (("features", rows), ("explanations", texts)):
        _write_batches(out / kind, some)
    return out


def _neighbours(pairs: pa.Table) -> Mapping[int, list[tuple[int, float]]]:
    """Feature -> the others that interfere with it most, and their cosines."""
    near: dict[int, list[tuple[int, float]]] = {}
    columns = (pairs[name].to_pylist() for name in ("i", "j", "interference"))
    for i, j, cosine in zip(*columns, strict=True):
        near.setdefault(i, []).append((j, cosine))
        near.setdefault(j, []).append((i, cosine))
    return {k: sorted(some, key=lambda one: -abs(one[1]))[:NEIGHBOURS] for k, some in near.items()}


def _feature(row: Mapping[str, Any], near: Iterable[tuple[int, float]]) -> dict[str, Any]:
    near, peak = list(near), row["max_act"]
    return {
        "index": str(row["feature"]),
        "maxActApprox": None if peak is None else peak * row["dec_norm"],
        "frac_nonzero": row["density"],
        "pos_str": row["tokens_out_str"],
        "pos_values": row["tokens_out_logit"],
        "neg_str": row["tokens_bottom_str"],
        "neuron_alignment_indices": row["neuron_alignment"],
        "neuron_alignment_values": row["neuron_alignment_values"],
        "topkCosSimIndices": [k for k, _ in near],
        "topkCosSimValues": [cosine for _, cosine in near],
        "hookName": row["site"],
    }


def _write_batches(folder: Path, rows: list[dict[str, Any]]) -> None:
    for n in range(0, len(rows), BATCH):
        lines = "".join(
            json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows[n : n + BATCH]
        )
        with io.replacing(folder / f"batch-{n // BATCH}.jsonl.gz") as stream:
            stream.write(gzip.compress(lines.encode(), compresslevel=5, mtime=0))


def track(folder: str | Path, to: str) -> None:
    """Log a finished run's numbers once to an experiment tracker: every declared question's estimate and interval, and the study's settings.

    Args:
        folder: the run.
        to: TRACKER:PROJECT, e.g. trackio:interference, wandb:interference or mlflow:interference.

    Raises:
        ConfigError: if the tracker is not known or not installed.
    """
    name, _, project = to.partition(":")
    if name not in TRACKERS or not project:
        raise ConfigError(f"--track {to!r}: expected {' or '.join(f'{known}:PROJECT' for known in TRACKERS)}")
    try:
        tracker = importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} is not installed", hint=f"pip install {name}") from error
    run = Run.open(Path(folder))
    asked, numbers = run.study.model_dump(mode="json"), metrics(run)
    if name == "mlflow":
        tracker.set_experiment(project)
        with tracker.start_run(run_name=run.study.name):
            tracker.log_dict(asked, "study.json")
            tracker.log_metrics(numbers)
        return
    tracker.init(project=project, name=run.study.name, config=asked)
    tracker.log(numbers)
    tracker.finish()


def metrics(run: Run) -> dict[str, float]:
    """The numbers of a run's declared questions, by name; none that is missing."""
    found: dict[str, float] = {}
    for row in findings(run):
        for part in ("estimate", "lo", "hi"):
            if row[part] is not None and np.isfinite(row[part]):
                found[f"{row['contrast']}/{row['token_set']}/{part}"] = float(row[part])
    done = run.table("trials", columns=["status"])
    found["trials/ok"] = float(pc.sum(pc.equal(done["status"], "ok")).as_py() or 0)
    found["trials/rows"] = float(done.num_rows)
    return found
