"""`polysem layers` as people type it: two dictionaries of the zoo's GPT-2, small; killed and resumed; one layer alone refused."""

import math
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


def test_transcoders_are_judged_beside_the_dictionaries_of_a_study(folder, tmp_path):
    sets = '[[transcoders]]\nref = "zoo:gpt2/{}"\nlayers = {}\n'
    only = STUDY.replace(f'[[saes]]\nref = "zoo:gpt2/{FIRST}"\n', "").replace("3000", "2000")
    text = only + sets.format("plt", [0, 3]) + sets.format("clt", [1])
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    said = asked(tmp_path, "--sources", 3, "--prompts", 3, "--events", 1, "--edges", 3, "--steered", 2)
    assert said.exit_code == 0, said.output
    found = {name: one.to_pylist() for name, one in RunFolder.open(tmp_path / "run").tables("layers").items()}
    blocks = {(r["source"], r["target"]): r for r in found["layer_blocks"]}
    linked = {pair for pair, row in blocks.items() if row["why"] is None}
    # sets are models of the same layers: nothing is asked between them
    assert linked == {("plt.0", SECOND), ("plt.0", "plt.3"), ("clt.1", SECOND), (SECOND, "plt.3")}
    assert "layer norm" in blocks["plt.0", "plt.3"]["norm"]
    steered = {(r["source"], r["target"]) for r in found["layer_findings"] if r["hypothesis"] == "X2"}
    assert steered == linked
    # what nobody glossed has the gloss of what it fires on
    assert {r["i"] for r in found["layer_edges"] if r["source"] == "plt.0" and r["gloss_i"]}
    unlike = [r for r in found["layer_findings"] if r["hypothesis"] == "X3" and r["source"] == "plt.0"]
    assert {r["target"] for r in unlike if r["n"] and math.isfinite(r["value"])} == {SECOND, "plt.3"}
    spliced = {(r["transcoders"], r["replaced"]): r for r in found["layer_splice"]}
    first, last = (spliced["plt", f"blocks.{n}.hook_mlp_out"] for n in (0, 3))
    assert set(spliced) == {
        ("plt", "all"),
        *(("plt", r["replaced"]) for r in (first, last)),
        *(("clt", f"blocks.{n}.hook_mlp_out") for n in (1, 2, 3)),
    }
    assert 0 < last["cost"] < spliced["plt", "all"]["cost"] < spliced["plt", "all"]["zeroed"] - first["clean"]
    assert "layers 0 write it too" in spliced["clt", "blocks.1.hook_mlp_out"]["why"]
    assert f"plt in place of all: costs {number(spliced['plt', 'all']['cost'], sign=True)} [" in said.stderr
    assert number(last["spliced"]) in (tmp_path / "run" / "layers.html").read_text(encoding="utf-8")
    told = RunFolder.open(tmp_path / "run").manifest("layers").facts["transcoders"]
    assert 0 < told["plt"]["fvu blocks.3.hook_mlp_out"] < 0.5
    (tmp_path / "study.toml").write_text(only + sets.format("plt", [9]), encoding="utf-8")
    said = asked(tmp_path)
    assert said.exit_code == 2
    assert "have no layer 9; they have 0, 1, 2, 3" in said.output


def test_dictionaries_of_one_layer_alone_are_refused_and_other_options_judged(folder, tmp_path):
    alone = STUDY.replace(SECOND, FIRST.replace("resid_post", "mlp_out"))
    (tmp_path / "study.toml").write_text(alone, encoding="utf-8")
    assert asked(folder, "--edges", 1).exit_code == 2
    said = asked(tmp_path, *SMALL)
    assert said.exit_code == 2
    assert "no dictionary of the study is read by one of a later layer" in said.output
