"""One client for every server: targets, judges, explainers, embeddings, exports.

What passes (a busy or briefly absent server, a body that was cut) is tried again; what stays (no credit, a sign-in page, a
wrong address, an input that is too large) is said at once, in words that fit. An attempt has a deadline for all of it, and an
answer has a ceiling, compressed or not. A key goes to the server that it is bound to, follows no redirect, and is masked
in whatever a library or a server says.
"""

import json
import os
import queue
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar

import httpx

from polysem.errors import FormatError, UnknownReferenceError
from polysem.keys import Key, advice, hidden, origin

T = TypeVar("T")
_BUSY = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}
_TOO_LARGE_STATUS = {400, 413, 422, 500}
"""of these, those whose text says so; 413 always"""
_TOO_LARGE = re.compile(
    r"(?<!took )too (large|long|many (tokens|inputs))|context[ _-]?(length|size|window)|maximum (context|input|sequence|batch)|"
    r"physical batch|max[_ ]tokens_per_request|batch size \d+ > |must have less than|max(imum)? \w* ?(length|size) (is|of)|"
    r"exceed\w* .*(token|context|length|limit|size)",
    re.IGNORECASE | re.DOTALL,
)
_SPENT = re.compile(
    r"insufficient[_ ](quota|balance|credit|fund)|billing_(hard_limit|not_active)|check your plan and billing|credit balance|"
    r"out of credit|payment required|account\W.{0,40}(deactivated|suspended|disabled)",
    re.IGNORECASE | re.DOTALL,
)
_SOON = re.compile(r"rate[_ ]limit|per[_ ]min|(retry|try again) in", re.IGNORECASE)
"""a server that speaks of money and means a rate"""
_PASSES = re.compile(
    r"rate.?limit|too many requests|overload|at capacity|temporar|try again|retry|unavailable|loading|busy|timed? ?out",
    re.IGNORECASE,
)
CEILING = 128 << 20
"""bytes of an answer: log-probabilities of a vocabulary of 256,000 tokens take about 40 MiB"""
_SNAPSHOT = re.compile(r"[-:@](v?\d[\d.-]*|latest)")
"""what servers append to the name of a model: a date, a version"""


@dataclass(frozen=True)
class Retries:
    """How often and how long to wait: doubling from `first` seconds, or as a server's Retry-After says."""

    attempts: int = 5
    first: float = 0.5
    longest: float = 120.0
    """a server that asks for more is taken at its word: the request fails at once and says so"""
    sleep: Callable[[float], None] = time.sleep


class RequestError(UnknownReferenceError):
    """A request that has no answer.

    Args:
        message: what happened.
        hint: what to do.
        status: of HTTP; None where nothing came.
        too_large: whether the server says that the input is too large.
    """

    def __init__(self, message: str, *, hint: str, status: int | None = None, too_large: bool = False):
        super().__init__(message, hint=hint)
        self.status, self.too_large = status, too_large


@dataclass(frozen=True)
class Reply:
    """An answer as it came, decompressed; of a refusal, with the key masked."""

    url: str
    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        """The body as text: JSON says its encoding by its first bytes, whatever the headers say."""
        return self.body.decode(json.detect_encoding(self.body), errors="replace")

    @property
    def is_html(self) -> bool:
        start = self.body[:200].lstrip().lower()
        return start.startswith((b"<!doctype html", b"<html"))

    @property
    def said(self) -> str:
        """What the server says, short."""
        if self.is_html:
            title = re.search(r"<title[^>]*>(.*?)</title", self.text, re.IGNORECASE | re.DOTALL)
            return f"a web page{f' titled {title[1].strip()[:80]!r}' if title else ''}"
        return hidden(self.text)[:300].strip() or "nothing"


class _Again(Exception):
    """What happened may pass.

    Args:
        problem: what happened.
        hint: what to do if it goes on.
        wait: seconds that the server asks for.
        status: of HTTP; None where nothing came.
        stays: whether it will not pass after all.
    """

    def __init__(
        self,
        problem: str,
        hint: str = "check the network and the address, then run the same command again",
        *,
        wait: float | None = None,
        status: int | None = None,
        stays: bool = False,
    ):
        super().__init__(problem)
        self.problem, self.hint, self.wait, self.status, self.stays = problem, hint, wait, status, stays


