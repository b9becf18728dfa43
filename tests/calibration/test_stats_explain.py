"""Held-out R2, the race of metrics, the specification curve, power and the words of null worlds."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from polysem.config import EffectsConfig
from polysem.seeds import rng_for
from polysem.stats import HYPOTHESES, POOLED, estimate, parse_group
from polysem.stats.arms import collect_arms, join_trials
from polysem.stats.checks import checks_of
from polysem.stats.contrasts import differences, sign_agreement, slopes
from polysem.stats.discovery import pair_tests
from polysem.stats.effects import adjust
from polysem.stats.explain import explained, held_out_r2
from polysem.stats.grades import claim_of, graded
from polysem.stats.power import PILOT, Spread, design_power, from_se, planned_power
from polysem.stats.regress import clustered_ols
from polysem.stats.rows import View
from polysem.stats.specification import specifications
from polysem.store.tables import METRICS, RESPONSE
from polysem.vocabulary import TOKEN_SETS
from support.synthetic import SyntheticStudy, synthetic_tables

CONFIG = EffectsConfig()


def test_held_out_r2_is_leaving_groups_out_by_hand():
    rng = rng_for(0, "held out")
    groups = np.repeat(np.arange(8), 5)
    x = rng.standard_normal(40)
    y = 0.7 * x + rng.standard_normal(8)[groups] + 0.3 * rng.standard_normal(40)
    X = np.column_stack([np.ones(40), x])
    found = held_out_r2(y, X, groups, level=0.95, rng=rng)
    error = spread = 0.0
    for g in range(8):
        test = groups == g
        fit = np.linalg.lstsq(X[~test], y[~test], rcond=None)[0]
        error += ((y[test] - X[test] @ fit) ** 2).sum()
        spread += ((y[test] - y[~test].mean()) ** 2).sum()
    assert found["r2"] == pytest.approx(1 - error / spread, rel=1e-12)
    assert found["lo"] < found["r2"] < found["hi"]
    assert "only 2 groups" in held_out_r2(y[:10], X[:10], groups[:10], level=0.95, rng=rng)["note"]


def test_noise_has_no_held_out_r2_and_memory_does_not_count():
    rng = rng_for(1, "memory")
    groups = np.repeat(np.arange(10), 6)
    y = rng.standard_normal(10)[groups] + 0.1 * rng.standard_normal(60)
    dummies = (groups[:, None] == np.arange(1, 10)).astype(float)  # explains all of it in the sample
    own = np.column_stack([np.ones(60), dummies])
    assert held_out_r2(y, own, groups, level=0.95, rng=rng)["r2"] < 0.1


def race(true, seed):
    """Which of four metrics predicts unseen targets best, in a world where one is the truth and the others are
    it with noise."""
    rng = rng_for(seed, "race")
    groups = np.repeat(np.arange(12), 9)
    metrics = rng.standard_normal((4, 108))
    for k in range(4):
        if k != true:
            metrics[k] = 0.8 * metrics[true] + 0.6 * metrics[k]
    kappa = np.exp(0.4 * rng.standard_normal(12))[groups]
    y = kappa * metrics[true] + 0.5 * rng.standard_normal(108)
    r2 = [
        held_out_r2(y, np.column_stack([np.ones(108), m]), groups, level=0.95, rng=rng, draws=10)["r2"]
        for m in metrics
    ]
    return int(np.argmax(r2)) == true


def test_the_true_metric_wins_the_race():
    assert np.mean([race(seed % 4, seed) for seed in range(200)]) >= 0.95


def test_power_is_what_happens():
    """A design is promised 80 %: of 1,000 such studies with that effect, about as many find it."""
    rng = rng_for(0, "power")
    n = 20
    target = np.repeat(np.arange(n), 6)
    source = np.concatenate([rng.permutation(n)[:6] for _ in range(n)]) + n
    x = rng.standard_normal(len(target)) * 0.3
    X, clusters = np.column_stack([np.ones(len(x)), x]), np.column_stack([target, source])
    spread = Spread(target=0.5, source=0.3, pair=0.3, prompt=1.0, slope=0.8)
    power = design_power(X, clusters, which=1, spread=spread, n_prompts=8, level=0.95)
    found, slopes = [], []
    for k in range(1000):
        g = rng_for(k, "power world")
        y = (power.smallest + spread.slope * g.standard_normal(n)[target]) * x
        y += spread.target * g.standard_normal(n)[target] + spread.source * g.standard_normal(2 * n)[source]
        y += np.sqrt(spread.pair**2 + spread.prompt**2 / 8) * g.standard_normal(len(x))
        fit = clustered_ols(y, X, clusters, level=0.95)
        found.append(fit.p[1] < 0.05)
        slopes.append(fit.estimate[1])
    assert np.std(slopes) == pytest.approx(power.se, rel=0.08)
    assert 0.75 <= np.mean(found) <= 0.85
    assert from_se(1.0, 1e6, level=0.95).smallest == pytest.approx(1.96 + 0.84, abs=0.01)


def test_planned_power_grows_with_targets():
    small, large = (
        planned_power(
            synthetic_tables(SyntheticStudy(n_targets=n, n_prompts=4, doses=(0.2,)))["plan"]["plan"],
            spread=PILOT,
            level=0.95,
        )
        for n in (6, 14)
    )
    assert set(small) == {"in", "out"}
    assert large["in"].power.smallest < small["in"].power.smallest
    assert 0 < small["in"].reach < 1


@pytest.fixture(scope="module")
def study():
    return synthetic_tables(SyntheticStudy(n_targets=10, n_prompts=4, doses=(0.2, 0.4), n_features=160))


def response_of(pairs, spread):
    """Linear response: the measured effects of feature pushes with noise."""
    rng = rng_for(0, "response")
    rows = []
    for r in pairs.to_pylist():
        if r["relation"] != "random_direction":
            key = {c.name: r[c.name] for c in RESPONSE.columns if c.name in r}
            rows.append(
                key | {"linear": r["logodds"] + spread * rng.standard_normal(), "linear_direct": None}
            )
    return {
        "response": RESPONSE.conform(pa.Table.from_pylist(rows, schema=RESPONSE.arrow())),
        "metrics": METRICS.empty(),
    }


def test_nested_models_see_what_each_knows(study):
    tables = (study["plan"]["plan"], study["trials"]["trials"])
    plain = estimate(*tables, config=CONFIG, seed=0)
    assert plain.explained.num_rows == 0  # without gradients no model of them is judged
    made = estimate(*tables, config=CONFIG, seed=0, response=response_of(plain.pair_effects, 0.02))
    r2 = {(r["model"], r["unseen"]): r["r2"] for r in made.explained.to_pylist() if r["token_set"] == "in"}
    for unseen in ("targets", "sources"):
        assert r2["linear_response", unseen] > 0.9 > r2["cosine", unseen] > 0.1
        assert r2["all", unseen] > 0.9
    by_dose = {(r["sae"], r["token_set"], r["dose"]): r for r in made.validity.to_pylist()}
    assert by_dose[POOLED, "in", 0.4]["r2"] > 0.95


def test_specifications_agree_on_a_planted_slope(study):
    tables = (study["plan"]["plan"], study["trials"]["trials"])
    # One interval of 95 % in twenty misses the truth; one study is asked here.
    rows = estimate(*tables, config=EffectsConfig(level=0.99), seed=0).specification.to_pylist()
    mine = [r for r in rows if r["token_set"] == "in"]
    assert len(mine) >= 12
    assert {r["p_joint"] for r in mine} == {0.001}
    whole = next(
        r
        for r in mine
        if (r["min_interference"], r["max_similarity"], r["fixed_effects"]) == (0.0, 1.0, "layer_type")
    )
    assert whole["lo"] < 3.0 * 0.2 < whole["hi"]


def test_specifications_agree_on_no_slope_where_there_is_none(study):
    p = [specifications(v, seed=k, draws=99)[0]["p_joint"] for k, v in enumerate(null_views(study, 60))]
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(p))


def null_views(study, n):
    """The study's arms with effects of targets, sources and pairs, and nothing of interference."""
    arms = collect_arms(join_trials(study["plan"]["plan"], study["trials"]["trials"]))
    view = View.of(arms, locus="feature", dose=0.2, level=0.95, model="", caveat="", margin=CONFIG.margin)
    for seed in range(n):
        rng = rng_for(seed, "null view")
        sizes = 0.1 * rng.standard_normal((3, int(view.clusters.max()) + 1, 2))
        token = (view.columns["token_set"] == "out").astype(int)
        y = sizes[0][view.clusters[:, 0], token] + sizes[1][view.clusters[:, 1], token]
        y = y + 0.1 * rng.standard_normal(len(y))
        empty = {
            kind.outcome: np.where(np.isfinite(view.columns[kind.outcome]), y, np.nan)
            for kind in TOKEN_SETS.values()
        }
        yield replace(view, columns={**view.columns, **empty})


