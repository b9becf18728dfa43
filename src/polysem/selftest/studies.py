"""A whole study of a world: the same stage functions, in the same order, as a study of a real model."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polysem.config import Study, parse_study
from polysem.pairs import PairMap, map_pairs
from polysem.plan import Plan, describe_plan, make_plan
from polysem.response import respond
from polysem.stats.effects import Effects, estimate
from polysem.stats.rows import parse_group
from polysem.trials import run_batches
from polysem.worlds.tables import WorldTables

_STUDY = """
name = "selftest"
seed = {seed}
[model]
ref = "world"
[[saes]]
ref = "world"
label = "world"
[plan]
dose_unit = "absolute"
positions = "last"
token_sets = ["in"]
"""


class WorldStudy(NamedTuple):
    """The tables of a study of a world."""

    study: Study
    pairs: dict[str, PairMap]
    plan: Plan
    trials: pa.Table
    effects: Effects
    response: dict[str, pa.Table]
    """what the gradient says; empty where it was not asked for"""

    def pair_effects(self, relation: str = "pair") -> dict[str, np.ndarray]:
        """Columns of PAIR_EFFECTS of one relation."""
        table = self.effects.pair_effects
        table = table.filter(pc.equal(table["relation"], relation))
        return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}

    def effect(self, contrast: str, **parts: str) -> dict[str, Any]:
        """The one row of EFFECTS of a contrast: log-odds, input tokens, all SAEs."""
        wanted = {"outcome": "logodds", "tokens": "in", "sae": "*"} | parts
        for row in self.effects.effects.to_pylist():
            seen = parse_group(row["group"])
            if row["contrast"] == contrast and wanted == {
                k: v for k, v in seen.items() if k not in ("locus", "dose")
            }:
                return row
        raise AssertionError(f"the effects table has no row {contrast} with {wanted}")


def study_of(
    parts: WorldTables, *, seed: int, response: bool = False, pairs: dict[str, Any] | None = None, **plan: Any
) -> WorldStudy:
    """Pairs, plan, trials and effects of a world.

    Args:
        response: also the linear response, decompositions and the compensation index.
        pairs: changes to the section `pairs`.
        **plan: changes to the section `plan`.
    """
    study = parse_study(_STUDY.format(seed=seed))
    study = study.model_copy(
        update={
            "plan": study.plan.model_copy(update=plan),
            "pairs": study.pairs.model_copy(update=pairs or {}),
        }
    )
    maps = {
        label: map_pairs(sae, parts.features, config=study.pairs, label=label)
        for label, sae in sorted(parts.saes.items())
    }
    tables = {
        name: pa.concat_tables([getattr(m, name) for m in maps.values()]) for name in ("pairs", "partners")
    }
    planned = make_plan(study, parts.features, tables, parts.prompts, parts.saes)
    batches = list(range(describe_plan(planned)["batches"]))
    trials = run_batches(
        planned.plan, planned.prompts, parts.features, parts.model, parts.saes, batches=batches
    )
    gradient = {}
    if response:
        gradient = respond(
            planned.plan, planned.prompts, trials, parts.features, parts.model, parts.saes, seed=study.seed
        )
    effects = estimate(planned.plan, trials, config=study.effects, seed=study.seed)
    return WorldStudy(study, maps, planned, trials, effects, gradient)
