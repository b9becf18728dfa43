"""Three dictionaries of one site in one study, through `polysem run` and `polysem scaling`: what the study found is told by width."""

import json

import numpy as np
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

from polysem.cli.app import app
from polysem.models import load_model
from polysem.saes import load_sae
from polysem.scaling import STUDIED
from polysem.stats.arms import PRIMARY
from polysem.store.run import RunFolder
from support.sae_fixtures import planted, write_saelens_v6
from support.tiny import save_tiny_model

WIDTHS = (48, 96, 144)
STUDY = """
name = "family"
[model]
ref = "model"
device = "cpu"
{saes}
[corpus]
ref = "text.txt"
n_tokens = 3000
context = 32
[prompts]
n = 4
length = 8
[plan]
n_targets = 4
sources_per_bin = 4
n_random = 1
controls = ["random_feature"]
doses = [0.05, 0.1]
dose_unit = "resid_norm"
"""
SAE = """[[saes]]
ref = "w{width}"
label = "w{width}"
max_fvu = 1e6
allow_other_model = true
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    folder = tmp_path_factory.mktemp("family")
    save_tiny_model("gpt2", folder / "model")
    model, rng = load_model(str(folder / "model"), device="cpu"), np.random.default_rng(0)
    lines = [model.detokenize(rng.integers(4, model.spec.d_vocab, 40).tolist()) for _ in range(200)]
    (folder / "text.txt").write_text("\n\n".join(lines), encoding="utf-8")
    for width in WIDTHS:
        weights = planted(
            d_in=model.spec.d_model, d_sae=width, seed=width, layer=0, hook="hook_resid_post", k=6
        )
        write_saelens_v6(
            folder / f"w{width}", weights, architecture="topk", metadata={"training_tokens": 1000}
        )
    study = STUDY.format(saes="".join(SAE.format(width=width) for width in WIDTHS))
    (folder / "study.toml").write_text(study, encoding="utf-8")
    done = CliRunner().invoke(app, ["run", str(folder / "study.toml"), "--out", str(folder / "run")])
    assert done.exit_code == 0, done.output
    return RunFolder.open(folder / "run")


@pytest.fixture(scope="module")
def told(run) -> dict:
    out, text = run.root.parent / "scaling.json", run.root.parent / "text.txt"
    done = CliRunner().invoke(
        app,
        [
            "scaling",
            str(run.root),
            "--corpus",
            str(text),
            "--tokens",
            "1000",
            "--context",
            "32",
            "--out",
            str(out),
        ],
    )
    assert done.exit_code == 0, done.output
    return json.loads(out.read_text(encoding="utf-8"))


def test_every_measure_of_a_study_is_told_of_every_dictionary(run, told) -> None:
    rows = told["dictionaries"]
    assert [(r["ref"], r["width"]) for r in rows] == [(f"w{w}", w) for w in WIDTHS]
    assert [r["compute"] for r in rows] == [
        1000 * w * load_sae(str(run.root.parent / f"w{w}")).d_in for w in WIDTHS
    ]
    assert all(r[name] is not None for r in rows for name in STUDIED)
    assert all(0 < r[name] <= 1 for r in rows for name in ("reach", "reach_random"))
    lambdas = run.table("compensation", where=(pc.field("band_lo") == 0) & (pc.field("band_hi") == 1))
    known = {(r["sae"], r["token_set"]): r["estimate"] for r in lambdas.to_pylist()}
    for r in rows:
        for tokens in ("in", "out"):
            assert r[f"lambda_{tokens}"] == pytest.approx(known[r["ref"], tokens])


def test_counter_intuitive_pairs_are_those_that_brute_force_counts(run, told) -> None:
    for r in told["dictionaries"]:
        features = run.table("features", where=pc.field("sae") == r["ref"])
        rows = (
            load_sae(str(run.root.parent / r["ref"])).W_dec.double().numpy()[features["feature"].to_numpy()]
        )
        glosses = run.embeddings()[r["ref"]].astype(np.float64)
        known = np.abs(glosses).max(1) > 0
        cosine, alike = (
            x[known] @ x[known].T for x in (rows / np.linalg.norm(rows, axis=1, keepdims=True), glosses)
        )
        pairs = np.triu_indices(int(known.sum()), 1)
        close, unlike = np.abs(cosine[pairs]) >= 0.3, alike[pairs] < 0.3
        assert r["counter"] == pytest.approx((close & unlike).mean())
        assert r["counter_of_close"] == pytest.approx((close & unlike).sum() / close.sum())
        assert r["unlike"] == pytest.approx(unlike.mean())


def test_the_linear_response_is_judged_at_the_largest_dose(run, told) -> None:
    """By hand from the two tables, and more of it among close pairs is a part of all."""
    for r in told["dictionaries"]:
        where = (
            (pc.field("sae") == r["ref"]) & (pc.field("relation") == "pair") & (pc.field("token_set") == "in")
        )
        effects = run.table("pair_effects", where=where).to_pylist()
        linear = {
            (x["target"], x["source"], x["dose"]): x["linear"]
            for x in run.table("response", where=where).to_pylist()
        }
        both = [
            (x[PRIMARY], linear[x["target"], x["source"], x["dose"]]) for x in effects if x["dose"] == 0.1
        ]
        y, told_by = np.array(both).T
        assert r["n_linear_in"] == len(y)
        assert r["linear_in"] == pytest.approx(1 - ((y - told_by) ** 2).sum() / ((y - y.mean()) ** 2).sum())
        assert r["n_linear_close_in"] < len(y)


def test_three_dictionaries_of_a_site_are_compared_two_by_two(run) -> None:
    two = {(r["first"], r["second"]) for r in run.table("replicates").to_pylist()}
    assert two == {("w48", "w96"), ("w144", "w48"), ("w144", "w96")}
    html = (run.root / "report.html").read_text(encoding="utf-8")
    assert all(f"{a}, {b}" in html for a, b in two)
