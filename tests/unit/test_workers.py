"""Workers do not outlive the process that started them."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

WORKER = "from polysem.engine.workers import end_with_parent; end_with_parent(); import time; time.sleep(90)"
PARENT = """
import sys, time
from pathlib import Path
from polysem.engine import workers
sys.executable = sys.argv[1]
print(workers._start(Path("."), 1, 1, []).process.pid, flush=True)
time.sleep(90)
"""


def ended(pid: int) -> bool:
    """Gone, or a zombie that nobody has asked after yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system has no /proc")
def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{WORKER}'\n")
    program.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(program)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        worker = int(parent.stdout.readline())
        assert not ended(worker)
        parent.kill()
    started = time.monotonic()
    try:
        while not ended(worker):
            assert time.monotonic() - started < 60, "the worker goes on alone"
            time.sleep(0.05)
    finally:
        if not ended(worker):
            os.kill(worker, signal.SIGKILL)


def test_only_workers_watch_their_stdin(monkeypatch):
    from polysem.engine import workers

    monkeypatch.delenv("POLYSEM_WORKER", raising=False)
    monkeypatch.setattr(threading, "Thread", lambda **_: pytest.fail("it watches"))
    workers.end_with_parent()
