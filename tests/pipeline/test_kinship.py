"""Relations of features as a stage of a study, on the command line: counted on the map, left out of the plan, told with the
effects, shown in the report; killed and made again; and a study that does not ask. And its two SAEs of one site side by side."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from typer.testing import CliRunner

from polysem.cli.app import app
from polysem.config import load_study
from polysem.engine.status import study_status
from polysem.engine.verify import verify_run
from polysem.hierarchy.known import kinds_of
from polysem.models import load_model
from polysem.saes import load_sae
from polysem.store.run import RunFolder
from polysem.vocabulary_findings import KINSHIPS
from support.sae_fixtures import WRITERS, Weights, planted
from support.tiny import save_tiny_model

MIXED = list(range(10, 58, 2))
EVERY = [name for name in KINSHIPS if name != "unrelated"]
STUDY = """
name = "kin"
[model]
ref = "model"
device = "cpu"
[[saes]]
ref = "first"
label = "first"
max_fvu = 1e6
allow_other_model = true
[[saes]]
ref = "second"
label = "second"
max_fvu = 1e6
allow_other_model = true
[corpus]
ref = "text.txt"
n_tokens = 3000
context = 32
[pairs]
max_similarity = 1.0
{relations}
[prompts]
source = "file:prompts.txt"
n = 4
[plan]
n_targets = 4
sources_per_bin = 22
n_random = 1
controls = ["random_feature"]
doses = [0.1]
dose_unit = "resid_norm"
token_sets = ["in"]
"""
ASKED = '[relations]\nexclude = {exclude}\nat = "{at}"\nnarrow = ["narrow"]\nn_tokens = 3000\nprobes = 8\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kin")
    save_tiny_model("gpt2", folder / "model")
    model = load_model(str(folder / "model"), device="cpu")
    rng = np.random.default_rng(0)

    def draw(n_tokens: int) -> str:
        return model.detokenize(rng.integers(4, model.spec.d_vocab, n_tokens).tolist())

    (folder / "text.txt").write_text("\n\n".join(draw(40) for _ in range(200)), encoding="utf-8")
    (folder / "prompts.txt").write_text("\n".join(draw(8) for _ in range(4)), encoding="utf-8")
    facts = {"d_in": model.spec.d_model, "layer": 0, "hook": "hook_resid_post", "k": 6}
    wide = [_mixed(planted(d_sae=96, seed=seed, **facts)) for seed in (0, 1)]
    wide[1] = _sharing(wide[1], wide[0])
    narrow = _mixing(planted(d_sae=48, seed=2, **facts), wide)
    for name, weights in zip(("first", "second", "narrow"), (*wide, narrow), strict=True):
        WRITERS["saelens-v6-topk"](folder / name, weights)
    return folder


def _mixed(weights: Weights) -> Weights:
    """Twenty-four pairs of rows at a cosine of 0.5, which fire together: a narrower dictionary mixes each (`_mixing`)."""
    rows = weights.W_dec.clone()
    for m in MIXED:
        aside = torch.nn.functional.normalize(rows[m + 1] - (rows[m + 1] @ rows[m]) * rows[m], dim=0)
        rows[m + 1] = 0.5 * rows[m] + 0.75**0.5 * aside
    return replace(weights, W_dec=rows, W_enc=rows.T.contiguous())


def _sharing(weights: Weights, other: Weights) -> Weights:
    """The last rows are the other's: stable features, whose pairs come back."""
    rows = torch.cat([weights.W_dec[:60], other.W_dec[60:]])
    return replace(weights, W_dec=rows, W_enc=rows.T.contiguous())


def _mixing(narrow: Weights, wide: Sequence[Weights]) -> Weights:
    rows = torch.cat([w.W_dec[MIXED] + w.W_dec[[m + 1 for m in MIXED]] for w in wide])
    rows = torch.nn.functional.normalize(rows, dim=1)
    return replace(narrow, W_dec=rows, W_enc=rows.T.contiguous())


