"""A small OpenAI-compatible server for tests, in this process: a model or a script behind /v1/completions and
/v1/chat/completions, with the troubles that real servers have.

    with Server(distribution_of(target), k_max=20) as server:
        ... server.url ...

Troubles by number of the request received (from 0): busy (429 with Retry-After), broken (500), cut (the
connection ends in the middle of the body), half (a body that ends too early under a valid length), silent (an
answer without log-probabilities), hang (no work and no answer until the server closes), lost (the work is
done and charged, and the answer never arrives). `Books` are the provider's: what is computed is charged,
delivered or not, and a key that stands there twice was paid for twice. They outlive a server that is
restarted with them.
"""

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import numpy as np

from polysem.seeds import rng_for
from polysem.targets.base import TargetPrompt
from polysem.targets.local import LocalTarget

Trouble = Literal["busy", "broken", "cut", "half", "silent", "hang", "lost"]
Distribution = Callable[[str], tuple[Sequence[str], np.ndarray]]
"""prompt -> token texts and their log-probabilities, in any order"""


def distribution_of(target: LocalTarget) -> Distribution:
    """What a model of this process says."""

    def distribution(prompt: str) -> tuple[Sequence[str], np.ndarray]:
        answer = target.answers([TargetPrompt(prompt)])[0]
        return answer.tokens, answer.logprobs

    return distribution


