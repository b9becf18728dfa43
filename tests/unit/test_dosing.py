"""Doses at a given KL: closed forms, saturation, directions without effect, noise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysem.act.dosing import MAX_STEPS, TOLERANCE, doses_at_kl


def solved(law, wanted, start):
    wanted, start = np.atleast_1d(np.asarray(wanted, float)), np.atleast_1d(np.asarray(start, float))
    return doses_at_kl(lambda rows, strength: law(rows, strength), wanted, start)


@given(
    st.floats(1e-4, 1e4),
    st.sampled_from([0.001, 0.01, 0.1]),
    st.floats(-6, 6),
)
def test_a_quadratic_law_takes_two_measurements_where_the_start_is_near(fisher, wanted, far):
    exact = np.sqrt(2 * wanted / fisher)
    found = solved(lambda _, a: 0.5 * fisher * a**2, wanted, exact * np.exp(far))
    assert found.reached[0]
    assert found.strength[0] == pytest.approx(exact, rel=TOLERANCE)
    if abs(far) < 2:
        assert found.steps[0] <= 2


@given(st.floats(0.05, 20), st.sampled_from([0.001, 0.01, 0.1]), st.floats(0.2, 3))
def test_laws_that_bend_are_followed(scale, wanted, bend):
    def law(_, a):
        u = a / scale
        return 0.3 * u**2 / (1 + bend * u + 0.2 * u**2)  # saturates at 1.5 nats

    found = solved(law, wanted, 0.05 * scale)
    assert found.reached[0]
    assert law(None, found.strength)[0] == pytest.approx(wanted, rel=TOLERANCE)


@given(st.floats(0.05, 20), st.sampled_from([0.01, 0.1, 1.0]), st.floats(0.3, 3))
def test_laws_that_grow_steep_are_followed(scale, wanted, far):
    """KL that grows as the sixth power: a fixed point of alpha = sqrt(KL / e^L) would swing around it."""

    def law(_, a):
        u = a / scale
        return 0.01 * u**2 * (1 + 5 * u**4)

    found = solved(law, wanted, far * scale)
    assert found.reached[0]
    assert found.steps[0] <= 6
    assert law(None, found.strength)[0] == pytest.approx(wanted, rel=TOLERANCE)


def test_rows_that_cannot_get_there_say_so():
    def law(rows, a):
        table = [
            0 * a,
            0.05 * a**2 / (1 + a**2),
            0.5 * a**2,
            np.where(a > 0.1, np.inf, 0.5 * a**2),
            a * np.nan,
        ]
        return np.stack([np.broadcast_to(t, a.shape) for t in table])[rows, np.arange(len(rows))]

    found = doses_at_kl(law, np.full(5, 0.1), np.full(5, 1.0))
    assert found.reached.tolist() == [False, False, True, False, False]
    assert (found.steps[[0, 1, 3, 4]] == MAX_STEPS).all()


def test_infinite_kl_above_the_dose_does_not_hide_it():
    found = solved(lambda _, a: np.where(a > 2, np.inf, 0.5 * a**2), 0.1, 50.0)
    assert found.reached[0]
    assert found.strength[0] == pytest.approx(np.sqrt(0.2), rel=TOLERANCE)


def test_a_row_does_not_depend_on_its_neighbours():
    fisher = np.array([0.1, 3.0, 40.0])

    def law(rows, a):
        return 0.5 * fisher[rows] * a**2 / (1 + a)

    wanted, start = np.array([0.01, 0.1, 0.001]), np.ones(3)
    together = doses_at_kl(law, wanted, start)
    for k in range(3):
        alone = doses_at_kl(lambda rows, a, k=k: law(rows + k, a), wanted[k : k + 1], start[k : k + 1])
        assert alone.strength[0] == together.strength[k]
        assert alone.steps[0] == together.steps[k]


LINES = np.repeat(np.arange(3), 4)
DOSES = np.tile([-0.1, -0.01, 0.01, 0.1], 3)


def bent(rows, strength):
    """A push and its opposite differ, and KL is no parabola: three lines, of four rows each."""
    fisher, u = np.array([0.5, 3.0, 40.0])[LINES[rows]], np.sign(DOSES[rows]) * strength
    return 0.5 * fisher * u**2 * np.exp(0.9 * np.sqrt(fisher) * u - 0.5 * fisher * u**2)


def test_rows_of_one_line_share_what_was_measured():
    """Started within a factor of two, each dose of a line is found at the second look; alone it needs a third."""
    wanted, signs = np.abs(DOSES), np.sign(DOSES)
    exact = np.sqrt(2 * wanted / np.array([0.5, 3.0, 40.0])[LINES])
    found = doses_at_kl(bent, wanted, 1.6 * exact, signs=signs, lines=LINES)
    assert found.reached.all()
    np.testing.assert_allclose(bent(np.arange(12), found.strength), wanted, rtol=TOLERANCE)
    alone = doses_at_kl(bent, wanted, 1.6 * exact, signs=signs)
    assert alone.reached.all()
    assert found.steps.max() <= 2 < alone.steps.max()


def test_a_line_does_not_depend_on_its_neighbours():
    together = doses_at_kl(bent, np.abs(DOSES), np.ones(12), signs=np.sign(DOSES), lines=LINES)
    for k in range(0, 12, 4):
        own = slice(k, k + 4)
        alone = doses_at_kl(
            *(lambda rows, a, k=k: bent(rows + k, a), np.abs(DOSES[own]), np.ones(4)),
            signs=np.sign(DOSES[own]),
            lines=np.zeros(4, dtype=int),
        )
        assert alone.strength.tolist() == together.strength[own].tolist()
        assert alone.steps.tolist() == together.steps[own].tolist()
