"""docs/results: the page says what its tables say, the tables what the runs say, and a verdict what its interval allows."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from support.synthetic import SyntheticStudy, synthetic_run

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results"
WORLD = SyntheticStudy(
    n_features=60, n_targets=4, n_prompts=8, doses=(0.1, 0.2), saes=("blocks.14.hook_resid_post",)
)


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def claims():
    yield _script("claims")
    del sys.modules["claims"]


@pytest.fixture(scope="module")
def sections(claims):
    yield _script("sections")
    del sys.modules["sections"]


@pytest.fixture(scope="module")
def make(sections):
    yield _script("make")
    del sys.modules["make"]


def test_the_page_is_what_its_tables_say(make, sections):
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == sections.page(make.read_tables())


def test_every_estimate_of_the_page_is_a_cell_of_a_table(make, claims, sections):
    """Another number in a table is another page: nothing is copied by hand."""
    kept = make.read_tables()
    before = sections.page(kept)
    told = [line for claim in claims.CLAIMS for line in claim.lines(kept)]
    assert told
    for row in kept["effects"]:
        row["estimate"] = 123.456
    after = sections.page(kept)
    assert "+123" not in before
    assert after.count("+123") > 5


def test_tables_and_pictures_of_a_run(make, sections, tmp_path, monkeypatch):
    """What a run holds is in the tables to six digits, and comes back as it was."""
    monkeypatch.setattr(make, "HERE", tmp_path)
    run = make.open_run(synthetic_run(tmp_path / "runs" / "sites", WORLD))
    kept = make.collect(tmp_path / "runs")
    kept["pictures"] = make.draw(tmp_path / "runs")
    make.write_tables(kept)
    assert {file.name for file in tmp_path.glob("*.svg")} == {"map.svg", "sites.svg"}
    back = make.read_tables(tmp_path)
    assert back.keys() == kept.keys()
    group = "locus=feature; sae=*; outcome=logodds; tokens=in; dose="
    want = next(
        r
        for r in run.table("effects").to_pylist()
        if r["contrast"] == "slope_interference" and r["group"].startswith(group)
    )
    got = next(
        r
        for r in back["effects"]
        if r["contrast"] == "slope_interference" and r["sae"] == "*" and r["tokens"] == "in"
    )
    assert got["estimate"] == pytest.approx(want["estimate"], rel=1e-5)
    assert got["declared"] is True
    page = sections.page(back)
    assert "Not run." in page  # the studies that are not there
    assert f"{int(want['n_pairs'])} pairs" in page


BASE = {"estimate": 0.3, "lo": 0.1, "hi": 0.5, "declared": False, "claim": "undeclared", "p_adj": 0.01}


@pytest.mark.parametrize(
    ("changed", "asked", "word"),
    [
        ({}, {}, "HOLDS"),
        ({"estimate": -0.3, "lo": -0.5, "hi": -0.1}, {}, "AGAINST"),
        ({"lo": -0.1}, {}, "OPEN"),
        ({}, {"null": 0.5}, "OPEN"),
        ({"p_adj": 0.2}, {"p": "p_adj"}, "OPEN"),
        ({"p_adj": None}, {"p": "p_adj"}, "OPEN"),
        ({"p_adj": 0.02}, {"p": "p_adj"}, "HOLDS"),
        ({"declared": True, "claim": "not_resolved"}, {}, "OPEN"),
        ({"declared": True, "claim": "associated"}, {}, "SHORT"),
        (
            {"declared": True, "claim": "associated", "estimate": -0.3, "lo": -0.5, "hi": -0.1},
            {},
            "AGAINST",
        ),
        ({"declared": True, "claim": "predicts"}, {}, "HOLDS"),
        ({"declared": True, "claim": "too_small"}, {}, "NULL"),
        ({"declared": True, "claim": "no_effect", "lo": -0.01, "hi": 0.01}, {}, "NULL"),
    ],
)
def test_a_verdict_says_no_more_than_its_interval(claims, changed, asked, word):
    assert claims.verdict(BASE | changed, **asked) == vars(claims)[word]


def test_no_interval_no_verdict(claims):
    assert claims.verdict(BASE | {"lo": None}) == "no interval"


def test_a_ratio_without_an_upper_end_excludes_nothing_above(claims):
    row = {"locus": "gradient", "reference": "feature", "tokens": "out", "ratio": 0.4, "lo": 0.0, "hi": None}
    assert [line.verdict for line in claims.strengths("gradient", 10.0)({"budgets": [row]})] == [
        "10 times is not excluded"
    ]
    (none,) = claims.strengths("gradient", 10.0)({"budgets": [row | {"lo": None}]})
    assert none.verdict == "no interval"


def test_every_study_of_the_page_has_its_file(claims):
    folder = FOLDER.parents[1] / "studies" / "real"
    assert {file.stem for file in folder.glob("*.toml")} >= set(claims.STUDIES)
    assert {name for claim in claims.CLAIMS for name in claim.made_by.split(", ")} <= set(claims.STUDIES)
    assert WORLD.saes == (claims.MIDDLE,)


def test_the_second_seed_is_set_beside_the_first(claims, sections):
    def row(sae, estimate, lo, hi):
        known = {
            "study": "sites",
            "locus": "feature",
            "contrast": "pair_minus_random_feature",
            "tokens": "in",
            "outcome": "logodds",
        }
        return (
            BASE
            | known
            | {"sae": sae, "estimate": estimate, "lo": lo, "hi": hi, "unit": "nats", "p_equivalent": None}
        )

    one = row(claims.MIDDLE, 0.3, 0.1, 0.5)
    page = sections.page({"effects": [one, row(claims.OTHER_SEED, -0.1, -0.3, 0.05)]})
    assert "of 1 verdicts it changes **1**; in 0 the two intervals overlap" in page
    assert "above, then not resolved" in page
    assert "changes **0**; in 1 the two" in sections.page(
        {"effects": [one, row(claims.OTHER_SEED, 0.4, 0.2, 0.6)]}
    )
    assert "second seed's" not in sections.page({"effects": [one]})


def test_a_larger_drop_with_degree_counts_for_the_claim_and_a_larger_rise_does_too(claims):
    base = {
        "locus": "neuron",
        "tokens": "in",
        "path": "degree",
        "step": 0.0,
        "unit": "relative change per bin",
        "n_rows": 4.0,
    }
    rows = [
        base | {"question": q, "estimate": e, "lo": e - 0.1, "hi": e + 0.1}
        for q, e in (("rise", 0.2), ("drop", -0.3))
    ]
    rise, drop = claims.neurons({"degrees": rows})
    assert (rise.estimate, drop.estimate) == pytest.approx((20.0, 30.0))
    assert (drop.lo, drop.hi) == pytest.approx((20.0, 40.0))
    assert {rise.verdict, drop.verdict} == {claims.HOLDS}
    assert drop.n == "4 neurons"
