"""The trials on shards, workers and a Ray cluster, some of them killed: the same tables to the byte. And the atlas."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from polysem.config import parse_study
from polysem.engine import atlas as atlas_stage
from polysem.engine import make_beside, run_study, workers
from polysem.engine.atlas import AtlasOptions
from polysem.engine.context import StudyContext
from polysem.engine.cost import _per_block, _places, _Sample, _Stopwatch, _Stretch, estimate_cost
from polysem.errors import ConfigError, StoreError
from polysem.plan import Plan, describe_plan
from polysem.saes import load_sae
from polysem.store import io
from polysem.store.run import RunFolder, trial_parts
from polysem.store.tables import ATLAS_DENSITY, ATLAS_TOP
from polysem.trials import run_batches
from polysem.worlds.tiny import tiny_model
from support.sae_fixtures import WRITERS, planted
from support.tiny import save_tiny_model

STUDY = """
name = "scale"
[model]
ref = "{folder}/model"
device = "cpu"
[[saes]]
ref = "{folder}/sae"
site = "blocks.0.hook_resid_post"
max_fvu = 1e6
allow_other_model = true
[corpus]
ref = "{folder}/text.txt"
n_tokens = 1000
context = 32
[prompts]
source = "file:{folder}/prompts.txt"
[pairs]
max_similarity = 1.0
[plan]
n_targets = 4
sources_per_bin = 2
n_random = 2
doses = [0.1, 0.3]
batch_rows = 4
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Path:
    """A study with a fresh plan of several parts, its trials not begun."""
    folder = tmp_path_factory.mktemp("scale")
    save_tiny_model("gpt_neox", folder / "model")
    model = tiny_model("gpt_neox")
    rng = np.random.default_rng(0)
    text = "\n\n".join(model.detokenize(rng.integers(4, 64, 40).tolist()) for _ in range(80))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    prompts = [model.detokenize(rng.integers(4, 64, 8).tolist()) for _ in range(7)]
    (folder / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    WRITERS["saelens-v6-topk"](
        folder / "sae", planted(d_in=model.spec.d_model, layer=0, hook="hook_resid_post", k=4)
    )
    study = parse_study(STUDY.format(folder=folder))
    run_study(study, folder / "planned", stages=["features", "pairs", "plan"])
    assert len(trial_parts(RunFolder(folder / "planned").table("plan"))) >= 4
    return folder / "planned"


@pytest.fixture(scope="module")
def serial(planned: Path, tmp_path_factory) -> dict[str, bytes]:
    """The trials of one process, one thread."""
    return tables(finish(copy(planned, tmp_path_factory.mktemp("serial") / "run")))


@pytest.fixture
def out(planned: Path, tmp_path: Path) -> Path:
    return copy(planned, tmp_path / "run")


def copy(planned: Path, to: Path) -> Path:
    shutil.copytree(planned, to)
    return to


def finish(out: Path, **options) -> Path:
    run_study(out / "study.toml", out, stages=["trials"], **options)
    return out


def tables(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "trials").glob("*.parquet"))}


def test_shards_in_shuffled_order(out, serial):
    for k in (3, 1, 5, 4, 2):
        finish(out, shard=(k, 5))
    assert tables(finish(out)) == serial


def test_two_workers(out, serial):
    assert tables(finish(out, workers=2)) == serial
    assert not list(out.glob(".lock*"))


def test_more_workers_than_parts(out, serial, monkeypatch):
    started = []
    start = workers._start
    monkeypatch.setattr(
        workers, "_start", lambda out, k, n, options: (started.append((k, n)), start(out, k, n, options))[1]
    )
    assert tables(finish(out, workers=50)) == serial
    assert started == [(k, len(serial)) for k in range(1, len(serial) + 1)]


def test_a_worker_killed_in_the_middle_costs_its_shard_only(out, serial, monkeypatch, caplog):
    start, victims = workers._start, []

    def and_kill(folder, k, n, options):
        worker = start(folder, k, n, options)
        if k == 1 and not victims:
            victims.append(worker)
            threading.Thread(target=_kill_after_a_part, args=(worker.process, folder)).start()
        return worker

    monkeypatch.setattr(workers, "_start", and_kill)
    assert tables(finish(out, workers=2)) == serial
    assert victims[0].process.returncode == -signal.SIGKILL
    assert "worker 1 of 2 was killed (SIGKILL, perhaps out of memory)" in caplog.text


def _kill_after_a_part(process, folder):
    while process.poll() is None and not (folder / ".lock-trials-00001-of-00002").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)


