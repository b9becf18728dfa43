"""The mixed model against lme4, and replication across SAEs."""

import csv
from pathlib import Path

import numpy as np
import pytest

from polysem.seeds import rng_for
from polysem.stats.mixed import mixed_model
from polysem.stats.replication import match_features, replicate

FOLDER = Path(__file__).resolve().parents[1] / "references"
LME4_RTOL = 1e-3
"""two optimisers of one REML criterion"""


def read(name):
    with (FOLDER / name).open(newline="") as file:
        return [{k: v.strip() for k, v in row.items()} for row in csv.DictReader(file)]


def test_mixed_model_is_lme4s():
    rows = [r for r in read("inputs.csv") if r["case"] == "crossed"]
    y, x, z = (np.array([float(r[n]) for r in rows]) for n in ("y", "x", "z"))
    clusters = np.array([[int(r["target"]), int(r["source"])] for r in rows])
    fit = mixed_model(y, np.column_stack([np.ones(len(y)), x, z]), clusters)
    theirs = read("mixed.csv")
    assert fit.reason == ""
    np.testing.assert_allclose(fit.estimate, [float(r["estimate"]) for r in theirs], rtol=LME4_RTOL)
    np.testing.assert_allclose(fit.se, [float(r["se"]) for r in theirs], rtol=5 * LME4_RTOL)
    for name in ("sd_target", "sd_source", "sd_residual"):
        assert getattr(fit, name) == pytest.approx(float(theirs[0][name]), rel=5 * LME4_RTOL)


def test_mixed_model_says_what_is_wrong():
    clusters = np.column_stack([np.repeat(np.arange(6), 4), np.tile(np.arange(4), 6)])
    y = rng_for(0, "mixed").standard_normal(24)
    X = np.column_stack([np.ones(24), np.arange(24.0)])
    assert "too few" in mixed_model(y[:5], X[:5], clusters[:5]).reason
    assert "cannot be told apart" in mixed_model(y, np.ones((24, 2)), clusters).reason
    assert (
        "at most 600" in mixed_model(np.tile(y, 30), np.tile(X, (30, 1)), np.tile(clusters, (30, 1))).reason
    )
    none = mixed_model(y - y.reshape(6, 4).mean(1).repeat(4), X, clusters)  # no target effect is left
    assert "variance of targets is estimated as zero" in none.remark or "converge" in none.remark


def test_features_are_matched_across_seeds():
    rng = rng_for(0, "match")
    W = rng.standard_normal((40, 24))
    order = rng.permutation(40)
    other = W[order] * rng.uniform(0.5, 2, (40, 1)) + 0.02 * rng.standard_normal((40, 24))
    other[np.flatnonzero(order < 10)] = rng.standard_normal((10, 24))  # a quarter has no counterpart
    found = match_features(W, other)
    pairs = dict(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert {i: int(np.flatnonzero(order == i)[0]) for i in range(10, 40)} == {
        i: j for i, j in pairs.items() if i >= 10
    }
    assert found.share == pytest.approx(0.75, abs=0.05)


def test_replication_recovers_the_correlation_and_says_when_there_is_none():
    rng = rng_for(0, "replicate")
    clusters = np.column_stack([np.repeat(np.arange(20), 5), np.arange(100) % 33 + 50])
    truth = rng.standard_normal(100)
    first, second = truth + 0.5 * rng.standard_normal(100), truth + 0.5 * rng.standard_normal(100)
    found = replicate(first, second, clusters, level=0.95, rng=rng)
    assert found.lo < 0.8 < found.hi
    assert found.sign_lo > 0.6
    null = replicate(first, rng.permutation(second), clusters, level=0.95, rng=rng)
    assert null.lo < 0 < null.hi
    assert (
        "5 pairs of 3 targets" in replicate(first[:4], second[:4], clusters[:4], level=0.95, rng=rng).reason
    )
