"""Names that the vocabulary does not know, or that another distribution adds, are shown under their own label with their own
mark; nothing of report and explorer keeps a list of its own."""

import re
from html import unescape
from pathlib import Path

import pyarrow as pa
import pytest

import polysem.explore
from polysem import vocabulary
from polysem.explore import Book
from polysem.explore.documents import overview
from polysem.report import words, write_report
from polysem.report.charts import legend, mark
from polysem.store import io
from polysem.store.tables import EFFECTS, MISSING, PAIR_EFFECTS
from polysem.vocabulary import (
    CONTROLS,
    LOCI,
    OUTCOMES,
    RELATIONS,
    TOKEN_SETS,
    Control,
    Mark,
    Outcome,
    Vocabulary,
)
from support.synthetic import SyntheticStudy, synthetic_run

WORLD = SyntheticStudy(n_features=90, n_targets=4, n_prompts=4, doses=(0.1, 0.2), sources_per_bin=2)
TOY = Control(
    "toy_control",
    "directions of a toy",
    "made up",
    role="reference",
    mark=Mark("square", "#112233", "#ddeeff"),
    floor=9,
    arms="toy:arms",
)


def renamed(folder: Path, name: str, schema, change) -> None:
    """A table of a run, rewritten row by row."""
    path = folder / "effects" / f"{name}.parquet"
    rows = [change(dict(row)) for row in io.read_table(path, schema, rebuild="").to_pylist()]
    io.write_table(path, pa.Table.from_pylist(rows, schema=schema.arrow()), schema)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose random features are of a control that is not installed, and whose cosines are of an outcome that is
    not."""
    folder = synthetic_run(tmp_path_factory.mktemp("words") / "run", WORLD)

    def effect(row):
        row["group"] = row["group"].replace("relation=random_feature", "relation=toy_control")
        row["group"] = row["group"].replace("outcome=cosine", "outcome=toy_outcome")
        if not row["p_adj"]:
            row["contrast"] = row["contrast"].replace("random_feature", "toy_control")
        return row

    def relation(row):
        return row | {"relation": row["relation"].replace("random_feature", "toy_control")}

    renamed(folder, "effects", EFFECTS, effect)
    renamed(folder, "pair_effects", PAIR_EFFECTS, relation)
    renamed(folder, "missing", MISSING, lambda r: relation(r) | {"reason": r["reason"] and "toy_reason"})
    return folder


@pytest.fixture
def installed(monkeypatch):
    """The toy control as a distribution would bring it."""
    monkeypatch.setitem(CONTROLS._words, TOY.name, TOY)
    monkeypatch.setitem(RELATIONS._words, TOY.name, TOY)


def test_a_control_that_is_not_installed_is_shown_by_its_name_with_a_mark_of_its_own(run):
    html = write_report(run).read_text(encoding="utf-8")
    body = html[html.index("<body>") :]
    assert "pairs minus toy control" in body
    assert ">toy control<" in body  # in the legend and among the mean effects
    hover = next(t for t in map(unescape, re.findall(r"<title>([^<]*)</title>", body)) if "toy control" in t)
    assert "feature" in hover
    assert "random" not in hover
    assert 'class="mark k-toy_control"' in body
    assert "k-toy_control{" not in html  # not known to the style sheet: it has the colour of all that is not
    assert words.relation("toy_control").mark == words.OTHER
    assert words.OTHER not in {r.mark for r in RELATIONS.values()}


def test_an_outcome_and_a_reason_that_are_not_installed_are_rows_of_their_tables(run):
    text = unescape(re.sub(r"<[^>]+>", "\n", write_report(run).read_text(encoding="utf-8")))
    assert "toy outcome, T-in" in text
    assert "toy reason" in text


def test_a_control_of_another_distribution_has_its_label_mark_and_colour(run, installed):
    html = write_report(run).read_text(encoding="utf-8")
    assert "pairs minus directions of a toy" in html
    assert "directions of a toy" in html[html.index('id="effects"') : html.index("Over dose, and")]
    assert "directions of a toy: " in html[html.index("Over dose, and") :]  # beside the pairs over dose
    assert "--k-toy_control:#112233" in html
    assert ".k-toy_control{--c:var(--k-toy_control)}" in html
    assert "made up" in html[html.index('class="glossary-all"') :]
    assert "<rect" in legend([("toy_control", "a toy")])
    assert words.floors()[-1] == "toy_control"


def test_the_explorer_is_given_the_same_words(run, installed):
    book = Book(run)
    told = overview(book)["vocabulary"]
    book.close()
    assert told["relations"]["toy_control"]["label"] == "directions of a toy"
    assert told["relations"]["toy_control"]["mark"] == {
        "shape": "square",
        "light": "#112233",
        "dark": "#ddeeff",
    }
    assert list(told["loci"]) == list(LOCI)


def test_an_outcome_of_another_distribution_is_called_by_its_label():
    more = Outcome("toy_outcome", "how toyish", "made up", "toys", "toy:read")
    kind = Vocabulary("outcome", *OUTCOMES.values(), more)
    assert words.word(kind, "toy_outcome").label == "how toyish"
    assert words.unit_of(kind["toy_outcome"]) == "toys"
    assert words.outcome("toy_outcome") == "toy outcome"


def test_names_stand_in_the_order_of_the_vocabulary_and_unknown_ones_last():
    assert words.in_order(LOCI, {"prompt", "b", "feature", "a"}) == ["feature", "prompt", "a", "b"]


def test_every_shape_of_the_vocabulary_is_drawn():
    drawn = {RELATIONS[name].mark.shape: str(mark(name, 0.0, 0.0)) for name in RELATIONS}
    assert len(set(drawn.values())) == len(drawn)


def test_the_page_keeps_no_list_of_its_own():
    """No two names of loci, relations or contrasts stand in one script, but where a view is about them."""
    root = Path(polysem.explore.__file__).parent / "static"
    scripts = {path.name: path.read_text(encoding="utf-8") for path in root.rglob("*.js")}
    # names of the vocabulary that are also words of other things: columns, arms, axes
    names = {*RELATIONS, *LOCI, *vocabulary.CONTRASTS, *OUTCOMES} - {
        "pair",
        "self",
        "feature",
        "prompt",
        "neuron",
        "cosine",
        "logodds",
        "gradient",
        "mass",
    }
    assert not {
        (file, name)
        for file, text in scripts.items()
        for name in names
        if re.search(rf"['\"`]?\b{name}\b['\"`]?\s*:", text)
    }
    assert not {
        (file, label)
        for file, text in scripts.items()
        for label in (w.label for kind in (LOCI, RELATIONS, TOKEN_SETS) for w in kind.values())
        if f'"{label}"' in text
    }
