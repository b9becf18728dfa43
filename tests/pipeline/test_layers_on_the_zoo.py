"""`polysem layers` as people type it: two dictionaries of the zoo's GPT-2, small; killed and resumed; one layer alone refused."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from polysem.cli.app import app
from polysem.report.text import number
from polysem.store.run import RunFolder

FIRST, SECOND = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"
STUDY = f"""
name = "across"
[model]
ref = "zoo:gpt2"
device = "cpu"
[[saes]]
ref = "zoo:gpt2/{FIRST}"
[[saes]]
ref = "zoo:gpt2/{SECOND}"
[features]
source = "zoo"
[corpus]
n_tokens = 3000
context = 33
"""
SMALL = ("--sources", 6, "--prompts", 3, "--events", 2, "--edges", 6, "--steered", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    folder = tmp_path_factory.mktemp("layers")
    (folder / "study.toml").write_text(STUDY, encoding="utf-8")
    return folder


def asked(folder: Path, *options: object):
    words = ["layers", folder / "study.toml", "--out", folder / "run", *options]
    return CliRunner().invoke(app, [str(word) for word in words])


def test_one_command_judges_the_weights_and_a_killed_run_goes_on(folder):
    said = asked(folder, *SMALL)
    assert said.exit_code == 0, said.output
    page = Path(said.stdout.strip().splitlines()[-1])
    text = page.read_text(encoding="utf-8")
    found = {name: one.to_pylist() for name, one in RunFolder.open(folder / "run").tables("layers").items()}
    blocks = {(r["source"], r["target"]): r for r in found["layer_blocks"]}
    assert blocks[FIRST, SECOND]["why"] is None
    assert "is in no later layer" in blocks[SECOND, FIRST]["why"]
    assert number(blocks[FIRST, SECOND]["rms"]) in text
    assert {r["hypothesis"] for r in found["layer_findings"]} == {"X1", "X2", "X3", "X4"}
    r2 = next(
        r
        for r in found["layer_findings"]
        if r["quantity"].startswith("R2, pushed at the same") and r["by"] == "weight"
    )
    assert r2["value"] > 0.8  # a push in the stream is read where it arrives
    assert {r["source"] for r in found["layer_tokens"]} == {FIRST, SECOND}
    for edge in found["layer_edges"]:
        assert (edge["acts"] == 0) <= (edge["effectiveness"] == 0)
    stage = folder / "run" / "layers"
    before = {path.name: path.read_bytes() for path in stage.glob("*.parquet")}
    (stage / "manifest.json").unlink()
    for part in stage.glob("00-*"):
        part.unlink()
    assert asked(folder, *SMALL).exit_code == 0
    assert {path.name: path.read_bytes() for path in stage.glob("*.parquet")} == before
    assert page.read_text(encoding="utf-8") == text


def test_dictionaries_of_one_layer_alone_are_refused_and_other_options_judged(folder, tmp_path):
    alone = STUDY.replace(SECOND, FIRST.replace("resid_post", "mlp_out"))
    (tmp_path / "study.toml").write_text(alone, encoding="utf-8")
    assert asked(folder, "--edges", 1).exit_code == 2
    said = asked(tmp_path, *SMALL)
    assert said.exit_code == 2
    assert "no dictionary of the study is read by one of a later layer" in said.output
