"""The answer to "which unrelated features push this model toward places?" pushed live, on prompts that the study never saw."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from polysem.categories import builtin, is_about
from polysem.config import parse_study
from polysem.engine import make_beside, run_study
from polysem.engine.atlas import STEERED_TOWARD, AtlasOptions
from polysem.explore.steer import Asked, LiveSteer
from polysem.models import load_model
from polysem.prompts import TEMPLATES
from polysem.readouts import CategoryWords
from polysem.report import panels
from polysem.report.source import Run
from polysem.report.toward import toward_section
from polysem.saes import load_sae
from polysem.vocabulary import CATEGORIES

LABEL = "blocks.2.hook_resid_post"
KL = 0.1
STUDY = f"""
[model]
ref = "zoo:gpt2"
device = "cpu"
[[saes]]
ref = "zoo:gpt2/{LABEL}"
[features]
source = "zoo"
[corpus]
n_tokens = 100000
[prompts]
n = 12
[plan]
n_targets = 8
about = ["location", "person", "number", "emotion", "time"]
sources_per_bin = 2
n_random = 1
doses = [{KL}]
token_sets = ["in"]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    folder = tmp_path_factory.mktemp("toward") / "run"
    study = parse_study(STUDY)
    run_study(study, folder)
    make_beside("atlas", folder, AtlasOptions(n_prompts=8, top=5, sample=0))
    return Run.open(folder)


@pytest.fixture(scope="module")
def sections(run):
    return {c["name"]: c["rows"] for c in toward_section(run, panels.loci(run)[0], [])}


def test_the_first_rows_move_the_categorys_own_words_when_pushed_live(run, sections):
    model, sae = load_model("zoo:gpt2", device="cpu"), load_sae(f"zoo:gpt2/{LABEL}")
    words = CategoryWords.of(model.token_strings(range(model.spec.d_vocab)), word_start=True)
    ids = {n: row.nonzero()[:, 0].tolist() for n, row in zip(words.names, words.inside, strict=True)}
    changes = {}
    for name, category in CATEGORIES.items():
        for row in sections[category.label][:3]:
            moved = []
            for prompt in TEMPLATES[:8]:
                asked = Asked(
                    prompt=prompt,
                    sae=LABEL,
                    source=row["id"],
                    target=0,
                    locus="feature",
                    unit="kl",
                    dose=KL,
                    n_tokens=0,
                )
                seen = []
                # what is read as a target's tokens are the words of the category
                read = {"tokens_in": ids[name], "tokens_out": []}
                LiveSteer(asked, model=model, sae=sae, source=None, target=read, show=seen.append).run()
                odds = seen[-1]["sets"][0]
                moved.append(odds["after"] - odds["before"])
            changes[name, row["id"]] = moved
    assert len({name for name, _ in changes}) >= 6, "the test must have something to find"
    means = {key: np.mean(moved) for key, moved in changes.items()}
    assert min(means.values()) > 0, {key: m for key, m in means.items() if m <= 0}
    assert np.mean([m > 0 for moved in changes.values() for m in moved]) > 0.8


def test_what_is_listed_is_not_about_the_category(run, sections):
    table = run.table("features").to_pylist()
    known = {r["feature"]: r for r in table}
    for name, category in CATEGORIES.items():
        for row in sections[category.label]:
            feature = known[row["id"]]
            assert not is_about(feature["gloss"], feature["tokens_in_str"], builtin().words[name])


def test_the_atlas_gives_every_feature_and_its_first_rows_move_the_words_for_real(run):
    (path,) = (run.folder / "atlas").glob("*-atlas_toward.parquet")
    rows = pq.read_table(path).to_pylist()
    for name in CATEGORIES:
        mine = [r for r in rows if r["category"] == name]
        assert len(mine) == 1536
        assert [r["effect"] for r in mine] == sorted((r["effect"] for r in mine), reverse=True)
        first = [r for r in mine if r["unrelated"]][:STEERED_TOWARD]
        assert all(r["n_measured"] > 0 for r in first)
        assert min(r["measured"] for r in first) > 0
    measured = {(r["category"], r["source"]): r["effect"] for r in rows}
    # measured on other prompts and at a dose of its own, the trials agree with the gradient
    trials = [r for r in run.table("toward").to_pylist() if r["source"] >= 0]
    linear = [measured[r["category"], r["source"]] for r in trials]
    assert np.corrcoef(linear, [r["effect"] for r in trials])[0, 1] > 0.6
