"""Every view in a real browser: opened, searched, sorted, brushed, linked, reloaded from its address."""

import re
import urllib.parse

import numpy as np
import pytest

from polysem.report.network import layout

SAE, OTHER = "blocks.2.hook_resid_post", "blocks.2.hook_mlp_out"


def first_push(visit) -> tuple[str, int, int]:
    """SAE and features of a pair that was pushed."""
    visit.open("#/steering")
    href = visit.page.get_attribute("table.grid tbody a.open", "href")
    sae, i, j = re.fullmatch(r"#/pair/([^/]+)/(\d+)/(\d+)", href).groups()
    return urllib.parse.unquote(sae), int(i), int(j)


def test_the_first_page_says_what_the_study_holds(visit, served):
    here = visit(served)
    words = here.text()
    assert "synthetic" in words
    assert "pairs examined" in words
    assert here.page.url == f"{served.base}/"  # the token has left the address
    assert not here.wrong


def test_nothing_is_loaded_from_elsewhere(visit, served):
    here = visit(served)
    for view in ("map", "pairs", "steering", "hubs", "results", "tables"):
        here.open(f"#/{view}")
    assert all(url.startswith((served.base, "blob:")) for url in here.requests)
    assert not here.wrong


def test_from_the_first_page_to_what_pushes_the_model_toward_something(visit, served):
    here = visit(served)
    here.page.fill("#toward", "keel, danube")
    here.page.click("text=Show")
    here.settled()
    rows = here.rows()
    assert here.page.inner_text("h1") == "Steering"
    total = int(re.search(r"of (\d+) row", here.text(".summary")).group(1))
    assert 0 < len(rows) == min(50, total)
    targets = here.page.eval_on_selector_all(
        "td.col-gloss_target .gloss", "nodes => nodes.map(n => n.textContent)"
    )
    assert set(targets) <= {"parts of a ship", "names of rivers"}
    effects = [
        float(t.replace("−", "-"))
        for t in here.page.eval_on_selector_all(
            "td.col-logodds strong", "nodes => nodes.map(n => n.textContent)"
        )
    ]
    assert effects == sorted(effects, reverse=True)
    assert not here.wrong


def test_a_category_opens_the_features_that_move_its_own_words_though_they_are_not_about_it(visit, served):
    here = visit(served)
    here.page.click(".kinds >> text=people")
    here.page.wait_for_selector("td.col-gloss_source")
    here.settled()
    rows = here.page.evaluate("fetch('data/rows/toward?f=category=person&limit=1000').then((r) => r.json())")[
        "rows"
    ]
    wanted = [r for r in rows if r["unrelated"] and r["moves"] and r["dose"] == 0.2]
    assert wanted, "the test must have something to find"
    wanted.sort(key=lambda r: -r["select_lo"])
    seen = here.page.eval_on_selector_all("td.col-gloss_source .id", "nodes => nodes.map(n => n.textContent)")
    assert seen == [f"feature {r['source']}" for r in wanted[:50]]
    assert not here.wrong


def test_a_category_says_why_a_target_counts(visit, served):
    here = visit(served)
    here.open("#/steering?f=target~%40color&sort=-logodds")
    here.page.wait_for_selector("td.col-gloss_target")
    here.settled()
    words = set(
        here.page.evaluate("fetch('data/overview.json').then((r) => r.json())")["categories"]["color"]
    )
    targets = here.page.eval_on_selector_all("td.col-gloss_target", "nodes => nodes.map(n => n.textContent)")
    assert targets
    for text in targets:
        (said,) = re.findall(r" · (?:fires on|writes): ([^·]+)", text)
        assert {word.strip() for word in said.split(", ")} <= words
    here.page.click("text=All features about it")
    here.settled()
    assert here.hash == "#/hubs?f=feature~%40color"
    assert here.rows()
    assert not here.wrong


