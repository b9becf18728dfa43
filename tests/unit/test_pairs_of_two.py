"""The map of pairs of two dictionaries against dense float64 algebra."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from tests.unit.test_pairs import DEAD_ROW, FLOAT64, K, N, small_sae, small_table

from polysem.config import PairsConfig
from polysem.errors import MismatchError
from polysem.features import FeatureTable
from polysem.pairs import PairMap, map_pairs
from polysem.saes.base import SAE

CONFIG = PairsConfig()


def both_tables() -> FeatureTable:
    first, second = small_table("a", 1), small_table("b", 2)
    joined = {
        name: pa.concat_tables([table, second.tables()[name]]) for name, table in first.tables().items()
    }
    return FeatureTable(**joined, embeddings=first.embeddings | second.embeddings)


def unit(matrix) -> np.ndarray:
    rows = np.asarray(matrix, np.float64)
    with np.errstate(invalid="ignore"):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def glosses(table: FeatureTable, label: str) -> np.ndarray:
    whole = np.full((N, K), np.nan)
    rows = table.features.filter(pc.equal(table.features["sae"], label))
    whole[rows["feature"].to_numpy()] = table.embeddings[label]
    return unit(whole)


@pytest.fixture(scope="module")
def saes() -> tuple[SAE, SAE]:
    return small_sae(0), small_sae(5)


@pytest.fixture(scope="module")
def mapped(saes: tuple[SAE, SAE]) -> PairMap:
    return map_pairs(saes[0], both_tables(), config=CONFIG, label="a", other=saes[1], other_label="b")


def test_pairs_are_those_of_the_dense_way(saes, mapped):
    table = both_tables()
    a, b = (unit(sae.W_dec.double()) for sae in saes)
    cosine, similarity = a @ b.T, glosses(table, "a") @ glosses(table, "b").T
    i, j = np.nonzero((np.abs(cosine) >= CONFIG.min_interference) & (similarity < CONFIG.max_similarity))
    pairs = mapped.pairs
    assert set(pairs["sae"].to_pylist()) == {"a"}
    assert set(pairs["sae_j"].to_pylist()) == {"b"}
    assert len(i) > 100
    assert (i > j).any()
    assert (i == j).any()
    assert (pairs["i"].to_pylist(), pairs["j"].to_pylist()) == (i.tolist(), j.tolist())

    def same(column: str, expected: np.ndarray) -> None:
        np.testing.assert_allclose(pairs[column].to_numpy(), expected[i, j], rtol=1e-9, atol=FLOAT64)

    same("interference", cosine)
    same("similarity", similarity)
    enc_a, enc_b = (unit(sae.W_enc.T.double()) for sae in saes)
    same("enc_dec_ij", enc_a @ b.T)
    same("enc_dec_ji", (enc_b @ a.T).T)
    live = np.arange(N) != DEAD_ROW
    mean_a, mean_b = a[live].mean(0), b[live].mean(0)
    same("interference_demeaned", unit(a - mean_a) @ unit(b - mean_b).T)
    same("row_mean_i", np.broadcast_to((a @ mean_b)[:, None], cosine.shape))
    same("row_mean_j", np.broadcast_to((b @ mean_a)[None], cosine.shape))
    whole = cosine[live][:, live]
    same("z_covariance", (cosine - whole.mean()) / whole.std())


def test_flags_look_at_each_feature_in_its_own_dictionary():
    table, sae = both_tables(), small_sae(0)
    density = pa.array(
        [
            0.5 if (s, f) == ("b", 2) else 0.01
            for s, f in zip(
                table.features["sae"].to_pylist(), table.features["feature"].to_pylist(), strict=True
            )
        ]
    )
    at = table.features.column_names.index("density")
    table = replace(table, features=table.features.set_column(at, table.features.field(at), density))
    decoder = small_sae(5).W_dec.clone()
    decoder[17] = 3 * sae.W_dec[4]
    found = map_pairs(
        sae,
        table,
        config=PairsConfig(max_similarity=1.0),
        label="a",
        other=replace(small_sae(5), W_dec=decoder),
        other_label="b",
    ).pairs
    j = found["j"].to_numpy()
    np.testing.assert_array_equal(found["is_dense"].to_numpy(zero_copy_only=False), j == 2)
    assert (j == 2).any()
    same = found.filter(pc.and_(pc.equal(found["i"], 4), pc.equal(found["j"], 17))).to_pylist()
    assert same[0]["is_duplicate"]
    assert same[0]["interference"] == pytest.approx(1.0)
    strong, tokens = (found[name].to_pylist() for name in ("interference", "token_overlap"))
    expected = [abs(c) > 0.7 or (o is not None and o > 0.2) for c, o in zip(strong, tokens, strict=True)]
    assert found["is_duplicate"].to_pylist() == expected


def test_counts_are_over_all_pairs_of_the_two(saes, mapped):
    table = both_tables()
    a, b = (unit(sae.W_dec.double()) for sae in saes)
    cosine, similarity = a @ b.T, glosses(table, "a") @ glosses(table, "b").T
    both = np.isfinite(cosine) & np.isfinite(similarity)
    assert pc.sum(mapped.density["count"]).as_py() == both.sum()
    row = mapped.spectrum.filter(pc.equal(mapped.spectrum["threshold"], 0.2)).to_pylist()[0]
    assert row["n_pairs"] == (cosine[np.isfinite(cosine)] >= 0.2).sum()
    assert mapped.partners.group_by("sae").aggregate([]).num_rows == 2
    for label, turned, axis in (("a", "b", 1), ("b", "a", 0)):
        own = mapped.partners.filter(pc.equal(mapped.partners["sae"], label))
        assert set(own["sae_j"].to_pylist()) == {turned}
        top = own.filter(
            pc.and_(
                pc.equal(own["interference_bin"], len(CONFIG.bins) - 2), pc.equal(own["max_similarity"], 0.3)
            )
        )
        expected = (both & (cosine >= CONFIG.bins[-2]) & (similarity < 0.3)).sum(axis=axis)
        np.testing.assert_array_equal(top["count"].to_numpy(), expected[top["feature"].to_numpy()])


def test_turned_around_the_pairs_are_the_same(saes, mapped):
    back = map_pairs(saes[1], both_tables(), config=CONFIG, label="b", other=saes[0], other_label="a").pairs
    columns = ["i", "j", "interference", "similarity", "z_covariance", "p_covariance", "q_covariance"]
    turned = back.select(["j", "i", *columns[2:]]).rename_columns(columns)
    assert turned.sort_by([("i", "ascending"), ("j", "ascending")]).equals(
        mapped.pairs.select(columns).replace_schema_metadata(turned.schema.metadata).cast(turned.schema)
    )


def test_two_dictionaries_that_cannot_be_compared_are_refused(saes):
    with pytest.raises(MismatchError, match="share the label 'a'"):
        map_pairs(saes[0], both_tables(), config=CONFIG, label="a", other=saes[1], other_label="a")
    narrow = replace(saes[1], W_dec=saes[1].W_dec[:, :5], b_dec=torch.zeros(5))
    with pytest.raises(MismatchError, match="b 24 and 5; expected one width"):
        map_pairs(saes[0], both_tables(), config=CONFIG, label="a", other=narrow, other_label="b")
