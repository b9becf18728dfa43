"""A real browser, a real server, a study with hostile texts."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from polysem.explore import Book, make_app
from polysem.explore.server import hosts_of, listen
from polysem.store.schema import Schema
from polysem.store.tables import (
    ABSORPTION,
    ATLAS_DENSITY,
    ATLAS_FIT,
    ATLAS_SAMPLE,
    ATLAS_TOP,
    LAYER_BLOCKS,
    LAYER_EDGES,
    RELATIONS,
    TRANSFER_EFFECTS,
    TRANSFER_SHARED,
)
from support.synthetic import SyntheticStudy, finish_beside, synthetic_run

CHROMIUM = os.environ.get("POLYSEM_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
TOKEN = "token-of-the-browser-tests"
WORLD = SyntheticStudy(
    n_features=130, n_targets=6, n_prompts=6, doses=(0.1, 0.2), sources_per_bin=2, preset="both"
)


@dataclass
class Served:
    """A server at work."""

    base: str
    token: str = TOKEN

    @property
    def address(self) -> str:
        return f"{self.base}/?token={self.token}"


class Serving:
    """Servers in threads of this process, ended with the test session."""

    def __init__(self):
        self.running = []

    def start(self, app, bound) -> Served:
        import uvicorn

        config = uvicorn.Config(app, log_level="error", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        self.running.append((server, thread))
        return Served(f"http://127.0.0.1:{bound.getsockname()[1]}")

    def study(self, folder: Path, *, live: bool = False, against: Path | None = None) -> Served:
        book = Book(folder, against=against)
        bound = listen("127.0.0.1", 0)
        bench = None
        if live:
            from polysem.explore.live import Live

            bench = Live(book)
        hosts = hosts_of("127.0.0.1", bound.getsockname()[1])
        return self.start(make_app(book, token=TOKEN, hosts=hosts, live=bench), bound)

    def files(self, folder: Path) -> Served:
        """A plain file server, as anybody has one."""
        from starlette.applications import Starlette
        from starlette.staticfiles import StaticFiles

        app = Starlette()
        app.mount("/", StaticFiles(directory=folder, html=True))
        return self.start(app, listen("127.0.0.1", 0))

    def stop(self) -> None:
        for server, _ in self.running:
            server.should_exit = True
        for _, thread in self.running:
            thread.join(timeout=10)


@pytest.fixture(scope="session")
def serving() -> Iterator[Serving]:
    made = Serving()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def chromium():
    """Chromium, or a skip with the reason."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium found; install it, or set POLYSEM_CHROMIUM to its path")
    with sync_api.sync_playwright() as play:
        # Root has no user namespace to build the sandbox from; the pages are ours.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = play.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


class Visit:
    """A page that remembers everything that went wrong in it."""

    def __init__(self, page, served: Served):
        self.page, self.base = page, served.base
        self.wrong: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, address: str) -> None:
        """Go to a view by its address (`#/pairs?…`) and wait until it is drawn."""
        self.page.goto(f"{self.base}/{address}")
        self.settled()

    def settled(self) -> None:
        """Wait until what the address asks for is drawn: an event tells the page of a click, so at first it may look idle."""
        self.page.wait_for_function(
            "() => document.documentElement.dataset.shows === location.hash"
            " && document.querySelector('main h1') && !document.querySelector('[aria-busy]')",
            timeout=20_000,
        )

    @property
    def hash(self) -> str:
        _, _, rest = self.page.url.partition("#")
        return f"#{rest}"

    def text(self, selector: str = "main") -> str:
        return self.page.inner_text(selector)

    def rows(self, selector: str = "table.grid tbody tr") -> list[str]:
        return [row.inner_text() for row in self.page.query_selector_all(selector)]


@pytest.fixture
def visit(chromium):
    """A function that opens a fresh page at a server, logged in."""
    yield from visits(chromium)


@pytest.fixture(scope="module")
def long_visit(chromium):
    """The same for pages that several tests use."""
    yield from visits(chromium)


def visits(chromium) -> Iterator[Callable[..., Visit]]:
    contexts = []

    def start(
        served: Served, *, width: int = 1280, height: int = 900, dark: bool = False, bypass_csp: bool = False
    ) -> Visit:
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            bypass_csp=bypass_csp,
        )
        contexts.append(context)
        made = Visit(context.new_page(), served)
        made.page.goto(served.address)
        made.settled()
        return made

    yield start
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def world() -> SyntheticStudy:
    return WORLD


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    made = synthetic_run(tmp_path_factory.mktemp("run"), WORLD)
    add_transfer(made)
    add_layers(made)
    add_relations(made)
    return made


def add_transfer(folder: Path) -> None:
    """Tables of a transfer study of two models, three arms and four categories; only `shared` does anything."""
    effects = []
    for t, target in enumerate(("small", "large")):
        for contrast in ("specific", "logodds"):
            for arm in ("shared", "neither", "random"):
                for c, category in enumerate(("color", "emotion", "location", "number")):
                    size = (0.4 + 0.1 * c) * (1 + t) if arm == "shared" else 0.01 * (c - 2)
                    found = {"estimate": size + (contrast == "logodds"), "lo": size - 0.2, "hi": size + 0.2}
                    key = {"target": target, "contrast": contrast, "arm": arm, "category": category}
                    p = {"p": 0.001 if arm == "shared" else 0.4, "p_adj": 0.01 if arm == "shared" else 1.0}
                    words = {"template": "paren", "position": "prefix", "unit": "nats", "level": 0.95}
                    effects.append(key | found | p | words | {"noise_floor": 0.05})
    shared = {"source_a": "one", "source_b": "two", "n_matched": 300, "n_shared": 60, "expected": 12.0}
    shared |= {"lift": 5.0, "lift_lo": 4.0, "lift_hi": 6.0, "p": 0.001, "level": 0.95}
    tables = ((TRANSFER_EFFECTS, effects), (TRANSFER_SHARED, [shared]))
    files = {f"{schema.name}.parquet": (filled(schema, rows), schema) for schema, rows in tables}
    finish_beside(folder, "transfer", files)


