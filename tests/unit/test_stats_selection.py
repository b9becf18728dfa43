"""Selection of the best strength, and what it adds; reliability of similarity, and its correction."""

import numpy as np
import pytest

from polysem.errors import ConfigError, NumericsError
from polysem.paper.selection import PAPER_GRID, best_of_grid, null_inflation, relative_change, select
from polysem.stats.reliability import WEAK_F, instrumented, naive_bias, reliability

DOSES = np.array([-2.0, -1.0, 1.0, 2.0])


def test_every_number_of_a_selection_by_hand():
    base = np.array([0.1, 0.2, 0.4, 0.1])
    edited = np.array(
        [[0.2, 0.1, 0.1, 0.05], [0.1, 0.1, 0.1, 0.1], [0.4, 0.4, 0.6, 0.8], [0.1, 0.1, 0.2, 0.1]]
    )
    found = select(base, edited, doses=DOSES, reported=np.array([True, True, True, False]))
    assert found.best == pytest.approx((1.0 - 0.5 + 1.0) / 3)
    assert found.improved_only == pytest.approx(1.0)
    assert found.share_improved == pytest.approx(2 / 3)
    assert found.held_out == pytest.approx((0.0 - 0.5 + 0.5) / 3)  # +1 is best on the fourth row
    assert found.optimism == pytest.approx(0.5)
    signed = [[0.0, (0.05 - 0.2) / 0.1], [0.0, 0.0], [0.2 / 0.4, 0.4 / 0.4]]
    assert found.signed == pytest.approx(np.mean(signed) / 2)
    assert (found.n, found.n_dropped) == (3, 0)


def test_where_the_best_begins_decides_whether_harm_can_be_seen():
    base, edited = np.array([0.3, -0.2]), np.array([[0.1, 0.2], [-0.4, -0.3]])
    assert best_of_grid(base, edited, start="zero").tolist() == [0.2, 0.0]  # 0 beats a negative baseline
    assert best_of_grid(base, edited, start="baseline").tolist() == [0.3, -0.2]  # never worse than nothing


def test_a_baseline_of_zero_gives_no_ratio():
    change = relative_change(np.array([0.0, 1e-9, -0.5]), np.array([[1.0], [1.0], [0.5]]))
    assert np.isnan(change[:2]).all()
    assert change[2, 0] == pytest.approx(2.0)
    base = np.array([0.0, 0.1, 0.1])
    found = select(base, np.tile(base[:, None] + 0.1, 4), doses=DOSES, reported=np.array([True, True, False]))
    assert (found.n, found.n_dropped) == (1, 1)
    assert found.best == pytest.approx(1.0)


def test_an_effect_that_is_there_is_not_called_optimism():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.1, 0.2, 4000)
    edited = base[:, None] * (1 + 0.1 * DOSES)
    found = select(base, edited, doses=DOSES, reported=np.arange(4000) < 2000)
    assert found.best == found.held_out == pytest.approx(0.2)
    assert found.signed == pytest.approx(0.15)


def test_inflation_of_the_best_of_a_grid_is_its_closed_form():
    rng = np.random.default_rng(0)
    z = np.abs(rng.standard_normal(1_000_000))
    for s, reach in ((0.02, 20.0), (0.05, 10.0), (0.0, 20.0)):
        assert null_inflation(s, reach) == pytest.approx(np.exp(s * reach * z).mean() - 1, abs=0.003)
    assert len(PAPER_GRID) == 32
    assert 0.0 not in PAPER_GRID


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"doses": np.array([-2.0, -1.0, 1.0, 3.0])}, ConfigError, "both signs"),
        ({"doses": DOSES[:3]}, ConfigError, "shape"),
        ({"reported": np.ones(6, dtype=bool)}, ConfigError, "0 to choose on"),
        ({"edited": np.full((6, 4), np.nan)}, ConfigError, "0 rows to report on"),
        ({"edited": np.full((6, 4), np.inf)}, NumericsError, "infinite"),
    ],
)
def test_what_cannot_be_selected_from(changes, error, words):
    arguments = {"base": np.full(6, 0.1), "edited": np.full((6, 4), 0.2), "doses": DOSES}
    arguments |= {"reported": np.arange(6) < 3}
    with pytest.raises(error, match=words):
        select(**(arguments | changes))


