"""Where an SAE lies on disk, and its configuration. Tensors are read by `boundary.tensors`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polysem.boundary import text
from polysem.boundary.door import Door
from polysem.errors import FormatError
from polysem.saes.releases import ReleaseEntry

_SETTINGS = Door("configuration", "download the file again", missing=FormatError)


@dataclass(frozen=True)
class WeightFiles:
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
    entry: ReleaseEntry | None = None
    """what the registry of releases knows about it"""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FormatError if the file is absent, is not JSON, or holds no object."""
    return text.read_json(path, door=_SETTINGS)
