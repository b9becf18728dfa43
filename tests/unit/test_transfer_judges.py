"""Judges, explainer, detection, defences, capability: scripted truths come back, strange replies do not become answers."""

import json

import numpy as np
import pytest

from polysem.errors import ConfigError, FormatError
from polysem.transfer.capability import choices_right, continuation_nats, load_items, text_cost
from polysem.transfer.defence import auroc, detector, monitor_scores, protected_direction, text_nats, tradeoff
from polysem.transfer.explainer import ExplainedContext, detection, explain
from polysem.transfer.judges import annotate, cohen_kappa, forced_choice, proportion, question
from polysem.worlds.tiny import tiny_model


def judge(rule, *, spoil=()):
    """A judge that answers by `rule(data)`; the calls of `spoil` get nonsense."""
    calls = []

    def ask(messages, attempt):
        calls.append(attempt)
        if len(calls) - 1 in spoil:
            return "Sure! I think so."
        return json.dumps(rule(json.loads(messages[1]["content"])))

    ask.calls = calls
    return ask


def same_letter(data):
    return {"related": data["first"][0] == data["second"][0]}


def test_annotation_asks_in_both_orders_and_again_where_a_reply_is_no_answer():
    pairs = [("apple", "axe"), ("apple", "bear"), ("cat", "cow")]
    ask = judge(same_letter, spoil={0})
    assert annotate(pairs, ask).related.tolist() == [1, 0, 1]
    assert ask.calls == [0, 1, 0, 0, 0, 0, 0]
    biased = annotate(pairs, judge(lambda d: {"related": d["first"] < d["second"]}))
    assert biased.n_inconsistent == 3
    mute = annotate(pairs, judge(same_letter, spoil=range(99)))
    assert mute.n_missing == 3
    assert np.isnan(mute.related).all()


@pytest.mark.parametrize(
    "reply", ['{"related": "yes"}', '{"related": 1}', '{"related": true, "x": 1}', "[true]", "true", ""]
)
def test_replies_of_another_form_are_no_answers(reply):
    assert question(lambda messages, attempt: reply, {}, "related", (True, False)) is None
    assert question(lambda m, a: '```json\n{"related": true}\n```', {}, "related", (True, False)) is True


def test_kappa_and_wilson_are_the_textbooks():
    rng = np.random.default_rng(0)
    a = np.repeat([1.0, 1.0, 0.0, 0.0], [20, 5, 10, 15])
    b = np.repeat([1.0, 0.0, 1.0, 0.0], [20, 5, 10, 15])
    found = cohen_kappa(a, b, level=0.95, rng=rng)
    assert found.kappa == pytest.approx(0.4)
    assert found.agreement == pytest.approx(0.7)
    assert found.lo < 0.4 < found.hi
    assert found.lo == pytest.approx(0.4 - 1.96 * 0.127, abs=0.05)
    assert np.isnan(cohen_kappa(a * np.nan, b, level=0.95, rng=rng).kappa)
    paper = proportion(2443, 3800, level=0.95)
    assert (paper.share, paper.lo, paper.hi) == pytest.approx((0.643, 0.628, 0.658), abs=6e-4)
    assert paper.p < 0.001
    assert np.isnan(proportion(0, 0, level=0.95).share)


def test_forced_choice():
    trials = [(("ab", "ac"), ("xy", "mn"))] * 6 + [(("ab", "cd"), ("pq", "pr"))] * 2

    def rule(data):
        return {"choice": "A" if data["A"][0][0] == data["A"][1][0] else "B"}

    found = forced_choice(trials, judge(rule), level=0.95)
    assert (found.share, found.n, found.n_missing) == (0.75, 8, 0)
    stuck = forced_choice(trials, judge(lambda d: {"choice": "A"}), level=0.95)
    assert (stuck.n, stuck.n_missing) == (0, 8), "a judge that always takes the first says nothing"