def test_a_worker_that_is_killed_again_ends_the_run_and_keeps_what_is_done(out, serial, monkeypatch):
    start = workers._start

    def kill_the_first(folder, k, n, options):
        worker = start(folder, k, n, options)
        if k == 1:
            worker.process.kill()
        return worker

    monkeypatch.setattr(workers, "_start", kill_the_first)
    with pytest.raises(StoreError, match="shard 1/2 was killed twice") as caught:
        finish(out, workers=2)
    assert "batch_rows" in str(caught.value.hint)
    monkeypatch.undo()
    kept = {name: (out / "trials" / name).stat().st_mtime_ns for name in tables(out)}
    assert len(kept) == len(serial) // 2
    assert tables(finish(out)) == serial
    assert all((out / "trials" / name).stat().st_mtime_ns == when for name, when in kept.items())


def test_a_worker_that_fails_says_why(out):
    (out / "features" / "features.parquet").write_bytes(b"gone")
    with pytest.raises(StoreError):
        finish(out, workers=2)


def test_a_fault_in_the_worker_is_told_in_its_words(out, monkeypatch):
    start = workers._start
    monkeypatch.setattr(workers, "_start", lambda out, k, n, options: start(out, k, n, ["--no-such-option"]))
    with pytest.raises(StoreError, match="no-such-option"):
        finish(out, workers=2)


def test_workers_and_shards_exclude_each_other(out):
    with pytest.raises(ConfigError, match="a shard is run by one worker"):
        finish(out, workers=2, shard=(1, 2))
    with pytest.raises(ConfigError, match="--workers -1"):
        finish(out, workers=-1)


def test_workers_make_what_is_before_the_trials_and_what_follows(planned, tmp_path, serial):
    report = run_study(planned / "study.toml", tmp_path / "whole", workers=2)
    assert report.name == "report.html"
    assert tables(tmp_path / "whole") == serial


def test_a_fresh_study_starts_no_worker(out, monkeypatch):
    finish(out)
    monkeypatch.setattr(workers, "_start", lambda *_: pytest.fail("a worker was started"))
    finish(out, workers=2)


def test_ray_that_is_not_there_is_said(out, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="Ray is not installed"):
        finish(out, engine="ray")


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="ray is not installed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


def test_a_ray_cluster(cluster, out, serial):
    assert tables(finish(out, engine="ray")) == serial


def test_a_ray_task_killed_in_the_middle(cluster, out, serial, caplog):
    lock = out / ".lock-trials-00001-of-00002"

    def kill():
        import json

        while not lock.exists():
            time.sleep(0.01)
        os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)

    threading.Thread(target=kill).start()
    assert tables(finish(out, engine="ray", workers=2)) == serial
    assert "the task of shard 1/2 died" in caplog.text


def test_a_ray_node_with_other_versions_is_refused(cluster, out, monkeypatch):
    from polysem.engine import ray as on_ray
    from polysem.errors import MismatchError

    # Tasks import the module anew, so that only the driver has the other version.
    real = on_ray.version_of
    monkeypatch.setattr(on_ray, "version_of", lambda name: "0.0" if name == "torch" else real(name))
    with pytest.raises(MismatchError, match=r"has other versions: .*torch"):
        finish(out, engine="ray")


ATLAS = AtlasOptions(n_prompts=3, top=5, sample=10, sample_prompts=2)


def atlas_files(out: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted((out / "atlas").iterdir())
        if path.suffix in (".parquet", ".safetensors")
    }


def test_the_atlas_of_a_run_folder(out, tmp_path):
    make_beside("atlas", out, ATLAS)
    fit = RunFolder(out).table("atlas_fit").to_pylist()
    label = fit[0]["sae"]
    gradients = io.read_arrays(out / "atlas" / "00-gradients.safetensors", rebuild="")
    top = io.read_table(out / "atlas" / "00-atlas_top.parquet", ATLAS_TOP, rebuild="").to_pylist()
    density = io.read_table(out / "atlas" / "00-atlas_density.parquet", ATLAS_DENSITY, rebuild="")
    sae = load_sae(RunFolder(out).study().saes[0].ref, site="blocks.0.hook_resid_post")
    unit = sae.W_dec.double() / sae.W_dec.double().norm(dim=1, keepdim=True)
    effects = torch.from_numpy(gradients["gradients"]).double() @ unit.T
    rows = {int(feature): k for k, feature in enumerate(gradients["features"])}
    for row in top:
        assert row["effect"] == pytest.approx(
            float(effects[rows[row["target"]], row["source"]]), rel=1e-4, abs=1e-6
        )
    n_targets, n_sources = len(rows), len(unit)
    assert fit[0]["n_pairs"] == n_targets * (n_sources - 1)
    by_interference = density.filter(pc.equal(density["axis"], "interference"))
    assert pc.sum(by_interference["count"]).as_py() == fit[0]["n_pairs"]
    assert {row["stratum"] for row in fit} == {"uniform", "top"}
    assert all(row["n"] > 0 and row["r2"] is not None and row["sae"] == label for row in fit)
    again = copy(out, tmp_path / "again")
    shutil.rmtree(again / "atlas")
    make_beside("atlas", again, ATLAS)
    assert atlas_files(again) == atlas_files(out)


