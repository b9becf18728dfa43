"""The explorer on a million pairs: time to the first view, filters and sorts, memory, beside DuckDB's own time.

    python benchmarks/explorer.py [--pairs 1000000] [--features 32768] [--folder DIR] [--browser]

Makes a synthetic study (random features, pairs with random cosines, glosses of a few words), starts
`polysem explore` on it as a user does, and asks over HTTP. Every question is asked with values that were not
asked before, so that no answer comes from a cache of the explorer; files are in the system's page cache, as
they are after the first view. "DuckDB" is the bare statement over the same parquet file, the same number of
threads, found rows fetched. "CPU" is the server's processor time for a question: on a busy machine it says what the clock
cannot. With --browser the first view is timed in Chromium, from the request to a drawn
page.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import httpx
import numpy as np
import psutil
import pyarrow as pa

from polysem.config import parse_study
from polysem.explore.book import THREADS
from polysem.store import io
from polysem.store import tables as t
from polysem.store.manifest import Manifest, Output, StageInputs
from polysem.store.schema import Schema

WORDS = [
    "river",
    "street",
    "London",
    "harbour",
    "judge",
    "verdict",
    "oath",
    "mast",
    "sail",
    "storm",
    "gale",
    "rose",
    "ivy",
    "violin",
    "drum",
    "bishop",
    "abbot",
    "seven",
    "twelve",
    "azure",
    "crimson",
    "mother",
    "uncle",
    "boil",
    "roast",
    "guinea",
    "debt",
    "saddle",
    "mare",
    "angle",
    "ratio",
    "furious",
    "wrath",
]
LABEL = "blocks.6.hook_resid_post"
REPEATS = 7
QUESTIONS: dict[str, tuple[str, str]] = {
    "sort by |interference|": (
        "sort=-strength&f=z_isotropic>={x}",
        "SELECT * FROM p WHERE z_isotropic >= {x} ORDER BY abs(interference) DESC, i, j LIMIT 50",
    ),
    "filter three columns": (
        "f=interference>=0.3&f=similarity<{x}&f=is_dense=false",
        "SELECT * FROM p WHERE interference >= 0.3 AND similarity < {x} AND NOT is_dense ORDER BY i, j LIMIT 50",
    ),
    "sort by similarity, page 200": (
        "sort=similarity&offset=10000&f=interference>={x}",
        "SELECT * FROM p WHERE interference >= {x} ORDER BY similarity, i, j LIMIT 50 OFFSET 10000",
    ),
    "search two words in glosses": (
        "q=river, violin&f=interference>={x}",
        "SELECT p.* FROM p WHERE interference >= {x} AND (i IN (SELECT feature FROM f WHERE contains(lower(gloss), 'river') OR contains(lower(gloss), 'violin')) OR j IN (SELECT feature FROM f WHERE contains(lower(gloss), 'river') OR contains(lower(gloss), 'violin'))) ORDER BY i, j LIMIT 50",
    ),
    "sort by the second gloss": (
        "sort=gloss_j&f=interference>={x}",
        "SELECT p.*, f.gloss FROM p LEFT JOIN f ON f.feature = p.j WHERE interference >= {x} ORDER BY lower(f.gloss), i, j LIMIT 50",
    ),
    "pairs of one feature": (
        "near={n}&sort=-strength",
        "SELECT * FROM p WHERE i = {n} OR j = {n} ORDER BY abs(interference) DESC, i, j LIMIT 50",
    ),
}


def make_study(folder: Path, *, n_features: int, n_pairs: int) -> Path:
    """A run folder with the stages features and pairs."""
    rng = np.random.default_rng(0)
    text = f'name = "million"\n[model]\nref = "synthetic:model"\n[[saes]]\nref = "synthetic:{LABEL}"\nlabel = "{LABEL}"\n'
    io.write_text(folder / "study.toml", text)
    made = {"features": _features(rng, n_features), "pairs": _pairs(rng, n_features, n_pairs)}
    for stage, tables in made.items():
        outputs = {}
        for schema in t.STAGES[stage]:
            part = "-00000-of-00001" if stage == "pairs" else ""
            file = f"{stage}/{schema.name}{part}.parquet"
            table = tables.get(schema.name, schema.empty())
            outputs[file] = Output(io.write_table(folder / file, table, schema), table.num_rows)
        made_from = StageInputs.of(parse_study(text), stage, sources={}, inputs={})  # pyright: ignore[reportArgumentType]  (two names of stages)
        Manifest(made_from, outputs).write(folder / stage / "manifest.json")
    return folder


def _features(rng: np.random.Generator, n: int) -> dict[str, pa.Table]:
    glosses = [" ".join(rng.choice(WORDS, size=4)) + f" {k}" for k in range(n)]
    tokens = [list(rng.choice(WORDS, size=8)) for _ in range(n)]
    columns: dict[str, object] = {
        "sae": [LABEL] * n, "feature": np.arange(n), "site": [LABEL] * n,
        "density": 10 ** rng.uniform(-5, -1, n), "n_active": rng.integers(1, 10**6, n),
        "max_act": rng.uniform(1, 30, n), "tokens_in": [[1, 2]] * n, "tokens_in_str": tokens,
        "tokens_in_act": [[1.0] * 8] * n, "tokens_out": [[3]] * n, "tokens_out_str": tokens,
        "tokens_out_logit": [[1.0] * 8] * n, "tokens_bottom_str": tokens, "dec_norm": np.ones(n),
        "neuron_alignment": rng.integers(0, 768, (n, 3)).tolist(),
        "neuron_alignment_values": rng.uniform(0.1, 0.5, (n, 3)).tolist(), "gloss": glosses,
        "gloss_source": ["synthetic"] * n, "n_glosses": np.ones(n, int),
    }  # fmt: skip
    ranks = 12
    contexts = {
        "sae": [LABEL] * (n * ranks), "feature": np.repeat(np.arange(n), ranks),
        "rank": np.tile(np.arange(ranks), n), "max_value": rng.uniform(1, 30, n * ranks),
        "position": np.full(n * ranks, 12), "token_ids": [[]] * (n * ranks),
        "tokens": [WORDS[:24]] * (n * ranks), "values": rng.uniform(0, 1, (n * ranks, 24)).tolist(),
        "source": ["book"] * (n * ranks),
    }  # fmt: skip
    named = {"sae": [LABEL] * n, "feature": np.arange(n), "gloss_index": np.zeros(n, int), "text": glosses}
    named |= {"source": ["synthetic"] * n, "explainer": [None] * n}
    return {
        "features": _table(t.FEATURES, columns),
        "contexts": _table(t.CONTEXTS, contexts),
        "glosses": _table(t.GLOSSES, named),
    }


def _pairs(rng: np.random.Generator, n: int, count: int) -> dict[str, pa.Table]:
    code = np.unique(rng.integers(0, n * n, int(2.2 * count)))
    i, j = np.divmod(code, n)
    keep = np.sort(rng.permutation(np.flatnonzero(i < j))[:count])
    i, j = i[keep], j[keep]
    m = len(i)
    interference = rng.choice([-1, 1], m) * (0.2 + rng.exponential(0.06, m)).clip(max=0.95)
    similarity = rng.normal(0.1, 0.08, m).clip(-0.3, 0.299)
    numbers = {c.name: rng.uniform(0, 1, m) for c in t.PAIRS.columns if c.dtype == pa.float64()}
    z = interference * np.sqrt(768)
    columns = numbers | {
        "sae": [LABEL] * m, "sae_j": [LABEL] * m, "i": i, "j": j, "interference": interference, "similarity": similarity,
        "z_isotropic": z, "z_covariance": 0.8 * z, "interference_bin": rng.integers(0, 5, m),
        "token_overlap": rng.choice([0.0, 0.05], m), "is_duplicate": np.abs(interference) > 0.7,
        "is_dense": rng.random(m) < 0.1,
    }  # fmt: skip
    edges = np.arange(-40, 41) / 40
    grid = np.histogram2d(rng.normal(0, 0.05, 500_000), rng.normal(0.12, 0.1, 500_000), bins=[edges, edges])[
        0
    ]
    a, b = np.nonzero(grid)
    cells = {
        "sae": [LABEL] * len(a), "sae_j": [LABEL] * len(a), "interference_lo": edges[a], "interference_hi": edges[a + 1],
        "similarity_lo": edges[b], "similarity_hi": edges[b + 1], "count": grid[a, b].astype(int) * 1000,
    }  # fmt: skip
    levels = [-0.3, -0.2, 0.2, 0.3]
    spectrum = {
        "sae": [LABEL] * 4,
        "sae_j": [LABEL] * 4,
        "threshold": levels,
        "n_pairs": [count] * 4,
        "n_isotropic": [1.0] * 4,
    }
    spectrum |= {"n_covariance": [1.0] * 4, "d_in": [768] * 4, "d_eff": [500.0] * 4, "mean_norm": [0.1] * 4}
    partners = {
        "sae": [LABEL] * (n * 5), "sae_j": [LABEL] * (n * 5), "feature": np.repeat(np.arange(n), 5), "max_similarity": [0.3] * (n * 5),
        "interference_bin": np.tile(np.arange(5), n), "count": rng.integers(0, 900, n * 5),
    }  # fmt: skip
    return {
        "pairs": _table(t.PAIRS, columns),
        "density": _table(t.DENSITY, cells),
        "spectrum": _table(t.SPECTRUM, spectrum),
        "partners": _table(t.PARTNERS, partners),
    }


def _table(schema: Schema, columns: Mapping[str, Any]) -> pa.Table:
    arrays = [pa.array(columns[f.name], type=f.type, from_pandas=False) for f in schema.arrow()]
    return pa.Table.from_arrays(arrays, schema=schema.arrow())


def timed(work: Callable[[int], object]) -> float:
    """Median of REPEATS in milliseconds, after one that does not count."""
    found = []
    for k in range(REPEATS + 1):
        begun = time.perf_counter()
        work(k)
        found.append(1000 * (time.perf_counter() - begun))
    return statistics.median(found[1:])


def spent(process: psutil.Process) -> float:
    """Seconds of processor time so far."""
    used = process.cpu_times()
    return used.user + used.system


def fill(text: str, k: int) -> str:
    return text.replace("{x}", f"{0.2 + 0.001 * k:.3f}").replace("{n}", str(100 + k))


def main() -> None:
    """Print one line a question."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=32_768)
    parser.add_argument("--folder", type=Path, help="where the study is made, or lies from an earlier call")
    parser.add_argument("--browser", action="store_true")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="explorer-"))
    if not (folder / "pairs" / "manifest.json").is_file():
        make_study(folder, n_features=asked.features, n_pairs=asked.pairs)
    begun = time.perf_counter()
    command = [sys.executable, "-m", "polysem", "explore", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        print(f"ready to answer              {time.perf_counter() - begun:8.2f} s")
        try:
            measure(address, folder, psutil.Process(server.pid), browser=asked.browser)
        finally:
            server.terminate()


def measure(address: str, folder: Path, process: psutil.Process, *, browser: bool) -> None:
    """Times over HTTP, bare DuckDB beside them, and memory."""
    base, _, token = address.partition("/?token=")
    client = httpx.Client(base_url=base, headers={"authorization": f"Bearer {token}"}, timeout=60)
    begun = time.perf_counter()
    for path in ("/", "/data/overview.json", "/data/map.json", "/data/rows/pairs?sort=-strength"):
        client.get(path).raise_for_status()
    print(f"first data (study, map, pairs){time.perf_counter() - begun:7.2f} s")
    if browser:
        print(f"first view in Chromium       {first_view(address):8.2f} s")
    bare = duckdb.connect(config={"threads": THREADS})
    pairs, features = (next((folder / stage).glob(f"{stage}*.parquet")) for stage in ("pairs", "features"))
    bare.execute(f"CREATE VIEW p AS SELECT * FROM '{pairs}'")
    bare.execute(f"CREATE VIEW f AS SELECT * FROM '{features}'")
    print(f"{'':32}{'explorer':>12}{'CPU':>12}{'DuckDB':>12}{'ratio':>8}")
    for name, (query, sql) in QUESTIONS.items():
        worked = spent(process)
        own = timed(lambda k, q=query: client.get(f"/data/rows/pairs?{fill(q, k)}").raise_for_status())
        worked = 1000 * (spent(process) - worked) / (REPEATS + 1)
        pure = timed(lambda k, s=sql: bare.execute(fill(s, k)).fetchall())
        print(f"{name:32}{own:9.0f} ms{worked:9.0f} ms{pure:9.0f} ms{own / pure:8.1f}")
    card = timed(lambda k: client.get(f"/data/feature?sae={LABEL}&feature={100 + k}").raise_for_status())
    hubs = timed(lambda k: client.get(f"/data/rows/hubs?sort=-n_pairs&f=n_pairs>={k}").raise_for_status())
    print(f"{'record of a feature':32}{card:9.0f} ms\n{'hubs':32}{hubs:9.0f} ms")
    memory = process.memory_info().rss / 2**20
    print(f"{'memory of the server':32}{memory:9.0f} MiB")


def first_view(address: str) -> float:
    """Seconds from the request to a drawn map."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = chromium.new_page()
        begun = time.perf_counter()
        page.goto(f"{address}#/map")
        page.wait_for_selector("svg.heat .v0")
        seconds = time.perf_counter() - begun
        chromium.close()
    return seconds


if __name__ == "__main__":
    main()