def test_search_filter_sort_and_page_are_in_the_address_and_survive_a_reload(visit, served):
    here = visit(served)
    here.open("#/pairs")
    assert "is_duplicate=false" in here.hash
    before = here.rows()
    here.page.fill("input[type=search]", "horses")
    here.page.wait_for_url("**q=horses**")
    here.settled()
    found = here.rows()
    assert found != before
    assert all("horses" in row for row in found)
    here.page.click("summary:has-text('Filter')")
    here.page.select_option("select[aria-label=Column]", "similarity")
    here.page.select_option("select[aria-label=Comparison]", "<=")
    here.page.fill("input[aria-label=Value]", "0")
    here.page.click("text=Add")
    here.settled()
    here.page.click("th.col-similarity button, th button:has-text('Gloss similarity')")
    here.settled()
    here.page.click("text=Next")
    here.settled()
    assert "page=2" in here.hash
    assert "sort=-similarity" in here.hash
    values = column(here, "similarity")
    assert values == sorted(values, reverse=True)
    assert max(values) <= 0
    address, rows = here.hash, here.rows()
    here.page.reload()
    here.settled()
    assert (here.hash, here.rows()) == (address, rows)
    here.page.go_back()
    here.settled()
    assert "page=2" not in here.hash
    assert here.rows() != rows
    assert not here.wrong


def column(here, name: str) -> list[float]:
    texts = here.page.eval_on_selector_all(f"td.col-{name}", "nodes => nodes.map(n => n.textContent)")
    return [float(text.replace("−", "-")) for text in texts]


def test_a_filter_can_be_taken_away_and_columns_chosen(visit, served):
    here = visit(served)
    here.open("#/pairs")
    for _ in range(2):
        here.page.click("button.chip")
        here.settled()
    assert not here.page.query_selector("button.chip")
    assert "all=1" in here.hash
    here.page.click("summary:has-text('Columns')")
    here.page.check("label:has-text('Token overlap') input")
    here.settled()
    assert "cols=" in here.hash
    assert here.page.query_selector("td.col-token_overlap")
    assert not here.wrong


def test_what_is_on_the_screen_can_be_saved(visit, served):
    here = visit(served)
    here.open("#/pairs?f=interference>=0.35&sort=-interference")
    total = int(re.search(r"of ([\d,]+) row", here.text(".summary")).group(1).replace(",", ""))
    with here.page.expect_download() as download:
        here.page.click(".tools >> text=CSV")
    lines = download.value.path().read_text().splitlines()
    assert len(lines) == total + 1
    assert not here.wrong


def test_a_rectangle_on_the_map_lists_its_pairs(visit, served):
    here = visit(served)
    here.open("#/map")
    box = here.page.query_selector("svg.heat .catch").bounding_box()
    x, y = box["x"] + 0.1 * box["width"], box["y"] + 0.05 * box["height"]
    here.page.mouse.move(x, y)
    here.page.mouse.down()
    here.page.mouse.move(x + 0.35 * box["width"], y + 0.25 * box["height"], steps=4)
    here.page.mouse.up()
    here.page.wait_for_selector("table.grid")
    here.settled()
    assert "box=" in here.hash
    low, high = (float(here.page.input_value(f"#box-{k}")) for k in ("i0", "i1"))
    values = column(here, "interference")
    assert values
    assert all(low - 1e-3 <= v <= high + 1e-3 for v in values)
    address, rows = here.hash, here.rows()
    here.page.reload()
    here.page.wait_for_selector("table.grid")
    here.settled()
    assert (here.hash, here.rows()) == (address, rows)
    # the same by keyboard: a number in a field
    here.page.fill("#box-i0", "0.4")
    here.page.press("#box-i0", "Enter")
    here.page.wait_for_url("**box=*0.4*")
    here.settled()
    assert min(column(here, "interference")) >= 0.4
    assert not here.wrong


def test_another_sae_is_one_click_away_and_keeps_the_rectangle(visit, served):
    here = visit(served)
    here.open("#/map?box=-0.5,0.2,0.25,0.5")
    here.page.click(".small-multiples li:nth-child(2) a")
    here.settled()
    assert "sae=" in here.hash
    assert "box=" in here.hash
    assert here.page.inner_text(".map-place figure h4").startswith("blocks.2.hook_mlp_out: ")
    assert not here.wrong


def test_a_pair_card_shows_both_features_chance_and_what_was_measured(visit, served):
    here = visit(served)
    sae, i, j = first_push(here)
    here.open(f"#/pair/{sae}/{i}/{j}")
    words = here.text()
    for said in (
        "Interference",
        "Gloss similarity",
        "Where it fires",
        "Tokens that activate it",
        "noise floor",
        "What the effect is made of",
        "predicted by linear response",
        "How strongly it fires",
    ):
        assert said in words
    assert len(here.page.query_selector_all("article.feature-card")) == 2
    assert here.page.query_selector(".context .s5")
    assert here.page.query_selector("svg.chart .floor")
    here.page.click("summary:has-text('Numbers')")
    assert "random directions" in here.text("table.numbers")
    assert not here.wrong


