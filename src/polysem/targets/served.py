"""A target behind an address: any OpenAI-compatible server (vLLM, llama.cpp, hosted), completions or chat.

One request asks for one token and its log-probabilities. Every response is kept on disk before it is read, so
what was answered is never asked again. A request leaves a mark before it is sent, and carries its content's hash as
`Idempotency-Key`: a response that a kill has lost is sent again under the same key, which a server that honours the
header answers from its books, without a second charge. Requests run in threads; a rate and a budget hold for all of them.

The key comes from the environment, and only from variables that name polysem or the server: POLYSEM_API_KEY for
any address, OPENAI_API_KEY only for OpenAI's own or for the address in OPENAI_BASE_URL; an address comes from a
study file, and a stranger's study file must not be able to send the key elsewhere.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from polysem.errors import ConfigError, FormatError, UnknownReferenceError
from polysem.http import Retries, send
from polysem.targets.base import Answer, Prompt
from polysem.targets.cache import ResponseCache
from polysem.targets.parse import parse_answer, with_losses
from polysem.targets.spend import Budget, Estimate, Rate

Api = Literal["completions", "chat"]
Messages = Sequence[Mapping[str, str]]
"""of a chat: role and content of each"""
OPENAI = "https://api.openai.com/v1"
BYTES_PER_TOKEN = 3
"""for estimates where the tokenizer is unknown; English has more, so costs are overstated"""


@dataclass(frozen=True)
class Serving:
    """How a server is asked."""

    url: str
    model: str
    api: Api = "completions"
    k: int = 20
    """log-probabilities to ask for"""
    vocabulary: int | None = None
    """tokens of the model's vocabulary, where known: then an answer with all of them is complete"""
    concurrency: int = 4
    per_minute: float | None = None
    timeout: float = 60.0
    """seconds"""
    extra: tuple[tuple[str, Any], ...] = ()
    """further fields of the request's body"""

    @property
    def endpoint(self) -> str:
        """The address of the call."""
        base = self.url.rstrip("/")
        path = "/chat/completions" if self.api == "chat" else "/completions"
        if base.endswith(path):
            return base
        return f"{base}{path}" if httpx.URL(base).path.strip("/") else f"{base}/v1{path}"


