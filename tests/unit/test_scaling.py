"""Curves over widths: a known exponent comes back, chance is what random rows have, capacity is shared out."""

import numpy as np
import pytest

from polysem.errors import ConfigError
from polysem.scaling import (
    at_matched,
    at_one_fvu,
    by_compute,
    capacity,
    chance_close,
    counter_intuitive,
    curves,
    explained_by_cosine,
    explained_by_response,
    geometry,
    power_fit,
    random_rows,
    rows_of,
    usual_of,
)
from polysem.stats.arms import PRIMARY
from polysem.store.tables import DENSITY, GRADIENT_MATRIX, PAIR_EFFECTS, RESPONSE


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0])
def test_a_known_exponent_comes_back(exponent: float) -> None:
    """Closed form with noise of 1 % of the curve's range, five widths and three seeds: within 0.05, and inside the interval."""
    rng = np.random.default_rng(3)
    width = np.repeat([768.0, 1536, 3072, 6144, 12288], 3)
    seed = np.tile([0.0, 1, 2], 5)
    clean = 0.2 + 3 * width**-exponent
    exact = power_fit(width, clean, seed)
    assert (exact.a, exact.b, exact.c) == pytest.approx((0.2, 3, exponent), rel=1e-3)
    noisy = power_fit(width, clean + 0.003 * np.ptp(clean) * rng.standard_normal(15), seed)
    assert abs(noisy.c - exponent) <= 0.05
    assert noisy.lo <= exponent <= noisy.hi


def test_a_measure_that_one_dictionary_does_not_have_has_no_curve() -> None:
    width = np.array([8.0, 16.0, 32.0])
    found = power_fit(width, np.array([0.5, np.nan, 0.1]), np.zeros(3))
    assert np.isnan([found.a, found.b, found.c, found.residual]).all()
    assert found.note == "unknown of 1 of 3: no curve"
    flat = power_fit(width, np.zeros(3), np.zeros(3))
    assert flat.note == "the same at every width: no curve"
    assert np.isnan([flat.c, flat.lo, flat.hi]).all()
    with pytest.raises(ConfigError, match="2 widths"):
        power_fit(width[:2], np.ones(2), np.zeros(2))


def test_seeds_that_have_no_exponent_bound_none() -> None:
    """Either seed alone is a step at the first width or a line, so a zero spread of their exponents would say nothing."""
    width, seed = np.tile([1.0, 2, 4, 8], 2), np.repeat([0.0, 1], 4)
    step = np.array([0.0, 1, 1, 1])
    made = power_fit(width, np.concatenate([step, step]), seed)
    assert "no such curve" in made.note
    assert np.isnan([made.lo, made.hi]).all()
    line = power_fit(width, np.concatenate([np.log(width[:4]), np.log(width[:4]) ** 1.5]), seed)
    assert np.isnan(line.lo)
    assert line.note


def test_random_rows_are_what_the_null_says() -> None:
    for n, d in ((600, 24), (900, 48)):
        made = geometry(random_rows(n, d, seed=1))
        assert made.close == pytest.approx(chance_close(d), rel=0.1)
        assert made.rms == pytest.approx(d**-0.5, rel=0.02)
        # C_i = 1 / (1 + (n - 1) / d) where all directions are alike
        assert made.capacity == pytest.approx(d / (n - 1 + d), rel=0.02)


def test_capacity_is_shared_out() -> None:
    """sum C_i <= d, with equality for a tight frame; and C_i by its definition."""
    assert np.allclose(capacity(np.eye(7)), 1)
    rng = np.random.default_rng(0)
    for n, d in ((5, 9), (40, 6), (300, 20)):
        rows = rng.standard_normal((n, d))
        brute = (rows**2).sum(1) ** 2 / ((rows @ rows.T) ** 2).sum(1)
        assert np.allclose(capacity(rows), brute, atol=1e-12)
        assert capacity(rows).sum() <= min(n, d) + 1e-6
    assert capacity(np.concatenate([np.eye(6), -np.eye(6)])).sum() == pytest.approx(6, abs=1e-6)


