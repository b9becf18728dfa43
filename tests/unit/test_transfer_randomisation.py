"""The pool-randomisation test: exact, of nominal size where trials and sentences mislead, powerful, honest about NaN."""

import numpy as np
import pyarrow as pa
import pytest

from polysem.errors import ConfigError, NumericsError
from polysem.paper.welch import welch
from polysem.stats.units import looked_pool_test, pool_test, sentence_bootstrap, spending
from polysem.transfer.power import smallest_effect, spread_of


def world(rng, *, categories=1, pools=200, sentences=30, draws=4, potency=0.5, shift=0.0):
    """Paired effects [categories pools sentences draws] on log-odds: sentence, pool and trial noise; pool 0 is
    treated."""
    pool = rng.normal(0, potency, (categories, pools, 1, 1))
    pool[:, 0] += shift
    sentence = rng.normal(0, 0.4, (categories, 1, sentences, 1))
    arm = rng.normal(0, 0.4, (categories, pools, sentences, 1)) * 0.5
    return pool + sentence + arm + rng.normal(0, 1.0, (categories, pools, sentences, draws))


def statistic(effects):
    return effects.mean(axis=(2, 3))


@pytest.mark.parametrize("n_treated", [1, 4])
def test_size_is_nominal_under_pool_potency_and_welch_is_not(n_treated):
    rng = np.random.default_rng(5)
    n_worlds = 1000 if n_treated == 1 else 150
    rejected = naive = 0
    for _ in range(n_worlds):
        effects = world(rng, sentences=12, draws=2)
        s = statistic(effects)
        found = pool_test(s[:, :n_treated], s[:, n_treated:], level=0.95, rng=rng)
        rejected += found.p[0] <= 0.05
        # the paper's way: all trials of the treated pool against all trials of one random pool
        up, other = effects[0, 0] > 0, effects[0, 1] > 0
        naive += welch(up.ravel().astype(float), other.ravel().astype(float)).p <= 0.05
    if n_treated == 1:
        assert 0.03 <= rejected / n_worlds <= 0.07
        assert naive / n_worlds > 0.12
    else:
        assert 0.01 <= rejected / n_worlds <= 0.1


def test_max_t_holds_over_dependent_categories():
    rng = np.random.default_rng(6)
    any_rejected = any_raw = 0
    n_worlds = 400
    for _ in range(n_worlds):
        common = rng.normal(size=(1, 100))
        s = 0.6 * common + 0.8 * rng.normal(size=(8, 100))
        found = pool_test(s[:, :1], s[:, 1:], level=0.95, rng=rng)
        any_rejected += (found.p_adj <= 0.05).any()
        any_raw += (found.p <= 0.05).any()
        assert (found.p_adj >= found.p - 1e-12).all()
    assert 0.02 <= any_rejected / n_worlds <= 0.08
    assert any_raw / n_worlds > 0.15


def test_p_is_the_rank_and_the_interval_inverts_the_test():
    rng = np.random.default_rng(7)
    reference = rng.normal(size=(1, 199))
    for value in (-1.0, 0.0, 2.0):
        found = pool_test(np.array([[value]]), reference, level=0.95, rng=rng)
        assert found.p[0] == (1 + (reference[0] >= value).sum()) / 200
        for shift in np.linspace(-6, 6, 241):
            rank = (reference[0] < value - shift).sum()
            kept = 5 <= rank <= 199 - 5
            if abs(shift - found.lo[0]) > 1e-9 and abs(shift - found.hi[0]) > 1e-9:
                assert kept == (found.lo[0] <= shift <= found.hi[0])


def test_the_interval_covers_a_planted_effect():
    rng = np.random.default_rng(8)
    for n_treated in (1, 5):
        covered = 0
        for _ in range(400):
            s = rng.normal(size=(1, 100 + n_treated))
            s[:, :n_treated] += 0.7
            found = (
                pool_test(s[:, :n_treated], s[:, n_treated:], level=0.95, rng=rng) if n_treated == 1 else None
            )
            if found is None:
                from polysem.stats.units import _interval

                lo, hi = _interval(s[:, :n_treated], s[:, n_treated:], level=0.95)
                covered += lo[0] <= 0.7 <= hi[0]
            else:
                covered += found.lo[0] <= 0.7 <= found.hi[0]
        assert 0.92 <= covered / 400 <= 0.985


def test_power_grows_with_the_effect():
    rng = np.random.default_rng(9)
    power = []
    for shift in (0.0, 1.0, 2.0):
        found = [
            pool_test(s[:, :1], s[:, 1:], level=0.95, rng=rng).p[0] <= 0.05
            for s in (statistic(world(rng, sentences=8, draws=2, shift=shift, pools=100)) for _ in range(60))
        ]
        power.append(np.mean(found))
    assert power[0] < power[1] < power[2]
    assert power[2] > 0.85


def test_constant_pools_are_never_significant():
    found = pool_test(np.ones((2, 1)), np.ones((2, 99)), level=0.95, rng=np.random.default_rng(0))
    assert (found.p == 1).all()
    assert (found.p_adj == 1).all()


def test_bad_input():
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="1 treated and 10 reference pools"):
        pool_test(np.ones((1, 1)), np.ones((1, 10)), level=0.95, rng=rng)
    with pytest.raises(NumericsError, match="1 of 100"):
        pool_test(np.array([[np.nan]]), np.ones((1, 99)), level=0.95, rng=rng)


