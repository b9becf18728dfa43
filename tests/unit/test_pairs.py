"""The map of pairs of one SAE against dense float64 algebra on a small SAE with planted structure."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from polysem.config import PairsConfig
from polysem.errors import ConfigError, MismatchError, NumericsError
from polysem.features import FeatureTable
from polysem.geometry import cosine_tail, covariance_null
from polysem.pairs import SPECTRUM_THRESHOLDS, PairMap, map_pairs
from polysem.saes.base import SAE, Provenance
from polysem.store.tables import CLUSTERS, CONTEXTS, DENSITY, FEATURES, GLOSSES, PAIRS, PARTNERS, SPECTRUM
from polysem.types import Site

N, D, K = 60, 24, 12
DEAD_ROW, UNGLOSSED, MISSING = 7, (11, 12), (20, 59)
FLOAT64 = 1e-12
"""dense algebra in float64 rounds differently, and rows are sums of at most 24 terms"""


def small_sae(seed: int = 0, **changes: torch.Tensor) -> SAE:
    rng = np.random.default_rng(seed)
    decoder = (rng.normal(size=(N, D)) + 0.4) * rng.uniform(0.5, 3.0, size=(N, 1))
    decoder[DEAD_ROW] = 0
    decoder[31] = 2 * decoder[30] + 0.1 * rng.normal(size=D)
    decoder[41] = -decoder[40] + 0.2 * rng.normal(size=D)
    parts = {
        "W_dec": torch.tensor(decoder, dtype=torch.float32),
        "W_enc": torch.tensor(rng.normal(size=(D, N)), dtype=torch.float32),
    } | changes
    return SAE(
        **parts,
        b_enc=torch.zeros(len(parts["W_dec"])),
        b_dec=torch.zeros(D),
        activation="relu",
        reads=Site.parse("blocks.0.hook_resid_post"),
        writes=Site.parse("blocks.0.hook_resid_post"),
        model_id=None,
        model_revision=None,
        provenance=Provenance("memory", "memory", "memory"),
    )


def small_table(label: str = "a", seed: int = 1) -> FeatureTable:
    rng = np.random.default_rng(seed)
    ids = [f for f in range(N) if f not in MISSING]
    empty = {c.name: None for c in FEATURES.columns if c.nullable}
    rows = [
        empty
        | {c.name: [] for c in FEATURES.columns if pa.types.is_list(c.dtype)}
        | {
            "sae": label,
            "feature": f,
            "site": "blocks.0.hook_resid_post",
            "density": None if f == 3 else 0.5 if f == 4 else 1e-7 if f == 5 else 0.01,
            "tokens_in": [] if f in (6, 8) else [f % 10, 100 + f % 7, f % 3],
            "tokens_in_str": [] if f == 6 else [f"w{f % 4}", "x"],
            "dec_norm": 1.0,
            "n_glosses": 1,
        }
        for f in ids
    ]
    contexts = [
        {
            "sae": label,
            "feature": f,
            "rank": r,
            "max_value": 1.0,
            "position": r,
            "token_ids": [],
            "tokens": ["a", "b", str(f % 5)],
            "values": [1.0, 0.5, 0.0],
            "source": f"row-{f}-{r}",
        }
        for f in ids
        for r in range(1 + f % 3)
        if f != 9
    ]
    embeddings = rng.normal(size=(len(ids), K)).astype(np.float32)
    embeddings[[ids.index(f) for f in UNGLOSSED]] = 0
    return FeatureTable(
        features=FEATURES.conform(pa.Table.from_pylist(rows, schema=FEATURES.arrow())),
        glosses=GLOSSES.empty(),
        contexts=CONTEXTS.conform(pa.Table.from_pylist(contexts, schema=CONTEXTS.arrow())),
        clusters=CLUSTERS.empty(),
        embeddings={label: embeddings},
    )


def dense(sae: SAE, table: FeatureTable) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all pairs, and gloss similarities with nan where there is none."""
    unit = sae.W_dec.double().numpy()
    with np.errstate(invalid="ignore"):
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        gloss = np.full((N, K), np.nan)
        gloss[table.features["feature"].to_numpy()] = table.embeddings["a"]
        gloss = gloss / np.linalg.norm(gloss, axis=1, keepdims=True)
    return unit @ unit.T, gloss @ gloss.T


CONFIG = PairsConfig()


@pytest.fixture(scope="module")
def mapped() -> PairMap:
    return map_pairs(small_sae(), small_table(), config=CONFIG, label="a")


