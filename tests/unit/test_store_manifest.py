"""Freshness is fingerprint equality: every ingredient counts, nothing else does, and the reason is said."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polysem.config import Study, parse_study
from polysem.engine.verify import _files
from polysem.errors import StoreError
from polysem.store import io
from polysem.store.manifest import (
    Manifest,
    Output,
    StageInputs,
    compare,
    damaged_outputs,
    made_here,
    read_manifest,
)
from polysem.store.run import Part, RunFolder
from polysem.store.stages import ORDER, REGISTRY, StageName, parameters
from polysem.store.tables import STAGES

TOML = """
[model]
ref = "some/model"
[[saes]]
ref = "some-sae"
"""


def study(**changes: Any) -> Study:
    return parse_study(TOML).model_copy(update=changes)


def recipe(stage: StageName = "pairs", **changes: Any) -> StageInputs:
    made = StageInputs.of(
        study(), stage, sources={"saes some-sae": "sha256:1"}, inputs={"features/features.parquet": "aa"}
    )
    return replace(made, **changes)


def test_the_fingerprint_is_a_function_of_the_recipe_and_of_nothing_else():
    assert recipe().fingerprint == recipe().fingerprint
    turned = replace(recipe(), packages=dict(reversed(recipe().packages.items())))
    assert turned.fingerprint == recipe().fingerprint


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"stage": "plan"}, "stage was pairs, is plan"),
    ({"schemas": {"pairs": 0}}, "schema of density was version 2, is absent"),
    ({"sources": {"saes some-sae": "sha256:2"}}, "saes some-sae changed: was sha256:1, is sha256:2"),
    ({"inputs": {"features/features.parquet": "bb"}}, "input features/features.parquet changed"),
    ({"inputs": {}}, "input features/features.parquet went"),
    ({"packages": {"polysem": "0"}}, "package numpy was"),
    ({"parameters": parameters(study(pairs=study().pairs.model_copy(update={"min_interference": 0.4})), "pairs")},
     "pairs.min_interference was 0.2, is 0.4"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_every_ingredient_counts_and_is_named(change: dict[str, Any], words: str):
    changed = recipe(**change)
    assert changed.fingerprint != recipe().fingerprint
    assert any(difference.startswith(words) for difference in recipe().differences(changed))


def test_a_setting_that_is_new_and_not_used_is_no_change():
    old = recipe()
    new = replace(old, parameters={**old.parameters, "pairs": {**old.parameters["pairs"], "second": None}})
    assert old.differences(new) == new.differences(old) == []
    used = replace(
        old, parameters={**old.parameters, "pairs": {**old.parameters["pairs"], "second": "minilm"}}
    )
    assert old.differences(used) == ["pairs.second was absent, is minilm"]


def test_versions_can_be_left_out():
    other = recipe(packages={**recipe().packages, "torch": "0.1"})
    assert recipe().differences(other)
    assert recipe().differences(other, ignore_versions=True) == []


def test_parameters_of_a_stage_are_those_that_decide_it():
    other = study(effects=study().effects.model_copy(update={"level": 0.9}))
    changed = [stage for stage in ORDER if parameters(other, stage) != parameters(study(), stage)]
    assert changed == ["effects", "report"]
    gated = study(saes=(study().saes[0].model_copy(update={"max_fvu": 0.1}),))
    changed = [stage for stage in ORDER if parameters(gated, stage) != parameters(study(), stage)]
    assert changed == ["features", "report"]


def test_every_section_of_a_study_decides_some_stage():
    """A new section that no stage declares would never make anything stale."""
    declared = {section for stage in (*ORDER, "joint", "layers") for section in REGISTRY[stage].sections}
    declared -= {"sae_refs", "gloss_vectors"}  # parts of sections
    # the report is decided by every section; its name decides nothing else
    assert declared | {"name"} == set(Study.model_fields)
    assert set(REGISTRY) == {*STAGES, "report"}


def test_stages_read_only_stages_before_them():
    for n, stage in enumerate(ORDER):
        assert set(REGISTRY[stage].inputs) <= set(ORDER[:n])


def manifest(root: Path) -> Manifest:
    digest = io.write_text(root / "pairs" / "x.txt", "content")
    return Manifest(recipe(), {"pairs/x.txt": Output(digest, 3)}, {"device": "cpu"}, made_here(0.0))


def test_a_manifest_comes_back(tmp_path: Path):
    made = manifest(tmp_path)
    made.write(tmp_path / "pairs" / "manifest.json")
    assert read_manifest(tmp_path, "pairs") == made
    assert read_manifest(tmp_path, "plan") is None


def test_times_and_hosts_stand_outside_the_recipe(tmp_path: Path):
    made = manifest(tmp_path)
    text = json.dumps(vars(made.made_from))
    assert made.made["host"] not in text or not made.made["host"]
    assert {"host", "started", "finished"} <= set(made.made)


def test_fresh_until_something_changes(tmp_path: Path):
    made = manifest(tmp_path)
    assert compare(tmp_path, made, recipe()) == ("fresh", "")
    state, reason = compare(tmp_path, made, recipe(inputs={"features/features.parquet": "bb"}))
    assert (state, reason) == ("stale", "input features/features.parquet changed")


def edit(path: Path) -> None:
    path.write_text("c0ntent")


@pytest.mark.parametrize(
    ("harm", "words"), [(edit, "is not the file that was written"), (Path.unlink, "is missing")]
)
def test_a_damaged_file_is_named(tmp_path: Path, harm: Callable[[Path], Any], words: str):
    made = manifest(tmp_path)
    harm(tmp_path / "pairs" / "x.txt")
    (seen,) = damaged_outputs(tmp_path, made.outputs)
    assert seen.startswith("pairs/x.txt")
    assert words in seen
    assert compare(tmp_path, made, recipe())[0] == "stale"


def tamper(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        whole = json.loads(path.read_text())
        change(whole)
        path.write_text(json.dumps(whole))

    return apply


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (tamper(lambda m: m.update(format=99)), "format 99, expected 2"),
        (tamper(lambda m: m["made_from"]["inputs"].clear()), "was edited"),
        (tamper(lambda m: m.update(fingerprint="00")), "was edited"),
        (tamper(lambda m: m.pop("outputs")), "is no manifest"),
        (tamper(lambda m: m["made_from"].update(more=1)), "is no manifest"),
        (lambda path: path.write_bytes(path.read_bytes()[:40]), "damaged"),
    ],
)
def test_a_manifest_that_is_not_whole_is_an_error(tmp_path: Path, harm: Callable[[Path], None], words: str):
    path = tmp_path / "pairs" / "manifest.json"
    manifest(tmp_path).write(path)
    harm(path)
    with pytest.raises(StoreError, match=words) as caught:
        read_manifest(tmp_path, "pairs")
    assert "manifest.json" in str(caught.value)
    assert str(caught.value.hint).startswith("polysem pairs ")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (
            tamper(lambda m: m["outputs"].update({"/etc/passwd": {"sha256": "0" * 64}})),
            "expected a path below",
        ),
        (tamper(lambda m: m["outputs"].update({"../out": {"sha256": "0" * 64}})), "expected a path below"),
        (tamper(lambda m: m["outputs"].update({"a\0b": {"sha256": "0" * 64}})), "expected a path below"),
        (tamper(lambda m: m["outputs"].update({"x" * 5000: {"sha256": "0" * 64}})), "expected a path below"),
        (tamper(lambda m: m["outputs"].update({"pairs/link/x": {"sha256": "0" * 64}})), "leads out"),
        (
            tamper(lambda m: m["outputs"]["pairs/x.txt"].update(sha256=None)),
            r"is no manifest|the sha256 of pairs/x.txt is None",
        ),
        (tamper(lambda m: m["outputs"]["pairs/x.txt"].update(rows="3")), r"is no manifest|a number of rows"),
        (
            tamper(lambda m: m.update(records={"pairs/x.txt": 3})),
            r"is no manifest|the sha256 of pairs/x.txt is 3",
        ),
        (tamper(lambda m: m.update(facts=[1])), "is no manifest"),
        (lambda path: path.write_text("[" * 100_000), "damaged"),
    ],
)
def test_a_manifest_is_confined_before_anything_is_opened(
    tmp_path: Path, harm: Callable[[Path], None], words: str
):
    path = tmp_path / "pairs" / "manifest.json"
    manifest(tmp_path).write(path)
    (tmp_path / "pairs" / "link").symlink_to("/")
    harm(path)
    with pytest.raises(StoreError, match=words):
        read_manifest(tmp_path, "pairs")


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_an_output_that_is_no_file_is_named_and_nothing_hangs(tmp_path: Path, kind: str):
    made = manifest(tmp_path)
    file = tmp_path / "pairs" / "x.txt"
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(tmp_path / "nowhere")
    (seen,) = damaged_outputs(tmp_path, made.outputs)
    assert seen.startswith("pairs/x.txt cannot be read")


@pytest.mark.parametrize("harm", [Path.unlink, tamper(lambda m: m["facts"].update(device="other"))])
def test_records_of_parts_are_verified(tmp_path: Path, harm: Callable[[Path], Any]):
    (tmp_path / "study.toml").write_text("")
    run, part = RunFolder.open(tmp_path), Part("pairs", 0, 1)
    tables = {schema.name: schema.empty() for schema in REGISTRY["pairs"].tables}
    run.write_part(part, tables, made_from=recipe(), facts={"device": "cpu"}, started=0.0)
    run.finish("pairs", recipe(), run.record(part).outputs, parts=[part], facts={}, started=0.0)
    assert list(_files(run, "pairs")) == []
    harm(tmp_path / part.record)
    assert any(part.record in words for words in _files(run, "pairs"))
