"""Where the CPU seconds of a whole study go: the demo, run with `polysem run --profile`."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Point, Size, curve, require

# isort: split
from polysem.cli.study import DEMO
from polysem.profiling import KINDS

NAMES = {"cpu_s": "all", "products_s": "products at the bare rate", **{f"{kind}_s": kind for kind in KINDS}}


@curve
def demo(size: Size) -> Iterator[Point]:
    """CPU seconds by stage and kind; a quick run is of a smaller study."""
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder, "study.toml")
        text = DEMO.read_text(encoding="utf-8")
        study.write_text(_smaller(text) if size == "quick" else text, encoding="utf-8")
        run = Path(folder, "run")
        command = [sys.executable, "-m", "polysem", "run", str(study), "--out", str(run), "--profile"]
        done = subprocess.run(command, capture_output=True, text=True)
        require(done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-800:]}")
        found = json.loads((run / "profile.json").read_text(encoding="utf-8"))
    for stage, row in (*found["stages"].items(), ("all", found["total"])):
        gap = abs(row["cpu_s"] - sum(row[f"{kind}_s"] for kind in KINDS))
        require(gap < 1e-6, f"{stage}: kinds miss their sum by {gap:.1e} s")
        yield Point(
            "The demo, CPU seconds by stage and kind", "stage", stage, {NAMES[k]: row[k] for k in NAMES}
        )


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
