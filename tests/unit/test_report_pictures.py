"""The pictures that a report shares with the explorer: single pairs over dose, activations, hubs, pushes by category,
transfer at a glance."""

import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy.stats import t as student

from polysem.categories import own_words
from polysem.report import cards, panels, write_report
from polysem.report.charts import Curve, Floor, histogram, pair_doses
from polysem.report.hubs import hubs_section
from polysem.report.network import Edge, Node, layout, neighbourhood
from polysem.report.pairs import pair_rows
from polysem.report.source import Run
from polysem.report.text import fixed, interval
from polysem.report.toward import toward_section
from polysem.report.transfer_section import matrix
from polysem.store import io
from polysem.store.tables import FEATURES
from support.synthetic import SyntheticStudy, synthetic_run

WORLD = SyntheticStudy(n_features=90, n_targets=4, n_prompts=6, doses=(0.1, 0.2), sources_per_bin=2)


class Drawing(HTMLParser):
    """Elements of a drawing with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(str(text))

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def all(self, tag, **attributes):
        wanted = {k.rstrip("_"): v for k, v in attributes.items()}
        return [a for t, a in self.found if t == tag and wanted.items() <= a.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic_run(tmp_path_factory.mktemp("pictures") / "run", WORLD)


@pytest.fixture(scope="module")
def run(folder):
    return Run.open(folder)


@pytest.fixture(scope="module")
def locus(run):
    (found,) = panels.loci(run)
    return found


@pytest.fixture(scope="module")
def rows(run, locus):
    return pair_rows(run, panels.measured(locus))[0]


def drawn_curves(run, locus, rows):
    pairs = [(row.sae, row.i, row.j) for row in rows]
    return cards.curves([locus], pairs, level=run.study.effects.level, response=run.table("response"))


def test_every_measured_pair_is_drawn_with_the_numbers_of_the_table(run, locus, rows):
    drawn, n_pairs = drawn_curves(run, locus, rows)
    measured = [row for row in rows if row.effects]
    assert n_pairs == len(measured) > 0
    assert [d.of for d in drawn] == [f"{r.sae}/{r.i}/{r.j}" for r in measured for _ in ("in", "out")]
    effects = run.table("pair_effects").to_pylist()
    row = measured[0]
    own = [
        r for r in effects
        if r["relation"] == "pair" and r["token_set"] == "in" and r["sae"] == row.sae
        and {r["source"], r["target"]} == {row.i, row.j}
    ]  # fmt: skip
    said = " ".join(re.findall(r"<title>([^<]*)</title>", str(drawn[0].drawing)))
    assert len(Drawing(drawn[0].drawing).all("circle")) == len(own) >= 2
    for r in own:
        half = student.ppf(0.5 + run.study.effects.level / 2, r["n_prompts"] - 1) * r["logodds_se"]
        assert f"dose {r['dose']:g}: " in said
        assert panels.number(r["logodds"], sign=True) in said
        assert panels.interval(r["logodds"] - half, r["logodds"] + half) in said


def test_the_noise_floor_is_the_middle_of_the_best_control(run, locus):
    sae = WORLD.saes[0]
    relation, floor, n = cards.noise_floor(locus, sae=sae, tokens="in")
    table = run.table("pair_effects")
    keep = (pc.field("sae") == sae) & (pc.field("token_set") == "in") & (pc.field("relation") == relation)
    mine = table.filter(keep)
    assert relation == "random_direction"
    assert [f.dose for f in floor] == [0.1, 0.2]
    for f in floor:
        effects = mine.filter(pc.field("dose") == f.dose)["logodds"].to_numpy()
        assert n == len(effects)
        assert (f.lo, f.hi) == pytest.approx(np.percentile(effects, [2.5, 97.5]))
    assert cards.noise_floor(locus, sae="another", tokens="in") == ("", [], 0)


def test_no_more_curves_than_a_report_can_bear(run, locus, rows, monkeypatch):
    monkeypatch.setattr(cards, "MAX_CURVES", 5)
    drawn, n_pairs = drawn_curves(run, locus, rows)
    assert (len(drawn), n_pairs) == (4, 2)  # whole pairs only


def test_a_dose_axis_by_root_puts_a_quarter_of_the_dose_in_the_middle():
    curve = Curve("1 steered, 2 read", "pair", [(0.025, 0.5, 0.4, 0.6), (0.1, 1.0, 0.9, None)])
    floor = [Floor(0.025, -0.1, 0.1), Floor(0.1, -0.2, 0.2)]
    at = {}
    for by_root in (True, False):
        drawing = Drawing(
            pair_doses([curve], floor=floor, title="t", x_label="dose", headline=0.1, by_root=by_root)
        )
        near, far = (float(c["cx"]) for c in drawing.all("circle"))
        start = min(float(a["x1"]) for a in drawing.all("line", class_="grid"))
        at[by_root] = (near - start) / (far - start)
        assert len(drawing.all("path", class_="floor")) == 1
        # the second point has no upper end, so it has no bar
        assert len([a for a in drawing.all("line") if "class" not in a]) == 1
        assert (
            "1 steered, 2 read: +1.00 nats (no interval) at dose 0.1" in drawing.all("svg")[0]["aria-label"]
        )
    assert at[True] == pytest.approx(0.5, abs=0.01)
    assert at[False] == pytest.approx(0.25, abs=0.01)


def test_histogram_counts_what_is_stored(run, rows):
    wanted = {(rows[0].sae, rows[0].i), (rows[0].sae, 10**6)}
    (drawn,) = cards.activations(run, wanted)
    contexts = run.table("contexts").to_pylist()
    values = [
        v
        for c in contexts
        if (c["sae"], c["feature"]) == (rows[0].sae, rows[0].i)
        for v in c["values"]
        if v > 0
    ]
    assert drawn.of == f"{rows[0].sae}/{rows[0].i}"
    assert drawn.caption.startswith(f"{len(values)} activation")
    bars = Drawing(histogram([0, 1, 2, 3], [4, 0, 1], title="t", x_label="x")).all("path", class_="bars")
    heights = [float(b) - float(a) for b, a in re.findall(r"M\S+ (\S+?)V(\S+?)H", bars[0]["d"])]
    assert len(heights) == 2  # nothing is drawn where nothing was counted
    assert heights[0] == pytest.approx(4 * heights[1], abs=0.3)


def test_layout_is_the_same_each_time_and_keeps_nodes_apart():
    rng = np.random.default_rng(0)
    ends = np.array([(0, k) for k in range(1, 19)])
    pull = 0.3 * (0.4 + rng.uniform(0.2, 0.6, size=18))
    places = layout(19, ends, pull)
    assert np.array_equal(places, layout(19, ends, pull))
    assert places.min() == 0
    assert places.max() == 1
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)[np.triu_indices(19, 1)]
    assert apart.min() > 0.05
    assert layout(1, np.empty((0, 2), dtype=int), np.empty(0)).shape == (1, 2)


def test_labels_of_a_graph_lie_on_no_other():
    nodes = [Node(k, f"a gloss of some length, number {k}") for k in range(19)]
    edges = [Edge(0, k, 0.5 - 0.04 * k) for k in range(1, 19)] + [Edge(3, 7, -0.4)]
    drawing = Drawing(neighbourhood(nodes, edges, title="t"))
    assert len(drawing.all("circle")) == 19
    assert len(drawing.all("line", class_="edge negative")) == sum(e.interference < 0 for e in edges)
    boxes = []
    for a in drawing.all("text"):
        long = 6.9 * 24
        left = float(a["x"]) - {"start": 0, "middle": 0.5, "end": 1}[a["text-anchor"]] * long
        boxes.append((left, float(a["y"])))
    for k, (x, y) in enumerate(boxes):
        for u, v in boxes[:k]:
            assert abs(y - v) > 14 or abs(x - u) > 140
    assert "number 18 −0.22" in drawing.all("svg")[0]["aria-label"]


def test_hubs_are_those_with_most_unflagged_pairs(run):
    pairs = [r for r in run.table("pairs").to_pylist() if not (r["is_duplicate"] or r["is_dense"])]
    for part, sae in zip(hubs_section(run), sorted(WORLD.saes), strict=True):
        mine = [r for r in pairs if r["sae"] == sae]
        degree = {f: sum(f in (r["i"], r["j"]) for r in mine) for f in range(WORLD.n_features)}
        assert [degree[r["feature"]] for r in part["rows"]] == sorted(degree.values(), reverse=True)[:8]
        hub = part["rows"][0]["feature"]
        plus = sum(hub in (r["i"], r["j"]) and r["interference"] > 0 for r in mine)
        assert part["rows"][0]["signs"] == f"{plus} / {degree[hub] - plus}"
        assert len(Drawing(part["panel"].drawing).all("circle")) == 1 + min(18, degree[hub])


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A study in which features below 30 are activated by a place, and others quote one in their gloss."""
    folder = synthetic_run(tmp_path_factory.mktemp("places") / "run", WORLD)
    path = folder / "features" / "features.parquet"
    table = io.read_table(path, FEATURES, rebuild="")
    feature = table["feature"].to_pylist()
    some = {
        "gloss": ['"of" — as in «the road to London»'] * len(feature),
        "tokens_in_str": [["hm", " Paris" if f < 30 else "ho"] for f in feature],
        "tokens_out_str": [["oh"] for _ in feature],
    }
    for name, values in some.items():
        k = table.column_names.index(name)
        table = table.set_column(k, table.schema.field(k), pa.array(values, type=table.schema.field(k).type))
    io.write_table(path, table, FEATURES)
    return folder