def test_every_table_conforms_to_its_schema(mapped: PairMap):
    for schema, table in zip((PAIRS, DENSITY, SPECTRUM, PARTNERS), mapped.tables().values(), strict=True):
        assert schema.conform(table).equals(table)
        assert table.num_rows


def test_pairs_are_those_of_the_dense_way_with_both_signs(mapped: PairMap):
    cosine, similarity = dense(small_sae(), small_table())
    with np.errstate(invalid="ignore"):
        wanted = np.triu((np.abs(cosine) >= 0.2) & (similarity < 0.3), 1)
    i, j = np.nonzero(wanted)
    assert mapped.pairs["i"].to_pylist() == i.tolist()
    assert mapped.pairs["j"].to_pylist() == j.tolist()
    np.testing.assert_allclose(mapped.pairs["interference"], cosine[i, j], rtol=0, atol=FLOAT64)
    np.testing.assert_allclose(mapped.pairs["similarity"], similarity[i, j], rtol=0, atol=FLOAT64)
    assert (mapped.pairs["interference"].to_numpy() < 0).any()
    left_out = {DEAD_ROW, *UNGLOSSED, *MISSING}
    assert not left_out & {*i.tolist(), *j.tolist()}


def test_common_mode_columns_equal_dense_algebra(mapped: PairMap):
    cosine, _ = dense(small_sae(), small_table())
    i, j = (mapped.pairs[name].to_numpy() for name in ("i", "j"))
    live = np.arange(N) != DEAD_ROW
    others = cosine[np.ix_(live, live)]
    mean = np.full(N, np.nan)
    mean[live] = (others.sum(axis=1) - np.diag(others)) / (len(others) - 1)
    np.testing.assert_allclose(mapped.pairs["row_mean_i"], mean[i], rtol=0, atol=FLOAT64)
    np.testing.assert_allclose(mapped.pairs["row_mean_j"], mean[j], rtol=0, atol=FLOAT64)
    unit = small_sae().W_dec.double().numpy()
    unit[live] /= np.linalg.norm(unit[live], axis=1, keepdims=True)
    centred = unit - unit[live].mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    expected = (centred[i] * centred[j]).sum(axis=1)
    np.testing.assert_allclose(mapped.pairs["interference_demeaned"], expected, rtol=0, atol=FLOAT64)


def test_encoder_columns_say_what_reads_what(mapped: PairMap):
    sae = small_sae()
    read = torch.nn.functional.normalize(sae.W_enc.double(), dim=0).T
    written = torch.nn.functional.normalize(sae.W_dec.double(), dim=1)
    cross = (read @ written.T).numpy()
    i, j = (mapped.pairs[name].to_numpy() for name in ("i", "j"))
    np.testing.assert_allclose(mapped.pairs["enc_dec_ij"], cross[i, j], rtol=0, atol=FLOAT64)
    np.testing.assert_allclose(mapped.pairs["enc_dec_ji"], cross[j, i], rtol=0, atol=FLOAT64)


def test_bins_hold_their_lower_edge_and_exclude_negative_interference(mapped: PairMap):
    interference = mapped.pairs["interference"].to_numpy()
    found = mapped.pairs["interference_bin"].to_numpy()
    expected = np.select(
        [
            interference < 0,
            interference < 0.1,
            interference < 0.2,
            interference < 0.3,
            interference < 0.4,
        ],
        [-1, 0, 1, 2, 3],
        4,
    )
    assert found.tolist() == expected.tolist()


def test_chance_columns_are_the_two_nulls_and_bh_over_all_pairs(mapped: PairMap):
    sae = small_sae()
    cosine, _ = dense(sae, small_table())
    interference = mapped.pairs["interference"].to_numpy()
    np.testing.assert_allclose(mapped.pairs["z_isotropic"], interference * np.sqrt(D), rtol=1e-14)
    np.testing.assert_array_equal(mapped.pairs["p_isotropic"], cosine_tail(interference, d=D, two_sided=True))
    null = covariance_null(sae.W_dec)
    np.testing.assert_array_equal(mapped.pairs["z_covariance"], null.z(interference))
    np.testing.assert_array_equal(mapped.pairs["p_covariance"], null.p(interference))
    live = np.flatnonzero(np.arange(N) != DEAD_ROW)
    tested = cosine[np.ix_(live, live)][np.triu_indices(len(live), 1)]
    # reference: BH over every pair, those below the screen at p = 1
    p_all = np.sort(np.where(np.abs(tested) >= 0.2, null.p(np.clip(tested, -1, 1)), 1.0))
    stepped = np.minimum.accumulate((p_all * len(p_all) / np.arange(1, len(p_all) + 1))[::-1])[::-1]
    p = mapped.pairs["p_covariance"].to_numpy()
    q = np.minimum(stepped[np.clip(np.searchsorted(p_all, p * (1 - 1e-9)), 0, len(p_all) - 1)], 1)
    np.testing.assert_allclose(mapped.pairs["q_covariance"], q, rtol=1e-8)


