"""A control, an outcome, a locus, a measure of similarity and an SAE dialect of another distribution come in by entry points and go the whole way, by
command line.

The distribution lies in a folder that is put on the path of a subprocess: a module and its metadata, as pip leaves them.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from polysem.models import load_model
from support.sae_fixtures import planted
from support.tiny import save_tiny_model

TOYS = """
import numpy as np
import torch

from polysem.saes.dialects import Dialect
from polysem.vocabulary import Control, Locus, Mark, Outcome, Similarity

OPPOSITE = Control(
    "opposite", "directions turned round", "minus the target's own direction", role="reference",
    mark=Mark("triangle", "#123456", "#abcdef"), arms="polysem_toys:opposite_arms", kind="opposite",
    direction="polysem_toys:opposite_direction",
)
FIRST = Outcome("first", "log-probability of the first token", "of the smallest id of the set", "nats", "polysem_toys:first")
BIAS = Locus("bias", "a push of everything", "the same number is added to every coordinate", "polysem_toys:BIAS")
LETTERS = Similarity("letters", "shared letters", "Jaccard overlap of letters", "gloss", "polysem_toys:Letters", "folder")
ROWS = Dialect("rows", "decoder rows", "the decoder and its site", load="polysem_toys:load", files=("rows.npy", "site.txt"))


class Letters:
    source = "toys"

    def __init__(self, argument):
        self.argument = argument

    def compare(self, left, right):
        sets = [(set(a), set(b)) for a, b in zip(left, right)]
        return np.array([len(a & b) / len(a | b) if a and b else np.nan for a, b in sets])


def load(source):
    from polysem.saes.parts import SAEParts
    from polysem.types import Site

    rows, site = source.path / "rows.npy", source.path / "site.txt"
    W = torch.from_numpy(np.load(rows))
    return SAEParts(
        dialect="rows", weights=rows, configs=(site,), site=Site.parse(site.read_text()), model_id=None,
        tensors={"W_enc": W.T, "W_dec": W, "b_enc": torch.zeros(len(W)), "b_dec": torch.zeros(W.shape[1])},
        activation="topk", rules={"k": 4},
    )


def opposite_arms(request):
    from polysem.act.arms import Arm
    from polysem.act.base import Recipe

    return [
        Arm("opposite", target, None, 0, Recipe.of("opposite", feature=target).text, -1, -1.0, None)
        for target in request.targets
    ]


def opposite_direction(recipe, context):
    from polysem.act.base import decoder_row, unit

    return -unit(decoder_row(context, recipe.integer("feature")))


def first(logits, sets):
    return torch.log_softmax(logits, -1)[:, sets.inside.argmax(-1)]


def __getattr__(name):
    if name != "BIAS":
        raise AttributeError(name)
    from polysem.act.arms import Arm
    from polysem.act.base import Recipe
    from polysem.act.feature import FeatureDirection

    class Bias(FeatureDirection):
        @property
        def kinds(self):
            return {"bias": lambda recipe, context: np.ones(context.sae.d_in) / context.sae.d_in**0.5}

        def arms(self, request):
            return [Arm("self", target, target, 0, Recipe.of("bias").text, -1, None, None) for target in request.targets]

        def doses(self, plan):
            return (0.25,), "resid_norm"

    return Bias()
