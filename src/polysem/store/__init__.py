"""Tables and manifests on disk. Reading a finished run needs this package and nothing heavier than pyarrow; the registry of
stages (`store.stages`) needs not even that, so names resolve when they are first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polysem.store.run import RunFolder
    from polysem.store.tables import STAGES

__all__ = ["STAGES", "RunFolder"]

_HOMES = {"STAGES": "tables", "RunFolder": "run"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