def noisy_world(rng, *, n_side=60, r=0.5, rho=0.5, gamma=1.0, slope=0.0):
    """Pairs whose effect is slope x I + gamma x S*, S* and I correlated by rho, S* seen with reliability r."""
    clusters = np.stack(np.meshgrid(np.arange(n_side), np.arange(n_side)), -1).reshape(-1, 2)
    n = len(clusters)
    interference, own = rng.standard_normal((2, n))
    similarity = rho * interference + np.sqrt(1 - rho**2) * own
    noise = np.sqrt((1 - r) / r) * rng.standard_normal((2, n))
    scale = np.sqrt(r)  # measures of variance 1, like S*
    effect = slope * interference + gamma * similarity + 0.5 * rng.standard_normal(n)
    return effect, interference, scale * (similarity + noise[0]), scale * (similarity + noise[1]), clusters


def test_noise_of_a_control_biases_and_a_second_measure_cures():
    """Validity 2.2: r = .5, rho = .5 leaves 0.286 gamma in the coefficient of interference; corrected: none."""
    assert naive_bias(gamma=1.0, rho=0.5, r=0.5) == pytest.approx(0.2857, abs=1e-4)
    rng = np.random.default_rng(0)
    effect, interference, first, second, clusters = noisy_world(rng, n_side=200)
    assert reliability(first, second).r == pytest.approx(0.5, abs=0.01)
    found = instrumented(effect, interference, first, second, clusters)
    assert found.naive == pytest.approx(0.2857, abs=0.02)
    assert found.corrected == pytest.approx(0.0, abs=0.02)
    assert found.similarity == pytest.approx(
        1 / np.sqrt(0.5), abs=0.03
    )  # per unit of a noisy measure's scale
    assert found.first_stage_f > 1000
    assert found.remark == ""


def test_the_corrected_interval_covers_the_truth():
    """Of 100 worlds a 95 % interval misses 1 to 11 with probability 0.99 if its coverage is 0.95."""
    rng = np.random.default_rng(1)
    missed = naive_missed = 0
    for _ in range(100):
        world = noisy_world(rng, n_side=24, slope=0.3)
        found = instrumented(*world)
        missed += not found.lo <= 0.3 <= found.hi
        naive_missed += abs(found.naive - 0.3) > 0.1
    assert missed <= 11
    assert naive_missed >= 95


def test_two_stage_least_squares_is_the_textbook_formula():
    rng = np.random.default_rng(2)
    effect, interference, first, second, clusters = noisy_world(rng, n_side=15, slope=0.2)
    Z = np.column_stack([np.ones(len(effect)), interference, second])
    X = np.column_stack([np.ones(len(effect)), interference, first])
    expected = np.linalg.solve(Z.T @ X, Z.T @ effect)  # exactly identified
    found = instrumented(effect, interference, first, second, clusters)
    assert found.corrected == pytest.approx(expected[1], abs=1e-10)
    assert found.similarity == pytest.approx(expected[2], abs=1e-10)


def test_a_second_measure_of_something_else_is_called_weak():
    rng = np.random.default_rng(3)
    effect, interference, first, _, clusters = noisy_world(rng, n_side=15)
    found = instrumented(effect, interference, first, rng.standard_normal(len(first)), clusters)
    assert found.first_stage_f < WEAK_F
    assert "weak instrument" in found.remark


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (np.arange(3.0), np.arange(3.0), "at least 4"),
        (np.arange(5.0), np.arange(4.0), "equally many"),
        (np.ones(5), np.arange(5.0), "first similarity does not vary"),
        (np.arange(5.0), np.array([0, 1, 2, 3, np.nan]), "second similarity holds values"),
    ],
)
def test_measures_that_say_nothing_are_refused(first, second, words):
    with pytest.raises(ConfigError, match=words):
        reliability(first, second)
