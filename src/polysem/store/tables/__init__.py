"""The tables of a study. Result columns are documented here and nowhere else.

Stage folders hold the tables of `STAGES`; a module here is a stage, but for the effects: `effects` has what was
measured, `judgement` how sure it is. Besides tables, `features/` holds embeddings.safetensors: one
[n_features d_embed] tensor per SAE, rows in the order of `features`, zero rows where there is no gloss.
"""

from polysem.store.schema import Schema
from polysem.store.tables.atlas import ATLAS_DENSITY, ATLAS_FIT, ATLAS_SAMPLE, ATLAS_TOP, ATLAS_TOWARD
from polysem.store.tables.behaviour import (
    TEXT_ARMS,
    TEXT_BRIDGE,
    TEXT_EFFECTS,
    TEXT_FIRING,
    TEXT_HORIZON,
    TEXT_TASKS,
    TEXTS,
)
from polysem.store.tables.defence import DEFENCES, PROTECTED
from polysem.store.tables.effects import (
    BUDGETS,
    DOSE_RESPONSE,
    EFFECTS,
    LATENT_SIMILARITY,
    MISSING,
    NEURON_EFFECTS,
    NEURON_SLOPES,
    PAIR_EFFECTS,
    PRESETS,
    RELIABILITY,
    SIMILARITY_MODEL,
    TOWARD,
    VECTOR_EFFECTS,
)
from polysem.store.tables.features import CLUSTERS, CONTEXTS, FEATURES, GLOSSES
from polysem.store.tables.guard import (
    GUARD_ALARMS,
    GUARD_EVASION,
    GUARD_FINDINGS,
    GUARD_MONITORS,
    GUARD_NEURONS,
    GUARD_RECOVERY,
)
from polysem.store.tables.hierarchy import ABSORPTION, META_CODE, RELATED_PAIRS, RELATIONS, SLOPES_WITHOUT
from polysem.store.tables.hierarchy import LEVELS as LEVELS
from polysem.store.tables.joint import (
    JOINT_ADDITIVITY,
    JOINT_FINDINGS,
    JOINT_LAYERS,
    JOINT_PAIRS,
    JOINT_SIZES,
    PLAN_DOSES,
    PLAN_EFFECTS,
    PLANS,
)
from polysem.store.tables.judgement import (
    CHECKS,
    EFFECT_SURVIVAL,
    EXPLAINED,
    FINDINGS,
    GRADED,
    HETEROGENEITY,
    PAIR_TESTS,
    POWER,
    REPLICATION,
    SPECIFICATION,
    VALIDITY,
    VARIANCE_COMPONENTS,
)
from polysem.store.tables.layers import (
    LAYER_BLOCKS,
    LAYER_DENSITY,
    LAYER_EDGES,
    LAYER_FINDINGS,
    LAYER_SPLICE,
    LAYER_TOKENS,
)
from polysem.store.tables.pairs import DENSITY, NEAR, PAIRS, PARTNERS, SPECTRUM
from polysem.store.tables.panel import JUDGED, JUDGEMENTS, WRITTEN_GLOSSES
from polysem.store.tables.plan import (
    CONCEPTS,
    COVARIATES,
    NEURON_DEGREES,
    NEURONS,
    PLAN,
    PROMPTS,
    SENSES,
    SIGNALS,
    SIMILARITIES,
)
from polysem.store.tables.replicates import MATCHING, REPLICATES, SHARED_SPANS, STABILITY, SURVIVAL
from polysem.store.tables.response import (
    COMPENSATION,
    DECOMPOSITION,
    GRADIENT_MATRIX,
    GRADIENT_PATH,
    METRICS,
    REPLICATED,
    RESPONSE,
)
from polysem.store.tables.side_effects import (
    CLEANER,
    DIRECTIONS,
    FORECASTS,
    REPAIRS,
    SCREENED,
    SIDE_EFFECTS,
    SIDE_EFFECTS_LINEAR,
    SIDE_EFFECTS_MOVED,
)
from polysem.store.tables.transfer import (
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
    "ABSORPTION", "ATLAS_DENSITY", "ATLAS_FIT", "ATLAS_SAMPLE", "ATLAS_TOP", "ATLAS_TOWARD", "BUDGETS",
    "CHECKS", "CLEANER", "CLUSTERS", "COMPENSATION", "CONCEPTS", "CONTEXTS", "COVARIATES", "DECOMPOSITION",
    "DEFENCES", "DENSITY", "DIRECTIONS", "DOSE_RESPONSE", "EFFECTS", "EFFECT_SURVIVAL", "EXPLAINED",
    "FEATURES", "FINDINGS", "FORECASTS", "GLOSSES", "GRADED", "GRADIENT_MATRIX", "GRADIENT_PATH",
    "GUARD_ALARMS", "GUARD_EVASION", "GUARD_FINDINGS", "GUARD_MONITORS", "GUARD_NEURONS", "GUARD_RECOVERY",
    "HETEROGENEITY", "HOMES", "JOINT_ADDITIVITY", "JOINT_FINDINGS", "JOINT_LAYERS", "JOINT_PAIRS",
    "JOINT_SIZES", "JUDGED", "JUDGEMENTS", "LATENT_SIMILARITY", "LAYER_BLOCKS", "LAYER_DENSITY",
    "LAYER_EDGES", "LAYER_FINDINGS", "LAYER_SPLICE", "LAYER_TOKENS", "LEVELS", "MATCHING", "META_CODE",
    "METRICS", "MISSING", "NEAR", "NEURONS", "NEURON_DEGREES", "NEURON_EFFECTS", "NEURON_SLOPES", "PAIRS",
    "PAIR_EFFECTS", "PAIR_TESTS", "PARTNERS", "PLAN", "PLANS", "PLAN_DOSES", "PLAN_EFFECTS", "POWER",
    "PRESETS", "PROMPTS", "PROTECTED", "RELATED_PAIRS", "RELATIONS", "RELIABILITY", "REPAIRS", "REPLICATED",
    "REPLICATES", "REPLICATION", "RESPONSE", "SCREENED", "SENSES", "SHARED_SPANS", "SIDE_EFFECTS",
    "SIDE_EFFECTS_LINEAR", "SIDE_EFFECTS_MOVED", "SIGNALS", "SIMILARITIES", "SIMILARITY_MODEL",
    "SLOPES_WITHOUT", "SPECIFICATION", "SPECTRUM", "STABILITY", "STAGES", "SURVIVAL", "TEXTS", "TEXT_ARMS",
    "TEXT_BRIDGE", "TEXT_EFFECTS", "TEXT_FIRING", "TEXT_HORIZON", "TEXT_TASKS", "TOWARD", "TRANSFER_COST",
    "TRANSFER_DIRECTIONS", "TRANSFER_EFFECTS", "TRANSFER_SETS", "TRANSFER_SHARED", "TRANSFER_STEERED",
    "TRANSFER_TARGETS", "TRANSFER_TRIALS", "TRIALS", "VALIDITY", "VARIANCE_COMPONENTS", "VECTOR_EFFECTS",
    "WRITTEN_GLOSSES", "Schema",
]  # fmt: skip