def test_every_check_asks_what_the_declared_question_asks(study):
    """Of tokens chosen by a path: beyond that path. What the other outcome is changes no check."""
    arms = collect_arms(join_trials(study["plan"]["plan"], study["trials"]["trials"]))
    view = View.of(arms, locus="feature", dose=0.2, level=0.95, model="", caveat="", margin=CONFIG.margin)
    rng = rng_for(0, "other outcomes")
    for tokens, kind in TOKEN_SETS.items():
        others = {k.outcome for k in TOKEN_SETS.values()} - {kind.outcome}
        assert others
        noise = {name: rng.standard_normal(len(view.place)) for name in others}
        moved = {name: rng.standard_normal(len(view.place)) for name in [kind.outcome]}
        said, same, other = (
            checks_beside(replace(view, columns=view.columns | new), tokens) for new in ({}, noise, moved)
        )
        assert said == same
        assert all(a != b for a, b in zip(said, other, strict=True))


def checks_beside(view, tokens):
    """Rows of a token set of every table that stands beside its declared slope."""
    at = {"sae": POOLED, "tokens": tokens, "outcome": TOKEN_SETS[tokens].outcome}
    rows = adjust(
        [*slopes(view, **at), *differences(view, **at), sign_agreement(view, **at)], locus="feature"
    )
    curve = specifications(view, seed=0, draws=19)
    linear = rng_for(0, "linear").standard_normal(len(view.place))
    told = explained(view, linear, METRICS.empty(), seed=0)
    tested = [r for r in rows if r["contrast"] == "slope_interference"]
    found, lines = graded(view, rows, tested, declared=True, specification=curve, explained=told, seed=0)
    tables = (curve, told, list(checks_of(view, rows)), pair_tests(view))
    mixed = [[r for r in t if r["token_set"] == tokens and r.get("check") != "missing"] for t in tables]
    assert all(mixed)
    return [*mixed, found, lines]


def verdicts(view):
    """On the declared questions, whatever the other grades say."""
    rows = []
    for tokens, kind in TOKEN_SETS.items():
        at = {"sae": POOLED, "tokens": tokens, "outcome": kind.outcome}
        rows += [*slopes(view, **at), *differences(view, **at), sign_agreement(view, **at)]
    said = []
    for row in adjust(rows, locus="feature"):
        parts = parse_group(str(row["group"]))
        for contrast, wanted in HYPOTHESES:
            if row["contrast"] == contrast and ({"sae": POOLED} | wanted).items() <= parts.items():
                said.append(claim_of(row, {}))  # without a grade that disagrees: the most that can be said
                equivalent = row["p_equivalent"] is not None and row["p_equivalent"] < 0.05
                assert (said[-1] in ("no_effect", "too_small")) <= equivalent
    return said


def test_a_study_with_nothing_in_it_says_so(study):
    """Some effect is claimed in at most 6 % of studies, and "no effect" only where the equivalence test allows it."""
    studies = [verdicts(view) for view in null_views(study, 300)]
    assert all(len(s) == len(HYPOTHESES) for s in studies)
    assert np.mean(["predicts" in s for s in studies]) <= 0.06
