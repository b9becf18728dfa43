"""The trials as tasks of a Ray cluster: each task runs a shard, as a scheduler's or a worker's would.

Every node must see the run folder under the same path, and have the same versions of the packages that decide
a trial: both are asked of every node before anything runs. Tasks share nothing but the folder, so a task that
dies with its process or its node costs its unfinished parts; it is sent again, a few times. Ray is optional:
`pip install "polysem[ray]"`.
"""

import importlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polysem.engine.workers import forget_lock, lock_name, steps
from polysem.errors import ConfigError, MismatchError, PolysemError, StoreError
from polysem.progress import SILENT, Reporter
from polysem.store.manifest import version_of
from polysem.store.run import RunFolder, trial_parts
from polysem.store.stages import packages_of

log = logging.getLogger(__name__)

_TRIES = 3
_POLL_S = 0.5


def run_on_ray(
    out: Path, workers: int = 0, *, reporter: Reporter = SILENT, ignore_versions: bool = False
) -> None:
    """Run the trials of a run folder whose plan is fresh on a Ray cluster.

    Joins the cluster of this process, or of the environment (`RAY_ADDRESS`), or begins one on this machine.

    Args:
        out: the run folder; every node must see it under this path.
        workers: shards; 0 takes as many as the cluster has CPUs (GPUs, for a study on `cuda`).
        reporter: is told of finished parts.
        ignore_versions: let nodes have other versions of packages.

    Raises:
        ConfigError: if Ray is not installed, or the cluster has no GPU for a study on `cuda`.
        MismatchError: if a node has other versions, or does not see the folder.
        StoreError: if a shard fails, or dies more than twice.
    """
    ray = _ray()
    begun = not ray.is_initialized()
    if begun:
        ray.init(log_to_driver=False, configure_logging=False)
    try:
        run = RunFolder.open(out.resolve())
        gpus = run.study().model.device.startswith("cuda")
        capacity = int(ray.cluster_resources().get("GPU" if gpus else "CPU", 0))
        if gpus and not capacity:
            raise ConfigError(
                "the study runs on cuda, and the Ray cluster has no GPU", hint='set model.device = "cpu"'
            )
        _check_nodes(ray, run.root, ignore_versions=ignore_versions)
        n_parts = len(trial_parts(run.table("plan")))
        n = min(n_parts, workers or max(1, capacity))
        with steps(run.root, n_parts, reporter) as step:
            _run(
                ray, run.root, n, step, needs={"num_gpus": 1} if gpus else {}, ignore_versions=ignore_versions
            )
    finally:
        if begun:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]  (an extra)
    except ImportError as error:
        raise ConfigError("Ray is not installed", hint='pip install "polysem[ray]"') from error
    return ray


def _run(
    ray: Any, out: Path, n: int, step: Any, *, needs: Mapping[str, float], ignore_versions: bool
) -> None:
    """Send every shard, and send again those that die."""
    task = ray.remote(num_cpus=1, max_retries=0, **needs)(_shard)
    tries = dict.fromkeys(range(1, n + 1), 1)
    waiting = {task.remote(str(out), k, n, ignore_versions): k for k in tries}
    try:
        while waiting:
            done, _ = ray.wait(list(waiting), timeout=_POLL_S)
            step.look()
            for ref in done:
                k = waiting.pop(ref)
                try:
                    problem = ray.get(ref)
                except ray.exceptions.RayTaskError as error:  # raised inside the task: no death, a bug
                    raise StoreError(f"shard {k}/{n} failed on the Ray cluster: {error}") from error
                except ray.exceptions.RayError as error:  # its process, its node or its memory is gone
                    if tries[k] == _TRIES:
                        raise StoreError(
                            f"the task of shard {k}/{n} died {_TRIES} times: {type(error).__name__}",
                            hint="if memory ran out: lower plan.batch_rows, or give fewer --workers",
                        ) from error
                    log.warning("the task of shard %d/%d died (%s); sent again", k, n, type(error).__name__)
                    tries[k] += 1
                    forget_lock(out, k, n)
                    waiting[task.remote(str(out), k, n, ignore_versions)] = k
                    continue
                if problem:
                    raise StoreError(f"shard {k}/{n} failed on the Ray cluster: {problem}")
    finally:
        for ref in waiting:
            ray.cancel(ref, force=True)


def _shard(out: str, k: int, n: int, ignore_versions: bool) -> str:
    """Run a shard where Ray puts it; gives the error in words, or ''."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from polysem.engine import run_study

    torch.set_num_threads(1)
    folder = Path(out)
    try:
        study = RunFolder.open(folder).root / "study.toml"
        run_study(study, folder, stages=["trials"], shard=(k, n), ignore_versions=ignore_versions)
    except PolysemError as error:
        return f"{lock_name(k, n)}: {error}"
    return ""


def _check_nodes(ray: Any, out: Path, *, ignore_versions: bool) -> None:
    """Ask every node what it has.

    Raises:
        MismatchError: naming the node and what differs.
    """
    strategies = importlib.import_module("ray.util.scheduling_strategies")
    probe = ray.remote(num_cpus=0, max_retries=0)(_facts)
    here = _facts(str(out))
    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = {
        node["NodeManagerAddress"]: probe.options(
            scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(str(out))
        for node in nodes
    }
    for address, ref in asked.items():
        there = ray.get(ref)
        if there["plan"] != here["plan"]:
            raise MismatchError(
                f"Ray node {address} does not see the run folder {out}",
                hint="put --out on a file system that all nodes share, under the same path",
            )
        odd = [
            f"{name} {there['versions'][name]} (here {version})"
            for name, version in here["versions"].items()
            if there["versions"][name] != version
        ]
        if odd and not ignore_versions:
            raise MismatchError(
                f"Ray node {address} has other versions: {', '.join(odd)}",
                hint="install the same versions on every node, or give --ignore-versions",
            )


def _facts(out: str) -> dict[str, Any]:
    """What decides a trial on a node: the plan it sees and its packages."""
    from polysem.store import io

    return {
        "plan": io.sha256_of(Path(out) / "plan" / "manifest.json"),
        "versions": {name: version_of(name) for name in packages_of("trials")},
    }
