"""Every estimator on degenerate data of its kind: a number, or words that say why there is none. Warnings are errors.

`ESTIMATORS` is walked against the modules: a new public function of `stats`, `paper` or `linear` that is neither tried
here nor named as none fails.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import pytest

import polysem.linear
import polysem.paper
import polysem.stats
from polysem.errors import PolysemError
from polysem.linear.compensation import compensation, crosstalk_floor
from polysem.linear.matching import match_features
from polysem.linear.subspaces import SIZE, principal_cosines, shared_spans, span
from polysem.paper.estimators import plain_ols, stars, welch
from polysem.paper.selection import best_of_grid, null_inflation, relative_change, select
from polysem.seeds import rng_for
from polysem.stats.discovery import conformal_p, nameable
from polysem.stats.explain import held_out_r2, held_out_r2s, r2_of
from polysem.stats.mixed import mixed_model
from polysem.stats.multiple import adjust_p, equivalence_p
from polysem.stats.permute import permute_within, qap
from polysem.stats.power import PILOT, design_power, from_se
from polysem.stats.regress import clustered_mean, clustered_ols, degrees_of_freedom, within
from polysem.stats.reliability import instrumented, naive_bias, reliability
from polysem.stats.replication import replicate
from polysem.stats.similarity import correlated, loadings_between, one_factor
from polysem.stats.survival import COMPONENTS, components_of
from polysem.stats.units import pool_test, sentence_bootstrap, spending, stratified_test


@dataclass(frozen=True)
class Data:
    """Rows of (target, source) with an outcome and two regressors."""

    y: np.ndarray
    x: np.ndarray
    z: np.ndarray
    clusters: np.ndarray

    @property
    def design(self):
        return np.column_stack([np.ones(len(self.y)), self.x, self.z])

    def take(self, rows):
        return Data(self.y[rows], self.x[rows], self.z[rows], self.clusters[rows])

    def matrix(self, values):
        """[targets, sources], nan where there is no row."""
        target, source = (np.unique(c, return_inverse=True)[1] for c in self.clusters.T)
        whole = np.full((int(target.max(initial=-1)) + 1, int(source.max(initial=-1)) + 1), np.nan)
        whole[target, source] = values
        return whole


def plain():
    rng = rng_for(0, "degenerate")
    target, source = (axis.ravel() for axis in np.indices((8, 6)))
    x, z = rng.standard_normal((2, 48))
    y = 0.5 * x + rng.standard_normal(8)[target] + rng.standard_normal(6)[source] + rng.standard_normal(48)
    return Data(y, x, z, np.column_stack([target, source + 100]))


DATA: Mapping[str, Callable[[Data], Data]] = {
    "plain": lambda d: d,
    "the outcome is constant": lambda d: Data(np.full_like(d.y, 0.3), d.x, d.z, d.clusters),
    "the outcome is constant but for rounding": lambda d: Data(1 + 1e-16 * d.y, d.x, d.z, d.clusters),
    "the outcome is zero": lambda d: Data(0 * d.y, d.x, d.z, d.clusters),
    "a regressor is constant": lambda d: Data(d.y, 0 * d.x + 0.2, d.z, d.clusters),
    "a regressor is zero": lambda d: Data(d.y, 0 * d.x, d.z, d.clusters),
    "collinear regressors": lambda d: Data(d.y, d.x, 2 * d.x + 1, d.clusters),
    "collinear but for rounding": lambda d: Data(d.y, d.x, d.x * (1 + 1e-15 * d.z), d.clusters),
    "a perfect fit": lambda d: Data(0.5 * d.x - 0.25 * d.z, d.x, d.z, d.clusters),
    "no effect of any cluster": lambda d: Data(
        d.y - d.y.reshape(8, 6).mean(1).repeat(6), d.x, d.z, d.clusters
    ),
    "nothing but targets": lambda d: Data(d.clusters[:, 0].astype(float), d.x, d.z, d.clusters),
    "one target": lambda d: d.take(d.clusters[:, 0] == 0),
    "one source": lambda d: d.take(d.clusters[:, 1] == 100),
    "two targets": lambda d: d.take(d.clusters[:, 0] < 2),
    "two of each": lambda d: d.take((d.clusters[:, 0] < 2) & (d.clusters[:, 1] < 102)),
    "the regressor is the target": lambda d: Data(d.y, d.clusters[:, 0].astype(float), d.z, d.clusters),
    "an outcome of 1e-12": lambda d: Data(1e-12 * d.y, d.x, d.z, d.clusters),
    "an outcome of 1e12": lambda d: Data(1e12 * d.y, d.x, d.z, d.clusters),
    "a regressor of 1e-12": lambda d: Data(d.y, 1e-12 * d.x, d.z, d.clusters),
    "a regressor of 1e12": lambda d: Data(d.y, 1e12 * d.x, d.z, d.clusters),
    "one row": lambda d: d.take(np.arange(1)),
    "two rows": lambda d: d.take(np.arange(2)),
    "no rows": lambda d: d.take(np.arange(0)),
    "no outcome": lambda d: Data(np.full_like(d.y, np.nan), d.x, d.z, d.clusters),
    "one infinite outcome": lambda d: Data(
        np.where(np.arange(len(d.y)) == 3, np.inf, d.y), d.x, d.z, d.clusters
    ),
}
Estimator = Callable[[Data], Any]


def ols(**settings: Any) -> Estimator:
    return lambda d: clustered_ols(d.y, d.design, d.clusters, level=0.95, **settings)


def dyads(d: Data) -> Any:
    """Every source is a target elsewhere."""
    return clustered_ols(d.y, d.design, d.clusters % 100, level=0.95, errors="dyadic")


def grids(d: Data) -> Any:
    doses = np.array([-1.0, 1.0])
    edited = np.column_stack([d.x - d.y, d.x + d.y])
    return select(d.x, edited, doses=doses, reported=np.arange(len(d.x)) % 2 == 0)


def strata(d: Data) -> Any:
    """Treated rows in every other place, strata by target; where there is nothing to compare the counts say so."""
    found = stratified_test(
        d.y, np.arange(len(d.y)) % 2 == 0, d.clusters[:, 0], level=0.95, rng=rng(), permutations=99
    )
    bounded = np.isfinite([found.lo, found.hi]).all()
    return vars(found) | {"note": "" if bounded else f"{found.n_treated} treated, {found.n_alone} alone"}


def sentences(d: Data) -> Any:
    found = sentence_bootstrap(d.y, level=0.95, rng=rng(), draws=99)
    return vars(found) | {"note": f"{found.n_sentences} sentences" if found.n_sentences < 2 else ""}


def variances(d: Data) -> Any:
    """Every pair in two dictionaries."""
    there = np.repeat([0, 1], len(d.y))
    found = components_of(np.concatenate([d.y, d.x]), *np.concatenate([d.clusters] * 2).T, there)
    note = "" if np.isfinite(found).all() else "not told apart"
    return dict(zip(COMPONENTS, found.tolist(), strict=True)) | {"note": note}


def rng() -> np.random.Generator:
    return rng_for(1, "degenerate")


def _or_reason(value: float | None, why: str) -> dict[str, object]:
    return {"value": value, "note": why if value is None else ""}


ESTIMATORS: Mapping[str, tuple[Estimator, ...]] = {
    "stats.regress.clustered_ols": (ols(), ols(correction="crv1"), dyads),
    "stats.regress.clustered_mean": (lambda d: clustered_mean(d.y, d.clusters, level=0.95),),
    "stats.mixed.mixed_model": (lambda d: mixed_model(d.y, d.design, d.clusters),),
    "stats.permute.qap": tuple(
        lambda d, fixed=fixed, statistic=statistic: qap(
            d.matrix(d.y), d.matrix(d.x), draws=99, rng=rng(), fixed_effects=fixed, statistic=statistic
        )
        for fixed in (False, True)
        for statistic in ("robust", "classical")
    ),
    "stats.explain.r2_of": (lambda d: _or_reason(r2_of(d.y, d.x), "not finite, or does not vary"),),
    "stats.explain.held_out_r2": (
        lambda d: held_out_r2(d.y, d.design, d.clusters[:, 0], level=0.95, rng=rng(), draws=99),
    ),
    "stats.explain.held_out_r2s": tuple(
        lambda d, k=k: held_out_r2s(
            d.y, [d.design[:, :1], d.design], d.clusters[:, 0], level=0.95, rng=rng(), draws=99
        )[k]
        for k in (0, 1)
    ),
    "stats.replication.replicate": (lambda d: replicate(d.x, d.y, d.clusters, level=0.95, rng=rng()),),
    "stats.survival.components_of": (variances,),
    "stats.reliability.reliability": (lambda d: reliability(d.y, d.x),),
    "stats.reliability.instrumented": (
        lambda d: instrumented(d.y, d.x, d.z, d.z + 0.1 * d.x, d.clusters),
        lambda d: instrumented(d.x, d.z, d.y, d.y + 0.1 * d.x, d.clusters),
    ),
    "stats.power.design_power": (
        lambda d: design_power(d.design, d.clusters, which=1, spread=PILOT, n_prompts=4, level=0.95),
    ),
    "stats.units.pool_test": (lambda d: pool_test(d.y[None, :1], d.y[None, 1:], level=0.95, rng=rng()),),
    "stats.units.stratified_test": (strata,),
    "stats.units.sentence_bootstrap": (sentences,),
    "paper.estimators.plain_ols": (lambda d: plain_ols(d.y, d.design, level=0.95),),
    "paper.estimators.welch": (
        lambda d: welch(d.y, d.x, level=0.95),
        lambda d: welch(d.y, d.x[:2], level=0.95),
    ),
    "paper.selection.select": (grids,),
    "linear.compensation.compensation": (
        lambda d: compensation(
            *(np.where(np.isnan(d.matrix(v)), 0.0, d.matrix(v)) for v in (d.y, d.x)),
            np.zeros(len(set(d.clusters[:, 0])), int),
            level=0.95,
            rng=rng(),
        ),
    ),
    "linear.matching.match_features": (lambda d: match_features(d.design, d.design[::-1]),),
}
"""each estimator with data of one kind; those of whole tables are in TABLES"""
TABLES = {
    *("stats.arms.effect_share", "stats.contrasts.fitted", "stats.heterogeneity.between_saes"),
    *("stats.neurons.neuron_effects", "stats.neurons.neuron_slopes"),
    *("stats.arms.collect_arms", "stats.arms.headline_dose", "stats.arms.join_trials", "stats.guard.stopped"),
    *(
        "stats.checks.checks_of",
        "stats.checks.qap_checks",
        "stats.contrasts.all_contrasts",
        "stats.contrasts.means",
    ),
    *("stats.contrasts.coefficient", "stats.contrasts.differences", "stats.contrasts.null_slopes"),
    *("stats.contrasts.of_vectors", "stats.effects.vector_effects"),
    *("stats.contrasts.sign_agreement", "stats.contrasts.slopes", "stats.discovery.pair_tests"),
    *(
        "stats.dose.dose_response",
        "stats.dose.missing",
        "stats.effects.adjust",
        "stats.effects.declared_rows",
    ),
    *(
        "stats.effects.estimate",
        "stats.effects.pair_effects",
        "stats.explain.explained",
        "stats.explain.linear_of",
        "stats.explain.validity",
    ),
    *("stats.grades.claim_of", "stats.grades.grade_of", "stats.grades.graded"),
    *("stats.similarity.gloss_reliability", "stats.power.seen_power", "stats.replication.replications"),
    *("stats.similarity.latent_similarity", "stats.similarity.similarity_model"),
    *("stats.survival.effect_survival", "stats.survival.variance_components"),
    *("stats.toward.toward", "stats.budgets.budgets", "stats.budgets.sizes"),
    *("stats.rows.effect_row", "stats.specification.specifications", "paper.optimism.optimism"),
    *("paper.scene.preset_row", "paper.grid.effects_of", "paper.grid.kl_at_best", "paper.grid.means_by_arm"),
}
"""called by `estimate` on the degenerate studies of calibration/test_degenerate_studies.py"""
NONE: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "stats.arms.equals",
            "stats.arms.first_rows",
            "stats.arms.floats",
            "stats.arms.places",
            "stats.contrasts.bins_of",
            "stats.arms.both_signs",
            "stats.arms.means",
            "stats.arms.outcome_of",
            "stats.arms.standard_errors",
            "stats.rows.nodes",
            "stats.rows.links",
            "stats.rows.reach",
        ),
        "reads columns",
    ),
    **dict.fromkeys(
        ("stats.rows.group_label", "stats.rows.parse_group", "stats.rows.number", "stats.rows.unit_of"),
        "writes rows",
    ),
    **dict.fromkeys(
        (
            *("stats.regress.refusal", "stats.regress.explained", "stats.regress.varies"),
            *("stats.regress.tells", "stats.regress.independent"),
        ),
        "what estimators ask first",
    ),
    "stats.units.cell_means": "means of cells",
    "paper.degree.degree_rows": "one neuron, none, no outcome, no variance: tests/unit/test_paper_degree.py",
    "paper.scene.lost": "counts rows",
    "stats.effects.views_of": "the views that `estimate` reads",
    "stats.kinship.related_pairs": "counts rows",
    "stats.regress.layout_of": "what `clustered_ols` reads",
    "stats.kinship.slopes_without": "the slopes of `estimate`, of some of the pairs: tests/unit/test_stats_kinship.py",
    "stats.units.looked_pool_test": "pool_test at every look: tests/unit/test_transfer_randomisation.py",
    **dict.fromkeys(
        (
            "stats.permute.permute_within",
            "stats.power.planned_power",
            "paper.strengths.with_isotropic",
            "paper.blocks.paper_blocks",
            "paper.blocks.nearest",
        ),
        "draws or reads a plan",
    ),
    **dict.fromkeys(
        (
            *(
                "linear.decompose.check_identities",
                "linear.decompose.clean_tokens",
                "linear.decompose.decompose",
            ),
            *("linear.decompose.mean_direction", "linear.decompose.mean_of", "linear.decompose.split_push"),
            *("linear.footprint.footprint_metrics", "linear.footprint.logit_footprints"),
            *(
                "linear.metrics.pair_metrics",
                "linear.replicated.replicated_pairs",
            ),
            *("linear.response.log_odds_of", "linear.response.membership", "linear.response.odd_change"),
            *(
                "linear.response.odds_cotangent",
                "linear.response.odds_gradients",
                "linear.response.path_gradients",
            ),
            "linear.response.run_rows",
            *("linear.direct.direct_logits", "linear.direct.promoted"),
        ),
        "needs a model or an SAE: tests/unit/test_linear*.py",
    ),
}
"""public functions that estimate nothing from data, and what they do"""
NUMBERS = {
    *(
        "stats.regress.degrees_of_freedom",
        *("stats.regress.within", "stats.regress.sums"),
        "stats.multiple.adjust_p",
        "stats.power.from_se",
    ),
    *("stats.multiple.equivalence_p", "stats.discovery.conformal_p", "stats.discovery.nameable"),
    *("stats.similarity.correlated", "stats.similarity.loadings_between", "stats.similarity.one_factor"),
    *("stats.reliability.naive_bias", "linear.compensation.crosstalk_floor"),
    *("paper.selection.best_of_grid", "paper.selection.null_inflation", "paper.selection.relative_change"),
    *("linear.subspaces.principal_cosines", "linear.subspaces.shared_spans", "linear.subspaces.span"),
    *("paper.estimators.stars", "stats.heterogeneity.heterogeneity", "stats.units.spending"),
}
"""formulas: tried in `test_formulas_at_their_edges`"""


PRINTED = {"polysem.paper.transfer", "polysem.paper.tables", "polysem.paper.welch"}
"""the paper's printed tables made again: tests/golden"""


