"""Prompts: where they come from, how they are split, what is refused."""

import copy
import gzip
import json
import logging

import numpy as np
import pytest

from polysem.config import CorpusConfig, PromptsConfig
from polysem.corpus import one_a_line, token_rows
from polysem.errors import ConfigError, FormatError, UnknownReferenceError
from polysem.positions import positions_of
from polysem.prompts import TEMPLATES, _sentence_start, make_prompts, span_of
from polysem.store.tables import PROMPTS
from polysem.worlds.tiny import tiny_model

NO_CORPUS = CorpusConfig(ref="nowhere.txt")


def prompts(config, corpus=NO_CORPUS, *, model=None, bos=True, seed=0):
    return make_prompts(
        config,
        corpus,
        model or tiny_model("gpt2"),
        positions=positions_of(model or tiny_model("gpt2"), bos),
        seed=seed,
    )


@pytest.mark.parametrize("bos", [False, True])
def test_file_prompts_are_distinct_named_and_split(tmp_path, bos):
    path = tmp_path / "prompts.txt"
    path.write_text("one two\n\nthree four\none two\nfive six\r\nseven\n")
    table = prompts(PromptsConfig(source=f"file:{path}", n=10, confirm_fraction=0.5), bos=bos)
    assert table.schema.equals(PROMPTS.arrow())
    rows = table.to_pylist()
    assert {r["text"]: r["source"] for r in rows} == {
        "one two": "prompts.txt:1",
        "three four": "prompts.txt:3",
        "five six": "prompts.txt:5",
        "seven": "prompts.txt:6",
    }
    assert sorted(r["split"] for r in rows) == ["confirm", "confirm", "select", "select"]
    model = tiny_model("gpt2")
    for row in rows:
        assert row["token_ids"] == model.tokenize(row["text"], prepend_bos=bos)
        assert (row["token_ids"][0] == model.bos_id) is bos


