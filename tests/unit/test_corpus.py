"""The corpus: what counts as a document, how tokens are laid in rows, what is refused."""

import json
import sys

import numpy as np
import pytest

from polysem.config import Study
from polysem.corpus import documents, lay, token_rows
from polysem.engine.sources import Pins, content_of
from polysem.errors import ConfigError, FormatError, MismatchError, PolysemError, UnknownReferenceError
from polysem.places import Places
from polysem.positions import positions_of
from polysem.worlds.tiny import tiny_model

WORDS = "the sea and the old man had gone to the forest with the king"


def read(path):
    return [(d.name, d.text) for d in documents(str(path))]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.txt",
            "one\ntwo\n\n\nthree\n \nfour\n",
            [("a[0]", "one\ntwo"), ("a[1]", "three"), ("a[2]", "four")],
        ),
        ("a.md", "\n\none\n\n", [("a[0]", "one")]),
        ("a.txt", "\ufeffone\r\n\r\ntwo\rthree", [("a[0]", "one"), ("a[1]", "two\nthree")]),
        ("a.jsonl", '{"text": "one"}\n\n{"text": " "}\n{"text": "two"}', [("a[1]", "one"), ("a[4]", "two")]),
        ("a.json", '["one", "", "two\\n\\nthree"]', [("a[0]", "one"), ("a[2]", "two\n\nthree")]),
    ],
)
def test_documents_of_every_format(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert read(path) == expected


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
def test_json_lines_end_at_line_feeds_only(tmp_path, character):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": f"one{character}two"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read(path) == [("a[1]", f"one{character}two")]


def test_folder_gives_its_text_files_whole_by_relative_name(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.md").write_text("later\n\nstill the same")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.csv").write_text("not,text")
    assert sorted(read(tmp_path)) == [("a.txt", "first"), ("b/x.md", "later\n\nstill the same")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b" \n", r"a\.txt is empty"),
        ("a.txt", b"caf\xe9", r"a\.txt is not UTF-8: byte 3 is 0xe9"),
        ("a.csv", b"x", r"suffix '\.csv'; expected \.txt, \.md, \.jsonl, \.json"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}', r"a\.jsonl:2: expected an object with a string"),
        ("a.jsonl", b"[1]", r"item 0: expected a string"),
        ("a.json", b'["a"', r"a\.json is not JSON"),
        ("a.json", b'{"text": "a"}', r"expected a list of strings, got dict"),
        ("a.json", b'["a", {"body": "b"}]', r"item 1: expected a string, got \{'body': 'b'\}"),
    ],
)
def test_bad_files_are_refused_by_name_and_place(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FormatError, match=says):
        read(path)


def test_missing_corpora_are_refused(tmp_path):
    with pytest.raises(UnknownReferenceError, match=r"nowhere\.txt.*no such file(?s:.*)corpus\.ref"):
        read(tmp_path / "nowhere.txt")
    with pytest.raises(FormatError, match=r"holds no \.txt or \.md or \.jsonl file"):
        read(tmp_path)


@pytest.fixture
def texts(tmp_path):
    """Documents of many lengths, an empty one among them."""
    rng = np.random.default_rng(0)
    words = np.array(WORDS.split())
    items = [" ".join(rng.choice(words, n)) for n in (3, 40, 0, 1, 1, 70, 7, 150)]
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(items))
    return path, items


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("context", [2, 9, 64])
def test_rows_are_the_documents_end_to_end(texts, bos, context):
    path, items = texts
    model = tiny_model("gpt2")
    stream = [i for text in items if text for i in model.tokenize(text + "\n", prepend_bos=False)]
    length = context - bos
    n_rows = len(stream) // length
    rows = token_rows(str(path), model, n_tokens=5_000, context=context, positions=positions_of(model, bos))
    assert rows.tokens.shape == (n_rows, context)
    assert rows.n_tokens == n_rows * length
    assert rows.tokens[:, int(bos) :].reshape(-1).tolist() == stream[: n_rows * length]
    if bos:
        assert set(rows.tokens[:, 0].tolist()) == {model.bos_id}


@pytest.mark.parametrize("bos", [False, True])
def test_sources_lead_back_to_the_token(texts, bos):
    path, items = texts
    model = tiny_model("gpt2")
    rows = token_rows(str(path), model, n_tokens=5_000, context=9, positions=positions_of(model, bos))
    row, position = (grid.reshape(-1) for grid in np.indices(rows.tokens.shape))
    documents_seen = set()
    for r, p, source in zip(row, position, rows.sources(row, position), strict=True):
        name, _, offset = source.rpartition(":")
        document = int(name.removeprefix("texts[").removesuffix("]"))
        ids = model.tokenize(items[document] + "\n", prepend_bos=False)
        assert ids[int(offset)] == rows.tokens[r, max(p, int(bos))]
        documents_seen.add(document)
    assert documents_seen == {0, 1, 3, 4, 5, 6, 7}, "the empty document has no token"