def test_pushes_toward_places_are_read_on_the_words_of_places_whatever_the_target(places):
    """Features below 30 fire on a place and are not unrelated; of the others those are shown that move the category's own
    words on both halves of the prompts, ordered on one, as measured on the other."""
    run = Run.open(places)
    (locus,) = panels.loci(run)
    rows = pair_rows(run, panels.measured(locus))[0]
    pushes = [
        r for r in run.table("toward").to_pylist() if r["category"] == "location" and r["dose"] == locus.dose
    ]

    def ends(row, mean, n):
        half = student.ppf(0.975, row[n] - 1) * row[f"{mean}_se"]
        return row[mean] - half, row[mean] + half

    def moving(some):
        return [
            r for r in some if ends(r, "effect", "n_prompts")[0] > 0 and ends(r, "select", "n_select")[0] > 0
        ]

    unrelated = [r for r in pushes if r["source"] >= 30]
    shown = sorted(moving(unrelated), key=lambda r: -ends(r, "select", "n_select")[0])[:6]
    assert len(shown) > 2, "the test must have something to find"
    (found,) = [c for c in toward_section(run, locus, rows) if c["name"] == "places"]
    assert [r["id"] for r in found["rows"]] == [r["source"] for r in shown]
    assert [r["effect"] for r in found["rows"]] == [fixed(r["effect"], sign=True) for r in shown]
    assert [r["interval"] for r in found["rows"]] == [
        interval(*ends(r, "effect", "n_prompts")) for r in shown
    ]
    controls = [r for r in pushes if r["relation"] == "random_direction"]
    related = sum(0 <= r["source"] < 30 for r in pushes)
    assert found["said"] == (
        f"{len(unrelated)} features that are not about it ({related} more are); "
        f"{len(moving(unrelated))} of {len(unrelated)} ({100 * len(moving(unrelated)) / len(unrelated):.0f} %) move the "
        f"model toward it, and {len(moving(controls))} of {len(controls)} "
        f"({100 * len(moving(controls)) / len(controls):.0f} %) random directions."
    )
    at = next(r["place"] for r in found["rows"] if r["place"] is not None)
    assert {rows[at].i, rows[at].j} & {r["id"] for r in found["rows"]}
    assert toward_section(run, None, rows) == []


