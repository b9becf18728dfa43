"""A study run through the store: stages that are made once, checked, and continued after a kill.

Names resolve lazily; nothing here imports torch before a stage needs a model.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polysem.study.run import run_study
    from polysem.study.status import study_status
    from polysem.study.verify import verify_run

__all__ = ["run_study", "study_status", "verify_run"]

_HOMES = {"run_study": "run", "study_status": "status", "verify_run": "verify"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