STAGES: dict[str, tuple[Schema, ...]] = {
    "features": (FEATURES, GLOSSES, CONTEXTS, CLUSTERS),
    "pairs": (PAIRS, DENSITY, SPECTRUM, PARTNERS),
    "kinship": (RELATIONS, ABSORPTION, META_CODE, RELATED_PAIRS),
    "plan": (
        *(PLAN, PROMPTS, NEURONS, NEURON_DEGREES),
        *(SIGNALS, SIMILARITIES, CONCEPTS, SENSES, COVARIATES, NEAR),
    ),
    "trials": (TRIALS,),
    "dictionaries": (REPLICATES, SURVIVAL, SHARED_SPANS, MATCHING, STABILITY),
    "response": (
        *(RESPONSE, DECOMPOSITION, METRICS, COMPENSATION),
        *(GRADIENT_PATH, GRADIENT_MATRIX, REPLICATED),
    ),
    "effects": (
        *(EFFECTS, PAIR_EFFECTS, TOWARD, VECTOR_EFFECTS, BUDGETS, DOSE_RESPONSE),
        *(MISSING, EXPLAINED, VALIDITY, SPECIFICATION, POWER, PRESETS),
        *(CHECKS, PAIR_TESTS, HETEROGENEITY, REPLICATION, EFFECT_SURVIVAL, VARIANCE_COMPONENTS),
        *(RELIABILITY, SIMILARITY_MODEL, LATENT_SIMILARITY, NEURON_EFFECTS, NEURON_SLOPES, FINDINGS),
        *(GRADED, SLOPES_WITHOUT),
    ),
    "atlas": (ATLAS_TOP, ATLAS_DENSITY, ATLAS_SAMPLE, ATLAS_FIT, ATLAS_TOWARD),
    "side-effects": (
        *(DIRECTIONS, SIDE_EFFECTS, SIDE_EFFECTS_MOVED, SIDE_EFFECTS_LINEAR),
        *(CLEANER, FORECASTS, SCREENED, REPAIRS),
    ),
    "layers": (LAYER_BLOCKS, LAYER_DENSITY, LAYER_EDGES, LAYER_TOKENS, LAYER_FINDINGS, LAYER_SPLICE),
    "joint": (
        *(JOINT_ADDITIVITY, JOINT_SIZES, JOINT_PAIRS, JOINT_LAYERS, JOINT_FINDINGS),
        *(PLANS, PLAN_DOSES, PLAN_EFFECTS),
    ),
    "generate": (TEXT_ARMS, TEXTS, TEXT_FIRING, TEXT_EFFECTS, TEXT_HORIZON, TEXT_BRIDGE, TEXT_TASKS),
    "guard": (GUARD_MONITORS, GUARD_ALARMS, GUARD_RECOVERY, GUARD_NEURONS, GUARD_EVASION, GUARD_FINDINGS),
    "judge": (JUDGED, JUDGEMENTS),
    "explain": (WRITTEN_GLOSSES,),
    "transfer": (
        *(TRANSFER_SHARED, TRANSFER_SETS, TRANSFER_TRIALS, TRANSFER_EFFECTS),
        *(TRANSFER_TARGETS, TRANSFER_STEERED, TRANSFER_DIRECTIONS, TRANSFER_COST),
    ),
    "defend": (DEFENCES, PROTECTED),
}
"""Stage name -> its tables: of a study, in the order in which it runs, then of what is made beside it."""
HOMES: dict[str, tuple[str, Schema]] = {
    schema.name: (stage, schema) for stage, some in STAGES.items() for schema in some
}
"""table -> the stage that writes it, and itself"""
