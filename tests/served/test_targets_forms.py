"""What servers answer, and how it is told before a study is paid for: forms, spellings, thoughts, BOS, the model's name."""

import json

import numpy as np
import pytest

from polysem.errors import ConfigError
from polysem.http import Retries
from polysem.targets import Answer, Budget, LocalTarget, ResponseCache, ServedTarget, Serving, TargetPrompt
from polysem.targets.bounds import kl_bound
from polysem.targets.local import own_bos
from polysem.targets.parse import parse_answer, told, with_losses
from polysem.targets.spelling import reader_of_tokens, spelling_of
from polysem.targets.tokenizer import KnownTokenizer
from polysem.worlds.tiny import tiny_model
from support.served import Server

WORDS = (" red", " blue", "ly", ",", " the", " é", "x", " one")
PROMPTS = [TargetPrompt(f"prompt {i}") for i in range(4)]


@pytest.fixture
def scripted():
    def distribution(prompt):
        z = np.random.default_rng(sum(prompt.encode())).normal(size=len(WORDS))
        return WORDS, z - np.logaddexp.reduce(z)

    return distribution


def target_of(server, folder, *, api="completions", k=5, model="test-model", tokenizer=None, bos=None):
    return ServedTarget(
        Serving(url=server.url, model=model, api=api, k=k, bos=bos),
        cache=ResponseCache(folder),
        budget=Budget(),
        retries=Retries(attempts=2, first=0.001, sleep=lambda _: None),
        tokenizer=tokenizer,
    )


def chat_form(*entries, text=""):
    logprobs = {"content": [{"token": text, "logprob": -1.0, "top_logprobs": list(entries)}]}
    return json.dumps({"choices": [{"text": text, "logprobs": logprobs}]})


def entry(token, logprob, **more):
    return {"token": token, "logprob": logprob, **more}


# forms


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("in_chat_form", [True, False])
def test_either_form_is_read_at_either_endpoint(api, in_chat_form, scripted, tmp_path):
    with Server(scripted, chat_form=in_chat_form) as server:
        served = target_of(server, tmp_path, api=api)
        served.probe(PROMPTS)
        found = served.answers(PROMPTS)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        texts, logprobs = scripted(prompt.text)
        best = np.argsort(-logprobs)[:5]
        assert answer.tokens == tuple(texts[i] for i in best)
        np.testing.assert_allclose(answer.logprobs, logprobs[best])
    assert served.probed.form == ("chat" if api == "chat" or in_chat_form else "completions")


def test_the_sampled_token_is_not_counted_twice_and_others_of_equal_text_are():
    red, other = entry(" red", -1.0, id=3), entry(" red", -1.0, id=9)
    body = chat_form(red, entry(" blue", -1.5, id=4), red, other, text=" red")
    assert parse_answer(body, api="chat", k=5, where="s").tokens == (" red", " red", " blue")
    body = chat_form(entry(" red", -1.0), entry(" blue", -1.5), entry(" red", -1.0), text=" red")
    assert parse_answer(body, api="chat", k=5, where="s").tokens == (" red", " blue")
    body = chat_form(entry(" a", -1.0), entry(" a", -1.1), text=" a")
    assert parse_answer(body, api="chat", k=5, where="s").n == 2


def test_single_bytes_stay_apart():
    body = chat_form(
        entry("<0xE2>", -1.0),
        entry("�", -2.0, bytes=[0x82]),
        entry("�", -3.0, bytes=[0xE3]),
        entry(" ok", -4.0),
    )
    tokens = parse_answer(body, api="chat", k=5, where="s").tokens
    assert tokens == ("bytes:e2", "bytes:82", "bytes:e3", " ok")


def test_what_a_response_says_of_its_server():
    body = {"model": "m", "usage": {"prompt_tokens": 7}, "choices": [{"text": "x", "logprobs": None}]}
    found = told(json.dumps(body), api="completions", where="s")
    assert (found.model, found.prompt_tokens, found.form, found.thought) == ("m", 7, "", False)
    body = {"choices": [{"message": {"content": "", "reasoning_content": "Hm."}}], "usage": None}
    found = told(json.dumps(body), api="chat", where="s")
    assert (found.model, found.prompt_tokens, found.thought) == (None, None, True)


# spellings


@pytest.mark.parametrize(
    ("spell", "name"),
    [
        (str, "plain"),
        (lambda t: t.replace(" é", "ĠÃ©").replace(" ", "Ġ"), "byte_level"),
        (lambda t: t.replace(" ", "▁"), "metaspace"),
    ],
)
def test_raw_spellings_are_turned_into_texts(spell, name, scripted, tmp_path):
    with Server(scripted, spell=spell) as server:
        served = target_of(server, tmp_path, k=8)
        served.probe(PROMPTS)
        assert served.probed.spelling == name
        assert set(served.answers(PROMPTS)[0].tokens) == set(WORDS)