def made(folder: Path, name: str, relations: str, *, after: RunFolder | None = None) -> RunFolder:
    """A run; `after` another one of the same features, which are not harvested again."""
    if after is not None:
        shutil.copytree(after.root, folder / name, ignore=shutil.ignore_patterns("kinship", "*.lock"))
    (folder / f"{name}.toml").write_text(STUDY.format(relations=relations), encoding="utf-8")
    done = CliRunner().invoke(app, ["run", str(folder / f"{name}.toml"), "--out", str(folder / name)])
    assert done.exit_code == 0, done.output
    return RunFolder.open(folder / name)


@pytest.fixture(scope="module")
def drawn(folder) -> RunFolder:
    """Related pairs are drawn."""
    return made(folder, "drawn", ASKED.format(exclude=EVERY, at="effects"))


@pytest.fixture(scope="module")
def without(folder, drawn) -> RunFolder:
    """They are not."""
    return made(folder, "without", ASKED.format(exclude=EVERY, at="plan"), after=drawn)


@pytest.fixture(scope="module")
def silent(folder, drawn) -> RunFolder:
    """Nothing is asked."""
    return made(folder, "silent", "", after=drawn)


def related(run: RunFolder) -> list[tuple[str, int, int, str]]:
    """Planned pairs that have a relation: SAE, target, source, relation."""
    known = run.table("relations")
    kinds = {sae: kinds_of(known.filter(pc.equal(known["sae"], sae))) for sae in ("first", "second")}
    plan = run.table("plan").filter(pc.field("relation").isin(["pair", "negative_pair"]))
    rows = plan.select(["sae", "target", "source"]).group_by(["sae", "target", "source"]).aggregate([])
    ends = [(r["sae"], r["target"], r["source"]) for r in rows.to_pylist()]
    assert ends
    return [
        (s, t, o, kinds[s][min(t, o), max(t, o)]) for s, t, o in ends if (min(t, o), max(t, o)) in kinds[s]
    ]


def test_relations_are_a_stage_that_is_fresh_and_whole(drawn, silent) -> None:
    for run, there in ((drawn, True), (silent, False)):
        states = {s.stage: s.state for s in study_status(run.study(), run.root)}
        assert set(states.values()) == {"fresh"}
        assert ("kinship" in states) == there
        assert (run.root / "kinship").is_dir() == there
        assert verify_run(run.root, sample=0) == []


def test_pairs_of_the_map_are_counted_by_relation(drawn) -> None:
    pairs, known = drawn.table("pairs"), drawn.table("relations")
    counted = drawn.table("related_pairs").to_pylist()
    for sae in ("first", "second"):
        mine = [r for r in counted if r["sae"] == sae]
        own = pairs.filter(pc.equal(pairs["sae"], sae)).to_pylist()
        kinds = {(r["i"], r["j"]): r["relation"] for r in known.to_pylist() if r["sae"] == sae}
        assert sum(r["n_pairs"] for r in mine) == len(own)
        assert any(r["relation"] != "unrelated" for r in mine)
        for r in mine:
            same = [
                p
                for p in own
                if r["low"] <= abs(p["interference"]) < r["high"] + (r["high"] == 1)
                and kinds.get((p["i"], p["j"]), "unrelated") == r["relation"]
            ]
            assert r["n_pairs"] == len(same)
            assert r["n_flagged"] == sum(p["is_duplicate"] or p["is_dense"] for p in same)
            assert r["excluded"] == (r["relation"] != "unrelated")


def test_a_pair_with_an_excluded_relation_is_not_drawn_and_counted(drawn, without) -> None:
    assert not related(without)
    assert without.table("relations").equals(drawn.table("relations"))
    left = without.manifest("plan").facts["left_out"]
    assert set(left) <= set(EVERY)
    assert (
        0 < len(related(drawn)) <= sum(left.values())
    )  # a bin's sources are all drawn; of the other side as many as pairs
    assert drawn.manifest("plan").facts["left_out"] == {}
    targets = [set(run.table("plan")["target"].to_pylist()) for run in (drawn, without)]
    assert targets[0] == targets[1]