def test_every_estimator_is_tried():
    found: set[str] = set()
    for package in (polysem.stats, polysem.paper, polysem.linear):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if module.name in PRINTED:
                continue
            here = importlib.import_module(module.name)
            for name, thing in inspect.getmembers(here, inspect.isfunction):
                if not name.startswith("_") and thing.__module__ == here.__name__:
                    found.add(f"{here.__name__.removeprefix('polysem.')}.{name}")
    kinds = [set(ESTIMATORS), TABLES, set(NONE), NUMBERS]
    assert found - set.union(*kinds) == set(), "a function that is not tried on degenerate data"
    assert set.union(*kinds) - found == set(), "a function that is gone"
    assert sum(map(len, kinds)) == len(set.union(*kinds)), "a function of two kinds"


def parts(result: Any) -> tuple[list[float], str]:
    """The numbers of a result, and what it says."""
    if is_dataclass(result):
        values = [getattr(result, f.name) for f in fields(result)]
    elif isinstance(result, dict):
        values = [v or "" if name == "note" else v for name, v in result.items()]
    else:
        values = list(result)
    numbers: list[float] = []
    for value in values:
        if not isinstance(value, str):
            numbers += [
                np.nan if v is None else float(v) for v in np.atleast_1d(np.asarray(value, dtype=object))
            ]
    return numbers, "".join(v for v in values if isinstance(v, str))


