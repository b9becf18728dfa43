"""Steering on request: one worker thread with the study's model, loaded when it is first asked for.

The page never waits: a request becomes a job that is followed, change by change, until it is done. A job can be cancelled
between two forward passes; what it found so far stays visible. Nothing is written.
"""

import queue
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from polysem.errors import ConfigError, PolysemError, StoreError
from polysem.explore.again import AskedRow, run_again
from polysem.explore.book import Book
from polysem.explore.documents import feature
from polysem.explore.query import Sql
from polysem.explore.steer import LIVE, Asked, LiveSteer
from polysem.store.run import RunFolder

if TYPE_CHECKING:
    from polysem.engine.context import StudyContext

State = Literal["waiting", "running", "done", "failed", "cancelled"]

BEAT = 2.0
"""seconds without a change after which a follower is sent an empty line, so that one who left is noticed"""
TEXTS = ("text_after", "text_before", "read_text_after", "read_text_before")
OPEN = ("waiting", "running")
"""states of a job that something will still come of"""
KEPT = 32
"""jobs that can still be looked at"""
WAITING = 4
"""jobs that may wait at once"""


class Cancelled(Exception):
    """The job was cancelled."""


@dataclass
class Job:
    """One request on its way."""

    id: str
    asked: Asked | AskedRow
    state: State = "waiting"
    doing: str = "waiting for the one before"
    result: dict[str, Any] | None = None
    error: str | None = None
    hint: str | None = None
    seconds: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)
    changes: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def tell(self, **now: Any) -> None:
        """Change it, and wake whoever follows it."""
        with self.changed:
            vars(self).update(now)
            self.changes += 1
            self.changed.notify_all()

    def shown(self) -> dict[str, Any]:
        """What the page is told."""
        names = ("id", "state", "doing", "result", "error", "hint", "seconds")
        return {name: getattr(self, name) for name in names}


class Live:
    """Jobs and the thread that does them."""

    def __init__(self, book: Book):
        self.book = book
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._queue: queue.Queue[Job | None] = queue.Queue()
        self._lock = threading.Lock()
        self._worker = self._started()

    @cached_property
    def bench(self) -> "StudyContext":
        """Model and SAEs of the study."""
        from polysem.engine.context import StudyContext

        return StudyContext(self.book.study, RunFolder(self.book.folder))

    def choices(self) -> dict[str, Any]:
        """What can be asked for."""
        saes = self.book.ask(Sql("SELECT DISTINCT sae FROM names ORDER BY sae", []))
        prompts = (
            self.book.ask(Sql("SELECT text FROM t_prompts ORDER BY prompt_id LIMIT 1", []))
            if self.book.has("prompts")
            else []
        )
        return {
            "model": self.book.study.model.ref,
            "saes": [row["sae"] for row in saes],
            "loci": [{"name": name, "words": way.words} for name, way in LIVE.items()],
            "prompt": prompts[0]["text"] if prompts else "It was",
        }

    def start(self, asked: Any) -> dict[str, Any]:
        """Begin a job. Raises ConfigError if the request is wrong or too much is waiting."""
        row = asked.get("row") if isinstance(asked, dict) else None
        job = Job(secrets.token_hex(8), Asked.parse(asked) if row is None else AskedRow.parse(row))
        with self._lock:
            if sum(j.state == "waiting" for j in self._jobs.values()) >= WAITING:
                raise ConfigError(f"{WAITING} requests are waiting already", hint="cancel one, or wait")
            self._jobs[job.id] = job
            while len(self._jobs) > KEPT:
                _, oldest = self._jobs.popitem(last=False)
                oldest.stop.set()
            if not self._worker.is_alive():
                self._worker = self._started()
        self._queue.put(job)
        return job.shown()

    def look(self, job: str) -> dict[str, Any]:
        """How far a job is. Raises StoreError if it is not known (any more)."""
        if job not in self._jobs:
            raise StoreError(f"there is no request {job[:40]!r} (any more)")
        return self._jobs[job].shown()

    def follow(self, job: str) -> Iterator[dict[str, Any]]:
        """What `look` gives, at once and after every change, until the job has ended; of a result that was sent before only the
        texts, which grow. Empty where nothing changed for `BEAT` seconds.

        Raises:
            StoreError: if the job is not known (any more).
        """
        self.look(job)
        return _following(self._jobs[job])

    def cancel(self, job: str) -> dict[str, Any]:
        """Ask a job to stop at the next occasion."""
        self.look(job)
        self._jobs[job].stop.set()
        return self.look(job)

    def close(self) -> None:
        """Stop everything; the worker ends after the forward pass at hand."""
        for job in list(self._jobs.values()):
            job.stop.set()
        self._queue.put(None)
        self._worker.join(timeout=5)

    def _started(self) -> threading.Thread:
        worker = threading.Thread(target=self._work, name="polysem-live", daemon=True)
        worker.start()
        return worker

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            begun = time.monotonic()
            try:
                if job.stop.is_set():
                    raise Cancelled
                job.tell(state="running", doing="loading the model (once)")
                self._steer(job, begun)
                end: dict[str, Any] = {"state": "done"}
            except Cancelled:
                end = {"state": "cancelled"}
            except PolysemError as error:
                end = {"state": "failed", "error": error.args[0], "hint": error.hint}
            except (RuntimeError, MemoryError, OSError) as error:
                end = {"state": "failed", "error": f"the model failed: {error}".splitlines()[0]}
            except BaseException:  # a bug: it ends this thread, and the page is told
                job.tell(state="failed", error="something unexpected happened; the terminal says what")
                raise
            job.tell(**end, seconds=time.monotonic() - begun)

    def _steer(self, job: Job, begun: float) -> None:
        import torch

        def check() -> None:
            if job.stop.is_set():
                raise Cancelled

        def show(result: dict[str, Any] | None) -> None:
            check()
            if result is not None:
                job.tell(result=result, doing="writing on", seconds=time.monotonic() - begun)

        asked = job.asked
        if isinstance(asked, AskedRow):
            job.tell(doing="running the row's prompts again")
            with torch.no_grad():
                found = run_again(self.bench, RunFolder(self.book.folder), asked, check=check)
            show({"row": found})
            return
        target = feature(self.book, asked.sae, asked.target)
        source = feature(self.book, asked.sae, asked.source) if LIVE[asked.locus].from_feature else None
        for one in asked.more:
            feature(self.book, asked.sae, one.source)
        with torch.no_grad():
            model = self.bench.model
            check()
            sae = self.bench.saes[asked.sae]
            check()
            job.tell(doing="running the model")
            positions = self.book.study.plan.positions
            LiveSteer(
                asked, model=model, sae=sae, source=source, target=target, positions=positions, show=show
            ).run()


def _following(job: Job) -> Iterator[dict[str, Any]]:
    seen, sent = -1, None
    while True:
        with job.changed:
            if not job.changed.wait_for(lambda last=seen: job.changes != last, timeout=BEAT):
                told: dict[str, Any] = {}
            else:
                seen, told = job.changes, job.shown()
                if sent is not None and told["result"] is sent:
                    told["texts"] = {name: sent[name] for name in TEXTS if name in sent}
                    del told["result"]
                sent = job.result
        yield told
        if told and told["state"] not in OPEN:
            return
