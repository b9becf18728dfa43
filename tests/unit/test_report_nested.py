"""From which dose on the gradient no longer stands for the effect, as the report says it."""

import numpy as np
import pyarrow as pa
import pytest

from polysem.report.why import stops, validity_rows
from polysem.stats import POOLED
from polysem.stats.arms import collect_arms, join_trials
from polysem.stats.explain import validity
from polysem.store.tables import GRADIENT_PATH, VALIDITY
from support.synthetic import SyntheticStudy, synthetic_tables


def table(*rows):
    made = [
        {"sae": sae, "locus": "feature", "token_set": "in", "dose": dose, "kl": dose, "r2": r2, "n_arms": 9}
        | {"r2_path": path, "n_path": 4 if path is not None else 0}
        for sae, dose, r2, path in rows
    ]
    return VALIDITY.conform(pa.Table.from_pylist(made, schema=VALIDITY.arrow()))


def test_the_dose_at_which_it_stops_is_named_for_whom_it_stops():
    rows = (
        (POOLED, 0.01, 0.99, 1.0),
        (POOLED, 0.1, 0.95, 1.0),
        ("a", 0.01, 0.99, 1.0),
        ("a", 0.1, 0.7, 0.999),
    )
    said = stops(table(*rows), "feature")
    assert said.startswith(
        "At dose 0.01 the gradient still stands for the effects of every SAE. At dose 0.1 it no"
    )
    assert "for a (T-in, R² 0.700)" in said
    assert "all SAEs" not in said
    assert "at every dose of this study, up to 0.01" in stops(table(*rows[::2][:1], rows[2]), "feature")
    assert stops(table((POOLED, 0.1, 0.2, None)), "feature").startswith("At dose 0.1 it no longer does")
    assert stops(table((POOLED, 0.1, None, None)), "feature") == ""
    assert stops(table(*rows), "clamp") == ""
    shown = validity_rows(table(*rows, ("b", 0.1, 0.5, None)), "feature")
    assert [(r["r2_path"], r["n_path"], r["bad"]) for r in shown][-2:] == [
        ("0.999", "4", True),
        ("–", "–", True),
    ]


def test_the_path_average_is_judged_on_its_own_sample():
    study = synthetic_tables(SyntheticStudy(n_targets=4, n_prompts=4, doses=(0.2,), n_features=120))
    arms = collect_arms(join_trials(study["plan"]["plan"], study["trials"]["trials"]))
    label = arms.table["sae"][0].as_py()
    total = np.array([0.1, -0.2, 0.4, 0.3])
    rows = [
        {"sae": label, "locus": "feature", "token_set": "in", "dose": 0.2, "target": k, "source": 9}
        | {"total": v, "linear": 2 * v, "path": v + 0.01, "n_prompts": 2}
        for k, v in enumerate(total.tolist())
    ]
    path = GRADIENT_PATH.conform(pa.Table.from_pylist(rows, schema=GRADIENT_PATH.arrow()))
    found = validity(arms, np.zeros(arms.table.num_rows), path).to_pylist()
    expected = 1 - 4 * 0.01**2 / ((total - total.mean()) ** 2).sum()
    for r in found:
        mine = r["token_set"] == "in" and r["sae"] in (POOLED, label)
        assert r["n_path"] == (4 if mine else 0)
        assert r["r2_path"] == (pytest.approx(expected) if mine else None)
