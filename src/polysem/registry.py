"""Names to things: names imported when first used, suggestions, and the one place that resolves `zoo:` references."""

import difflib
import importlib
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from polysem.errors import FormatError, UnknownReferenceError


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names are imported when first used.

    Args:
        package: `__name__` of the package.
        homes: public name -> the module that holds it: of the package, or by its whole name.
    """

    def resolve(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name] if "." in homes[name] else f"{package}.{homes[name]}"
        return getattr(importlib.import_module(home), name)

    return resolve, lambda: sorted(homes)


def attribute(reference: str) -> Any:
    """The object behind "module:attribute"."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def did_you_mean(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """'; did you mean X?' for the closest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


_ZOOS = {"zoo": "polysem-zoo", "zoo-real": "polysem-zoo-real"}
"""what stands before the colon of a reference -> the distribution"""


def zoo_path(kind: str, name: str) -> Path:
    """The folder or file of an entry of a zoo.

    Args:
        kind: "models", "saes", "transcoders", "texts", "features" or "glosses".
        name: what stands behind `zoo:`, e.g. `gpt2`, `gpt2/blocks.2.hook_resid_post`, `classics`; of polysem-zoo-real, the
            dictionaries of real models, with `zoo-real:` before it.

    Raises:
        UnknownReferenceError: if the zoo is not installed or does not hold the name.
    """
    zoo, _, entry = name.partition(":")
    if zoo not in _ZOOS:
        zoo, entry = "zoo", name
    found = _zoo(zoo, f"{zoo}:{entry}")
    known = found.names(kind)
    if entry not in known:
        raise UnknownReferenceError(
            f"{_ZOOS[zoo]} has no {kind} entry {entry!r}; it has {', '.join(known)}{did_you_mean(entry, known)}",
            hint="polysem zoo",
        )
    return found.path(kind, entry)


def zoo_names(kind: str, zoo: str = "zoo") -> list[str]:
    """Names of a zoo's entries of one kind, as they stand behind `zoo:` or `zoo-real:`.

    Raises:
        UnknownReferenceError: if it is not installed.
    """
    return list(_zoo(zoo, f"{zoo}:").names(kind))


def _zoo(zoo: str, wanted: str) -> Any:
    try:
        return importlib.import_module(_ZOOS[zoo].replace("-", "_"))
    except ImportError as error:
        raise UnknownReferenceError(
            f"{wanted} needs the package {_ZOOS[zoo]}, which is not installed",
            hint=f"pip install {_ZOOS[zoo]}",
        ) from error


WEIGHED_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".npz", ".pt", ".pth")
"""of files that models and SAEs are read from"""


def check_links(folder: Path, names: Collection[str] | None = None) -> None:
    """Raise FormatError if a file of a folder (of `names`, if given) is a link to what is not there, as a cache of the Hub
    is when it was copied in part."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        wanted = file.suffix in WEIGHED_SUFFIXES if names is None else file.name in names
        if wanted and file.is_symlink() and not file.exists():
            raise FormatError(
                f"{file} is a link to {os.readlink(file)}, which is not there",
                hint="fetch the files again, or copy the folder with what its links point to: cp -rL FROM TO",
            )
