"""Features: harvested from a corpus or read from an export, glossed and embedded. Names resolve lazily;
importing this imports no torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polysem.features.table import FeatureTable, build_features, feature_table

__all__ = ["FeatureTable", "build_features", "feature_table"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("polysem.features.table"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
