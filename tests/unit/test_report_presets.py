"""The side-by-side section of the report: there when asked for, with the numbers of the table, in plain words."""

import re
from html import unescape

import pyarrow.compute as pc
import pytest

from polysem.report import write_report
from polysem.report.presets import presets_section
from polysem.report.source import Run
from polysem.report.text import number
from support.synthetic import SyntheticStudy, synthetic_run

WORLD = {"n_features": 90, "n_targets": 4, "n_prompts": 4, "doses": (0.1, 0.2), "sources_per_bin": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {
        preset: synthetic_run(root / preset, SyntheticStudy(**WORLD, preset=preset))
        for preset in ("strict", "paper", "both")
    }


@pytest.fixture(scope="module")
def html(runs):
    return write_report(runs["both"]).read_text(encoding="utf-8")


def section(html):
    """Text of the section as a reader sees it."""
    inside = html.split('<section id="presets">')[1].split("</section>")[0]
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", inside)))


def rows(run, **parts):
    table = Run.open(run).table("presets")
    for name, value in parts.items():
        table = table.filter(pc.equal(table[name], value))
    return sorted(table.to_pylist(), key=lambda r: r["step"])


def test_both_ends_and_what_lies_between_are_told_with_their_numbers(runs, html):
    text = section(html)
    for question in ("slope_a", "slope_b", "difference", "mean"):
        walk = rows(runs["both"], question=question, relation="pair", path="walk", token_set="in")
        for row in (walk[0], walk[-1]):
            scale = 100 if row["unit"].startswith("relative") else 1
            assert number(scale * row["estimate"], sign=True) in text
        assert f"{walk[0]['n_rows']} trials of" in text
    assert "pairs in place of trials, errors clustered by target, source and prompt: the interval is" in text
    assert "log-odds in place of relative change of c: now" in text
    assert "why they differ" in text
    assert 'href="#presets"' in html


def test_the_way_is_drawn_in_standard_errors(runs, html):
    part = html.split('<section id="presets">')[1].split("</section>")[0]
    pictures = re.findall(r"<svg.*?</svg>", part, flags=re.DOTALL)
    questions = ("slope_b", "slope_a", "difference", "mean")
    assert len(pictures) == 2 * len(questions)  # of both token sets
    for picture, question in zip(pictures, questions, strict=False):
        walk = rows(runs["both"], question=question, relation="pair", path="walk", token_set="in")
        assert picture.count("<circle") == sum(r["estimate"] is not None and bool(r["se"]) for r in walk) > 2
        for end in (walk[0], walk[-1]):
            assert number(end["estimate"] / end["se"], sign=True) in unescape(picture)


def test_what_selection_adds_stands_next_to_it(runs, html):
    text = section(html)
    at = {
        r["choice"]: r["estimate"]
        for r in rows(runs["both"], question="mean", relation="isotropic", path="optimism", token_set="in")
    }
    said = f"still gives them a mean “effect” of {number(100 * at['best_per_prompt'], sign=True)} %; with the strength"
    assert f"{said} chosen on other prompts it is {number(100 * at['same_on_confirm'], sign=True)} %" in text
    assert number(100 * at["optimism_per_prompt"], sign=True) + " %" in text


def test_a_strict_study_has_no_such_section(runs):
    assert presets_section(Run.open(runs["strict"])) is None
    assert 'id="presets"' not in write_report(runs["strict"]).read_text(encoding="utf-8")


def test_the_papers_preset_shows_its_end_alone(runs):
    text = section(write_report(runs["paper"]).read_text(encoding="utf-8"))
    assert "the paper's way" in text
    assert "why they differ" not in text
    assert "Every change" not in text
    assert "What choosing the strength adds" in text


def test_numbers_that_are_not_there_are_reasons(tmp_path, runs):
    """Without an isotropic arm the paper's difference has a dash, a reason and no invented explanation."""
    table = presets_section(Run.open(runs["both"]))
    assert table is not None
    question = next(q for q in table["parts"][0]["questions"] if "random directions" in q["asked"])
    assert question["why"]
    lacking = synthetic_run(tmp_path / "a", SyntheticStudy(**WORLD, preset="both", isotropic=False))
    table = presets_section(Run.open(lacking))
    assert table is not None
    question = next(q for q in table["parts"][0]["questions"] if "random directions" in q["asked"])
    assert question["paper"]["estimate"] == "–"
    assert "add 'isotropic' to plan.controls" in question["paper"]["interval"]
    assert [w for w in question["why"] if "strength" in w] == []
    assert table["parts"][0]["null"] == ""


def test_the_page_is_the_same_bytes_again(runs, html):
    assert write_report(runs["both"]).read_text(encoding="utf-8") == html
