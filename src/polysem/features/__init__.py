"""Features: harvested from a corpus or read from an export, glossed and embedded. Names resolve lazily;
importing this imports no torch."""

from typing import TYPE_CHECKING

from polysem.registry import lazy_names

if TYPE_CHECKING:
    from polysem.features.table import FeatureTable, build_features, feature_table

__all__ = ["FeatureTable", "build_features", "feature_table"]


__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(__all__, "table"))
