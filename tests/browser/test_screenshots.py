"""Pictures of the explorer, of every view, on a finished demo.

A test writes them to a folder of its own and looks at their size. `make pictures` names docs/img by POLYSEM_PICTURES: so the
documentation's are taken. Without a browser, and without runs/demo, nothing is drawn. Those of presets, transfer,
predicted effects and layers need a run that has them: the demo with `preset = "both"`, a transfer study in its folder, `polysem
atlas`, `polysem layers`.
"""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = Path(os.environ.get("POLYSEM_DEMO", REPOSITORY / "runs" / "demo"))
TALL = {
    "pair": 1500,
    "feature": 1100,
    "results": 1300,
    "compare": 1500,
    "map": 1120,
    "presets": 1250,
    "transfer": 1100,
    "live": 1500,
    "predicted": 1150,
    "layers": 1000,
}
NEEDS = {
    "presets": "effects/presets.parquet",
    "transfer": "transfer/manifest.json",
    "predicted": "atlas/manifest.json",
    "layers": "layers/manifest.json",
}


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Where pictures go: a folder of the test, unless another is named."""
    return Path(os.environ.get("POLYSEM_PICTURES", tmp_path))


@pytest.fixture(scope="module")
def demo(serving):
    if not (DEMO / "effects" / "manifest.json").is_file():
        pytest.skip(f"no finished demo at {DEMO}; polysem demo makes one, POLYSEM_DEMO names another place")
    return serving.study(DEMO, live=True, against=DEMO)


@pytest.fixture(scope="module")
def places(chromium, demo):
    """View -> address, by way of the largest effect."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(demo.address)
    page.wait_for_selector("main:not([aria-busy]) h1")
    row = page.evaluate(
        "fetch('data/rows/steering?f=relation=pair&f=locus=feature&f=token_set=in&f=interference>=0.2&f=similarity<0.3&sort=-logodds&limit=1').then((r) => r.json())"
    )["rows"][0]
    places = page.get_attribute(".kinds a:has-text('places')", "href")
    context.close()
    sae, i, j = row["sae"], *sorted((row["source"], row["target"]))
    steered = f"sae={sae}&source={row['source']}&target={row['target']}&unit=kl&dose=0.3&locus=feature"
    return {
        "home": "#/home",
        "map": f"#/map?sae={sae}&box=-0.05,0.2,0.35,0.6",
        "pairs": "#/pairs?f=is_duplicate=false&f=is_dense=false&q=London, street",
        "steering": places,
        "pair": f"#/pair/{sae}/{i}/{j}",
        "feature": f"#/feature/{sae}/{row['target']}",
        "hubs": "#/hubs",
        "results": "#/results",
        "compare": "#/results/compare",
        "presets": "#/results/presets",
        "transfer": "#/results/transfer",
        "tables": "#/tables/features",
        "predicted": "#/steering/predicted",
        "layers": "#/layers",
        "live": f"#/live?{steered}&prompt=I do not think that",
    }


def has(view: str) -> bool:
    file = DEMO / NEEDS[view]
    return file.is_file() and (file.suffix == ".json" or pq.read_metadata(file).num_rows > 0)


def draw(visit, demo, places, view: str, **kwargs):
    here = visit(demo, **kwargs)
    here.open(places[view])
    if view == "live":
        here.page.wait_for_selector("table.bars", timeout=60_000)
        here.page.wait_for_selector("button:has-text('Cancel')[disabled]", timeout=60_000)
    if view == "predicted":
        here.page.evaluate("document.querySelectorAll('details.panel').forEach((d) => { d.open = true; })")
        here.page.wait_for_selector("figure svg")
        here.settled()
    assert not here.wrong
    return here.page


@pytest.mark.parametrize(
    "view",
    [
        *("home", "map", "pairs", "steering", "pair", "feature", "hubs", "results", "compare", "presets"),
        *("transfer", "tables", "live", "predicted", "layers"),
    ],
)
def test_a_picture_of_every_view(visit, demo, places, pictures, view):
    if view in NEEDS and not has(view):
        pytest.skip(f"the run at {DEMO} has no {view}")
    page = draw(visit, demo, places, view, width=1200, height=820)
    tall = min(TALL.get(view, 820), page.evaluate("document.documentElement.scrollHeight"))
    pictures.mkdir(parents=True, exist_ok=True)
    shot = page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": 1200, "height": tall})
    assert len(shot) < 400_000
    (pictures / f"explorer-{view}.png").write_bytes(shot)


@pytest.mark.parametrize(("view", "name"), [("map", "map-dark"), ("pair", "pair-dark")])
def test_pictures_in_the_dark(visit, demo, places, pictures, view, name):
    page = draw(visit, demo, places, view, width=1200, height=820, dark=True)
    (pictures / f"explorer-{name}.png").write_bytes(page.screenshot())


@pytest.mark.parametrize(("view", "name"), [("steering", "steering-phone"), ("pair", "pair-phone")])
def test_pictures_on_a_phone(visit, demo, places, pictures, view, name):
    page = draw(visit, demo, places, view, width=390, height=844)
    (pictures / f"explorer-{name}.png").write_bytes(page.screenshot())
