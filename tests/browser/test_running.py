"""A study that is still running fills in; a push in a loaded model changes the bars."""

import shutil
from collections.abc import Sequence

import pytest

from support.synthetic import synthetic_run

BARS = "table.bars td.num:last-child"
PATIENCE_MS = 60_000
"""what a model may take on a machine that others use too"""


def test_a_running_study_shows_how_far_it_is_and_fills_in(visit, serving, folder, world, tmp_path):
    run = synthetic_run(tmp_path / "run", world, stages=("features",))
    here = visit(serving.study(run))
    assert "not finished" in here.text()
    here.open("#/pairs")
    assert "polysem pairs" in here.text()
    # the stages come as a run writes them: files first, the manifest last
    for stage in ("pairs", "plan", "trials", "response", "effects"):
        shutil.copytree(folder / stage, run / stage, ignore=shutil.ignore_patterns("manifest.json"))
        shutil.copy(folder / stage / "manifest.json", run / stage / "manifest.json")
    here.page.wait_for_selector("table.grid tbody tr", timeout=PATIENCE_MS)
    here.settled()
    assert here.rows()
    here.open("#/home")
    assert "not finished" not in here.text()
    assert not here.wrong


@pytest.fixture(scope="module")
def steerable(serving, tmp_path_factory):
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    from polysem.engine import run_study

    folder = tmp_path_factory.mktemp("live")
    study = folder / "study.toml"
    study.write_text(
        'name = "live"\n[model]\nref = "zoo:gpt2"\ndevice = "cpu"\n[[saes]]\nref = "zoo:gpt2/blocks.2.hook_mlp_out"\n'
        '[features]\nsource = "zoo"\n'
    )
    run_study(study, folder / "run", stages=["features"])
    return serving.study(folder / "run", live=True)


def bars(here) -> list[str]:
    return here.page.eval_on_selector_all(BARS, "nodes => nodes.map(n => n.textContent)")


def pushed(here, *, before: Sequence[str] = ()) -> list[str]:
    """The bars of a push that has ended. That it runs may be over before anybody looks; that its bars are others stays."""
    here.page.wait_for_function(
        "([where, before]) => { const now = [...document.querySelectorAll(where)].map(n => n.textContent);"
        " return now.length && now.join() !== before.join(); }",
        arg=[BARS, list(before)],
        timeout=PATIENCE_MS,
    )
    here.page.wait_for_selector("button:has-text('Cancel')[disabled]", timeout=PATIENCE_MS)
    return bars(here)


def test_a_live_push_changes_the_bars_and_is_in_the_address(visit, steerable):
    here = visit(steerable)
    here.open("#/live")
    here.page.fill("#live-prompt", "It was a dark and stormy night; the rain fell in")
    here.page.fill("#live-source", "5")
    here.page.fill("#live-target", "9")
    here.page.click("button.main:has-text('Steer')")
    first = pushed(here)
    assert len(first) >= 12
    assert any(text not in ("0.00", "−0.00") for text in first)
    here.page.evaluate(
        "document.querySelector('#live-dose').value = -0.4; document.querySelector('#live-dose').dispatchEvent(new Event('input'))"
    )
    here.page.click("button.main:has-text('Steer')")
    second = pushed(here, before=first)
    assert "dose=-0.4" in here.hash
    assert here.page.input_value("#live-source") == "5"
    here.page.reload()
    assert sorted(pushed(here)) == sorted(second)
    assert not here.wrong


def test_several_at_once_and_another_push_beside_them(visit, steerable):
    here = visit(steerable)
    sae = here.page.evaluate("fetch('live').then((r) => r.json())")["saes"][0]
    here.open(
        f"#/live?prompt=It was a dark night&source=5&target=9&dose=0.3&more=7:-0.2&beside={sae}/11/9/0.3"
    )
    here.page.wait_for_selector(".live-out:nth-child(2) table.bars", timeout=PATIENCE_MS)
    here.page.wait_for_selector("button:has-text('Cancel')[disabled]", timeout=PATIENCE_MS)
    first, second = (here.text(f".live-out:nth-child({k})") for k in (1, 2))
    assert "2 features together" in first
    assert "11 steered" in second
    rows = here.page.eval_on_selector_all(
        "table.joint tbody tr", "nodes => nodes.map(n => [...n.children].map(c => c.textContent))"
    )
    assert [row[0] for row in rows] == ["5 alone", "7 alone", "predicted by addition", "measured together"]
    numbers = [float(row[3].replace("−", "-")) for row in rows]
    assert numbers[0] + numbers[1] == pytest.approx(numbers[2], abs=2e-3)
    # a chip takes its feature away
    here.page.click(".chip:has-text('7 at')")
    here.page.wait_for_selector("text=Next token: 5 steered", timeout=PATIENCE_MS)
    assert "more=" not in here.hash
    # a feature by words of its tokens
    known = here.page.evaluate("fetch('data/rows/features?limit=50&f=density>0').then((r) => r.json())")[
        "rows"
    ]
    word = next(
        t.strip() for one in known for t in one["tokens_in_str"] if t.strip().isalpha() and len(t) > 3
    )
    here.page.fill("[aria-label='Words of the feature for: source']", word)
    here.page.click(".picks button >> nth=0")
    picked = int(here.page.input_value("#live-source"))
    found = here.page.evaluate(f"fetch('data/rows/features?f=feature={picked}').then((r) => r.json())")[
        "rows"
    ][0]
    texts = " ".join([found["gloss"] or "", *found["tokens_in_str"], *found["tokens_out_str"]]).lower()
    assert word.lower() in texts
    assert not here.wrong


def test_a_push_can_be_cancelled_and_a_wrong_one_is_said(visit, steerable):
    here = visit(steerable)
    here.open("#/live")
    here.page.fill("#live-source", "5")
    here.page.fill("#live-target", "99999")
    here.page.click("button.main:has-text('Steer')")
    here.page.wait_for_selector("[role=alert]", timeout=PATIENCE_MS)
    assert "has no feature 99999" in here.text(".live-out")
    assert all("Failed to load resource" in text for text in here.wrong)


def test_live_needs_this_origin_and_json(visit, steerable):
    import httpx

    asked = {
        "prompt": "It was",
        "sae": "x",
        "source": 1,
        "target": 2,
        "locus": "feature",
        "unit": "scale",
        "dose": 0.1,
    }
    with httpx.Client(
        base_url=steerable.base, headers={"authorization": f"Bearer {steerable.token}"}
    ) as client:
        assert client.post("/live", json=asked).status_code == 403
        assert client.post("/live", json=asked, headers={"origin": "http://evil.example"}).status_code == 403
        assert (
            client.post(
                "/live", content="x", headers={"origin": steerable.base, "content-type": "text/plain"}
            ).status_code
            == 403
        )
        assert client.post("/live", json=asked, headers={"origin": steerable.base}).status_code == 200
        assert client.post("/live", json={"prompt": 3}, headers={"origin": steerable.base}).status_code == 400
        assert (
            client.post(
                "/live", json={"prompt": "x" * 100_000}, headers={"origin": steerable.base}
            ).status_code
            == 400
        )