def test_a_finished_atlas_is_left_alone_and_a_damaged_or_other_one_made_again(out, monkeypatch):
    make_beside("atlas", out, ATLAS)
    first = atlas_files(out)
    monkeypatch.setattr(atlas_stage, "compute", lambda *_: pytest.fail("made again"))
    make_beside("atlas", out, ATLAS)
    monkeypatch.undo()
    (out / "atlas" / "00-atlas_top.parquet").write_bytes(b"half")
    make_beside("atlas", out, ATLAS)
    assert atlas_files(out) == first
    make_beside("atlas", out, replace(ATLAS, token_set="in"))
    assert atlas_files(out) != first


def test_an_atlas_without_a_plan_is_refused(out):
    (out / "plan" / "manifest.json").unlink()
    with pytest.raises(StoreError, match="atlas needs plan"):
        make_beside("atlas", out, ATLAS)
    with pytest.raises(ConfigError, match="token set 'both'"):
        make_beside("atlas", out, replace(ATLAS, token_set="both"))


def test_atlas_on_the_command_line(out):
    options = ["--out", str(out), "--prompts", "2", "--sample", "5"]
    run = subprocess.run(
        [sys.executable, "-m", "polysem", "atlas", str(out / "study.toml"), *options],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "uniform: R2" in run.stdout
    assert "2 prompts" in run.stdout


def test_the_cost_of_a_plan_counts_its_rows_and_foretells_its_time(out):
    cost = estimate_cost(out)
    counts = describe_plan(Plan(RunFolder(out).table("plan"), RunFolder(out).table("prompts")))
    assert tables(out) == {}
    assert cost.batches == counts["batches"]
    assert counts["forward_rows"] <= cost.rows <= counts["forward_rows"] + counts["unmatched"]
    run = RunFolder(out)
    plan, prompts, bench = run.table("plan"), run.table("prompts"), StudyContext(run.study(), run)
    args = (plan, prompts, bench.features, bench.model, bench.saes)
    parts = trial_parts(plan)
    run_batches(*args, batches=parts[0])
    start = time.process_time()
    for part in parts:
        run_batches(*args, batches=part)
    spent = time.process_time() - start
    assert 0.5 * spent < cost.cpu_seconds < 2.0 * spent  # an order of magnitude; a test is no place for more
    assert f"{cost.rows} rows in {cost.batches} batches" in cost.text()
    assert sum(cost.by_sae.values()) == pytest.approx(cost.cpu_seconds)
    assert set(cost.by_sae) == set(plan["sae"].to_pylist())
    assert cost.sampled_batches <= cost.batches


def test_cost_grows_with_the_blocks_behind_an_edit_and_never_falls_below_what_was_seen():
    def sample(left: int, rate: float) -> _Sample:
        return _Sample(left, np.array([9.0, 9.0]), np.array([2 * rate, rate]))

    rates = _per_block([sample(1, 3.0), sample(3, 5.0), sample(5, 7.0)])
    assert rates(2) == pytest.approx([8.0, 4.0])
    assert rates(np.array([0, 12])) == pytest.approx(np.array([[6.0, 3.0], [28.0, 14.0]]))
    flat = _per_block([sample(1, 4.0), sample(5, 3.0)])  # noise: deeper is not cheaper
    assert flat(1) == pytest.approx(flat(9))
    assert _per_block([sample(2, 3.0)])(7) == pytest.approx([6.0, 3.0])


def test_what_is_done_once_is_told_from_what_every_batch_costs():
    watch = _Stopwatch()
    watch.laps = [np.array([s, s]) for s in (5.0, 2.0, 2.0, 4.0)]
    watch.whole = np.array([14.0, 14.0])
    # the first batch has made something for all; the last one has twice the rows; a second lies before the first
    sample = _Sample.of(_Stretch("s", "feature", 3, [0, 1, 2, 3, 4], [10, 10, 10, 20, 10], 60), watch)
    assert sample.rate == pytest.approx([0.2, 0.2])
    assert sample.once == pytest.approx([4.0, 4.0])


def test_places_are_of_every_locus_and_depth_and_no_remnants():
    def stretch(locus: str, left: int, n: int) -> _Stretch:
        return _Stretch("s", locus, left, list(range(n)), [1] * n, n)

    plan = [stretch("feature", left, 64) for left in range(6)] + [stretch("feature", 9, 3)]
    assert [place.left for place in _places(plan, 4)] == [0, 2, 3, 5]
    both = [*plan, stretch("prompt", 2, 7), stretch("prompt", 4, 7), stretch("prompt", 6, 7)]
    assert [(place.locus, place.left) for place in _places(both, 4)] == [
        *(("feature", 0), ("feature", 5), ("prompt", 2), ("prompt", 6))
    ]


def test_no_plan_has_no_cost(out):
    (out / "plan" / "manifest.json").unlink()
    with pytest.raises(StoreError, match="has no plan to cost"):
        estimate_cost(out)
