"""Targets: bounds against brute force, the client against a real server with troubles, cache, budget, rate."""

import json
from dataclasses import replace

import numpy as np
import pytest

from polysem.errors import ConfigError, FormatError, StoreError, UnknownReferenceError
from polysem.http import Retries
from polysem.targets import (
    Answer,
    Budget,
    LocalTarget,
    ResponseCache,
    ServedTarget,
    Serving,
    Target,
    TargetPrompt,
)
from polysem.targets.bounds import (
    Bound,
    kl_bound,
    log_odds_bound,
    mass_bound,
    noise_sd,
    top_k_counts,
    tv_bound,
)
from polysem.targets.parse import parse_answer
from polysem.targets.spend import Price, Rate
from polysem.worlds.tiny import tiny_model
from support.raw import RawServer
from support.raw import answer as answer_of_server
from support.served import Books, Server, distribution_of

WORDS = ("a", "b", "c", "d", "e", "f", "g", "h")


def near(bound, lo, hi):
    return (bound.lo, bound.hi) == pytest.approx((lo, hi), abs=1e-9)


def answer(probs, *, k=None, complete=False, lost=0, words=WORDS) -> Answer:
    probs = np.asarray(probs, dtype=float)
    best = np.argsort(-probs, kind="stable")[: k or len(probs)]
    return Answer(tuple(words[i] for i in best), np.log(probs[best]), complete=complete, lost=lost)


def answer_all(probs) -> Answer:
    """A complete answer, tokens in the order of the vocabulary, as local targets give it."""
    return Answer(WORDS, np.log(probs), complete=True)


@pytest.fixture
def scripted():
    """A distribution that depends on the prompt alone."""
    texts = tuple(f" w{i}" for i in range(40))

    def distribution(prompt):
        z = np.random.default_rng(sum(prompt.encode())).normal(size=40) * 2
        return texts, z - np.logaddexp.reduce(z)

    return distribution


def client_of(server, folder, *, api="completions", k=20, budget=None, sleeps=None, attempts=4, **more):
    naps = [] if sleeps is None else sleeps
    serving = Serving(url=server.url, model="test-model", api=api, k=k, **more)
    return ServedTarget(
        serving,
        cache=ResponseCache(folder),
        budget=budget or Budget(),
        retries=Retries(attempts=attempts, first=0.001, sleep=naps.append),
    )


# bounds


