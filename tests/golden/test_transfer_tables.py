"""The paper's Tables 1 and 5: what was printed, and the conclusions that survive a design effect."""

import pytest

from polysem.paper.tables import (
    holm_survivors,
    printed_cells,
    sign_counts,
    strictly_ordered,
    survivors,
    unstarred_negatives,
)


def test_the_tables_are_whole():
    cells = printed_cells()
    assert len(cells) == 40
    assert len({(c.category, c.model) for c in cells}) == 40
    by = {(c.category, c.model): c for c in cells}
    assert by["location", "Gemma-2-9B"].rate == (10.16, 12.71, 11.36, 10.66)
    assert by["location", "Gemma-2-9B"].stars == (0, 3, 0)
    assert by["time", "Llama-3.1-70B"].rate == (78.28, 36.87, 36.68, 37.71)


def test_sign_counts():
    found = {(s.cells, s.arm, s.other): s for s in sign_counts()}
    rows = {
        ("all", "high", "random"): (29, 40, 1.18, None),
        ("small", "high", "random"): (9, 16, 0.67, 0.80),
        ("large", "high", "random"): (20, 24, 1.52, 0.002),
        ("large", "high", "low"): (18, 24, 1.06, 0.023),
    }
    for key, (positive, n, mean, p) in rows.items():
        assert (found[key].positive, found[key].n) == (positive, n), key
        assert found[key].mean == pytest.approx(mean, abs=0.006), key
        if p is not None:
            assert found[key].p == pytest.approx(p, abs=0.006), key


def test_the_claimed_order_holds_in_eleven_of_forty_cells():
    assert len(strictly_ordered()) == 11


def test_nine_cells_are_significantly_negative_and_bear_no_star():
    found = {(c.category, c.model): round(c.difference("high"), 2) for c in unstarred_negatives()}
    assert found == {
        ("science", "Pythia-70M"): -5.45, ("number", "GPT-2"): -4.38, ("color", "Pythia-70M"): -3.91,
        ("animal", "GPT-2"): -3.39, ("person", "Pythia-70M"): -3.29, ("color", "Gemma-2-9B"): -2.09,
        ("emotion", "Llama-3.1-8B"): -1.43, ("color", "GPT-2"): -1.36, ("animal", "Pythia-70M"): -1.34,
    }  # fmt: skip
    assert all(c.stars[1] == 0 for c in unstarred_negatives())


def test_what_is_left_at_a_design_effect():
    assert len(holm_survivors()) == 11
    left = survivors([1.0, 5.0, 10.0, 20.0])
    assert [len(left[d]) for d in (5.0, 10.0, 20.0)] == [6, 2, 0]
    assert {(c.category, c.model) for c in left[10.0]} == {
        ("science", "Llama-3.1-70B"),
        ("emotion", "Llama-3.1-70B"),
    }
    assert len(left[1.0]) > 11
