"""Tables and manifests on disk. Reading a finished run needs this package and nothing heavier than pyarrow; the registry of
stages (`store.stages`) needs not even that, so names resolve when they are first used."""

from typing import TYPE_CHECKING

from polysem.registry import lazy_names

if TYPE_CHECKING:
    from polysem.store.run import RunFolder
    from polysem.store.tables import STAGES

__all__ = ["STAGES", "RunFolder"]

_HOMES = {"STAGES": "tables", "RunFolder": "run"}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