def test_explainer_and_detection():
    context = ExplainedContext(("the", " red", " red", " sea"), (0.0, 3.0, 2.0, 0.5))
    assert context.marked() == "the« red red» sea"
    seen = []

    def rule(data):
        seen.append(data)
        return {"gloss": "the colour red"} if "contexts" in data else {"contains": "red" in data["text"]}

    assert explain([context], judge(rule)) == "the colour red"
    assert seen[0]["contexts"] == ["the« red red» sea"]
    assert explain([context], judge(lambda d: {"gloss": "word " * 40})) is None
    other = ExplainedContext(("a", " dog"), (0.0, 0.0))
    rng = np.random.default_rng(0)
    assert detection("red", [context] * 5, [other] * 9, judge(rule), rng=rng, level=0.95).share == 1
    assert (
        detection(
            "x", [context] * 5, [other] * 5, judge(lambda d: {"contains": True}), rng=rng, level=0.95
        ).share
        == 0.5
    )
    with pytest.raises(ConfigError, match="0 active and 1 silent"):
        detection("x", [], [other], judge(rule), rng=rng, level=0.95)


def test_monitor_is_its_formula_and_tells_what_it_should():
    rng = np.random.default_rng(1)
    acts = np.maximum(rng.normal(size=(50, 8)), 0)
    pairs, g = np.array([(0, 1), (2, 5)]), np.array([0.5, -0.3])
    brute = [
        sum(max(0.0, row[k] * c - 0.1) for (i, j), c in zip(pairs, g, strict=True) for k in (i, j))
        for row in acts
    ]
    np.testing.assert_allclose(monitor_scores(acts, pairs, g, tau=0.1), brute)
    clean, attacked = rng.normal(size=4000), rng.normal(1.5, 1, 500)
    found = detector(clean, attacked, level=0.95, rng=rng, draws=200)
    assert found.lo < 0.8556 < found.hi, "Phi(1.5 / sqrt 2)"
    assert found.flagged.lo <= 0.01 <= found.flagged.hi
    assert found.found.share == pytest.approx(0.205, abs=0.06)
    assert auroc(np.array([1.0, 2.0]), np.array([2.0, 3.0])) == pytest.approx(0.875)
    with pytest.raises(ConfigError, match="at least 4 clean"):
        detector(clean[:2], attacked, level=0.95, rng=rng)


def test_protection_removes_first_order_effects_exactly():
    rng = np.random.default_rng(2)
    d, gradients, goal = rng.normal(size=40), rng.normal(size=(5, 40)), rng.normal(size=40)
    gradients[4] = gradients[0]  # dependent targets are no harm
    left = protected_direction(d, gradients)
    np.testing.assert_allclose(gradients @ left, 0, atol=1e-12)
    np.testing.assert_allclose(protected_direction(left, gradients), left, atol=1e-12)
    found = tradeoff(gradients @ d, gradients @ left, on_before=float(goal @ d), on_after=float(goal @ left))
    assert found.reduction == pytest.approx(1)
    assert found.loss == pytest.approx(1 - (goal @ left) / (goal @ d))
    with pytest.raises(ConfigError, match="nothing is left"):
        protected_direction(gradients[0], gradients)


def test_capability_is_the_models_own_likelihood(tmp_path):
    import torch

    model = tiny_model("gpt2")
    text, prefix = "the old man looked at the sea", "(king door)"
    nats, n = continuation_nats(model, prefix, text)
    ids = [*model.tokenize(prefix, prepend_bos=True), *model.tokenize(text, prepend_bos=False)]
    logprobs = model.logits(torch.tensor([ids]))[0].double().log_softmax(-1)
    assert n == len(model.tokenize(text, prepend_bos=False))
    assert nats == pytest.approx(-sum(float(logprobs[t - 1, ids[t]]) for t in range(len(ids) - n, len(ids))))
    assert text_cost(model, ["", prefix], [text])[0] == pytest.approx([0.0])
    assert text_nats(model, [text])[0] == pytest.approx(sum(continuation_nats(model, "", text)[:1]) / n)
    path = tmp_path / "items.jsonl"
    path.write_text('{"ctx": "the sea", "endings": ["is cold", "q z x"], "label": 0}\n')
    items = load_items(path)
    means = [continuation_nats(model, "the sea", e) for e in (" is cold", " q z x")]
    assert choices_right(model, items)[0] == float(means[0][0] / means[0][1] < means[1][0] / means[1][1])
    path.write_text('{"ctx": "the sea", "endings": ["a"], "label": 0}\n')
    with pytest.raises(FormatError, match="line 1: 1 endings"):
        load_items(path)
    with pytest.raises(ConfigError, match="a text of 0 tokens"):
        continuation_nats(model, prefix, "")