def test_slopes_are_told_with_and_without(drawn, without, silent) -> None:
    rows = drawn.table("slopes_without").to_pylist()
    assert {r["sae"] for r in rows} == {"*", "first", "second"}
    gone = {(s, t, o) for s, t, o, _ in related(drawn)}
    for r in rows:
        n = len([g for g in gone if r["sae"] in ("*", g[0])])
        positive = [r["n_left_out"] for r in rows if r["pairs"] == "unrelated"]
        assert r["n_left_out"] <= n
        assert (r["n_left_out"] == 0) == (r["pairs"] == "all") or r["sae"] != "*"
    assert max(positive) > 0
    assert {r["pairs"] for r in rows} == {"all", "not_excluded", "unrelated"}
    # the slope with all pairs is that of record
    effects = drawn.table("effects").to_pylist()
    record = {
        r["group"].split("sae=")[1].split(";")[0]: r["estimate"]
        for r in effects
        if r["contrast"] == "slope_interference" and "outcome=logodds;" in r["group"]
    }
    assert {r["sae"]: r["estimate"] for r in rows if r["pairs"] == "all"} == pytest.approx(record)
    assert {r["n_left_out"] for r in without.table("slopes_without").to_pylist()} == {0}
    assert silent.table("slopes_without").num_rows == 0


def test_the_report_says_what_was_found_or_that_it_was_not_asked(drawn, without, silent) -> None:
    pages = {run.root.name: (run.root / "report.html").read_text(encoding="utf-8") for run in (drawn, without, silent)}  # fmt: skip
    assert 'id="kinship"' in pages["drawn"]
    assert 'id="kinship"' not in pages["silent"]
    assert "was not asked" in pages["silent"]
    assert "was not asked" not in pages["drawn"]
    assert "without any that have a relation" in pages["drawn"]
    assert "Left out of the plan" in pages["without"]
    assert "listed pairs" in pages["drawn"]


def test_a_part_that_was_lost_is_made_again_with_the_same_bytes(without, folder) -> None:
    root = folder / "again"
    shutil.copytree(without.root, root)
    before = {p.name: p.read_bytes() for p in (root / "kinship").glob("*.parquet")}
    (root / "kinship" / "manifest.json").unlink()
    (root / "kinship" / "part-00001-of-00002.json").unlink()
    done = CliRunner().invoke(app, ["kinship", str(folder / "without.toml"), "--out", str(root)])
    assert done.exit_code == 0, done.output
    assert {p.name: p.read_bytes() for p in (root / "kinship").glob("*.parquet")} == before
    study = load_study(folder / "without.toml")
    assert {s.state for s in study_status(study, root)} == {"fresh"}


@pytest.mark.parametrize(
    ("relations", "verb", "said"),
    [
        ("", "kinship", "section [relations]"),
        ('[relations]\nnarrow = ["first"]\nn_tokens = 1000\n', "run", "expected fewer than"),
        ('[relations]\nexclude = ["sibling"]\n', "run", "sibling"),
    ],
)
def test_what_cannot_be_asked_is_an_error(
    folder, silent, tmp_path, relations: str, verb: str, said: str
) -> None:
    study = folder / f"wrong-{abs(hash(relations))}.toml"
    study.write_text(STUDY.format(relations=relations), encoding="utf-8")
    out = shutil.copytree(silent.root, tmp_path / "out")
    done = CliRunner().invoke(app, [verb, str(study), "--out", str(out)])
    assert done.exit_code in (1, 2)
    assert said in " ".join(done.output.split())
    if "sibling" not in relations:  # as the hint says: with the section, and without that dictionary
        study.write_text(
            STUDY.format(relations="[relations]\nn_tokens = 1000\nprobes = 4\n"), encoding="utf-8"
        )
        done = CliRunner().invoke(app, ["kinship", str(study), "--out", str(out)])
        assert done.exit_code == 0, done.output


