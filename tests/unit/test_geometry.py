"""The pair kernel against dense float64 algebra, and its promises at the edges."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from polysem.errors import ConfigError, MismatchError, NumericsError
from polysem.geometry import count_joint, mine_pairs, neighbours, pair_blocks
from polysem.geometry import product as products
from polysem.geometry import rows as row_module
from polysem.geometry import screen as screens
from polysem.geometry.rows import canonical_cosines, prepare_rows, unit_float32

FLOAT64 = 1e-14
"""two float64 sums of at most 64 products of unit rows, in different orders"""
BINS, THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 1.0), (0.4, 0.3, 0.2, 0.15)


def unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def dense_pairs(x, e, low, high, *, signed=False):
    cosine, similarity = unit(x) @ unit(x).T, unit(e) @ unit(e).T
    wanted = (cosine >= low) | (signed & (cosine <= -low))
    i, j = np.nonzero(np.triu(wanted & (similarity < high), 1))
    return i, j, cosine[i, j], similarity[i, j]


def world(n=300, d=24, k=10, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(n, k)).astype(np.float32)


@pytest.mark.parametrize("screen", ["fp32", "bf16", "int8", "auto"])
@pytest.mark.parametrize("signed", [False, True])
def test_pairs_equal_the_dense_way(screen, signed):
    x, e = world()
    table = mine_pairs(x, e, min_interference=0.25, max_similarity=0.3, signed=signed, screen=screen, tile=64)
    i, j, cosine, similarity = dense_pairs(x, e, 0.25, 0.3, signed=signed)
    assert len(i) > 500
    assert table["i"].to_pylist() == i.tolist()
    assert table["j"].to_pylist() == j.tolist()
    np.testing.assert_allclose(table["interference"], cosine, rtol=0, atol=FLOAT64)
    np.testing.assert_allclose(table["similarity"], similarity, rtol=0, atol=FLOAT64)


def test_public_contract_of_the_columns():
    x, e = world(50)
    table = mine_pairs(torch.from_numpy(x), torch.from_numpy(e), min_interference=0.2, max_similarity=0.3)
    assert table.schema.names == ["i", "j", "interference", "similarity"]
    assert table.schema.types == [pa.int32(), pa.int32(), pa.float64(), pa.float64()]
    assert table.equals(mine_pairs(x, e, min_interference=0.2, max_similarity=0.3))
    assert (table["i"].to_numpy() < table["j"].to_numpy()).all()
    assert (table["interference"].to_numpy() >= 0.2).all()
    assert (table["similarity"].to_numpy() < 0.3).all()


def test_thresholds_are_inclusive_for_interference_and_strict_for_similarity():
    x = np.array([[1.0, 0, 0], [0.5, np.sqrt(0.75), 0], [-0.5, 0, np.sqrt(0.75)]])
    same = np.array([[1.0, 0], [0, 1], [0, 1]])
    cosine = float(canonical_cosines(prepare_rows(x, name="x"), np.array([0]), np.array([1]))[0])
    at = mine_pairs(x, same, min_interference=cosine, max_similarity=0.5)
    assert at.to_pylist() == [{"i": 0, "j": 1, "interference": cosine, "similarity": 0.0}]
    above = np.nextafter(cosine, 1)
    assert mine_pairs(x, same, min_interference=above, max_similarity=0.5).num_rows == 0
    assert mine_pairs(x, same, min_interference=cosine, max_similarity=0.0).num_rows == 0
    signed = mine_pairs(x, same, min_interference=cosine, max_similarity=0.5, signed=True)
    assert [(r["i"], r["j"]) for r in signed.to_pylist()] == [(0, 1), (0, 2)]


def test_rows_without_direction_or_gloss_are_left_out():
    x, e = world(40)
    x[3], e[5] = 0, 0
    table = mine_pairs(x, e, min_interference=-1.0, max_similarity=1.1)
    assert table.num_rows == 38 * 37 // 2
    assert not {3, 5} & {*table["i"].to_pylist(), *table["j"].to_pylist()}
    every = mine_pairs(x, e, min_interference=-1.0, max_similarity=None)
    assert every.num_rows == 39 * 38 // 2
    touched = [5 in (r["i"], r["j"]) for r in every.to_pylist()]
    assert [r["similarity"] is None for r in every.to_pylist()] == touched
    bare = mine_pairs(x, None, min_interference=-1.0, max_similarity=None)
    assert bare.num_rows == every.num_rows
    assert bare["similarity"].null_count == bare.num_rows


@pytest.mark.parametrize("n", [0, 1, 2, 9])
def test_few_rows(n):
    x, e = world(n)
    table = mine_pairs(x, e, min_interference=-1.0, max_similarity=1.1)
    assert table.num_rows == n * (n - 1) // 2


def test_half_types_are_widened_and_scale_does_not_matter():
    x, e = world(60)
    reference = mine_pairs(x, e, min_interference=0.2, max_similarity=0.3)
    power = mine_pairs(x * 2.0**40, e * 2.0**-30, min_interference=0.2, max_similarity=0.3)
    assert power.equals(reference)
    half = torch.from_numpy(x).to(torch.bfloat16)
    assert mine_pairs(half, torch.from_numpy(e), min_interference=0.2, max_similarity=0.3).equals(
        mine_pairs(half.float().numpy(), e, min_interference=0.2, max_similarity=0.3)
    )


def test_float64_rows_of_extreme_size_keep_their_directions():
    x, e = world(60)
    x64 = x.astype(np.float64)
    reference = mine_pairs(x64, e, min_interference=0.2, max_similarity=0.3)
    scale = 2.0 ** np.random.default_rng(0).integers(-900, 900, size=(60, 1)).astype(np.float64)
    assert mine_pairs(x64 * scale, e, min_interference=0.2, max_similarity=0.3).equals(reference)


def test_arguments_are_not_changed():
    x, e = world(80)
    a, b = x.copy(), e.copy()
    t = torch.from_numpy(x.copy())
    mine_pairs(x, e, min_interference=0.2, max_similarity=0.3, signed=True, screen="int8", tile=32)
    mine_pairs(t, e, min_interference=0.2, max_similarity=0.3, signed=True, screen="bf16", tile=32)
    count_joint(t, e, bins=BINS, similarity_thresholds=THRESHOLDS, tile=32)
    np.testing.assert_array_equal(x, a)
    np.testing.assert_array_equal(e, b)
    np.testing.assert_array_equal(t.numpy(), a)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_entries_are_named(value):
    x, e = world(20)
    x[13, 4] = value
    with pytest.raises(NumericsError, match=f"directions: row 13 holds {value} at column 4"):
        mine_pairs(x, e, min_interference=0.2, max_similarity=0.3)
    x[13, 4], e[7, 2] = 0, value
    with pytest.raises(NumericsError, match=f"embeddings: row 7 holds {value} at column 2"):
        count_joint(x, e, bins=BINS, similarity_thresholds=THRESHOLDS)


def test_bad_arguments_are_refused():
    x, e = world(20)
    with pytest.raises(MismatchError, match="20 rows and embeddings 19"):
        mine_pairs(x, e[:19], min_interference=0.2, max_similarity=0.3)
    with pytest.raises(MismatchError, match="20 rows and embeddings 19"):
        count_joint(x, e[:19], bins=BINS, similarity_thresholds=THRESHOLDS)
    with pytest.raises(ConfigError, match="min_interference must be a finite number, got nan"):
        mine_pairs(x, e, min_interference=float("nan"), max_similarity=0.3)
    with pytest.raises(ConfigError, match="embeddings are None"):
        mine_pairs(x, None, min_interference=0.2, max_similarity=0.3)
    with pytest.raises(ConfigError, match="tile must be a positive multiple of 8, got 12"):
        mine_pairs(x, e, min_interference=0.2, max_similarity=0.3, tile=12)
    for bins, message in (
        ((0.0, 0.1234), "multiples of 0.001"),
        ((0.0, 1.5), "cosines in"),
        ((0.2, 0.1), "rising edges"),
        ((0.2,), "rising edges"),
    ):
        with pytest.raises(ConfigError, match=message):
            count_joint(x, e, bins=bins, similarity_thresholds=(0.3,))


def test_stream_is_sorted_and_bounded_when_every_pair_survives():
    n, cap = 240, 500
    x = np.ones((n, 16), np.float32)  # one direction over and over
    e = world(n)[1]
    blocks = list(
        pair_blocks(x, e, min_interference=0.2, max_similarity=None, tile=64, cap=cap, screen="fp32")
    )
    assert max(len(block.i) for block in blocks) <= max(cap, n)
    assert len(blocks) > n * (n - 1) // 2 // (2 * cap)
    i = np.concatenate([block.i for block in blocks]).astype(np.int64)
    j = np.concatenate([block.j for block in blocks])
    assert len(i) == n * (n - 1) // 2
    assert (np.diff(i * n + j) > 0).all()
    assert all((block.interference == 1).all() for block in blocks)


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_a_screen_that_fails_its_probe_gives_way_to_fp32_with_the_same_pairs(kind, monkeypatch):
    x, e = world()
    with_screen = mine_pairs(x, e, min_interference=0.3, max_similarity=0.3, screen=kind)
    monkeypatch.setattr(screens, "probe", lambda arithmetic, device: arithmetic == "fp32")
    made = screens.make_screen(
        unit_float32(prepare_rows(x, name="x")), name=kind, tile=64, device="cpu", threshold=0.3
    )
    assert made.arithmetic == "fp32"
    assert mine_pairs(x, e, min_interference=0.3, max_similarity=0.3, screen=kind).equals(with_screen)


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_what_is_worked_on_at_a_time_changes_no_pair(kind, monkeypatch):
    x, e = world()
    at_once = mine_pairs(x, e, min_interference=0.25, max_similarity=0.3, screen=kind, tile=64)
    monkeypatch.setattr(
        screens, "_PANEL_BYTES", 4 * 64 * 40
    )  # panels of 40 and 24 rows, the second below the least
    monkeypatch.setattr(screens, "_CACHED", 24 * 7)
    monkeypatch.setattr(row_module, "_CACHED", 24 * 7)
    assert mine_pairs(x, e, min_interference=0.25, max_similarity=0.3, screen=kind, tile=64).equals(at_once)
    assert at_once.num_rows > 500


def test_probe_finds_out_saturating_and_short_accumulators(monkeypatch):
    def saturating(a, b, *, out):
        return (a.to(torch.int64) @ b.to(torch.int64)).clamp(-(2**15), 2**15 - 1).to(torch.int32)

    def short(a, b, *, out):
        total = torch.zeros(a.shape[0], b.shape[1], dtype=torch.bfloat16)
        for k in range(a.shape[1]):
            total += a[:, k : k + 1] * b[k : k + 1]
        return total

    products.probe.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", saturating)
    monkeypatch.setattr(torch, "mm", short)
    assert not products.probe("int8", "cpu")
    assert not products.probe("bf16", "cpu")
    monkeypatch.undo()
    products.probe.cache_clear()


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_margins_hold_for_the_products_as_made(kind):
    """The bound itself, not only its consequence: how far any product is from its canonical cosine."""
    x = world(128, 96)[0]
    x[:40] = x[40] + 0.01 * x[:40]  # large cosines, where relative rounding counts
    x[50, 3] = 30  # one spiky row spoils the int8 scale of its block only
    rows = prepare_rows(x, name="x")
    made = screens.make_screen(unit_float32(rows), name=kind, tile=64, device="cpu", threshold=1.0)
    assert made.arithmetic == kind or not products.probe(kind, "cpu")
    for a, b in ((0, 0), (0, 1), (1, 1)):
        i, j = np.meshgrid(np.arange(64) + 64 * a, np.arange(64) + 64 * b, indexing="ij")
        exact = canonical_cosines(rows, i.ravel(), j.ravel()).reshape(64, 64)
        product = made.products(slice(64 * a, 64 * a + 64), b)[:64, :64].double().numpy()
        product /= made.rows.scale[a] * made.columns.scale[b]
        rounding = np.abs(product) * (2.0**-8 if made.arithmetic == "bf16" else 0)
        assert (np.abs(product - exact) <= made.margin(a, b) + rounding).all()
    assert made.margin(1, 1) < made.margin(0, 0) or kind != "int8"


def test_matmul_precision_is_left_as_it_was_found():
    x, e = world(200, 64)
    reference = mine_pairs(x, e, min_interference=0.2, max_similarity=0.3, screen="fp32")
    counts = count_joint(x, e, bins=BINS, similarity_thresholds=THRESHOLDS)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert mine_pairs(x, e, min_interference=0.2, max_similarity=0.3, screen="fp32").equals(reference)
        again = count_joint(x, e, bins=BINS, similarity_thresholds=THRESHOLDS)
        np.testing.assert_array_equal(again.histogram, counts.histogram)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def dense_counts(x, e, bins, thresholds):
    cosine, similarity = unit(x) @ unit(x).T, unit(e) @ unit(e).T
    upper = np.triu_indices(len(x), 1)
    np.fill_diagonal(cosine, -2)
    top = [*bins[1:-1], np.nextafter(bins[-1], 2) if bins[-1] == 1 else bins[-1]]
    partners = np.stack(
        [
            np.stack(
                [((cosine >= lo) & (cosine < hi) & (similarity < s)).sum(axis=1) for s in thresholds], axis=1
            )
            for lo, hi in zip(bins[:-1], top, strict=True)
        ],
        axis=1,
    )
    return cosine[upper], similarity[upper], partners


@pytest.mark.parametrize(
    ("bins", "thresholds"),
    [
        (BINS, THRESHOLDS),
        ((-0.5, -0.215, 0.005, 0.31), (0.15, 0.4, -0.005)),
        ((-1.0, -0.123, 0.124, 0.125), (0.999, 0.001)),
    ],
)
@pytest.mark.parametrize("tile", [64, 2048])
def test_joint_counts_equal_the_dense_way(bins, thresholds, tile):
    x, e = world(203, 300, 10, seed=4)
    x += 0.3
    made = count_joint(x, e, bins=bins, similarity_thresholds=thresholds, tile=tile)
    cosine, similarity, partners = dense_counts(x, e, bins, thresholds)
    reference, _, _ = np.histogram2d(cosine, similarity, bins=[made.edges, made.edges])
    np.testing.assert_array_equal(made.histogram, reference)
    np.testing.assert_array_equal(made.interference, reference.sum(axis=1))
    np.testing.assert_array_equal(made.partners, partners)
    assert made.above(0.1) == (cosine >= 0.1).sum()
    assert made.above(-0.025) == (cosine < -0.025).sum()
    with pytest.raises(ConfigError, match="no edge"):
        made.above(0.11)


def test_joint_counts_with_rows_of_every_kind():
    x, e = world(150, 20, 8, seed=2)
    x[[0, 77]], e[[5, 6, 77, 149]] = 0, 0
    made = count_joint(x, e, bins=BINS, similarity_thresholds=THRESHOLDS, tile=32)
    live, glossed = np.flatnonzero(x.any(axis=1)), np.flatnonzero(x.any(axis=1) & e.any(axis=1))
    np.testing.assert_array_equal(np.flatnonzero(made.glossed), glossed)
    cosine, similarity, partners = dense_counts(x[glossed], e[glossed], BINS, THRESHOLDS)
    np.testing.assert_array_equal(
        made.histogram, np.histogram2d(cosine, similarity, bins=[made.edges] * 2)[0]
    )
    np.testing.assert_array_equal(made.partners[glossed], partners)
    assert made.partners.sum() == partners.sum()
    full = (unit(x[live]) @ unit(x[live]).T)[np.triu_indices(len(live), 1)]
    np.testing.assert_array_equal(made.interference, np.histogram(full, bins=made.edges)[0])


def test_pairs_on_an_edge_are_counted_by_their_canonical_cosine():
    """Thousands of pairs within float32 rounding of an edge: float32 alone would misplace many."""
    rng = np.random.default_rng(0)
    n, d = 120, 513
    basis = np.linalg.qr(rng.normal(size=(d, n + 1)))[0].T
    # cosine of every pair is a^2 = 0.3 up to 1e-8: a shared direction with weight a
    a = np.sqrt(0.3 + 1e-8 * rng.normal(size=(n, 1)))
    x = (a * basis[0] + np.sqrt(1 - a**2) * basis[1:]).astype(np.float64)
    e = rng.normal(size=(n, 6))
    rows = prepare_rows(x, name="x")
    upper = np.triu_indices(n, 1)
    exact = canonical_cosines(rows, *upper)
    assert 1000 < (exact >= 0.3).sum() < 6000
    naive = (x.astype(np.float32) @ x.astype(np.float32).T)[upper]
    assert ((naive >= np.float32(0.3)) != (exact >= 0.3)).sum() > 500
    made = count_joint(x, e, bins=BINS, similarity_thresholds=(1.0,))
    assert made.above(0.3) == (exact >= 0.3).sum()
    assert made.partners[:, 3].sum() == 2 * (exact >= 0.3).sum()
    mined = mine_pairs(x, e, min_interference=0.3, max_similarity=None)
    assert mined.num_rows == (exact >= 0.3).sum()


def test_identical_rows_land_in_the_closed_last_cell():
    x, e = np.ones((6, 4), np.float32), np.ones((6, 4), np.float32)
    made = count_joint(x, e, bins=BINS, similarity_thresholds=(0.4,))
    assert made.histogram[-1, -1] == 15
    assert made.histogram.sum() == 15
    opposite = np.concatenate([x[:3], -x[:3]])
    made = count_joint(opposite, e, bins=BINS, similarity_thresholds=(0.4, 1.0))
    assert made.histogram[0, -1] == 9
    assert made.partners[:, :, 0].sum() == 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's procfs")
def test_memory_stays_below_a_dense_matrix():
    """N = 12,000: one N x N float32 matrix would be 576 MB; the whole pass must grow by far less."""
    code = """
