"""Degree against effect, neuron by neuron: planted truths, signs, the rotated basis, and what is said where nothing is."""

import numpy as np
import pyarrow as pa
import pytest

from polysem.seeds import rng_for
from polysem.stats import estimate
from polysem.store.tables import NEURON_DEGREES, NEURONS
from unit.test_stats import CONFIG, outcome, planned, tables

MEAN = 0.5
PROMPTS = ("p0", "p1", "p2", "p3", "s0")


def world(*, slope=0.0, rotated=0.0, by_variance=0.0, n=40, seed=0):
    """log2 of the KL rises by `slope` per doubling of 1 + degree (`rotated` in the turned basis) and by `by_variance` per
    doubling of the variance, which goes with degree. Amplifying moves the tokens by +0.3 where the value is
    positive and by -0.3 where it is negative; taking away the other way."""
    rng = rng_for(seed, "neurons")
    rows, known = [], []
    for basis, relation in ((0, "single_neuron"), (1, "turned_neuron")):
        for neuron in range(n):
            degree = int(2 ** rng.uniform(0, 9.5)) - 1 if neuron else 700
            variance = 2.0 ** (0.5 * np.log2(1 + degree) + rng.normal(0, 1))
            fixed = (rotated if basis else slope) * np.log2(1 + degree) + by_variance * np.log2(variance)
            fixed += rng.normal(0, 0.3)
            known.append(
                {
                    "sae": "A",
                    "kind": "mlp",
                    "basis": basis,
                    "neuron": neuron,
                    "degree": degree,
                    "n_features": degree,
                }
                | {"variance": variance, "mean": MEAN, "write_norm": 2.0 ** rng.normal(), "logit_norm": 1.0}
            )
            for draw in (2 * neuron, 2 * neuron + 1):
                for prompt in PROMPTS:
                    coordinate = MEAN + rng.choice([-1.0, 1.0]) * rng.uniform(0.6, 2)
                    for dose in (-1.0, 1.0):
                        row = planned(
                            3, None if basis else 100 + neuron, dose=dose, prompt=prompt, relation=relation,
                            locus="mlp_neuron", draw=draw, interference_bin=int(np.log2(1 + degree)),
                            dose_unit="neuron_factor", split="select" if prompt == "s0" else "confirm",
                        )  # fmt: skip
                        away = coordinate - (MEAN if draw % 2 else 0.0)
                        change = 0.3 * dose * np.sign(away) + 0.05 * rng.standard_normal()
                        kl = 1e-4 * 2.0 ** (fixed + 0.2 * rng.standard_normal())
                        rows.append((row, outcome(row, change, kl=kl) | {"coordinate": coordinate}))
    largest = {"sae": "A", "kind": "mlp", "quantity": "largest_degree", "value": 700.0, "null_mean": 150.0}
    largest |= {"null_lo": 100.0, "null_hi": 200.0, "p": 0.05, "n_rotations": 39}
    given = {
        "neurons": pa.Table.from_pylist(known, schema=NEURONS.arrow()),
        "neuron_degrees": pa.Table.from_pylist([largest], schema=NEURON_DEGREES.arrow()),
    }
    return estimate(*tables(rows), config=CONFIG, seed=0, neurons=given)


def terms(effects, *, operation="mask", outcome="kl"):
    rows = effects.neuron_slopes.to_pylist()
    return {r["term"]: r for r in rows if (r["operation"], r["outcome"]) == (operation, outcome)}


LOG2 = np.log10(2)


@pytest.mark.parametrize("operation", ["mask", "ablate", "amplify"])
def test_the_slope_on_degree_is_the_planted_one_and_rotation_takes_it_away(operation):
    found = terms(world(slope=0.5), operation=operation)
    for term, planted in (("degree", 0.5), ("degree_adjusted", 0.5), ("degree_rotated", 0.0)):
        row = found[term]
        assert row["lo"] < planted * LOG2 < row["hi"]
        assert row["unit"] == "log10 nats per doubling"
    assert found["degree_minus_rotated"]["lo"] > 0
    assert found["degree_minus_rotated"]["n_neurons"] == 80
    both = terms(world(slope=0.5, rotated=0.5), operation=operation)
    assert both["degree_rotated"]["lo"] > 0
    assert both["degree_minus_rotated"]["lo"] < 0 < both["degree_minus_rotated"]["hi"]


def test_what_variance_does_is_not_the_degrees_doing():
    found = terms(world(by_variance=0.8))
    assert found["degree"]["lo"] > 0
    assert found["degree_adjusted"]["lo"] < 0 < found["degree_adjusted"]["hi"]


def test_bins_and_both_kinds_of_super_neurons():
    effects = world(slope=0.5)
    found = terms(effects)
    bins = {k: r for k, r in found.items() if k.startswith("bin:")}
    assert sum(r["n_neurons"] for r in bins.values()) == 40
    middle = [
        r["estimate"] for _, r in sorted(bins.items(), key=lambda x: int(x[0][4:])) if r["n_neurons"] > 3
    ]
    assert middle == sorted(middle)
    rows = [r for r in effects.neuron_effects.to_pylist() if r["operation"] == "mask" and r["basis"] == 0]
    assert {r["super"] for r in rows if r["degree"] > 500} == {True}
    assert {r["super_scale_free"] for r in rows if r["degree"] <= 200} == {False}
    assert {r["super_scale_free"] for r in rows if r["degree"] > 200} == {True}
    assert found["super_scale_free"]["estimate"] > 0


def test_tokens_are_judged_the_way_that_the_neuron_points():
    """Half of the values are negative; without their sign the mean would be nothing."""
    for row in world().neuron_effects.to_pylist():
        assert row["tied"] == pytest.approx(0.3, abs=0.12)
        assert row["n_prompts"] == 4  # confirm prompts alone
    for operation in ("mask", "ablate", "amplify"):
        for term, row in terms(world(), operation=operation, outcome="tied").items():
            if term.startswith("bin:") and row["lo"] is not None:
                assert row["lo"] > 0


def test_neurons_one_by_one_enter_no_contrast_of_pairs():
    effects = world()
    assert effects.effects.num_rows == effects.pair_effects.num_rows == effects.dose_response.num_rows == 0
    assert {r["relation"] for r in effects.missing.to_pylist()} == {"single_neuron", "turned_neuron"}


def test_every_term_is_a_number_or_a_reason():
    for n in (0, 1, 2, 5):
        for row in world(n=n).neuron_slopes.to_pylist() if n else []:
            assert (row["estimate"] is not None) or row["note"], row
            assert (row["lo"] is not None) or row["note"], row


def test_size_of_the_slope_on_degree():
    rejected = [terms(world(n=14, seed=s))["degree_adjusted"]["p"] < 0.05 for s in range(150)]
    assert np.mean(rejected) <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 150)
