"""Who may talk to the explorer: this machine's owner, in this browser, from this page.

* The Host header must be one that was bound or allowed, alone (a page elsewhere cannot reach the server under its own
  name by DNS rebinding).
* A random token must come along: once in the address, then as a cookie of this site only, or as
  `Authorization: Bearer` from a script.
* Only GET and HEAD, but for `live`, which must come from this origin and as JSON (no form of another page can
  send that).
* The page may load nothing from anywhere, run no inline script, be framed by nobody, and write HTML from
  strings nowhere (trusted types).
"""

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, unquote

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
_STRANGE = (
    "polysem explore: this server does not answer to the name {host!r}.\n"
    "If you came through a forwarded port or a proxy, start it again with that name:\n"
    "  polysem explore RUN --allow-host {host}\n"
    "and behind a proxy that puts a path in front (jupyter-server-proxy), also with: --root-path /PATH\n"
)
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@\s]+)(?::(\d+))?", re.IGNORECASE)
_USUAL = {None, 80, 443}
"""a browser leaves out the port that its scheme has"""


def host_of(text: str) -> tuple[str, int | None] | None:
    """(name, port or None) of a Host header or of what the command line allows; None for what is no host."""
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    match = _HOST.fullmatch(text)
    port = int(match[2]) if match and match[2] else None
    if match is None or (port is not None and not 0 < port < 1 << 16):
        return None
    return match[1].lower(), port


class Guard:
    """ASGI middleware in front of the whole application."""

    def __init__(self, app: App, *, token: str, hosts: frozenset[str], root: str = ""):
        """
        Args:
            app: the application.
            token: what a visitor must bring.
            hosts: NAME:PORT, or NAME for any port.
            root: the path that a proxy puts in front, or "".
        """
        self.app = app
        self.token = token
        self.hosts = frozenset(found for host in hosts if (found := host_of(host)))
        self.root = root
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
        hosts = [v.decode("latin-1") for k, v in scope["headers"] if k.lower() == b"host"]
        guarded = _with_headers(send)
        above = unquote(self.root)
        if above and (scope["path"] + "/").startswith(f"{above}/"):
            # proxies differ in whether they take the path off
            inner = scope["path"][len(above) :]
            scope = {**scope, "path": inner or "/", "raw_path": (inner or "/").encode()}
        if len(hosts) != 1 or not self._answers_to(hosts[0]):
            shown = "".join(c for c in (hosts or [""])[0] if c.isprintable() and c.isascii())[:100]
            await _answer(guarded, 421, _STRANGE.format(host=shown or "NAME"))
        elif self._is_first(scope):
            await self._welcome(scope, guarded)
        elif not self._known(headers):
            await _answer(guarded, 401, _DENIED.format("no valid token"))
        elif not self._allowed(scope, headers):
            await _answer(guarded, 403, _DENIED.format("the explorer only reads"))
        else:
            await self.app(scope, receive, guarded)

    def _answers_to(self, host: str) -> bool:
        found = host_of(host)
        if found is None:
            return False
        name, port = found
        # without a port in the header it is the usual one of a scheme that only the browser knows
        return (name, None) in self.hosts or any(
            (name, p) in self.hosts for p in ({port} if port is not None else _USUAL)
        )

    def _is_first(self, scope: Scope) -> bool:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        return scope["path"] == "/" and scope["method"] in _SAFE and self._same(given)

    async def _welcome(self, scope: Scope, send: Send) -> None:
        """Take the token out of the address and keep it as a cookie."""
        # Behind a proxy others serve under the same name: they are not sent the cookie.
        cookie = f"{self.cookie}={self.token}; Path={self.root}/; HttpOnly; SameSite=Strict"
        headers = [
            (b"location", f"{self.root}/".encode()),
            (b"set-cookie", cookie.encode()),
            (b"cache-control", b"no-store"),
        ]
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
        # https where a proxy in front speaks it; the name must be this one either way
        return origin in {f"{scheme}://{headers['host'].lower()}" for scheme in ("http", "https")} and (
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
