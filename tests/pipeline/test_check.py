"""`polysem check`, and the same look before a run: everything that is wrong is said at once, and no folder is left."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from polysem.config import Study, parse_study
from polysem.corpus import folder_files
from polysem.engine import check_study, run_study
from polysem.errors import ConfigError, PolysemError
from polysem.places import Places
from polysem.saes import load_sae
from polysem.worlds.tiny import tiny_model
from support import sae_fixtures
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
[plan]
n_targets = 4
sources_per_bin = 2
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    save_tiny_model("gpt_neox", folder / "model")
    model = tiny_model("gpt_neox")
    rng = np.random.default_rng(0)
    lines = [model.detokenize(rng.integers(4, 64, 40).tolist()) for _ in range(80)]
    (folder / "text.txt").write_text("\n\n".join(lines), encoding="utf-8")
    (folder / "prompts.txt").write_text("\n".join(lines[:7]), encoding="utf-8")
    sae = planted(d_in=model.spec.d_model, layer=0, hook="hook_resid_post", k=4)
    WRITERS["saelens-v6-topk"](folder / "sae", sae)
    wide = planted(d_in=model.spec.d_model * 2, layer=0, hook="hook_resid_post", k=4)
    WRITERS["saelens-v6-topk"](folder / "wide", wide)
    glosses = [{"index": i, "description": f"word {i}"} for i in range(sae.d_sae)]
    (folder / "glosses.jsonl").write_text("\n".join(map(json.dumps, glosses)), encoding="utf-8")
    other = [{"index": 10**6, "description": "of another SAE"}]
    (folder / "other.jsonl").write_text("\n".join(map(json.dumps, other)), encoding="utf-8")
    return folder


def found(project: Path, text: str) -> list[str]:
    study = parse_study(text)
    checked = check_study(study, Places(project), project / "out")
    return [str(error) for error in checked.problems]


def test_a_study_that_is_right_passes(project):
    assert found(project, STUDY) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('ref = "model"', 'ref = "no/where/model"', "no/where/model"),
        ('ref = "sae"', 'ref = "none"', "there is no folder or file"),
        ('ref = "sae"', 'ref = "wide"', "is 16 wide"),
        ("blocks.0.hook_resid_post", "blocks.9.hook_resid_post", "blocks.9.hook_resid_post"),
        ('ref = "text.txt"', 'ref = "texts.txt"', "no such file or folder"),
        ("context = 20", "context = 100000", "set corpus.context ="),
        ("file:glosses.jsonl", "file:gone.jsonl", "gone.jsonl"),
        ("file:glosses.jsonl", "file:other.jsonl", "1000000"),
        ("[glosses]", '[glosses]\nsimilarity = ["tokens:glove:gone"]', "there is no folder"),
        ("file:prompts.txt", "file:gone.txt", "gone.txt"),
        ("[plan]", "[pairs]\nmin_interference = 0.9\nbins = [0.0, 0.5]\n[plan]", "no pair lies between them"),
        ("n_targets = 4", "n_targets = 4000", "set plan.n_targets ="),
        (
            "[corpus]",
            'label = "a"\n[[saes]]\nref = "sae"\nsite = "blocks.1.hook_resid_post"\nlabel = "a"\n[corpus]',
            "two SAEs have the label",
        ),
        ("[plan]", '[joint]\nsites = ["blocks.1.hook_resid_post"]\n[plan]', "joint.sites names"),
    ],
)
def test_what_is_wrong_is_found_and_leaves_no_folder(project, tmp_path, old, new, said):
    text = STUDY.replace(old, new, 1)
    assert text != STUDY
    assert any(said in words for words in found(project, text)), found(project, text)
    file = project / "wrong.toml"
    file.write_text(text)
    with pytest.raises(PolysemError):
        run_study(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_that_is_wrong_is_said_at_once(project, tmp_path):
    file = project / "wrong.toml"
    file.write_text(STUDY.replace('"sae"', '"none"').replace("file:prompts", "file:lost"))
    said = subprocess.run(
        [sys.executable, "-m", "polysem", "check", str(file)], capture_output=True, text=True, cwd=tmp_path
    )
    assert said.returncode == 2
    assert "2 things are wrong" in said.stderr
    assert "none" in said.stderr
    assert "lost.txt" in said.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_seen_before(project, monkeypatch):
    usage = lambda _: type("Usage", (), {"free": 1000})  # noqa: E731
    monkeypatch.setattr("polysem.engine.check.shutil.disk_usage", usage)
    assert any("GB free" in words for words in found(project, STUDY))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("context = 20", "context = 100000"),
        ("n_targets = 4", "n_targets = 4000"),
        ("n = 6", "n = 6\nchat_template = true"),
        ("file:prompts.txt", "fil:prompts.txt"),
        ("file:glosses.jsonl", "zoo"),
        ("[glosses]", '[features]\nsource = "zoo"\n[glosses]'),
    ],
)
def test_hints_that_name_a_setting_lead_to_a_study_that_passes(project, old, new):
    text = STUDY.replace(old, new, 1)
    study, places = parse_study(text), Places(project)
    (problem,) = check_study(study, places, project / "out").problems
    hint = re.search(r"(?:set )?(\w+)\.(\w+) = ([^\s,]+)", str(problem.hint))
    assert hint, problem
    section, key, value = hint.groups()
    changed = study.model_dump()
    changed[section][key] = tomllib.loads(f"v = {value}".replace("'", '"'))["v"]
    mended = Study.model_validate(changed)
    assert check_study(mended, places, project / "out").problems == []


def test_the_hint_about_another_model_is_a_line_of_the_sae(project):
    text = STUDY.replace("allow_other_model = true\n", "")
    (problem,) = check_study(parse_study(text), Places(project), project / "out").problems
    line = re.search(r"(allow_\w+ = \w+) \(in the study", str(problem.hint))
    assert line, problem
    assert found(project, text.replace("[corpus]", f"{line[1]}\n[corpus]")) == []


def test_one_problem_is_raised_as_it_is(project):
    checked = check_study(
        parse_study(STUDY.replace("n_targets = 4", "n_targets = 4000")), Places(project), project
    )
    with pytest.raises(ConfigError, match="need 12000 features"):
        checked.refuse()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f'ref = "{there}"', f'ref = "{odd}"')
        for there in ("model", "sae", "text.txt")
        for odd in ("pipe", "zeros", "nowhere", "round", "empty", "\u00fc.txt", "no\\u0000thing", "x" * 5000, "~nouser/x", "zoo:../../x")
    ]
    + [
        ("file:glosses.jsonl", f"{kind}:{odd}")
        for kind in ("file", "neuronpedia")
        for odd in ("pipe", "zeros", "round", "empty", "a b")
    ]
    + [("file:prompts.txt", f"file:{odd}") for odd in ("pipe", "zeros", "round", "empty", "sae")],
)  # fmt: skip
def test_what_lies_oddly_is_named_and_nothing_hangs(project, monkeypatch, old, new):
    monkeypatch.chdir(project)  # a bare name of a file lies in no folder
    for name, make in (
        ("pipe", os.mkfifo),
        ("zeros", lambda p: p.symlink_to("/dev/zero")),
        ("nowhere", lambda p: p.symlink_to("/no/such/place")),
        ("round", lambda p: p.symlink_to(p)),
        ("empty", Path.touch),
    ):
        if not os.path.lexists(project / name):
            make(project / name)
    assert found(project, STUDY.replace(old, new, 1))


def test_a_file_of_an_sae_is_read_by_its_bare_name(project, monkeypatch):
    monkeypatch.chdir(project)
    weights = sae_fixtures.planted(d_in=16)
    torch.save(sae_fixtures.dictionary_state(weights, "AutoEncoder"), "lone.pt")
    assert load_sae("lone.pt", site="blocks.0.hook_resid_post").d_sae == weights.d_sae


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[model]", 'name = ".."\n[model]', "name"),
        ("[model]", 'name = "."\n[model]', "name"),
        ("[model]", f'name = "{"a" * 300}"\n[model]', "name"),
        ("max_fvu = 1e9", 'label = "a\\nb"', "label"),
        ("n_tokens = 400", f"n_tokens = 1{'0' * 40}", "n_tokens has 41 digits"),
        ("n = 6", f"n = 1{'0' * 40}", "n has 41 digits"),
        ("[plan]", f"[features]\nn_contexts = 1{'0' * 40}\n[plan]", "n_contexts"),
        ("text.txt", "", "an empty reference"),
        ("file:prompts.txt", " ", "an empty reference"),
    ],
)
def test_values_that_no_study_has_are_refused_at_the_door(old, new, said):
    with pytest.raises(ConfigError, match=said):
        parse_study(STUDY.replace(old, new, 1))


def test_a_folder_that_changes_while_it_is_looked_through_is_named(project, monkeypatch):
    def rglob(*_: object) -> list[Path]:
        raise PermissionError(13, "Permission denied")

    (project / "folder").mkdir(exist_ok=True)
    monkeypatch.setattr(Path, "rglob", rglob)
    with pytest.raises(PolysemError, match="cannot be looked through: Permission denied"):
        folder_files(project / "folder")