def test_geometry_counts_pairs_as_brute_force_does() -> None:
    units = random_rows(50, 8, seed=0)
    cosine = np.abs(units @ units.T)[~np.eye(50, dtype=bool)].reshape(50, 49)
    made = geometry(units)
    assert made.close == pytest.approx((cosine >= 0.3).mean())
    assert made.largest == pytest.approx(cosine.max(1).mean())
    assert made.rms == pytest.approx(np.sqrt((cosine**2).mean()))


def test_what_stands_beside_has_the_widths_that_were_measured() -> None:
    beside = rows_of([{"width": 10}, {"width": 20}], {0: random_rows(20, 6, seed=0)})
    assert [(r["kind"], r["width"]) for r in beside] == [("random", 10), ("thinned", 10), ("random", 20)]


def test_matched_values_are_told_inside_the_family_only() -> None:
    x, y = np.array([0.3, 0.1, 0.2]), np.array([3.0, 1.0, 2.0])
    assert at_matched(x, y, 0.15) == pytest.approx(1.5)
    assert np.isnan(at_matched(x, y, 0.35))
    with pytest.raises(ConfigError, match="three widths"):
        power_fit(np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.zeros(2))


# What a study measured ------------------------------------------------------------------------------------------------


def _cells(*cells: tuple[float, float, int]) -> list[dict[str, object]]:
    """(lower edge of interference, of similarity, pairs) of cells of 0.025."""
    return [
        {"sae": "a", "sae_j": "a", "count": n, "interference_lo": i, "interference_hi": i + 0.025}
        | {"similarity_lo": s, "similarity_hi": s + 0.025}
        for i, s, n in cells
    ]


def test_counter_intuitive_pairs_are_close_and_have_unlike_glosses() -> None:
    """Cells at both edges: 0.3 is close on either side, a similarity of 0.3 is not unlike."""
    close = (0.3, 0.275, 3), (0.3, 0.3, 1), (-0.325, -0.5, 2)
    far = (0.275, 0.1, 40), (-0.3, 0.1, 20), (0.0, 0.5, 34)
    found = counter_intuitive(DENSITY.of_rows(_cells(*close, *far)))
    assert (found.share, found.of_close, found.unlike) == (0.05, 5 / 6, 0.65)
    none = counter_intuitive(DENSITY.of_rows(_cells((0.0, 0.1, 4))))
    assert (none.share, none.unlike) == (0, 1)
    assert np.isnan(none.of_close)
    assert np.isnan(counter_intuitive(DENSITY.empty()).share)


def _matrix(x: np.ndarray, y: np.ndarray) -> object:
    rows = [
        {"sae": "a", "token_set": "in", "target": 0, "source": k, "interference": a, "linear": b}
        | {"linear_direct": None}
        for k, (a, b) in enumerate(zip(x.tolist(), y.tolist(), strict=True))
    ]
    return GRADIENT_MATRIX.of_rows(rows)


def test_what_the_cosine_explains_is_the_square_of_their_correlation() -> None:
    """The target's own row, at cosine 1, would make any cloud a line."""
    x = np.array([1.0, 0.2, -0.2, 0.2, -0.2])
    y = np.array([100.0, 3.0, 1.0, 1.0, -1.0])  # slope 5, and 1 off the line each: 1 of 2 is explained
    assert explained_by_cosine(_matrix(x, y)) == pytest.approx(0.5)
    assert np.isnan(explained_by_cosine(_matrix(x, np.zeros(5))))


