"""What it costs to be asked for help."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Line, Size, benchmark, interleaved_commands, require

VERBS = ("run", "plan", "atlas", "features", "pairs", "trials", "effects", "report")


@benchmark
def help_page(size: Size) -> Iterator[Line]:
    """`polysem --help` against the import of torch, fresh processes."""
    program = str(Path(sys.executable).with_name("polysem"))
    said = subprocess.run([program, "--help"], capture_output=True, text=True).stdout
    absent = [verb for verb in VERBS if verb not in said]
    require(not absent, f"the help page names no {absent}")
    seconds = interleaved_commands(
        {"help": [program, "--help"], "torch": [sys.executable, "-c", "import torch"]},
        rounds=3 if size == "quick" else 9,
    )
    yield Line(
        "polysem --help",
        'python -c "import torch"',
        seconds["help"],
        seconds["torch"],
        "cpu s",
        f"the page names {', '.join(VERBS)}",
        5,
        10,
    )
