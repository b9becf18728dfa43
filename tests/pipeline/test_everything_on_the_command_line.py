"""Every locus, control and option through `polysem run`, as a user does it: each promised table has rows, or a reason.

Stages run from files, so what a table is made from must have been written by the stage before; what works on objects in
memory may be empty here.
"""

import numpy as np
import pytest
from typer.testing import CliRunner

from polysem.cli.app import app
from polysem.registry import zoo_path
from polysem.report.source import Run
from polysem.stats.neurons import OPERATIONS
from polysem.store.stages import order_of
from polysem.store.tables import STAGES
from polysem.vocabulary import CONTROLS, LOCI
from support.meanings import tiny_glove, tiny_wordllama

LABELS = ("blocks.2.hook_resid_post", "blocks.2.hook_mlp_out")
STUDY = f"""
name = "everything"
preset = "both"
[model]
ref = "zoo:gpt2"
[[saes]]
ref = "zoo:gpt2/{LABELS[0]}"
[[saes]]
ref = "zoo:gpt2/{LABELS[1]}"
[features]
source = "zoo"
[glosses]
similarity = ["tokens:glove:GLOVE", "contexts:wordllama"]
[prompts]
source = "templates"
n = 4
[plan]
loci = {list(LOCI)}
controls = {list(CONTROLS)}
n_targets = 3
sources_per_bin = 1
n_random = 1
neurons_per_bin = 2
doses = [0.01, 0.1]
""".replace("'", '"')
REASONS = {
    "replicated": "no two SAEs of one site",
    "replication": "no two SAEs of one site",
    "effect_survival": "no two SAEs of one site",
    "variance_components": "no two SAEs of one site",
    "slopes_without": "relations of features are not asked",
    "near": "no vectors of one's own: tests/pipeline/test_vectors.py",
    "vector_effects": "the same",
}
"""tables that this study cannot fill, and why"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    folder = tmp_path_factory.mktemp("everything")
    rng = np.random.default_rng(0)
    words = sorted(set(zoo_path("texts", "samples").read_text(encoding="utf-8").casefold().split()))
    vectors = {word: rng.standard_normal(8) for word in words}
    glove = tiny_glove(folder / "glove", vectors)
    (folder / "study.toml").write_text(STUDY.replace("GLOVE", str(glove)))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tiny_wordllama(folder / "packages", vectors)))
        result = CliRunner().invoke(app, ["run", str(folder / "study.toml"), "--out", str(folder / "run")])
    assert result.exit_code == 0, result.output
    return folder / "run"


def table(run, name):
    return Run.open(run).table(name)


def test_every_promised_table_has_rows_or_a_reason(run):
    empty = {
        schema.name: stage
        for stage in order_of(None)
        for schema in STAGES.get(stage, ())
        if not table(run, schema.name).num_rows
    }
    assert {name: stage for name, stage in empty.items() if name not in REASONS} == {}
    assert set(REASONS) <= set(empty)  # a reason that is none any more


def test_every_locus_and_control_has_effects(run):
    effects = table(run, "pair_effects")
    assert set(effects["locus"].to_pylist()) == set(LOCI)
    assert set(CONTROLS) - set(effects["relation"].to_pylist()) == set()


def test_neurons_have_degrees_slopes_and_effects_of_all_operations(run):
    degrees = table(run, "neurons").to_pylist()
    assert max(r["degree"] for r in degrees if r["basis"] == 0) > 0
    assert {r["kind"] for r in degrees} == {"coordinate", "mlp"}
    slopes = table(run, "neuron_slopes").to_pylist()
    assert {r["locus"] for r in slopes} == {"neuron", "mlp_neuron"}
    assert {r["operation"] for r in slopes} == set(OPERATIONS)
    assert all(r["estimate"] is not None or r["note"] for r in slopes)
    known = [r for r in slopes if (r["outcome"], r["term"]) == ("kl", "degree_adjusted")]
    assert all(r["lo"] is not None for r in known)
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "Does a neuron's degree say what it does?" in html or "Does a neuron&#39;s degree" in html


def test_what_the_measures_of_similarity_and_the_covariates_are_for_is_there(run):
    """Two further measures that know nothing: both have rows, no loading is large, and the report says what they say."""
    asked = ["gloss:minilm", "tokens:glove:", "contexts:wordllama"]
    seen = table(run, "similarities").to_pylist()
    assert {any(r["measure"].startswith(a) for a in asked) for r in seen} == {True}
    model = {r["measure"].split(":/")[0]: r for r in table(run, "similarity_model").to_pylist()}
    assert set(model) == {"gloss:minilm", "tokens:glove:glove", "contexts:wordllama", "one factor"}
    assert {r["relation"] for r in table(run, "plan").to_pylist()} >= {"pair", "related_pair"}
    pairs = table(run, "latent_similarity").to_pylist()
    by_all = sum(r["unrelated_by_all"] for r in pairs)
    assert 0 < by_all < len(pairs)
    assert {r["similarity"] for r in table(run, "specification").to_pylist()} >= {
        "gloss",
        "contexts:wordllama",
    }
    known = table(run, "covariates")
    for name in ("attribution", "overlap", "frequency"):
        assert known[name].null_count == 0
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "There was only one measure of similarity" not in html
    assert f"whose glosses are unlike, {by_all} are unrelated by every measure" in html
    several = sum(r["k"] > 1 for r in table(run, "concepts").to_pylist())
    assert f"The contexts of {several} of" in html


def test_slopes_of_every_locus_are_numbers_and_every_effect_says_what_it_is(run):
    rows = table(run, "effects").to_pylist()
    for locus in LOCI:
        mine = [
            r
            for r in rows
            if r["contrast"] == "slope_interference"
            and f"locus={locus}; sae=*; outcome=logodds" in r["group"]
        ]
        assert mine
        assert all(r["estimate"] is not None for r in mine), (locus, [r["note"] for r in mine])
    html = (run / "report.html").read_text(encoding="utf-8")
    for locus in LOCI.values():
        assert locus.effect in html


def test_the_papers_neurons_are_told_by_their_degree(run):
    rows = [r for r in table(run, "presets").to_pylist() if r["path"] in ("degree", "degree_held_out")]
    assert {r["question"] for r in rows} == {"rise", "drop"}
    assert {r["step"] for r in rows} > {0}
    assert any(r["estimate"] is not None for r in rows if r["step"])
    assert "The paper's neurons" in (run / "report.html").read_text(encoding="utf-8")
