"""Addresses of servers, and which key may go to which: only the user says so, never a study file.

    POLYSEM_API_KEY with POLYSEM_API_BASE      a key, and the address of the one server that it is for
    OPENAI_API_KEY [with OPENAI_BASE_URL]      OpenAI's own address, or that one instead
    POLYSEM_KEYS                               a TOML file of the user's: "ADDRESS" = "KEY", a line for each server

A key is bound to scheme, host and port. A study that points elsewhere gets none, and the user is asked (`Keyring.question`).
What is shown or kept passes through `hidden` or `Key.masked`: no message and no file holds a key.
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

from polysem.boundary.door import Door
from polysem.boundary.files import local_path
from polysem.boundary.text import read_toml
from polysem.errors import ConfigError, PolysemError, typed

OPENAI = "https://api.openai.com/v1"
MASK = "***"
_PORTS = {"http": 80, "https": 443}
_EXAMPLE = "expected one like http://localhost:8000/v1"
_SECRET_NAME = re.compile(r"key|token|secret|sig|password|passwd|auth|credential", re.IGNORECASE)
_USER_INFO = re.compile(r"(?<=://)\S*@")
_IN_QUERY = re.compile(rf"([?&][\w.-]*(?:{_SECRET_NAME.pattern})[\w.-]*=)[^&\s'\"]+", re.IGNORECASE)
_WEB = re.compile(r"https?://.*", re.IGNORECASE | re.DOTALL)
_NAMED = re.compile(r"openai:[^@]*@(.*:.*)", re.DOTALL)
"""an address that is none; a version of a model (name@003) has no colon"""
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
_TELLING = 6
"""characters from which on a key is taken to be a secret: servers that want none are given words like EMPTY"""


def checked_address(url: str) -> str:
    """The address as it was given, where requests can be sent there and nothing in it is secret.

    Raises:
        ConfigError: no http address, or one with user:password@ or a key in it, which a study file would carry about.
    """
    shown = _shown(url)
    if not url.isprintable() or any(c.isspace() or c == "\\" for c in url):
        raise ConfigError(
            f"{shown!r} is no usable address: it holds blanks or control characters; {_EXAMPLE}"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError:  # its words hold parts of the address
        raise ConfigError(f"{shown!r} is no usable address; {_EXAMPLE}") from None
    if parts.scheme.lower() not in _PORTS or not host or port == 0:
        raise ConfigError(f"{shown!r} is no usable address; {_EXAMPLE}")
    secret = [name for name, _ in parse_qsl(parts.query) if _SECRET_NAME.search(name)]
    if "@" in parts.netloc or secret:
        what = "user:password@" if "@" in parts.netloc else f"the parameter {secret[0]!r}"
        raise ConfigError(
            f"the address {shown!r} holds {what}; expected one without a secret, since settings are kept with the results",
            hint=f"take it out, and give the key as POLYSEM_API_KEY with POLYSEM_API_BASE={origin(url)}",
        )
    if parts.fragment:
        raise ConfigError(f"{shown!r} is no usable address: it has a fragment (#); {_EXAMPLE}")
    return url


def checked_reference(text: str) -> str:
    """A reference (`openai:MODEL@URL`, `neuronpedia:URL`) as it was given, where the address in it is a usable one.

    Raises:
        ConfigError: as `checked_address`; nothing, which as a path would be the current folder.
    """
    if not text.strip():
        raise ConfigError(f"an empty reference: {text!r}", hint="leave the key out, or name what is meant")
    if found := _WEB.search(text):
        checked_address(found[0])
    elif found := _NAMED.match(text):
        checked_address(found[1])
    return text


def origin(url: str) -> str:
    """Scheme, host and port of an address, as a key is bound to them: a port that is not said is the usual one."""
    parts = urlsplit(url)
    scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
    shown = f"[{host}]" if ":" in host else host
    port = parts.port or _PORTS.get(scheme)
    return f"{scheme}://{shown}" if port == _PORTS.get(scheme) else f"{scheme}://{shown}:{port}"


def endpoint(url: str, path: str) -> str:
    """The address of a call: a bare host gets /v1 and the path, another the path where it is missing; a query stays last."""
    parts = urlsplit(checked_address(url))
    base = parts.path.rstrip("/")
    if not base.endswith(path):
        base = f"{base}{path}" if base else f"/v1{path}"
    return parts._replace(path=base).geturl()


def hidden(text: str) -> str:
    """The text without what looks like user:password@ or a key in an address."""
    return _IN_QUERY.sub(rf"\1{MASK}", _USER_INFO.sub(f"{MASK}@", text))


def _shown(url: str) -> str:
    """An address that may be none, for a message: nothing before its last @ but the scheme."""
    before, at, after = url.rpartition("@")
    scheme = before.partition("://")[0] + "://" if "://" in before else ""
    return hidden(f"{scheme}{MASK}@{after}" if at else url)[:200]


@dataclass(frozen=True)
class Key:
    """A key, and the server that it is for."""

    value: str = field(repr=False)
    origin: str
    named: str
    """where the user gave it"""

    def __post_init__(self) -> None:
        if not self.value or not all("!" <= c <= "~" for c in self.value):
            raise ConfigError(
                f"the key from {self.named} cannot be sent: it is empty, or holds a blank, a line break or another character "
                "beyond printable ASCII",
                hint=f"give {self.named} anew; a file that ends with a line break is read by $(cat FILE)",
            )

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.value}"}

    def echoed(self, text: str) -> bool:
        """Whether a text holds the key, plain or written otherwise."""
        return len(self.value) >= _TELLING and self.masked(text) != text

    def masked(self, text: str) -> str:
        """The text without the key; escapes are resolved where the key was written with them."""
        plain = _ESCAPED.sub(lambda m: chr(int(m[1], 16)), text).replace("\\/", "/")
        forms = {
            self.value,
            json.dumps(self.value)[1:-1],
            quote(self.value, safe=""),
            base64.b64encode(self.value.encode()).decode(),
        }
        if self.value in plain and self.value not in text:
            text = plain
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, MASK)
        return text


@dataclass(frozen=True)
class Keyring:
    """The keys of one user."""

    keys: tuple[Key, ...] = ()
    unbound: bool = False
    """a POLYSEM_API_KEY without a POLYSEM_API_BASE: it is for no server"""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Keyring":
        """The keys that an environment names.

        Raises:
            ConfigError: a key that cannot be sent, an address that is none, or a keys file that is not what it must be.
        """
        found: list[Key] = []
        if environment.get("POLYSEM_KEYS"):
            found += _from_file(local_path(environment["POLYSEM_KEYS"]))
        key, base = environment.get("POLYSEM_API_KEY"), environment.get("POLYSEM_API_BASE")
        if key and base:
            found.append(Key(key, origin(checked_address(base)), "POLYSEM_API_KEY"))
        if environment.get("OPENAI_API_KEY"):
            home = checked_address(environment.get("OPENAI_BASE_URL") or OPENAI)
            found.append(Key(environment["OPENAI_API_KEY"], origin(home), "OPENAI_API_KEY"))
        return cls(tuple(found), unbound=bool(key and not base))

    def key(self, url: str) -> Key | None:
        """The key that may be sent to an address; None if there is none."""
        return next((key for key in self.keys if key.origin == origin(url)), None)

    def question(self, url: str) -> str:
        """What the user is asked about an address that gets no key although there are some; empty where there is no question."""
        if self.key(url) or not (self.keys or self.unbound):
            return ""
        here = origin(url)
        held = [f"{key.named} is for {key.origin}" for key in self.keys]
        held += ["POLYSEM_API_KEY is for no server: POLYSEM_API_BASE is not set"] if self.unbound else []
        return (
            f"{here} is sent no key: {', '.join(held)}. Is {here} a server that you trust with a key of yours? "
            f"Then set POLYSEM_API_BASE={here} and POLYSEM_API_KEY; if it needs none, nothing is to be done"
        )


def advice(url: str, key: Key | None, environment: Mapping[str, str]) -> str:
    """What to do where a server refuses who asks."""
    if key is not None:
        return f"the key from {key.named} was sent and refused: check that it is for {key.origin} and may use the model"
    return Keyring.of(environment).question(url) or (
        f"set POLYSEM_API_KEY, and POLYSEM_API_BASE={origin(url)}, the server that it is for"
    )


_KEYS = Door("keys file", error=ConfigError, missing=ConfigError)


def _from_file(path: Path) -> list[Key]:
    remedy = f'write lines like "https://HOST/v1" = "KEY" to {path}, then: chmod 600 {typed(path)}'
    try:
        mode, content = path.stat().st_mode, read_toml(path, door=_KEYS)
    except (OSError, PolysemError) as error:  # whose words may quote the file
        told = error.strerror if isinstance(error, OSError) else "it is no file of TOML"
        raise ConfigError(
            f"the keys file {path} (POLYSEM_KEYS) cannot be read: {told}", hint=remedy
        ) from None
    if mode & 0o077:
        raise ConfigError(
            f"the keys file {path} can be read by others (mode {mode & 0o777:o}); expected its owner alone",
            hint=f"chmod 600 {typed(path)}",
        )
    if not all(isinstance(value, str) for value in content.values()):
        raise ConfigError(f'the keys file {path} holds something else than "ADDRESS" = "KEY"', hint=remedy)
    return [Key(value, origin(checked_address(url)), str(path)) for url, value in content.items()]
