"""A client that is killed with charged answers on their way asks again and pays for nothing twice. No model, no torch."""

import gzip
import json
import multiprocessing
import signal
from pathlib import Path

import numpy as np

from polysem.http import Retries
from polysem.targets import Budget, ResponseCache, ServedTarget, Serving, TargetPrompt
from support.served import Books, Server, kept_port

PROMPTS = [TargetPrompt(f"prompt {i}") for i in range(60)]
THREADS = 3
FAST = Retries(attempts=5, first=0.001, sleep=lambda seconds: None)


def words(prompt: str):
    texts = tuple(" abcdefghijklmnop")
    z = np.random.default_rng(sum(prompt.encode())).normal(size=len(texts))
    return texts, z - np.logaddexp.reduce(z)


def ask(url: str, folder: str) -> None:
    """What the killed process does."""
    target = client(url, Path(folder))
    target.probe(PROMPTS[:1])
    target.answers(PROMPTS)


def client(url: str, folder: Path) -> ServedTarget:
    serving = Serving(url=url, model="test-model", k=10, concurrency=THREADS)
    return ServedTarget(serving, cache=ResponseCache(folder), budget=Budget(max_requests=500), retries=FAST)


def responses(folder: Path) -> dict[str, str]:
    return {
        p.name: json.loads(gzip.decompress(p.read_bytes()))["response"]
        for p in sorted(folder.rglob("*.json.gz"))
    }


def interrupted(tmp_path: Path, books: Books, port: int) -> tuple[ServedTarget, int]:
    """Three kills at the worst moment, each with the server started anew and other troubles, then a run to the end."""
    context = multiprocessing.get_context("forkserver")
    for first_lost in (9, 24, 31):
        troubles = {2: "cut", 4: "busy", 6: "half", **dict.fromkeys(range(first_lost, 10_000), "lost")}
        with Server(words, port=port, troubles=troubles, books=books) as server:
            process = context.Process(target=ask, args=(server.url, str(tmp_path / "killed")))
            process.start()
            assert server.wait_hanging(THREADS, timeout=600.0), f"not asked {first_lost} times"
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
    with Server(words, port=port, troubles={0: "cut", 2: "broken", 3: "half"}, books=books) as server:
        target = client(server.url, tmp_path / "killed")
        unsettled = target.estimate(PROMPTS).unsettled
        target.probe(PROMPTS[:1])
        target.answers(PROMPTS)
        received = server.received
        target.answers(PROMPTS)
        assert server.received == received, "a finished run asks nothing"
        with Server(words) as calm:
            other = client(calm.url, tmp_path / "calm")
            other.probe(PROMPTS[:1])
            for mine, theirs in zip(target.answers(PROMPTS), other.answers(PROMPTS), strict=True):
                assert mine.tokens == theirs.tokens
                np.testing.assert_array_equal(mine.logprobs, theirs.logprobs)
    assert sorted(responses(tmp_path / "killed").values()) == sorted(responses(tmp_path / "calm").values())
    return target, unsettled


def test_where_keys_are_honoured_nothing_is_paid_for_twice(tmp_path):
    books = Books()
    with kept_port() as port:
        target, unsettled = interrupted(tmp_path, books, port)
    assert unsettled == THREADS, "as many as were under way at the last kill"
    assert set(books.charged.values()) == {1}
    assert len(books.charged) == len(PROMPTS)
    assert books.replayed >= 3 * THREADS, "what the kills lost was given again"
    assert target.cache.open_marks() == []


def test_where_they_are_not_only_what_was_lost_on_the_way_is(tmp_path):
    books = Books(honours=False)
    with kept_port() as port:
        target, _ = interrupted(tmp_path, books, port)
    again = sum(books.charged.values()) - len(PROMPTS)
    lost_by_kills, cut_or_half = 3 * THREADS, 3 * 2 + 2
    assert 0 < again <= lost_by_kills + cut_or_half
    assert books.replayed == 0
    assert target.cache.open_marks() == []
