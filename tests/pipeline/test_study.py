"""The runner: stages are made once, in order, from what is there; whatever changes, exactly what depends on it is made again.

The stage functions are replaced by fakes that write small tables and note that they were called; the real ones run in
tests/pipeline.
"""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

import polysem.stats.kinship  # noqa: F401  (stays real where its package is replaced)
from polysem.config import SAEConfig, Study, parse_study
from polysem.engine import run_study, study_status
from polysem.engine.cache import SAECache, sae_labels
from polysem.engine.check import Checked
from polysem.engine.context import StudyContext
from polysem.engine.toml import to_toml
from polysem.engine.verify import compare_trials, verify_run
from polysem.errors import ConfigError, PolysemError, StoreError
from polysem.store import RunFolder
from polysem.store import run as store_run
from polysem.store.stages import ORDER
from polysem.store.tables import PLAN, STAGES, TRIALS
from support.fake_stages import N_BATCHES, SITE, FakeFeatures, Fakes, fake_sae, table


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    made = Fakes()
    monkeypatch.setattr("polysem.engine.run.check_study", lambda *_: Checked())  # fakes are no files
    monkeypatch.setattr("polysem.models.load_model", made.load_model, raising=False)
    monkeypatch.setattr("polysem.saes.load_sae", made.load_sae, raising=False)
    features = SimpleNamespace(build_features=made.build_features, FeatureTable=FakeFeatures)
    plan = SimpleNamespace(make_plan=made.make_plan, describe_plan=lambda plan: {"trials": 10})
    for name, module in {
        "features": features,
        "pairs": SimpleNamespace(map_pairs=made.map_pairs),
        "prompts": SimpleNamespace(make_prompts=made.make_prompts),
        "plan": plan,
        "trials": SimpleNamespace(run_batches=made.run_batches, Kept=object),
        "replicate": SimpleNamespace(replicates_of=made.replicates_of),
        "response": SimpleNamespace(respond=made.respond),
        "stats": SimpleNamespace(estimate=made.estimate),
        "report": SimpleNamespace(write_report=made.write_report),
        "paper.presets": SimpleNamespace(PaperEstimates=lambda preset: preset),
    }.items():
        monkeypatch.setitem(__import__("sys").modules, f"polysem.{name}", module)
        monkeypatch.setattr(f"polysem.{name}", module, raising=False)
    monkeypatch.setattr(store_run, "BATCHES_PER_PART", 2)
    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two SAEs and a corpus, as files whose content is all that matters."""
    for name in ("model", "sae-a", "sae-b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_text(name)
    (tmp_path / "corpus.txt").write_text("some text")
    return parse_study(
        f"""
        name = "toy"
        [model]
        ref = "{tmp_path}/model"
        [[saes]]
        ref = "{tmp_path}/sae-a"
        [[saes]]
        ref = "{tmp_path}/sae-b"
        [corpus]
        ref = "{tmp_path}/corpus.txt"
        """
    )


def states(study: Study, out: Path) -> dict[str, str]:
    return {status.stage: status.state for status in study_status(study, out)}


def reason(study: Study, out: Path, stage: str) -> str:
    return next(status.reason for status in study_status(study, out) if status.stage == stage)


ALL_CALLS = [
    *("model", "sae gated", "sae gated", "features"),
    *("pairs blocks.0.hook_resid_post", "pairs blocks.0.hook_resid_post-2"),
    *("plan", "trials 0-1", "trials 2-3", "trials 4-4", "dictionaries", "response", "effects", "report"),
]
PLAIN = tuple(stage for stage in ORDER if stage != "kinship")
"""stages of a study of two SAEs that asks for nothing beside"""
ALL_FRESH = dict.fromkeys(PLAIN, "fresh")


def test_a_study_runs_all_stages_once_and_loads_the_model_once(fakes: Fakes, study: Study, out: Path):
    assert set(states(study, out).values()) == {"absent"}
    assert run_study(study, out) == out / "report.html"
    assert fakes.calls == ALL_CALLS
    assert states(study, out) == ALL_FRESH
    assert sorted(p.name for p in (out / "trials").iterdir()) == sorted(
        ["manifest.json", *(f"part-0000{k}-of-00003.{end}" for k in range(3) for end in ("json", "parquet"))]
    )
    assert {p.name for p in out.iterdir()} == {"study.toml", "origin.json", "report.html", *PLAIN}


def test_a_finished_study_is_left_alone_and_loads_nothing(fakes: Fakes, study: Study, out: Path):
    run_study(study, out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    fakes.calls.clear()
    run_study(study, out)
    assert fakes.calls == []
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before


def test_the_study_file_is_kept_verbatim(fakes: Fakes, study: Study, out: Path, tmp_path: Path):
    text = "# my comment\n" + to_toml(study)
    (tmp_path / "mine.toml").write_text(text)
    run_study(tmp_path / "mine.toml", out)
    assert (out / "study.toml").read_text() == text


def with_plan(study: Study, **changes: Any) -> Study:
    return study.model_copy(update={"plan": study.plan.model_copy(update=changes)})


def test_a_changed_study_makes_stale_what_depends_on_the_change(fakes: Fakes, study: Study, out: Path):
    run_study(study, out)
    fakes.calls.clear()
    changed = with_plan(study, n_targets=3)
    assert states(changed, out) == {
        **ALL_FRESH,
        "plan": "stale",
        **dict.fromkeys(("trials", "response", "effects", "report"), "stale"),
    }
    assert reason(changed, out, "plan") == "plan.n_targets was 12, is 3"
    assert reason(changed, out, "trials") == "plan is stale"
    run_study(changed, out)
    # the fake plan comes out the same, so what follows from it stays; the report names the study and is made again
    assert fakes.calls == ["model", "plan", "report"]  # what is said of the SAEs is on record
    assert states(changed, out) == ALL_FRESH


def test_changed_tables_go_all_the_way_down(fakes: Fakes, study: Study, out: Path):
    run_study(study, out)
    fakes.calls.clear()
    fakes.value = 2.0
    run_study(study.model_copy(update={"seed": 1}), out)
    assert {"features", "plan", "trials 0-1", "effects", "report"} <= set(fakes.calls)


@pytest.mark.parametrize(
    ("file", "first"),
    [
        ("model/weights.safetensors", "features"),
        ("sae-b/weights.safetensors", "features"),
        ("corpus.txt", "features"),
    ],
)
def test_a_changed_source_is_seen(
    fakes: Fakes, study: Study, out: Path, tmp_path: Path, file: str, first: str
):
    run_study(study, out)
    (tmp_path / file).write_text("other")
    assert states(study, out)[first] == "stale"
    assert f"{tmp_path / file.partition('/')[0]} changed: was sha256:" in reason(study, out, first)


def test_a_file_that_no_stage_reads_changes_nothing(fakes: Fakes, study: Study, out: Path, tmp_path: Path):
    run_study(study, out)
    (tmp_path / "model" / "notes.md").write_text("x")
    assert states(study, out) == ALL_FRESH


def test_sources_that_are_gone_do_not_make_a_finished_study_stale(
    fakes: Fakes, study: Study, out: Path, tmp_path: Path
):
    run_study(study, out)
    (tmp_path / "corpus.txt").unlink()
    assert states(study, out) == ALL_FRESH
    assert "as far as can be seen: corpus" in reason(study, out, "features")


@pytest.mark.parametrize("stage", PLAIN)
def test_a_stage_that_breaks_is_continued(fakes: Fakes, study: Study, out: Path, stage: str):
    fakes.breaks = {"pairs": "pairs blocks.0.hook_resid_post-2", "trials": "trials 2-3"}.get(stage, stage)
    with pytest.raises(PolysemError, match="breaks"):
        run_study(study, out)
    assert states(study, out)[stage] in ("partial", "absent")
    seen = list(fakes.calls)
    fakes.calls.clear()
    fakes.breaks = ""
    run_study(study, out)
    assert states(study, out) == ALL_FRESH
    done_before = [call for call in seen[:-1] if call not in ("model", "sae", "sae gated")]
    assert not set(done_before) & set(fakes.calls)


def test_partial_says_how_many_parts(fakes: Fakes, study: Study, out: Path):
    fakes.breaks = "trials 4-4"
    with pytest.raises(PolysemError, match="breaks"):
        run_study(study, out)
    assert reason(study, out, "trials") == "2 of 3 parts"


def test_a_damaged_part_alone_is_made_again(fakes: Fakes, study: Study, out: Path):
    run_study(study, out)
    good = {p: p.read_bytes() for p in sorted((out / "trials").glob("*.parquet"))}
    part = out / "trials" / "part-00001-of-00003.parquet"
    part.write_bytes(good[part][:-1])
    assert states(study, out)["trials"] == "stale"
    assert "part-00001-of-00003.parquet is not the file that was written" in reason(study, out, "trials")
    fakes.calls.clear()
    run_study(study, out)
    assert [call for call in fakes.calls if call.startswith("trials")] == ["trials 2-3"]
    assert {p: p.read_bytes() for p in good} == good


def test_a_plan_with_fewer_batches_leaves_no_old_part(
    fakes: Fakes, study: Study, out: Path, monkeypatch: pytest.MonkeyPatch
):
    run_study(study, out)
    monkeypatch.setattr(store_run, "BATCHES_PER_PART", 3)
    (out / "trials" / "manifest.json").unlink()
    run_study(study, out)
    assert sorted(p.name for p in (out / "trials").glob("*.parquet")) == [
        "part-00000-of-00002.parquet",
        "part-00001-of-00002.parquet",
    ]
    assert RunFolder(out).table("trials").num_rows == 2 * N_BATCHES


def test_shards_in_any_order_give_the_files_of_one_run(fakes: Fakes, study: Study, tmp_path: Path):
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    run_study(study, whole)
    run_study(study, sharded, stages=["features", "pairs", "plan"])
    for k in (2, 1):
        run_study(study, sharded, stages=["trials"], shard=(k, 2))
        assert states(study, sharded)["trials"] == "partial"
    fakes.calls.clear()
    run_study(study, sharded)
    late = [call for call in fakes.calls if call != "model"]
    assert late[-4:] == ["dictionaries", "response", "effects", "report"]
    assert not [call for call in fakes.calls if call.startswith("trials")]
    for path in sorted(whole.rglob("*.parquet")):
        assert (sharded / path.relative_to(whole)).read_bytes() == path.read_bytes()


def test_a_shard_beyond_the_parts_does_nothing(fakes: Fakes, study: Study, out: Path):
    run_study(study, out, stages=["features", "pairs", "plan"])
    fakes.calls.clear()
    run_study(study, out, stages=["trials"], shard=(9, 9))
    assert fakes.calls == []


def test_a_stage_alone_wants_the_stages_before_it(fakes: Fakes, study: Study, out: Path):
    run_study(study, out, stages=["features"])
    with pytest.raises(StoreError, match="plan needs pairs, which is absent") as caught:
        run_study(study, out, stages=["plan"])
    assert str(caught.value.hint).startswith("polysem pairs ")


@pytest.mark.parametrize("shard", [(0, 2), (3, 2)])
def test_a_shard_that_does_not_exist_is_refused(study: Study, out: Path, shard: tuple[int, int]):
    with pytest.raises(ConfigError, match="does not exist"):
        run_study(study, out, stages=["trials"], shard=shard)


def test_only_trials_have_shards(study: Study, out: Path):
    with pytest.raises(ConfigError, match="only the trials"):
        run_study(study, out, shard=(1, 2))


def test_the_folder_of_another_study_is_refused_unless_forced(fakes: Fakes, study: Study, out: Path):
    run_study(study, out)
    other = study.model_copy(update={"name": "other"})
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(StoreError, match="is foreign: it holds study 'toy', expected study 'other'"):
        run_study(other, out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert set(states(other, out).values()) == {"foreign"}
    run_study(other, out, force=True)
    assert states(other, out) == ALL_FRESH


def test_a_folder_with_other_things_is_refused(fakes: Fakes, study: Study, out: Path):
    out.mkdir()
    (out / "thesis.tex").write_text("")
    with pytest.raises(StoreError, match=r"holds thesis\.tex"):
        run_study(study, out)
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]


def test_a_damaged_manifest_makes_its_stage_again(fakes: Fakes, study: Study, out: Path):
    run_study(study, out)
    path = out / "pairs" / "manifest.json"
    path.write_text(path.read_text()[:30])
    assert states(study, out)["pairs"] == "stale"
    run_study(study, out)
    assert states(study, out) == ALL_FRESH


def test_other_versions_of_packages_count_unless_told_not_to(
    fakes: Fakes, study: Study, out: Path, monkeypatch: pytest.MonkeyPatch
):
    run_study(study, out)
    monkeypatch.setattr("polysem.store.manifest.version_of", lambda name: "99")
    assert "package" in reason(study, out, "features")
    assert {s.state for s in study_status(study, out, ignore_versions=True)} == {"fresh"}


def test_leftovers_of_a_killed_writer_go(fakes: Fakes, study: Study, out: Path):
    run_study(study, out)
    (out / "trials" / ".part-00000-of-00003.parquet.tmp").write_text("half")
    run_study(study, out)
    assert not list(out.rglob("*.tmp"))


def test_the_hub_commit_is_settled_once(fakes: Fakes, study: Study, out: Path):
    hub = study.model_copy(update={"model": study.model.model_copy(update={"ref": "some/model"})})
    run_study(hub, out)
    assert json.loads((out / "features/manifest.json").read_text())["made_from"]["sources"][
        "model some/model"
    ] == ("commit:m1")
    assert states(hub, out) == ALL_FRESH
    assert StudyContext(hub, RunFolder(out)).pins.models == {"some/model": "m1"}


def test_parts_on_different_machines_are_told(fakes: Fakes, study: Study, out: Path, monkeypatch, caplog):
    fakes.breaks = "trials 2-3"
    with pytest.raises(PolysemError, match="breaks"):
        run_study(study, out)
    fakes.breaks = ""
    monkeypatch.setattr(store_run, "platform_facts", lambda: {"machine": "abacus"})
    with caplog.at_level(logging.WARNING, logger="polysem"):
        run_study(study, out)
    assert "different machines" in caplog.text


def test_verify_finds_nothing_wrong_with_a_good_run(fakes: Fakes, study: Study, out: Path):
    run_study(study, out)
    fakes.calls.clear()
    assert verify_run(out) == []
    assert sum(call.startswith("trials") for call in fakes.calls) == 3


def test_verify_finds_what_is_damaged_or_missing(fakes: Fakes, study: Study, out: Path):
    run_study(study, out)
    (out / "pairs" / "density-00000-of-00002.parquet").write_bytes(b"PAR1")
    (out / "effects" / "missing.parquet").unlink()
    findings = "\n".join(verify_run(out))
    assert "pairs/density-00000-of-00002.parquet is not the file" in findings
    assert "truncated or damaged" in findings
    assert "effects/missing.parquet is missing" in findings


def test_verify_looks_at_the_records_of_parts(fakes: Fakes, study: Study, out: Path):
    run_study(study, out)
    path = out / "trials" / "part-00001-of-00003.json"
    good = path.read_text()
    path.write_text(good[:40])
    assert "part-00001-of-00003.json" in "\n".join(verify_run(out, sample=0))
    path.unlink()
    assert "the records of its parts name other files" in "\n".join(verify_run(out, sample=0))
    path.write_text(good)
    assert verify_run(out, sample=0) == []


def test_a_run_of_an_earlier_format_is_stale_and_says_so_with_the_command(
    fakes: Fakes, study: Study, out: Path
):
    run_study(study, out)
    path = out / "features" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    assert states(study, out)["features"] == "stale"
    assert "another version of polysem: it is a manifest of format 1" in reason(study, out, "features")
    with pytest.raises(StoreError, match="another version of polysem") as caught:
        RunFolder(out).table("features")
    assert caught.value.hint == f"polysem features {out}/study.toml --out {out}"


def test_stored_features_have_all_that_a_feature_table_has(fakes: Fakes, study: Study, out: Path):
    run_study(study, out)
    stored = StudyContext(study, RunFolder(out)).features
    for schema in STAGES["features"]:
        assert getattr(stored, schema.name).equals(RunFolder(out).table(schema.name))
    assert list(stored.embeddings) == [SITE, f"{SITE}-2"]


def test_verify_says_that_a_run_is_not_finished(fakes: Fakes, study: Study, out: Path):
    run_study(study, out, stages=["features", "pairs"])
    assert [f for f in verify_run(out) if f.endswith("not finished")] == [
        f"{stage}: not finished"
        for stage in ("plan", "trials", "dictionaries", "response", "effects", "report")
    ]


def test_verify_finds_numbers_that_do_not_come_again(fakes: Fakes, study: Study, out: Path):
    run_study(study, out)
    fakes.noise = 1e-9
    findings = verify_run(out, sample=N_BATCHES)
    assert len(findings) == N_BATCHES
    assert "kl differs in 2 of 2 rows" in findings[0]
    assert verify_run(out, sample=0) == []


def test_verify_allows_rounding_on_another_machine(fakes: Fakes, study: Study, out: Path, monkeypatch):
    run_study(study, out)
    monkeypatch.setattr("polysem.engine.verify.platform_facts", lambda: {"machine": "abacus"})
    fakes.noise = 1e-9
    assert verify_run(out) == []
    fakes.noise = 0.1
    assert "kl differs" in verify_run(out)[0]


def test_verify_compares_what_trials_hold(fakes: Fakes, study: Study, out: Path):
    run_study(study, out)
    old = RunFolder(out).table("trials")
    lost = table(TRIALS, [{**r, "status": "failed", "kl": None} for r in old.to_pylist()])
    found = list(compare_trials(old, lost, exact=False))
    assert [f.split()[0] for f in found] == ["status", "kl"]


def test_verify_finds_trials_that_the_plan_does_not_have(fakes: Fakes, study: Study, out: Path, monkeypatch):
    real = fakes.run_batches

    def forgets(plan: pa.Table, *args: Any, **more: Any) -> pa.Table:
        rows = real(plan, *args, **more).to_pylist()
        return table(
            TRIALS, [r for r in rows if r["trial_id"] != "1-1"] + [{"trial_id": f"x{rows[0]['trial_id']}"}]
        )

    monkeypatch.setattr("polysem.trials", SimpleNamespace(run_batches=forgets, Kept=object))
    monkeypatch.setitem(
        __import__("sys").modules, "polysem.trials", SimpleNamespace(run_batches=forgets, Kept=object)
    )
    monkeypatch.setattr(
        fakes,
        "estimate",
        lambda *_, **__: SimpleNamespace(tables=lambda: {s.name: s.empty() for s in STAGES["effects"]}),
    )
    monkeypatch.setitem(__import__("sys").modules, "polysem.stats", SimpleNamespace(estimate=fakes.estimate))
    run_study(study, out)
    findings = "\n".join(verify_run(out, sample=0))
    assert "1 planned trials have no row (first: 1-1)" in findings
    assert "3 rows were never planned" in findings


def test_a_study_made_in_python_is_written_as_toml(study: Study):
    odd = study.model_copy(update={"saes": (SAEConfig(ref='a "b" \\ \x7f é\n', label="x"),)})
    assert parse_study(to_toml(odd)) == odd


def test_labels_are_the_sites_made_unique():
    def entries(*labels: str | None) -> tuple[SAEConfig, ...]:
        return tuple(SAEConfig(ref="r", label=label) for label in labels)

    assert sae_labels(entries(None, "s-2", None, None), ["s", "s", "s", "t"]) == ["s", "s-2", "s-3", "t"]
    assert sae_labels(entries(None, "s"), ["s", "s"]) == ["s-2", "s"]
    with pytest.raises(ConfigError, match="two SAEs have the label 'x'"):
        sae_labels(entries("x", "x"), ["s", "t"])


def test_the_shelf_keeps_the_last_used_saes_within_its_bytes():
    entries = tuple(SAEConfig(ref=f"file-{k}") for k in range(4))
    loaded: list[str] = []

    def load(entry: SAEConfig) -> Any:
        loaded.append(entry.ref)
        return fake_sae(entry.ref)

    shelf = SAECache(entries, load, keep=200)
    assert loaded == [entry.ref for entry in entries]
    labels = list(shelf)
    assert labels == [SITE, f"{SITE}-2", f"{SITE}-3", f"{SITE}-4"]
    assert shelf[f"{SITE}-4"] is shelf[f"{SITE}-4"]
    assert shelf[f"{SITE}-3"].provenance.ref == "file-2"
    assert len(loaded) == 4  # the last two were still there
    assert shelf[SITE].provenance.ref == "file-0"
    assert shelf[f"{SITE}-3"].provenance.ref == "file-2"
    assert loaded[4:] == ["file-0"]  # took the place of s-4, which had not been used for longest
    assert f"{SITE}-4" in shelf
    assert "t" not in shelf
    assert len(loaded) == 5


def test_what_is_recorded_of_saes_spares_loading_them_only_if_it_is_of_the_same_ones():
    entries = tuple(SAEConfig(ref=f"file-{k}") for k in range(2))
    loaded: list[str] = []

    def load(entry: SAEConfig) -> Any:
        loaded.append(entry.ref)
        return fake_sae(entry.ref)

    facts = SAECache(entries, load).facts
    loaded.clear()
    assert SAECache(entries, load, known=dict(reversed(facts.items()))).facts == facts
    assert not loaded
    for other in (
        {SITE: facts[SITE]},
        {SITE: facts[SITE], "t": facts[f"{SITE}-2"]},
        {SITE: facts[SITE], f"{SITE}-2": facts[SITE]},
        {SITE: facts[SITE], f"{SITE}-2": {k: v for k, v in facts[f"{SITE}-2"].items() if k != "prepend_bos"}},
    ):
        loaded.clear()
        assert SAECache(entries, load, known=other).facts == facts
        assert loaded == ["file-0", "file-1"]


def test_parts_are_whole_batches_in_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_run, "BATCHES_PER_PART", 2)
    plan = table(PLAN, [{"trial_id": str(k), "batch": b} for k, b in enumerate([4, 0, 2, 0, 9])])
    assert store_run.trial_parts(plan) == [[0, 2], [4, 9]]
    assert store_run.trial_parts(PLAN.empty()) == [[]]
