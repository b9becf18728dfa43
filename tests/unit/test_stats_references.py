"""Against R (`tests/references`, with the script that made the numbers) and against statsmodels."""

import csv
from pathlib import Path

import numpy as np
import pytest

from polysem.errors import NumericsError
from polysem.seeds import rng_for
from polysem.stats.multiple import adjust_p, equivalence_p
from polysem.stats.permute import qap
from polysem.stats.regress import clustered_ols

FOLDER = Path(__file__).resolve().parents[1] / "references"


def read(name):
    with (FOLDER / name).open(newline="") as file:
        return [{k: v.strip() for k, v in row.items()} for row in csv.DictReader(file)]


def design(case):
    rows = [r for r in read("inputs.csv") if r["case"] == case]
    y, x, z = (np.array([float(r[name]) for r in rows]) for name in ("y", "x", "z"))
    clusters = np.array([[int(r["target"]), int(r["source"])] for r in rows])
    return y, np.column_stack([np.ones(len(y)), x, z]), clusters


@pytest.mark.parametrize("case", ["crossed", "shared"])
def test_clustered_variances_are_those_of_sandwich_and_clubsandwich(case):
    y, X, clusters = design(case)
    expected = [r for r in read("regressions.csv") if r["case"] == case]
    by = {
        name: np.array([float(r[name]) for r in expected])
        for name in expected[0]
        if name not in ("case", "term")
    }
    fit = clustered_ols(y, X, clusters, level=0.95, correction="crv1")
    np.testing.assert_allclose(fit.estimate, by["estimate"], rtol=1e-10)
    two_way = np.maximum.reduce([by["both"], by["target"], by["source"]])
    np.testing.assert_allclose(fit.se**2, two_way, rtol=1e-8)
    np.testing.assert_allclose(by["target"], by["cr1s"], rtol=1e-8)  # two R packages agree on the factor
    np.testing.assert_allclose(by["pyfixest"], by["both"], rtol=1e-8)
    dyadic = clustered_ols(y, X, clusters, level=0.95, errors="dyadic", correction="crv1")
    expected = np.maximum.reduce([by["dyadic"], by["target"], by["source"]])
    np.testing.assert_allclose(dyadic.se**2, expected, rtol=1e-6)
    assert case == "crossed" or (expected == by["dyadic"]).any()  # the dyadic term is seen where it matters


@pytest.mark.parametrize("case", ["crossed", "shared"])
def test_jackknife_terms_are_those_of_clubsandwich(case):
    y, X, clusters = design(case)
    rows = [r for r in read("regressions.csv") if r["case"] == case]
    terms = [np.array([float(r[f"cr3_{name}"]) for r in rows]) for name in ("target", "source", "both")]
    # clubSandwich's CR3 lacks the factor (G - 1) / G of the jackknife.
    sizes = [len(np.unique(clusters[:, 0])), len(np.unique(clusters[:, 1])), len(np.unique(clusters, axis=0))]
    target, source, both = (v * (g - 1) / g for v, g in zip(terms, sizes, strict=True))
    expected = np.maximum.reduce([target + source - both, target, source])
    np.testing.assert_allclose(clustered_ols(y, X, clusters, level=0.95).se ** 2, expected, rtol=1e-8)


def test_adjusted_p_values_are_those_of_p_adjust_and_statsmodels():
    from statsmodels.stats.multitest import multipletests

    rows = read("adjusted.csv")
    p = np.array([float(r["p"]) for r in rows])
    for ours, theirs in (("holm", "holm"), ("bh", "fdr_bh"), ("by", "fdr_by")):
        adjusted = adjust_p(p, method=ours)
        np.testing.assert_allclose(adjusted, [float(r[ours]) for r in rows], rtol=1e-12, atol=0)
        np.testing.assert_allclose(adjusted, multipletests(p, method=theirs)[1], rtol=1e-12, atol=0)
    assert adjust_p(np.empty(0), method="bh").shape == (0,)
    with pytest.raises(NumericsError, match="must lie in"):
        adjust_p(np.array([0.1, np.nan]), method="holm")


def test_equivalence_is_two_one_sided_tests():
    from statsmodels.stats.weightstats import DescrStatsW

    sample = rng_for(0, "tost").normal(0.02, 0.3, 50)
    data = DescrStatsW(sample)
    expected = data.ttost_mean(-0.15, 0.15)[0]
    ours = equivalence_p(float(sample.mean()), float(data.std_mean), 49.0, margin=0.15)
    assert ours == pytest.approx(expected, rel=1e-10)
    assert np.isnan(equivalence_p(0.0, float("nan"), 3.0, margin=0.1))


def test_qap_agrees_with_sna():
    rows = read("matrix.csv")
    n = max(int(r["i"]) for r in rows)
    y, x, z = (np.full((n, n), np.nan) for _ in range(3))
    for r in rows:
        at = int(r["i"]) - 1, int(r["j"]) - 1
        y[at], x[at], z[at] = float(r["y"]), float(r["x"]), float(r["z"])
    for name, own, other in (("x", x, z), ("z", z, x)):
        theirs = next(r for r in read("qap.csv") if r["term"] == name)
        ours = qap(
            y, own, given=(other,), draws=4000, rng=rng_for(0, name), nodes="one_set", statistic="classical"
        )
        p = float(theirs["p"])
        assert ours.estimate == pytest.approx(float(theirs["estimate"]), rel=1e-9)
        assert abs(ours.p - p) < 3 * np.sqrt(2 * p * (1 - p) / 4000)  # both sides drew 4,000
