"""Cross-model transfer: what two small models share, and whether it moves a third.

    read_transfer                     the tables of a finished study (`engine.run_transfer` makes them)
    match_features, shared_structure  arrays in: matched features, shared pairs with lift and fraction
    pool_test, sentence_bootstrap     arrays in: the pool-randomisation test with max-T
    TransferStudy, parse_transfer     the study file

Names resolve lazily; importing this imports no torch.
"""

from typing import TYPE_CHECKING

from polysem.registry import lazy_names

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
    "TransferStudy": "config",
    "match_features": "matching",
    "parse_transfer": "config",
    "pool_test": "polysem.stats.units",
    "read_transfer": "result",
    "sentence_bootstrap": "polysem.stats.units",
    "shared_structure": "shared",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
