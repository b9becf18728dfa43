"""Monitors, clamps and moves: by hand, by another library, and against what a user may get wrong."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.api import Logit, add_constant

from polysem.act.clamp import clamp_change
from polysem.behaviour.guard import GuardScene, later_site, read_documents, split_prompts, writers
from polysem.behaviour.handle import (
    RADII,
    Handle,
    gini,
    half_of,
    lengths_to_effect,
    neuron_slopes,
    neurons_removed,
    projector,
    recover,
)
from polysem.behaviour.intervals import auroc_interval, mean_interval, paired_auroc, paired_placements, within
from polysem.behaviour.monitors import aurocs, calibration_error, lateness, logistic
from polysem.edits import Add
from polysem.engine.guard import load_concept
from polysem.errors import ConfigError
from polysem.models.gradients import pull_back_edited
from polysem.models.sweep import sweep_of
from polysem.transfer.defence import auroc
from polysem.types import Site
from polysem.worlds.linear import LinearWorld
from polysem.worlds.tables import plain_sae
from polysem.worlds.tiny import tiny_model


def test_a_column_of_aurocs_is_each_auroc():
    rng = np.random.default_rng(0)
    x, on = rng.integers(0, 4, (40, 6)).astype(float), rng.random(40) < 0.4
    assert aurocs(x, on) == pytest.approx([auroc(x[~on, k], x[on, k]) for k in range(6)])


def test_a_logistic_regression_is_that_of_statsmodels():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, 3)) * [1, 10, 0.1] + [0, 5, 0]
    y = rng.random(200) < 1 / (1 + np.exp(-(x @ [1, 0.1, 5] - 0.5)))
    weights, constant = logistic(x, y, l2=1e-9)
    expected = Logit(y.astype(float), add_constant(x)).fit(disp=0).params
    assert np.append(constant, weights) == pytest.approx(expected, rel=1e-3)


def test_calibration_by_hand():
    p, on = np.array([0.05, 0.05, 0.95, 0.95]), np.array([False, True, True, True])
    assert calibration_error(p, on) == pytest.approx((2 * abs(0.5 - 0.05) + 2 * abs(1 - 0.95)) / 4)


def test_concentration_by_hand():
    assert gini(np.ones(10)) == pytest.approx(0.0)
    assert gini(np.eye(10)[0]) == pytest.approx(0.9)
    assert half_of(np.array([1.0, -5.0, 1.0, 1.0])) == 1
    assert half_of(np.ones(4)) == 2
    assert np.isnan(gini(np.zeros(3)))


@given(st.integers(1, 4), st.integers(0, 1000))
def test_a_projector_leaves_nothing_along_its_rows(k, seed):
    rows = np.random.default_rng(seed).standard_normal((k, 6))
    rows = np.concatenate([rows, rows[:1]])  # one of them twice
    P = projector(rows)
    assert np.abs(P @ rows.T).max() < 1e-9
    assert np.trace(P) == pytest.approx(6 - k)
    assert np.abs(P @ P - P).max() < 1e-9


def handle(features=(0, 1)) -> Handle:
    model = tiny_model("gpt2", n_layers=2)
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((12, model.spec.d_model))
    sae = plain_sae(rows / np.linalg.norm(rows, axis=1, keepdims=True), site=Site(0, "hook_resid_post"))
    return Handle(model, sae, features, (5, 6))


def test_a_clamp_of_several_is_the_change_of_the_reconstruction():
    one = handle()
    h = torch.randn(5, one.model.spec.d_model, generator=torch.Generator().manual_seed(1))
    codes = one.sae.encode(h)
    held = codes.clone()
    held[:, [0, 1]] = 2.0
    expected = one.sae.decode(held) - one.sae.decode(codes)
    torch.testing.assert_close(clamp_change(one.sae, h, [0, 1], 2.0), expected, rtol=1e-5, atol=1e-5)


def test_moves_leave_what_is_clamped_alone_and_a_free_one_goes_further():
    """On a model that is not linear: measured on the activations, not on the move."""
    one, ids = handle(), [1, 2, 3, 4]
    rng = np.random.default_rng(0)
    held, free = (recover(one, ids, arm=arm, rng=rng) for arm in ("handle", "free"))
    assert held.drift < 1e-6
    assert free.drift > 1e-2
    assert (np.diff(free.gain) > -1e-3).all()
    assert (free.gain >= held.gain - 2e-2).all()
    assert (held.gain > 0).all()
    assert len(held.gain) == len(RADII)


def test_slopes_of_neurons_are_what_removing_a_little_of_them_does():
    """A neuron whose activation is small is removed by little: gradient and removal agree there, and rank alike over all."""
    one, ids = handle(), [1, 2, 3, 4]
    slopes = neuron_slopes(one, [ids], one.tokens)
    neurons = [(layer, k) for layer in range(2) for k in range(slopes.shape[1])]
    measured = neurons_removed(one, ids, neurons)
    assert stats.spearmanr(slopes.ravel(), measured).statistic > 0.95


def test_prompts_of_a_concept_end_before_it_and_hold_none_of_it():
    inside = np.zeros(10, dtype=bool)
    inside[[7, 8]] = True
    rows = np.array(
        [
            [0, 1, 2, 3, 4, 5, 7, 1, 2, 3],
            [0, 1, 2, 3, 4, 5, 6, 1, 2, 3],
            [0, 1, 8, 3, 4, 7, 6, 1, 2, 3],
            [0, 7, 1, 1, 1, 1, 1, 1, 1, 1],
        ]
    )
    on, off = split_prompts(rows, inside, n=5, length=5)
    assert on == [[0, 2, 3, 4, 5]]
    assert off == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("words = 3", "words"),
        ('words = "emotion"\nfeature = [1]', "feature"),
        ('words = "emotion"\non = "a.txt"', "on and off go together"),
        ('words = "emotion"\ndocuments = 3', "documents"),
    ],
)
def test_a_wrong_concept_is_refused_with_its_key(tmp_path, text, said):
    (tmp_path / "c.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_concept(tmp_path / "c.toml")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize(
    "point", [Site(1, "hook_resid_post"), Site(1, "hook_mlp_out"), Site(2, "hook_resid_post")]
)
def test_gradients_from_the_first_edited_block_are_those_of_the_whole_pass(family, point):
    model = tiny_model(family, n_layers=3)
    tokens = torch.tensor([[1, 2, 3, 4]]).expand(2, -1)
    generator = torch.Generator().manual_seed(0)
    edits = [
        Add(
            site,
            torch.randn(2, model.site_width(site), generator=generator),
            torch.tensor([[False, True, k, True]] * 2),
        )
        for k, site in ((True, Site(0, "hook_resid_post")), (False, point))
    ]
    wanted = torch.randn(2, model.spec.d_vocab, generator=generator)
    clean = sweep_of(model).clean(model, tokens[:1])
    logits, slope = pull_back_edited(model, clean, tokens, edits, point, lambda z: wanted.to(z))
    torch.testing.assert_close(
        logits, model.logits(tokens, edits, last_only=True)[:, -1], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(slope, model.vjp(tokens, point, wanted, edits), rtol=1e-4, atol=1e-5)


def test_moves_at_a_later_site_leave_what_arrives_of_the_clamped_features_alone():
    """The Jacobian against pushes ten times as short, and the move against both that and the encoder's rows."""
    one, ids = handle(), [1, 2, 3, 4]
    site = later_site(one.model, one.sae.writes)
    assert site is not None
    assert site == Site(1, "hook_resid_post")
    assert later_site(one.model, site) is None
    arrives = one.carried(ids, site)
    clamp, row = one.clamp(ids), torch.tensor([ids])
    mask = torch.tensor([[False, True, True, True]])
    for k, d in enumerate(one.decoders):
        ends = [
            one.model.capture(
                row, [site], [*clamp, Add(one.sae.writes, torch.tensor(s * d)[None].float(), mask)]
            )[site]
            for s in (1e-2, -1e-2)
        ]
        expected = (ends[0] - ends[1])[0, -1].double().numpy() / 2e-2
        assert np.abs(arrives[k] - expected).max() < 1e-2 * np.abs(expected).max()
    held = recover(one, ids, arm="handle", rng=np.random.default_rng(0), site=site)
    free = recover(one, ids, arm="free", rng=np.random.default_rng(0), site=site)
    assert held.drift < 1e-6
    assert held.in_decoders == pytest.approx(np.zeros(len(RADII)), abs=1e-9)
    assert (free.gain >= held.gain - 2e-2).all()
    assert (free.in_decoders > 1e-3).all()
    assert ((held.in_neuron > 0) & (held.in_neuron < 1)).all()


