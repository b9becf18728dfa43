"""Second opinions: the mixed model against lme4, permutations, single pairs, other SAEs, missing trials."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from polysem.linear.matching import match_features
from polysem.report.sure import check_rows, pair_sentences, replication_sentences
from polysem.seeds import rng_for
from polysem.stats import POOLED, mixed
from polysem.stats.arms import collect_arms, join_trials
from polysem.stats.checks import checks_of, qap_checks
from polysem.stats.contrasts import sign_agreement, slopes
from polysem.stats.discovery import MAX_SHARE, conformal_p, nameable, pair_tests
from polysem.stats.mixed import mixed_model
from polysem.stats.multiple import adjust_p
from polysem.stats.replication import replicate, replications
from polysem.stats.rows import View
from polysem.store.tables import CHECKS, GRADIENT_MATRIX, PAIR_TESTS, REPLICATED
from support.synthetic import SyntheticStudy, synthetic_tables

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
    assert "variance of targets is estimated as zero" in none.remark
    assert none.sd_target == 0.0


def test_the_mixed_models_criterion_is_its_definition_and_its_top_is_the_highest():
    """Dense REML, and a grid over both ratios in which nothing lies higher."""
    rng = rng_for(0, "criterion")
    clusters = np.column_stack([np.repeat(np.arange(7), 5), rng.integers(0, 9, 35)])
    X = np.column_stack([np.ones(35), rng.standard_normal(35)])
    Z = [np.eye(9)[column] for column in clusters.T]
    y = Z[0] @ rng.standard_normal(9) + rng.standard_normal(35)
    y /= y.std()

    def dense(a, b):
        V = np.eye(35) + a * Z[0] @ Z[0].T + b * Z[1] @ Z[1].T
        inverse = np.linalg.inv(V)
        M = X.T @ inverse @ X
        P = inverse - inverse @ X @ np.linalg.inv(M) @ X.T @ inverse
        return np.linalg.slogdet(V)[1] + np.linalg.slogdet(M)[1] + 33 * np.log(y @ P @ y)

    criterion, at, step = mixed._Criterion(y, X, clusters), np.array([0.4, 0.9]), 1e-6
    value, gradient = criterion(at)
    assert value == pytest.approx(dense(*at), rel=1e-12)
    numeric = [(dense(*(at + d)) - dense(*(at - d))) / (2 * step) for d in step * np.eye(2)]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5)
    fit = mixed_model(y, X, clusters)
    top = dense((fit.sd_target / fit.sd_residual) ** 2, (fit.sd_source / fit.sd_residual) ** 2)
    grid = [0.0, *np.geomspace(1e-4, 1e3, 22)]
    assert top <= min(dense(a, b) for a in grid for b in grid) + 1e-9


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


# ---- second opinions as tables


@pytest.fixture(scope="module")
def study():
    return synthetic_tables(
        SyntheticStudy(n_targets=10, n_prompts=4, doses=(0.2,), n_features=160, failures=0.0)
    )


@pytest.fixture(scope="module")
def view(study):
    arms = collect_arms(join_trials(study["plan"]["plan"], study["trials"]["trials"]))
    return View.of(arms, locus="feature", dose=0.2, level=0.95, model="", caveat="", margin=0.1)


def check(view, name, tokens="in", rows=()):
    found = list(checks_of(view, list(rows)))
    return next(r for r in found if (r["check"], r["token_set"]) == (name, tokens))


def test_the_mixed_model_stands_beside_the_declared_slope(view):
    rows = list(slopes(view, sae=POOLED, tokens="in", outcome="logodds"))
    found, declared = check(view, "mixed_model", rows=rows), rows[0]
    assert found["verdict"] == "agrees"
    assert found["lo"] < declared["estimate"] < found["hi"]
    assert found["note"].startswith("SD of targets")
    turned = [declared | {"estimate": -declared["estimate"]}]
    assert check(view, "mixed_model", rows=turned)["verdict"] == "disagrees"
    assert check(view, "mixed_model", rows=[declared | {"p": 0.4}])["verdict"] == "disagrees"
    assert check(view, "mixed_model")["verdict"] == "none"  # nothing to agree with


def test_a_mixed_model_that_does_not_converge_gives_words(view, monkeypatch):
    monkeypatch.setattr(mixed, "_EXACT", {"maxiter": 1})
    found = check(view, "mixed_model", rows=slopes(view, sae=POOLED, tokens="in", outcome="logodds"))
    assert "did not converge" in found["note"]
    assert found["verdict"] == "none"
    assert [found[n] for n in ("estimate", "lo", "hi", "p")] == [None] * 4


def test_constant_interference_gives_no_mixed_model(view):
    flat = np.where(view.columns["relation"] == "pair", 0.3, view.columns["interference"])
    found = check(replace(view, columns={**view.columns, "interference": flat}), "mixed_model")
    assert found["note"] == "interference does not vary"
    assert found["estimate"] is None


def test_missing_trials_that_depend_on_the_arm_are_said(view):
    c = view.columns
    pair = c["relation"] == "pair"

    def said(lacking):
        ok = np.where(lacking, 0.0, c["n_planned"])
        return check(replace(view, columns={**c, "n_ok": ok}), "missing")

    assert check(view, "missing")["note"] == "no trial is missing"
    rng = rng_for(0, "missing")
    assert said(rng.random(len(pair)) < 0.2)["verdict"] == "random"
    controls = said(pair & (rng.random(len(pair)) < 0.4))
    assert controls["verdict"] == "not_random"
    assert "0.0 % of all others" in controls["note"]
    # As many among controls, but of the pairs only those of strong interference.
    strong = np.abs(c["interference"]) > np.median(np.abs(c["interference"][pair]))
    share = float((pair & strong).sum() / pair.sum())
    even = np.where(pair, strong, rng.random(len(pair)) < share)
    assert said(even)["verdict"] == "not_random"
    words = check_rows(CHECKS.of([said(even)]), "feature")[0]["answer"]
    assert "not missing at random" in words


def test_pairs_that_all_agree_have_no_interval(view):
    """Perfect separation: every effect has the sign of its interference, be it positive or negative."""
    signs = np.where(rng_for(0, "signs").random(len(view.place)) < 0.5, -1.0, 1.0)
    signed = signs * (0.1 + np.abs(view.columns["interference"]))
    columns = {**view.columns, "interference": signed, "logodds": signed}
    row = sign_agreement(replace(view, columns=columns), sae=POOLED, tokens="in", outcome="logodds")
    assert row["estimate"] == pytest.approx(1.0, abs=1e-12)
    assert row["lo"] is row["hi"] is row["p"] is row["p_equivalent"] is None
    assert "no variance" in row["note"]
    assert "all agree" in row["note"]


def test_relabelling_finds_the_angle_and_nothing_where_there_is_nothing(study):
    rng = rng_for(0, "matrix")
    G, own = 0.2 * rng.standard_normal((12, 40)), rng.standard_normal((2, 40))
    quiet = own[0][:12, None] + own[1] + 0.3 * rng.standard_normal(G.shape)
    for slope, verdict in ((3.0, "related"), (0.0, "unrelated")):
        rows = [
            {"sae": "a", "token_set": "in", "target": j, "source": i}
            | {"interference": float(G[j, i]), "linear": float(slope * G[j, i] + quiet[j, i])}
            for j, i in np.ndindex(*G.shape)
        ]
        table = GRADIENT_MATRIX.conform(pa.Table.from_pylist(rows, schema=GRADIENT_MATRIX.arrow()))
        (found,) = qap_checks(table, level=0.95, seed=1, draws=199)
        assert found["verdict"] == verdict
        assert found["estimate"] == pytest.approx(slope, abs=0.3)
        assert found["n"] == 12 * 39
        (few,) = qap_checks(table, level=0.95, seed=1, draws=9)
        assert few["verdict"] == "none"
        assert few["p"] is None
        assert "at least 19" in few["note"]


# ---- single pairs


def test_conformal_p_by_hand():
    p = conformal_p(np.array([5.0, 0.5, 2.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(p, [1 / 5, 1.0, 4 / 5])
    assert nameable(200, 99, alpha=0.05).together == 40
    assert nameable(10, 9999, alpha=0.05).together == 1


def test_what_it_takes_to_name_a_pair_is_what_the_adjustment_does():
    """At the number that is said to be needed Benjamini-Hochberg names the pairs, with one random feature less not."""
    for n in (10, 40, 325):
        able = nameable(n, 30, alpha=0.05)
        most = max(1, int(MAX_SHARE * n))
        for nulls, found in ((able.needed, most), (able.needed_for_one, 1)):
            for fewer in (0, 1):
                p = np.ones(n)
                p[:found] = 1 / (nulls - fewer + 1)
                assert ((adjust_p(p, method="bh") <= 0.05 + 1e-12).sum() == found) == (not fewer), (n, nulls)
        assert nameable(n, able.needed, alpha=0.05).testable
        assert not nameable(n, able.needed - 1, alpha=0.05).testable
    assert nameable(325, 30, alpha=0.05).needed_for_one == 6499


def test_single_pairs_keep_the_share_of_false_finds(view):
    """Targets differ in potency, a tenth of the pairs is real: false finds by BH stay below their share."""
    c = view.columns
    pair = np.flatnonzero((c["relation"] == "pair") & (c["token_set"] == "in"))
    null = (c["relation"] == "random_feature") & (c["token_set"] == "in")
    assert null.sum() >= 20
    shares, finds = [], []
    for k in range(200):
        rng = rng_for(k, "single pairs")
        potency = np.exp(0.5 * rng.standard_normal(int(view.clusters.max()) + 1))
        y = potency[view.clusters[:, 0]] * rng.standard_normal(len(view.clusters))
        real = rng.random(len(y)) < 0.1
        y = np.where(real, 30.0 * np.sign(y), y)
        y[null & real] = rng.standard_normal(int((null & real).sum()))
        rows = pair_tests(replace(view, columns={**c, "logodds": y}))
        mine = [r for r in rows if r["token_set"] == "in"]
        assert len(mine) == len(pair)
        assert all(r["p"] <= r["q_bh"] <= r["q_by"] for r in mine)
        names = {(r["sae"], r["target"], r["source"]): r["q_bh"] <= 0.2 for r in mine}
        keys = zip(c["sae"][pair], c["target"][pair].astype(int), c["source"][pair].astype(int), strict=True)
        claimed = np.array([names[key] for key in keys])
        shares.append((claimed & ~real[pair]).sum() / max(1, claimed.sum()))
        finds.append(claimed.sum())
    assert np.mean(shares) <= 0.2 + 3 * np.std(shares) / np.sqrt(len(shares))
    assert np.mean(finds) > 0.5  # real pairs are found


def test_what_a_study_cannot_name_is_said(view):
    table = PAIR_TESTS.of(pair_tests(view))
    rows = table.slice(0, 0)
    assert list(pair_sentences(rows, "feature", level=0.95)) == []
    quiet = table.set_column(
        table.column_names.index("q_bh"), table.schema.field("q_bh"), pa.array(np.ones(table.num_rows))
    )
    for said in pair_sentences(quiet, "feature", level=0.95):
        assert said.startswith("Not testable with this plan")
        assert "0 pairs" not in said  # that none was named says nothing


# ---- another SAE


def test_replication_in_words():
    rng = rng_for(0, "replicated")
    rows = []
    for j, i in np.ndindex(12, 12):
        shared = float(rng.standard_normal())
        key = {"sae": "a", "other": "b", "token_set": "in", "target": j, "source": i}
        seen = {"linear": shared, "other_linear": shared + 0.1 * float(rng.standard_normal())}
        seen |= {
            "steered": shared,
            "other_steered": shared + 3 * float(rng.standard_normal()),
            "n_steered": 2,
        }
        match = {"other_target": j, "other_source": i, "matched": 0.31, "best_cosine": 0.5, "n_prompts": 2}
        match |= {"shared": True, "stable_target": True, "stable_source": True}
        rows.append(key | seen | match)
    made = replications(pa.Table.from_pylist(rows, schema=REPLICATED.arrow()), level=0.95, seed=0)
    steered, linear, last = replication_sentences(made)
    assert last.startswith("What does not come back")
    found = {r["measure"]: r["correlation"] for r in made.to_pylist()}
    assert found["linear"] > 0.95 > 0.6 > found["steered"] > 0
    assert "31 % of the features" in steered
    for said, what in ((steered, "steered effects"), (linear, "the gradients' effects")):
        assert f"144 pairs of features that both have, {what} correlate at" in said
    # a push that never reached its KL is no effect, and takes only its own pair along
    lost = [r | {"steered": None} if k < 4 else r for k, r in enumerate(rows)]
    made = replications(pa.Table.from_pylist(lost, schema=REPLICATED.arrow()), level=0.95, seed=0)
    assert {r["measure"]: r["n_pairs"] for r in made.to_pylist()} == {"steered": 140, "linear": 144}
    few = replications(pa.Table.from_pylist(rows[:3], schema=REPLICATED.arrow()), level=0.95, seed=0)
    said, _ = replication_sentences(few)
    assert few["correlation"][0].as_py() is None
    assert "cannot be said: 3 pairs of 1 targets are in both" in said
