"""Relative paths of a study follow its file, wherever a command is run and wherever the folders go afterwards."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from polysem.config import parse_study
from polysem.engine.sources import sources_of
from polysem.engine.verify import verify_run
from polysem.places import Places
from polysem.vocabulary import similarity_name
from polysem.worlds.tiny import tiny_model
from support.sae_fixtures import WRITERS, planted
from support.tiny import save_tiny_model

STUDY = """
[model]
ref = "model"
[[saes]]
ref = "sae"
site = "blocks.0.hook_resid_post"
max_fvu = 1e9
allow_other_model = true
[corpus]
ref = "text.txt"
n_tokens = 400
context = 20
[glosses]
source = "file:glosses.jsonl"
[prompts]
source = "file:prompts.txt"
n = 6
[pairs]
max_similarity = 1.0
[plan]
n_targets = 4
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with a study and everything that it names beside it."""
    folder = tmp_path_factory.mktemp("places") / "project"
    folder.mkdir()
    save_tiny_model("gpt_neox", folder / "model")
    model = tiny_model("gpt_neox")
    rng = np.random.default_rng(0)
    lines = [model.detokenize(rng.integers(4, 64, 40).tolist()) for _ in range(80)]
    (folder / "text.txt").write_text("\n\n".join(lines), encoding="utf-8")
    prompts = [model.detokenize(rng.integers(4, 64, 8).tolist()) for _ in range(7)]
    (folder / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    sae = planted(d_in=model.spec.d_model, layer=0, hook="hook_resid_post", k=4)
    WRITERS["saelens-v6-topk"](folder / "sae", sae)
    glosses = [{"index": i, "description": f"word {i}"} for i in range(sae.d_sae)]
    (folder / "glosses.jsonl").write_text("\n".join(map(json.dumps, glosses)), encoding="utf-8")
    (folder / "study.toml").write_text(STUDY, encoding="utf-8")
    return folder


def polysem(*words: object, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "polysem", *map(str, words)], cwd=cwd, capture_output=True, text=True
    )


def stored(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.parquet"))}


@pytest.fixture(scope="module")
def elsewhere(project: Path) -> Path:
    """The plan of the study, made from another working directory."""
    cwd = project.parent / "elsewhere"
    cwd.mkdir()
    for stage in ("features", "pairs", "plan"):
        made = polysem(stage, "../project/study.toml", "--out", "runs/mine", cwd=cwd)
        assert made.returncode == 0, made.stderr
    return cwd / "runs" / "mine"


def test_where_a_command_is_run_changes_no_byte_of_a_table(project, elsewhere):
    for stage in ("features", "pairs", "plan"):
        assert polysem(stage, "study.toml", "--out", "run", cwd=project).returncode == 0
    assert stored(project / "run") == stored(elsewhere)
    assert verify_run(elsewhere, sample=0)[:1] == ["trials: not finished"]


def test_its_own_copy_of_the_study_goes_on_with_it(elsewhere):
    again = polysem("plan", elsewhere / "study.toml", "--out", elsewhere, cwd=Path("/"))
    assert again.returncode == 0, again.stderr
    assert "..." not in again.stderr  # nothing was made again


def test_folders_that_move_together_still_find_each_other(project, elsewhere, tmp_path):
    shutil.copytree(project.parent, tmp_path / "moved", ignore=shutil.ignore_patterns("run"))
    hidden = project.with_name("hidden")
    os.rename(project, hidden)
    try:
        said = polysem("status", tmp_path / "moved" / "elsewhere" / "runs" / "mine", cwd=Path("/"))
    finally:
        os.rename(hidden, project)
    assert "is not here" not in said.stdout
    assert said.stdout.count("fresh") >= 3


def test_inputs_that_moved_are_named_and_known_by_their_content(project, elsewhere, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(elsewhere, alone)
    (alone / "origin.json").write_text(json.dumps({"folder": str(tmp_path / "gone"), "from_here": "gone"}))
    shutil.copy(project / "text.txt", tmp_path / "words.txt")
    inputs = [f"--input={name}={project / name}" for name in ("model", "sae")]
    inputs += [f"--input=file:{name}=file:{project / name}" for name in ("glosses.jsonl", "prompts.txt")]
    checked = polysem(
        "verify", alone, *inputs, f"--input=text.txt={tmp_path / 'words.txt'}", "--sample=0", cwd=Path("/")
    )
    assert "features:" not in checked.stdout
    (tmp_path / "words.txt").write_text("other words")
    checked = polysem(
        "verify", alone, *inputs, f"--input=text.txt={tmp_path / 'words.txt'}", "--sample=0", cwd=Path("/")
    )
    assert "features: stale" in checked.stdout
    assert "corpus text.txt" in checked.stdout
    wrong = polysem("verify", alone, "--input", "text.txt", cwd=Path("/"))
    assert wrong.returncode == 2
    assert "expected OLD=NEW" in wrong.stderr


@pytest.mark.parametrize(
    "ref", ["zoo:gpt2", "hub:a/b/c", "package:x", "https://a.b/c", "/abs/x", "~/x", "neuronpedia:https://a/b"]
)
def test_what_is_no_relative_path_stays(ref, tmp_path):
    assert Places(tmp_path).find(ref) == ref


def test_relative_paths_follow_the_file(tmp_path):
    (tmp_path / "gpt2").mkdir()
    places = Places(tmp_path, {"a": "b"})
    assert places.find("sub/x#part") == f"{tmp_path}/sub/x#part"
    assert places.find("file:x.csv", or_name=True) == f"file:{tmp_path}/x.csv"
    assert places.find("gguf:x.gguf") == f"gguf:{tmp_path}/x.gguf"
    assert places.find("gpt2", or_name=True) == str(tmp_path / "gpt2")
    assert places.find("owner/name", or_name=True) == "owner/name"
    assert places.find("a") == f"{tmp_path}/b"


def test_the_folder_of_a_measure_follows_the_file_and_is_an_input(tmp_path):
    study = parse_study(
        STUDY.replace("[glosses]", '[glosses]\nsimilarity = ["tokens:glove:words/g", "gloss:minilm"]')
    )
    places = Places(tmp_path)
    assert places.settings(study).glosses.similarity == (f"tokens:glove:{tmp_path}/words/g", "gloss:minilm")
    (found,) = [source for source in sources_of(study, "plan", places) if source.role == "similarity"]
    assert (found.ref, found.path) == ("words/g", tmp_path / "words/g")
    assert similarity_name("tokens:glove:words/g") == similarity_name(f"tokens:glove:{tmp_path}/words/g")
