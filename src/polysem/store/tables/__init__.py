"""The tables of a study. Result columns are documented here and nowhere else.

Stage folders hold the tables of `STAGES`; a module here is a stage, but for the effects: `effects` has what was
measured, `judgement` how sure it is. Besides tables, `features/` holds embeddings.safetensors: one
[n_features d_embed] tensor per SAE, rows in the order of `features`, zero rows where there is no gloss.
`atlas`, `transfer`, `panel` and `defence` are folders of their own, outside the stages of a study.
"""

from polysem.store.schema import Schema
from polysem.store.tables.atlas import ATLAS, ATLAS_DENSITY, ATLAS_FIT, ATLAS_SAMPLE, ATLAS_TOP
from polysem.store.tables.defence import DEFENCES, PROTECTED
from polysem.store.tables.effects import DOSE_RESPONSE, EFFECTS, MISSING, PAIR_EFFECTS, PRESETS, RELIABILITY
from polysem.store.tables.features import CLUSTERS, CONTEXTS, FEATURES, GLOSSES
from polysem.store.tables.judgement import (
    CHECKS,
    EXPLAINED,
    PAIR_TESTS,
    POWER,
    REPLICATION,
    SPECIFICATION,
    VALIDITY,
)
from polysem.store.tables.pairs import DENSITY, PAIRS, PARTNERS, SPECTRUM
from polysem.store.tables.panel import JUDGED, JUDGEMENTS, WRITTEN_GLOSSES
from polysem.store.tables.plan import NEURON_DEGREES, NEURONS, PLAN, PROMPTS, SIGNALS
from polysem.store.tables.response import (
    COMPENSATION,
    DECOMPOSITION,
    GRADIENT_MATRIX,
    GRADIENT_PATH,
    METRICS,
    REPLICATED,
    RESPONSE,
)
from polysem.store.tables.transfer import (
    TRANSFER,
    TRANSFER_COST,
    TRANSFER_DIRECTIONS,
    TRANSFER_EFFECTS,
    TRANSFER_SETS,
    TRANSFER_SHARED,
    TRANSFER_STEERED,
    TRANSFER_TARGETS,
    TRANSFER_TRIALS,
)
from polysem.store.tables.trials import TRIALS

__all__ = [
    "ATLAS",
    "ATLAS_DENSITY",
    "ATLAS_FIT",
    "ATLAS_SAMPLE",
    "ATLAS_TOP",
    "CHECKS",
    "CLUSTERS",
    "COMPENSATION",
    "CONTEXTS",
    "DECOMPOSITION",
    "DEFENCES",
    "DENSITY",
    "DOSE_RESPONSE",
    "EFFECTS",
    "EXPLAINED",
    "FEATURES",
    "GLOSSES",
    "GRADIENT_MATRIX",
    "GRADIENT_PATH",
    "JUDGED",
    "JUDGEMENTS",
    "METRICS",
    "MISSING",
    "NEURONS",
    "NEURON_DEGREES",
    "PAIRS",
    "PAIR_EFFECTS",
    "PAIR_TESTS",
    "PARTNERS",
    "PLAN",
    "POWER",
    "PRESETS",
    "PROMPTS",
    "PROTECTED",
    "RELIABILITY",
    "REPLICATED",
    "REPLICATION",
    "RESPONSE",
    "SIGNALS",
    "SPECIFICATION",
    "SPECTRUM",
    "STAGES",
    "TRANSFER",
    "TRANSFER_COST",
    "TRANSFER_DIRECTIONS",
    "TRANSFER_EFFECTS",
    "TRANSFER_SETS",
    "TRANSFER_SHARED",
    "TRANSFER_STEERED",
    "TRANSFER_TARGETS",
    "TRANSFER_TRIALS",
    "TRIALS",
    "VALIDITY",
    "WRITTEN_GLOSSES",
]

STAGES: dict[str, tuple[Schema, ...]] = {
    "features": (FEATURES, GLOSSES, CONTEXTS, CLUSTERS),
    "pairs": (PAIRS, DENSITY, SPECTRUM, PARTNERS),
    "plan": (PLAN, PROMPTS, NEURONS, NEURON_DEGREES, SIGNALS),
    "trials": (TRIALS,),
    "response": (
        *(RESPONSE, DECOMPOSITION, METRICS, COMPENSATION),
        *(GRADIENT_PATH, GRADIENT_MATRIX, REPLICATED),
    ),
    "effects": (
        EFFECTS,
        PAIR_EFFECTS,
        DOSE_RESPONSE,
        MISSING,
        EXPLAINED,
        VALIDITY,
        SPECIFICATION,
        POWER,
        PRESETS,
        CHECKS,
        PAIR_TESTS,
        REPLICATION,
        RELIABILITY,
    ),
}
"""Stage name -> its tables, in the order in which a study runs."""
