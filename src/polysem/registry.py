"""Names to things: a lazy registry with suggestions, and the one place that resolves `zoo:` references."""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polysem.errors import UnknownReferenceError


class Registry(Mapping[str, Any]):
    """A read-only map from name to object; values are "module:attribute" strings, imported when first asked
    for."""

    def __init__(self, kind: str, entries: Mapping[str, str]):
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Any:
        if name not in self._entries:
            raise UnknownReferenceError(
                f"unknown {self.kind} {name!r}; expected one of {', '.join(sorted(self._entries))}{did_you_mean(name, self._entries)}"
            )
        module, _, attribute = self._entries[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def did_you_mean(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """'; did you mean X?' for the closest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def zoo_path(kind: str, name: str) -> Path:
    """The folder or file of a zoo entry.

    Args:
        kind: "models", "saes" or "texts".
        name: what stands behind `zoo:`, e.g. `gpt2`, `gpt2/blocks.2.hook_resid_post`, `classics`.

    Raises:
        UnknownReferenceError: if the zoo is not installed or does not hold the name.
    """
    polysem_zoo = _zoo(f"zoo:{name}")
    known = polysem_zoo.names(kind)
    if name not in known:
        raise UnknownReferenceError(
            f"the zoo has no {kind} entry {name!r}; it has {', '.join(known)}{did_you_mean(name, known)}",
            hint="polysem zoo",
        )
    return polysem_zoo.path(kind, name)


def zoo_names(kind: str) -> list[str]:
    """Names of the zoo's entries of one kind, as they stand behind `zoo:`.

    Raises:
        UnknownReferenceError: if the zoo is not installed.
    """
    return list(_zoo("the zoo").names(kind))


def _zoo(wanted: str) -> Any:
    try:
        import polysem_zoo
    except ImportError as error:
        raise UnknownReferenceError(
            f"{wanted} needs the package polysem-zoo, which is not installed", hint="pip install polysem-zoo"
        ) from error
    return polysem_zoo
