"""Stages made through a run folder: once, checked, and continued after a kill; each is a record of `store.stages`.

    run_study                           the stages of a study, in order, on processes or a Ray cluster where that is asked for
    make_beside                         a stage that is made beside them when it is asked for
    run_transfer                        a transfer study
    check_study                         what is wrong with a study, before anything is made
    run_status, verify_run              where every stage stands, and whether the folder holds what it says

Names resolve lazily; nothing here imports torch before a stage needs a model.
"""

from typing import TYPE_CHECKING

from polysem.registry import lazy_names

if TYPE_CHECKING:
    from polysem.engine.check import check_study
    from polysem.engine.run import make_beside, run_study, run_transfer
    from polysem.engine.status import run_status, study_status
    from polysem.engine.verify import verify_run

__all__ = [
    "check_study",
    "make_beside",
    "run_status",
    "run_study",
    "run_transfer",
    "study_status",
    "verify_run",
]

_HOMES = {"check_study": "check", "run_status": "status", "study_status": "status", "verify_run": "verify"}

__getattr__, __dir__ = lazy_names(__name__, {name: _HOMES.get(name, "run") for name in __all__})
