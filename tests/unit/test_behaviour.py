"""Texts under pushes: their numbers by hand, and the bridge where it is planted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polysem.behaviour.bridge import bridge_rows, held_out_r2
from polysem.behaviour.generate import TextArm, TextPlan, decay, text_rows
from polysem.behaviour.tasks import task_rows
from polysem.behaviour.texts import chunks, distinct, on_target, repeated, same_tokens
from polysem.engine.generate import GenerateOptions
from polysem.errors import ConfigError
from polysem.store.tables import STAGES
from polysem.transfer.capability import Item
from polysem.worlds.linear import SITE, LinearWorld
from polysem.worlds.tables import plain_sae


def test_numbers_of_a_text_by_hand():
    text = [1, 2, 1, 2, 1, 2, 3]
    assert distinct(text) == 3 / 6  # 12 21 12 21 12 23
    assert repeated(text) == pytest.approx(1 - 3 / 4)  # 1212 2121 1212 2123
    assert on_target(text, {1, 3}) == 4
    assert same_tokens(text, [1, 2, 1, 9, 1, 2, 3]) == 3
    assert same_tokens(text, text) == 7
    assert (distinct([5]), repeated([5])) == (1.0, 0.0)


@given(st.integers(0, 500), st.integers(1, 10**9))
def test_chunks_are_all_rows_once(n, each):
    assert [k for some in chunks(n, each) for k in range(n)[some]] == list(range(n))


@pytest.mark.parametrize("factor", [0.3, 0.9, 1.0, 1.1])
def test_a_decay_is_found_and_followed_only_while_it_shows(factor):
    assert decay(-2 * factor ** np.arange(12)) == pytest.approx(factor)
    assert decay(np.array([1.0, 0.5, -1.0, 3.0])) == pytest.approx(0.5)
    assert np.isnan(decay(np.array([1.0, -1.0])))
    assert np.isnan(decay(np.array([0.0, 1.0])))


def test_r2_is_held_out_by_target_by_brute_force():
    rng = np.random.default_rng(0)
    x, groups = rng.standard_normal(30), np.repeat(np.arange(6), 5)
    y = 2 * x + rng.standard_normal(30)
    design = np.column_stack([np.ones(30), x])
    told, mean = np.empty(30), np.empty(30)
    for k in range(30):
        rest = groups != groups[k]
        slope, at = np.polyfit(x[rest], y[rest], 1)
        told[k], mean[k] = at + slope * x[k], y[rest].mean()
    expected = 1 - ((y - told) ** 2).sum() / ((y - mean) ** 2).sum()
    assert held_out_r2(y, design, groups) == pytest.approx(expected)
    assert np.isnan(held_out_r2(y[:10], design[:10], groups[:10]))


def planted(rng: np.random.Generator, *, slope: float, beside: float) -> list[dict]:
    n_targets, each = 20, 3
    arms, effects = [], []
    for arm in range(n_targets * each):
        x, g = rng.normal(), rng.uniform(0, 0.5)
        arms.append(
            {"arm": arm, "relation": "pair", "target": arm // each, "source": 1000 + arm, "interference": g}
        )
        y = slope * x + beside * g + 0.3 * rng.normal()
        row = dict.fromkeys(("log_rate", "hits", "horizon", "nats"), y)
        effects.append({"arm": arm, "dose": 0.1, "next": x, "spent": abs(x), **row})
    return bridge_rows(arms, effects)


def test_the_bridge_finds_a_planted_slope_and_no_interference_where_there_is_none():
    """Coverage of the slope, and the rate at which interference is said to add, over simulated plans."""
    rng = np.random.default_rng(1)
    covered = added = 0
    n = 60
    for _ in range(n):
        rows = {(r["outcome"], r["term"]): r for r in planted(rng, slope=0.8, beside=0.0)}
        told, more = rows["log_rate", "next"], rows["log_rate", "interference"]
        covered += told["lo"] < 0.8 < told["hi"]
        added += more["p"] < 0.05
        assert told["r2"] > 0.7
        assert told["n_targets"] == 20
    assert covered >= 52  # 95 % of 60; below 52 in one of a thousand
    assert added <= 8
    rows = {(r["outcome"], r["term"]): r for r in planted(rng, slope=0.8, beside=3.0)}
    assert rows["log_rate", "interference"]["p"] < 0.001
    assert rows["log_rate", "interference"]["r2"] > rows["log_rate", "next"]["r2"] + 0.05
    assert rows["log_rate", "interference"]["p_equivalent"] > 0.5


def world() -> tuple[LinearWorld, TextArm]:
    rng = np.random.default_rng(2)
    W = np.zeros((9, 5))
    W[4, 4] = 1.0
    E = np.column_stack([rng.standard_normal((9, 4)), np.zeros(9)])
    W[:, :4] = rng.standard_normal((9, 4))
    arm = TextArm("pair", 0, 1, "world", SITE, np.eye(5)[4], 0.0, (4,))
    return LinearWorld(torch.from_numpy(E), torch.from_numpy(W)), arm


def test_tables_of_texts_are_whole_and_a_linear_push_is_the_same_at_each_token():
    model, arm = world()
    other = replace(arm, target=1)  # the same push, read by a feature that fires on the texts
    plan = TextPlan((0.05, 0.2), 5, draws=2, seed=1)
    sae = plain_sae(np.eye(5)[[4, 0]])
    rows = text_rows(
        model, sae, [arm, other], [("a", [0, 1, 2]), ("b", [0, 3, 2]), ("c", [0, 5, 2])], plan, label="w"
    )
    for schema in STAGES["generate"]:
        schema.of_rows(rows[schema.name])
    assert len(rows["texts"]) == 3 * 2 * (1 + 2 * 2 * 2)
    ids = {"a": [0, 1, 2], "b": [0, 3, 2], "c": [0, 5, 2]}
    base = {(r["prompt_id"], r["draw"]): r["tokens"] for r in rows["texts"] if r["arm"] == -1}
    told = rows["text_firing"]
    said = [(r["target"], ids[r["prompt_id"]] + base[r["prompt_id"], r["draw"]], r["acts"]) for r in told]
    assert len(said) == 2 * len(base) == 12
    for r in rows["texts"]:
        assert r["pieces"] == model.token_strings(r["tokens"])
        if r["arm"] >= 0:  # arm k has target k
            assert r["hits"] == np.mean(np.array(r["acts"]) > 0)
            said.append((r["arm"], ids[r["prompt_id"]] + r["tokens"], r["acts"]))
        else:
            assert r["acts"] is None
    for target, whole, acts in said:  # the target's own activation, one text at a time, without a push
        seen = sae.encode(model.capture(torch.tensor([whole]), [SITE])[SITE][0, 3:])[:, target]
        assert acts == pytest.approx(seen.tolist(), abs=1e-6)
    assert any(a > 0 for *_, acts in said for a in acts)
    for effect in rows["text_effects"]:
        # one token is pushed by one logit: its log-odds change by the push's length
        assert effect["next"] == pytest.approx(effect["strength"], rel=1e-6)
        assert effect["horizon"] == pytest.approx(effect["strength"], rel=1e-6)
        assert effect["spent"] > 0
    with pytest.raises(ConfigError, match="0 of 1 prompts with room for 5 tokens"):
        text_rows(model, sae, [arm], [("a", [0] * 14)], plan, label="w")


def test_tasks_are_right_or_wrong_as_the_closed_form_says():
    """One question of two endings of one token each: the gap is the difference of two logits, and the push adds its length."""
    model, arm = world()
    plan = TextPlan((0.1,), 2)
    items = [Item("0 2", ("4", "6"), 0), Item("0 2", ("6", "4"), 0)]
    rows = {(r["arm"], r["sign"]): r for r in task_rows(model, [arm], items, plan, np.array([[1.5]]))}
    z = model.logits(torch.tensor([[0, 0, 2]]))[0, -1]
    gap = float(z[4] - z[6])
    right = np.array([gap > 0, gap < 0])
    assert rows[-1, 0]["right"] == right.mean()
    pushed = np.array([gap + 1.5 > 0, gap + 1.5 < 0])
    assert rows[0, 1]["right"] == pushed.mean()
    assert rows[0, 1]["change"] == pushed.mean() - right.mean()
    assert rows[0, 1]["gap"] == pytest.approx(0.0)  # +1.5 on one, -1.5 on the other


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pairs": 1}, "pairs 1"),
        ({"prompts": 2}, "prompts 2"),
        ({"kl": ()}, "doses"),
        ({"kl": (0.1, 0.1)}, "different nats"),
        ({"scope": "first"}, "scope 'first'"),
        ({"scope": "0"}, "scope '0'"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"token_set": "both"}, "token set"),
    ],
)
def test_what_cannot_be_drawn_is_refused(wrong, said):
    GenerateOptions().check()
    with pytest.raises(ConfigError, match=said):
        GenerateOptions(**wrong).check()