def test_lengths_to_an_effect_are_those_of_the_closed_form_and_lost_where_nothing_does():
    """One token is pushed by one logit: its log-odds rise by what the logit does."""
    E = torch.from_numpy(np.random.default_rng(2).standard_normal((9, 3)))
    W = torch.zeros(9, 3, dtype=torch.float64)
    W[4, 0], W[4, 1] = 2.0, -0.5
    one = Handle(LinearWorld(E, W), plain_sae(np.eye(3)), (0,), (4,))
    found = lengths_to_effect(one, [0, 1], np.eye(3), 0.6)
    assert found[:2] == pytest.approx([0.3, -1.2], rel=2e-3)
    assert np.isnan(found[2])


def test_a_writer_is_the_feature_whose_clamp_takes_most():
    """Feature 0 fires most and writes nothing of the concept; feature 1 carries it where it fires."""
    rng = np.random.default_rng(0)
    E = np.column_stack([3 + rng.random(12), rng.random(12), rng.random(12)])
    W = np.zeros((12, 3))
    W[[7, 8], 1] = 1.0
    W[[7, 8], 2] = 0.3
    model, sae = LinearWorld(torch.from_numpy(E), torch.from_numpy(W)), plain_sae(np.eye(3))
    prompts = [[0, k] for k in range(1, 7)]
    scene = GuardScene(model, sae, (7, 8), {}, [], prompts, [], clamped=2)
    assert writers(scene) == (1, 2)


