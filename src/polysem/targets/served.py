"""A target behind an address: any OpenAI-compatible server (vLLM, llama.cpp, hosted), completions or chat.

One request asks for one token and its log-probabilities. Every response is kept on disk before it is read, so
what was answered is never asked again. A request leaves a mark before it is sent, and carries its content's hash as
`Idempotency-Key`: a response that a kill has lost is sent again under the same key, which a server that honours the
header answers from its books, without a second charge. Requests run in threads; a rate and a budget hold for all of them.

The key comes from the user's environment and is bound to a server that the user named (`polysem.keys`).
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import httpx

from polysem.errors import ConfigError, FormatError
from polysem.http import RequestError, Retries, ask_json
from polysem.keys import Key, Keyring, endpoint, origin
from polysem.targets.base import Answer, TargetPrompt
from polysem.targets.cache import ResponseCache
from polysem.targets.parse import parse_answer, parse_samples, told, with_losses
from polysem.targets.probe import Probed, probe_answers
from polysem.targets.samples import BIAS, Samples
from polysem.targets.spelling import reader_of_tokens
from polysem.targets.spend import Budget, Quote, Rate
from polysem.targets.tokenizer import KnownTokenizer
from polysem.vocabulary_transfer import TARGET_KINDS, TargetKind

Messages = Sequence[Mapping[str, str]]
"""of a chat: role and content of each"""
BYTES_PER_TOKEN = 3
"""for estimates where the tokenizer is unknown; English has more, so costs are overstated"""
FIRST = 8
"""prompts that are asked and judged before all others"""


@dataclass(frozen=True)
class Serving:
    """How a server is asked."""

    url: str
    model: str
    api: str = "completions"
    """of TARGET_KINDS, a served one"""
    k: int = 20
    """log-probabilities to ask for"""
    samples: int = 0
    """tokens to draw from a category behind each prompt, in a second request; 0: none"""
    vocabulary: int | None = None
    """tokens of the model's vocabulary, where known: then an answer with all of them is complete"""
    concurrency: int = 4
    per_minute: float | None = None
    timeout: float = 60.0
    """seconds that one attempt may take in all"""
    known_as: str | None = None
    """the name that the server gives the model in its answers, where that is another"""
    extra: tuple[tuple[str, Any], ...] = ()
    """further fields of the request's body"""
    bos: bool | None = None
    """whether the server puts BOS in front of a prompt; None: as the tokenizer does by itself"""

    @property
    def kind(self) -> TargetKind:
        return TARGET_KINDS[self.api]

    @property
    def endpoint(self) -> str:
        """The address of the call."""
        return endpoint(self.url, self.kind.path)


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
        tokenizer: KnownTokenizer | None = None,
    ):
        self.serving = serving
        self.cache = cache
        self.budget = budget
        self.tokenizer = tokenizer
        self.probed: Probed | None = None
        """what the server does; measured by `probe`"""
        self._api_key = api_key
        self._client = client
        self._retries = retries or Retries()
        self._rate = Rate(serving.per_minute)
        self._text: Callable[[str], str] = str

    @property
    def name(self) -> str:
        return f"{self.serving.api}:{self.serving.model}@{self.serving.endpoint}"

    @property
    def fingerprint(self) -> str:
        """Address, model and parameters: what a server computes has no hash that a client could know."""
        drawn = f" samples={self.serving.samples}" if self.serving.samples else ""
        return f"{self.name} k={self.serving.k}{drawn} extra={sorted(self.serving.extra)}"

    @property
    def kind(self) -> TargetKind:
        return self.serving.kind

    @property
    def granted(self) -> int | None:
        """Log-probabilities that the server really gives; None before `probe`."""
        return self.probed.granted if self.probed else None

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        """The text of every token, by id, where the tokenizer is known."""
        return self.tokenizer.vocabulary if self.tokenizer else None

    def count_tokens(self, text: str) -> int | None:
        return self.tokenizer.count(text) if self.tokenizer else None

    def probe(self, prompts: Sequence[TargetPrompt]) -> int:
        """Ask a few prompts, judge what the server does, ask the rest; gives the most log-probabilities that any answer
        has.

        Raises:
            PolysemError: no answer, no key, no such model, no log-probabilities, or a convention (spelling, BOS, thoughts)
                that does not fit.
        """
        first = self._probe(prompts[:FIRST])
        self._text = reader_of_tokens(
            first.spelling, by_id=self.tokenizer.text if self.tokenizer else None, who=self.name
        )
        self.probed = replace(first, granted=max(a.n for a in self._asked(prompts)))
        return self.probed.granted

    def _probe(self, prompts: Sequence[TargetPrompt]) -> Probed:
        self._text = str
        answers = self._asked(prompts)
        bodies = [self.cache.find(ResponseCache.key(self._request(p))) or "" for p in prompts]
        return probe_answers(
            prompts,
            answers,
            [told(body, api=self.serving.api, where=self.name) for body in bodies],
            who=self.name,
            asked=self.serving.k,
            chat=self.kind.chat,
            tokenizer=self.tokenizer,
            declared=self.serving.bos,
        )

    def answers(self, prompts: Sequence[TargetPrompt]) -> list[Answer]:
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

    def samples(self, prompts: Sequence[TargetPrompt], ids: Sequence[int]) -> list[Samples]:
        """Tokens drawn from those of `ids` alone, behind every prompt. Errors as `answers`."""
        s, keys = self.serving, self._ensure([self._sample_request(prompt, ids) for prompt in prompts])
        found = [
            parse_samples(self.cache.find(key) or "", api=s.api, n=s.samples, where=self.name) for key in keys
        ]
        return [
            replace(s, tokens=tuple(map(self._text, s.tokens)), first=(self._text(s.first[0]), s.first[1]))
            for s in found
        ]

    def estimate(
        self,
        prompts: Sequence[TargetPrompt],
        sampled: Sequence[tuple[TargetPrompt, Sequence[int]]] = (),
        *,
        anew: bool = False,
    ) -> Quote:
        """What asking these prompts would send and cost, with samples of token ids behind some; `anew`: as if nothing were
        kept."""
        second = [self._sample_request(prompt, ids) for prompt, ids in sampled]
        return self._estimate([*map(self._request, prompts), *second], 1, anew=anew)

    def _estimate(self, asked: list[dict[str, Any]], max_tokens: int, *, anew: bool = False) -> Quote:
        requests = {ResponseCache.key(r): r for r in asked}
        new = [r for key, r in requests.items() if anew or not self.cache.has(key)]
        unsettled = len(requests.keys() & set(self.cache.open_marks()))
        tokens = float(sum(map(_input_tokens, new)))
        price = self.budget.price
        written = float(max_tokens * sum(_choices(r) for r in new))
        cost = price.of(requests=len(new), input_tokens=tokens, output_tokens=written)
        return Quote(len(requests), len(requests) - len(new), tokens, cost, price.unit, unsettled)

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
        self._ensure([self._chat_request(messages, max_tokens, 0) for messages in all_messages])

    def estimate_chats(
        self, all_messages: Sequence[Messages], *, max_tokens: int, attempts: int = 1
    ) -> Quote:
        """What asking these questions would send and cost at most: replies as long as they may be, and every question whose
        first reply is not there yet asked `attempts` times."""
        asked = [self._chat_request(messages, max_tokens, 0) for messages in all_messages]
        for request in list(asked):
            if not self.cache.has(ResponseCache.key(request)):
                asked += [request | {"repeat": n} for n in range(1, attempts)]
        return self._estimate(asked, max_tokens)

    def _chat_request(self, messages: Messages, max_tokens: int, repeat: int) -> dict[str, Any]:
        fixed = {"model": self.serving.model, "max_tokens": max_tokens, "temperature": 0}
        body = {**fixed, "messages": [dict(m) for m in messages], **dict(self.serving.extra)}
        return {"url": self.serving.endpoint, "body": body, "repeat": repeat}

    def _check(self, request: Mapping[str, Any], body: str) -> None:
        """Raises FormatError for a body that is not what was asked for; such a body is never kept."""
        if "logit_bias" in request["body"]:
            parse_samples(body, api=self.serving.api, n=self.serving.samples, where=self.name)
        elif "logprobs" in request["body"]:
            self._read(body)
        else:
            read_chat(body, where=self.name)

    def _asked(self, prompts: Sequence[TargetPrompt]) -> list[Answer]:
        keys = self._ensure([self._request(prompt) for prompt in prompts])
        found = {key: self._kept(key) for key in dict.fromkeys(keys)}
        return [found[key] for key in keys]

    def _kept(self, key: str) -> Answer:
        """The answer in a kept response, its tokens as texts."""
        answer = self._read(self.cache.find(key) or "")
        if self._text is str:
            return answer
        return replace(answer, tokens=tuple(map(self._text, answer.tokens)))

    def _ensure(self, requests: Sequence[dict[str, Any]]) -> list[str]:
        """Keys of the requests, whose responses are all kept then: each distinct one that was not is sent, in threads.
        After a failure those in flight are still waited for and kept."""
        keys = [ResponseCache.key(request) for request in requests]
        missing = [r for key, r in dict(zip(keys, requests, strict=True)).items() if not self.cache.has(key)]
        if not missing:
            return keys
        with self._connection() as client, ThreadPoolExecutor(self.serving.concurrency) as pool:
            waiting = [pool.submit(self._body, client, request) for request in missing]
            try:
                done, _ = wait(waiting, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            finally:  # an interrupt, too, must not send what is still waiting
                pool.shutdown(cancel_futures=True)
        return keys

    def _body(self, client: httpx.Client, request: dict[str, Any]) -> str:
        """The body of a whole, successful response, kept before it is given."""
        key = ResponseCache.key(request)
        kept = self.cache.find(key)
        if kept is not None:
            return kept
        text = self._once(client, request, key)
        self._check(request, text)
        self.cache.add(key, request, text)
        self.cache.unmark(key)
        return text

    def _once(self, client: httpx.Client, request: dict[str, Any], key: str) -> str:
        self.cache.mark(key)
        s = self.serving
        try:
            return ask_json(
                client, request["url"], request["body"], retries=self._retries, deadline=s.timeout, known_as=s.known_as,
                key=self.key, before=lambda: self._before(request),
                # A server that knows the header answers a repeated request without charging again.
                headers={"Idempotency-Key": key},
            )  # fmt: skip
        except RequestError as error:
            if error.status is not None and error.status < 500:
                self.cache.unmark(key)  # refused, so not charged
            if error.too_large:
                text = _asked_text(request)
                raise RequestError(
                    f"{error.args[0]}; what is too large begins with {text[:60]!r} and has {len(text)} characters",
                    hint="let the server take longer inputs (--max-model-len, -c), or send less: pools.n_tokens of a transfer "
                    "study, shorter glosses or contexts of a panel",
                    status=error.status,
                    too_large=True,
                ) from None
            raise

    def _before(self, request: dict[str, Any]) -> None:
        self._rate.wait()
        self.budget.charge(_input_tokens(request), output_tokens=float(_choices(request)))

    def _read(self, body: str) -> Answer:
        return parse_answer(body, api=self.serving.api, k=self.serving.k, where=self.name)

    def _request(self, prompt: TargetPrompt) -> dict[str, Any]:
        s = self.serving
        body: dict[str, Any] = {"model": s.model, "max_tokens": 1, "temperature": 0, **dict(s.extra)}
        if s.kind.chat:
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

    def _sample_request(self, prompt: TargetPrompt, ids: Sequence[int]) -> dict[str, Any]:
        request = self._request(prompt)
        fewest = {"top_logprobs": 1} if self.serving.kind.chat else {"logprobs": 1}
        bias = {str(number): BIAS for number in ids}
        drawn = {"n": self.serving.samples, "temperature": 1, "top_p": 1, "logit_bias": bias, **fewest}
        return request | {"body": request["body"] | drawn}

    def _connection(self) -> AbstractContextManager[httpx.Client]:
        """The given client, which stays open, or one of our own, which does not."""
        return nullcontext(self._client) if self._client else httpx.Client(timeout=self.serving.timeout)

    @property
    def key(self) -> Key | None:
        """What may be sent to the server: the given key, or the user's for it."""
        if self._api_key is not None:
            return Key(self._api_key, origin(self.serving.url), "api_key")
        return Keyring.of(os.environ).key(self.serving.url)

    @property
    def question(self) -> str:
        """What the user is asked before a server gets no key although the user has some; mostly empty."""
        return "" if self._api_key is not None else Keyring.of(os.environ).question(self.serving.url)


def read_chat(body: str, *, where: str) -> str:
    """The text of a chat response. Raises FormatError if it is none."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
        if not isinstance(content, str):
            raise TypeError(f"content is {type(content).__name__}")
        content.encode()  # half a surrogate pair can stand in JSON, and in no file
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise FormatError(f"{where}: the answer is no chat response ({error!r}): {body[:200]!r}") from error
    return content


def _asked_text(request: Mapping[str, Any]) -> str:
    body = request["body"]
    return body["prompt"] if "prompt" in body else "\n".join(m["content"] for m in body["messages"])


def _choices(request: Mapping[str, Any]) -> int:
    """Answers that one request asks for."""
    return int(request["body"].get("n", 1))


def _input_tokens(request: Mapping[str, Any]) -> float:
    return len(_asked_text(request).encode()) / BYTES_PER_TOKEN