def test_overlaps_are_jaccard_and_null_where_unknown(mapped: PairMap):
    table = small_table()
    tokens = dict(
        zip(table.features["feature"].to_pylist(), table.features["tokens_in"].to_pylist(), strict=True)
    )
    strings = dict(
        zip(table.features["feature"].to_pylist(), table.features["tokens_in_str"].to_pylist(), strict=True)
    )
    places = {f: {(f % 5, r) for r in range(1 + f % 3)} for f in tokens if f != 9}

    def jaccard(a, b):
        return len(a & b) / len(a | b) if a and b else None

    seen = set()
    for row in mapped.pairs.to_pylist():
        i, j = row["i"], row["j"]
        by_id = jaccard(set(tokens[i]), set(tokens[j]))
        expected = jaccard(set(strings[i]), set(strings[j])) if by_id is None else by_id
        assert row["token_overlap"] == expected
        assert row["context_overlap"] == jaccard(places.get(i), places.get(j))
        assert row["is_duplicate"] == (abs(row["interference"]) > 0.7 or (expected or 0) > 0.2)
        assert row["is_dense"] == bool({4, 5} & {i, j})
        seen |= {
            ("id", by_id is None),
            ("token", expected is None),
            ("context", row["context_overlap"] is None),
        }
    assert len(seen) == 6, "the fixture must reach every branch"


def test_planted_duplicate_and_antipode_are_found_and_flagged():
    table = small_table()
    ids = table.features["feature"].to_pylist()
    for a, b in ((30, 31), (40, 41)):
        table.embeddings["a"][ids.index(b)] = -table.embeddings["a"][ids.index(a)]
    rows = {
        (r["i"], r["j"]): r for r in map_pairs(small_sae(), table, config=CONFIG, label="a").pairs.to_pylist()
    }
    assert rows[30, 31]["interference"] > 0.9
    assert rows[40, 41]["interference"] < -0.9
    assert rows[30, 31]["is_duplicate"]
    assert rows[40, 41]["is_duplicate"]
    assert rows[40, 41]["interference_bin"] == -1


def test_density_counts_every_pair_of_glossed_features_once(mapped: PairMap):
    cosine, similarity = dense(small_sae(), small_table())
    upper = np.triu_indices(N, 1)
    c, s = cosine[upper], similarity[upper]
    known = np.isfinite(c) & np.isfinite(s)
    assert sum(mapped.density["count"].to_pylist()) == known.sum()
    for cell in mapped.density.to_pylist()[::7]:
        inside = (c >= cell["interference_lo"]) & (c < cell["interference_hi"])
        inside &= (s >= cell["similarity_lo"]) & (s < cell["similarity_hi"])
        assert inside.sum() == cell["count"]


def test_spectrum_counts_all_live_pairs_glossed_or_not(mapped: PairMap):
    cosine, _ = dense(small_sae(), small_table())
    c = cosine[np.triu_indices(N, 1)]
    c = c[np.isfinite(c)]
    assert mapped.spectrum["threshold"].to_pylist() == list(SPECTRUM_THRESHOLDS)
    for row in mapped.spectrum.to_pylist():
        t = row["threshold"]
        assert row["n_pairs"] == ((c >= t) if t > 0 else (c < t)).sum()
        assert row["n_isotropic"] == pytest.approx(len(c) * float(cosine_tail(abs(t), d=D)), rel=1e-12)
    assert len({row["d_eff"] for row in mapped.spectrum.to_pylist()}) == 1


