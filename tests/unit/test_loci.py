"""Gradient, prompt and neuron loci, the controls of single pairs, and the share of a shift: against closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polysem.act.base import (
    EditedPrompt,
    Recipe,
    Refused,
    SiteContext,
    Steer,
    decoder_row,
    edited_positions,
    unit,
)
from polysem.act.directions import cosine_matched_direction, isotropic_direction
from polysem.act.feature import FEATURE
from polysem.act.neuron import NEURON
from polysem.act.prompt import PROMPT
from polysem.act.snippets import Contexts, FiringContext
from polysem.edits import Scale
from polysem.errors import FormatError, MismatchError
from polysem.linear.decompose import split_push
from polysem.models.gradients import EMBEDDING, probe_gradient
from polysem.readouts import kl, share_of_shift
from polysem.saes.base import SAE, Provenance
from polysem.store.tables import CONTEXTS
from polysem.types import Site
from polysem.worlds.tiny import TINY_FAMILIES, tiny_model

D, N = 16, 40


@pytest.fixture(scope="module")
def bench() -> SiteContext:
    model = tiny_model("gpt2")
    rng = np.random.default_rng(0)
    shared = rng.standard_normal(D)
    W_dec = torch.from_numpy(rng.standard_normal((N, D)) + 0.5 * shared).float()
    site = Site.parse("blocks.0.hook_resid_post")
    sae = SAE(
        W_enc=W_dec.T.contiguous(),
        W_dec=W_dec,
        b_enc=torch.zeros(N),
        b_dec=torch.zeros(D),
        activation="relu",
        reads=site,
        writes=site,
        model_id=None,
        model_revision=None,
        provenance=Provenance(ref="test", revision="test", dialect="test"),
    )
    return SiteContext("s", sae, model.spec, activations=lambda: np.zeros((0, D)), model=model)


def prompt_of(ids, positions="all_but_first") -> EditedPrompt:
    return EditedPrompt(tuple(ids), edited_positions(positions, len(ids)))


@given(st.integers(0, D - 1), st.floats(-1.5, 3.0), st.sampled_from(["last", "all", "all_but_first"]))
def test_a_neuron_is_multiplied(bench, neuron, dose, positions):
    prompt = prompt_of([0, 5, 9, 12], positions)
    along = NEURON.realise(Recipe.of("neuron", neuron=neuron), bench)
    tokens, edits = NEURON.prepare([Steer(along, dose)], prompt, bench)
    scale = Scale(
        bench.sae.site,
        torch.tensor([neuron]),
        torch.tensor([1.0 + dose]),
        torch.as_tensor(prompt.edited)[None],
    )
    ours, theirs = (
        bench.model.capture(tokens, [bench.sae.site], e)[bench.sae.site] for e in (edits, [scale])
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_dose_of_zero_changes_no_bit(bench):
    prompt = prompt_of([0, 5, 9, 12])
    clean = bench.model.logits(torch.tensor([prompt.token_ids]))
    for locus, recipe in (
        (NEURON, Recipe.of("neuron", neuron=3)),
        (FEATURE, Recipe.of("decoder", feature=3)),
    ):
        tokens, edits = locus.prepare([Steer(locus.realise(recipe, bench), 0.0)], prompt, bench)
        assert torch.equal(bench.model.logits(tokens, edits), clean)


def test_a_rotated_coordinate_keeps_its_share_of_the_target(bench):
    target = unit(decoder_row(bench, 7))
    for neuron in range(4):
        for draw in range(3):
            recipe = Recipe.of("rotated", target=7, neuron=neuron, draw=draw, seed=0)
            found = NEURON.realise(recipe, bench)
            assert found @ target == pytest.approx(target[neuron], abs=1e-12)
            assert np.linalg.norm(found) == pytest.approx(1.0)
            assert abs(found[neuron]) < 0.999
    with pytest.raises(MismatchError, match="neuron 99 of blocks"):
        NEURON.realise(Recipe.of("neuron", neuron=99), bench)


def test_a_cosine_matched_direction_keeps_the_angle_and_the_mean_direction(bench):
    basis = bench.mean_direction.numpy()
    means = []
    for target, source in ((1, 2), (5, 30), (17, 4)):
        d_j, d_i = (unit(decoder_row(bench, f)) for f in (target, source))
        parts = split_push(torch.from_numpy(d_i)[None], torch.from_numpy(d_j)[None], bench.mean_direction)
        kept = (parts.shared + parts.common)[0].numpy()
        both = [
            cosine_matched_direction(
                Recipe.of("cosine_matched", target=target, source=source, draw=draw, seed=0), bench
            )
            for draw in (0, 1)
        ]
        for found in both:
            assert found @ d_j == pytest.approx(d_i @ d_j, abs=1e-12)
            np.testing.assert_allclose(basis @ found, basis @ d_i, atol=1e-9)
            assert abs(found @ d_i) < 0.999
        means.append(np.abs((both[0] + both[1]) / 2 - kept).max())
    assert max(means) < 1e-12


def test_isotropic_draws_are_uniform_on_the_sphere(bench):
    draws = np.stack(
        [isotropic_direction(Recipe.of("isotropic", target=0, draw=k, seed=0), bench) for k in range(2000)]
    )
    np.testing.assert_allclose(np.linalg.norm(draws, axis=1), 1.0)
    np.testing.assert_allclose(D * draws.T @ draws / len(draws), np.eye(D), atol=0.2)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_probe_gradient_is_a_finite_difference(family):
    model = tiny_model(family, n_layers=2)
    double = type(model).from_parts(model.model.double(), model.tokenizer)
    site = Site.parse("blocks.1.hook_mlp_out")
    tokens = torch.tensor([[0, 7, 21, 33, 12]])
    rng = np.random.default_rng(1)
    width = double.site_width(site)
    probe = torch.from_numpy(rng.standard_normal(width))
    found = probe_gradient(double, tokens, site, 3, probe)

    def value(step):
        from polysem.edits import Add

        mask = torch.zeros(1, 5, dtype=torch.bool)
        mask[0, 3] = True
        edit = Add(EMBEDDING, torch.from_numpy(step)[None], mask)
        return float(double.capture(tokens, [site], [edit])[site][0, 3] @ probe)

    # the RMS norms of transformers compute in float32 in a float64 model, too
    step, rel = (1e-5, 1e-5) if family.startswith("gpt") else (1e-3, 1e-2)
    for _ in range(3):
        along = rng.standard_normal(double.spec.d_model)
        slope = (value(step * along) - value(-step * along)) / (2 * step)
        assert float(found @ torch.from_numpy(along)) == pytest.approx(slope, rel=rel, abs=1e-4)


def test_prompts_with_snippets(bench):
    ids = bench.model.tokenize("the sea and the king", prepend_bos=False)
    match = bench.model.tokenize("a man and a woman in", prepend_bos=False)[: len(ids)]
    assert len(match) == len(ids)
    prompt = prompt_of([bench.model.bos_id, 5, 9, 12])
    texts = {name: " ".join(map(str, value)) for name, value in (("tokens", ids), ("match", match))}
    mark, left, right = (bench.model.tokenize(text, prepend_bos=False) for text in ("**", "(", ")"))
    for form, expected in (
        ("prefix", lambda some: [prompt.token_ids[0], *some, *prompt.token_ids[1:]]),
        ("suffix", lambda some: [*prompt.token_ids, *some]),
        ("wrapped", lambda some: [prompt.token_ids[0], *mark, *some, *mark, *prompt.token_ids[1:]]),
        ("parenthesised", lambda some: [prompt.token_ids[0], *left, *some, *right, *prompt.token_ids[1:]]),
    ):
        both = PROMPT.realise(Recipe.of("snippet", form=form, **texts), bench)
        tokens, edits = PROMPT.prepare([Steer(both, 1.0), Steer(both, -1.0)], prompt, bench)
        assert edits == []
        assert tokens.tolist() == [expected(ids), expected(match)]


def test_inside_a_chat_template_snippets_stay_in_the_message(bench):
    ids = bench.model.tokenize("the sea", prepend_bos=False)
    text = " ".join(map(str, ids))
    edited = edited_positions("all", 6)
    prompt = EditedPrompt((0, 50, 5, 9, 51, 52), edited, text_span=(2, 4))  # 5 9 is the message
    for form, expected in (
        ("prefix", [0, 50, *ids, 5, 9, 51, 52]),
        ("suffix", [0, 50, 5, 9, *ids, 51, 52]),
    ):
        both = PROMPT.realise(Recipe.of("snippet", form=form, tokens=text, match=text), bench)
        tokens, _ = PROMPT.prepare([Steer(both, 1.0)], prompt, bench)
        assert tokens.tolist() == [expected]


def test_snippets_that_cannot_be_injected(bench):
    fits = " ".join(map(str, bench.model.tokenize("the sea", prepend_bos=False)))
    for tokens, reason in (("1 1 1", "no_round_trip"), ("5 9999", "prompt_out_of_vocab")):
        with pytest.raises(Refused, match=reason):
            PROMPT.realise(Recipe.of("snippet", form="prefix", tokens=tokens, match=fits), bench)
    with pytest.raises(FormatError, match="needs token ids"):
        PROMPT.realise(Recipe.of("snippet", form="prefix", tokens="a b", match=fits), bench)
    both = PROMPT.realise(Recipe.of("snippet", form="prefix", tokens=fits, match=fits), bench)
    with pytest.raises(Refused, match="prompt_too_long"):
        PROMPT.prepare([Steer(both, 1.0)], prompt_of([0] + [5] * (bench.spec.n_ctx - 1)), bench)


def test_snippets_avoid_tokens_and_match_in_form():
    words = [" the", " sea", " king", " boat", " tree", "The", " 42", " old", " new", " red"]

    def row(feature, rank, ids, position):
        return {
            "sae": "s", "feature": feature, "rank": rank, "max_value": 1.0, "position": position,
            "token_ids": ids, "tokens": [words[i] for i in ids], "values": [0.0] * len(ids), "source": "t",
        }  # fmt: skip

    import pyarrow as pa

    rows = [row(0, 0, [0, 1, 2, 3], 3), row(0, 1, [4, 7, 8, 9], 2), row(1, 0, [5, 6, 1], 1)]
    contexts = Contexts.of("s", pa.Table.from_pylist(rows, schema=CONTEXTS.arrow()))
    assert contexts.snippet(0, 3, without=()) == [1, 2, 3]
    assert contexts.snippet(0, 3, without={2}) == [4, 7, 8]
    assert contexts.snippet(0, 3, without={2, 7}) is None
    assert contexts.snippet(0, 9, without=()) is None
    assert contexts.snippet(5, 2, without=()) is None
    rng = np.random.default_rng(0)
    found = contexts.match([2, 3], rng, without={4})
    assert found is not None
    assert not set(found) & {2, 3, 4}
    assert all(words[i].startswith(" ") and words[i].strip().isalpha() and words[i].islower() for i in found)
    assert contexts.match([6], rng, without=()) is None, "the only number has no like"


def test_stored_contexts_are_those_of_the_table():
    def row(feature, rank, ids, texts, values):
        return {
            "sae": "s", "feature": feature, "rank": rank, "max_value": 1.0, "position": 0,
            "token_ids": ids, "tokens": texts, "values": values, "source": "t",
        }  # fmt: skip

    import pyarrow as pa

    rows = [
        row(7, 1, [5, 2], ["e", "b"], [0.5, 0.0]),
        row(7, 0, [2, 9], ["b", "i"], [2.0, 1.0]),
        row(3, 0, [9], ["i"], [1.0]),
        row(4, 0, [], ["only", "strings"], []),
        row(5, 0, [1], ["a"], None),
        row(6, 0, [8, 8], ["h"], [1.0]),
        {**row(3, 0, [5], ["of another"], [1.0]), "sae": "another"},
    ]
    found = Contexts.of("s", pa.Table.from_pylist(rows, schema=CONTEXTS.arrow()))
    assert dict(found.by_feature) == {
        3: [FiringContext([9], 0, (1.0,))],
        5: [FiringContext([1], 0, ())],
        7: [FiringContext([2, 9], 0, (2.0, 1.0)), FiringContext([5, 2], 0, (0.5, 0.0))],
    }
    assert found.by_feature.get(4) is None
    assert found.counts == {1: 1, 2: 2, 5: 1, 9: 2}
    assert found.strings == {1: "a", 2: "b", 5: "e", 9: "i"}


@given(
    st.integers(0, 2**31),
    st.floats(1e-4, 8.0),
    st.integers(1, 11),
)
def test_the_share_of_a_shift_is_bounded(seed, size, n_inside):
    rng = np.random.default_rng(seed)
    base = torch.from_numpy(3 * rng.standard_normal((1, 12)))
    edited = base + size * torch.from_numpy(rng.standard_normal((6, 12)))
    inside = torch.zeros(12, dtype=torch.bool)
    inside[:n_inside] = True

    def log_odds(z):
        return z[:, inside].logsumexp(-1) - z[:, ~inside].logsumexp(-1)

    rho = share_of_shift(log_odds(base), log_odds(edited)[:, None], torch.as_tensor(kl(base, edited)))[:, 0]
    assert (rho.abs() <= 1).all()
    assert torch.equal(torch.sign(rho), torch.sign(log_odds(edited) - log_odds(base)))


def test_the_share_is_the_correlation_to_first_order_and_one_at_best():
    rng = np.random.default_rng(0)
    base = torch.from_numpy(rng.standard_normal((1, 50)))
    p = base.softmax(-1)[0]
    inside = torch.zeros(50, dtype=torch.float64)
    inside[:7] = 1
    shift = torch.from_numpy(rng.standard_normal(50))

    def odds(z):
        w = (z.softmax(-1) * inside).sum(-1)
        return (w / (1 - w)).log()

    for direction, expected in (
        (shift, float(_correlation(p, inside, shift))),
        (inside, 1.0),
        (-inside, -1.0),
    ):
        edited = base + 1e-4 * direction
        rho = share_of_shift(odds(base), odds(edited)[:, None], torch.as_tensor(kl(base, edited)))
        assert float(rho) == pytest.approx(expected, abs=1e-3)
    nothing = share_of_shift(odds(base), odds(base)[:, None], torch.zeros(1, dtype=torch.float64))
    assert torch.isnan(nothing).all()


def _correlation(p, a, b):
    mean = [(p * x).sum() for x in (a, b)]
    return (p * (a - mean[0]) * (b - mean[1])).sum() / (
        (p * (a - mean[0]) ** 2).sum() * (p * (b - mean[1]) ** 2).sum()
    ).sqrt()