def test_what_the_gradient_explains_of_effects_is_told_of_pairs_at_the_largest_dose() -> None:
    """Measured 1, 2, 3, 6 where the gradient says 1, 2, 3, 4: 1 - 4 / 14; of the three close ones 1 - 4 / (26 / 3)."""

    def table(schema: object, **columns: list[float]) -> object:
        rows = []
        for k, i in enumerate([0.1, -0.3, 0.3, 0.5]):
            for dose, relation in ((0.1, "pair"), (0.05, "pair"), (0.1, "self")):
                row = {c.name: None if c.nullable else 0.0 for c in schema.columns}
                row |= {
                    "sae": "a",
                    "locus": "feature",
                    "relation": relation,
                    "target": 0,
                    "source": k,
                    "draw": 0,
                }
                row |= {"token_set": "in", "dose": dose, "n_prompts": 3}
                row |= {"interference": i, "interference_bin": 0} if "interference" in row else {}
                off = 0.0 if (dose, relation) == (0.1, "pair") else 50.0
                rows.append(row | {name: values[k] + off for name, values in columns.items()})
        return schema.of_rows(rows)

    effects = table(PAIR_EFFECTS, **{PRIMARY: [1.0, 2.0, 3.0, 6.0]})
    response = table(RESPONSE, linear=[1.0, 2.0, 3.0, 4.0])
    r2, n = explained_by_response(effects, response)
    assert (r2, n) == (pytest.approx(1 - 4 / 14), 4)
    r2, n = explained_by_response(effects, response, least=0.3)
    assert (r2, n) == (pytest.approx(1 - 4 / (26 / 3)), 3)
    r2, n = explained_by_response(effects, response, least=0.5)
    assert np.isnan(r2)
    assert n == 1


# Widths and training told apart ---------------------------------------------------------------------------------------


def _row(
    width: int, *, k: int = 16, seed: int = 0, trained: int | None = 100, **more: object
) -> dict[str, object]:
    compute = None if trained is None else trained * width * 4
    same = {"capacity": 1.0, "close": 0.1, "rms": 0.1, "largest": 0.5, "fvu": 0.1, "apart": 0.5}
    return {
        "width": width,
        "k": k,
        "seed": seed,
        "training_tokens": trained,
        "compute": compute,
        **same,
        **more,
    }


def test_training_is_no_width() -> None:
    """Over widths only what was trained alike, over compute only one width; both curves come back."""
    family = [_row(w, seed=s, capacity=1 / w, counter=w**-0.5) for w in (8, 16, 32, 64) for s in (0, 1)]
    others = [_row(16, seed=s, trained=n, capacity=n**-0.5) for n in (25, 400, 1600) for s in (0, 1)]
    sparse = [_row(w, k=8, capacity=9.0) for w in (8, 16)]
    measured = [*others, *family, *sparse]
    assert {r["width"] for r in usual_of(measured)} == {8, 16, 32, 64}
    assert {r["training_tokens"] for r in usual_of(measured)} == {100}
    trained = by_compute(measured)
    assert {(r["width"], r["k"]) for r in trained} == {(16, 16)}
    assert len(trained) == 8
    assert by_compute(family) == []
    beside = rows_of(usual_of(measured), {0: random_rows(64, 4, seed=0)})
    fits = curves(measured, beside)
    assert fits["learnt, capacity"].c == pytest.approx(1, rel=1e-2)
    assert fits["learnt, counter"].c == pytest.approx(0.5, rel=1e-2)
    assert fits["compute at 16, counter"].note == "unknown of 6 of 8: no curve"
    assert fits["compute at 16, close"].note == "the same at every compute: no curve"
    assert not any(name.endswith("reach") for name in fits)
    usual = [{**r, "capacity": 0.1} if r["width"] == 16 else r for r in family]
    assert curves([*usual, *others], beside)["compute at 16, capacity"].c == pytest.approx(0.5, rel=1e-2)


def test_dictionaries_that_were_trained_longer_are_no_other_sparsity() -> None:
    """At one reconstruction sparsities are compared: one that was trained longer would be in between."""
    family = [_row(w, k=k, fvu=f) for w in (8, 16) for k, f in ((16, 0.2), (32, 0.1))]
    family += [_row(w) for w in (32, 64)]
    longer = [_row(8, trained=400, fvu=0.15, close=0.9)]
    assert at_one_fvu([*family, *longer]) == at_one_fvu(family)
    assert [r["width"] for r in at_one_fvu(family)] == [8, 16]
    apart = [_row(w, trained=w) for w in (8, 16, 32)]
    with pytest.raises(ConfigError, match="1 widths"):
        curves(apart, rows_of(apart, {0: random_rows(32, 4, seed=0)}))