def add_atlas(folder: Path) -> None:
    """An atlas of one SAE: three predicted pushes on feature 0, a fit, and three cells of all pairs."""
    sae = WORLD.saes[0]
    tables = {
        ATLAS_TOP: [
            {"target": 0, "rank": k, "source": k + 1, "effect": (-1) ** k * (3.0 - k), "interference": 0.4}
            for k in range(3)
        ],
        ATLAS_FIT: [{"stratum": "uniform", "r2": 0.91, "lo": 0.88, "hi": 0.94, "slope": 0.97, "n": 400}],
        ATLAS_DENSITY: [
            {"axis": "interference", "cosine_lo": x, "cosine_hi": x + 0.1, **effect, "count": 7 * 10**k}
            for k, (x, effect) in enumerate(
                [
                    (-0.2, {"effect_lo": -1.0, "effect_hi": -0.1}),
                    (0.0, {"effect_lo": -0.001, "effect_hi": 0.001}),
                    (0.2, {"effect_lo": 0.1, "effect_hi": 1.0}),
                ]
            )
        ],
        ATLAS_SAMPLE: [],
    }
    files = {
        f"00-{schema.name}.parquet": (filled(schema, [{"sae": sae, **row} for row in rows]), schema)
        for schema, rows in tables.items()
    }
    finish_beside(folder, "atlas", files)


def add_layers(folder: Path) -> None:
    """Weights from the first SAE to the second and to a set of transcoders: 70 edges of feature 5, one of them measured."""
    source, target = WORLD.saes[:2]
    block = {"source": source, "n_i": 130, "n_j": 130, "rms": 0.02, "never": 0.7}
    blocks = [
        {**block, "target": target, "n_strong": 40, "strong_never": 0.25},
        {**block, "target": "plt.2", "n_strong": 9, "strong_never": 0.0},
        {"source": target, "target": source, "why": "the target reads before the source writes"},
    ]
    edges = [
        {"source": source, "i": 5, "target": target, "j": k, "chosen": "effectiveness", "gloss_i": "oaths", "gloss_j": "rivers"}
        | {"weight": 0.1 * (-1) ** k, "co_tokens": k % 3, "lift": 0.5 * (k % 3), "effectiveness": (k + 1) * 1e-5}
        for k in range(60)
    ]  # fmt: skip
    edges[59] |= {"saved": -0.02, "lo": -0.03, "hi": -0.01, "n_events": 12, "pushed": 0.3, "natural": 0.0}
    edges += [{"source": source, "i": 5, "target": "plt.2", "j": k, "chosen": "weight"} for k in range(10)]
    tables = ((LAYER_BLOCKS, blocks), (LAYER_EDGES, edges))
    files = {f"{schema.name}.parquet": (filled(schema, rows), schema) for schema, rows in tables}
    finish_beside(folder, "layers", files)


def add_relations(folder: Path) -> None:
    """Of the first SAE: feature 5 is the parent of 9, has lost tokens to 12, stands opposite to 3, and is nothing to 20."""
    pair = {"sae": WORLD.saes[0], "i": 5, "interference": 0.5, "fires_i": 400, "fires_j": 90, "both": 88}
    rows = [
        {**pair, "i": 3, "j": 5, "relation": "antipodal", "interference": -0.8},
        {
            **pair,
            "j": 9,
            "relation": "parent",
            "above": 5,
            "evidence": "needed more than 20 of 20 of like density",
        },
        {**pair, "j": 12, "relation": "absorbed", "above": 5},
        {**pair, "j": 20, "relation": "unrelated"},
    ]
    lost = [{"sae": WORLD.saes[0], "feature": 5, "n_on": 50, "f1": 0.9, "trusted": True, "rate": 0.125}]
    tables = ((RELATIONS, rows), (ABSORPTION, lost))
    files = {f"{schema.name}.parquet": (filled(schema, rows), schema) for schema, rows in tables}
    finish_beside(folder, "kinship", files)


def filled(schema: Schema, rows: list[dict[str, Any]]) -> pa.Table:
    """A table of rows that name only what matters: counts are 0, what may be missing is."""
    zero = {c.name: None if c.nullable else "" if c.dtype == pa.string() else 0 for c in schema.columns}
    return pa.Table.from_pylist([zero | row for row in rows], schema=schema.arrow())


@pytest.fixture(scope="session")
def served_atlas(serving, tmp_path_factory) -> Served:
    """A study with predicted pushes."""
    made = synthetic_run(tmp_path_factory.mktemp("run"), WORLD)
    add_atlas(made)
    return serving.study(made)


@pytest.fixture(scope="session")
def served(serving, folder) -> Served:
    return serving.study(folder)
