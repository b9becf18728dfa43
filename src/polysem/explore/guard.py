"""Who may talk to the explorer: this machine's owner, in this browser, from this page.

* The Host header must be one that was bound (a page elsewhere cannot reach the server under its own name by
  DNS rebinding).
* A random token must come along: once in the address, then as a cookie of this site only, or as
  `Authorization: Bearer` from a script.
* Only GET and HEAD, but for `live`, which must come from this origin and as JSON (no form of another page can
  send that).
* The page may load nothing from anywhere, run no inline script, be framed by nobody, and write HTML from
  strings nowhere (trusted types).
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_SAFE = ("GET", "HEAD")
_WRITES = "/live"
_DENIED = "polysem explore: {}. Open the address that the command printed; it carries the token.\n"


class Guard:
    """ASGI middleware in front of the whole application."""

    def __init__(self, app: App, *, token: str, hosts: frozenset[str]):
        self.app = app
        self.token = token
        self.hosts = frozenset(host.lower() for host in hosts)
        # Cookies do not know ports: the name keeps two explorers on one machine apart, and tells nothing.
        self.cookie = f"polysem-{hashlib.sha256(token.encode()).hexdigest()[:10]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # there are no websockets here
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        guarded = _with_headers(send)
        if headers.get("host", "").lower() not in self.hosts:
            await _answer(guarded, 421, _DENIED.format("this is not the address of the server"))
        elif self._is_first(scope):
            await self._welcome(scope, guarded)
        elif not self._known(headers):
            await _answer(guarded, 401, _DENIED.format("no valid token"))
        elif not self._allowed(scope, headers):
            await _answer(guarded, 403, _DENIED.format("the explorer only reads"))
        else:
            await self.app(scope, receive, guarded)

    def _is_first(self, scope: Scope) -> bool:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        return scope["path"] == "/" and scope["method"] in _SAFE and self._same(given)

    async def _welcome(self, scope: Scope, send: Send) -> None:
        """Take the token out of the address and keep it as a cookie."""
        cookie = f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode()), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def _known(self, headers: dict[str, str]) -> bool:
        bearer = headers.get("authorization", "").removeprefix("Bearer ").strip()
        if bearer and self._same(bearer):
            return True
        try:
            jar = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        return self.cookie in jar and self._same(jar[self.cookie].value)

    def _allowed(self, scope: Scope, headers: dict[str, str]) -> bool:
        if scope["method"] in _SAFE:
            return True
        path = scope["path"]
        if path != _WRITES and not path.startswith(f"{_WRITES}/"):
            return False
        origin = headers.get("origin", "").lower()
        return origin == f"http://{headers['host'].lower()}" and (
            scope["method"] == "DELETE" or headers.get("content-type", "") == "application/json"
        )

    def _same(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *own]}
        await send(message)

    return sending


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