CASES = [
    pytest.param(kind, one, id=f"{name}-{k}-{kind}")
    for name, made in ESTIMATORS.items()
    for k, one in enumerate(made)
    for kind in DATA
]


@pytest.mark.parametrize(("kind", "one"), CASES)
def test_a_number_or_a_reason(kind, one):
    data = DATA[kind](plain())
    try:
        numbers, words = parts(one(data))
    except PolysemError:
        numbers, words = [], "refused"
    missing = [v for v in numbers if not np.isfinite(v)]
    assert words or not missing
    if kind == "plain":
        assert not missing


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_of_the_outcome_changes_no_p(scale):
    """Not only is there a number: it is the right one."""
    data = plain()
    large = DATA[f"an outcome of {scale:.0e}".replace("e+", "e")](data)
    for one in (ols(), dyads, ESTIMATORS["stats.mixed.mixed_model"][0]):
        a, b = one(data), one(large)
        np.testing.assert_allclose(b.se / scale, a.se, rtol=1e-6)
        np.testing.assert_allclose(b.estimate / scale, a.estimate, rtol=1e-6)


def test_formulas_at_their_edges():
    assert spending([7]).tolist() == [1.0]
    assert spending([1, 2, 4]).tolist() == [0.25, 0.25, 0.5]
    p = np.array([0.0, 1.0, 0.5, 5e-324])
    for method in ("holm", "bh", "by"):
        assert np.isfinite(adjust_p(p, method=method)).all()
        assert adjust_p(p[:0], method=method).shape == (0,)
        with pytest.raises(PolysemError):
            adjust_p(np.array([np.nan]), method=method)
    assert np.isnan(equivalence_p(0.1, 0.0, 5.0, margin=0.2))
    assert np.isnan(equivalence_p(np.nan, np.nan, np.nan, margin=0.2))
    assert equivalence_p(0.0, 1e-300, 5.0, margin=0.2) == 0.0
    assert conformal_p(np.array([0.0, np.inf]), np.zeros(3)).tolist() == [1.0, 0.25]
    assert conformal_p(np.array([1.0]), np.empty(0)).tolist() == [1.0]
    assert nameable(1, 0, alpha=0.05).together == 20
    assert from_se(0.0, 1.0, level=0.95).smallest == 0.0
    assert naive_bias(gamma=1.0, rho=0.0, r=1.0) == 0
    assert crosstalk_floor(3, 4) == 0.0
    for z in (np.empty((0, 3)), np.zeros((40, 3)), np.full((40, 3), np.nan), rng().normal(size=(5, 3))):
        assert np.isnan(correlated(z)[~np.eye(3, dtype=bool)]).all()
        nodes = np.arange(2 * len(z)).reshape(-1, 2)
        found, ends = loadings_between(z, nodes, level=0.95, seed=0)
        assert found.remark
        assert np.isnan(found.loadings).all()
        assert np.isnan(ends).all()
    for unlike in (np.eye(2), -np.ones((2, 2)), np.ones((1, 1))):
        assert one_factor(unlike).remark
    assert "bound of 1" in one_factor(np.ones((3, 3))).remark
    line, other = (np.tile(np.eye(8)[k], (SIZE + 4, 1)) for k in (0, 1))
    assert span(line).shape == (1, 8)
    assert principal_cosines(span(line), span(other)).tolist() == [0.0]
    assert shared_spans(line[: SIZE - 1], other, rng=rng()) == []
    for first, second, shared in (
        (line, line, 1.0),
        (line, other, 0.0),
    ):  # one direction, which has no covariance
        for found in shared_spans(first, second, rng=rng()):
            assert (found.rank, found.shared) == (1.0, pytest.approx(shared))
            assert np.isfinite([found.angle, found.random, found.lo, found.hi, found.drawn]).all()
    assert np.isnan(relative_change(np.zeros(2), np.ones((2, 3)))).all()
    assert best_of_grid(np.empty(0), np.empty((0, 3))).shape == (0,)
    assert null_inflation(0.0, 20.0) == 0.0
    assert [stars(v) for v in (None, 0.0, 1.0)] == ["", "***", ""]
    assert permute_within(np.empty(0, dtype=int), draws=3, rng=rng()).shape == (3, 0)
    assert within(np.ones((1, 1)), np.zeros(1, dtype=int)).tolist() == [[0.0]]
    assert degrees_of_freedom(np.ones((3, 1)), np.zeros((3, 2), dtype=int)).tolist() == [1.0]