def test_sentences_are_what_is_resampled():
    rng = np.random.default_rng(10)
    covered = 0
    for _ in range(300):
        values = rng.normal(0.2, 1.0, 40)
        share = sentence_bootstrap(values, level=0.95, rng=rng, draws=600)
        covered += share.lo <= 0.2 <= share.hi
    assert 0.9 <= covered / 300 <= 0.985
    assert np.isnan(sentence_bootstrap(np.array([1.0]), level=0.95, rng=rng).lo)
    assert sentence_bootstrap(np.array([np.nan, np.nan]), level=0.95, rng=rng).n_sentences == 0


# looks


LOOKS = (99, 199)


def ended(treated, reference, *, looks=LOOKS, futility=0.2, level=0.95, rng):
    """A design that is ended where it is decided: its last test, and the reference pools that it took."""
    for n in looks:
        found = looked_pool_test(treated, reference[:, :n], looks=looks, level=level, rng=rng)
        shown = found.test.p_adj <= 1 - level + 1e-12
        if n == looks[-1] or (shown | (found.now > futility)).all():
            return found.test, n
    raise AssertionError


@pytest.mark.parametrize("n_categories", [1, 4])
def test_a_design_that_ends_where_it_is_decided_keeps_its_size_and_its_coverage(n_categories):
    """Also where it is ended out of greed: at any look that shows something, whatever else is open."""
    rng = np.random.default_rng(11)
    n_worlds, rejected, greedy, covered, pools = 1500, 0, 0, 0, 0
    for _ in range(n_worlds):
        s = 0.6 * rng.normal(size=(1, 200)) + 0.8 * rng.normal(size=(n_categories, 200))
        test, n = ended(s[:, :1], s[:, 1:], rng=rng)
        rejected += (test.p_adj <= 0.05).any()
        covered += bool(test.lo[0] <= 0 <= test.hi[0])
        pools += n
        first = looked_pool_test(s[:, :1], s[:, 1:100], looks=LOOKS, level=0.95, rng=rng).test
        greedy += (np.minimum(first.p_adj, test.p_adj) <= 0.05).any()
    assert 0.015 <= rejected / n_worlds <= greedy / n_worlds <= 0.06
    assert covered / n_worlds >= 0.94
    assert pools / n_worlds < 0.75 * 199, "null arms are ended early"


def test_what_a_design_would_show_is_what_it_shows():
    """Power at the smallest effect is what was promised, with and without looks, one treated pool or several."""
    rng = np.random.default_rng(12)
    for n_treated, n_categories, looks in ((1, 1, (199,)), (1, 6, (99,)), (1, 4, LOOKS), (3, 4, (99,))):
        least = smallest_effect(
            n_treated=n_treated, n_categories=n_categories, looks=looks, level=0.95, rng=rng
        )
        n_worlds = 250 if n_treated == 1 else 60
        shown = 0
        for _ in range(n_worlds):
            s = rng.normal(size=(n_categories, n_treated + looks[-1]))
            s[0, :n_treated] += least
            test = looked_pool_test(s[:, :n_treated], s[:, n_treated:], looks=looks, level=0.95, rng=rng).test
            shown += test.p_adj[0] <= 0.05
        assert 0.8 - 0.09 <= shown / n_worlds <= 0.8 + 0.11 * (2 if n_treated > 1 else 1), (n_treated, looks)
    assert smallest_effect(n_treated=1, n_categories=1, looks=(18,), level=0.95, rng=rng) == np.inf


def test_one_look_is_the_plain_test_and_looks_spend_the_level():
    rng = np.random.default_rng(13)
    s = rng.normal(size=(3, 200)) + np.eye(1, 200) * 2.2
    plain = pool_test(s[:, :1], s[:, 1:], level=0.95, rng=rng)
    one = looked_pool_test(s[:, :1], s[:, 1:], looks=(199,), level=0.95, rng=rng)
    for name in ("effect", "lo", "hi", "p", "p_adj"):
        np.testing.assert_array_equal(getattr(one.test, name), getattr(plain, name))
    np.testing.assert_allclose(spending(LOOKS), [99 / 199, 100 / 199])
    two = looked_pool_test(s[:, :1], s[:, 1:], looks=LOOKS, level=0.95, rng=rng)
    first = pool_test(s[:, :1], s[:, 1:100], level=0.95, rng=rng)
    np.testing.assert_allclose(
        two.test.p_adj, np.minimum(1, np.minimum(first.p_adj * 199 / 99, plain.p_adj * 199 / 100))
    )
    assert (two.test.hi - two.test.lo > plain.hi - plain.lo).all()
    for wrong in ((), (99, 99), (199, 99)):
        with pytest.raises(ConfigError, match="expected rising numbers"):
            spending(wrong)
    with pytest.raises(ConfigError, match="the first look is at 99"):
        looked_pool_test(s[:, :1], s[:, 1:50], looks=LOOKS, level=0.95, rng=rng)


def test_spreads_are_found_again():
    rng = np.random.default_rng(14)
    rows = [
        {"target": "t", "category": "b", "arm": arm, "template": "paren", "position": "prefix", "pool": pool, "sentence": n,
         "draw": 0, "categories": ["a", "b"], "logodds": [0.0, effect + float(rng.normal(0, 0.4)) + n]}
        for arm, sign in (("shared", -1), ("random", 1))
        for pool, effect in ((sign * (k + (sign < 0)), float(rng.normal(0, 0.3))) for k in range(150))
        for n in range(6)
    ]  # fmt: skip
    rows += [{**rows[0], "pool": 5, "logodds": [0.0, 99.0]}]  # treated: has an effect of its own
    found = spread_of(pa.Table.from_pylist(rows), "b")
    assert found.pool == pytest.approx(0.3, rel=0.15)
    assert found.answer == pytest.approx(0.4, rel=0.1)
    assert found.of_mean(4) == pytest.approx(np.hypot(found.pool, found.answer / 2))
    assert spread_of(pa.Table.from_pylist(rows[:30]), "b") is None
