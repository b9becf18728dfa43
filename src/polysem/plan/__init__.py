"""What a study will run, chosen before any model runs. Names resolve lazily; importing this imports no torch."""

from typing import TYPE_CHECKING

from polysem.registry import lazy_names

if TYPE_CHECKING:
    from polysem.plan.index import Features, PairTables
    from polysem.plan.layout import Plan, describe_plan, make_plan, trial_ids

__all__ = ["Features", "PairTables", "Plan", "describe_plan", "make_plan", "trial_ids"]

__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(__all__, "layout"))
