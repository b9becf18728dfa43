"""Prompts: where they come from, how they are split, what is refused."""

import numpy as np
import pytest

from polysem.config import CorpusConfig, PromptsConfig
from polysem.errors import ConfigError, FormatError, UnknownReferenceError
from polysem.prompts import TEMPLATES, make_prompts
from polysem.testing.tiny import tiny_model

NO_CORPUS = CorpusConfig(ref="nowhere.txt")


def prompts(config, corpus=NO_CORPUS, *, model=None, bos=True, seed=0):
    return make_prompts(config, corpus, model or tiny_model("gpt2"), prepend_bos=bos, seed=seed)


def test_file_prompts_are_distinct_named_and_split(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one two\n\nthree four\none two\nfive six\nseven\n")
    table = prompts(PromptsConfig(source=f"file:{path}", n=10, confirm_fraction=0.5))
    rows = table.to_pylist()
    assert sorted(r["text"] for r in rows) == ["five six", "one two", "seven", "three four"]
    assert {r["text"]: r["source"] for r in rows}["three four"] == "prompts.txt:3"
    assert sorted(r["split"] for r in rows) == ["confirm", "confirm", "select", "select"]
    model = tiny_model("gpt2")
    for row in rows:
        assert row["token_ids"] == model.tokenize(row["text"], prepend_bos=True)
        assert row["token_ids"][0] == model.bos_id


def test_split_depends_on_the_seed_alone():
    config = PromptsConfig(source="templates", n=12)
    model = tiny_model("llama", vocab=64)
    first, again = (prompts(config, model=model, seed=3) for _ in range(2))
    assert first.equals(again)
    assert not first.equals(prompts(config, model=model, seed=4))
    assert first.num_rows == 12


def test_templates_are_distinct_and_end_inside_a_sentence():
    assert len(set(TEMPLATES)) == len(TEMPLATES)
    assert all(text[-1].isalpha() for text in TEMPLATES)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("only one\n", ConfigError, "at least 2"),
        ("fine\n" + "word " * 4000, FormatError, ":2"),
    ],
)
def test_what_is_refused(tmp_path, text, error, says):
    path = tmp_path / "prompts.txt"
    path.write_text(text)
    with pytest.raises(error, match=says):
        prompts(PromptsConfig(source=f"file:{path}"))


def test_missing_and_malformed_files(tmp_path):
    with pytest.raises(UnknownReferenceError, match=r"absent\.txt"):
        prompts(PromptsConfig(source=f"file:{tmp_path / 'absent.txt'}"))
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "a"}\n{"txet": "b"}\n')
    with pytest.raises(FormatError, match="line 2"):
        prompts(PromptsConfig(source=f"file:{path}"))
    with pytest.raises(ConfigError, match="unknown source"):
        prompts(PromptsConfig(source="whatever"))


def test_corpus_prompts_begin_sentences_beyond_the_harvest_and_end_between_words(shared):
    from polysem.models import load_model

    model = load_model(str(shared / "data" / "stories260k" / "hf"))
    corpus = CorpusConfig(
        ref=str(shared / "data" / "text-tinystories-1000" / "tinystories_1000.json"),
        n_tokens=5000,
        context=64,
    )
    rows = prompts(PromptsConfig(n=8, length=16), corpus, model=model).to_pylist()
    assert len(rows) == 8
    stories = (shared / "data" / "text-tinystories-1000" / "tinystories_1000.json").read_text()
    for row in rows:
        assert row["text"][0].isupper()
        assert row["text"][-1].isalnum()
        assert 8 <= len(row["token_ids"]) <= 18
        at = stories.find(row["text"])
        assert at < 0 or not stories[at + len(row["text"])].isalnum()
    documents = [int(r["source"].split("[")[1].split("]")[0]) for r in rows]
    assert np.min(documents) > 10, "the first 5000 tokens are harvested and must not be prompts"
