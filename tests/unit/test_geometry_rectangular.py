"""The pair kernel on two matrices, against dense float64 algebra, and its promises at the edges."""

import numpy as np
import pytest
import torch

from polysem.errors import MismatchError
from polysem.geometry import count_joint, mine_pairs, nearest, pair_blocks
from polysem.geometry.chance import covariance_null_of
from polysem.geometry.rows import canonical_cosines, prepare_rows

FLOAT64 = 1e-14
BINS, THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0), (0.4, 0.3, 0.2, 0.15)


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def worlds(n=300, m=170, d=24, k=10):
    rng = np.random.default_rng(0)
    first, second = ((rng.normal(size=(c, d)), rng.normal(size=(c, k))) for c in (n, m))
    second[0][: m // 3] = first[0][: m // 3] + 0.2 * second[0][: m // 3]
    return tuple((x.astype(np.float32), e.astype(np.float32)) for x, e in (first, second))


@pytest.mark.parametrize("screen", ["fp32", "bf16", "int8", "auto"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_pairs_equal_the_dense_way(screen, signed, flip):
    a, b = worlds()[::-1] if flip else worlds()
    table = mine_pairs(
        *a, min_interference=0.25, max_similarity=0.3, against=b, signed=signed, screen=screen, tile=64
    )
    cosine, similarity = unit(a[0]) @ unit(b[0]).T, unit(a[1]) @ unit(b[1]).T
    i, j = np.nonzero(((cosine >= 0.25) | (signed & (cosine <= -0.25))) & (similarity < 0.3))
    assert len(i) > 1000
    assert (table["i"].to_pylist(), table["j"].to_pylist()) == (i.tolist(), j.tolist())
    np.testing.assert_allclose(table["interference"], cosine[i, j], rtol=0, atol=FLOAT64)
    np.testing.assert_allclose(table["similarity"], similarity[i, j], rtol=0, atol=FLOAT64)


@pytest.mark.parametrize("cap", [1, 50, 1 << 21])
def test_the_stream_is_in_order_whatever_the_cap(cap):
    a, b = worlds()
    blocks = list(
        pair_blocks(*a, min_interference=0.2, max_similarity=None, against=b, tile=64, cap=cap, screen="fp32")
    )
    key = np.concatenate([block.i.astype(np.int64) * 1000 + block.j for block in blocks])
    assert (np.diff(key) > 0).all()
    assert len(key) == ((unit(a[0]) @ unit(b[0]).T) >= 0.2).sum()


def test_zero_rows_and_missing_glosses_on_either_side():
    (x, e), (y, f) = worlds(60, 40)
    x[3], y[5], e[7], f[9] = 0, 0, 0, 0
    whole = mine_pairs(x, e, min_interference=-1.0, max_similarity=None, against=(y, f))
    assert whole.num_rows == 59 * 39
    assert whole["similarity"].null_count == 39 + 59 - 1
    glossed = mine_pairs(x, e, min_interference=-1.0, max_similarity=1.1, against=(y, f))
    assert glossed.num_rows == 58 * 38
    assert (
        mine_pairs(x, None, min_interference=-1.0, max_similarity=None, against=(y, None)).num_rows == 59 * 39
    )
    assert (
        mine_pairs(x[:1], None, min_interference=-1.0, max_similarity=None, against=(y[:1], None)).num_rows
        == 1
    )
    assert (
        mine_pairs(x[3:4], None, min_interference=-1.0, max_similarity=None, against=(y, None)).num_rows == 0
    )


def test_matrices_that_do_not_fit_are_refused():
    (x, e), (y, f) = worlds(20, 20)
    for against, said in (
        ((y[:, :5], f), "directions of the two matrices are 24 and 5 wide"),
        ((y, f[:, :4]), "embeddings of the two matrices are 10 and 4 wide"),
        ((y, None), "one of the two matrices has embeddings"),
    ):
        with pytest.raises(MismatchError, match=said):
            mine_pairs(x, e, min_interference=0.2, max_similarity=0.3, against=against)
    with pytest.raises(MismatchError, match="24 and 5 wide"):
        nearest(x, k=2, among=y[:, :5])


@pytest.mark.parametrize("tile", [32, 2048])
def test_joint_counts_equal_the_dense_way(tile):
    (x, e), (y, f) = worlds(203, 121, 300)
    x[[0, 77]], e[[5, 77]], y[3], f[[3, 9, 120]] = 0, 0, 0, 0
    made = count_joint(x, e, bins=BINS, similarity_thresholds=THRESHOLDS, against=(y, f), tile=tile)
    with np.errstate(invalid="ignore"):
        cosine, similarity = unit(x) @ unit(y).T, unit(e) @ unit(f).T
    live, both = np.isfinite(cosine), np.isfinite(cosine) & np.isfinite(similarity)
    np.testing.assert_array_equal(made.interference, np.histogram(cosine[live], bins=made.edges)[0])
    reference = np.histogram2d(cosine[both], similarity[both], bins=[made.edges] * 2)[0]
    np.testing.assert_array_equal(made.histogram, reference)
    assert made.above(0.1) == (cosine[live] >= 0.1).sum()
    for axis, partners, glossed in ((1, made.partners, made.glossed), (0, made.partners_j, made.glossed_j)):
        np.testing.assert_array_equal(glossed, both.any(axis=axis))
        for n, (lo, hi) in enumerate(zip(BINS[:-1], (*BINS[1:-1], 2.0), strict=True)):
            for k, below in enumerate(THRESHOLDS):
                inside = both & (cosine >= lo) & (cosine < hi) & (similarity < below)
                np.testing.assert_array_equal(partners[:, n, k], inside.sum(axis=axis))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("k", [1, 7, 200])
def test_nearest_equals_the_dense_way(signed, k):
    (x, _), (y, _) = worlds()
    x[4], y[2] = 0, 0
    made = nearest(x, k=k, among=y, signed=signed, tile=64)
    i, j = np.indices((len(x), len(y)))
    cosine = canonical_cosines(
        prepare_rows(x, name="x"), i.ravel(), j.ravel(), other=prepare_rows(y, name="y")
    ).reshape(i.shape)
    size = np.where(np.isnan(cosine), -np.inf, np.abs(cosine) if signed else cosine)
    order = np.lexsort((j, -size), axis=1)[:, :k]
    wanted = np.where(np.isfinite(np.take_along_axis(size, order, axis=1)), order, -1)
    wanted = np.pad(wanted, ((0, 0), (0, k - wanted.shape[1])), constant_values=-1)
    np.testing.assert_array_equal(made.index, wanted)
    has = wanted >= 0
    np.testing.assert_array_equal(made.cosine[has], cosine[np.nonzero(has)[0], wanted[has]])
    assert np.isnan(made.cosine[~has]).all()


def test_the_null_of_two_populations_is_the_moments_of_all_their_pairs():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(80, 12)) + 0.4, rng.normal(size=(50, 12)) * np.linspace(0.2, 2, 12) + 0.3
    cosine = unit(x) @ unit(y).T
    null = covariance_null_of(prepare_rows(x, name="x"), prepare_rows(y, name="y"))
    assert null.n_pairs == 4000
    np.testing.assert_allclose([null.mean, null.variance], [cosine.mean(), cosine.var()], rtol=1e-9)
    np.testing.assert_allclose(null.d_eff, 1 / (cosine**2).mean(), rtol=1e-9)
    assert abs(null.z(cosine).mean()) < 1e-9
    assert null.expected_above(0.0) + null.expected_above(-1e-12) == pytest.approx(4000)


def test_torch_rows_give_the_same_pairs():
    (x, e), (y, f) = worlds(50, 60)
    given = {"min_interference": 0.2, "max_similarity": 0.3}
    made = mine_pairs(*map(torch.from_numpy, (x, e)), against=tuple(map(torch.from_numpy, (y, f))), **given)
    assert made.equals(mine_pairs(x, e, against=(y, f), **given))
