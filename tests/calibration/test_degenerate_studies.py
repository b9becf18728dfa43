"""Whole studies of degenerate data, through every table of effects: a number, or words that say why there is none. Warnings are
errors. Single estimators: `unit/test_stats_degenerate.py`."""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from polysem.config import EffectsConfig
from polysem.paper.presets import PaperEstimates
from polysem.stats import estimate
from polysem.store.tables import PLAN, TRIALS
from support.synthetic import SyntheticStudy, synthetic_tables

WORLD = SyntheticStudy(
    n_features=80, n_targets=4, n_prompts=4, doses=(0.1, 0.2), sources_per_bin=2, preset="both"
)


@pytest.fixture(scope="module")
def study():
    made = synthetic_tables(WORLD)
    return made["plan"]["plan"], made["trials"]["trials"]


def changed(trials, law):
    """Trials whose edited log-odds, cosine and mass are `law` of those before and after."""
    for name in ("logodds", "cosine", "mass"):
        base, edit = (trials[f"{name}_{when}"].to_numpy() for when in ("base", "edit"))
        column = pa.array(law(base, edit), pa.float64(), from_pandas=True)
        trials = trials.set_column(trials.column_names.index(f"{name}_edit"), f"{name}_edit", column)
    return trials


def failing(trials):
    outcomes = [c.name for c in TRIALS.columns if c.nullable and c.name != "reason"]
    for name, value in {"status": "failed", "reason": "non_finite_logits"}.items():
        trials = trials.set_column(trials.column_names.index(name), name, pa.array([value] * trials.num_rows))
    for name in outcomes:
        kind = TRIALS.arrow().field(name).type
        trials = trials.set_column(trials.column_names.index(name), name, pa.nulls(trials.num_rows, kind))
    return trials


def constant(table, name, value):
    kind = table.schema.field(name).type
    return table.set_column(
        table.column_names.index(name), name, pa.repeat(pa.scalar(value, kind), table.num_rows)
    )


def few(plan, **wanted):
    for name, values in wanted.items():
        plan = plan.filter(pc.is_in(plan[name], pa.array(values, plan.schema.field(name).type)))
    return plan


def given(plan):
    """Every other pair as the push of a vector of one's own."""
    rows = plan.to_pylist()
    for row in rows:
        if row["relation"] == "pair" and row["locus"] == "feature" and row["source"] % 2 == 0:
            row |= {"relation": "given", "source_sae": f"mine {row['source']}"}
    return pa.Table.from_pylist(rows, schema=plan.schema)


STUDIES: Mapping[str, Callable[[pa.Table, pa.Table], tuple[pa.Table, pa.Table]]] = {
    "as planted": lambda p, t: (p, t),
    "nothing changes": lambda p, t: (p, changed(t, lambda base, edit: base)),
    "everything changes alike": lambda p, t: (p, changed(t, lambda base, edit: base + 0.25)),
    "changes of 1e-12": lambda p, t: (p, changed(t, lambda base, edit: 1e-12 * (edit - base) + 0 * base)),
    "changes of 1e12": lambda p, t: (p, changed(t, lambda base, edit: base + 1e12 * (edit - base))),
    "no trial was run": lambda p, t: (p, TRIALS.empty()),
    "every trial failed": lambda p, t: (p, failing(t)),
    "nothing is planned": lambda p, t: (PLAN.empty(), TRIALS.empty()),
    "interference is constant": lambda p, t: (constant(p, "interference", 0.3), t),
    "similarity is constant": lambda p, t: (constant(p, "similarity", 0.1), t),
    "interference is not known": lambda p, t: (
        constant(p, "interference", None),
        constant(t, "alignment", None),
    ),
    "one target": lambda p, t: (few(p, target=p["target"].to_pylist()[:1]), t),
    "pairs alone": lambda p, t: (few(p, relation=["pair"]), t),
    "controls alone": lambda p, t: (few(p, relation=["random_feature", "random_direction"]), t),
    "one prompt": lambda p, t: (few(p, prompt_id=p["prompt_id"].to_pylist()[:1]), t),
    "select prompts alone": lambda p, t: (few(p, split=["select"]), t),
    "confirm prompts alone": lambda p, t: (few(p, split=["confirm"]), t),
    "vectors of one's own": lambda p, t: (given(p), t),
    "vectors alone": lambda p, t: (few(given(p), relation=["given"]), t),
    "vectors change nothing": lambda p, t: (given(p), changed(t, lambda base, edit: base)),
    "one sign": lambda p, t: (p.filter(pc.greater(p["dose"], 0)), t),
}
SAID = {"effects": ("estimate", "lo"), "presets": ("estimate", "lo"), "checks": ("p",), "explained": ("r2",)}
"""columns that may be null only where the note says why"""


@pytest.mark.parametrize("kind", STUDIES)
def test_studies_give_numbers_or_notes(study, kind):
    plan, trials = STUDIES[kind](*study)
    trials = trials.filter(pc.is_in(trials["trial_id"], plan["trial_id"].combine_chunks()))
    both = [PaperEstimates("both")]
    made = estimate(
        plan, trials, config=EffectsConfig(margin=0.1), seed=0, response={}, checks=True, beside=both
    ).tables()
    for name, columns in SAID.items():
        for row in made[name].to_pylist():
            assert row["note"] or all(row[c] is not None for c in columns), (name, row)
    for name, table in made.items():
        for column in table.schema:
            if pa.types.is_floating(column.type):
                assert not np.isnan(table[column.name].drop_null().to_numpy()).any(), (name, column.name)