@pytest.mark.parametrize(
    ("gloss", "left"),
    [
        ("places", "places"),
        ('"of" — as in «to London»', '"of" '),
        ("«cut off in Lon", " "),
        ("«a» b «c» d", "  b   d"),
    ],
)
def test_what_a_gloss_quotes_is_left_out(gloss, left):
    assert own_words(gloss) == left


def test_the_page_holds_the_drawings_where_the_script_finds_them(places, folder):
    html = write_report(places).read_text(encoding="utf-8")
    assert (
        html.index('id="effects"') < html.index('<section id="toward">') < html.index('<section id="hubs">')
    )
    assert html.count('href="#toward"') == 2  # in the first lines, and among the sections
    template = re.search(r'<template id="drawn">(.*?)</template>', html, re.DOTALL)
    assert template
    of = set(re.findall(r'data-of="([^"]*)"', template[1]))
    features = {(p["data-sae"], p["data-i"], p["data-j"]) for p in Drawing(html).all("tr", class_="pair")}
    assert {f"{sae}/{i}" for sae, i, _ in features} <= of
    assert any(f"{sae}/{i}/{j}" in of for sae, i, j in features)
    linked = set(re.findall(r'href="#(pair-\d+)"', html))
    assert linked
    assert linked <= set(re.findall(r'id="(pair-\d+)"', html))
    plain = write_report(folder).read_text(encoding="utf-8")
    assert "#pair-" in plain or 'id="toward"' not in plain


def test_transfer_at_a_glance_shades_by_size_and_stars_what_is_resolved():
    def row(arm, category, estimate, p_adj):
        ends = {"lo": estimate, "hi": estimate} if estimate is not None else {"lo": None, "hi": None}
        return {"arm": arm, "category": category, "estimate": estimate, "p_adj": p_adj, "level": 0.95, **ends}

    rows = [
        row("shared", "<b>", 0.8, 0.01),
        row("neither", "<b>", -0.4, 0.2),
        row("shared", "time", 0.02, None),
        row("neither", "time", None, None),
    ]
    html = str(matrix(rows, title="t", unit="nats"))
    cells = re.findall(r"<td([^>]*)>([^<]*)</td>", html)
    assert [text for _, text in cells] == ["+0.80 *", "−0.40", "+0.02", "–"]
    classes = [re.search(r'class="([^"]*)"', a) for a, _ in cells]
    assert [c and c[1] for c in classes] == ["plus4 resolved", "minus2", "", None]
    assert "<b>" not in html
    assert matrix([row("shared", "time", None, None)], title="t", unit="nats") == ""


def test_reading_the_tables_again_gives_the_same_page(places):
    first = write_report(places).read_bytes()
    assert write_report(places).read_bytes() == first
    assert pq.read_metadata(places / "features" / "features.parquet").num_rows == 180
