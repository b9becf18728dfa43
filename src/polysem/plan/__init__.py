"""What a study will run, chosen before any model runs. Names resolve lazily; importing this imports no torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polysem.plan.index import Features, PairTables
    from polysem.plan.layout import Plan, describe_plan, make_plan, trial_ids

__all__ = ["Features", "PairTables", "Plan", "describe_plan", "make_plan", "trial_ids"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("polysem.plan.layout"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
