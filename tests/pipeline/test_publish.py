"""What leaves the machine: files of a push up to the Hub's own signatures, Neuronpedia's layout read back, a tracker's calls."""

import contextlib
import gzip
import inspect
import json
import shutil
import sys
import types

import httpx
import huggingface_hub
import pytest
from typer.testing import CliRunner

from polysem.cli.app import app
from polysem.errors import ConfigError, StoreError
from polysem.glosses.export import open_export
from polysem.report import open_run, write_report
from polysem.report.publish import export_neuronpedia, files_of, push_to_hub, track
from support.synthetic import SyntheticStudy, synthetic_run

WORLD = SyntheticStudy(n_features=80, n_targets=3, n_prompts=4, doses=(0.1,), sources_per_bin=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = synthetic_run(tmp_path_factory.mktemp("run"), WORLD)
    write_report(folder)
    (folder / "origin.json").write_text('{"folder": "/home/somebody/secret"}')
    (folder / "panel").mkdir()
    (folder / "panel" / "answers.json").write_text("{}")
    return folder


@pytest.fixture
def hub(monkeypatch):
    """The Hub's client, whose calls are bound to its real signatures and kept instead of sent."""
    calls = []

    def kept(name):
        signature = inspect.signature(getattr(huggingface_hub.HfApi, name))

        def call(self, *args, **kwargs):
            calls.append((name, signature.bind(self, *args, **kwargs).arguments))
            return "https://hub.test/me/study"

        return call

    fake = type("HfApi", (), {name: kept(name) for name in ("create_repo", "upload_file", "upload_folder")})
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    return calls


def test_a_push_takes_the_study_and_no_folder_of_this_machine(run, hub):
    assert push_to_hub(run, "me/study") == "https://hub.test/me/study"
    (made, repo), (_, card), (_, sent) = hub
    assert (made, repo["repo_type"], repo["private"]) == ("create_repo", "dataset", True)
    text = card["path_or_fileobj"].decode()
    assert "polysem verify run" in text
    assert open_run(run).study.model.ref in text
    assert sent["allow_patterns"] == files_of(run)
    assert {"study.toml", "report.html", "effects/effects.parquet", "effects/manifest.json"} <= set(
        files_of(run)
    )
    assert not [name for name in files_of(run) if "origin" in name or "panel" in name]


def test_a_space_is_the_static_export(run, hub):
    said = CliRunner().invoke(app, ["push", str(run), "me/study", "--space", "--public"])
    assert said.exit_code == 0, said.output
    (_, repo), (_, card), (name, sent) = hub
    assert (repo["space_sdk"], repo["private"]) == ("static", False)
    assert "sdk: static" in card["path_or_fileobj"].decode()
    assert (name, sent["repo_type"], sent["folder_path"].name) == ("upload_folder", "space", "space")


def test_what_would_be_sent_is_said_and_nothing_is(run, hub):
    said = CliRunner().invoke(app, ["push", str(run), "me/study", "--list"])
    assert said.stdout.split() == files_of(run)
    said = CliRunner().invoke(app, ["push", str(run), "me/study", "--list", "--json"])
    assert json.loads(said.stdout) == {"repo": "me/study", "files": files_of(run)}
    assert hub == []


def test_an_unfinished_run_is_not_pushed(run, tmp_path):
    with pytest.raises(StoreError, match="no run folder"):
        push_to_hub(tmp_path, "me/study")
    begun = shutil.copytree(run, tmp_path / "begun")
    (begun / "report.html").unlink()
    with pytest.raises(StoreError, match="polysem report"):
        push_to_hub(begun, "me/study")


def test_a_hub_that_cannot_be_reached_is_said(run, monkeypatch):
    def unreachable(*args, **kwargs):
        raise httpx.ConnectError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", unreachable)
    with pytest.raises(StoreError, match=r"me/study could not be written: no route(.|\n)*hf auth login"):
        push_to_hub(run, "me/study")


def test_what_neuronpedia_gets_is_what_the_run_holds(run, tmp_path):
    label = WORLD.saes[0]
    folder = export_neuronpedia(
        run, tmp_path / "np", label=label, model_id="gpt2-small", source_id="6-res-jb"
    )
    export = open_export(str(folder))
    rows = {int(row.fields["index"]): row.fields for row in export.rows("features")}
    assert sorted(rows) == list(range(80))
    one = next(p for p in open_run(run).table("pairs").to_pylist() if p["sae"] == p["sae_j"] == label)
    near = dict(zip(rows[one["i"]]["topkCosSimIndices"], rows[one["i"]]["topkCosSimValues"], strict=True))
    assert near[one["j"]] == one["interference"]
    sizes = [abs(value) for value in rows[one["i"]]["topkCosSimValues"]]
    assert sizes == sorted(sizes, reverse=True)
    texts = [row.fields for row in export.rows("explanations")]
    told = open_run(run).table("glosses").to_pylist()
    assert [t["description"] for t in texts] == [g["text"] for g in told if g["sae"] == label]
    first = (folder / "features" / "batch-0.jsonl.gz").read_bytes()
    assert json.loads(gzip.decompress(first).splitlines()[0])["layer"] == "6-res-jb"
    with pytest.raises(ConfigError, match="no dictionary"):
        export_neuronpedia(run, tmp_path / "x", label="none", model_id="m", source_id="s")
    with pytest.raises(StoreError, match="not empty"):
        export_neuronpedia(run, folder, label=label, model_id="m", source_id="s")


def test_mlflow_keeps_the_study_and_its_numbers_as_one_run(run, monkeypatch):
    told = []

    @contextlib.contextmanager
    def start_run(*, run_name):
        told.append(("run", run_name))
        yield
        told.append(("end", run_name))

    calls = {
        "set_experiment": lambda name: told.append(("experiment", name)),
        "start_run": start_run,
        "log_dict": lambda asked, file: told.append((file, asked["model"]["ref"])),
        "log_metrics": lambda numbers: told.append(("metrics", set(map(type, numbers.values())))),
    }
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(**calls))
    track(run, "mlflow:mine")
    study = open_run(run).study
    assert told == [
        ("experiment", "mine"),
        ("run", study.name),
        ("study.json", study.model.ref),
        ("metrics", {float}),
        ("end", study.name),
    ]


def test_a_tracker_is_told_once_and_only_if_it_is_asked_for(run, monkeypatch):
    told = []
    calls = {
        "init": lambda *, project, name, config: told.append((project, name, config["model"]["ref"])),
        "log": lambda numbers: told.append(numbers),
        "finish": lambda: told.append("end"),
    }
    monkeypatch.setitem(sys.modules, "trackio", types.SimpleNamespace(**calls))
    track(run, "trackio:mine")
    (project, *_), numbers, end = told
    assert (project, end) == ("mine", "end")
    assert numbers["trials/ok"] <= numbers["trials/rows"] == open_run(run).table("trials").num_rows
    assert any(name.endswith("/estimate") for name in numbers)
    for wrong in ("trackio", "other:mine"):
        with pytest.raises(ConfigError, match="expected trackio:PROJECT or wandb:PROJECT or mlflow:PROJECT"):
            track(run, wrong)
