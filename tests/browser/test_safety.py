"""Hostile texts show as texts, nobody else gets in, nothing executes; axe-core finds no serious problem."""

import json
import unicodedata

import pytest

from polysem.report.text import visible
from support.synthetic import SyntheticStudy, synthetic_run

RLO, ZWSP, BELL = "\u202e", "\u200b", "\x07"
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    f"left{RLO}right{ZWSP}{BELL}",
    "\"'><svg onload=alert(3)>",
    "javascript:alert(4)",
    "{{ 7 * 7 }} ${alert(5)} `alert(6)`",
    "' OR 1=1; DROP TABLE names; --",
    "../../../../etc/passwd",
    '=HYPERLINK("http://evil.example")',
    "a" + "\u0301" * 40 + " zalgo",
    "line\nbreak\r\n\ttab \u2028 \u2029 \ufeff \u00ad \U000e0041 \ud83d\ude00".encode(
        "utf-16", "surrogatepass"
    ).decode("utf-16"),
    "x" * 3000,
)
VIEWS = [
    "#/home",
    "#/map?box=-0.5,0.3,0.25,0.6",
    "#/pairs",
    "#/steering",
    "#/hubs",
    "#/results",
    "#/results/presets",
    "#/results/transfer",
    "#/tables/features",
    "#/tables/contexts",
    "#/layers",
]


@pytest.fixture(scope="module")
def hostile(serving, tmp_path_factory):
    world = SyntheticStudy(
        n_features=120,
        n_targets=5,
        n_prompts=4,
        doses=(0.1,),
        sources_per_bin=2,
        glosses=HOSTILE,
        tokens=HOSTILE,
    )
    folder = synthetic_run(tmp_path_factory.mktemp("hostile"), world)
    return serving.study(folder)


def test_texts_are_shown_as_in_the_report(visit, served):
    here = visit(served)
    samples = [*HOSTILE, *(chr(k) for k in range(0x20, 0x3100) if not 0xD800 <= k < 0xE000)]
    # characters that only one side's Unicode tables know yet are no difference in rules
    samples = [s for s in samples if len(s) > 1 or unicodedata.category(s) != "Cn"]
    shown = here.page.evaluate(
        "async (samples) => { const { visible } = await import(`${location.origin}/static/text.js`); return samples.map((s) => visible(s)); }",
        samples,
    )
    assert shown == [visible(s) for s in samples]


def test_hostile_glosses_are_texts_and_run_nothing(visit, hostile):
    here = visit(hostile)
    for view in VIEWS:
        here.open(view)
        assert not here.page.query_selector(
            "main script, main img, main iframe, main [onload], main [onerror]"
        )
        assert not [c for c in here.text() if c in (RLO, ZWSP, BELL)]
    here.open("#/pairs?all=1")
    words = " ".join(
        here.page.eval_on_selector_all("table.grid .gloss", "nodes => nodes.map(n => n.textContent)")
    )
    assert "<img src=x onerror=alert(2)>" in words
    assert "left⟨U+202E⟩right⟨U+200B⟩⟨U+0007⟩" in words
    href = here.page.get_attribute("table.grid tbody a.open", "href")
    here.open(href)
    assert "⟨U+" in here.text() or "<" in here.text()
    here.open(f"#/feature/{href.split('/')[2]}/{href.split('/')[3]}?open=3,4")
    here.open("#/pairs?q=" + "%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    here.open("#/%3Cimg%20src=x%20onerror=alert(1)%3E")
    assert not here.wrong


def test_strings_cannot_become_markup_or_code(visit, served):
    here = visit(served)
    for attempt in ("document.body.innerHTML = '<b>x</b>'", "document.write('x')"):
        said = here.page.evaluate(
            f"() => {{ try {{ {attempt}; return 'done'; }} catch (error) {{ return error.name; }} }}"
        )
        assert said == "TypeError"
    loaded = here.page.evaluate(
        "() => new Promise((done) => { const s = document.createElement('img'); s.onerror = () => done('blocked'); s.onload = () => done('loaded'); s.src = 'https://example.org/x.png'; })"
    )
    assert loaded == "blocked"
    here.wrong.clear()  # the browser reports what it has blocked


def test_another_site_gets_nothing(chromium, served):
    context = chromium.new_context()
    page = context.new_page()
    page.goto(served.address)
    other = context.new_page()
    other.goto("data:text/html,<title>other</title>")
    reached = other.evaluate(
        "async (url) => { try { const r = await fetch(url, {credentials: 'include'}); return r.status; } catch (e) { return 'refused'; } }",
        f"{served.base}/data/overview.json",
    )
    assert reached == "refused"
    page.goto(f"{served.base}/")
    assert page.query_selector("#top")
    without = chromium.new_context().new_page()
    answer = without.goto(f"{served.base}/")
    assert answer.status == 401
    context.close()


@pytest.mark.parametrize(
    ("width", "dark", "rules"),
    [
        (1280, False, None),
        # what may differ from the above in the dark, and on a phone
        (1280, True, ["color-contrast"]),
        (390, False, ["color-contrast", "scrollable-region-focusable", "target-size", "aria-hidden-focus"]),
    ],
)
def test_axe_finds_no_serious_problem(visit, served, width, dark, rules):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    here = visit(served, width=width, dark=dark, bypass_csp=True)
    here.open("#/steering")
    pair = here.page.get_attribute("table.grid tbody a.open", "href")
    feature = f"#/feature/{pair.split('/')[2]}/{pair.split('/')[3]}"
    options = None if rules is None else {"runOnly": {"type": "rule", "values": rules}}
    found = []
    for view in [*VIEWS, "#/hubs/coordinates", "#/tables", "#/live", pair, feature]:
        here.open(view)
        for problem in axe.Axe().run(here.page, options=options).response["violations"]:
            if problem["impact"] in ("serious", "critical"):
                places = [node["html"][:160] for node in problem["nodes"][:3]]
                found.append({"view": view, "rule": problem["id"], "where": places})
    assert not found, json.dumps(found, indent=1)


@pytest.mark.parametrize(
    "view", ["#/home", "#/map", "#/pairs", "#/steering", "#/hubs", "#/layers", "#/results", "#/tables/plan"]
)
def test_a_phone_scrolls_one_way(visit, served, view):
    here = visit(served, width=390, height=844)
    here.open(view)
    assert here.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not here.wrong
