"""Token glosses: whole words, the most active first, readable, the same every time."""

import numpy as np
import pyarrow as pa
import pytest

from polysem.errors import FormatError
from polysem.glosses.tokens import active_words, snippet, token_glosses, word_span
from polysem.glosses.wording import as_in, named, promotes


def context(text: str, values: dict[int, float], *, feature: int = 0, rank: int = 0) -> dict[str, object]:
    """A context of tokens separated by | with activations at some positions."""
    tokens = text.split("|")
    full = [values.get(n, 0.0) for n in range(len(tokens))]
    return {
        "feature": feature,
        "rank": rank,
        "position": full.index(max(full)),
        "tokens": tokens,
        "values": full,
    }


def tables(contexts: list[dict[str, object]], rows: list[dict[str, object]]) -> tuple[pa.Table, pa.Table]:
    schema = pa.schema(
        {
            "feature": pa.int32(),
            "rank": pa.int32(),
            "position": pa.int32(),
            "tokens": pa.list_(pa.string()),
            "values": pa.list_(pa.float32()),
        }
    )
    blank = {"tokens_in_str": [], "tokens_out_str": []}
    names = pa.schema(
        {
            "feature": pa.int32(),
            "tokens_in_str": pa.list_(pa.string()),
            "tokens_out_str": pa.list_(pa.string()),
        }
    )
    return pa.Table.from_pylist([blank | r for r in rows], schema=names), pa.Table.from_pylist(
        contexts, schema=schema
    )


def words_of(contexts: list[dict[str, object]]) -> list[str]:
    """Of the contexts of one feature, in the order of their ranks."""
    ranked = [one | {"rank": rank} for rank, one in enumerate(contexts)]
    return active_words(tables(ranked, [])[1])[0]


@pytest.mark.parametrize(
    ("tokens", "position", "word"),
    [
        ("the| un|believ|able| sea", 2, " unbelievable"),
        ("the| un|believ|able| sea", 4, " sea"),
        ("in| 19|84|,| he", 1, " 1984"),
        ("in| 19|84|,| he", 3, ","),
        ("do|n|'t| go", 1, "don"),
        ("do|n|'t| go", 2, "'t"),
        ("a|\n|b", 1, "\n"),
        ("Ж|ар| пт", 0, "Жар"),
        ("我|们|去", 1, "们"),
        ("it|’||s", 1, "’"),
        ("x" * 20 + "|" + "y" * 20, 1, "y" * 20),
    ],
)
def test_words_are_completed_from_the_context(tokens, position, word):
    _, contexts = tables([context(tokens, {position: 1.0})], [])
    assert active_words(contexts) == {0: [word]}


def test_words_of_many_contexts_are_those_of_one_after_the_other():
    """Arrays over all tokens against the spans of one token at a time; contexts do not touch each other."""
    rng = np.random.default_rng(0)
    vocabulary = [*"ab ,", " a", " ab", "b1", "", "\n", "’", "Ж", "我", "\ufffd", " \ufffd", "c" * 20]
    many = []
    for n in range(300):
        tokens = rng.choice(vocabulary, rng.integers(1, 9)).tolist()
        peak = int(rng.integers(len(tokens)))
        many.append(context("|".join(tokens), {peak: 1.0}, feature=n))
    found = active_words(tables(many[::-1], [])[1])
    for n, one in enumerate(many):
        tokens, peak = one["tokens"], one["position"]
        start, stop = word_span(tokens, peak)
        word = "".join(tokens[start:stop])
        word = word if len(word) <= 30 else tokens[peak]
        assert found[n] == ([] if "\ufffd" in word else [word])


def test_words_are_ordered_by_the_activation_they_collect():
    contexts = [
        context("the| sea", {1: 4.0}),
        context("the| oce|an", {1: 3.0, 2: 3.5}),
        context("an| Ocean", {1: 3.0}),
        context("a| wave| here", {1: 2.0, 2: 1.9}),  # 1.9 is below half of 4
    ]
    assert [named(w) for w in words_of(contexts)] == ['"ocean"', '"sea"', '"wave"']


