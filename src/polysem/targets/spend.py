"""What requests cost, and how fast they may be sent: a budget that is checked before and during, and a rate.

A budget counts what this run sends. Answers that are kept already cost nothing and are not counted. An attempt
that was answered with an error, or not at all, is counted as a request, since a server may have charged for it.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from polysem.errors import ConfigError, StoreError


@dataclass(frozen=True)
class Price:
    """Cost of requests in a unit of the user's choice (a currency, GPU seconds)."""

    per_request: float = 0.0
    per_million_input: float = 0.0
    per_million_output: float = 0.0
    unit: str = "units"

    def of(self, *, requests: int, input_tokens: float, output_tokens: float) -> float:
        """Cost of so many requests and tokens."""
        tokens = input_tokens * self.per_million_input + output_tokens * self.per_million_output
        return requests * self.per_request + tokens / 1e6


@dataclass(frozen=True)
class Quote:
    """What is about to be sent."""

    planned: int
    """distinct requests that the plan needs"""
    kept: int
    """of these, answers that are there already"""
    input_tokens: float
    """of those to be sent; where the tokenizer is unknown, bytes / 3, which overstates English"""
    cost: float
    unit: str
    unsettled: int = 0
    """of those to be sent, requests that were sent before and whose response was lost on the way"""

    @property
    def to_send(self) -> int:
        return self.planned - self.kept

    def __str__(self) -> str:
        return (
            f"{self.planned} requests, {self.kept} answered before, {self.to_send} to send, "
            f"about {self.input_tokens:.0f} input tokens, about {self.cost:.4g} {self.unit}"
        ) + (
            f"; {self.unsettled} of them were under way when a run ended and go out under their first Idempotency-Key: "
            "free of charge again only where the server honours it"
            if self.unsettled
            else ""
        )


@dataclass
class Budget:
    """The most that one run may send; None is no limit."""

    max_requests: int | None = None
    max_cost: float | None = None
    price: Price = Price()
    requests: int = 0
    """sent so far, failed attempts included"""
    cost: float = 0.0
    """of what was sent so far"""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def affords(self, estimate: Quote) -> int:
        """Requests of a plan that are paid for; all of them where there is no limit."""
        most = estimate.to_send if self.max_requests is None else self.max_requests - self.requests
        if self.max_cost is not None and estimate.cost > 0:
            most = min(most, int((self.max_cost - self.cost) * estimate.to_send / estimate.cost))
        return max(0, min(most, estimate.to_send))

    def check(self, estimate: Quote) -> None:
        """Refuse a plan that the budget cannot pay for, before anything is sent.

        Raises:
            ConfigError: says what is needed and what there is.
        """
        if self.max_requests is not None and estimate.to_send > self.max_requests - self.requests:
            raise ConfigError(
                f"the budget is too small: {estimate}; max_requests leaves {self.max_requests - self.requests}",
                hint=f"raise max_requests to {self.requests + estimate.to_send}, or plan fewer pools or sentences",
            )
        if self.max_cost is not None and estimate.cost > self.max_cost - self.cost:
            raise ConfigError(
                f"the budget is too small: {estimate}; max_cost leaves {self.max_cost - self.cost:.4g}",
                hint=f"raise max_cost to {self.cost + estimate.cost:.4g}, or plan fewer pools or sentences",
            )

    def charge(self, input_tokens: float, *, output_tokens: float = 1.0) -> None:
        """Count one attempt, before it is sent.

        Raises:
            StoreError: the budget is used up (by attempts that failed); what was answered is kept.
        """
        cost = self.price.of(requests=1, input_tokens=input_tokens, output_tokens=output_tokens)
        with self._lock:
            over = (self.max_requests is not None and self.requests + 1 > self.max_requests) or (
                self.max_cost is not None and self.cost + cost > self.max_cost * (1 + 1e-9)
            )
            if over:
                raise StoreError(
                    f"the budget is used up: {self.requests} requests, {self.cost:.4g} {self.price.unit} "
                    f"(max_requests {self.max_requests}, max_cost {self.max_cost}); failed attempts count, too",
                    hint="run the same command again: every answer so far is kept and costs nothing",
                )
            self.requests += 1
            self.cost += cost


class Rate:
    """At most so many requests a minute, evenly spaced, over all threads."""

    def __init__(
        self,
        per_minute: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._clock = clock
        self._sleep = sleep
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when the next request may be sent."""
        if not self._gap:
            return
        with self._lock:
            now = self._clock()
            at = max(now, self._next)
            self._next = at + self._gap
        if at > now:
            self._sleep(at - now)