def test_two_saes_of_a_site_are_compared_in_the_report(folder, drawn) -> None:
    """Matching, stability and the soft form by hand; the page tells them, and pairs and spans, without another command."""
    rows = [load_sae(str(folder / name)).W_dec.double().numpy() for name in ("first", "second")]
    a, b = (own / np.linalg.norm(own, axis=1, keepdims=True) for own in rows)
    size = np.abs(a @ b.T)
    i, j = linear_sum_assignment(size, maximize=True)
    (two,) = drawn.table("replicates").to_pylist()
    assert (two["first"], two["second"], two["n"]) == ("first", "second", 96)
    assert two["pw_mcc"] == pytest.approx(size[i, j].mean(), abs=1e-9)
    matching = drawn.table("matching")
    assert matching["feature"].to_pylist() == i.tolist()
    assert matching["match"].to_pylist() == j.tolist()
    known = drawn.table("stability")
    firm = dict(zip(i.tolist(), matching["stable"].to_pylist(), strict=True))
    for label, best in (("first", size.max(axis=1)), ("second", size.max(axis=0))):
        own = known.filter(pc.equal(known["sae"], label))
        np.testing.assert_allclose(own["nearest"].to_numpy(), best, atol=1e-9)
        assert 36 <= sum(own["stability"].to_pylist()) == sum(firm.values()) < 96
    assert all(r["same"] == 1 or r["matched"] == "stable" for r in drawn.table("survival").to_pylist())
    steered = drawn.table("replicated").to_pylist()
    assert all(r["stable_source"] <= firm.get(r["source"], False) for r in steered)
    page = (drawn.root / "report.html").read_text(encoding="utf-8")
    assert f"<td>{two['pw_mcc']:.3f}</td>" in page
    for caption in ("Features of two SAEs of a site, by weights", "Interfering pairs in another SAE", "Subspaces of features that are not stable"):  # fmt: skip
        assert caption in page


def test_the_comparison_is_made_again_with_the_same_bytes_and_asks_for_two(drawn, folder) -> None:
    root = shutil.copytree(drawn.root, folder / "compared")
    before = {p.name: p.read_bytes() for p in (root / "dictionaries").glob("*.parquet")}
    shutil.rmtree(root / "dictionaries")
    done = CliRunner().invoke(app, ["dictionaries", str(folder / "drawn.toml"), "--out", str(root)])
    assert done.exit_code == 0, done.output
    assert {p.name: p.read_bytes() for p in (root / "dictionaries").glob("*.parquet")} == before
    study = folder / "alone.toml"
    text = STUDY.format(relations="")
    study.write_text(
        text.replace(text[text.rindex("[[saes]]") : text.index("[corpus]")], ""), encoding="utf-8"
    )
    done = CliRunner().invoke(app, ["dictionaries", str(study), "--out", str(folder / "alone")])
    assert done.exit_code == 2
    assert "where a study has 2 sections [[saes]]" in " ".join(done.output.split())


def test_verbs_beside_a_study_make_its_relations_first(folder, drawn) -> None:
    root = folder / "beside"
    shutil.copytree(
        drawn.root, root, ignore=shutil.ignore_patterns("kinship", "plan", "trials", "effects", "*.lock")
    )
    asked = ["--features", "1", "--sae", "first", "--target", "a,the", "--null", "3", "--tokens", "0"]
    done = CliRunner().invoke(app, ["side-effects", str(folder / "drawn.toml"), "--out", str(root), *asked])
    assert done.exit_code == 0, done.output
    assert RunFolder.open(root).table("relations").equals(drawn.table("relations"))
    assert not (root / "trials").exists()