@contextmanager
def kept_port() -> Iterator[int]:
    """A port for servers that come and go: bound and never listened on, so that no other process is given it between two."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@dataclass
class Books:
    """What a provider has charged, by idempotency key."""

    honours: bool = True
    """whether a key that was charged before is answered from the books, free of charge"""
    charged: Counter[str] = field(default_factory=Counter)
    bodies: dict[str, str] = field(default_factory=dict)
    replayed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def settle(self, key: str, work: Callable[[], str]) -> str:
        """The answer to a request: computed and charged, or the one that was charged before."""
        with self._lock:  # a request that is repeated while the first is at work waits for it
            if self.honours and key and key in self.bodies:
                self.replayed += 1
                return self.bodies[key]
            self.charged[key] += 1
            self.bodies[key] = body = work()
            return body


class Server:
    """A running server; use it as a context."""

    def __init__(
        self,
        distribution: Distribution | None = None,
        *,
        k_max: int = 20,
        model: str = "test-model",
        troubles: Mapping[int, Trouble] | None = None,
        reply: Callable[[Sequence[Mapping[str, str]]], str] | None = None,
        jitter: float = 0.0,
        collide: bool = False,
        api_key: str | None = None,
        retry_after: float = 0.0,
        port: int = 0,
        books: Books | None = None,
        count: Callable[[str], int] | None = None,
        chat_form: bool = False,
        spell: Callable[[str], str] = str,
        names: str | None = None,
        draws: Literal["raw", "processed", "ignored", "cut"] = "raw",
    ):
        """
        Args:
            distribution: what is answered; None for a server that only writes text.
            k_max: log-probabilities granted at most.
            model: its name; another is answered with 404.
            troubles: by number of the request.
            reply: what a chat request is answered with, as text.
            jitter: standard deviation of noise on each log-probability (nats), another at every request.
            collide: completions drop the second token of equal text, as servers do that answer with an object;
                otherwise both keys are written.
            api_key: required, if given.
            retry_after: seconds, said with 429.
            port: to listen on; 0 takes a free one.
            books: of the provider; None opens new ones, which honour idempotency keys.
            count: tokens of a prompt, said with every answer; None says nothing.
            chat_form: completions are answered in the chat form, too, as llama.cpp does.
            spell: how tokens are spelled in answers.
            names: the model that it says has answered; None says `model`.
            draws: what `logit_bias` with `n` does: draws, with log-probabilities without the bias or with it; nothing;
                or draws by rules of its own (the two likeliest alone). A token's number is its place in the distribution.
        """
        self.k_max, self.model, self.jitter, self.collide = k_max, model, jitter, collide
        self.distribution, self.reply, self.api_key = distribution, reply, api_key
        self.retry_after = retry_after
        self.count, self.chat_form, self.spell, self.names = count, chat_form, spell, names or model
        self.draws = draws
        self.troubles: dict[int, Trouble] = dict(troubles or {})
        self.received = 0
        self.books = books or Books()
        self.bodies: list[dict[str, Any]] = []
        self.closing = threading.Event()
        self._hanging = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def hangs(self) -> None:
        """A request hangs from now on."""
        self._hanging.release()

    def wait_hanging(self, n: int, *, timeout: float) -> bool:
        """Wait until n requests hang: then a client of n threads has kept every answer that it was given."""
        return all(self._hanging.acquire(timeout=timeout) for _ in range(n))

    def take(self, body: dict[str, Any]) -> tuple[int, Trouble | None]:
        """The number of a request, and its trouble."""
        with self._lock:
            number = self.received
            self.received += 1
            self.bodies.append(body)
        return number, self.troubles.get(number)

    def answer(self, body: dict[str, Any], *, number: int, chat: bool, silent: bool) -> str:
        """The body of a response."""
        prompt = "\n".join(m["content"] for m in body["messages"]) if chat else body["prompt"]
        if "logit_bias" in body and self.distribution is not None:
            return self._drawn(body, prompt, chat=chat, number=number)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        logprobs = "null"
        text = self.reply(body["messages"]) if chat and self.reply else ""
        asked = body.get("top_logprobs") if chat else body.get("logprobs")
        if asked and self.distribution is not None and not silent:
            entries = self._entries(prompt, k=min(int(asked), self.k_max), number=number)
            text = entries[0][0]
            in_chat = chat or self.chat_form
            logprobs = _chat_logprobs(entries) if in_chat else self._completion_logprobs(entries)
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        usage = {"prompt_tokens": self.count(prompt), "completion_tokens": 1} if self.count else None
        rest = json.dumps(choice)[:-1]
        return f'{{"model": {json.dumps(self.names)}, "choices": [{rest}, "logprobs": {logprobs}}}], "usage": {json.dumps(usage)}}}'

    def _drawn(self, body: dict[str, Any], prompt: str, *, chat: bool, number: int) -> str:
        """`n` tokens of the biased distribution."""
        assert self.distribution is not None
        with self._lock:
            texts, raw = self.distribution(prompt)
        bias = np.zeros(len(texts))
        bias[[int(i) for i in body["logit_bias"]]] = list(body["logit_bias"].values())
        biased = raw + (0 if self.draws == "ignored" else bias)
        biased = biased - np.logaddexp.reduce(biased)
        chances = np.exp(biased)
        if self.draws == "cut":
            chances[np.argsort(-chances)[2:]] = 0
        drawn = rng_for(0, "draws", number).choice(len(texts), int(body["n"]), p=chances / chances.sum())
        said = biased if self.draws == "processed" else raw
        choices, best = [], int(said.argmax())
        top = (self.spell(str(texts[best])), float(said[best]))
        for i in drawn.tolist():
            text, value = self.spell(str(texts[i])), float(said[i])
            if chat or self.chat_form:
                logprobs = json.loads(_chat_logprobs([top]))
                logprobs["content"][0] |= {"token": text, "logprob": value}
            else:
                logprobs = {
                    "tokens": [text],
                    "token_logprobs": [value],
                    "top_logprobs": [dict([top, (text, value)])],
                }
            message = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            choices.append({"index": len(choices), "logprobs": logprobs, **message})
        return json.dumps({"model": self.names, "choices": choices})

    def _entries(self, prompt: str, *, k: int, number: int) -> list[tuple[str, float]]:
        assert self.distribution is not None
        with self._lock:
            texts, logprobs = self.distribution(prompt)
        if self.jitter:
            noise = rng_for(0, "jitter", number).normal(0, self.jitter, len(texts))
            logprobs = logprobs + noise
            logprobs = logprobs - np.logaddexp.reduce(logprobs)
        best = np.argsort(-logprobs, kind="stable")[:k]
        return [(self.spell(str(texts[i])), float(logprobs[i])) for i in best.tolist()]

    def _completion_logprobs(self, entries: list[tuple[str, float]]) -> str:
        """By hand, because an object with repeated keys is what some servers write."""
        shown = list(dict(reversed(entries)).items()) if self.collide else entries
        pairs = ", ".join(f"{json.dumps(text)}: {value!r}" for text, value in shown)
        first = {"tokens": [entries[0][0]], "token_logprobs": [entries[0][1]], "text_offset": [0]}
        return f'{json.dumps(first)[:-1]}, "top_logprobs": [{{{pairs}}}]}}'


def _chat_logprobs(entries: list[tuple[str, float]]) -> str:
    top = [{"token": t, "logprob": v, "bytes": list(t.encode())} for t, v in entries]
    return json.dumps({"content": [{**top[0], "top_logprobs": top}]})


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            number, trouble = server.take(body)
            chat = self.path.endswith("/chat/completions")
            if server.api_key and self.headers.get("authorization") != f"Bearer {server.api_key}":
                return self._send(401, '{"error": "no such key"}')
            if body.get("model") != server.model or not self.path.startswith("/v1/"):
                return self._send(404, '{"error": "no such model"}')
            match trouble:
                case "busy":
                    return self._send(429, '{"error": "slow down"}', retry_after=server.retry_after)
                case "broken":
                    return self._send(500, '{"error": "oops"}')
                case "hang":
                    server.hangs()
                    server.closing.wait()
                    return None
            text = server.books.settle(
                self.headers.get("idempotency-key", ""),
                lambda: server.answer(body, number=number, chat=chat, silent=trouble == "silent"),
            )
            if trouble == "lost":
                server.hangs()
                server.closing.wait()
                return None
            if trouble == "half":
                return self._send(200, text[: len(text) // 2])
            if trouble == "cut":
                return self._send(200, text[: len(text) // 2], length=len(text.encode()))
            return self._send(200, text)

        def _send(
            self, status: int, text: str, *, length: int | None = None, retry_after: float | None = None
        ) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data) if length is None else length))
            if retry_after is not None:
                self.send_header("retry-after", str(retry_after))
            self.end_headers()
            self.wfile.write(data)

    return Handler