import json, numpy as np, torch
from polysem.geometry import mine_pairs
torch.set_num_threads(1)
def peak():  # of this address space; ru_maxrss of a child begins with the peak of its parent
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
rng = np.random.default_rng(0)
x = rng.normal(size=(12000, 32)).astype(np.float32); e = rng.normal(size=(12000, 8)).astype(np.float32)
mine_pairs(x[:5000], e[:5000], min_interference=0.6, max_similarity=0.3)
before = peak()
n = mine_pairs(x, e, min_interference=0.75, max_similarity=0.3).num_rows
print(json.dumps([n, (peak() - before) / 1024]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    found, grown_mb = json.loads(done.stdout.splitlines()[-1])
    assert found > 0
    assert grown_mb < 120


def test_importing_the_kernel_does_not_import_torch():
    code = "import sys, polysem.geometry; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "False"


def test_neighbours_of_equal_rows_are_bounded_in_memory_and_go_by_index(monkeypatch):
    monkeypatch.setattr("polysem.geometry.neighbours._CAP", 2000)
    held = []
    thin = neighbours._Nearest.thin
    monkeypatch.setattr(neighbours._Nearest, "thin", lambda self: thin(self) or held.append(self._n))
    made = neighbours.nearest(np.ones((300, 16), np.float32), k=3, tile=64)
    assert made.index[:5].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2]]
    assert (made.index[4:] == [0, 1, 2]).all()
    assert (made.cosine == 1).all()
    assert len(held) > 10
    assert max(held) <= 2000


def test_bad_arguments_of_neighbours_are_refused():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        neighbours.nearest(np.ones((3, 4)), k=0)
    with pytest.raises(ConfigError, match="multiple of 8, got 9"):
        neighbours.nearest(np.ones((3, 4)), k=1, tile=9)