def test_a_feature_page_draws_neighbours_and_grows(visit, served):
    here = visit(served)
    here.open(f"#/feature/{SAE}/5")
    before = len(here.page.query_selector_all("svg.graph .node"))
    assert before > 5
    here.page.focus("svg.graph .node:last-child")
    here.page.keyboard.press("Enter")
    here.settled()
    assert "open=" in here.hash
    after = len(here.page.query_selector_all("svg.graph .node"))
    assert after > before
    here.page.reload()
    here.settled()
    assert len(here.page.query_selector_all("svg.graph .node")) == after
    assert not here.wrong


def test_the_graph_of_the_page_lies_as_that_of_the_report(visit, served):
    here = visit(served)
    rng = np.random.default_rng(3)
    ends = np.array([(0, k) for k in range(1, 12)] + [(1, 2), (3, 7), (4, 9)])
    size = rng.uniform(0.2, 0.9, len(ends))
    ours = layout(12, ends, np.where((ends == 0).any(1), 0.3, 0.04) * (0.4 + size))
    nodes = [{"id": k} for k in range(12)]
    edges = [
        {"a": int(a), "b": int(b), "w": float(w), "between": bool(a and b)}
        for (a, b), w in zip(ends, size, strict=True)
    ]
    theirs = here.page.evaluate(
        "async ([nodes, edges]) => [...(await import('./static/graph.js')).layout(nodes, edges).values()]",
        [nodes, edges],
    )
    np.testing.assert_allclose(theirs, (ours - ours.min(0)) / np.ptp(ours, axis=0), atol=1e-6)


def test_paper_and_strict_stand_side_by_side(visit, served):
    here = visit(served)
    here.open("#/results")
    here.page.click("text=Paper against strict")
    here.settled()
    assert here.hash == "#/results/presets"
    rows = here.page.evaluate(
        "fetch('data/rows/presets?f=question=slope_b&f=path=walk&f=token_set=in&sort=step').then((r) => r.json())"
    )["rows"]
    ends = here.page.eval_on_selector_all(
        "#presets table tbody tr:first-child td strong", "nodes => nodes.map(n => n.textContent)"
    )[:2]
    told = [float(text.split()[0].strip("*").replace("−", "-").replace(",", "")) for text in ends]
    percent = [
        100 * row["estimate"] if "change" in row["unit"] else row["estimate"] for row in (rows[0], rows[-1])
    ]
    assert told == pytest.approx(percent, rel=0.01)
    # every step of the way is a dot
    first = here.page.query_selector("#presets figure")
    assert len(first.query_selector_all("circle")) == len(rows)
    assert not here.wrong


def test_transfer_shows_categories_by_arm_by_model(visit, served):
    here = visit(served)
    here.open("#/results/transfer")
    heads = here.page.eval_on_selector_all(
        "figure:has(.matrix) h4", "nodes => nodes.filter(n => n.offsetParent).map(n => n.textContent)"
    )
    assert [head.split(",")[0] for head in heads] == ["large", "small"]
    first = "[data-measure]:not([hidden]) figure:has(.matrix):first-of-type"
    assert len(here.page.query_selector_all(f"{first} tbody tr")) == 4
    resolved = here.page.eval_on_selector_all(
        f"{first} td.resolved", "nodes => nodes.map(n => n.textContent)"
    )
    assert resolved == ["+0.80 *", "+1.00 *", "+1.20 *", "+1.40 *"]
    assert "+1.80" in here.text()  # log-odds of the largest, in its table
    # another measure is a click, and an address
    here.page.click("nav[aria-label='What is measured'] >> text=log-odds")
    here.settled()
    assert "measure=logodds" in here.hash
    shown = here.page.eval_on_selector_all(
        "figure:has(.matrix)",
        "nodes => nodes.filter(n => n.offsetParent).map(n => n.querySelector('td.resolved').textContent)",
    )
    assert shown == ["+1.80 *", "+1.40 *"]
    assert here.page.locator("nav[aria-label='What is measured']").count() == 1
    assert not here.wrong


