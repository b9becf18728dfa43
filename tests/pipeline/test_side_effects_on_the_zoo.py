"""`polysem side-effects` as people type it: a vector made from two files of texts, a file of another tool, features."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import polysem
from polysem.api import PlannedStudy
from polysem.boundary.tensors import read_safetensors
from polysem.cli.app import app
from polysem.errors import MismatchError
from polysem.features import FeatureTable
from polysem.models import load_model
from polysem.report import write_report
from polysem.report.text import number
from polysem.saes import load_sae
from polysem.store import RunFolder
from polysem.vocabulary import SIDE_EFFECTS

SITE = "blocks.1.hook_resid_post"
STUDY = f"""
name = "steered"
[model]
ref = "zoo:gpt2"
device = "cpu"
[[saes]]
ref = "zoo:gpt2/{SITE}"
[[saes]]
ref = "zoo:gpt2/blocks.2.hook_resid_post"
[features]
source = "zoo"
[corpus]
n_tokens = 50000
[prompts]
n = 8
length = 12
[plan]
n_targets = 4
"""
HAPPY = "I am so happy today\nWhat a joy to see you\nShe laughed with delight\n"
SAD = "I am so sad today\nWhat a grief to lose you\nShe wept with sorrow\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    folder = tmp_path_factory.mktemp("side effects")
    for name, text in (("study.toml", STUDY), ("happy.txt", HAPPY), ("sad.txt", SAD)):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def asked(folder: Path, *options: object):
    words = ["side-effects", folder / "study.toml", "--out", folder / "run", *options]
    return CliRunner().invoke(app, [str(word) for word in words])


def tables(folder: Path) -> dict[str, list[dict]]:
    return {
        path.stem: pq.read_table(path).to_pylist()
        for path in (folder / "run" / "side-effects").glob("*.parquet")
    }


def test_one_command_makes_the_card_of_two_files_of_texts(folder):
    options = ("--more", folder / "happy.txt", "--less", folder / "sad.txt", "--target", "happy,joy,glad")
    said = asked(folder, *options, "--null", 6, "--repair")
    assert said.exit_code == 0, said.output
    page = Path(said.stdout.strip().splitlines()[-1]).read_text(encoding="utf-8")
    assert "happy minus sad" in page
    assert "Repaired" in page
    found = tables(folder)
    (direction,) = found["directions"]
    assert (direction["kind"], direction["site"], direction["tokens_from"]) == ("texts", SITE, "asked")
    assert set(direction["tokens"]) == {" happy", " glad", " joy"}
    assert direction["readout"] == "blocks.2.hook_resid_post"
    values = {row["measure"]: row for row in found["side_effects"]}
    assert set(values) == set(SIDE_EFFECTS)
    assert values["on_target"]["value"] > 0
    moved = next(row for row in found["side_effects_moved"] if row["kind"] == "category" and row["rank"] == 0)
    for shown in (values["on_target"]["value"], moved["value"]):
        assert f"{number(shown, sign=True)} [" in page
    report = write_report(folder / "run").read_text(encoding="utf-8")
    assert f"{number(moved['value'], sign=True)} [" in report.split('<section id="side-effects"')[1]
    assert values["kl"]["value"] == pytest.approx(0.05, rel=0.05)
    assert values["cleanliness"]["value"] == pytest.approx(
        values["on_target"]["value"] / np.sqrt(2 * values["kl"]["value"])
    )
    assert values["on_target"]["forecast"] == pytest.approx(values["on_target"]["value"], rel=0.6)
    assert {row["kind"] for row in found["side_effects_moved"]} == {"category", "tokens", "feature"}
    assert len(found["side_effects_linear"]) == load_sae(f"zoo:gpt2/{SITE}").d_sae
    manifest = json.loads((folder / "run" / "side-effects" / "manifest.json").read_text())
    assert "side-effects/repaired-0.gguf" in manifest["outputs"]


def test_the_same_request_again_makes_nothing_and_a_new_one_gives_the_same_bytes(folder):
    stage = folder / "run" / "side-effects"
    options = ("--features", "12,40", "--null", 3)
    assert asked(folder, *options).exit_code == 0
    first = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(stage.glob("*.parquet"))}
    assert not list(stage.glob("repaired-*"))  # of the request before
    assert asked(folder, *options).exit_code == 0
    assert first == {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(stage.glob("*.parquet"))}
    for path in stage.iterdir():
        path.unlink()
    assert asked(folder, *options).exit_code == 0
    assert {n: b for n, (b, _) in first.items()} == {p.name: p.read_bytes() for p in stage.glob("*.parquet")}
    assert [row["feature"] for row in tables(folder)["directions"]] == [12, 40]


def test_a_repaired_vector_is_pushed_from_its_file_in_its_tools_own_coefficient(folder):
    assert asked(folder, "--features", 12, "--null", 3, "--repair").exit_code == 0
    found = tables(folder)
    repairs = {row["measure"]: row for row in found["repairs"]}
    assert repairs["protected"]["after"] < repairs["protected"]["before"]
    files = {}
    for name in ("repaired-0.gguf", "repaired-0.safetensors"):
        files[name] = folder / name
        files[name].write_bytes((folder / "run" / "side-effects" / name).read_bytes())
    (vector,) = read_safetensors(files["repaired-0.safetensors"]).values()
    seen = []
    for file in files.values():
        said = asked(folder, "--vector", file, "--coefficient", 12, "--null", 3)
        assert said.exit_code == 0, said.output
        found = tables(folder)
        (direction,) = found["directions"]
        assert direction["length"] == pytest.approx(float(vector.norm()))
        assert (direction["dose_unit"], direction["coefficient"]) == ("coefficient", pytest.approx(12))
        assert direction["tokens_from"] == "direct"
        seen.append({r["measure"]: r["value"] for r in found["side_effects"]})
    assert seen[0] == seen[1]
    assert seen[0]["kl"] > 0


def test_all_features_are_told_by_gradient_and_forecasts_judged(folder):
    said = asked(folder, "--all-by-gradient", "--forecast", 40, "--null", 3)
    assert said.exit_code == 0, said.output
    found = tables(folder)
    assert found["directions"] == []
    clean = [row["cleanliness"] for row in found["side_effects_linear"] if row["cleanliness"] is not None]
    assert len(clean) > 1000
    outcomes = {row["outcome"] for row in found["forecasts"]}
    assert outcomes == {"reach_sets", "stability", "cleanliness", "text", "cost_absent", "reach_features"}
    told = {(r["outcome"], r["predictors"]): r for r in found["forecasts"]}
    assert told["cleanliness", "linear response"]["spearman"] > 0.5
    assert {row["outcome"] for row in found["screened"]} == outcomes - {"cost_absent"}
    assert all(row["n_pairs"] == 4 and row["n_prompts"] == 2 for row in found["screened"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "nothing is asked for"),
        (("--features", "1,x"), "expected whole numbers"),
        (("--features", 99999), "expected 0 to 1535"),
        (("--more", "happy.txt"), "two files"),
        (("--features", 1, "--sae", "none"), "no dictionary 'none'"),
        (("--features", 1, "--site", "blocks.0.hook_resid_post"), "not blocks.0"),
        (("--features", 1, "--kl", -1), "above 0"),
        (("--features", 1, "--readout", SITE, "--sae", "blocks.2.hook_resid_post"), "comes before"),
        (("--vector", "missing.npy"), "missing.npy"),
    ],
)
def test_what_cannot_be_asked_is_said(folder, options, said):
    found = asked(folder, *options)
    assert found.exit_code in (1, 2)
    assert said in found.output


def test_a_tensor_in_a_session_has_the_card_of_its_file(folder):
    vector = np.random.default_rng(0).standard_normal(192)
    np.save(folder / "mine.npy", vector)
    said = asked(folder, "--vector", folder / "mine.npy", "--target", "happy,joy,glad", "--null", 6)
    assert said.exit_code == 0, said.output
    expected = tables(folder)["side_effects"]

    run, model = RunFolder(folder / "run"), load_model("zoo:gpt2", device="cpu")
    features = FeatureTable(**run.tables("features"), embeddings={})
    labels = features.features["sae"].unique().to_pylist()
    saes = {label: load_sae(f"zoo:gpt2/{label}", model=model) for label in labels}
    planned = PlannedStudy(run.table("plan"), run.table("prompts"), run.study(), features, saes)
    options = {"target": "happy,joy,glad", "n_null": 6}
    found = polysem.steering_card({"mine.npy": torch.from_numpy(vector)}, planned, model, **options)
    for mine, theirs in zip(found.held["side_effects"].to_pylist(), expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            same = (
                pytest.approx(theirs[name], rel=1e-6, nan_ok=True)
                if isinstance(value, float)
                else theirs[name]
            )
            assert value == same, (mine["measure"], name)
    assert found.held["directions"]["kind"].to_pylist() == ["given"]
    with pytest.raises(MismatchError, match=r"mine has shape \(2, 192\); expected one vector"):
        polysem.steering_card(np.zeros((2, 192)), planned, model)