@pytest.mark.parametrize(("n_tokens", "n_rows"), [(1, 1), (8, 1), (9, 2), (80, 10), (81, 11)])
def test_first_rows_do_not_depend_on_how_many_are_asked_for(texts, n_tokens, n_rows):
    path, _ = texts
    model = tiny_model("llama")
    some, most = (
        token_rows(str(path), model, n_tokens=n, context=9, positions=positions_of(model, True))
        for n in (n_tokens, 200)
    )
    assert len(some.tokens) == n_rows
    np.testing.assert_array_equal(some.tokens, most.tokens[:n_rows])
    places = np.arange(n_rows), np.full(n_rows, 4)
    assert some.sources(*places) == most.sources(*places)


def test_documents_are_laid_only_as_far_as_asked(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": WORDS}) + "\nnot json")
    model = tiny_model("gpt2")
    assert next(iter(lay(str(path), model))).name == "a[1]"
    assert token_rows(
        str(path), model, n_tokens=8, context=8, positions=positions_of(model, False)
    ).tokens.shape == (1, 8)
    with pytest.raises(FormatError, match=r"a\.jsonl:2"):
        token_rows(str(path), model, n_tokens=800, context=8, positions=positions_of(model, False))


def test_words_of_neighbouring_documents_do_not_touch(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("the sea\n\nthe king")
    model = tiny_model("gpt2")
    together = [i for laid in lay(str(path), model) for i in laid.ids]
    assert together != model.tokenize("the seathe king", prepend_bos=False)
    assert len(together) == sum(
        len(model.tokenize(t, prepend_bos=False)) + 1 for t in ("the sea", "the king")
    )


def test_rows_that_cannot_be_made_are_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("the sea")
    model = tiny_model("gpt2")
    n = len(model.tokenize("the sea\n", prepend_bos=False))
    with pytest.raises(FormatError, match=f"has {n} tokens, not one row: corpus.context is 64"):
        token_rows(str(path), model, n_tokens=100, context=64, positions=positions_of(model, False))
    with pytest.raises(
        MismatchError, match=r"is 129 tokens, .* reads at most 128(?s:.*)corpus.context = 128"
    ):
        token_rows(str(path), model, n_tokens=100, context=129, positions=positions_of(model, False))


def test_rows_of_a_model_without_bos_begin_with_their_text(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text(WORDS)
    model = tiny_model("gpt2")
    monkeypatch.setattr(type(model), "bos_id", None)
    asked, not_asked = (
        token_rows(str(path), model, n_tokens=8, context=8, positions=positions_of(model, bos))
        for bos in (True, False)
    )
    assert asked.tokens.tolist() == not_asked.tokens.tolist()
    assert (asked.n_special, asked.n_tokens) == (0, 8)


# data sets


@pytest.fixture
def dataset(tmp_path):
    """A folder that `datasets` reads, with another column, and a row that is no text in a split of its own."""
    pytest.importorskip("datasets", reason="datasets is not installed")
    for split, rows in (("train", ["The sea.\r\nAnd ships.", " ", "A hill."]), ("test", ["One.", None])):
        lines = "".join(json.dumps({"body": row, "id": n}) + "\n" for n, row in enumerate(rows))
        (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return f"datasets:{tmp_path}"


def test_a_data_set_is_its_rows_in_order(dataset):
    found = list(documents(f"{dataset}?column=body"))
    name = dataset.removeprefix("datasets:")
    assert [(one.name, one.text) for one in found] == [
        (f"{name}[0]", "The sea.\nAnd ships."),
        (f"{name}[2]", "A hill."),
    ]
    assert next(documents(f"{dataset}?split=test&column=body")).text == "One."


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("?column=text", "row 0 has no text in column 'text'; its columns are body, id"),
        ("?split=test&column=body", "row 1 has no text in column 'body'"),
        ("?split=none", "none"),
        ("?splits=train", r"expected datasets:OWNER/NAME, then perhaps \?config=...&split="),
        ("-that-is-not-there", "data set|not-there"),
    ],
)
def test_what_a_data_set_lacks_is_said(asked, said, dataset):
    with pytest.raises(PolysemError, match=said):
        list(documents(f"{dataset}{asked}"))


def test_without_datasets_the_extra_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"polysem\[datasets\]"):
        list(documents("datasets:me/texts"))


def test_a_data_set_counts_as_the_revision_that_is_asked_for(tmp_path):
    ref = "datasets:me/texts?revision=abc&split=train"
    study = {"model": {"ref": "zoo:gpt2"}, "saes": [{"ref": "saelens:a/b"}], "corpus": {"ref": ref}}
    places, pins = Places(tmp_path), Pins({}, {})
    now, unseen = content_of(Study.model_validate(study), "features", places=places, pins=pins)
    assert now[f"corpus {ref}"] == "revision:abc"
    assert unseen == []