def test_partners_are_exact_and_agree_with_the_pairs_written(mapped: PairMap):
    cosine, similarity = dense(small_sae(), small_table())
    np.fill_diagonal(cosine, np.nan)
    edges = CONFIG.bins
    with np.errstate(invalid="ignore"):
        for row in mapped.partners.to_pylist():
            lo, hi = edges[row["interference_bin"]], edges[row["interference_bin"] + 1]
            c, s = cosine[row["feature"]], similarity[row["feature"]]
            assert row["count"] == ((c >= lo) & (c < hi) & (s < row["max_similarity"])).sum()
    features = {row["feature"] for row in mapped.partners.to_pylist()}
    assert features == set(range(N)) - {DEAD_ROW, *UNGLOSSED, *MISSING}
    assert mapped.partners.num_rows == len(features) * 5 * 4
    high = sum(
        r["count"]
        for r in mapped.partners.to_pylist()
        if r["max_similarity"] == 0.3 and r["interference_bin"] >= 2
    )
    assert high == 2 * (mapped.pairs["interference_bin"].to_numpy() >= 2).sum()


def test_an_sae_without_pairs_gives_empty_pairs_and_full_counts():
    eye = torch.zeros(N, D)
    eye[:D] = torch.eye(D)
    made = map_pairs(small_sae(W_dec=eye), small_table(), config=CONFIG, label="a")
    assert made.pairs.num_rows == 0
    assert made.pairs.schema.equals(PAIRS.arrow())
    glossed = set(range(D)) - {DEAD_ROW, *UNGLOSSED, *MISSING} | {DEAD_ROW}
    assert sum(made.density["count"].to_pylist()) == len(glossed) * (len(glossed) - 1) // 2
    assert all(row["n_pairs"] == 0 for row in made.spectrum.to_pylist() if row["threshold"] > 0)


def test_a_decoder_with_one_live_row_gives_empty_tables():
    one = torch.zeros(N, D)
    one[0, 0] = 1
    made = map_pairs(small_sae(W_dec=one), small_table(), config=CONFIG, label="a")
    assert [t.num_rows for t in made.tables().values()] == [0, 0, 0, 0]


def test_the_same_input_gives_the_same_bytes(mapped: PairMap):
    again = map_pairs(small_sae(), small_table(), config=CONFIG, label="a")
    for name, table in mapped.tables().items():
        assert table.equals(again.tables()[name])


def test_rows_of_a_feature_table_may_come_in_any_order(mapped: PairMap):
    table = small_table()
    order = np.random.default_rng(0).permutation(table.features.num_rows)
    mixed = replace(
        table, features=table.features.take(order), embeddings={"a": table.embeddings["a"][order]}
    )
    again = map_pairs(small_sae(), mixed, config=CONFIG, label="a")
    for name, expected in mapped.tables().items():
        assert again.tables()[name].equals(expected), name


def test_more_pairs_than_memory_is_meant_for_are_an_error_that_says_so(monkeypatch):
    """One direction over and over: every pair survives, and mining stops soon after the limit."""
    monkeypatch.setattr("polysem.pairs.MOST_PAIRS", 1000)
    sae = small_sae(W_dec=torch.ones(N, D))
    with pytest.raises(ConfigError, match=r"more than 1,000 pairs have \|interference\| >= 0.2"):
        map_pairs(sae, small_table(), config=CONFIG, label="a")


def test_bad_feature_tables_are_refused():
    table, sae = small_table(), small_sae()
    doubled = FeatureTable(
        pa.concat_tables([table.features, table.features.slice(5, 1)]),
        table.glosses,
        table.contexts,
        table.clusters,
        {"a": np.zeros((table.features.num_rows + 1, K), np.float32)},
    )
    with pytest.raises(MismatchError, match="feature 5 has more than one row"):
        map_pairs(sae, doubled, config=CONFIG, label="a")
    small = small_sae(W_dec=torch.ones(40, D), W_enc=torch.ones(D, 40))
    with pytest.raises(MismatchError, match="feature 58 is not in the SAE; expected 0 to 39"):
        map_pairs(small, table, config=CONFIG, label="a")
    short = FeatureTable(
        table.features, table.glosses, table.contexts, table.clusters, {"a": np.ones((3, K))}
    )
    with pytest.raises(MismatchError, match="3 rows; expected 58"):
        map_pairs(sae, short, config=CONFIG, label="a")
    none = FeatureTable(table.features, table.glosses, table.contexts, table.clusters, {})
    with pytest.raises(MismatchError, match="gloss embeddings of SAE 'a': none"):
        map_pairs(sae, none, config=CONFIG, label="a")


def test_nan_weights_are_named():
    decoder = small_sae().W_dec.clone()
    decoder[17, 2] = float("nan")
    with pytest.raises(NumericsError, match="W_dec of a: row 17 holds nan at column 2"):
        map_pairs(small_sae(W_dec=decoder), small_table(), config=CONFIG, label="a")
