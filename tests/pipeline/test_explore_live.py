"""Pushes on request: the numbers of the trials, the KL that was asked for, cancelled when told, never in the way."""

import itertools
import math
import threading

import pytest
import torch

from polysem.edits import Add
from polysem.errors import ConfigError, StoreError
from polysem.explore.again import AskedRow
from polysem.explore.live import WAITING, Job, _following
from polysem.explore.steer import KL_WITHIN, Asked, dose_for_kl

ASKED = {
    "prompt": "It was the best",
    "sae": "s",
    "source": 1,
    "target": 2,
    "locus": "feature",
    "unit": "scale",
    "dose": 0.2,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 5000}, "prompt"),
        ({"source": -1}, "source"),
        ({"source": "1"}, "source"),
        ({"target": True}, "target"),
        ({"locus": "brain"}, "locus"),
        ({"locus": "prompt", "unit": "kl"}, "no dose"),
        ({"unit": "volt"}, "unit"),
        ({"dose": math.nan}, "dose"),
        ({"dose": 1e9}, "dose"),
        ({"unit": "kl", "dose": -0.1}, "a KL is above 0"),
        ({"n_tokens": 10_000}, "n_tokens"),
        ({"command": "rm"}, "command"),
        ({"more": [{"source": 3, "dose": 9.0}]}, "more"),
        ({"more": [{"source": 3, "dose": 0.1}], "unit": "kl"}, "several at once"),
        ({"more": [{"source": 3, "dose": 0.1}] * 8}, "more"),
    ],
)
def test_a_wrong_request_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        Asked.parse({**ASKED, **change})


@pytest.mark.parametrize(
    ("change", "said"), [({"dose": 0.0}, "dose"), ({"source": -1}, "source"), ({"more": 1}, "more")]
)
def test_a_wrong_row_is_refused(change, said):
    row = {"sae": "s", "locus": "feature", "source": 1, "target": 2, "token_set": "in", "dose": 0.1}
    assert AskedRow.parse(row).dose == 0.1
    with pytest.raises(ConfigError, match=said):
        AskedRow.parse(row | change)


@pytest.mark.parametrize("what", [None, [], "x", 3])
def test_a_request_is_an_object(what):
    with pytest.raises(ConfigError, match="the request"):
        Asked.parse(what)