def test_what_is_asked_for_is_shown_however_late_its_event_comes(visit, served):
    here = visit(served)
    here.page.add_init_script(
        """const add = window.addEventListener.bind(window);
        window.addEventListener = (kind, hear, ...rest) =>
          add(kind, kind === "hashchange" ? (event) => setTimeout(() => hear(event), 500) : hear, ...rest);"""
    )
    here.page.reload()
    here.open("#/results")
    here.page.click("text=Paper against strict")
    here.settled()
    assert here.page.query_selector("#presets")
    assert not here.wrong


def test_a_point_of_the_scatter_leads_to_its_pair(visit, served):
    here = visit(served)
    here.open("#/results")
    mark = here.page.query_selector("[data-pair]")
    sae, i, j = mark.get_attribute("data-pair").split("/")
    mark.dispatch_event("click")
    here.settled()
    assert here.hash == f"#/pair/{sae}/{i}/{j}"
    assert not here.wrong


def test_figures_are_nodes_and_the_page_adopts_nothing_that_runs(visit, served):
    here = visit(served)
    here.open("#/map")
    assert not here.page.query_selector("main script, main style, main [onload], main foreignObject")
    cell = here.page.query_selector("svg[data-cells] .v")
    box = cell.bounding_box()
    here.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert re.fullmatch(
        r"[\d,]+ pairs: similarity \S+ to \S+, interference \S+ to \S+", here.text(".readout").strip()
    )
    assert not here.wrong


def test_hubs_coordinates_results_and_tables(visit, served):
    here = visit(served)
    here.open("#/hubs")
    counts = column(here, "n_unflagged")
    assert counts == sorted(counts, reverse=True)
    here.page.click("text=Coordinates")
    here.settled()
    assert here.hash == "#/hubs/coordinates"
    here.open("#/results")
    assert "Does interference predict how much the tokens that activate the target move?" in here.text()
    assert len(here.page.query_selector_all("svg.chart")) >= 4
    here.open("#/tables")
    for name in ("plan", "trials", "missing", "dose_response"):
        here.open(f"#/tables/{name}")
        assert here.rows()
    assert not here.wrong


def test_weights_between_layers_go_from_the_matrix_to_edges_to_features_and_back(visit, served):
    here = visit(served)
    here.page.click("nav[aria-label=Views] >> text=Layers")
    here.settled()
    head, *cells = here.page.locator("table.layers tr").all_inner_texts()
    assert head.split()[-1] == "plt.2"
    assert len(cells) == 1  # what has no weights has no row, and its reason is said
    assert re.search(r"40 pairs\s+25 % never co-fire\s+rms 0.0200", cells[0])
    assert "the target reads before the source writes" in here.text()
    first, second = here.rows()[:2]
    for said in ("feature 59", "0.000600", "−0.0200 −0.0300 to −0.0100", "1.00 ×", "0.300"):
        assert said in first
    assert "0.000590" in second
    # a cell of the matrix, by keyboard, is a filter of the list, which can be sorted and filtered on
    here.page.focus("table.layers td.linked a >> nth=0")
    here.page.keyboard.press("Enter")
    here.settled()
    assert "60 rows" in here.text(".summary")
    assert here.page.get_attribute("table.layers a[aria-current]", "href") == "#/layers?all=1"
    here.page.click("th button:has-text('Weight')")
    here.settled()
    assert column(here, "weight")[:31] == [0.1] * 30 + [-0.1]
    here.open("#/layers?f=lift=0&f=weight>=0&sort=effectiveness")
    assert [re.search(r"feature (\d+) of", row.split("\t")[1]).group(1) for row in here.rows()[:3]] == [
        "0",
        "6",
        "12",
    ]
    # from an edge to its feature, whose page lists the strongest edges, and to the feature at the other end
    here.page.click("td.col-source a >> nth=0")
    here.settled()
    assert here.hash == f"#/feature/{SAE}/5"
    edges = here.page.locator("section.edges li").all_inner_texts()
    assert [int(re.search(r"feature (\d+)", e).group(1)) for e in edges] == list(range(59, 51, -1))
    assert "No edge is listed." in here.text("section.edges")
    here.page.click("section.edges li a >> nth=0")
    here.settled()
    assert here.hash == f"#/feature/{OTHER}/59"
    here.page.click("section.edges >> text=oaths")
    here.settled()
    here.page.click("section.edges >> text=All 70 edges")
    here.settled()
    assert "of 70 rows" in here.text(".summary")
    assert not here.wrong


