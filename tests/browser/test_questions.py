"""The five questions that people come with take at most three clicks each; what is found can be pushed again, and shared."""

import re
import time

import pytest

CLICKS, ANSWER_MS = 3, 300
NUMBER = re.compile(r"[+\u2212-]\d+\.\d+")


def test_which_features_move_the_model_toward_people(visit, served):
    here = visit(served)
    here.page.click(".kinds >> text=people")
    here.page.wait_for_selector("td.col-gloss_source")
    assert here.rows()
    assert not here.wrong


WATCH = """() => {
  window.clicks = 0; window.answers = [];
  let at = null;
  const seen = () => { if (at !== null) window.answers.push(performance.now() - at); at = null; };
  new MutationObserver(() => requestAnimationFrame(seen)).observe(document.body, {subtree: true, childList: true, attributes: true});
  for (const kind of ["click", "submit"]) document.addEventListener(kind, () => { window.clicks += 1; at = performance.now(); }, true);
}"""
QUESTIONS = {
    "features toward people": [("click", ".kinds >> text=people"), ("seen", "td.col-gloss_source")],
    "is feature 7 polysemantic": [
        ("find", "7"), ("seen", "table.grid tbody tr"), ("click", "table.grid tbody tr td a"), ("seen", ".verdict"),
    ],
    "the most surprising pair, steered": [
        ("click", "nav >> text=Steering"), ("seen", "table.grid tbody a.open"), ("click", "table.grid tbody a.open"),
        ("seen", "article.feature-card"),
    ],
    "two SAEs compared": [
        ("click", "nav >> text=Results"), ("seen", "text=SAEs side by side"), ("click", "text=SAEs side by side"),
        ("seen", "main svg.heat"),
    ],
    "share this": [
        ("click", "nav >> text=Pairs"), ("seen", "table.grid tbody a.open"), ("click", "table.grid tbody a.open"),
        ("seen", "button.save"), ("save", "button.save"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_takes_three_clicks_and_every_click_is_answered_at_once(visit, served, question):
    """An answer is what the page paints next: what was asked for, or that it is being fetched. The machine may be busy: one of
    five tries is enough."""
    tries: list[float] = []
    while not tries or (min(tries) > ANSWER_MS and len(tries) < 5):
        here = visit(served)
        here.page.evaluate(WATCH)
        for what, where in QUESTIONS[question]:
            if what == "click":
                here.page.click(where)
            elif what == "save":  # what answers is the file
                with here.page.expect_download(timeout=10_000):
                    here.page.click(where)
                here.page.evaluate("window.answers.push(0)")
            elif what == "find":
                here.page.fill("#find", where)
                here.page.press("#find", "Enter")
            else:
                here.page.wait_for_selector(where)
                here.settled()
        for _ in range(200):  # the page's policy lets no string be waited for
            if here.page.evaluate("window.answers.length >= window.clicks"):
                break
            time.sleep(0.02)
        clicks = here.page.evaluate("window.clicks")
        assert clicks <= min(CLICKS, len(here.page.evaluate("window.answers")))
        tries.append(max(here.page.evaluate("window.answers")))
        assert not here.wrong
    assert min(tries) <= ANSWER_MS, tries


def test_is_this_feature_polysemantic(visit, served):
    here = visit(served)
    here.open("#/map")  # the box is on every page
    here.page.fill("#find", "7")
    here.page.press("#find", "Enter")
    here.page.wait_for_selector("table.grid tbody tr")
    here.settled()
    assert all("feature 7" in row for row in here.rows())
    here.page.click("table.grid tbody tr td a")
    here.page.wait_for_selector(".verdict")
    assert here.text(".verdict h2") == "Is it polysemantic?"
    near = int(
        here.page.inner_text(
            ".verdict dd >> nth=-2" if here.page.locator(".verdict dd").count() > 1 else ".verdict dd"
        )
    )
    listed = here.page.evaluate(
        "async () => { const [, , sae] = location.hash.split('/').map(decodeURIComponent); const q = `f=sae%3D${encodeURIComponent(sae)}&f=feature%3D7`;"
        " return (await (await fetch(`data/rows/hubs?${q}`)).json()).rows[0]?.n_unflagged ?? 0; }"
    )
    assert near == listed
    assert not here.wrong


def test_words_find_features_by_gloss_and_tokens(visit, served):
    here = visit(served)
    here.page.fill("#find", "rivers")
    here.page.press("#find", "Enter")
    here.page.wait_for_selector("table.grid tbody tr")
    here.settled()
    found = here.rows()
    assert found
    assert all("river" in row.lower() for row in found)
    here.page.fill("#find", "no such word anywhere")
    here.page.press("#find", "Enter")
    here.page.wait_for_selector("text=No feature has that number")
    assert not here.wrong


def test_two_saes_side_by_side(visit, served, world):
    here = visit(served)
    here.page.click("nav >> text=Map")
    here.settled()
    assert all(label in here.text() for label in world.saes)
    here.page.click("nav >> text=Results")
    here.settled()
    here.page.click("text=SAEs side by side")
    here.settled()
    table = here.text("main table")
    assert all(label in table for label in world.saes)
    assert str(world.n_features) in table
    assert here.page.locator("main svg.heat").count() == len(world.saes)
    assert not here.wrong


def test_the_strongest_pair_can_be_shared_as_one_file(visit, served, chromium, tmp_path):
    here = visit(served)
    here.page.click("nav >> text=Pairs")
    here.page.wait_for_selector("table.grid tbody a.open")
    here.page.click("table.grid tbody a.open")
    here.page.wait_for_selector("button.save")
    here.settled()
    title = here.text("h1")
    with here.page.expect_download() as saved:
        here.page.click("button.save")
    file = tmp_path / saved.value.suggested_filename
    saved.value.save_as(file)
    context = chromium.new_context()
    page, fetched = context.new_page(), []
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(file.as_uri())
    assert page.inner_text("h1") == title
    assert page.locator("svg").count() > 0
    assert page.locator("script, a, button").count() == 0
    assert page.evaluate("getComputedStyle(document.querySelector('.panel')).borderRadius") != "0px"
    assert fetched == [file.as_uri()]
    context.close()
    assert not here.wrong


@pytest.fixture(scope="module")
def measured(serving, tmp_path_factory):
    """A small study that was run on the zoo's model."""
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    from polysem.engine import run_study

    folder = tmp_path_factory.mktemp("measured")
    (folder / "study.toml").write_text(
        'name = "measured"\n[model]\nref = "zoo:gpt2"\ndevice = "cpu"\n[[saes]]\nref = "zoo:gpt2/blocks.2.hook_mlp_out"\n'
        '[features]\nsource = "zoo"\n[corpus]\nn_tokens = 20000\n[prompts]\nn = 4\nlength = 8\n'
        '[plan]\nn_targets = 1\nsources_per_bin = 1\nn_random = 1\ncontrols = ["random_direction"]\ndoses = [0.05]\npositions = "all"\n'
    )
    run_study(
        folder / "study.toml",
        folder / "run",
        stages=["features", "pairs", "plan", "trials", "response", "effects"],
    )
    return serving.study(folder / "run", live=True)


def test_a_row_that_is_pushed_again_keeps_its_direction_dose_positions_and_prompts_and_gives_its_number(
    visit, measured
):
    here = visit(measured)
    here.open("#/steering")
    here.page.wait_for_selector("table.grid tbody a.open")
    here.page.click("table.grid tbody a.open")
    here.page.wait_for_selector("a:has-text('live'):has-text('Push')")
    href = here.page.get_attribute("a:has-text('live'):has-text('Push')", "href")
    here.page.click("a:has-text('live'):has-text('Push')")
    here.page.wait_for_selector(".row-again .now", timeout=60_000)
    said = here.text(".row-again")
    asked = dict(re.findall(r"(source|target|row|set|unit)=([^&]+)", href))
    (row,) = here.page.evaluate(
        f"fetch('data/rows/steering?f=relation%3Dpair&f=source%3D{asked['source']}&f=target%3D{asked['target']}"
        f"&f=token_set%3D{asked['set']}&limit=9').then((r) => r.json())"
    )["rows"]
    stored, again = NUMBER.findall(said)[:2]
    assert stored == again == f"{row['logodds']:+.6f}".replace("-", "\u2212")
    assert "equal to the last bit" in said
    assert here.page.input_value("#live-source") == asked["source"]
    here.page.wait_for_selector("table.bars", timeout=60_000)
    here.page.wait_for_selector("text=every position, as in the study")
    prompts = here.page.evaluate("fetch('data/rows/prompts?f=split%3Dconfirm').then((r) => r.json())")["rows"]
    assert here.page.input_value("#live-prompt") in {p["text"] for p in prompts}
    assert not here.wrong
