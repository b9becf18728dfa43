"""What pairs and counts may not depend on."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polysem.geometry import count_joint, mine_pairs, nearest
from polysem.geometry.rows import canonical_cosines, prepare_rows

BINS, THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0), (0.4, 0.3, 0.2, 0.15)
PROFILE = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def dictionaries(draw):
    """Rows with ties, duplicates, zeros, spikes and a common mode: small integers collide, noise does not."""
    n, d, k = draw(st.integers(2, 90)), draw(st.integers(1, 40)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        x = rng.integers(-2, 3, size=(n, d)).astype(np.float32)
        e = rng.integers(-1, 2, size=(n, k)).astype(np.float32)
    else:
        x = rng.normal(size=(n, d)).astype(np.float32) + np.float32(draw(st.sampled_from([0.0, 0.5, 3.0])))
        e = rng.normal(size=(n, k)).astype(np.float32)
        x[rng.integers(0, n, n // 5)] = x[0]
        x[rng.integers(0, n), rng.integers(0, d)] = draw(st.sampled_from([0.0, 50.0, -1e4]))
    return x, e


@PROFILE
@given(
    world=dictionaries(),
    low=st.sampled_from([-1.0, 0.0, 0.05, 0.2, 0.5, 1.0]),
    high=st.sampled_from([None, -0.2, 0.0, 0.3, 1.0, 1.1]),
    signed=st.booleans(),
    screen=st.sampled_from(["fp32", "bf16", "int8", "auto"]),
    tile=st.sampled_from([8, 16, 32, 64, 2048]),
    threads=st.sampled_from([1, 2]),
)
def test_pairs_and_values_do_not_depend_on_how_they_are_found(
    world, low, high, signed, screen, tile, threads
):
    x, e = world
    rows, glosses = prepare_rows(x, name="x"), prepare_rows(e, name="e")
    i, j = np.triu_indices(len(x), 1)
    cosine, similarity = canonical_cosines(rows, i, j), canonical_cosines(glosses, i, j)
    keep = (cosine >= low) | (signed & (cosine <= -low))
    keep &= np.isfinite(cosine) if high is None else similarity < high
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        table = mine_pairs(
            x, e, min_interference=low, max_similarity=high, signed=signed, screen=screen, tile=tile
        )
    finally:
        torch.set_num_threads(before)
    assert table["i"].to_pylist() == i[keep].tolist()
    assert table["j"].to_pylist() == j[keep].tolist()
    np.testing.assert_array_equal(table["interference"].to_numpy(), cosine[keep])
    found = table["similarity"].to_numpy(zero_copy_only=False)
    np.testing.assert_array_equal(found, similarity[keep])


@PROFILE
@given(world=dictionaries(), tile=st.sampled_from([8, 24, 64, 2048]))
def test_counts_are_those_of_canonical_cosines_for_every_tile(world, tile):
    x, e = world
    made = count_joint(x, e, bins=BINS, similarity_thresholds=THRESHOLDS, tile=tile)
    i, j = np.triu_indices(len(x), 1)
    cosine = canonical_cosines(prepare_rows(x, name="x"), i, j)
    similarity = canonical_cosines(prepare_rows(e, name="e"), i, j)
    live = np.isfinite(cosine)
    np.testing.assert_array_equal(made.interference, np.histogram(cosine[live], bins=made.edges)[0])
    both = live & np.isfinite(similarity)
    i, j, cosine, similarity = i[both], j[both], cosine[both], similarity[both]
    np.testing.assert_array_equal(
        made.histogram, np.histogram2d(cosine, similarity, bins=[made.edges] * 2)[0]
    )
    for b, (lo, hi) in enumerate(zip(BINS[:-1], (*BINS[1:-1], 2.0), strict=True)):
        for t, threshold in enumerate(THRESHOLDS):
            inside = (cosine >= lo) & (cosine < hi) & (similarity < threshold)
            expected = np.bincount(i[inside], minlength=len(x)) + np.bincount(j[inside], minlength=len(x))
            np.testing.assert_array_equal(made.partners[:, b, t], expected)


@PROFILE
@given(world=dictionaries(), seed=st.integers(0, 1000))
def test_permuting_features_permutes_pairs_and_changes_no_value(world, seed):
    x, e = world
    order = np.random.default_rng(seed).permutation(len(x))
    plain = mine_pairs(x, e, min_interference=0.1, max_similarity=0.4, signed=True)
    moved = mine_pairs(x[order], e[order], min_interference=0.1, max_similarity=0.4, signed=True)

    def named(table, names):
        return {
            (*sorted((names[r["i"]], names[r["j"]])), r["interference"], r["similarity"])
            for r in table.to_pylist()
        }

    assert named(moved, order.tolist()) == named(plain, list(range(len(x))))


@PROFILE
@given(
    pair=st.integers(1, 300).flatmap(
        lambda d: arrays(np.float32, (2, d), elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False))
    ),
    repeats=st.integers(1, 600),
)
def test_the_canonical_cosine_is_symmetric_bounded_and_the_same_in_any_company(pair, repeats):
    rows = prepare_rows(pair, name="pair")
    one, zero = np.ones(repeats, np.int64), np.zeros(repeats, np.int64)
    forward, backward = canonical_cosines(rows, zero, one), canonical_cosines(rows, one, zero)
    alone = canonical_cosines(rows, zero[:1], one[:1])
    np.testing.assert_array_equal(forward, backward)
    np.testing.assert_array_equal(forward, np.repeat(alone, repeats))
    assert np.isnan(alone[0]) == (not pair.any(axis=1).all())
    assert not np.abs(forward).max(initial=0) > 1


@PROFILE
@given(
    world=dictionaries(),
    k=st.sampled_from([1, 2, 5, 100]),
    signed=st.booleans(),
    screen=st.sampled_from(["auto", "fp32", "bf16"]),
    tile=st.sampled_from([8, 24, 64, 2048]),
)
def test_neighbours_are_the_largest_canonical_cosines_whatever_the_pass(world, k, signed, screen, tile):
    x, _ = world
    rows = prepare_rows(x, name="x")
    made = nearest(x, k=k, signed=signed, screen=screen, tile=tile)
    for i in range(len(x)):
        others = np.array([j for j in np.flatnonzero(rows.live) if j != i and rows.live[i]], np.int64)
        cosine = canonical_cosines(rows, np.full(len(others), i), others)
        order = np.lexsort((others, -np.abs(cosine) if signed else -cosine))[:k]
        expected = np.full(k, -1)
        expected[: len(order)] = others[order]
        assert made.index[i].tolist() == expected.tolist()
        np.testing.assert_array_equal(made.cosine[i, : len(order)], cosine[order])
        assert np.isnan(made.cosine[i, len(order) :]).all()


@PROFILE
@given(
    world=dictionaries(),
    low=st.sampled_from([-1.0, 0.0, 0.2, 1.0]),
    high=st.sampled_from([None, 0.3, 1.1]),
    signed=st.booleans(),
    screen=st.sampled_from(["fp32", "bf16", "int8"]),
    tile=st.sampled_from([8, 32, 2048]),
)
def test_a_matrix_against_itself_is_the_square_twice_and_the_diagonal(world, low, high, signed, screen, tile):
    x, e = world
    given_ = {
        "min_interference": low,
        "max_similarity": high,
        "signed": signed,
        "screen": screen,
        "tile": tile,
    }
    square, whole = mine_pairs(x, e, **given_), mine_pairs(x, e, against=(x.copy(), e.copy()), **given_)
    i, j = whole["i"].to_numpy(), whole["j"].to_numpy()
    assert whole.filter(i < j).equals(square)
    turned = whole.filter(i > j).rename_columns(["j", "i", *whole.column_names[2:]])
    order = [("i", "ascending"), ("j", "ascending")]
    assert turned.select(whole.column_names).sort_by(order).equals(square)
    counts, both = (
        count_joint(x, e, bins=BINS, similarity_thresholds=THRESHOLDS, against=other, tile=tile)
        for other in (None, (x, e))
    )
    glossed = np.flatnonzero(counts.glossed)
    rows, glosses = prepare_rows(x, name="x"), prepare_rows(e, name="e")
    own = (canonical_cosines(side, glossed, glossed) for side in (rows, glosses))
    diagonal = np.histogram2d(*own, bins=[counts.edges] * 2)[0]
    np.testing.assert_array_equal(both.histogram, 2 * counts.histogram + diagonal)
    np.testing.assert_array_equal(both.partners, both.partners_j)
    np.testing.assert_array_equal(counts.partners, counts.partners_j)


@PROFILE
@given(world=dictionaries(), other=dictionaries(), k=st.integers(1, 5), tile=st.sampled_from([8, 64]))
def test_two_matrices_in_turned_order_give_the_same_pairs(world, other, k, tile):
    (x, e), (y, f) = world, other
    d, w = min(x.shape[1], y.shape[1]), min(e.shape[1], f.shape[1])
    x, y, e, f = x[:, :d], y[:, :d], e[:, :w], f[:, :w]
    given_ = {"min_interference": 0.1, "max_similarity": None, "tile": tile}
    there, back = mine_pairs(x, e, against=(y, f), **given_), mine_pairs(y, f, against=(x, e), **given_)
    turned = back.rename_columns(["j", "i", *back.column_names[2:]]).select(back.column_names)
    assert turned.sort_by([("i", "ascending"), ("j", "ascending")]).equals(there)
    near = nearest(x, k=k, among=y, tile=tile)
    i, j = np.indices((len(x), len(y)))
    cosine = canonical_cosines(
        prepare_rows(x, name="x"), i.ravel(), j.ravel(), other=prepare_rows(y, name="y")
    )
    best = np.sort(np.where(np.isnan(cosine), -np.inf, cosine).reshape(i.shape), axis=1)[:, ::-1][:, :k]
    found = np.where(near.index >= 0, near.cosine, -np.inf)[:, : best.shape[1]]
    np.testing.assert_array_equal(found, best)
