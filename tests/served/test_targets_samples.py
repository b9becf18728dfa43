"""A second request: a category's probability from samples of its tokens, on answers that were whole before they were cut."""

import json

import numpy as np
import pytest

from polysem.categories import Categories
from polysem.errors import ConfigError, FormatError
from polysem.http import Retries
from polysem.seeds import rng_for
from polysem.targets import Answer, Budget, ResponseCache, ServedTarget, Serving, TargetPrompt
from polysem.targets.parse import parse_samples
from polysem.targets.samples import Samples, check_samples, sampled_tail
from polysem.targets.spend import Price
from polysem.targets.tail import Heads
from polysem.transfer import parse_transfer
from polysem.transfer.tails import TailCollector
from support.served import Server

N_OWN, N_OTHER, K, N = 60, 300, 20, 128
WORDS = (*(f" own{n}" for n in range(N_OWN)), *(f" other{n}" for n in range(N_OTHER)))
OWN = frozenset(WORDS[:N_OWN])
IDS = list(range(N_OWN))
CATEGORIES = Categories({"own": frozenset(w.strip() for w in OWN)}, "test")
PROMPTS = [TargetPrompt(f"prompt {n}") for n in range(6)]


def distribution(prompt):
    z = rng_for(0, "samples", prompt).normal(0, 2.0, len(WORDS))
    return WORDS, z - np.logaddexp.reduce(z)


def truth_of(prompts):
    return np.array([np.exp(distribution(p.text)[1][:N_OWN]).sum() for p in prompts])


def target_of(server, folder, *, api="completions", budget=None, **more):
    return ServedTarget(
        Serving(url=server.url, model="test-model", api=api, k=K, samples=N, **more),
        cache=ResponseCache(folder),
        budget=budget or Budget(),
        retries=Retries(attempts=2, first=0.001, sleep=lambda _: None),
    )


def collected(answers, samples):
    seen = TailCollector(CATEGORIES, word_start=True, vocabulary=WORDS, sampled="own")
    for pair in zip(answers, samples, strict=True):
        seen.take(*pair)
    return seen.tails([0] * len(answers))


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_samples_of_a_server_give_what_k_does_not(api, tmp_path):
    with Server(distribution, k_max=K) as server:
        target = target_of(server, tmp_path, api=api)
        target.probe(PROMPTS)
        answers, samples = target.answers(PROMPTS), target.samples(PROMPTS, IDS)
        sent = server.received
        again = target_of(server, tmp_path, api=api)
        again.probe(PROMPTS)
        np.testing.assert_array_equal(again.samples(PROMPTS, IDS)[2].logprobs, samples[2].logprobs)
        assert server.received == sent == 2 * len(PROMPTS), "nothing is asked twice"
    check_samples(answers, samples, OWN, who="it")
    found = collected(answers, samples)
    truth = np.log(truth_of(PROMPTS)) - np.log1p(-truth_of(PROMPTS))
    assert found.share[0] > 0.7
    error = found.change[:, 0] - (truth - truth[0])
    half = np.array([a.probs[[t in OWN for t in a.tokens]].sum() + a.missing / 2 for a in answers])
    half = np.log(half) - np.log1p(-half)
    # half as far, where draws give a third: no seed fixes them
    assert np.abs(error).mean() < np.abs(half - half[0] - (truth - truth[0])).mean() / 2
    assert (np.abs(error) <= 3 * found.sd[:, 0]).all()


@pytest.mark.parametrize(
    ("draws", "says"),
    [
        ("processed", r"with logit_bias and n the likeliest token is .* without them .*\n.*raw_logprobs"),
        ("ignored", r"was to allow 60 tokens, and the server drew ' other"),
        ("cut", r"other proportions than their log-probabilities say.*\n.*top_k = 0"),
    ],
)
def test_a_server_that_draws_otherwise_is_found_on_the_baselines(draws, says, tmp_path):
    with Server(distribution, k_max=K, draws=draws) as server:
        target = target_of(server, tmp_path)
        target.probe(PROMPTS)
        answers, samples = target.answers(PROMPTS), target.samples(PROMPTS, IDS)
    with pytest.raises(ConfigError, match=says):
        check_samples(answers, samples, OWN, who="it")


