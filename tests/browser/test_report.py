"""The report in a browser: opened rows draw what was measured, links to pairs open them, hostile texts stay texts."""

import pyarrow as pa
import pytest

from polysem.report import write_report
from polysem.store import io
from polysem.store.tables import FEATURES
from support.synthetic import SyntheticStudy, synthetic_run

HOSTILE = (
    "</template><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"'><svg onload=alert(3)>",
)
WORLD = SyntheticStudy(
    n_features=80, n_targets=4, n_prompts=4, doses=(0.1, 0.2), sources_per_bin=2, preset="both"
)


@pytest.fixture(scope="module")
def reported(serving, tmp_path_factory):
    folder = synthetic_run(tmp_path_factory.mktemp("reported") / "run", WORLD)
    write_report(folder)
    return serving.files(folder)


@pytest.fixture(scope="module")
def hostile(serving, tmp_path_factory):
    """Hostile glosses and tokens; the tokens name a place too, so that pushes are listed."""
    folder = synthetic_run(tmp_path_factory.mktemp("report") / "run", WORLD)
    path = folder / "features" / "features.parquet"
    table = io.read_table(path, FEATURES, rebuild="")
    n = table.num_rows
    some = {
        "gloss": [HOSTILE[k % 3] for k in range(n)],
        "tokens_in_str": [[HOSTILE[k % 3], " London"] for k in range(n)],
    }
    for name, values in some.items():
        k = table.column_names.index(name)
        table = table.set_column(k, table.schema.field(k), pa.array(values, type=table.schema.field(k).type))
    io.write_table(path, table, FEATURES)
    write_report(folder)
    return serving.files(folder)


@pytest.fixture
def open_page(chromium):
    """A function that opens a report; at the end nothing may have gone wrong in it."""
    contexts, wrong = [], []

    def start(served, *, width=1200, height=900, dark=False, at="", bypass_csp=False):
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            bypass_csp=bypass_csp,
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        # A plain file server sends no icon; that request is the browser's own.
        page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
        page.goto(f"{served.base}/report.html{at}")
        return page

    yield start
    for context in contexts:
        context.close()
    assert not wrong


def test_an_opened_row_draws_its_pair_and_both_features(open_page, reported):
    page = open_page(reported)
    assert page.locator("tr.detail").count() == 0
    row = page.locator("tr.pair").first
    sae, i, j = (row.get_attribute(f"data-{name}") for name in ("sae", "i", "j"))
    row.locator("button.open").click()
    detail = page.locator("tr.detail").first
    curves = detail.locator(f'figure[data-of="{sae}/{i}/{j}"]')
    assert curves.count() >= 2
    assert all(curves.nth(k).locator("svg .line").count() >= 1 for k in range(curves.count()))
    assert curves.first.locator("svg .floor").bounding_box()["height"] > 2
    for feature in (i, j):
        bars = detail.locator(f'figure[data-of="{sae}/{feature}"] .bars')
        assert bars.bounding_box()["height"] > 10
    assert "noise floor" in detail.inner_text()
    # Closed and opened again it shows the same, once.
    row.locator("button.open").click()
    assert not detail.is_visible()
    row.locator("button.open").click()
    assert curves.count() == page.locator(f'tr.detail figure[data-of="{sae}/{i}/{j}"]').count()


def test_a_link_to_a_pair_opens_it_even_where_a_filter_hides_it(open_page, hostile):
    page = open_page(hostile)
    page.fill("#find", "no such gloss anywhere")
    assert page.locator("tr.pair:visible").count() == 0
    link = page.locator("#toward a[href^='#pair-']").first
    wanted = link.get_attribute("href")
    link.click()
    page.wait_for_selector(f"{wanted} button[aria-expanded=true]")
    assert page.locator(wanted).is_visible()
    assert page.locator(f"{wanted} + tr.detail").is_visible()
    assert page.input_value("#find") == ""
    assert page.evaluate("document.activeElement.closest('tr').id") == wanted[1:]
    # The address itself leads there too.
    again = open_page(hostile, at=wanted)
    again.wait_for_selector(f"{wanted} + tr.detail")


@pytest.mark.parametrize("width", [1200, 390])
def test_a_long_table_begins_short_and_is_searched_whole(open_page, reported, width):
    page = open_page(reported, width=width)
    rows = page.locator("tr.pair")
    assert rows.count() > 12
    assert page.locator("tr.pair:visible").count() == 12
    page.locator("[data-sort=x]").click()  # the strongest first: what is shown are the first of the order
    page.locator("[data-sort=x]").click()
    weakest = min(float(row.get_attribute("data-x")) for row in rows.all())
    assert float(page.locator("tr.pair:visible").first.get_attribute("data-x")) == weakest
    name = rows.last.get_attribute("id")
    assert not page.locator(f"#{name}").is_visible()
    page.fill("#find", page.locator(f"#{name} .gloss .id").first.text_content())
    assert page.locator(f"#{name}").is_visible()
    page.fill("#find", "")
    page.click("#all")
    assert page.locator("tr.pair:visible").count() == rows.count()
    assert not page.locator("#all").is_visible()
    assert page.evaluate("document.activeElement.className") == "open"


def test_hostile_texts_execute_nothing_when_rows_are_opened(open_page, hostile):
    page = open_page(hostile)
    for button in page.locator("button.open").all()[:4]:
        button.click()
    assert "</template><script>alert(1)</script>" in page.inner_text("#pairs")
    page.evaluate("document.querySelectorAll('#toward details').forEach((d) => { d.open = true; })")
    assert "<img src=x" in page.inner_text("#toward")
    assert page.locator("img").count() == 0


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_the_page_fits_its_window_and_axe_finds_no_serious_problem(open_page, reported, width, dark):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    page = open_page(reported, width=width, dark=dark, bypass_csp=True)
    page.locator("button.open").first.click()
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    options = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
    found = axe.Axe().run(page, options=options).response["violations"]
    serious = [
        (p["id"], [n["html"][:160] for n in p["nodes"][:3]])
        for p in found
        if p["impact"] in ("serious", "critical")
    ]
    assert not serious


def test_on_paper_nothing_stays_folded(open_page, reported):
    """Printing opens what is folded and all rows, and closes it again; without the script the style does it."""
    page = open_page(reported)
    folded = page.locator("details.fold")
    assert folded.count() >= 5
    assert page.locator("details.fold[open]").count() == 0
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.fold[open]").count() == folded.count()
    assert page.locator("tr.pair:visible").count() == page.locator("tr.pair").count()
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.fold[open]").count() == 0
    page.emulate_media(media="print")
    assert folded.first.locator("dl").first.is_visible()
