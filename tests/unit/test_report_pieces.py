"""The pieces of a page: text, numbers, elements, axes and charts."""

import json
import math
import re

import numpy as np
import pytest

from polysem.report.charts import Bar, Curve, dose_chart, dot_plot
from polysem.report.heatmap import HeatCell, chance_bound, pair_map
from polysem.report.html import table
from polysem.report.pairs import shaded
from polysem.report.svg import Axis, el, padded
from polysem.report.text import count, embed_json, fixed, interval, number, p_value, visible


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain é 漢字 🙂", "plain é 漢字 🙂"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("a\u200b\u2066b\ufeff", "a⟨U+200B⟩⟨U+2066⟩b⟨U+FEFF⟩"),
        ("\x00\x1b[31m\x7f", "⟨U+0000⟩⟨U+001B⟩[31m⟨U+007F⟩"),
        ("line\nnext\ttab", "line↵next⇥tab"),
        ("\U000e0041\u00ad\u3164", "⟨U+E0041⟩⟨U+00AD⟩⟨U+3164⟩"),
        ("e" + "\u0301" * 5, "e" + "\u0301" * 3 + "⟨U+0301⟩" * 2),
        ("x" * 401, "x" * 400 + "… [401 characters]"),
        ("\ud800", "⟨U+D800⟩"),
    ],
)
def test_visible(given, shown):
    assert visible(given) == shown


def test_embedded_json_round_trips_without_markup():
    value = {"a": "</script>&<!--\u2028\u2029", "b": [1.5, None, True]}
    text = embed_json(value)
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="JSON"):
        embed_json(math.nan)


def test_numbers_in_words():
    assert [number(v) for v in (0.1234, 12.345, 12345.6, -0.5, 0.0, None, math.nan)] == [
        "0.123", "12.3", "12,346", "−0.500", "0", "–", "–"
    ]  # fmt: skip
    assert number(0.00001234) == "1.23e-05"
    assert interval(-0.1234, 1.5) == "−0.12 to +1.50"
    assert interval(None, 1.0) == "no interval"
    assert [count(v) for v in (0, 7, 1234567, 0.25)] == ["0", "7", "1\u202f234\u202f567", "0.25"]
    assert [p_value(v) for v in (0.0, 0.0123, 0.5, None)] == ["< 0.0001", "0.0123", "0.50", "–"]
    assert p_value(1e-9, name="p") == "p < 0.0001"
    assert fixed(-0.0004, places=3) == "−0.000"


def test_elements_escape_text_and_attributes():
    drawn = el("text", "<b>&", data_x='"><script>', x=1.0)
    assert drawn == '<text data-x="&#34;&gt;&lt;script&gt;" x="1">&lt;b&gt;&amp;</text>'


def test_scales_and_ticks():
    scale = Axis(0.0, 10.0, 100.0, 200.0)
    assert (scale(0), scale(5), scale(10)) == (100, 150, 200)
    assert scale.ticks() == [0, 2, 4, 6, 8, 10]
    decades = Axis(0.001, 1.0, 0.0, 300.0, logarithmic=True)
    assert decades(0.01) == pytest.approx(100)
    assert decades.ticks() == pytest.approx([0.001, 0.01, 0.1, 1.0])
    assert padded([]) == (-1.0, 1.0)
    lo, hi = padded([2.0, 2.0])
    assert lo < 2 < hi


def test_chance_bound_is_the_quantile_of_random_cosines():
    rng = np.random.default_rng(0)
    d = 24
    a, b = rng.standard_normal((2, 200_000, d))
    cosine = np.abs((a * b).sum(1)) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    # Monte-Carlo error of a share of .001 among 200,000: 7e-5
    assert np.mean(cosine > chance_bound(d)) == pytest.approx(0.001, abs=2.5e-4)


def test_heat_map_places_cells_and_corner():
    cells = [
        HeatCell(0.0, 0.5, 0.0, 0.5, 1000),
        HeatCell(0.5, 1.0, 0.0, 0.5, 1),
        HeatCell(-0.5, 0.0, -0.5, 0.0, 0),
    ]
    drawn = str(
        pair_map(
            cells,
            label="x",
            min_interference=0.25,
            max_similarity=0.25,
            n_listed=(7, 2),
            chance=[],
            among=cells,
        )
    )
    paths = re.findall(r'<path class="v (v\d+)" d="([^"]*)"', drawn)
    assert [(c, d.count("M")) for c, d in paths] == [
        ("v0", 1),
        ("v16", 1),
    ]  # 1 is the first step, 1000 the last
    assert "7 pairs listed" in drawn
    assert "1,001 pairs" in drawn
    corner = re.search(
        r'<rect class="corner" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', drawn
    )
    left, top, width, height = map(float, corner.groups())
    box = {k: float(v) for k, v in re.findall(r'data-(x0|x1|y0|y1|xlo|xhi|ylo|yhi)="([-\d.]+)"', drawn)}
    share = (0.25 - box["xlo"]) / (box["xhi"] - box["xlo"])
    assert width == pytest.approx(share * (box["x1"] - box["x0"]), abs=0.02)
    assert (left, top) == (box["x0"], box["y1"])
    share = (box["yhi"] - 0.25) / (box["yhi"] - box["ylo"])
    assert height == pytest.approx(share * (box["y0"] - box["y1"]), abs=0.02)


def test_charts_bear_empty_and_degenerate_input():
    assert "not estimated" in dot_plot([("a", [Bar("pair", None, None, None, "")])], title="t", x_label="x")
    one = Curve("c", "b0", [(0.1, 0.2, None, None)])
    drawn = dose_chart([one, Curve("none", "b1", [])], title="t", x_label="d", headline=0.1, y_label="y")
    assert "nan" not in drawn.lower().replace("nats", "")


def test_end_labels_do_not_overlap():
    curves = [Curve(f"c{k}", "b0", [(1.0, 0.001 * k, None, None)]) for k in range(9)]
    drawn = dose_chart(curves, title="t", x_label="d", headline=1.0, y_label="y")
    places = sorted(float(y) for y in re.findall(r'class="end-label" x="[\d.]+" y="([\d.]+)"', drawn))
    assert len(places) == 9
    assert min(np.diff(places)) >= 15.9


def test_a_text_is_shaded_in_fifths_of_the_largest_and_stays_a_text_in_a_cell():
    drawn = shaded(["<b>", " a", "\n", "c"], [0.0, 1.0, 4.6, 5.0], 5.0)
    assert drawn == (
        '<p class="context"><span>&lt;b&gt;</span><span class="s1" title="1.00"> a</span>'
        '<span class="s5" title="4.60">↵</span><span class="s5" title="5.00">c</span></p>'
    )
    assert shaded(["a"], [0.0], 0.0) == '<p class="context"><span>a</span></p>'
    cells = table((("x", "x"), ("y", "y")), [{"x": drawn, "y": "<i>"}], caption="c")
    assert drawn in cells
    assert "&lt;i&gt;" in cells


def test_a_count_in_a_cell_keeps_its_narrow_spaces_and_a_text_shows_them():
    rows = [{"n": count(1234567)}, {"n": "a\u202fb 1\u202f2"}]
    drawn = table(["n"], rows, caption="c")
    assert "1\u202f234\u202f567<" in drawn
    assert "a⟨U+202F⟩b 1⟨U+202F⟩2" in drawn