def test_delay_by_hand():
    """A threshold of 1; the concept begins at token 1; one is early, one is never flagged."""
    quiet = [np.array([0.0, 1.0, 1.0, 1.0])] * 8
    loud = [np.array([0.0, 2.0, 2.0, 2.0]), np.array([0.0, 0.0, 0.0, 2.0]), np.array([0.0, 1.0, 2.0, 0.0])]
    others = [np.array([3.0, 3.0, 3.0, 3.0]), np.zeros(4)]
    starts = np.array([-1] * 8 + [1] * 5)
    late = lateness([*quiet, *loud, *others], starts, rng=np.random.default_rng(0))
    assert (late.tokens.value, late.n, late.early, late.false_alarms) == (1.0, 3, 1, 0.0)


@given(st.integers(0, 10**6))
def test_intervals_hold_their_estimate_and_those_of_aurocs_stay_within_their_ends(seed):
    rng = np.random.default_rng(seed)
    mean = mean_interval(rng.exponential(size=12))
    assert mean.lo < mean.value < mean.hi
    # a share of at most 1, of few and skewed numbers: only what it cannot be is cut off
    share = 1 - rng.exponential(0.2, size=4)
    free, cut = mean_interval(share), within(mean_interval(share), most=1.0)
    assert cut == free._replace(hi=min(free.hi, 1.0))
    assert cut.lo <= cut.value <= cut.hi <= 1
    assert np.isnan(within(mean_interval(share[:2]), 0.0, 1.0).lo)  # no interval stays none
    clean, pushed = rng.integers(0, 5, 9).astype(float), rng.integers(1, 7, 9).astype(float)
    one = auroc_interval(clean, pushed)
    both = paired_auroc(paired_placements(clean, pushed, np.zeros(9, dtype=np.int64)))
    assert one.value == pytest.approx(auroc(clean, pushed)) == pytest.approx(both.value)
    for found in (one, both):
        assert 0 <= found.lo <= found.value <= found.hi <= 1


def test_a_document_is_read_up_to_each_token_as_its_beginning_is():
    one = handle()
    ids = [[1, 2, 3, 4, 5], [1, 2, 3]]
    whole = read_documents(one.model, one.sae, ids, np.array([True, False]))
    codes = one.sae.encode(one.model.capture(torch.tensor(ids[:1]), [one.sae.reads])[one.sae.reads][0, 1:])
    assert whole.codes[0] == pytest.approx(codes.max(0).values.numpy(), abs=1e-6)
    assert not np.allclose(whole.mean[0], whole.mean[1])