def test_bounds_hold_for_every_completion_and_are_reached():
    """Random whole distributions, truncated: the truth always lies inside, and the mass bound's ends are attained."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        p, q = rng.dirichlet(np.full(8, 0.4), size=2)
        k = int(rng.integers(2, 8))
        inside = rng.random(8) < 0.4
        cut, other_cut = answer(p, k=k), answer(q, k=k)
        member = {w for w, yes in zip(WORDS, inside, strict=True) if yes}
        seen = np.array([t in member for t in cut.tokens])
        unseen = int(inside.sum() - seen.sum())
        truth = float(p[inside].sum())
        bound = mass_bound(cut, seen, n_unseen=unseen)
        assert bound.lo - 1e-12 <= truth <= bound.hi + 1e-12
        assert bound.hi <= mass_bound(cut, seen).hi
        rest = mass_bound(cut, ~seen)
        odds = log_odds_bound(bound, rest)
        if 0 < truth < 1:
            assert odds.lo - 1e-9 <= np.log(truth / (1 - truth)) <= odds.hi + 1e-9
        true_kl = float((p * np.log(p / q)).sum())
        assert kl_bound(cut, other_cut).lo <= true_kl + 1e-9
        assert kl_bound(cut, other_cut).hi == np.inf
        exact = kl_bound(answer_all(p), answer_all(q))
        assert exact.lo == pytest.approx(true_kl, abs=1e-9)
        assert exact.hi == exact.lo
        true_tv = 0.5 * np.abs(p - q).sum()
        tv = tv_bound(cut, other_cut)
        assert tv.lo - 1e-12 <= true_tv <= tv.hi + 1e-12
        assert near(tv_bound(answer_all(p), answer_all(q)), true_tv, true_tv)


def test_a_truncated_answer_says_what_is_missing():
    cut = answer([0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.01, 0.01], k=3)
    assert cut.missing == pytest.approx(0.2)
    inside = np.array([True, False, False])
    assert near(mass_bound(cut, inside), 0.5, 0.7)
    assert near(mass_bound(cut, inside, n_unseen=1), 0.5, 0.6)
    # a lost token may be larger than the smallest granted one
    assert mass_bound(
        answer(np.exp(cut.logprobs), lost=1, words="abc"), inside, n_unseen=1
    ).hi == pytest.approx(0.7)


def test_top_30_success_is_refused_from_20():
    cut = answer(np.full(8, 1 / 8), k=5)
    with pytest.raises(ConfigError, match=r"top-6 success was asked for, but the target grants 5"):
        top_k_counts(cut, np.ones((1, 5), bool), k=6)
    assert top_k_counts(cut, np.array([[True, False, True, True, False]]), k=3)[0] == Bound(2.0, 2.0)
    lossy = answer(np.full(8, 1 / 8), k=5, lost=1)
    assert top_k_counts(lossy, np.array([[True, False, True, True, False]]), k=3)[0] == Bound(1.0, 3.0)


def test_tokens_of_equal_text_cannot_be_told_apart():
    """ " a" is two tokens in one answer and one of them in the other: no bound may count on knowing which."""
    p, q = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.6, 0.2, 0.1])
    words = (" a", " a", " b", " c")
    whole, head = answer(p, words=words, complete=True), answer(q, words=words, k=2)
    assert kl_bound(whole, head).lo <= float((p * np.log(p / q)).sum())
    assert tv_bound(whole, head).lo <= 0.5 * np.abs(p - q).sum() <= tv_bound(whole, head).hi
    assert kl_bound(whole, answer(q, words=words, k=3, lost=1)).lo == 0


def test_noise_is_the_spread_of_repeats():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(4000, 1)) * 5 + rng.normal(size=(4000, 5)) * 0.3
    assert noise_sd(values) == pytest.approx(0.3, rel=0.03)
    assert np.isnan(noise_sd(values[:, :1]))


def test_impossible_answers_are_refused():
    with pytest.raises(FormatError, match=r"sum to 1\.2"):
        Answer(("a", "b"), np.log([0.6, 0.6]), complete=False)
    with pytest.raises(FormatError, match="finite"):
        Answer(("a",), np.array([-np.inf]), complete=False)
    with pytest.raises(FormatError, match="at least one"):
        Answer((), np.array([]), complete=True)


# a model in this process


def test_local_answers_are_the_models_distribution():
    model = tiny_model("llama")
    target = LocalTarget(model)
    prompts = [TargetPrompt("the quick brown"), TargetPrompt("the sea"), TargetPrompt("the quick brown")]
    answers = target.answers(prompts)
    import torch

    for prompt, found in zip(prompts, answers, strict=True):
        ids = model.tokenize(prompt.text, prepend_bos=False)
        want = model.logits(torch.tensor([ids]))[0, -1].double().softmax(-1).numpy()
        np.testing.assert_allclose(found.probs, want, atol=1e-6)
        assert found.complete
        assert found.missing == 0
    assert isinstance(target, Target)
    assert target.count_tokens("the sea") == len(model.tokenize("the sea", prepend_bos=False))
    with pytest.raises(ConfigError, match="takes no system message"):
        target.answers([TargetPrompt("x", system="y")])
    with pytest.raises(ConfigError, match="tokens; expected 1 to 128"):
        target.answers([TargetPrompt("the " * 400)])


# a server


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_http_gives_the_head_of_the_same_distribution(api, tmp_path):
    target = LocalTarget(tiny_model("llama"))
    prompts = [TargetPrompt("the sea"), TargetPrompt("there is nothing")]
    with Server(distribution_of(target), k_max=20) as server:
        served = client_of(server, tmp_path, api=api, k=50)
        assert served.probe(prompts) == 20
        for mine, theirs in zip(served.answers(prompts), target.answers(prompts), strict=True):
            assert not mine.complete
            best = np.sort(theirs.logprobs)[::-1][:20]
            np.testing.assert_allclose(np.sort(mine.logprobs)[::-1], best, rtol=1e-12)
    assert served.kind.word_start == (api == "completions")


def test_every_trouble_is_survived_and_nothing_is_paid_for_twice(scripted, tmp_path):
    prompts = [TargetPrompt(f"prompt {i}") for i in range(12)]
    naps = []
    with Server(scripted) as server:
        calm = client_of(server, tmp_path / "calm")
        calm.probe(prompts[:1])
        expected = calm.answers(prompts)
    troubles = {1: "busy", 2: "broken", 3: "cut", 5: "half", 7: "cut", 8: "busy"}
    with Server(scripted, troubles=troubles, retry_after=3.0) as server:
        # One request may meet all troubles but one, however its threads are scheduled.
        served = client_of(server, tmp_path / "rough", sleeps=naps, concurrency=3, attempts=8)
        served.probe(prompts[:1])
        found = served.answers(prompts + prompts)
        assert server.received == len(prompts) + len(troubles)
        assert set(server.books.charged.values()) == {1}
        assert server.books.replayed == 3, "what was cut was charged once and given again"
        assert served.answers(prompts)[0].tokens == found[0].tokens
        assert server.received == len(prompts) + len(troubles)
    for a, b in zip(found, expected + expected, strict=True):
        assert a.tokens == b.tokens
        np.testing.assert_array_equal(a.logprobs, b.logprobs)
    assert naps.count(3.0) == 2, "Retry-After is obeyed"


def test_a_failure_keeps_what_was_paid_for(scripted, tmp_path):
    prompts = [TargetPrompt(f"prompt {i}") for i in range(10)]
    with Server(scripted, troubles=dict.fromkeys(range(6, 60), "broken")) as server:
        served = client_of(server, tmp_path, concurrency=1)
        served.probe(prompts[:1])
        with pytest.raises(UnknownReferenceError, match="no answer from"):
            served.answers(prompts)
        paid = server.books.charged.total()
    assert paid == 6
    with Server(scripted) as server:
        url = server.url
        again = client_of(server, tmp_path, concurrency=1)
        # the address is part of what was asked: another port is another server
        assert again.estimate(prompts).kept == 0
    assert sum(1 for _ in tmp_path.rglob("*.json.gz")) == 6
    assert url


def test_where_a_server_honours_no_keys_only_what_was_lost_on_the_way_is_paid_for_again(scripted, tmp_path):
    prompts = [TargetPrompt(f"prompt {i}") for i in range(12)]
    books = Books(honours=False)
    with Server(scripted, troubles={1: "busy", 3: "cut", 6: "half"}, books=books) as server:
        served = client_of(server, tmp_path, concurrency=1)
        served.probe(prompts[:1])
        served.answers(prompts)
    assert sorted(books.charged.values()) == [1] * 10 + [2] * 2
    assert books.replayed == 0


def test_a_request_leaves_a_mark_until_its_answer_is_kept(scripted, tmp_path):
    prompts = [TargetPrompt(f"prompt {i}") for i in range(3)]
    with Server(scripted, troubles=dict.fromkeys(range(1, 60), "cut")) as server:
        served = client_of(server, tmp_path, concurrency=1)
        served.probe(prompts[:1])
        assert served.cache.open_marks() == []
        with pytest.raises(UnknownReferenceError):
            served.answers(prompts)
        estimate = served.estimate(prompts)
        begun = (
            len(server.books.charged) - 1
        )  # a thread may have begun the third before it hears of the failure
        assert (estimate.to_send, estimate.unsettled) == (2, begun)
        assert begun in (1, 2)
        assert f"{begun} of them were under way when a run ended" in str(estimate)
        server.troubles.clear()
        served.answers(prompts)
        assert served.cache.open_marks() == []
        assert set(server.books.charged.values()) == {1}
    with Server(scripted, model="other") as server:
        wrong = client_of(server, tmp_path / "refused")
        with pytest.raises(UnknownReferenceError, match="404"):
            wrong.probe(prompts)
        assert wrong.cache.open_marks() == [], "a refusal costs nothing"


def test_missing_rights_models_and_logprobs_say_what_to_do(scripted, tmp_path, monkeypatch):
    prompts = [TargetPrompt("x")]
    with Server(scripted, api_key="secret") as server:
        with pytest.raises(UnknownReferenceError, match=r"HTTP 401.*\n.*POLYSEM_API_KEY"):
            client_of(server, tmp_path / "a").probe(prompts)
        monkeypatch.setenv("POLYSEM_API_KEY", "secret")
        monkeypatch.setenv("POLYSEM_API_BASE", server.url)
        assert client_of(server, tmp_path / "a").probe(prompts) == 20
        kept = b"".join(f.read_bytes() for f in tmp_path.rglob("*.gz"))
        import gzip

        assert b"secret" not in gzip.decompress(kept)
        assert not any("secret" in json.dumps(b) for b in server.bodies)
    monkeypatch.delenv("POLYSEM_API_KEY")
    with Server(scripted, model="other") as server, pytest.raises(UnknownReferenceError, match="HTTP 404"):
        client_of(server, tmp_path / "b").probe(prompts)
    with (
        Server(scripted, troubles={0: "silent"}) as server,
        pytest.raises(UnknownReferenceError, match="no log-probabilities, though 20 were asked for"),
    ):
        client_of(server, tmp_path / "c").probe(prompts)
    assert not list((tmp_path / "c").rglob("*.gz")), "a useless answer is not kept"
    with pytest.raises(ConfigError, match="must be probed"):
        client_of(server, tmp_path / "d").answers(prompts)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_prompt_that_is_too_large_is_named_and_asked_once(api, tmp_path):
    told = answer_of_server(
        {"error": {"message": "exceeds the available context size", "code": 400}}, status="400 Bad Request"
    )
    with RawServer(told) as server:
        with pytest.raises(
            UnknownReferenceError, match=r"what is too large begins with 'far too long a' and has 14 char"
        ) as caught:
            client_of(server, tmp_path, api=api).probe([TargetPrompt("far too long a")])
        assert "pools.n_tokens" in caught.value.hint
    assert len(server.requests) == 1


def test_a_whole_answer_of_another_form_or_model_is_paid_for_once(tmp_path):
    for body, says in (
        ({"choices": []}, "no completions response"),
        ({"model": "gpt-2", "choices": []}, "answers as 'gpt-2'"),
    ):
        with (
            RawServer(answer_of_server(body)) as server,
            pytest.raises((FormatError, UnknownReferenceError), match=says),
        ):
            client_of(server, tmp_path).probe([TargetPrompt("x")])
        assert len(server.requests) == 1


def test_equal_texts(tmp_path):
    """Two tokens of one text: chat lists both, completions write the key twice or lose one."""

    def distribution(prompt):
        return (" a", " b", " a", " c", " d"), np.log([0.4, 0.3, 0.15, 0.1, 0.05])

    for api, collide, n, lost in (
        ("chat", False, 5, 0), ("completions", False, 5, 0), ("completions", True, 4, 1),
    ):  # fmt: skip
        with Server(distribution, collide=collide) as server:
            served = client_of(server, tmp_path / f"{api}{collide}", api=api, k=5)
            served.probe([TargetPrompt("x")])
            served.probed = replace(served.probed, granted=5)
            (found,) = served.answers([TargetPrompt("x")])
        assert (found.n, found.lost) == (n, lost)
        inside = np.array([t == " a" for t in found.tokens])
        bound = mass_bound(found, inside)
        assert bound.lo - 1e-12 <= 0.55 <= bound.hi + 1e-12
        if lost:
            assert bound.width == pytest.approx(0.15)


def test_jitter_shows_in_repeated_baselines(scripted, tmp_path):
    with Server(scripted, jitter=0.05) as server:
        served = client_of(server, tmp_path)
        prompts = [TargetPrompt(f"s{i}", repeat=r) for i in range(60) for r in range(5)]
        served.probe(prompts[:1])
        values = np.array([a.logprobs.max() for a in served.answers(prompts)]).reshape(60, 5)
        same = np.array([a.logprobs.max() for a in served.answers(prompts)]).reshape(60, 5)
        assert server.received == 300
    np.testing.assert_array_equal(values, same)
    assert 0.02 < noise_sd(values) < 0.08


def test_the_budget_is_checked_before_and_holds_during(scripted, tmp_path):
    prompts = [TargetPrompt(f"prompt {i}") for i in range(10)]
    price = Price(per_request=0.5, unit="EUR")
    with Server(scripted) as server:
        served = client_of(server, tmp_path, budget=Budget(max_requests=8, price=price))
        served.probe(prompts[:1])
        estimate = served.estimate(prompts)
        assert (estimate.planned, estimate.kept, estimate.to_send, estimate.cost) == (10, 1, 9, 4.5)
        assert "4.5 EUR" in str(estimate)
        with pytest.raises(
            ConfigError, match=r"budget is too small: 10 requests, 1 answered before, 9 to send"
        ):
            served.budget.check(estimate)
        with pytest.raises(ConfigError, match=r"max_cost leaves 4\.4"):
            Budget(max_cost=4.4, price=price).check(estimate)
        with pytest.raises(StoreError, match="budget is used up: 8 requests"):
            served.answers(prompts)
        assert server.books.charged.total() == 8
        rich = client_of(server, tmp_path, budget=Budget(max_requests=2))
        rich.probe(prompts[:1])
        assert len(rich.answers(prompts)) == 10
        assert server.books.charged.total() == 10


def test_the_rate_spaces_requests():
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    rate = Rate(60.0, clock=lambda: now[0], sleep=sleep)
    times = []
    for _ in range(5):
        rate.wait()
        times.append(now[0])
    assert times == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_damaged_response_is_named(scripted, tmp_path):
    with Server(scripted) as server:
        served = client_of(server, tmp_path)
        served.probe([TargetPrompt("x")])
        (file,) = tmp_path.rglob("*.json.gz")
        file.write_bytes(file.read_bytes()[:20])
        with pytest.raises(StoreError, match=file.name):
            served.answers([TargetPrompt("x")])


@pytest.mark.parametrize(
    "body",
    [
        '{"choices": []}',
        "[]",
        '{"choices": [{"text": "x", "logprobs": {"top_logprobs": [3]}}]}',
        '{"cho',
        "null",
    ],
)
def test_strange_bodies_are_format_errors(body):
    with pytest.raises(FormatError):
        parse_answer(body, api="completions", k=5, where="server")


def test_the_sampled_token_beside_the_head_is_not_taken_for_the_head():
    top = {" a": -1.0, " b": -2.0, " c": -3.0, " z": -9.0}
    body = json.dumps({"choices": [{"text": " z", "logprobs": {"top_logprobs": [top]}}]})
    assert parse_answer(body, api="completions", k=3, where="s").tokens == (" a", " b", " c")
    clipped = json.dumps(
        {"choices": [{"text": "", "logprobs": {"top_logprobs": [{" a": -1.0, " b": -9999.0}]}}]}
    )
    assert parse_answer(clipped, api="completions", k=3, where="s").tokens == (" a",)
