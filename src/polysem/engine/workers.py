"""The trials on many processes of this machine: each runs a shard, as a scheduler's task would.

A worker is `polysem trials STUDY --shard K/N` with one thread. Workers share nothing but the run folder: parts
are whole batches of the plan, written whole, and named by the plan, so the tables do not depend on how many
workers there were, in which order they ended, or which of them died. One that is killed (by hand, or by the
system when memory runs out) costs its unfinished parts, which are run again, alone; one that ends with an
error ends the run with it. Workers end when the process that started them does, even if that is killed.
"""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from polysem.engine.task import Steps
from polysem.errors import ConfigError, StoreError
from polysem.progress import SILENT, Reporter
from polysem.store.lock import WHOLE
from polysem.store.run import RunFolder, trial_parts

log = logging.getLogger(__name__)

_POLL_S = 0.2
_WATCHES = "POLYSEM_WORKER"
"""set in the environment of a worker, at whose stdin its parent holds the other end of a pipe"""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Worker:
    """One running shard."""

    k: int
    process: subprocess.Popen[bytes]
    talk: IO[bytes]

    def last_words(self) -> str:
        """The end of what it said."""
        self.talk.seek(0)
        return self.talk.read().decode(errors="replace").strip()[-2000:]

    def close(self) -> None:
        """Wait for its end and let go of its pipe and its talk."""
        self.process.wait()
        self.talk.close()
        if self.process.stdin:
            self.process.stdin.close()


def run_workers(out: Path, workers: int, *, reporter: Reporter = SILENT, options: Sequence[str] = ()) -> None:
    """Run the trials of a run folder whose plan is fresh on `workers` processes, one thread each.

    Parts that are there already are kept. A shard whose worker was killed is run once more, by itself.

    Args:
        out: the run folder.
        workers: how many; never more are started than there are parts.
        reporter: is told of finished parts.
        options: more options of `polysem trials`.

    Raises:
        ConfigError: if `workers` is less than 1.
        StoreError: if a worker ends with an error, or is killed twice.
    """
    check_workers(workers)
    n_parts = len(trial_parts(RunFolder.open(out).table("plan")))
    n = min(workers, n_parts)
    with steps(out, n_parts, reporter) as step:
        killed = _run(out, range(1, n + 1), n, step, options)
        for k in killed:
            log.warning(
                "worker %d of %d was killed (%s); its shard is run again, alone", k, n, _signal(killed[k])
            )
            if again := _run(out, [k], n, step, options):
                raise StoreError(
                    f"the worker of shard {k}/{n} was killed twice ({_signal(again[k])}), the second time alone",
                    hint="if memory ran out: lower plan.batch_rows; then run the same command again",
                )


def check_workers(workers: int) -> None:
    """Raises ConfigError for a number of workers that cannot be."""
    if workers < 1:
        raise ConfigError(f"--workers {workers}: expected at least 1")


def lock_name(k: int, n: int) -> str:
    """What a shard's writer is called; its lock file is this after `.lock-`."""
    return f"trials-{k:05d}-of-{n:05d}"


def forget_lock(out: Path, k: int, n: int) -> None:
    """Remove the lock of a shard whose writer is known to be dead, also where it died on another machine."""
    (out / f"{WHOLE}-{lock_name(k, n)}").unlink(missing_ok=True)


def parts_there(out: Path) -> int:
    """How many parts of the trials have a record."""
    return sum(1 for _ in (out / "trials").glob("part-*.json"))


def _run(out: Path, shards: Sequence[int], n: int, step: "_Step", options: Sequence[str]) -> dict[int, int]:
    """Run shards at the same time; gives the signal of each that was killed."""
    running = [_start(out, k, n, options) for k in shards]
    killed: dict[int, int] = {}
    try:
        while running:
            time.sleep(_POLL_S)
            step.look()
            for worker in [w for w in running if w.process.poll() is not None]:
                running.remove(worker)
                code = worker.process.returncode
                if code < 0:
                    killed[worker.k] = -code
                    forget_lock(out, worker.k, n)
                words = worker.last_words()
                worker.close()
                if code > 0:
                    raise StoreError(
                        f"the worker of shard {worker.k}/{n} failed: {words}",
                        hint="mend this, then run the same command again; finished parts are kept",
                    )
    finally:
        for worker in running:
            worker.process.terminate()
        for worker in running:
            worker.close()
    return killed


def _start(out: Path, k: int, n: int, options: Sequence[str]) -> Worker:
    talk = tempfile.TemporaryFile()  # noqa: SIM115  (closed when the worker has ended)
    command = [sys.executable, "-m", "polysem", "trials", str(out / "study.toml"), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--shard", f"{k}/{n}", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=talk,
        env={**os.environ, **dict.fromkeys((*_THREADS, _WATCHES), "1")},
    )
    return Worker(k, process, talk)


def end_with_parent() -> None:
    """In a worker: end as soon as the process that started it has ended, however that was. Elsewhere nothing."""
    if os.environ.get(_WATCHES):
        threading.Thread(target=_wait_for_its_end, daemon=True).start()


def _wait_for_its_end() -> None:
    while os.read(0, 1):  # nothing is ever written; the system closes the pipe of a process that is gone
        pass
    os.kill(os.getpid(), signal.SIGTERM)


class _Step:
    """A bar over parts, moved by what is seen in the folder."""

    def __init__(self, out: Path, total: int, reporter: Reporter):
        self._out, self._done = out, min(parts_there(out), total)
        self.bar = Steps(reporter, total=total, done=self._done, label="trials")

    def look(self) -> None:
        while self._done < parts_there(self._out):
            self._done += 1
            self.bar.step()


@contextmanager
def steps(out: Path, total: int, reporter: Reporter) -> Generator[_Step, None, None]:
    """A bar over the parts of the trials, moved whenever `look` is called."""
    step = _Step(out, total, reporter)
    yield step
    step.look()
    step.bar.close()


def _signal(number: int) -> str:
    with suppress(ValueError):
        name = signal.Signals(number).name
        return f"{name}, perhaps out of memory" if name == "SIGKILL" else name
    return f"signal {number}"