def test_the_estimate_has_no_bias_and_its_interval_covers():
    """Against the whole distribution, in many simulated answers."""
    rng = rng_for(0, "unbiased")
    n, ratio, covered = 3000, [], 0
    x = np.minimum(rng.normal(-7.5, 1.5, (n, N_OWN)), -4.5)
    p = np.exp(x)
    assert p.sum(axis=1).max() < 0.5
    floor = np.full(n, -5.5)
    granted = x >= floor[:, None]
    counts = np.array([rng.multinomial(N, row / row.sum()) for row in p])
    missing = 1 - np.where(granted, p, 0).sum(axis=1) - 0.3
    heads = Heads(np.where(granted, x, np.nan), floor, missing, np.arange(n) // 2 * 2)
    found = sampled_tail(heads, np.where(counts > 0, x, np.nan), n=N)
    truth = p.sum(axis=1)
    ratio = np.log(found.mass / truth)
    assert abs(ratio.mean()) < 3 * ratio.std() / np.sqrt(n) + 0.01
    true_change = np.log(truth / (1 - truth))
    true_change = true_change - true_change[heads.sentence]
    at = np.arange(n) % 2 == 1
    covered = (np.abs(found.change - true_change) <= 1.96 * found.sd)[at].mean()
    assert 0.93 < covered < 0.99
    assert found.sd[~at].max() == 0
    bare = np.where(granted | (counts > 0), p, 0).sum(axis=1)
    assert np.log(bare / truth).mean() < -0.1, "what was seen alone is too little"


def test_too_few_samples_measure_nothing_and_no_k_is_advised():
    x = np.full((2, 400), -10.0)
    drawn = np.full(x.shape, np.nan)
    drawn[:, :4] = x[:, :4]
    heads = Heads(np.full(x.shape, np.nan), np.full(2, -9.0), np.full(2, 0.9), np.zeros(2, dtype=np.int64))
    found = sampled_tail(heads, drawn, n=4)
    assert not found.measurable
    assert found.k == np.inf


def test_nothing_granted_and_nothing_else_drawn_is_finite():
    heads = Heads(np.full((2, 3), np.nan), np.full(2, -9.0), np.full(2, 1e-9), np.zeros(2, dtype=np.int64))
    drawn = np.array([[-9.5, np.nan, np.nan], [np.nan, np.nan, np.nan]])
    found = sampled_tail(heads, drawn, n=4)
    assert np.isfinite(found.change).all()
    assert np.isfinite(found.sd).all()


def test_a_stray_token_counts_for_nothing():
    x = distribution("prompt 0")[1]
    best = np.argsort(-x)[:K]
    answer = Answer(tuple(WORDS[i] for i in best), x[best], complete=False)
    of = np.argsort(-x[:N_OWN])[:5]
    drawn = Samples(tuple(WORDS[i] for i in of), x[of], (WORDS[best[0]], x[best[0]]))
    stray = Samples((*drawn.tokens[:4], " other7"), np.append(drawn.logprobs[:4], -3.0), drawn.first)
    few = collected([answer, answer], [drawn, stray])
    assert few.change[1, 0] == pytest.approx(0, abs=0.5)


def test_answers_that_are_no_samples_are_named():
    body = json.dumps(
        {
            "choices": [
                {"logprobs": {"tokens": [" a"], "token_logprobs": [-1.0], "top_logprobs": [{" a": -1.0}]}}
            ]
        }
    )
    assert parse_samples(body, api="completions", n=1, where="it").tokens == (" a",)
    with pytest.raises(FormatError, match=r"it: 2 samples were asked for.*1 tokens.*\n.*--parallel"):
        parse_samples(body, api="completions", n=2, where="it")
    empty = json.dumps({"choices": [{"logprobs": None}]})
    with pytest.raises(FormatError, match="1 samples were asked for"):
        parse_samples(empty, api="chat", n=1, where="it")


def test_samples_are_counted_and_priced(tmp_path):
    price = Price(per_request=1.0, per_million_output=1e6)
    with Server(distribution, k_max=K) as server:
        target = target_of(server, tmp_path, budget=Budget(price=price))
        plan = target.estimate(PROMPTS, [(p, IDS) for p in PROMPTS])
        assert (plan.to_send, plan.cost) == (12, 12 + 6 * (1 + N))
        target.probe(PROMPTS)
        target.samples(PROMPTS, IDS)
        assert target.budget.cost == plan.cost
        assert target.estimate(PROMPTS, [(p, IDS) for p in PROMPTS]).to_send == 0
        assert target.estimate(PROMPTS, [(p, IDS) for p in PROMPTS], anew=True).cost == plan.cost


def test_samples_need_a_tokenizer_and_a_server():
    base = '[[sources]]\nmodel="a"\nsae="b"\n[[sources]]\nmodel="c"\nsae="d"\n[[targets]]\nname="t"\nmodel="e"\nsamples=8\n'
    for more in ("", 'kind="chat"\nurl="http://localhost/v1"\nmax_requests=5\n'):
        with pytest.raises(ConfigError, match="samples are drawn by token number"):
            parse_transfer(base + more)
    study = parse_transfer(
        base + 'kind="chat"\nurl="http://localhost/v1"\nmax_requests=5\ntokenizer="zoo:llama"\n'
    )
    assert study.targets[0].samples == 8
