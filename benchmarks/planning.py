"""Memory of planning a study of wide dictionaries, beyond the model and the dictionaries themselves."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import Line, Size, benchmark, peak_mb, require

ALLOWED = 1000.0
"""MB (10^6 bytes) beyond model and dictionary"""
_MAKE = """
from pathlib import Path
from benchmarks.grid import write_study
from polysem.engine import run_study
folder = Path({folder!r})
study = write_study(folder, "Pythia-70M", d_sae={d_sae}, n_saes={n_saes}, n_targets=4, n_prompts=4, n_topics={topics})
run_study(study, folder / "run", stages=["features", "pairs"])
"""
_LOAD = """
from pathlib import Path
import benchmarks.harness
import torch
from polysem.engine import run_study
from polysem.store.run import RunFolder
from safetensors import safe_open
folder = Path({folder!r})
own = 0
for path in folder.rglob("*.safetensors"):
    if "run" not in path.relative_to(folder).parts:
        with safe_open(path, "pt") as file:
            own += sum(file.get_tensor(name).nbytes for name in file.keys())
"""
_PLAN = """
run_study(folder / "study.toml", folder / "run", stages=["plan"])
plan = RunFolder(folder / "run").table("plan")
print(own / 1e6, plan.num_rows, len(set(plan["target"].to_pylist())))
"""


@benchmark
def memory(size: Size) -> Iterator[Line]:
    """Planning two SAEs, then six: what a further one adds tells what 48 take."""
    d_sae, topics = (32_768, 4096) if size == "full" else (1024, 128)
    few, more = _planned(2, d_sae, topics), _planned(6, d_sae, topics)
    each = (more.beyond - few.beyond) / 4
    yield Line(
        f"memory of planning beyond model and dictionaries, 48 SAEs of {d_sae:,} x 512",
        "1 GB allowed",
        max(more.beyond + 42 * each, more.beyond),
        ALLOWED,
        "MB",
        f"of two SAEs {few.rows:,.0f} trials are planned, of six {more.rows:,.0f}",
        1,
        note=f"two SAEs take {few.beyond:,.0f} MB beyond model and dictionaries ({few.own:,.0f} MB), six {more.beyond:,.0f} "
        f"({more.own:,.0f}): {each:.1f} MB for each more, and so for 48; 48 were not planned here",
    )


class _Planned(NamedTuple):
    """One run of the planning stage, in MB (10^6 bytes)."""

    beyond: float
    own: float
    """model and dictionaries"""
    rows: float


def _planned(n_saes: int, d_sae: int, topics: int) -> _Planned:
    """Model and dictionaries are loaded by the stage, and their bytes taken off its peak."""
    with tempfile.TemporaryDirectory() as parent:
        folder = str(Path(parent, "grid"))
        code = _MAKE.format(folder=folder, d_sae=d_sae, n_saes=n_saes, topics=topics)
        made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        require(made.returncode == 0, made.stderr[-800:])
        peak, said = peak_mb(_LOAD.format(folder=folder), _PLAN)
    own, rows, targets = (float(part) for part in said.split())
    require(rows > 0 and targets > 1, f"{rows:g} trials of {targets:g} targets are planned")
    return _Planned(peak.extra - own, own, rows)