"""
POINTS = """
[polysem.controls]
opposite = polysem_toys:OPPOSITE
[polysem.outcomes]
first = polysem_toys:FIRST
[polysem.similarities]
letters = polysem_toys:LETTERS
[polysem.loci]
bias = polysem_toys:BIAS_RECORD
[polysem.saes]
rows = polysem_toys:ROWS
"""
STUDY = """
[model]
ref = "{folder}/model"
device = "cpu"
[[saes]]
ref = "{folder}/sae"
label = "toy_rows"
max_fvu = 1e6
allow_other_model = true
[corpus]
ref = "{folder}/text.txt"
n_tokens = 2000
context = 32
[prompts]
source = "file:{folder}/prompts.txt"
n = 4
[pairs]
max_similarity = 1.0
[glosses]
similarity = ["letters:any"]
[plan]
loci = ["feature", "bias"]
controls = ["random_feature", "opposite"]
n_targets = 3
sources_per_bin = 1
n_random = 1
doses = [0.1]
dose_unit = "resid_norm"
"""


def _study(folder: Path) -> str:
    """A tiny model, a tiny SAE and noise to read."""
    save_tiny_model("gpt2", folder / "model")
    model = load_model(str(folder / "model"), device="cpu")
    rng = np.random.default_rng(0)

    def draw(n_tokens: int) -> str:
        return model.detokenize(rng.integers(4, model.spec.d_vocab, n_tokens).tolist())

    (folder / "text.txt").write_text("\n\n".join(draw(40) for _ in range(150)), encoding="utf-8")
    (folder / "prompts.txt").write_text("\n".join(draw(8) for _ in range(4)), encoding="utf-8")
    sae = planted(d_in=model.spec.d_model, layer=0, hook="hook_resid_post", seed=0)
    (folder / "sae").mkdir()
    np.save(folder / "sae" / "rows.npy", sae.W_dec.numpy())
    (folder / "sae" / "site.txt").write_text(sae.hook_name)
    return STUDY.format(folder=folder)


def _installed(folder: Path) -> Path:
    """A distribution as pip leaves it."""
    (folder / "polysem_toys.py").write_text(TOYS.replace("BIAS = Locus", "BIAS_RECORD = Locus"))
    facts = folder / "polysem_toys-0.1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: polysem-toys\nVersion: 0.1\n")
    (facts / "entry_points.txt").write_text(POINTS)
    return folder


def _polysem(folder: Path, *arguments: str) -> None:
    """The command line, where the toys are installed."""
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "polysem", *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": path, "POLYSEM_SYNC": "0"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


def rows_of_run(run: Path, stage: str, table: str) -> list[dict]:
    return [
        row
        for path in sorted((run / stage).glob(f"{table}*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    folder = _installed(tmp_path_factory.mktemp("toys"))
    (folder / "study.toml").write_text(_study(folder))
    _polysem(folder, "run", "study.toml", "--out", "run")
    return folder / "run"


@pytest.fixture(scope="module")
def trials(ran) -> list[dict]:
    plan = {row["trial_id"]: row for row in rows_of_run(ran, "plan", "plan")}
    return [{**plan[row["trial_id"]], **row} for row in rows_of_run(ran, "trials", "part")]


def test_a_control_is_planned_and_run(trials):
    mine = [row for row in trials if row["relation"] == "opposite"]
    assert mine
    assert {row["status"] for row in mine} == {"ok"}
    assert {round(row["alignment"], 6) for row in mine} == {-1.0}


def test_a_locus_is_planned_and_run_at_its_own_doses(trials):
    mine = [row for row in trials if row["locus"] == "bias"]
    assert {(row["dose"], row["dose_unit"]) for row in mine} == {(0.25, "resid_norm"), (-0.25, "resid_norm")}
    assert {row["status"] for row in mine} == {"ok"}
    assert all(row["kl"] > 0 for row in mine)


def test_an_outcome_is_read_before_and_after(trials):
    read = [row for row in trials if row["status"] == "ok"]
    assert all(row["first_base"] < 0 and row["first_edit"] < 0 for row in read)
    assert any(row["first_base"] != row["first_edit"] for row in read)
    assert all(
        row["first_edit"] <= row["mass_edit"] for row in read
    )  # a logarithm of a share of the set's mass


def test_a_dialect_is_read_and_its_sae_named_in_tables(ran):
    for stage, table in (("features", "features"), ("plan", "plan")):
        assert {row["sae"] for row in rows_of_run(ran, stage, table)} == {"toy_rows"}
        facts = json.loads((ran / stage / "manifest.json").read_text())["facts"]["saes"]["toy_rows"]
        assert (facts["dialect"], facts["site"], facts["d_sae"]) == ("rows", "blocks.0.hook_resid_post", 64)


def test_a_measure_of_similarity_is_taken(ran):
    mine = [row for row in rows_of_run(ran, "plan", "similarities") if row["measure"] == "letters:any"]
    assert mine
    assert {row["made_by"] for row in mine} == {"toys"}
    assert all(0 <= row["value"] <= 1 for row in mine)
    assert {"letters:any", "one factor"} < {
        r["measure"] for r in rows_of_run(ran, "effects", "similarity_model")
    }
    html = (ran / "report.html").read_text(encoding="utf-8")
    assert "letters:any" in html


def test_all_reach_the_effects(ran):
    effects = rows_of_run(ran, "effects", "effects")
    assert any("bias" in row["group"] for row in effects)
    for contrast, relation in (("pair_minus_opposite", ""), ("mean_effect", "; relation=opposite")):
        for outcome in ("logodds", "first"):
            mine = [
                row["estimate"]
                for row in effects
                if row["contrast"] == contrast
                and f"outcome={outcome};" in row["group"]
                and relation in row["group"]
            ]
            assert mine, (contrast, outcome)
            assert np.isfinite(mine).all()


def test_all_are_reported_under_their_own_names(ran):
    html = (ran / "report.html").read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<[^>]+>", " ", html).split())
    assert "pairs minus directions turned round" in text
    assert "mean effect directions turned round log-probability of the first token" in text
    assert "toy_rows: directions turned round, a direction steered" in text
    assert "A push of everything: the target itself" in text
    assert "saes.toy_rows.dialect rows" in text
    # The study has no random directions: the glossary and the declared questions alone may speak of them.
    for other in (
        "pairs minus random directions(?! at their cosines)",
        "mean effect random directions",
        "toy_rows: random directions",
    ):
        assert re.search(other, text) is None


def test_all_are_shown_in_the_explorer(ran):
    """In its export: the vocabulary that the page is given, the mark's colour, and rows under the toys' names."""
    out = ran.parent / "page"
    _polysem(ran.parent, "explore", "run", "--export", str(out))
    overview = json.loads((out / "data" / "overview.json").read_text(encoding="utf-8"))
    words = overview["vocabulary"]
    assert words["relations"]["opposite"]["label"] == "directions turned round"
    assert words["outcomes"]["first"]["label"] == "log-probability of the first token"
    assert words["loci"]["bias"]["label"] == "a push of everything"
    assert [sae["label"] for sae in overview["saes"]] == ["toy_rows"]
    style = (out / "static" / "figures.css").read_text(encoding="utf-8")
    assert "--k-opposite:#123456" in style
    assert "--k-opposite:#abcdef" in style
    stored = rows_of_run(ran, "effects", "pair_effects")
    for column, own in (("relation", "opposite"), ("locus", "bias"), ("sae", "toy_rows")):
        expected = sum(row[column] == own for row in stored)
        assert expected > 0
        assert _exported(out, "steering", column).count(own) == expected
    groups = _exported(out, "effects", "group")
    assert any("outcome=first" in group and "relation=opposite" in group for group in groups)


def _exported(folder: Path, relation: str, column: str) -> list[str]:
    """A column of texts as the page reads it: codes and their dictionary."""
    files = folder / "data" / "relations" / relation
    texts = json.loads((files / f"{column}.json").read_text(encoding="utf-8"))
    return [texts[code] for code in np.frombuffer((files / f"{column}.bin").read_bytes(), "<i4")]


def test_a_study_of_one_dictionary_says_what_it_cannot_claim(ran):
    """The page that `polysem run` wrote of a study with one SAE; `test_report` has the words for several."""
    text = " ".join(re.sub(r"<[^>]+>", " ", (ran / "report.html").read_text(encoding="utf-8")).split())
    assert (
        "blocks.0.hook_resid_post: one SAE. It is one of many that would reconstruct the same activations"
        in text
    )
    assert "cannot say that a pair, its interference or its effect is a fact about the model" in text
    assert "Survival of effects in another SAE" not in text