def test_a_card_says_what_a_feature_is_to_others_and_whether_another_dictionary_has_it(visit, served):
    here = visit(served)
    here.open(f"#/feature/{SAE}/5")
    kin = [" ".join(text.split()) for text in here.page.locator("section.kin li").all_inner_texts()]
    assert f"of {OTHER}" in kin[0]
    assert kin[0].startswith("its match is not beyond chance: ")
    assert kin[0].endswith("|cosine| 0.40")
    assert "The nearest direction there, of any feature: |cosine| 0.45." in here.text("section.kin")
    assert [re.sub(r" .*feature", "", text).split(" pair")[0] for text in kin[1:]] == [
        "absorbed 12",
        "antipodal 3",
        "parent 9",
    ]
    assert kin[1].startswith("absorbed in part by ")
    assert kin[3].startswith("parent of ")
    assert kin[3].endswith(
        "5 fires on 400 tokens, 9 on 90, both on 88; needed more than 20 of 20 of like density"
    )
    assert "on 12.5 % of its tokens" in here.text("section.kin")
    here.page.click("section.kin li:last-child a >> text=pair")
    here.settled()
    assert here.hash == f"#/pair/{SAE}/5/9"
    assert "5 is parent of 9: the one fires on nine tenths" in here.text("section.kin")
    here.page.click("article.feature-card:last-child a >> text=feature 9")
    here.settled()
    assert "child of" in here.text("section.kin")
    here.open(f"#/feature/{SAE}/2")
    assert "Stable in 1 of 1 other dictionary" in here.text("section.kin")
    assert "By where features fire it is nothing to any other." in here.text("section.kin")
    here.open(f"#/pair/{SAE}/5/20")
    assert "unrelated by where they fire" in here.text("section.kin")
    assert not here.wrong


@pytest.mark.parametrize(
    "address",
    [
        "#/nowhere",
        "#/pair/x/y/z",
        "#/pair/none/1/2",
        "#/feature/none/3",
        "#/pairs?f=interference>=much",
        "#/tables/none",
        "#/pairs?page=99999",
        "#/map?box=a,b",
    ],
)
def test_a_wrong_address_is_said_and_breaks_nothing(visit, served, address):
    here = visit(served)
    here.open(address)
    assert here.text()
    # a refusal is logged by the browser as a failed request; anything else would be a fault of the page
    assert all("Failed to load resource" in text for text in here.wrong)
    here.open("#/pairs")
    assert here.rows()


def test_predicted_pushes_say_how_far_to_believe_them_and_show_all_pairs(visit, served_atlas):
    here = visit(served_atlas)
    here.open("#/steering")
    here.page.click("text=Predicted")
    here.settled()
    assert here.hash.startswith("#/steering/predicted")
    effects = here.page.locator("td.col-effect").all_inner_texts()
    assert [float(text.replace("−", "-")) for text in effects] == [3, 1, -2]
    assert "0.910 (0.880 to 0.940)" in here.text("details.panel")
    here.page.click("text=All pairs: does interference foretell the effect?")
    here.page.wait_for_selector("figure svg")
    here.settled()
    assert "777 ordered pairs" in here.text("figure figcaption")
    here.page.click("td.col-open a")
    here.settled()
    assert here.hash == f"#/pair/{SAE}/0/1"
    assert not here.wrong


def test_the_keyboard_is_enough(visit, served):
    here = visit(served)
    here.open("#/pairs")
    here.page.focus("table.grid tbody a.open")
    here.page.keyboard.press("ArrowDown")
    here.page.keyboard.press("ArrowDown")
    focused = here.page.evaluate_handle("document.activeElement").get_attribute("href")
    assert focused == here.page.get_attribute("table.grid tbody tr:nth-child(3) a.open", "href")
    here.page.keyboard.press("Enter")
    here.settled()
    assert here.hash == focused
    here.page.focus("a.skip")
    here.page.keyboard.press("Enter")
    assert here.page.evaluate("document.activeElement.id") == "main"
