"""Tables and manifests on disk. Reading a finished run needs this package and nothing heavier than
pyarrow."""

from polysem.store.run import RunFolder
from polysem.store.tables import STAGES

__all__ = ["STAGES", "RunFolder"]
