"""Generation under edits: where they reach, that they reach it, and that chance is shared."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from polysem.edits import Add, Clamp
from polysem.errors import MismatchError
from polysem.models.generate import chance, recomputed, scoped
from polysem.models.hf import HFModel
from polysem.types import Site
from polysem.worlds.linear import SITE, LinearWorld
from polysem.worlds.tiny import TINY_FAMILIES, tiny_model

POST = Site(0, "hook_resid_post")


def edit(rows: int, width: int, pos: int, *, size: float = 1.0) -> Add:
    generator = torch.Generator().manual_seed(3)
    return Add(
        POST, size * torch.randn(rows, width, generator=generator), torch.ones(rows, pos, dtype=torch.bool)
    )


@pytest.mark.parametrize("scope", ["prompt", "decode", "both", 5])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_kept_keys_and_values_are_the_text_read_again_to_1e_5(family, scope):
    """Long enough that a sliding window slides."""
    model = tiny_model(family, n_layers=2)
    tokens = torch.arange(2 * 12).reshape(2, 12) % model.spec.d_vocab
    push = edit(2, model.spec.d_model, 12)
    how = {"n": 10, "scope": scope, "keep_logits": True}
    seen = model.generate(tokens, [push], **how)
    again = recomputed(
        lambda whole, now: model.logits(whole, now, last_only=True),
        tokens,
        [push],
        n_ctx=model.spec.n_ctx,
        **how,
    )
    assert torch.equal(seen.tokens, again.tokens)
    torch.testing.assert_close(seen.logits, again.logits, rtol=0, atol=1e-5)


def test_a_scope_says_which_positions_are_edited():
    push = edit(3, 4, 3)
    push.mask[:] = torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.bool)
    wanted = {
        "prompt": ["010000", "001000", "000000"],
        "decode": ["001111", "001111", "000000"],
        "both": ["011111", "001111", "000000"],
        2: ["001100", "001100", "000000"],
    }
    for scope, rows in wanted.items():
        (made,) = scoped([push], scope, prompt=3, n=4)
        assert ["".join(map(str, row)) for row in made.mask.int().tolist()] == rows


def test_each_drawn_token_comes_from_an_edited_position():
    """A clamp holds the coordinate at 7 wherever it ran: the text read under the same masks shows it."""
    model = tiny_model("llama", n_layers=2)
    tokens = torch.tensor([[1, 2, 3]])
    axis = torch.nn.functional.one_hot(torch.tensor([2]), model.spec.d_model).float()
    mask = torch.tensor([[False, True, True]])
    hold = Clamp(POST, axis, axis, torch.tensor([7.0]), torch.zeros(1), mask)
    made = model.generate(tokens, [hold], n=6, scope="decode")
    assert made.edited.tolist() == [[6]]
    text = torch.cat([tokens, made.tokens[:, :-1]], dim=1)
    held = model.capture(text, [POST], scoped([hold], "decode", prompt=3, n=6))[POST][0, :, 2]
    assert ((held - 7).abs() < 1e-5).tolist() == [False, False, *[True] * 6]


def test_an_edit_that_does_not_run_is_an_error():
    class Skips(HFModel):
        def edit_actions(self, tokens, edits, **options):
            return super().edit_actions(tokens, edits, **options) if tokens.shape[1] > 1 else {}

    model = tiny_model("gpt2", n_layers=1)
    model.__class__ = Skips
    with pytest.raises(MismatchError, match=r"ran at \[3\] positions of the rows, not at \[6\]"):
        model.generate(torch.tensor([[1, 2, 3]]), [edit(1, model.spec.d_model, 3)], n=4)


def test_a_zero_edit_changes_no_token_and_one_row_does_not_touch_another():
    model = tiny_model("gpt_neox", n_layers=2)
    tokens = torch.tensor([[1, 2, 3]] * 3)
    push = edit(3, model.spec.d_model, 3, size=4.0)
    push.vector[0] = 0
    push.mask[1] = False
    text = model.generate(tokens, [push], n=20, seed=5).tokens
    plain = model.generate(tokens[:1], n=20, seed=5).tokens[0]
    assert torch.equal(text[0], plain)
    assert torch.equal(text[1], plain)
    assert not torch.equal(text[2], plain)
    other = model.generate(tokens, n=20, seed=5, draws=[0, 1, 0]).tokens
    assert torch.equal(other[0], other[2])
    assert not torch.equal(other[0], other[1])
    greedy = model.generate(tokens, n=3, temperature=0.0, keep_logits=True)
    assert torch.equal(greedy.tokens, greedy.logits.argmax(-1))


def world() -> LinearWorld:
    rng = np.random.default_rng(0)
    return LinearWorld(
        torch.from_numpy(rng.standard_normal((5, 3))), torch.from_numpy(rng.standard_normal((5, 3)))
    )


def test_tokens_are_drawn_from_the_softmax_at_the_temperature():
    """The first token behind one prompt over many draws, against its probabilities."""
    model, n, temperature = world(), 3000, 0.7
    tokens = torch.zeros(n, 1, dtype=torch.long)
    drawn = model.generate(tokens, n=1, temperature=temperature, draws=range(n)).tokens[:, 0]
    p = (model.logits(tokens[:1])[0, -1] / temperature).softmax(-1).numpy()
    assert stats.chisquare(np.bincount(drawn, minlength=5), n * p).pvalue > 1e-3


def test_coupled_texts_part_as_often_as_total_variation_allows_and_not_more():
    """Gumbel-max couples two distributions within twice their total variation: P(differ) <= 2 TV / (1 + TV)."""
    model, n = world(), 3000
    tokens = torch.zeros(n, 1, dtype=torch.long)
    push = Add(SITE, torch.full((n, 3), 0.3, dtype=torch.float64), torch.ones(n, 1, dtype=torch.bool))
    base, moved = (model.generate(tokens, some, n=1, draws=range(n)).tokens for some in ((), [push]))
    p, q = (
        model.logits(tokens[:1], some)[0, -1].softmax(-1)
        for some in ((), [replace(push, vector=push.vector[:1], mask=push.mask[:1])])
    )
    tv = float((p - q).abs().sum() / 2)
    apart = int((base != moved).sum())
    assert stats.binomtest(apart, n, 2 * tv / (1 + tv), alternative="greater").pvalue > 1e-3
    assert stats.binomtest(apart, n, tv, alternative="less").pvalue > 1e-3


def test_chance_is_of_seed_prompt_draw_and_step():
    noise = {
        (ids, draw, step, seed): chance(ids, draw, step, seed=seed, d_vocab=4)[0]
        for ids in ((1, 2), (12,)) for draw in (0, 1) for step in (0, 1) for seed in (0, 1)
    }  # fmt: skip
    assert len(set(noise.values())) == 16


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"n": 0}, "0 tokens behind a prompt of 3"),
        ({"n": 10_000}, "expected at least 1, and"),
        ({"n": 2, "temperature": -1.0}, "temperature -1"),
        ({"n": 2, "draws": [0]}, "1 draws for 2 rows"),
        ({"n": 2, "scope": 0}, "scope 0"),
        ({"n": 2, "pos": 4}, "has 4 positions, the prompt 3"),
    ],
)
def test_what_cannot_be_drawn_is_refused(how, said):
    model = tiny_model("gpt2", n_layers=1)
    push = edit(2, model.spec.d_model, how.pop("pos", 3))
    with pytest.raises(MismatchError, match=said):
        model.generate(torch.tensor([[1, 2, 3]] * 2), [push], **how)