def test_json_lines_prompts_may_hold_any_character(tmp_path):
    path = tmp_path / "prompts.jsonl"
    texts = ["one\u2028two", "three\nfour", "five"]
    path.write_text("\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in texts), encoding="utf-8")
    rows = prompts(PromptsConfig(source=f"file:{path}")).to_pylist()
    assert sorted(r["text"] for r in rows) == sorted(texts)
    assert sorted(r["source"] for r in rows) == ["prompts.jsonl:1", "prompts.jsonl:2", "prompts.jsonl:3"]


def test_draw_and_split_depend_on_the_seed_and_not_on_the_folder(tmp_path):
    tables = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "prompts.txt"
        path.write_text("\n".join(TEMPLATES))
        tables.append(prompts(PromptsConfig(source=f"file:{path}", n=12), seed=3))
    assert tables[0].num_rows == 12
    assert tables[0].equals(tables[1])
    templates = [prompts(PromptsConfig(source="templates", n=12), seed=seed) for seed in (3, 3, 4)]
    assert templates[0].equals(templates[1])
    assert not templates[0].equals(templates[2])


@pytest.mark.parametrize(
    ("fraction", "n", "n_confirm"), [(0.5, 12, 6), (0.25, 12, 3), (1.0, 12, 11), (0.01, 12, 1), (0.5, 2, 1)]
)
def test_both_halves_have_a_prompt(fraction, n, n_confirm):
    table = prompts(PromptsConfig(source="templates", n=n, confirm_fraction=fraction))
    assert table["split"].to_pylist().count("confirm") == n_confirm
    assert table.num_rows == n


def test_fewer_prompts_than_asked_for_are_said(caplog):
    with caplog.at_level(logging.WARNING):
        assert prompts(PromptsConfig(source="templates", n=500)).num_rows == len(TEMPLATES)
    assert f"{len(TEMPLATES)} distinct prompts from templates, fewer than the 500" in caplog.text


def test_templates_are_distinct_and_end_inside_a_sentence():
    assert len(TEMPLATES) >= 30
    assert len(set(TEMPLATES)) == len(TEMPLATES)
    assert all(text[-1].isalpha() and text[0].isupper() for text in TEMPLATES)


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("p.txt", b"only one\nonly one\n", ConfigError, r"1 distinct prompts .* at least 2"),
        (
            "p.txt",
            b"fine\n" + b"word " * 4000,
            FormatError,
            r"prompt p\.txt:2 has \d+ tokens, but .* reads 128",
        ),
        ("p.txt", b"\n\n", FormatError, r"p\.txt is empty"),
        ("p.txt", b"fine\ncaf\xe9", FormatError, r"p\.txt is not UTF-8: byte 8 is 0xe9"),
        ("p.jsonl", b'{"text": "a"}\n{"txet": "b"}\n', FormatError, r"p\.jsonl:2: expected an object"),
        ("p.jsonl", b'{"text": "a"}\n{"text": " "}\n', FormatError, r"p\.jsonl, line 2: `text` is blank"),
        ("p.jsonl", b'{"text": "a"\n', FormatError, r"p\.jsonl:1 is not JSON"),
    ],
)
def test_what_is_refused(tmp_path, name, content, error, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(error, match=says):
        prompts(PromptsConfig(source=f"file:{path}"))


def test_a_prompt_as_long_as_the_context_is_not_refused(tmp_path):
    model = tiny_model("gpt2")
    longest = "a" + " a" * 63
    assert len(model.tokenize(longest, prepend_bos=True)) == model.spec.n_ctx == 128
    path = tmp_path / "p.txt"
    path.write_text(f"sea\n{longest}")
    rows = prompts(PromptsConfig(source=f"file:{path}"), model=model, bos=True).to_pylist()
    assert max(len(r["token_ids"]) for r in rows) == 128
    path.write_text(f"sea\n{longest}a")
    with pytest.raises(FormatError, match="129 tokens"):
        prompts(PromptsConfig(source=f"file:{path}"), model=model, bos=True)


def test_missing_file_and_unknown_source(tmp_path):
    with pytest.raises(UnknownReferenceError, match=r"absent\.txt"):
        prompts(PromptsConfig(source=f"file:{tmp_path / 'absent.txt'}"))
    with pytest.raises(ConfigError, match="unknown source"):
        prompts(PromptsConfig(source="whatever"))


@pytest.mark.parametrize(
    ("text", "is_document", "expected"),
    [
        ("and so on. The sea", False, "The sea"),
        ("The sea. A king", False, "A king"),
        ("The sea. A king", True, "The sea. A king"),
        ("  The sea", True, "The sea"),
        ("the sea! \u00c9tude", True, "\u00c9tude"),
        ('he said "no." Then', False, "Then"),
        ("the end.\nThen", False, "Then"),
        ("then Mr. Smith and J. Doe. It was", False, "It was"),
        ("at 3.5 and no. more", False, None),
        ("The sea", False, None),
    ],
)
def test_where_a_sentence_starts(text, is_document, expected):
    at = _sentence_start(text, is_document=is_document, cased=True)
    assert (None if at is None else text[at:]) == expected


@pytest.mark.parametrize(
    ("text", "is_document", "expected"),
    [
        ("the sea. a king", False, "a king"),
        ("the sea. a king", True, "the sea. a king"),
        ("\u6d77\u5f88\u5927! \u56fd\u738b", False, "\u56fd\u738b"),
        ("the sea", False, None),
    ],
)
def test_where_a_sentence_starts_without_capitals(text, is_document, expected):
    at = _sentence_start(text, is_document=is_document, cased=False)
    assert (None if at is None else text[at:]) == expected


@pytest.fixture
def story(tmp_path):
    """Many short documents of two sentences, and how many tokens the first half of them has."""
    model = tiny_model("gpt2")
    rng = np.random.default_rng(0)
    words = np.array(
        [
            "the",
            "sea",
            "and",
            "old",
            "man",
            "had",
            "gone",
            "to",
            "forest",
            "with",
            "king",
            "it",
            "was",
            "there",
        ]
    )
    texts = []
    for n in range(40):
        first, second = (" ".join(rng.choice(words, 9 + n % 5)) for _ in range(2))
        texts.append(f"{first}. {second} {n}.")
    path = tmp_path / "story.json"
    path.write_text(json.dumps(texts))
    half = sum(len(model.tokenize(t + "\n", prepend_bos=False)) for t in texts[:20])
    return CorpusConfig(ref=str(path), n_tokens=half, context=32), texts, model


@pytest.mark.parametrize("bos", [False, True])
def test_corpus_prompts_are_beyond_the_harvest(story, bos):
    corpus, texts, model = story
    rows = prompts(PromptsConfig(n=5, length=8), corpus, model=model, bos=bos).to_pylist()
    assert len(rows) == 5
    harvested = token_rows(
        corpus.ref, model, n_tokens=corpus.n_tokens, context=32, positions=positions_of(model, bos)
    )
    last = np.array([len(harvested.tokens) - 1]), np.array([31])
    name, _, offset = harvested.sources(*last)[0].rpartition(":")
    end = int(name.removeprefix("story[").removesuffix("]")), int(offset)
    for row in rows:
        name, _, offset = row["source"].rpartition(":")
        document = int(name.removeprefix("story[").removesuffix("]"))
        assert (document, int(offset)) > end
        text = texts[document]
        at = text.index(row["text"])
        assert at == 0 or text[:at].endswith(". "), "the start of a sentence"
        assert not text[at + len(row["text"])].isalnum(), "the end of a word"
        assert len(model.tokenize(text[:at].rstrip(), prepend_bos=False)) <= int(offset) + 1
        assert 4 < len(row["token_ids"]) - bos <= 8


def test_a_corpus_that_is_harvested_whole_still_gives_prompts(story, caplog):
    corpus, texts, model = story
    whole = corpus.model_copy(update={"n_tokens": 10**6})
    with caplog.at_level(logging.WARNING):
        rows = prompts(PromptsConfig(n=5, length=8), whole, model=model).to_pylist()
    assert "has 0 openings beyond the harvested tokens" in caplog.text
    assert len(rows) == 5
    assert all(any(row["text"] in text for text in texts) for row in rows)


def test_a_corpus_without_sentences_is_refused_with_a_way_out(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("The sea " + "the sea and the king " * 200)
    corpus = CorpusConfig(ref=str(path), n_tokens=100, context=32)
    with pytest.raises(ConfigError, match=r"0 distinct prompts from 'corpus'(?s:.*)templates"):
        prompts(PromptsConfig(n=4, length=8), corpus)


def test_prompts_of_real_stories(shared):
    from polysem.models import load_model

    model = load_model(str(shared / "data" / "stories260k" / "hf"))
    path = shared / "data" / "text-tinystories-1000" / "tinystories_1000.json"
    corpus = CorpusConfig(ref=str(path), n_tokens=5000, context=64)
    rows = prompts(PromptsConfig(n=8, length=16), corpus, model=model).to_pylist()
    assert len(rows) == 8
    stories = json.loads(path.read_text())
    for row in rows:
        document = int(row["source"].partition("[")[2].partition("]")[0])
        assert document > 10, "the first 5000 tokens are harvested and must not be prompts"
        assert row["text"][0].isupper()
        assert 9 <= len(row["token_ids"]) <= 18
        at = " ".join(stories[document].split()).find(" ".join(row["text"].split()))
        assert at >= 0


class Chat:
    """A tiny model whose tokenizer has a chat template."""

    def __init__(self, template="{{ bos_token }}user: {{ messages[0]['content'] }}\nassistant:"):
        self._model = tiny_model("gpt2")
        self.tokenizer = copy.deepcopy(self._model.tokenizer)
        self.tokenizer.chat_template = template

    def __getattr__(self, name):
        return getattr(self._model, name)


def test_a_chat_template_is_tokenized_whole_and_the_message_found_by_its_characters():
    """One BOS, which the template writes itself; all tokens are those that transformers makes of the whole."""
    bare = prompts(PromptsConfig(source="templates", n=3)).to_pylist()
    model = Chat()
    framed = prompts(PromptsConfig(source="templates", n=3, chat_template=True), model=model).to_pylist()
    assert [r["prompt_id"] for r in framed] == [r["prompt_id"] for r in bare]
    for one, other in zip(framed, bare, strict=True):
        message = [{"role": "user", "content": one["text"]}]
        whole = model.tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
        assert one["token_ids"] == whole
        assert one["token_ids"].count(model.bos_id) == 1
        start, stop = span_of(one["token_ids"], one["text"], model)
        assert model.detokenize(whole[start:stop]).strip() == model.detokenize(other["token_ids"][1:]).strip()
        assert span_of(other["token_ids"], other["text"], model) is None


def test_in_front_of_a_template_stands_nothing_that_it_does_not_write():
    model = Chat("user: {{ messages[0]['content'] }}\nassistant:")
    framed = prompts(PromptsConfig(source="templates", n=3, chat_template=True), model=model).to_pylist()
    assert all(model.bos_id not in row["token_ids"] for row in framed)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "has no chat template"),
        ("{{ messages[0]['content'] }} {{ messages[0]['content'] }}", "shows a message 2 times"),
        ("nothing", "shows a message 0 times"),
    ],
)
def test_templates_that_do_not_serve_are_refused(template, words):
    config = PromptsConfig(source="templates", n=3, chat_template=True)
    with pytest.raises(ConfigError, match=words):
        prompts(config, model=Chat(template))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "the sea\n\nthe king\n"),
        ("p.jsonl", '{"text": "the sea"}\n{"text": "the king"}\n'),
        ("p.jsonl", '[{"text": "the sea"}, {"text": "the king"}]'),
        ("p.json", '["the sea", "the king"]'),
        ("p.json", '[\n {"text": "the sea"},\n {"text": "the king"}\n]'),
        ("p.json", '{"text": "the sea"}\n{"text": "the king"}\n'),
        ("p.txt", '{"text": "the sea"}\n{"text": "the king"}\n'),
        ("p.txt", '["the sea", "the king"]'),
        ("p.ndjson", '{"text": "the sea"}\n{"text": "the king"}\n'),
        ("p.jsonl.gz", '{"text": "the sea"}\n{"text": "the king"}\n'),
        ("p.txt.gz", "the sea\nthe king\n"),
    ],
)
def test_prompts_are_told_by_their_content(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    assert [text for _, text in one_a_line(file, what="prompts file")] == ["the sea", "the king"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.csv", "prompt\nthe sea\n", "is a table"),
        ("p.json", '{"a": 1}', "expected a list of strings"),
        ("p.json", '[["the sea"]]', "item 0"),
        ("p.jsonl", '{"prompt": "the sea"}\n', "string `text`"),
    ],
)
def test_prompts_of_another_form_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(FormatError, match=said):
        list(one_a_line(tmp_path / name, what="prompts file"))


def test_a_prompt_that_only_looks_like_json_is_one(tmp_path):
    lines = ["{ int x = 3;", "[1] the sea", '{"key": 3}']
    (tmp_path / "p.txt").write_text("\n".join(lines))
    assert [text for _, text in one_a_line(tmp_path / "p.txt", what="prompts file")] == lines
