"""The word of a finding: which grades make it, and that each line of a grade sees what it is there to see."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from polysem.seeds import rng_for
from polysem.stats.grades import SLOPE, GradedLine, claim_of, grade_of, graded
from polysem.stats.rows import reach
from polysem.store.tables import FINDINGS, GRADED
from polysem.vocabulary_findings import CLAIMS, GRADE_LINES, GRADES

AGREED = dict.fromkeys(GRADES, "agrees")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """docs/grades.py, which makes the table of docs/effects.md."""
    path = Path(__file__).resolve().parents[2] / "docs" / "grades.py"
    spec = importlib.util.spec_from_file_location("grades_docs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def told(script, view, *, seed=0):
    """(finding, verdict and words of each line) of the slope on interference."""
    findings, lines = script.study(view, seed=seed)
    finding = next(f for f in findings if f["contrast"] == SLOPE)
    return finding, {r["line"]: (r["verdict"], r["said"]) for r in lines if r["contrast"] == SLOPE}


def moved(view, change):
    """The view with `change` added to the effects of pairs, in nats."""
    y = view.columns["logodds"] + np.where(view.columns["relation"] == "pair", change, 0.0)
    return replace(view, columns={**view.columns, "logodds": y})


@pytest.mark.parametrize(
    ("p", "p_adj", "p_equivalent", "declared", "claim"),
    [
        (0.01, 0.04, 0.9, True, "predicts"),
        (0.01, 0.06, 0.9, True, "not_resolved"),  # the raw p alone resolves nothing
        (0.01, 0.04, 0.01, True, "too_small"),
        (0.4, 1.0, 0.01, True, "no_effect"),
        (0.4, 1.0, 0.06, True, "not_resolved"),  # no evidence of absence
        (0.01, None, 0.9, False, "undeclared"),
        (None, None, None, True, "no_interval"),
    ],
)
def test_a_claim_follows_the_adjusted_p_the_equivalence_test_and_the_grades(
    p, p_adj, p_equivalent, declared, claim
):
    row = {"estimate": 0.1, "level": 0.95, "p": p, "p_adj": p_adj, "p_equivalent": p_equivalent}
    assert claim_of(row, AGREED, declared=declared) == claim
    assert claim_of(row | {"estimate": None}, AGREED) == "not_estimated"
    for grade in GRADES:
        for verdict in ("disagrees", "untested"):
            weaker = claim_of(row, AGREED | {grade: verdict}, declared=declared)
            assert weaker == ("associated" if claim == "predicts" else claim)


def test_a_grade_agrees_where_no_line_disagrees_and_one_was_tested():
    yes, no, unknown = (
        GradedLine("linearity", verdict, "") for verdict in ("agrees", "disagrees", "untested")
    )
    assert grade_of([yes, unknown]) == "agrees"
    assert grade_of([yes, no]) == "disagrees"
    assert grade_of([unknown]) == grade_of([]) == "untested"


def test_every_claim_and_line_has_its_record():
    assert {line.grade for line in GRADE_LINES.values()} == set(GRADES)
    assert [name for name, claim in CLAIMS.items() if claim.mark == "found"] == ["predicts"]


def test_a_strong_straight_slope_in_every_sae_predicts(script):
    finding, lines = told(script, script.world(4.0, seed=2))
    assert finding["claim"] == "predicts"
    assert {verdict for verdict, _ in lines.values()} == {"agrees"}
    assert set(lines) == set(GRADE_LINES)
    assert finding["against"] is None


def test_nothing_is_told_beyond_the_95th_percentile_of_the_pairs_used(script):
    view = script.world(2.0, seed=0)
    used = np.abs(view.columns["interference"][view.columns["relation"] == "pair"])
    far = told(script, view)[0]["reach"]
    assert np.mean(used <= far) == pytest.approx(0.95, abs=0.01)
    assert far == pytest.approx(reach(used))  # the very pairs that the slope rests on
    assert reach(used) == reach(-used)
    assert np.isnan(reach(np.array([np.nan])))


def test_one_sae_without_the_slope_is_named(script):
    view = script.world(4.0, seed=1)
    off = np.where(view.columns["sae"] == "sae 1", -4.0 * view.columns["interference"], 0.0)
    finding, lines = told(script, moved(view, off))
    assert finding["claim"] == "associated"
    assert lines["each_sae"][0] == "disagrees"
    assert "sae 1 alone has" in lines["each_sae"][1]
    assert lines["each_sae"][1] in finding["against"]


def test_a_bend_is_found_where_it_is(script):
    view = script.world(0.0, seed=1)
    finding, lines = told(script, moved(view, 8.0 * np.maximum(view.columns["interference"] - 0.2, 0.0)))
    assert finding["significant"] == "agrees"
    assert lines["linearity"][0] == "disagrees"
    assert "bends at 0.2" in lines["linearity"][1]


def test_a_slope_that_one_bin_makes_is_named(script):
    """All of the difference lies between the lowest bin and the rest."""
    view = script.world(0.0, seed=1)
    low = view.columns["interference_bin"] == 0
    finding, lines = told(script, moved(view, np.where(low, -0.6, 0.0)))
    assert finding["significant"] == "agrees"
    assert lines["without_a_bin"][0] == "disagrees"
    assert "without the pairs at 0.00 to 0.10" in lines["without_a_bin"][1]


def test_a_sure_slope_that_explains_little_does_not_predict(script):
    """With noise of the size of many slopes the held-out R2 is near nothing, however small p is."""
    view = script.world(0.0, seed=1)
    rng = rng_for(1, "noise")
    x = view.columns["interference"]
    noise = rng.standard_normal(len(x)) * 0.6
    finding, lines = told(script, moved(view, 1.2 * x + noise))
    assert finding["predictive"] == "disagrees"
    assert "not above zero" in lines["unseen_targets"][1] + lines["unseen_sources"][1]
    assert finding["claim"] != "predicts"


def test_one_sae_and_one_bin_leave_their_lines_untested(script):
    view = script.world(4.0, seed=1)
    one = view.only((view.columns["sae"] == "sae 0") & (view.columns["interference_bin"] <= 0))
    _, lines = told(script, one)
    assert lines["each_sae"] == ("untested", "there is one SAE")
    assert lines["without_a_bin"] == ("untested", "the pairs are of one bin of interference")
    assert lines["linearity"][0] == "untested"


def test_differences_are_graded_without_a_curve(script):
    findings, lines = script.study(moved(script.world(0.0, seed=1), 0.8), seed=0)
    of = {f["contrast"]: f for f in findings}
    assert of["pair_minus_cosine_matched"]["claim"] == "predicts"
    assert (
        of["geometry_effect"]["claim"] != "predicts"
    )  # pairs were moved, directions at their cosines were not
    assert {r["line"] for r in lines if r["contrast"] == "pair_minus_cosine_matched"} == {
        *("adjusted_p", "each_sae", "without_a_bin", "unseen_targets", "unseen_sources")
    }


def test_what_only_the_angle_does_is_no_identity_effect(script):
    findings, _ = script.study(script.world(4.0, seed=2), seed=0)
    of = {f["contrast"]: f["claim"] for f in findings}
    assert of["geometry_effect"] in ("predicts", "associated")
    assert of["pair_minus_cosine_matched"] not in ("predicts", "associated")


def test_signs_that_are_all_alike_predict_nothing(script):
    view = moved(script.world(0.0, seed=1), 0.8)
    findings, _ = script.study(view.only(view.columns["relation"] != "negative_pair"), seed=0)
    sign = next(f for f in findings if f["contrast"] == "sign_agreement")
    assert sign["predictive"] == "untested"
    assert sign["claim"] != "predicts"


def test_the_tables_hold_what_was_graded(script):
    findings, lines = script.study(script.world(1.0, seed=3), seed=3)
    assert FINDINGS.of(findings).num_rows == 4
    made = GRADED.of(lines).to_pylist()
    assert {(r["contrast"], r["group"]) for r in made} == {(f["contrast"], f["group"]) for f in findings}
    assert all(r["grade"] == GRADE_LINES[r["line"]].grade for r in made)


def test_no_questions_no_findings(script):
    assert graded(
        script.world(0.0, seed=0), [], [], declared=True, specification=[], explained=[], seed=0
    ) == ([], [])


def test_the_word_predicts_is_rare_where_there_is_nothing(script):
    """In 25 null worlds: never; docs/effects.md has 400."""
    assert script.rates(0.0, 25).get("claim predicts", 0.0) == 0.0
