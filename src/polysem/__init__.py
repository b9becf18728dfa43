"""The instrument of record for polysemantic interference in language models.

Names resolve when they are first used, so importing polysem costs milliseconds and no torch. A study in five steps:

    model = polysem.load_model("zoo:gpt2")
    sae = polysem.load_sae("zoo:gpt2/blocks.2.hook_resid_post", model=model)
    features = polysem.feature_table(sae, model)
    pairs = polysem.map_pairs(sae, features, min_interference=0.2, max_similarity=0.3)
    plan = polysem.make_plan(pairs, sae, features, model, seed=0)
    print(polysem.estimate(polysem.run_trials(plan, model)))
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polysem.api import estimate, make_plan, map_pairs, run_trials, steering_card
    from polysem.engine import run_study
    from polysem.features import feature_table
    from polysem.geometry import mine_pairs
    from polysem.models import load_model
    from polysem.readouts import weighted_cosine, weighted_overlap
    from polysem.report import open_run, write_report
    from polysem.saes import load_sae

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "estimate",
    "feature_table",
    "load_model",
    "load_sae",
    "make_plan",
    "map_pairs",
    "mine_pairs",
    "open_run",
    "run_study",
    "run_trials",
    "steering_card",
    "weighted_cosine",
    "weighted_overlap",
    "write_report",
]

_HOMES = {
    "estimate": "api",
    "feature_table": "features",
    "load_model": "models",
    "load_sae": "saes",
    "make_plan": "api",
    "map_pairs": "api",
    "mine_pairs": "geometry",
    "open_run": "report",
    "run_study": "engine",
    "run_trials": "api",
    "steering_card": "api",
    "weighted_cosine": "readouts",
    "weighted_overlap": "readouts",
    "write_report": "report",
}

_SPOKEN = {
    "estimate": "estimates",
    "feature_table": "features",
    "load_model": "model",
    "load_sae": "SAE",
    "make_plan": "plan",
    "map_pairs": "pairs",
    "mine_pairs": "pairs",
    "run_study": "",
    "run_trials": "trials",
    "steering_card": "side effects",
    "write_report": "report",
}
"""doors behind which it may take long -> what a person is shown meanwhile (`polysem.progress`)"""

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _SPOKEN:
        from polysem.progress import spoken

        found = spoken(found, _SPOKEN[name])
        globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
