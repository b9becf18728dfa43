"""The script that checks a card is run on cards only; here on the CPU, so that it keeps to the library's names."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_path_of_the_gpu_script_runs_and_agrees_with_itself():
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.rstrip().endswith("0 failed")
    assert sum(line.startswith("ok") for line in done.stdout.splitlines()) >= 20
