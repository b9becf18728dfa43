"""Where an SAE lies on disk, and reading what lies there without ever executing it.

Tensors come from safetensors, from npz with `allow_pickle=False`, or from `torch.load(weights_only=True)`.
Every reader turns a
missing, truncated or foreign file into a `FormatError` that names the file.
"""

import hashlib
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from polysem.errors import FormatError
from polysem.saes.releases import Entry

SAFETENSORS_HINT = (
    "convert it where it was made: safetensors.torch.save_file(state_dict, 'sae_weights.safetensors')"
)
T = TypeVar("T")
_KINDS = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}
PICKLES = (".pkl", ".pickle", ".joblib", ".dill")


@dataclass(frozen=True)
class Source:
    """One SAE on the local disk."""

    ref: str
    """the reference as the user wrote it"""
    path: Path
    """folder or file"""
    label: str
    """repository and path inside it, or the local path: some dialects keep layer, model and k only in these
    names"""
    revision: str | None = None
    """commit on the Hub"""
    entry: Entry | None = None
    """what the registry of releases knows about it"""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FormatError: if the file is absent, is not JSON, or holds no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}; expected a JSON configuration") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is not JSON: {error}", hint="download the file again") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def setting(
    config: Mapping[str, Any], key: str, kind: type[T], *, where: str | Path, default: T | None = None
) -> T | None:
    """A value of a configuration, `default` if it is absent or null.

    Raises:
        FormatError: if it is of another type; an int is taken where a float is expected, a bool never as a
        number.
    """
    value = config.get(key)
    if value is None:
        return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return kind(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise FormatError(f"{where}: {key} is {value!r}, expected a value of type {_KINDS[kind]}")
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises FormatError if it is absent, truncated or something else."""
    import safetensors
    from safetensors.torch import load_file

    _require(path)
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise FormatError(
            f"{path} ({path.stat().st_size} bytes) is truncated or no safetensors file: {error}",
            hint="download the file again; a pointer of a few hundred bytes means that git lfs was not run",
        ) from error


def read_npz(path: Path) -> dict[str, Tensor]:
    """All arrays of a numpy archive, as tensors. Pickled arrays are refused."""
    _require(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise FormatError(
            f"{path} ({path.stat().st_size} bytes) is truncated, pickled, or no numpy archive of numbers: "
            f"{error}",
            hint="download the file again",
        ) from error


def read_torch(path: Path) -> dict[str, Any]:
    """The state dict of a `.pt` or `.pth` file, restricted to tensors and plain values.

    Raises:
        FormatError: if the file is absent, truncated, would have to run code to be read, or holds no dict.
    """
    _require(path)
    if path.suffix in PICKLES:
        raise FormatError(f"{path} is a pickle: reading it could run any code", hint=SAFETENSORS_HINT)
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise FormatError(
            f"{path} ({path.stat().st_size} bytes) is truncated, or holds objects other than tensors and "
            f"plain values, which could run any code when read: {str(error).splitlines()[0]}",
            hint=SAFETENSORS_HINT,
        ) from error
    if not isinstance(value, dict):
        raise FormatError(
            f"{path} holds a {type(value).__name__}, expected a state dict", hint=SAFETENSORS_HINT
        )
    return value


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def listing(folder: Path) -> str:
    """The names in a folder, for error messages."""
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    return (
        ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
        if names
        else "nothing"
    )


def _require(path: Path) -> None:
    if not path.is_file():
        near = f"; the folder holds {listing(path.parent)}" if path.parent.is_dir() else ""
        raise FormatError(f"{path} is missing{near}", hint="download the folder again, whole")