@pytest.mark.parametrize("wanted", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize(
    "curve",
    [lambda s: 2.0 * s**2, lambda s: 50 * s**2 / (1 + s), lambda s: 0.4 * s, lambda s: 3 * math.tanh(s) ** 2],
)
def test_the_dose_of_a_kl_is_found(curve, wanted):
    calls = []
    dose, seen = dose_for_kl(lambda s: calls.append(s) or s, curve, wanted)
    assert abs(curve(dose) - wanted) <= KL_WITHIN * wanted
    assert seen == dose
    assert len(calls) <= 12


def test_a_kl_out_of_reach_is_said():
    with pytest.raises(ConfigError, match="gives only"):
        dose_for_kl(lambda s: s, lambda s: 0.001 * math.tanh(s), 1.0)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A small study of the zoo, as far as its plan, with its model."""
    pytest.importorskip("polysem_zoo", reason="polysem-zoo is not installed")
    from polysem.engine import run_study
    from polysem.explore import Book
    from polysem.explore.live import Live

    folder = tmp_path_factory.mktemp("live")
    study = folder / "study.toml"
    study.write_text(
        'name = "live"\n[model]\nref = "zoo:gpt2"\ndevice = "cpu"\n[[saes]]\nref = "zoo:gpt2/blocks.2.hook_mlp_out"\n'
        '[features]\nsource = "zoo"\n[glosses]\nsource = "tokens"\n'
    )
    run_study(study, folder / "run", stages=["features"])
    made = Live(Book(folder / "run"))
    yield made
    made.close()


def finished(live, job):
    """The end of a push, as the page waits for it: told of every change, not looking again and again."""
    silent = 0
    for told in live.follow(job["id"]):
        silent += not told
        assert silent < 60, "nothing has changed for two minutes"
    return live.look(job["id"])


@pytest.fixture
def held(monkeypatch):
    """Pushes that reach the model stay there until this is set, or for a minute; they may still be cancelled on the way."""
    event = threading.Event()
    monkeypatch.setattr("polysem.explore.live.LiveSteer.run", lambda self: event.wait(60))
    yield event
    event.set()


def at_the_model(live, job):
    """Wait until the model is at work on a push."""
    next(told for told in live.follow(job["id"]) if told.get("doing") == "running the model")


def push(live, **change):
    sae = live.choices()["saes"][0]
    return live.start(
        {
            **ASKED,
            "prompt": "It was a dark and stormy night; the rain fell in",
            "sae": sae,
            "n_tokens": 3,
            **change,
        }
    )


def test_a_push_gives_the_numbers_of_a_forward_pass_by_hand(live):
    done = finished(live, push(live, source=5, target=9, dose=0.3))
    assert done["state"] == "done", done
    result = done["result"]
    model, sae = live.bench.model, next(iter(live.bench.saes.values()))
    ids = model.tokenize(result["prompt"], prepend_bos=sae.prepend_bos)
    direction = sae.W_dec[5] / sae.W_dec[5].norm()
    seen = {}

    def add(_, __, output):
        seen["norm"] = output[0, 1:].norm(dim=-1).mean()
        pushed = output.clone()
        pushed[:, 1:] += result["dose"] * result["norm"] * direction
        return pushed

    with torch.no_grad():
        base = model.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        handle = model.model.transformer.h[2].mlp.register_forward_hook(add)
        after = model.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        handle.remove()
    assert float(seen["norm"]) == pytest.approx(result["norm"], rel=1e-5)
    for token in result["tokens"]:
        assert token["before_logp"] == pytest.approx(float(base[token["id"]]), abs=1e-4)
        assert token["after_logp"] == pytest.approx(float(after[token["id"]]), abs=1e-4)
    kl = float((base.exp() * (base - after)).sum())
    assert result["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-6)
    assert result["alignment"] == pytest.approx(
        float(direction @ (sae.W_dec[9] / sae.W_dec[9].norm())), abs=1e-5
    )


def test_several_at_once_are_compared_with_the_sum_of_each_alone(live):
    asked = {"source": 5, "target": 9, "dose": 0.3, "n_tokens": 0}
    both = finished(live, push(live, **asked, more=[{"source": 7, "dose": -0.2}]))["result"]
    alone = [
        finished(live, push(live, **asked | change))["result"] for change in ({}, {"source": 7, "dose": -0.2})
    ]
    model, sae = live.bench.model, next(iter(live.bench.saes.values()))
    ids = torch.tensor([model.tokenize(both["prompt"], prepend_bos=sae.prepend_bos)])
    unit = [sae.W_dec[k] / sae.W_dec[k].norm() for k in (5, 7)]

    def logits(*pushes):
        def add(_, __, output):
            pushed = output.clone()
            for k, dose in pushes:
                pushed[:, 1:] += dose * both["norm"] * unit[k]
            return pushed

        handle = model.model.transformer.h[2].mlp.register_forward_hook(add)
        with torch.no_grad():
            found = model.model(ids).logits[0, -1].double()
        handle.remove()
        return found - found.mean()

    base, joint, *single = (logits(*p) for p in ((), ((0, 0.3), (1, -0.2)), ((0, 0.3),), ((1, -0.2),)))
    logp = joint.log_softmax(-1)
    for token in both["tokens"]:
        assert token["after_logp"] == pytest.approx(float(logp[token["id"]]), abs=1e-4)
    for own, told in zip(alone, both["alone"], strict=True):
        assert told["kl"] == pytest.approx(own["kl"], rel=1e-6)
        assert told["sets"] == own["sets"]
    moved, missed = joint - base, joint - base - sum(z - base for z in single)
    assert both["unexplained"] == pytest.approx(float(missed.norm() / moved.norm()) ** 2, rel=1e-3)
    assert 0 < both["unexplained"] < 1


def test_pushes_that_cancel_are_refused(live):
    done = finished(live, push(live, source=5, target=9, dose=0.3, more=[{"source": 5, "dose": -0.3}]))
    assert done["state"] == "failed"
    assert "cancel each other" in done["error"]


def test_a_neuron_is_scaled_at_every_position_but_the_first(live):
    done = finished(live, push(live, source=3, target=9, locus="neuron", dose=-1.0))
    assert done["state"] == "done", done
    result = done["result"]
    model, sae = live.bench.model, next(iter(live.bench.saes.values()))
    ids = model.tokenize(result["prompt"], prepend_bos=sae.prepend_bos)

    def ablate(_, __, output):
        pushed = output.clone()
        pushed[:, 1:, 3] = 0
        return pushed

    with torch.no_grad():
        handle = model.model.transformer.h[2].mlp.register_forward_hook(ablate)
        after = model.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        handle.remove()
    for token in result["tokens"]:
        assert token["after_logp"] == pytest.approx(float(after[token["id"]]), abs=1e-4)


def test_a_prompt_is_pushed_by_the_text_on_which_the_source_fires(live):
    from polysem.explore.documents import feature

    done = finished(live, push(live, source=5, target=9, locus="prompt", dose=1.0))
    assert done["state"] == "done", done
    result = done["result"]
    assert result["alignment"] is None
    best = feature(live.book, result["sae"], 5)["contexts"][0]
    peak = best["position"]
    model, sae = live.bench.model, next(iter(live.bench.saes.values()))
    ids = model.tokenize(result["prompt"], prepend_bos=sae.prepend_bos)
    front = int(ids[0] == model.bos_id)
    whole = [*ids[:front], *best["token_ids"][max(0, peak - 7) : peak + 1], *ids[front:]]
    with torch.no_grad():
        after = model.model(torch.tensor([whole])).logits[0, -1].double().log_softmax(-1)
    for token in result["tokens"]:
        assert token["after_logp"] == pytest.approx(float(after[token["id"]]), abs=1e-4)


def test_a_token_gradient_can_be_pushed(live):
    done = finished(live, push(live, source=5, target=9, locus="gradient", unit="kl", dose=0.05))
    assert done["state"] == "done", done
    assert done["result"]["kl"] == pytest.approx(0.05, rel=KL_WITHIN)
    assert abs(done["result"]["alignment"]) < 1


def test_a_dose_of_zero_changes_nothing(live):
    result = finished(live, push(live, dose=0.0))["result"]
    assert result["kl"] == 0.0
    assert all(t["before"] == t["after"] for t in result["tokens"])
    assert result["text_before"] == result["text_after"] != ""


@pytest.mark.parametrize("wanted", [0.01, 0.1])
def test_a_push_can_be_asked_for_in_kl(live, wanted):
    result = finished(live, push(live, unit="kl", dose=wanted))["result"]
    assert result["kl"] == pytest.approx(wanted, rel=KL_WITHIN)
    assert result["asked_kl"] == wanted


def test_a_push_can_be_cancelled_and_the_next_one_runs(live):
    finished(live, push(live, n_tokens=0))  # the model is loaded now
    long = push(live, n_tokens=64)
    next_ = push(live, n_tokens=0)
    live.cancel(long["id"])
    live.cancel(next_["id"])
    assert finished(live, long)["state"] == "cancelled"
    assert finished(live, next_)["state"] == "cancelled"
    assert finished(live, push(live, n_tokens=0))["state"] == "done"


def test_asking_never_waits_for_the_model(live, held):
    long = push(live)
    at_the_model(live, long)
    assert live.look(long["id"])["state"] == "running"
    assert live.cancel(long["id"])["state"] == "running"
    held.set()
    finished(live, long)


def test_too_many_pushes_are_refused(live, held):
    jobs = [push(live)]
    at_the_model(live, jobs[0])
    jobs += [push(live) for _ in range(WAITING)]
    with pytest.raises(ConfigError, match="waiting already"):
        push(live)
    for job in jobs:
        live.cancel(job["id"])
    held.set()
    for job in jobs:
        finished(live, job)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": 10**6}, "has no feature"),
        ({"sae": "none"}, "has no feature"),
        ({"prompt": "word " * 790}, "expected 2 to"),
    ],
)
def test_what_cannot_be_pushed_is_said(live, change, said):
    done = finished(live, push(live, **change))
    assert done["state"] == "failed"
    assert said in done["error"]


def test_an_unknown_job_is_said(live):
    with pytest.raises(StoreError, match="no request"):
        live.look("nothing")


def test_a_push_is_followed_token_by_token_until_it_ends(live):
    job = push(live, n_tokens=6)
    told = [one for one in live.follow(job["id"]) if one]
    assert told[0]["state"] in ("waiting", "running")
    assert told[-1]["state"] == "done"
    texts = [one["texts"]["text_after"] for one in told if "texts" in one]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    whole = live.look(job["id"])["result"]
    assert (texts[-1], told[-1]["texts"]["text_before"]) == (whole["text_after"], whole["text_before"])
    assert sum("result" in one and one["result"] is not None for one in told) == 1  # the rest is sent once
    with pytest.raises(StoreError, match="no request"):
        live.follow("0" * 16)


def test_the_text_is_what_generate_gives_under_the_same_push(live):
    result = finished(live, push(live, n_tokens=5, dose=0.3))["result"]
    model, sae = live.bench.model, live.bench.saes[result["sae"]]
    ids = torch.tensor([model.tokenize(result["prompt"], prepend_bos=sae.prepend_bos)])
    along = sae.W_dec[result["source"]] / sae.W_dec[result["source"]].norm()
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    pushed = [Add(sae.writes, (0.3 * result["norm"] * along)[None], mask)]
    for text, edits in (("text_after", pushed), ("text_before", [])):
        drawn = model.generate(ids, edits, n=5, temperature=0.0).tokens[0].tolist()
        assert result[text] == model.detokenize(drawn)
        read = result[f"read_{text}"]
        assert read["tokens"] == model.token_strings(drawn)
        whole = torch.cat([ids, torch.tensor([drawn])], 1)
        seen = sae.encode(model.capture(whole, [sae.reads])[sae.reads][0])[-5:, result["target"]]
        assert read["values"] == pytest.approx(seen.tolist(), abs=1e-5)


def test_a_push_that_fails_is_told_to_who_follows(live):
    job = push(live, source=10**6)
    told = list(live.follow(job["id"]))[-1]
    assert told["state"] == "failed"
    assert "has no feature" in told["error"]


def test_who_follows_is_told_of_every_change_and_of_silence(monkeypatch):
    monkeypatch.setattr("polysem.explore.live.BEAT", 0.01)
    job = Job("x", Asked.parse(ASKED))
    told = _following(job)
    assert next(told)["state"] == "waiting"
    assert next(told) == {}
    job.tell(state="running", result={"row": 1})
    assert next(told)["result"] == {"row": 1}
    job.tell(state="done")
    last = next(told)
    assert (last["state"], last["texts"], "result" in last) == ("done", {}, False)
    with pytest.raises(StopIteration):
        next(told)