def test_one_word_counts_once_per_context_by_its_strongest_piece():
    contexts = [context("a| b|b|b", {1: 2.0, 2: 2.0, 3: 2.0}), context("a| c", {1: 3.0})]
    assert words_of(contexts) == [" c", " bbb"]


@pytest.mark.parametrize(
    ("text", "position", "shown"),
    [
        (
            "one| two| three| four| five| six| seven| eight| nine| ten| el|even| tw",
            7,
            "… two three four five six seven eight nine ten eleven …",
        ),
        ("<|endoftext|>| the| sea", 2, "the sea"),
        ("say|,|\n|\n|the| sea|.", 5, "say, the sea."),
        ("so| '|sea|'| it", 2, "so 'sea' it"),
    ],
)
def test_snippets(text, position, shown):
    tokens = text.replace("<|endoftext|>", "<endoftext>").split("|")
    tokens = [t.replace("<endoftext>", "<|endoftext|>") for t in tokens]
    assert snippet({"tokens": tokens, "position": position}) == shown


@pytest.mark.parametrize(
    ("word", "name"),
    [
        (" sea", '"sea"'),
        (",", '"," (comma)'),
        (" (", '"(" (opening bracket)'),
        ("\n", "line break"),
        ("\n \n", "line break"),
        (" ", "space"),
        ("  ", "space"),
        ("\t", "tab"),
        ("'s", '"\'s"'),
        ("<|endoftext|>", '"<|endoftext|>"'),
    ],
)
def test_marks_and_spaces_have_names(word, name):
    assert named(word) == name


def test_wording():
    assert (
        as_in([" sea", "Sea", " \ufffd", ","], "the  open\nsea")
        == '"sea", "," (comma) — as in «the open sea»'
    )
    assert as_in(["\ufffd"], "x") == ""
    assert as_in([" sea"], None) == '"sea"'
    assert promotes([f" w{n}" for n in range(9)]) == 'promotes "w0", "w1", "w2", "w3", "w4", "w5"'


def test_glosses_of_a_table():
    contexts = [
        context("upon| the| open| sea| and", {3: 4.0}, feature=2),
        context("an| oce|an", {1: 3.0}, feature=2, rank=1),
        context("\ufffd| x", {0: 1.0}, feature=5),
    ]
    rows = [
        {"feature": 7},
        {"feature": 5, "tokens_in_str": ["\ufffd"], "tokens_out_str": [" Brigade"]},
        {"feature": 2, "tokens_in_str": [" sea", " waves", "ean"]},
    ]
    glosses = token_glosses(*tables(contexts, rows))
    assert [(g.feature, g.text, g.explainer) for g in glosses] == [
        (2, '"sea", "ocean", "waves" — as in «upon the open sea and»', "active tokens"),
        (5, 'promotes "Brigade"', "promoted tokens"),
    ]
    assert {g.source for g in glosses} == {"tokens"}


def test_order_of_rows_does_not_matter():
    contexts = [context(f"a| w{n}", {1: 1.0 + n % 3}, feature=n % 2, rank=n // 2) for n in range(12)]
    rows = [{"feature": 0, "tokens_in_str": [" q"]}, {"feature": 1}]
    assert token_glosses(*tables(contexts, rows)) == token_glosses(*tables(contexts[::-1], rows[::-1]))


def test_a_table_without_contexts_has_glosses_of_promoted_tokens():
    rows = [{"feature": 3, "tokens_out_str": [" sea"]}]
    assert [g.text for g in token_glosses(*tables([], rows))] == ['promotes "sea"']


def test_a_context_without_a_value_for_every_token_is_refused():
    short = context("a| b", {0: 1.0}) | {"values": [1.0]}
    with pytest.raises(FormatError, match="as many values as tokens"):
        active_words(tables([short], [])[1])
