"""Feature tables from exports, on files that the tests write; contexts and T_f against a brute-force reading of all rows."""

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from polysem.errors import FormatError, MismatchError, UnknownReferenceError
from polysem.glosses import read_neuronpedia_features, token_glosses
from polysem.glosses.bytelevel import mend, text_of
from polysem.store.tables import CONTEXTS, FEATURES
from polysem.types import Site

SITE = Site.parse("blocks.6.hook_resid_post")
SOURCE = {"modelId": "gpt2-small", "layer": "6-res_post_32k-oai"}


def feature_row(index: int, **more: object) -> dict[str, object]:
    facts = {
        "maxActApprox": 4.0,
        "frac_nonzero": 0.01,
        "pos_str": [" b", " a"],
        "pos_values": [1.0, 2.0],
        "neg_str": [" z"],
        "neg_values": [-1.0],
        "neuron_alignment_indices": [3, 1, 2],
        "neuron_alignment_values": [0.5, 0.25, 0.125],
    }
    return SOURCE | {"index": str(index)} | facts | more


def text_row(
    index: int, row_id: str, tokens: list[str], values: list[float], **more: object
) -> dict[str, object]:
    return SOURCE | {"id": row_id, "index": str(index), "tokens": tokens, "values": values} | more


def write_export(folder: Path, features: list[dict[str, object]], texts: list[dict[str, object]]) -> str:
    for kind, rows in (("features", features), ("activations", texts)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number, part in enumerate((rows[::2], rows[1::2])):
            content = "\n".join(map(json.dumps, part)).encode()
            (folder / kind / f"batch-{number}.jsonl.gz").write_bytes(gzip.compress(content))
    return f"neuronpedia:{folder}"


def ids(token: str) -> list[int]:
    """A tokenizer of one token per short string."""
    return [sum(map(ord, token))] if len(token) < 6 else [1, 2]


def test_all_columns(tmp_path):
    texts = [
        text_row(3, "t1", [" the", " sea", "."], [0.0, 4.0, 0.5]),
        text_row(3, "t2", [" a", " Sea", " sea"], [0.0, 3.2, 3.9], zIndices=[1, 2], zValues=[0.1, 0.2]),
        text_row(3, "t3", [" shallow"], [3.1]),
    ]
    source = write_export(tmp_path, [feature_row(3)], texts)
    read = read_neuronpedia_features(
        source, "L6", site=SITE, d_sae=5, tokenize_string=ids, dec_norms=np.full(5, 2.0)
    )
    (row,) = read.features.to_pylist()
    assert row == {
        "sae": "L6",
        "feature": 3,
        "site": "blocks.6.hook_resid_post",
        "density": 0.01,
        "n_active": None,
        "max_act": 2.0,
        "tokens_in": ids(" sea") + ids(" Sea"),
        "tokens_in_str": [" sea", " Sea"],
        "tokens_in_act": [2.0, pytest.approx(1.6)],
        "tokens_out": ids(" a") + ids(" b"),
        "tokens_out_str": [" a", " b"],
        "tokens_out_logit": [2.0, 1.0],
        "tokens_bottom_str": [" z"],
        "dec_norm": 2.0,
        "neuron_alignment": [3, 1, 2],
        "neuron_alignment_values": [0.5, 0.25, 0.125],
    }
    assert read.report.missing == (0, 1, 2, 4)
    contexts = read.contexts.to_pylist()
    assert [c["source"] for c in contexts] == ["t1", "t2", "t3"]
    assert [c["max_value"] for c in contexts] == pytest.approx([2.0, 1.95, 1.55])
    assert contexts[1]["position"] == 2
    assert contexts[1]["values"] == pytest.approx([0.0, 1.6, 1.95])


def test_tables_complete_to_their_schemas(tmp_path):
    read = read_neuronpedia_features(
        write_export(
            tmp_path, [feature_row(0), feature_row(10), feature_row(2)], [text_row(2, "t", [" x"], [1.0])]
        ),
        "L6",
        site=SITE,
    )
    n = read.features.num_rows
    whole = read.features.append_column("gloss", [[None] * n]).append_column("gloss_source", [[None] * n])
    whole = FEATURES.conform(whole.append_column("n_glosses", [[0] * n]))
    assert whole.column("feature").to_pylist() == [0, 2, 10]
    assert np.isnan(whole.column("dec_norm").to_pylist()).all()
    assert read.contexts.schema.names == CONTEXTS.arrow().names


def random_texts(seed: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(seed)
    texts = []
    for number in range(400):
        n = int(rng.integers(1, 40))
        words = [f" w{w}" for w in rng.integers(0, 60, size=n)]
        values = np.round(np.maximum(rng.normal(size=n), 0.0) * 3, 3)
        texts.append(text_row(int(rng.integers(0, 3)), f"t{number:03d}", words, values.tolist()))
    return texts


@pytest.mark.parametrize("seed", range(3))
def test_target_tokens_and_contexts_are_those_of_brute_force(tmp_path, seed):
    texts = random_texts(seed)
    read = read_neuronpedia_features(
        write_export(tmp_path, [], texts),
        "L6",
        site=SITE,
        n_contexts=5,
        window=8,
        target_ratio=0.7,
        n_target_tokens=6,
    )
    for row in read.features.to_pylist():
        own = [t for t in texts if t["index"] == str(row["feature"])]
        best: dict[str, float] = {}
        for text in own:
            for token, value in zip(text["tokens"], text["values"], strict=True):
                best[token] = max(best.get(token, 0.0), value)
        largest = max(best.values())
        above = sorted(
            ((np.float32(v), t) for t, v in best.items() if v >= 0.7 * largest), key=lambda p: (-p[0], p[1])
        )
        assert row["tokens_in_str"] == [t for _, t in above][:6]
        assert row["max_act"] == pytest.approx(largest)
        tops = sorted((-max(t["values"]), t["id"]) for t in own)[:5]
        kept = [c for c in read.contexts.to_pylist() if c["feature"] == row["feature"]]
        assert [c["source"] for c in kept] == [name for _, name in tops]
        for context in kept:
            (text,) = (t for t in own if t["id"] == context["source"])
            peak = int(np.argmax(text["values"]))
            assert len(context["tokens"]) == min(8, len(text["tokens"]))
            start = peak - context["position"]
            assert context["tokens"] == text["tokens"][start : start + 8]
            assert context["values"][context["position"]] == pytest.approx(max(text["values"]))


def test_order_of_rows_does_not_matter(tmp_path):
    texts, norms = random_texts(5), np.array([1.0, 2.0, 3.0])
    one, two = (
        read_neuronpedia_features(
            write_export(tmp_path / name, [feature_row(1)], rows), "L6", site=SITE, dec_norms=norms
        )
        for name, rows in (("a", texts), ("b", texts[::-1]))
    )
    assert one.features.equals(two.features)
    assert one.contexts.equals(two.contexts)


def test_repeats_are_counted_not_kept(tmp_path, caplog):
    sea = text_row(1, "t1", [" sea"], [4.0])
    same_words = text_row(1, "t2", [" sea"], [3.0])
    with caplog.at_level(logging.WARNING):
        source = write_export(
            tmp_path, [feature_row(1), feature_row(1, frac_nonzero=0.5)], [sea, sea, same_words]
        )
        read = read_neuronpedia_features(source, "L6", site=SITE)
    assert read.features.column("density").to_pylist() == [0.01]
    assert [c["source"] for c in read.contexts.to_pylist()] == ["t1"]
    assert (read.report.n_repeated_features, read.report.n_repeated_contexts) == (1, 2)
    assert "1 repeated features, 2 repeated contexts" in caplog.text


def test_silent_feature_has_no_context(tmp_path):
    source = write_export(
        tmp_path, [feature_row(1, maxActApprox=0.0)], [text_row(1, "t", [" a", " b"], [0.0, 0.0])]
    )
    read = read_neuronpedia_features(source, "L6", site=SITE)
    assert read.contexts.num_rows == 0
    assert read.features.column("tokens_in_str").to_pylist() == [[]]


def test_nul_in_tokens(tmp_path):
    source = write_export(tmp_path, [feature_row(1)], [text_row(1, "t", [" a", "\u0000"], [0.0, 2.0])])
    asked: list[str] = []

    def tokenize(token: str) -> list[int]:
        asked.append(token)
        return [len(asked)]

    read = read_neuronpedia_features(source, "L6", site=SITE, tokenize_string=tokenize)
    assert "\x00" in asked
    assert read.features.column("tokens_in_str").to_pylist() == [["\u2400"]]
    assert read.contexts.to_pylist()[0]["tokens"] == [" a", "\u2400"]


def test_saedashboard_batches(tmp_path):
    def batch(number: int, *features: dict[str, object]) -> None:
        content = {
            "model_id": "gpt2-small",
            "layer": 6,
            "sae_set": "res-jb",
            "sae_id_suffix": "v2",
            "features": list(features),
        }
        (tmp_path / f"batch-{number}.json").write_text(json.dumps(content))

    text = {"tokens": [" its", " sea"], "values": [0.0, 1.5], "bin_min": -1, "qualifying_token_index": 1}
    batch(0, {"feature_index": 0, "frac_nonzero": 0.1, "activations": [text, text]})
    batch(1, {"feature_index": 1, "frac_nonzero": 0.2, "activations": []})
    read = read_neuronpedia_features(str(tmp_path), "L6", site=Site.parse("blocks.6.hook_resid_pre"))
    assert read.features.column("density").to_pylist() == [0.1, 0.2]
    assert read.features.column("max_act").to_pylist() == [1.5, None]
    (context,) = read.contexts.to_pylist()
    assert context["source"] == "batch-0.json[0].0"
    with pytest.raises(MismatchError, match="6-res-jb__v2"):
        read_neuronpedia_features(str(tmp_path), "L6", site=SITE, expected_source="6-res-jb")


def test_byte_level_tokens_are_mended_in_contexts_and_found_by_the_tokenizer(tmp_path):
    tokens = [" it", "âĢ", "Ļ", "s", " cafÃ©"]
    source = write_export(tmp_path, [], [text_row(1, "t", tokens, [0.0, 0.0, 0.0, 0.0, 2.0])])
    known = {" café": [77]}
    read = read_neuronpedia_features(source, "L6", site=SITE, tokenize_string=lambda t: known.get(t, [0, 1]))
    assert read.contexts.to_pylist()[0]["tokens"] == [" it", "’", "", "s", " café"]
    assert read.features.column("tokens_in").to_pylist() == [[77]]
    assert read.features.column("tokens_in_str").to_pylist() == [[" café"]]


@pytest.mark.parametrize(
    ("tokens", "mended"),
    [
        (["Ġit", "âĢ", "Ļ", "s"], [" it", "’", "", "s"]),
        ([" “", "âĢľ", "x", "–"], [" “", "“", "x", "–"]),  # a dashboard that mixes both
        ([" café", " Łódź"], [" café", " Łódź"]),
        (["▁the", "▁sea"], [" the", " sea"]),
        ([" ðŁ", "ĺ", "Ģ", "!"], [" 😀", "", "", "!"]),
        ([" plain"], [" plain"]),
    ],
)
def test_mending(tokens, mended):
    assert mend(tokens) == mended


@pytest.mark.parametrize(
    ("token", "text"), [("âĢ", "\ufffd"), ("âĢĻs", "’s"), ("ł", "ł"), ("é", "é"), (" x", " x"), ("Ġx", " x")]
)
def test_single_tokens_as_text(token, text):
    assert text_of(token) == text


def test_foreign_tokenizer_is_refused_and_oddities_are_not(tmp_path):
    texts = [text_row(n, f"t{n}", [f" word{n}"], [1.0]) for n in range(30)]
    source = write_export(tmp_path, [], texts)
    with pytest.raises(MismatchError, match="30 of 30 token strings are not single tokens"):
        read_neuronpedia_features(source, "L6", site=SITE, tokenize_string=lambda _: [1, 2])
    read = read_neuronpedia_features(
        source, "L6", site=SITE, tokenize_string=lambda t: [int(t[5:])] if int(t[5:]) > 4 else [1, 2]
    )
    assert read.report.n_unmapped_tokens == 5
    assert read.features.column("tokens_in").to_pylist()[3:7] == [[], [], [5], [6]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (text_row(1, "t", [" a"], [1.0, 2.0]), "1 tokens but 2 values"),
        (text_row(1, "t", [" a", None], [1.0, 2.0]), "token None is not text"),
        (text_row(1, "t", [" a"], [float("nan")]), "values must be finite"),
        (text_row(1, "t", [" a"], ["high"]), "values are not numbers"),
        (text_row(1, "t", [" a"], [None]), "values"),
        (SOURCE | {"tokens": [" a"], "values": [1.0]}, "no feature number"),
        (feature_row(1, frac_nonzero=-0.1), r"frac_nonzero is -0\.1"),
        (feature_row(1, maxActApprox=float("inf")), "maxActApprox is inf"),
        (feature_row(1, pos_values=[1.0]), "2 pos_str but 1 pos_values"),
        (feature_row(1, neg_str=[1]), "neg_str must be strings"),
        (feature_row(1, activations=["x"]), "activations must be objects"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    source = write_export(tmp_path, [row], [])
    with pytest.raises(FormatError, match=message) as caught:
        read_neuronpedia_features(source, "L6", site=SITE)
    assert "batch-0.jsonl.gz:1" in str(caught.value)


def test_other_bad_input(tmp_path):
    source = write_export(tmp_path, [feature_row(9)], [])
    with pytest.raises(MismatchError, match="feature 9 does not exist in an SAE of 9 features"):
        read_neuronpedia_features(source, "L6", site=SITE, d_sae=9)
    with pytest.raises(MismatchError, match="another SAE"):
        read_neuronpedia_features(source, "L6", site=Site.parse("blocks.7.hook_resid_post"))
    with pytest.raises(MismatchError, match="decoder row 9 has norm 0"):
        read_neuronpedia_features(source, "L6", site=SITE, dec_norms=np.zeros(10))
    with pytest.raises(FormatError, match="no feature found"):
        read_neuronpedia_features(write_export(tmp_path / "empty", [], []), "L6", site=SITE)
    (tmp_path / "activations" / "batch-0.jsonl.gz").unlink()
    with pytest.raises(FormatError, match="batch 0 is missing"):
        read_neuronpedia_features(source, "L6", site=SITE)
    with pytest.raises(UnknownReferenceError):
        read_neuronpedia_features(str(tmp_path / "no" / "such" / "place"), "L6", site=SITE)


def test_export_gives_token_glosses(tmp_path):
    texts = [
        text_row(3, "t1", [" upon", " the", " open", " se", "as", " and"], [0.0, 0.0, 0.0, 3.0, 4.0, 0.0])
    ]
    read = read_neuronpedia_features(write_export(tmp_path, [feature_row(4)], texts), "L6", site=SITE)
    glosses = token_glosses(read.features, read.contexts)
    assert [(g.feature, g.text) for g in glosses] == [
        (3, '"seas" — as in «upon the open seas and»'),
        (4, 'promotes "a", "b"'),
    ]
