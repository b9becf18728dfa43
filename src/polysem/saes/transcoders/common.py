"""What the dialects share: provenance with hashes, numbered files, and the check that nothing unread is left."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from polysem.errors import FormatError
from polysem.saes.base import Provenance
from polysem.saes.names import site_of_hook
from polysem.store.io import sha256
from polysem.types import Site

_READS = {
    "ln2.hook_normalized": "mlp.hook_in",
    "hook_mlp_in": "mlp.hook_in",
    "pre_feedforward_layernorm.output": "mlp.hook_in",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}
"""other names of points; whether the gain of the norm is in what was read the gate tells"""


def provenance(
    ref: str, dialect: str, files: Iterable[Path], declared: Mapping[str, Any] | None = None
) -> Provenance:
    """Where a set came from, every file with its hash."""
    hashed = tuple(sorted((path.name, sha256(path)) for path in files))
    return Provenance(ref, hashed[0][1] if hashed else "memory", dialect, hashed, dict(declared or {}))


def point(name: str, layer: int) -> Site:
    """The site of a point of a block, as circuit-tracer and Gemma Scope name them. Raises SiteError."""
    return site_of_hook(f"blocks.{layer}.{_READS.get(name, name)}")


def numbered(folder: Path, pattern: str) -> dict[int, Path]:
    """Files or folders by the number in their names.

    Raises:
        FormatError: a number twice, or one that is missing in between.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = re.search(pattern, path.name)
        if match is None:
            continue
        number = int(match[1])
        if number in found:
            raise FormatError(
                f"{folder} holds layer {number} twice: {found[number].name} and {path.name}",
                hint="keep one width and sparsity in a folder",
            )
        found[number] = path
    gaps = sorted(set(range(max(found, default=-1) + 1)) - set(found))
    if gaps:
        raise FormatError(
            f"{folder} lacks the files of layer {', '.join(map(str, gaps))}; it holds {', '.join(map(str, sorted(found)))}",
            hint="fetch the missing files",
        )
    return dict(sorted(found.items()))