def send(
    client: httpx.Client,
    method: str,
    url: str,
    *,
    retries: Retries,
    deadline: float = 60.0,
    ceiling: int = CEILING,
    key: Key | None = None,
    before: Callable[[], None] | None = None,
    check: Callable[[Reply], None] | None = None,
    **request: Any,
) -> Reply:
    """The reply to one request: any but those that mean "try again", which are tried again.

    Args:
        client: sends.
        method: of HTTP.
        url: the address.
        retries: how often, how long.
        deadline: seconds that one attempt may take in all.
        ceiling: bytes of a reply, decompressed.
        key: sent along, if the address is that of the server which it is for.
        before: called before every attempt: where a rate limit waits and a budget is charged.
        check: of a reply that claims success; what it raises is raised, or tried again.
        **request: as for `httpx.Client.stream`.

    Raises:
        RequestError: no connection, no usable address, or the server is still busy after the last attempt.
    """
    key = key if key and key.origin == origin(url) else None
    headers = {"accept-encoding": "gzip", **request.pop("headers", {}), **(key.headers if key else {})}
    exchange = partial(
        _exchange, client, method, url, ceiling, {"timeout": deadline, **request, "headers": headers}
    )
    trouble, attempt = _Again(f"retries.attempts is {retries.attempts}; expected at least 1"), 0
    for attempt in range(retries.attempts):
        if before is not None:
            before()
        try:
            return _attempt(exchange, url, deadline=deadline, key=key, longest=retries.longest, check=check)
        except _Again as again:
            trouble = again
        if trouble.stays or attempt + 1 == retries.attempts:
            break
        retries.sleep(retries.first * 2**attempt if trouble.wait is None else trouble.wait)
    times = "1 attempt" if attempt == 0 else f"{attempt + 1} attempts"
    raise RequestError(
        f"no answer from {hidden(url)} after {times}; last: {trouble.problem}",
        hint=trouble.hint,
        status=trouble.status,
    )


def ask_json(
    client: httpx.Client,
    url: str,
    body: Mapping[str, Any],
    *,
    retries: Retries,
    deadline: float,
    known_as: str | None = None,
    key: Key | None = None,
    before: Callable[[], None] | None = None,
    headers: Mapping[str, str] | None = None,
) -> str:
    """The JSON object that an OpenAI-compatible server answers, as text.

    Args:
        client: sends.
        url: of the call.
        body: of the request, with the `model`.
        retries: how often, how long.
        deadline: seconds that one attempt may take in all.
        known_as: the name that the server gives the model in its answers; None: the one that is asked for.
        key: as for `send`.
        before: as for `send`.
        headers: as for `send`.

    Raises:
        RequestError: no answer, a refusal, or the answer of another model.
        FormatError: an answer that is no JSON, whole each time.
    """
    reply = send(
        client, "POST", url, retries=retries, deadline=deadline, key=key, before=before,
        check=partial(_check_json, model=str(body["model"]), known_as=known_as, key=key),
        json=body, headers=dict(headers or {}),
    )  # fmt: skip
    if not reply.is_success:
        raise _refusal(reply, reply.status, str(body["model"]), key)
    return reply.text


def _attempt(
    exchange: Callable[[threading.Event], Reply],
    url: str,
    *,
    deadline: float,
    key: Key | None,
    longest: float,
    check: Callable[[Reply], None] | None,
) -> Reply:
    """One attempt: a reply that is one, or what went wrong in our words, the key masked."""
    hide = key.masked if key else str
    try:
        reply = _unkeyed(_within(deadline, exchange), key)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, UnicodeError) as error:
        # `from None`: the library's own words hold the request, headers included
        raise RequestError(
            f"{hidden(url)} cannot be asked: {hide(hidden(str(error)))}", hint="check the address"
        ) from None
    except httpx.TooManyRedirects:
        raise RequestError(f"{hidden(url)} redirects in a circle", hint="check the address") from None
    except httpx.ReadTimeout:
        # the client's own clock may be the first to end
        raise _Again(_SLOW.format(deadline), _FASTER) from None
    except (httpx.TransportError, OSError) as error:
        told = hide(hidden(f"{type(error).__name__}: {error}"))
        tls = "SSL" in told or "CERTIFICATE" in told
        if tls:
            raise _Again(told, _TLS, stays=True) from None
        raise _Again(told) from None
    if check is not None and reply.is_success:
        check(reply)
    if reply.status not in _BUSY or is_too_large(reply.status, reply.text) or is_spent(reply.text):
        return reply
    asked = retry_after(reply)
    told = f"HTTP {reply.status}: {reply.said}"
    if asked is not None and asked > longest:
        told += f" (asks to wait {asked:.0f} s, longer than the {longest:.0f} s that are waited)"
    stays = asked is not None and asked > longest
    raise _Again(told, _WAIT, wait=asked, status=reply.status, stays=stays)


