"""Cross-model transfer: what two small models share, and whether it moves a third.

    read_transfer                     the tables of a finished study (`engine.run_transfer` makes them)
    match_features, shared_structure  arrays in: matched features, shared pairs with lift and fraction
    pool_test, sentence_bootstrap     arrays in: the pool-randomisation test with max-T
    TransferStudy, parse_transfer     the study file

Names resolve lazily; importing this imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polysem.stats.units import pool_test, sentence_bootstrap
    from polysem.transfer.config import TransferStudy, parse_transfer
    from polysem.transfer.matching import match_features
    from polysem.transfer.result import read_transfer
    from polysem.transfer.shared import shared_structure

__all__ = [
    "TransferStudy",
    "match_features",
    "parse_transfer",
    "pool_test",
    "read_transfer",
    "sentence_bootstrap",
    "shared_structure",
]

_HOMES = {
    "TransferStudy": "polysem.transfer.config",
    "match_features": "polysem.transfer.matching",
    "parse_transfer": "polysem.transfer.config",
    "pool_test": "polysem.stats.units",
    "read_transfer": "polysem.transfer.result",
    "sentence_bootstrap": "polysem.stats.units",
    "shared_structure": "polysem.transfer.shared",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
