"""A folder is a sample of all its files; what was asked for and what came is said with numbers."""

import gzip
import json
import logging
from collections import Counter

import numpy as np
import pytest

from polysem.corpus import documents, folder_files, token_rows
from polysem.errors import FormatError
from polysem.positions import positions_of
from polysem.worlds.tiny import tiny_model

LINE = "The ship went down to the sea and the king saw it go. "


def _books(folder, n=12, lines=1200):
    for book in range(n):
        text = "\n\n".join(f"Book {book}, line {line}. {LINE}" for line in range(lines))
        (folder / f"{book:02d}.txt").write_text(text)


def test_every_book_of_a_folder_is_harvested(tmp_path):
    _books(tmp_path)
    rows = token_rows(
        str(tmp_path),
        tiny_model("gpt2"),
        n_tokens=60_000,
        context=64,
        positions=positions_of(tiny_model("gpt2"), False),
    )
    at = np.arange(len(rows.tokens))
    shares = Counter(source.partition(".")[0] for source in rows.sources(at, 0 * at))
    assert len(shares) == 12
    assert max(shares.values()) < 4 * min(shares.values()), shares


def test_pieces_of_a_book_are_all_of_it_once_and_in_the_same_order_each_time(tmp_path):
    _books(tmp_path, n=2, lines=400)
    first, again = (list(documents(str(tmp_path))) for _ in range(2))
    assert first == again
    for book in ("00", "01"):
        pieces = sorted(
            (int(d.name.partition("[")[2][:-1]), d.text) for d in first if d.name.startswith(book)
        )
        assert len(pieces) > 2
        whole = (tmp_path / f"{book}.txt").read_text()
        assert " ".join(text for _, text in pieces).split() == whole.split()
    assert [d.name[:2] for d in first[:4]].count("00") == 2, "files take turns"
    assert [int(d.name.partition("[")[2][:-1]) for d in first if d.name.startswith("00")] != sorted(
        range(len([d for d in first if d.name.startswith("00")]))
    ), "not from the title page on"


def test_json_lines_of_a_folder_are_read_and_what_is_about_them_is_not(tmp_path, caplog):
    (tmp_path / "SOURCE.md").write_text("This work is licensed under the licence of licences. " * 40)
    (tmp_path / "data.bin").write_bytes(b"\0\1")
    with (tmp_path / "texts.jsonl").open("w") as stream:
        stream.writelines(json.dumps({"text": LINE * 20}) + "\n" for _ in range(20))
    with caplog.at_level(logging.WARNING):
        rows = token_rows(
            str(tmp_path),
            tiny_model("gpt2"),
            n_tokens=2_000,
            context=64,
            positions=positions_of(tiny_model("gpt2"), False),
        )
    assert {name.partition("[")[0] for name in rows.names} == {"texts.jsonl"}
    assert "2 of 3 files are not read: SOURCE.md, data.bin" in caplog.text


def test_a_folder_of_markdown_alone_is_read(tmp_path):
    (tmp_path / "README.md").write_text(LINE)
    assert [f.name for f in folder_files(tmp_path).read] == ["README.md"]


def test_a_shortfall_is_said_and_less_than_a_tenth_is_an_error(tmp_path, caplog):
    path = tmp_path / "a.txt"
    path.write_text(LINE * 30)
    model = tiny_model("gpt2")
    n = len(model.tokenize(LINE * 30, prepend_bos=False))
    with caplog.at_level(logging.WARNING):
        token_rows(
            str(path), model, n_tokens=2 * n, context=64, positions=positions_of(tiny_model("gpt2"), False)
        )
    assert f"of the {2 * n:,} tokens asked for are there" in caplog.text
    with pytest.raises(FormatError, match="of the 60,000 tokens asked for are there") as caught:
        token_rows(
            str(path), model, n_tokens=60_000, context=64, positions=positions_of(tiny_model("gpt2"), False)
        )
    said = caught.value.hint
    there = int(said.partition("corpus.n_tokens = ")[2].split()[0])
    assert (
        token_rows(
            str(path), model, n_tokens=there, context=64, positions=positions_of(tiny_model("gpt2"), False)
        ).n_tokens
        > there - 64
    )


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
def test_packed_corpora_are_read(tmp_path, name):
    content = LINE if name == "a.txt.gz" else json.dumps({"text": LINE}) + "\n"
    (tmp_path / name).write_bytes(gzip.compress(content.encode()))
    assert [d.text.strip() for d in documents(str(tmp_path / name))] == [LINE.strip()]


def test_lone_surrogates_of_a_corpus_are_replaced_and_counted(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a \\ud800 b"}\n')
    with caplog.at_level(logging.WARNING):
        assert [d.text for d in documents(str(path))] == ["a \ufffd b"]
    assert "1 lone surrogates replaced" in caplog.text
