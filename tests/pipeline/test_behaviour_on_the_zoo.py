"""`polysem generate` and `polysem guard` as people type them."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from polysem.cli.app import app
from polysem.report.text import number
from polysem.store.stages import REGISTRY

STUDY = """
name = "behaviour"
[model]
ref = "zoo:gpt2"
device = "cpu"
[[saes]]
ref = "zoo:gpt2/blocks.2.hook_resid_post"
[features]
source = "zoo"
[glosses]
source = "file:glosses.jsonl"
[corpus]
n_tokens = 20000
[prompts]
n = 6
length = 10
[plan]
n_targets = 4
"""
WORDS = ("sea", "road", "bread", "king", "rain", "song", "war", "horse", "ship", "child", "night", "gold") * 4
"""few features have a gloss: embedding all would take longer than all the rest"""
CONCEPT = """
words = "he, she, his, her"
documents = 160
length = 16
prompts = 4
k = 3
clamped = 2
"""
TASKS = [
    {"context": "one two three", "endings": ["four", "sea"], "answer": 0},
    {"context": "", "endings": ["the sea is wide", "the sea are wide"], "answer": 0},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    folder = tmp_path_factory.mktemp("behaviour")
    (folder / "study.toml").write_text(STUDY, encoding="utf-8")
    (folder / "concept.toml").write_text(CONCEPT, encoding="utf-8")
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, TASKS)), encoding="utf-8")
    glosses = [json.dumps({"feature": k, "gloss": f"words about {w}"}) for k, w in enumerate(WORDS)]
    (folder / "glosses.jsonl").write_text("\n".join(glosses) + "\n", encoding="utf-8")
    return folder


def asked(verb: str, folder: Path, *options: object):
    words = [verb, folder / "study.toml", *options, "--out", folder / "run"]
    return CliRunner().invoke(app, [str(word) for word in words])


def tables(folder: Path, stage: str) -> dict[str, list[dict]]:
    return {p.stem: pq.read_table(p).to_pylist() for p in (folder / "run" / stage).glob("*.parquet")}


def test_texts_are_drawn_told_and_shown(folder):
    options = ("--pairs", 4, "--prompts", 3, "--tokens", 6, "--kl", "0.1", "--tasks", folder / "tasks.jsonl")
    done = asked("generate", folder, *options)
    assert done.exit_code == 0, done.output
    found = tables(folder, "generate")
    assert set(found) == {schema.name for schema in REGISTRY["generate"].tables}
    arms = {row["arm"]: row for row in found["text_arms"]}
    assert {row["relation"] for row in arms.values()} >= {"pair", "self"}
    base = {row["prompt_id"]: row for row in found["texts"] if row["arm"] == -1}
    assert len(base) == 3
    for row in found["texts"]:
        if row["arm"] < 0:
            continue
        text, plain = row["tokens"], base[row["prompt_id"]]["tokens"]
        assert text[: row["same"]] == plain[: row["same"]]
        assert row["same"] == len(text) or text[row["same"]] != plain[row["same"]]
        assert row["on_target"] == sum(t in arms[row["arm"]]["tokens"] for t in text)
        assert row["edited"] >= 6
    for row in found["text_effects"]:
        assert 0 <= row["rate_up"] <= 100
    page = (folder / "run" / "generate.html").read_text(encoding="utf-8")
    assert found["text_effects"]
    for row in found["text_effects"]:
        assert number(row["next"], sign=True) in page
    assert {row["n"] for row in found["text_tasks"]} == {2}


def test_a_concept_is_guarded_and_shown(folder):
    done = asked("guard", folder, folder / "concept.toml")
    assert done.exit_code == 0, done.output
    found = tables(folder, "guard")
    assert set(found) == {schema.name for schema in REGISTRY["guard"].tables}
    assert {(r["shift"], r["monitor"]) for r in found["guard_monitors"]} >= {
        ("none", "probe"),
        ("frame", "feature"),
    }
    held = [r for r in found["guard_recovery"] if r["arm"] == "handle"]
    assert len({r["site"] for r in held}) == 2
    assert all(r["drift"] < 1e-6 for r in held)
    assert {r["detector"] for r in found["guard_evasion"]} == {
        "target",
        "reader",
        "site",
        "later",
        "output",
        "text",
    }
    assert all(r["gap"] == 0 for r in found["guard_evasion"] if r["kind"] == "target")
    (writer,) = [r for r in found["guard_findings"] if "first of the clamped features" in (r["note"] or "")]
    clamped = re.search(r"clamped features: (\d+), (\d+), those whose", writer["note"])
    assert clamped
    assert clamped[1] != clamped[2]
    page = (folder / "run" / "guard.html").read_text(encoding="utf-8")
    for row in found["guard_findings"]:
        assert row["name"] in page
    again = asked("guard", folder, folder / "concept.toml")
    assert again.exit_code == 0


def test_a_concept_that_is_not_there_is_an_error_with_the_next_command(folder):
    (folder / "none.toml").write_text('words = "zzzzqq"\n', encoding="utf-8")
    done = asked("guard", folder, folder / "none.toml")
    assert done.exit_code == 2
    assert "documents" in done.output
    assert CliRunner().invoke(app, ["guard"]).exit_code == 2
    assert "words = " in CliRunner().invoke(app, ["guard", "--init"]).output