_TLS = "check that the address begins with https:// or http:// as the server does; SSL_CERT_FILE names certificates of your own"
_SLOW, _FASTER = "no whole answer within {:g} s", "raise timeout, or ask a faster server"
_WAIT = (
    "the server is busy or broken: wait, or lower concurrency and per_minute; then run the same command again"
)


def _within(seconds: float, work: Callable[[threading.Event], T]) -> T:
    """What `work` gives, in a thread of its own: a server that sends a byte now and then keeps no caller waiting for ever."""
    done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
    stop = threading.Event()

    def run() -> None:
        try:
            done.put((work(stop), None))
        except BaseException as error:  # noqa: BLE001  (raised below, in the caller's thread)
            done.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = done.get(timeout=seconds)
    except queue.Empty:
        stop.set()
        raise _Again(_SLOW.format(seconds), _FASTER) from None
    if error is not None:
        raise error
    return result  # pyright: ignore[reportReturnType]  (there is one where there is no error)


def _exchange(
    client: httpx.Client, method: str, url: str, ceiling: int, request: dict[str, Any], stop: threading.Event
) -> Reply:
    with client.stream(method, url, **request) as response:
        # a client of a test may have read it all already
        chunks = [response.content] if response.is_stream_consumed else response.iter_raw()
        encoding = "" if response.is_stream_consumed else response.headers.get("content-encoding", "")
        body = _plain(chunks, encoding.strip().lower(), url=url, ceiling=ceiling, stop=stop)
        return Reply(url, response.status_code, response.headers, body)


def _plain(chunks: Iterable[bytes], encoding: str, *, url: str, ceiling: int, stop: threading.Event) -> bytes:
    """The body, decompressed no further than to the ceiling."""
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise RequestError(
            f"{hidden(url)} answers in the encoding {encoding[:40]!r}; expected gzip or none, as was asked for",
            hint="check what stands between this machine and the server",
        )
    zipped = encoding.endswith("gzip")
    found, unzip, whole = bytearray(), zlib.decompressobj(zlib.MAX_WBITS | 16), True
    for chunk in chunks:
        if stop.is_set():
            break
        while chunk:
            if not zipped:
                found += chunk
                break
            try:
                found += unzip.decompress(chunk, ceiling + 1 - len(found))
            except zlib.error as error:
                raise _Again(f"a body that is no gzip: {error}") from None
            if len(found) > ceiling:
                break
            chunk, whole = unzip.unconsumed_tail or unzip.unused_data, unzip.eof
            if whole:
                unzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
        if len(found) > ceiling:
            raise RequestError(
                f"{hidden(url)}: the answer is longer than {ceiling} bytes; expected a shorter one",
                hint="check the address, or ask for fewer log-probabilities",
            )
    if not whole:
        raise _Again("a gzip body that ends too early")
    return bytes(found)


def _unkeyed(reply: Reply, key: Key | None) -> Reply:
    """The reply without the key: of a refusal masked, and an answer that repeats it is none, since answers are kept."""
    if key is None:
        return reply
    headers = httpx.Headers({name: key.masked(value) for name, value in reply.headers.items()})
    if not key.echoed(reply.text):
        return Reply(reply.url, reply.status, headers, reply.body)
    if reply.is_success:
        raise RequestError(
            f"{reply.url}: the answer repeats the key from {key.named}, so it is not kept",
            hint="find out why the server does that, and use another key from now on",
        )
    return Reply(reply.url, reply.status, headers, key.masked(reply.text).encode())


def is_too_large(status: int, text: str) -> bool:
    """Whether a server refuses an input for its size."""
    said = text[:2000]
    told = status in _TOO_LARGE_STATUS and "logprobs" not in said and _TOO_LARGE.search(said) is not None
    return status == 413 or told


def is_spent(text: str) -> bool:
    """Whether a server refuses for want of money."""
    return _SPENT.search(text[:2000]) is not None and _SOON.search(text[:2000]) is None


