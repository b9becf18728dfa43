"""Steering vectors of one's own as sources: what a vector does is what the feature does whose direction it is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner

import polysem
from polysem.cli.app import app
from polysem.report.source import Run
from polysem.saes import load_sae

SITE, EARLIER = "blocks.2.hook_resid_post", "blocks.1.hook_resid_post"
STUDY = f"""
[model]
ref = "zoo:gpt2"
[[saes]]
ref = "zoo:gpt2/{SITE}"
[features]
source = "zoo"
[prompts]
source = "templates"
n = 4
[plan]
n_targets = 2
sources_per_bin = 1
n_random = 1
doses = [0.02]
"""
VECTORS = """
[[vectors]]
ref = "known.safetensors"
[[vectors]]
ref = "early.npy"
label = "an early one"
site = "blocks.1.hook_resid_post"
"""


def command(*words: object) -> str:
    ran = CliRunner().invoke(app, [str(word) for word in words])
    assert ran.exit_code == 0, ran.output
    return ran.output


def rows(run: Path, table: str, **parts: object) -> list[dict]:
    return [r for r in Run.open(run).table(table).to_pylist() if parts.items() <= r.items()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study with two vectors, one of them a feature's own row, and that feature."""
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    folder = tmp_path_factory.mktemp("vectors")
    (folder / "plain.toml").write_text(STUDY)
    for stage in ("features", "pairs", "plan"):
        command(stage, folder / "plain.toml", "--out", folder / "plain")
    pair = max(rows(folder / "plain", "plan", relation="pair"), key=lambda r: r["interference"])
    W_dec = load_sae(f"zoo:gpt2/{SITE}").W_dec.numpy()
    save_file({SITE: 3 * W_dec[pair["source"]]}, folder / "known.safetensors")
    np.save(folder / "early.npy", W_dec[pair["target"]] + W_dec[pair["source"]])
    (folder / "study.toml").write_text(STUDY + VECTORS)
    command("check", folder / "study.toml")
    command("run", folder / "study.toml", "--out", folder / "run")
    return folder, pair


def test_a_vector_that_is_a_features_direction_does_what_the_feature_does(made):
    folder, pair = made
    known = {"target": pair["target"], "token_set": "out"}
    (feature,) = rows(folder / "run", "pair_effects", relation="pair", source=pair["source"], **known)
    (vector,) = rows(folder / "run", "vector_effects", vector="known", **known)
    assert vector["interference"] == pytest.approx(feature["interference"], abs=1e-6)
    assert not rows(folder / "run", "pair_effects", relation="given")
    for outcome in ("logodds", "mass", "cosine", "kl"):
        assert vector[outcome] == pytest.approx(feature[outcome], rel=1e-3, abs=1e-7), outcome


def test_every_target_meets_every_vector_at_its_own_site_and_every_dose(made):
    folder, _ = made
    planned = rows(folder / "run", "plan", relation="given")
    targets = {r["target"] for r in rows(folder / "run", "plan", relation="pair")}
    assert {(r["target"], r["source_sae"], r["site"], abs(r["dose"])) for r in planned} == {
        (t, *at, 0.02) for t in targets for at in (("known", SITE), ("an early one", EARLIER))
    }
    assert all(r["status"] == "ok" for r in Run.open(folder / "run").table("trials").to_pylist())


def test_its_cosines_are_matched_by_random_directions_and_its_effect_is_compared(made):
    folder, pair = made
    matched = rows(folder / "run", "pair_effects", relation="given_matched", target=pair["target"])
    (vector,) = rows(folder / "run", "vector_effects", vector="known", target=pair["target"], token_set="in")
    assert {round(r["interference"], 6) for r in matched} == {round(vector["interference"], 6)}
    ids = {
        r["trial_id"] for r in rows(folder / "run", "plan", relation="given_matched", target=pair["target"])
    }
    realised = {
        r["alignment"] for r in Run.open(folder / "run").table("trials").to_pylist() if r["trial_id"] in ids
    }
    assert max(abs(a - vector["interference"]) for a in realised) < 1e-6
    group = "vector=known"
    seen = {
        r["contrast"]: r
        for r in rows(folder / "run", "effects")
        if group in r["group"] and "tokens=in" in r["group"]
    }
    assert {"given_minus_given_matched", "given_minus_random_direction", "given_minus_random_feature"} <= set(
        seen
    )


def test_a_study_without_vectors_is_not_made_anew_by_there_being_such_a_setting(made):
    from polysem.config import parse_study
    from polysem.engine.toml import to_toml
    from polysem.store.stages import parameters

    assert "vectors" not in parameters(parse_study(STUDY), "plan")
    study = parse_study(STUDY + VECTORS)
    assert "vectors" in parameters(study, "plan")
    assert parse_study(to_toml(study)) == study


def test_a_vector_that_cannot_be_is_refused_before_anything_is_made(made):
    folder, _ = made
    np.save(folder / "narrow.npy", np.ones(3))
    (folder / "narrow.toml").write_text(STUDY + '[[vectors]]\nref = "narrow.npy"\n')
    ran = CliRunner().invoke(app, ["check", str(folder / "narrow.toml")])
    assert ran.exit_code != 0
    assert all(words in ran.output for words in ("3 numbers", SITE))
    (folder / "twice.toml").write_text(STUDY + 2 * '[[vectors]]\nref = "narrow.npy"\n')
    ran = CliRunner().invoke(app, ["check", str(folder / "twice.toml")])
    assert ran.exit_code != 0
    assert "'narrow'" in ran.output


def test_a_session_in_python_gives_the_same(made):
    folder, pair = made
    model = polysem.load_model("zoo:gpt2")
    sae = load_sae(f"zoo:gpt2/{SITE}", model=model)
    features = polysem.feature_table(sae, model, source="zoo")
    vector = torch.from_numpy(np.load(folder / "early.npy"))
    pairs = polysem.map_pairs(sae, features, vectors={"an early one": vector}, site=EARLIER)
    near = pairs.to_pandas("near").set_index("feature").interference
    own = sae.W_dec.double()[pair["target"]]
    assert near[pair["target"]] == pytest.approx(
        float(own @ vector.double() / own.norm() / vector.double().norm())
    )
    assert near.abs().min() >= 0.2
    plan = polysem.make_plan(
        pairs, sae, features, model, prompts="templates", n_prompts=4,
        n_targets=2, sources_per_bin=1, n_random=1, doses=(0.02,),
    )  # fmt: skip
    found = polysem.estimate(polysem.run_trials(plan, model)).to_pandas("vector_effects")
    mine = found[found.vector == "an early one"].set_index(["target", "token_set"]).logodds
    stored = rows(folder / "run", "vector_effects", vector="an early one")
    assert len(stored) == len(mine)
    for row in stored:
        assert mine[row["target"], row["token_set"]] == pytest.approx(row["logodds"], abs=1e-6)
