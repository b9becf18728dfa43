"""What may not change an effect, and what must scale it."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polysem.config import EffectsConfig
from polysem.stats import estimate
from polysem.stats.regress import clustered_ols
from support.synthetic import SyntheticStudy, synthetic_tables

SMALL = SyntheticStudy(n_targets=4, n_prompts=4, doses=(0.2,), n_features=80, sources_per_bin=2)


@pytest.fixture(scope="module")
def tables():
    made = synthetic_tables(SMALL)
    return made["plan"]["plan"], made["trials"]["trials"]


@pytest.fixture(scope="module")
def effects(tables):
    return estimate(*tables, config=EffectsConfig(), seed=0).tables()


def test_order_of_rows_changes_no_bit(tables, effects):
    rng = np.random.default_rng(0)
    shuffled = [t.take(pa.array(rng.permutation(t.num_rows))) for t in tables]
    again = estimate(*shuffled, config=EffectsConfig(), seed=0).tables()
    for name, table in effects.items():
        assert again[name].equals(table, check_metadata=True), name


def test_target_and_source_numbers_are_only_names(tables, effects):
    plan, trials = tables
    other = plan
    for column in ("target", "source", "pair_target", "pair_source"):
        renamed = pc.subtract(1000, plan[column]).cast(pa.int32())
        other = other.set_column(other.column_names.index(column), column, renamed)
    again = estimate(other, trials, config=EffectsConfig(), seed=0).tables()["effects"]
    for name in ("estimate", "lo", "hi"):
        a, b = (t[name].to_numpy(zero_copy_only=False) for t in (effects["effects"], again))
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_an_even_change_is_no_effect(tables, effects):
    # The same amount added to the change at +dose and at -dose: what any direction does at second order.
    plan, trials = tables
    even = pc.add(trials["logodds_edit"], 3.0)
    moved = trials.set_column(trials.column_names.index("logodds_edit"), "logodds_edit", even)
    again = estimate(plan, moved, config=EffectsConfig(), seed=0).pair_effects
    np.testing.assert_allclose(
        again["logodds"].to_numpy(), effects["pair_effects"]["logodds"].to_numpy(), atol=1e-12
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(0.01, 100))
def test_units_of_outcome_and_regressor_scale_slope_and_interval(seed, a, b):
    rng = np.random.default_rng(seed)
    clusters = rng.integers(0, 6, size=(40, 2))
    x = rng.standard_normal(40)
    y = x + rng.standard_normal(40) + rng.standard_normal(6)[clusters[:, 0]]
    one = clustered_ols(y, np.column_stack([np.ones(40), x]), clusters, level=0.95)
    two = clustered_ols(a * y, np.column_stack([np.ones(40), b * x]), clusters, level=0.95)
    for name in ("estimate", "se", "lo", "hi"):
        np.testing.assert_allclose(getattr(two, name)[1], getattr(one, name)[1] * a / b, rtol=1e-8)
    np.testing.assert_allclose(two.p[1], one.p[1], rtol=1e-6, atol=1e-12)