def _check_json(reply: Reply, *, model: str, known_as: str | None, key: Key | None) -> None:
    """Raises what an answer of status 200 says that is no answer."""
    start = reply.body[:200].decode(errors="replace").lstrip()
    if start.startswith("<") or "text/html" in reply.headers.get("content-type", ""):
        raise RequestError(
            f"{hidden(reply.url)} answers with {reply.said if reply.is_html else 'markup'}; expected JSON",
            hint="check the address, e.g. http://localhost:8000/v1, and whether a proxy wants you to sign in: open it in a browser",
            status=reply.status,
        )
    if start.startswith(("data:", "event:")) or "event-stream" in reply.headers.get("content-type", ""):
        raise RequestError(
            f"{hidden(reply.url)} answers with a stream of events; expected one JSON object",
            hint="switch streaming off in the server or in what stands before it",
            status=reply.status,
        )
    try:
        found = json.loads(reply.body)
    except RecursionError:
        raise FormatError(
            f"{hidden(reply.url)}: the answer is nested too deeply: {start!r}", hint=_OTHER
        ) from None
    except (
        ValueError
    ) as error:  # of UTF-8, too; a proxy that cuts a body and ends it properly looks like this
        raise _Again(f"the answer is no JSON ({error}): {start!r}", _OTHER) from None
    if not isinstance(found, dict):
        return
    wrong = found.get("error") or (found if found.get("object") == "error" else None)
    if wrong and not found.get("choices") and not found.get("data"):
        code = wrong.get("code") if isinstance(wrong, dict) else None
        status = code if isinstance(code, int) and 400 <= code < 600 else reply.status
        told = f"an error in an answer of status {reply.status}: {reply.said}"
        passes = status in _BUSY or (status == reply.status and _PASSES.search(reply.text[:2000]))
        if passes and not is_spent(reply.text) and not is_too_large(status, reply.text):
            raise _Again(told, _WAIT, status=status)
        raise _refusal(reply, status if status != reply.status else 400, model, key)
    said = found.get("model")
    if isinstance(said, str) and said and not same_model(said, known_as or model):
        raise RequestError(
            f"{hidden(reply.url)} was asked for the model {known_as or model!r} and answers as {said[:120]!r}; expected the model "
            "that was asked for",
            hint=f"serve that model, or set model to {said[:120]!r}; if both are one, set known_as to it (targets, judges)",
            status=reply.status,
        )


_OTHER = "check the address and the server: this is not what an OpenAI-compatible one answers"


def same_model(said: str, asked: str) -> bool:
    """Whether the name in an answer is that of the model that was asked for: equal, a dated snapshot of it, or the same
    without the folders or the organisation in front and the ending of a file."""
    a, b = (re.split(r"[/\\]", name.casefold().removesuffix(".gguf"))[-1] for name in (said, asked))
    return a == b or (a.startswith(b) and _SNAPSHOT.fullmatch(a[len(b) :]) is not None)


def _refusal(reply: Reply, status: int, model: str, key: Key | None) -> RequestError:
    """The error of a refusal that will not pass."""
    large = is_too_large(status, reply.text)
    if is_spent(reply.text) or status == 402:
        hint = (
            "the account has no credit: top it up, then run the same command again; what was answered is kept"
        )
    elif status in (401, 403):
        hint = advice(reply.url, key, os.environ)
    elif 300 <= status < 400:
        place = hidden(reply.headers.get("location", "nowhere"))[:200]
        hint = f"it redirects to {place}; if that is the server that you mean, set the address to it"
    elif large:
        hint = "raise the server's limit, or send less"
    else:
        hint = _ADVICE.get(status, "check the model's name and the address")
    return RequestError(
        f"{hidden(reply.url)}: HTTP {reply.status} for model {model!r}: {reply.said}",
        hint=hint,
        status=status,
        too_large=large,
    )


_ADVICE = {
    400: "check the model's name, and for targets that the server grants as many log-probabilities as target.k",
    404: "check the model's name and the address, e.g. http://localhost:8000/v1; GET /v1/models lists the names",
    405: "check the address, e.g. http://localhost:8000/v1",
}


def retry_after(reply: Reply) -> float | None:
    """Seconds that the server asks to wait, a date counted from its own Date; None if it does not say so readably."""
    value = _first(reply.headers, "retry-after")
    try:
        seconds = float(value)
    except ValueError:
        until, now = _date(value), _date(_first(reply.headers, "date"))
        if until is None or now is None:
            return None
        seconds = until - now
    return max(0.0, seconds) if seconds == seconds else None


def _first(headers: httpx.Headers, name: str) -> str:
    """A header's value; the first where it stands there twice."""
    return next(iter(headers.get_list(name)), "").strip()


def _date(text: str) -> float | None:
    """Seconds of a date, in GMT where it names no zone; None for what is none."""
    try:
        found = parsedate_to_datetime(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
