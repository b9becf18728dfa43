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
        homes: public name -> the module of the package that holds it.
    """

    def resolve(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return resolve, lambda: sorted(homes)


def did_you_mean(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """'; did you mean X?' for the closest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def zoo_path(kind: str, name: str) -> Path:
    """The folder or file of a zoo entry.

    Args:
        kind: "models", "saes", "transcoders", "texts", "features" or "glosses".
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


def zoo_real_path(kind: str, name: str) -> Path:
    """The folder of an entry of polysem-zoo-real, the dictionaries of real models.

    Args:
        kind: "saes", "transcoders" or "glosses".
        name: what stands behind `zoo-real:`, e.g. `smollm2/blocks.14.hook_resid_post`.

    Raises:
        UnknownReferenceError: if the package is not installed or does not hold the name.
    """
    polysem_zoo_real = _zoo_real(f"zoo-real:{name}")
    known = polysem_zoo_real.names(kind)
    if name not in known:
        raise UnknownReferenceError(
            f"polysem-zoo-real has no {kind} entry {name!r}; it has {', '.join(known)}{did_you_mean(name, known)}",
            hint="polysem zoo",
        )
    return polysem_zoo_real.path(kind, name)


def zoo_real_names(kind: str) -> list[str]:
    """Names of polysem-zoo-real's entries of one kind, as they stand behind `zoo-real:`.

    Raises:
        UnknownReferenceError: if the package is not installed.
    """
    return list(_zoo_real("the zoo of real models").names(kind))


def _zoo_real(wanted: str) -> Any:
    try:
        import polysem_zoo_real
    except ImportError as error:
        raise UnknownReferenceError(
            f"{wanted} needs the package polysem-zoo-real, which is not installed",
            hint="pip install polysem-zoo-real",
        ) from error
    return polysem_zoo_real


def _zoo(wanted: str) -> Any:
    try:
        import polysem_zoo
    except ImportError as error:
        raise UnknownReferenceError(
            f"{wanted} needs the package polysem-zoo, which is not installed", hint="pip install polysem-zoo"
        ) from error
    return polysem_zoo


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
