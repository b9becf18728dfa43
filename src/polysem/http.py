"""Requests that survive a busy or a briefly absent server, and say plainly what is wrong otherwise."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from polysem.errors import UnknownReferenceError

_BUSY = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Retries:
    """How often and how long to wait: doubling from `first` seconds, or as a server's Retry-After says."""

    attempts: int = 5
    first: float = 0.5
    longest: float = 120.0
    """a server that asks for more is taken at its word: the request fails at once and says so"""
    sleep: Callable[[float], None] = time.sleep


def send(
    client: httpx.Client,
    method: str,
    url: str,
    *,
    retries: Retries,
    before: Callable[[], None] | None = None,
    **request: Any,
) -> httpx.Response:
    """The response to one request: any status but those that mean "try again", which are tried again.

    Args:
        client: sends.
        method: of HTTP.
        url: the address.
        retries: how often, how long.
        before: called before every attempt: where a rate limit waits and a budget is charged.
        **request: as for `httpx.Client.request`.

    Raises:
        UnknownReferenceError: no connection, or the server is still busy after the last attempt.
    """
    problem = ""
    for attempt in range(retries.attempts):
        wait = retries.first * 2**attempt
        if before is not None:
            before()
        try:
            response = client.request(method, url, **request)
        except httpx.TransportError as error:
            problem = f"{type(error).__name__}: {error}"
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise UnknownReferenceError(f"{url} is no usable address: {error}") from error
        else:
            if response.status_code not in _BUSY:
                return response
            problem = f"HTTP {response.status_code}: {response.text[:200]}"
            asked = retry_after(response)
            if asked is not None and asked > retries.longest:
                problem += (
                    f" (asks to wait {asked:.0f} s, longer than the {retries.longest:.0f} s that are waited)"
                )
                break
            wait = wait if asked is None else asked
        if attempt + 1 < retries.attempts:
            retries.sleep(wait)
    raise UnknownReferenceError(
        f"no answer from {url} after {retries.attempts} attempts; last: {problem}",
        hint="check the network and the address, then run the same command again",
    )


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait, a date counted from its own Date; None if it does not say."""
    value = response.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        until, now = (parsedate_to_datetime(text) for text in (value, response.headers.get("date", "")))
    except (ValueError, TypeError):
        return None
    return max(0.0, (until - now).total_seconds())
