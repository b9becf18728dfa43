"""`polysem joint` as people type it: what a study's section asks for, and a wish of one's own."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from polysem.cli.app import app
from polysem.report import write_report
from polysem.report.text import number
from polysem.store.stages import REGISTRY

SITES = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")
STUDY = f"""
name = "together"
[model]
ref = "zoo:gpt2"
device = "cpu"
[[saes]]
ref = "zoo:gpt2/{SITES[1]}"
[[saes]]
ref = "zoo:gpt2/{SITES[0]}"
[features]
source = "zoo"
[glosses]
source = "file:glosses.jsonl"
[corpus]
n_tokens = 50000
[prompts]
n = 6
length = 12
[plan]
n_targets = 4
positions = "last"
[joint]
sizes = [2, 4]
draws = 2
pools = 2
pool = 3
rotations = 1
pairs = 6
lift_tokens = 2000
plans = 1
candidates = 2
"""

WORDS = ("sea", "road", "bread", "king", "rain", "song", "war", "horse", "ship", "child", "night", "gold") * 4
"""few features have a gloss: embedding all would take longer than all the rest"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    folder = tmp_path_factory.mktemp("joint")
    (folder / "study.toml").write_text(STUDY, encoding="utf-8")
    glosses = [json.dumps({"feature": k, "gloss": f"words about {w}"}) for k, w in enumerate(WORDS)]
    (folder / "glosses.jsonl").write_text("\n".join(glosses) + "\n", encoding="utf-8")
    return folder


def asked(folder: Path, *options: object):
    words = ["joint", folder / "study.toml", "--out", folder / "run", *options]
    return CliRunner().invoke(app, [str(word) for word in words])


def tables(folder: Path) -> dict[str, list[dict]]:
    return {p.stem: pq.read_table(p).to_pylist() for p in (folder / "run" / "joint").glob("*.parquet")}


def test_one_command_pushes_several_and_plans(folder):
    said = asked(folder)
    assert said.exit_code == 0, said.output
    page = Path(said.stdout.strip().splitlines()[-1]).read_text(encoding="utf-8")
    found = tables(folder)
    assert set(found) == {schema.name for schema in REGISTRY["joint"].tables}
    sizes = {(r["sae"], r["size"], r["part"]): r for r in found["joint_sizes"]}
    for site in SITES:
        assert 0 < sizes[site, 2, "odd"]["unexplained"] < sizes[site, 4, "odd"]["unexplained"] < 0.3
        assert sizes[site, 2, "odd"]["kl"] == pytest.approx(0.1, rel=0.5)
        assert f"{number(sizes[site, 4, 'even']['unexplained'], sign=True)} [" in page
    body = page.split('<main class="wrap part">')[1].split("</main>")[0]
    report = write_report(folder / "run").read_text(encoding="utf-8")
    assert body in report.split('<section id="joint" class="part">')[1]
    orders = {(r["sae"], r["pool"], r["basis"], r["part"], r["order"]): r for r in found["joint_additivity"]}
    for key, row in orders.items():
        assert row["exact"]
        assert -1e-9 <= row["residual"] <= 1
        if key[-1] == 2:
            assert row["residual"] <= orders[*key[:-1], 1]["residual"]
    assert {(r["sae_i"], r["sae_j"]) for r in found["joint_layers"]} == {SITES}
    assert all(r["forecast"] is not None for r in found["joint_pairs"])
    plans = {r["arm"]: r for r in found["plans"]}
    assert set(plans) == {
        "planned", "planned, open loop", "planned, few", "planned, L1", "best single", "equal doses", "closed loop",
        *(f"only {site}" for site in SITES),
    }  # fmt: skip
    assert plans["closed loop"]["missed"] < 0.1 * plans["planned"]["missed"]
    assert plans["planned, L1"]["n_pushes"] <= 4
    for row in found["plan_effects"]:
        if (row["arm"], row["role"]) == ("planned, open loop", "wanted"):
            assert row["forecast"] == pytest.approx(row["asked"])


def test_the_same_request_again_makes_nothing_and_a_new_one_gives_the_same_bytes(folder):
    stage = folder / "run" / "joint"
    options = ("--towards", "happy,joy=0.4", "--towards", "emotion=-0.2", "--protect", "location")
    assert asked(folder, *options).exit_code == 0
    wanted = [r for r in tables(folder)["plan_effects"] if (r["arm"], r["role"]) == ("planned", "wanted")]
    assert [(r["name"], r["asked"]) for r in wanted] == [("happy,joy", 0.4), ("emotion", -0.2)]
    first = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in stage.glob("*.parquet")}
    assert asked(folder, *options).exit_code == 0
    assert first == {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in stage.glob("*.parquet")}
    for path in stage.iterdir():
        path.unlink()
    assert asked(folder, *options).exit_code == 0
    assert {n: b for n, (b, _) in first.items()} == {p.name: p.read_bytes() for p in stage.glob("*.parquet")}


def test_a_site_that_is_not_in_the_study_is_refused(folder):
    other = folder / "other.toml"
    other.write_text(STUDY.replace("[joint]", '[joint]\nsites = ["blocks.7"]'), encoding="utf-8")
    said = CliRunner().invoke(app, ["joint", str(other), "--out", str(folder / "run"), "--ignore-versions"])
    assert said.exit_code != 0
    assert "blocks.7" in said.output + str(said.exception)