class ServedTarget:
    """Next-token distributions of a server, as far as it grants them."""

    def __init__(
        self,
        serving: Serving,
        *,
        cache: ResponseCache,
        budget: Budget,
        api_key: str | None = None,
        client: httpx.Client | None = None,
        retries: Retries | None = None,
        counter: Callable[[str], int] | None = None,
    ):
        self.serving = serving
        self.cache = cache
        self.budget = budget
        self.granted: int | None = None
        """log-probabilities that the server really gives; measured by `probe`"""
        self._api_key = api_key
        self._client = client
        self._retries = retries or Retries()
        self._rate = Rate(serving.per_minute)
        self._counter = counter

    @property
    def name(self) -> str:
        return f"{self.serving.api}:{self.serving.model}@{self.serving.endpoint}"

    @property
    def fingerprint(self) -> str:
        """Address, model and parameters: what a server computes has no hash that a client could know."""
        return f"{self.name} k={self.serving.k} extra={sorted(self.serving.extra)}"

    @property
    def word_start(self) -> bool:
        return self.serving.api == "completions"

    def count_tokens(self, text: str) -> int | None:
        return self._counter(text) if self._counter else None

    def probe(self, prompts: Sequence[Prompt]) -> int:
        """Ask a few prompts and set `granted` to the most log-probabilities that any answer has.

        Raises:
            PolysemError: no answer, no key, no such model, or no log-probabilities.
        """
        self.granted = max(answer.n for answer in self._asked(prompts))
        return self.granted

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """The answers, in the order of the prompts; each distinct request is sent at most once, ever.

        Raises:
            UnknownReferenceError: no connection, no right to use the model, no such model, no log-probabilities.
            FormatError: an answer that is not what the interface promises.
            StoreError: the budget is used up, or a kept response is damaged.
        """
        if self.granted is None:
            raise ConfigError("a served target must be probed before it is used", hint="call probe() first")
        granted, size = self.granted, self.serving.vocabulary
        return [with_losses(a, granted=granted, vocabulary=size) for a in self._asked(prompts)]

    def estimate(self, prompts: Sequence[Prompt]) -> Estimate:
        """What asking these prompts would send and cost."""
        return self._estimate(list(map(self._request, prompts)), 1)

    def _estimate(self, asked: list[dict[str, Any]], max_tokens: int) -> Estimate:
        requests = {ResponseCache.key(r): r for r in asked}
        new = [r for key, r in requests.items() if not self.cache.has(key)]
        unsettled = len(requests.keys() & set(self.cache.open_marks()))
        tokens = float(sum(map(_input_tokens, new)))
        price = self.budget.price
        cost = price.of(requests=len(new), input_tokens=tokens, output_tokens=float(max_tokens * len(new)))
        return Estimate(len(requests), len(requests) - len(new), tokens, cost, price.unit, unsettled)

    def chat(self, messages: Messages, *, max_tokens: int, repeat: int = 0) -> str:
        """The text that a chat server writes, kept like every response.

        Raises:
            FormatError: an answer that is no chat response.
            PolysemError: as `answers`.
        """
        with self._connection() as client:
            text = self._body(client, self._chat_request(messages, max_tokens, repeat))
        return read_chat(text, where=self.name)

    def chat_ahead(self, all_messages: Sequence[Messages], *, max_tokens: int) -> None:
        """Ask many questions side by side and keep what comes, so that `chat` finds it. Errors as `chat`."""
        requests = [self._chat_request(messages, max_tokens, 0) for messages in all_messages]
        distinct = {ResponseCache.key(r): r for r in requests}
        missing = [r for key, r in distinct.items() if not self.cache.has(key)]
        if missing:
            self._send_all(missing)

    def estimate_chats(self, all_messages: Sequence[Messages], *, max_tokens: int) -> Estimate:
        """What asking these questions once would send and cost; replies are taken to be as long as they may be."""
        return self._estimate(
            [self._chat_request(messages, max_tokens, 0) for messages in all_messages], max_tokens
        )

    def _chat_request(self, messages: Messages, max_tokens: int, repeat: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.serving.model,
            "messages": [dict(m) for m in messages],
            "max_tokens": max_tokens,
        }
        body |= {"temperature": 0, **dict(self.serving.extra)}
        return {"url": self.serving.endpoint, "body": body, "repeat": repeat}

    def _check(self, request: Mapping[str, Any], body: str) -> None:
        """Raises FormatError for a body that is not what was asked for; such a body is never kept."""
        if "logprobs" in request["body"]:
            self._read(body)
        else:
            read_chat(body, where=self.name)

    def _asked(self, prompts: Sequence[Prompt]) -> list[Answer]:
        requests = [self._request(prompt) for prompt in prompts]
        keys = [ResponseCache.key(request) for request in requests]
        distinct = dict(zip(keys, requests, strict=True))
        missing = {key: request for key, request in distinct.items() if not self.cache.has(key)}
        if missing:
            self._send_all(list(missing.values()))
        found = {key: self._read(self.cache.find(key) or "") for key in distinct}
        return [found[key] for key in keys]

    def _send_all(self, requests: list[dict[str, Any]]) -> None:
        """Send requests in threads. After a failure those in flight are still waited for and kept."""
        with self._connection() as client, ThreadPoolExecutor(self.serving.concurrency) as pool:
            waiting = [pool.submit(self._body, client, request) for request in requests]
            try:
                done, _ = wait(waiting, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            finally:  # an interrupt, too, must not send what is still waiting
                pool.shutdown(cancel_futures=True)

    def _body(self, client: httpx.Client, request: dict[str, Any]) -> str:
        """The body of a whole, successful response, kept before it is given."""
        key = ResponseCache.key(request)
        kept = self.cache.find(key)
        if kept is not None:
            return kept
        for attempt in range(self._retries.attempts):
            text = self._once(client, request, key)
            try:
                self._check(request, text)
            except FormatError:
                # A proxy that cuts a body and still ends it properly looks like this; anything else stays wrong.
                if attempt + 1 == self._retries.attempts:
                    raise
                self._retries.sleep(self._retries.first * 2**attempt)
                continue
            self.cache.add(key, request, text)
            self.cache.unmark(key)
            return text
        raise ConfigError(f"retries.attempts is {self._retries.attempts}; expected at least 1")

    def _once(self, client: httpx.Client, request: dict[str, Any], key: str) -> str:
        self.cache.mark(key)
        response = send(
            client,
            "POST",
            request["url"],
            retries=self._retries,
            before=lambda: self._before(request),
            json=request["body"],
            # A server that knows the header answers a repeated request without charging again.
            headers={"Idempotency-Key": key, **self._authorization()},
        )
        if not response.is_success:
            self.cache.unmark(key)  # refused, so not charged
            raise UnknownReferenceError(
                f"{request['url']}: HTTP {response.status_code} for model {self.serving.model!r}: {response.text[:300]}",
                hint=_ADVICE.get(response.status_code, "check the model's name and the address"),
            )
        return response.text

    def _before(self, request: dict[str, Any]) -> None:
        self._rate.wait()
        self.budget.charge(_input_tokens(request))

    def _read(self, body: str) -> Answer:
        return parse_answer(body, api=self.serving.api, k=self.serving.k, where=self.name)

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        s = self.serving
        body: dict[str, Any] = {"model": s.model, "max_tokens": 1, "temperature": 0, **dict(s.extra)}
        if s.api == "chat":
            system = [{"role": "system", "content": prompt.system}] if prompt.system is not None else []
            body["messages"] = [*system, {"role": "user", "content": prompt.text}]
            body |= {"logprobs": True, "top_logprobs": s.k}
        elif prompt.system is not None:
            raise ConfigError(
                f"{self.name} takes no system message",
                hint="use position = 'prefix' or 'suffix', or kind = 'chat'",
            )
        else:
            body |= {"prompt": prompt.text, "logprobs": s.k}
        return {"url": s.endpoint, "body": body, "repeat": prompt.repeat}

    def _connection(self) -> "_Connection":
        return _Connection(self._client, self.serving.timeout)

    def _authorization(self) -> dict[str, str]:
        key = self._api_key or key_from(os.environ, self.serving.endpoint)
        return {"Authorization": f"Bearer {key}"} if key else {}


class _Connection:
    """A given client, which stays open, or one of our own, which does not."""

    def __init__(self, given: httpx.Client | None, timeout: float):
        self._given = given
        self._client = given or httpx.Client(timeout=timeout)

    def __enter__(self) -> httpx.Client:
        return self._client

    def __exit__(self, *exception: object) -> None:
        if self._given is None:
            self._client.close()


_ADVICE = {
    400: "check the model's name, and that the server grants as many log-probabilities as target.k",
    401: "set POLYSEM_API_KEY (OPENAI_API_KEY is sent to OpenAI's own address only)",
    403: "set POLYSEM_API_KEY (OPENAI_API_KEY is sent to OpenAI's own address only)",
    404: "check the model's name and the address, e.g. http://localhost:8000/v1; GET /v1/models lists the names",
}


def key_from(environment: Mapping[str, str], url: str) -> str | None:
    """The key that may be sent to `url`; None if there is none."""
    own = {httpx.URL(base).host for base in (OPENAI, environment.get("OPENAI_BASE_URL", "")) if base}
    general = environment.get("POLYSEM_API_KEY")
    return general or (environment.get("OPENAI_API_KEY") if httpx.URL(url).host in own else None) or None


def read_chat(body: str, *, where: str) -> str:
    """The text of a chat response. Raises FormatError if it is none."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
        if not isinstance(content, str):
            raise TypeError(f"content is {type(content).__name__}")
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise FormatError(f"{where}: the answer is no chat response ({error!r}): {body[:200]!r}") from error
    return content


def _input_tokens(request: Mapping[str, Any]) -> float:
    body = request["body"]
    texts = [body["prompt"]] if "prompt" in body else [m["content"] for m in body["messages"]]
    return float(sum(len(text.encode()) for text in texts)) / BYTES_PER_TOKEN