def test_stripped_tokens_and_numbers_are_said_before_the_study(scripted, tmp_path):
    with (
        Server(scripted, spell=lambda t: t.strip()) as server,
        pytest.raises(
            ConfigError, match=r"none of the granted tokens begins with a space.*\n.*kind = 'chat'"
        ),
    ):
        target_of(server, tmp_path / "stripped").probe(PROMPTS)
    with Server(scripted, spell=lambda t: t.strip()) as server:
        target_of(server, tmp_path / "chat", api="chat").probe(PROMPTS)  # words of messages begin without one
    numbered = {t: f"token_id:{n}" for n, t in enumerate(WORDS)}
    with Server(scripted, spell=numbered.__getitem__) as server:
        with pytest.raises(ConfigError, match=r"spelled by number.*\n.*target\.tokenizer"):
            target_of(server, tmp_path / "ids").probe(PROMPTS)
        served = target_of(server, tmp_path / "known", k=8, tokenizer=Words())
        served.probe(PROMPTS)
        assert set(served.answers(PROMPTS)[0].tokens) == set(WORDS)


class Words(KnownTokenizer):
    """A tokenizer of as many tokens as there are words in a text."""

    def __init__(self, bos=None):
        super().__init__("words", None)
        object.__setattr__(self, "own", bos)

    def count(self, text):
        return len(text.split())

    bos = property(lambda self: self.own)
    vocabulary = WORDS


def test_a_spelling_is_told_from_many_tokens_not_from_one():
    assert spelling_of([" a", "Ġ", "b"], word_start=True) == "plain"
    assert spelling_of(["red", "blue", ","], word_start=True) == "stripped"
    assert spelling_of(["red", "blue", ","], word_start=False) == "plain"
    assert reader_of_tokens("byte_level", by_id=None, who="s")("<|im_end|>") == "<|im_end|>"
    assert reader_of_tokens("byte_level", by_id=None, who="s")("â") == "bytes:e2"


# thoughts, names, BOS


@pytest.mark.parametrize("first", ["<think>", "<|channel|>"])
def test_models_that_think_first_are_refused_before_the_study(first, tmp_path):
    def distribution(prompt):
        return (first, "red"), np.log([0.9, 0.1])

    with (
        Server(distribution) as server,
        pytest.raises(ConfigError, match=r"begin with thoughts.*\n.*enable_thinking = false"),
    ):
        target_of(server, tmp_path, api="chat").probe(PROMPTS)


def test_bos_is_counted_against_the_tokenizer(scripted, tmp_path):
    def counts(text):
        return len(text.split())

    for n, (extra, own, declared, outcome) in enumerate(
        [
            (0, False, None, False),
            (1, True, None, True),
            (0, None, None, False),
            (1, False, True, True),
            (1, False, None, "puts a BOS token in front of a prompt; words by itself does not"),
            (0, True, None, "does not put a BOS token in front of a prompt; words by itself does"),
            (0, True, True, "target.bos says it does"),
            (2, True, None, "the server counts 4 tokens in 'prompt [0-3]', words 2"),
        ]
    ):
        with Server(scripted, count=lambda text, extra=extra: counts(text) + extra) as server:
            served = target_of(server, tmp_path / str(n), tokenizer=Words(own), bos=declared)
            if isinstance(outcome, str):
                with pytest.raises(ConfigError, match=outcome):
                    served.probe(PROMPTS)
            else:
                served.probe(PROMPTS)
                assert served.probed.bos is outcome
                assert ("no BOS" in str(served.probed)) is not outcome
    with Server(scripted) as server:
        served = target_of(server, tmp_path / "silent", tokenizer=Words(True))
        served.probe(PROMPTS)
        assert "BOS: not checked" in str(served.probed)


def test_a_local_target_does_as_its_tokenizer_does():
    model = tiny_model("llama")
    assert not own_bos(model), "its tokenizer puts nothing in front"
    assert LocalTarget(model).tokens(TargetPrompt("a b")) == model.tokenize("a b", prepend_bos=False)
    assert LocalTarget(model, prepend_bos=True).tokens(TargetPrompt("a b"))[0] == model.bos_id


# infinities


def test_the_lower_bound_of_kl_is_finite_where_an_answer_seems_whole():
    """Granted probabilities that round to a sum of 1 in one answer and not in the other."""
    base = Answer(("a", "b"), np.log([0.6, 0.3]), complete=False)
    whole = Answer(("a", "b"), np.log([0.7, 0.3001]), complete=False)
    found = kl_bound(base, whole)
    assert 0 < found.lo < 1
    assert found.hi == np.inf
    truth = np.array([0.6, 0.3, 0.1]), np.array([0.6995, 0.3, 0.0005])
    assert found.lo <= (truth[0] * np.log(truth[0] / truth[1])).sum()
    tiny = Answer(("a", "b", "c"), np.array([np.log(0.5), np.log(0.5), -900.0]), complete=True)
    plain = Answer(("a", "b", "c"), np.log([0.4, 0.4, 0.2]), complete=True)
    assert np.isfinite(kl_bound(plain, tiny).lo)


def test_a_log_probability_that_is_no_number_is_counted_as_lost():
    entries = [
        {"token": token, "logprob": value}
        for token, value in ((" a", -0.5), (" b", float("nan")), (" c", -2.0))
    ]
    first = {"token": " a", "logprob": -0.5, "top_logprobs": entries}
    body = json.dumps({"choices": [{"message": {"content": " a"}, "logprobs": {"content": [first]}}]})
    answer = with_losses(parse_answer(body, api="chat", k=3, where="here"), granted=3, vocabulary=None)
    assert answer.tokens == (" a", " c")
    assert answer.lost == 1
