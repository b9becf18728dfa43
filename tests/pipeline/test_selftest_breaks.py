"""Breaking the code on purpose makes the selftest fail, at the line that is there for it."""

import numpy as np
import pyarrow.compute as pc
import pytest

from polysem.selftest import run
from polysem.selftest.runner import CHECKS


def broken(*names: str) -> set[str]:
    """Names of the lines that do not hold, of some checks."""
    chosen = [c for c in CHECKS if c.name in names]
    assert len(chosen) == len(names)
    return {line.name for line in run(checks=chosen).broken}


def test_dropping_the_fixed_effect_of_a_source(monkeypatch):
    from polysem.stats import regress

    monkeypatch.setattr(regress, "within", lambda values, groups: values)
    assert "common mode: centred slope" in broken("common mode")


def test_leaving_the_shared_mean_direction_in_the_map(monkeypatch):
    from polysem import pairs

    real = pairs._without_means

    def forgetful(found, left, right):
        return real(found, left, right) | {"interference_demeaned": found.interference}

    monkeypatch.setattr(pairs, "_without_means", forgetful)
    assert broken("pipeline") == {"pipeline: interference without the common mode"}


def test_rows_as_the_unit_of_inference(monkeypatch):
    """Every row an own cluster: what ordinary least squares does. Sources that serve more targets than in the quick
    check, whose sixty runs are too few to tell; the full check has a thousand."""
    from polysem.selftest import null
    from polysem.stats import regress, rows

    shared = {"n_sources": 12, "source_sd": 1.2, "slope_sd": 2.0}
    world = null.noise_world
    monkeypatch.setattr(null, "noise_world", lambda **given: world(**shared | given))
    lines = {"null: rejections of a true null at 5 %", "null: coverage of 95 % intervals"}
    assert not lines & broken("null")

    real = regress.clustered_ols

    def alone(y, design, clusters, *, level, errors="two_way", prompts=None):
        return real(y, design, np.column_stack([np.arange(len(y))] * 2), level=level)

    monkeypatch.setattr(rows, "clustered_ols", alone)
    assert lines <= broken("null")


def test_dose_selected_on_the_reported_prompts(monkeypatch):
    """The dose with the largest mean effect on confirm prompts, as the best of a grid would be."""
    from polysem.stats import arms, effects

    def greedy(joined, locus, *, max_kl):
        mine = joined.filter(pc.equal(joined["split"], "confirm"))
        size = np.abs(arms.floats(mine["dose"]))
        odd = (arms.floats(mine["logodds_edit"]) - arms.floats(mine["logodds_base"])) * np.sign(
            arms.floats(mine["dose"])
        )
        return max((float(odd[size == d].mean()), float(d)) for d in np.unique(size))[1], ""

    monkeypatch.setattr(effects, "headline_dose", greedy)
    found = broken("dose")
    assert "dose: headline dose after other outcomes on confirm prompts" in found


def test_encoder_and_decoder_swapped_in_a_push(monkeypatch):
    from polysem.act import feature

    monkeypatch.setattr(
        feature, "decoder_row", lambda bench, k: bench.sae.W_enc[:, k].detach().cpu().double().numpy()
    )
    found = broken("pipeline")
    assert "pipeline: effect of every pair" in found
    assert "pipeline: effect of every self" in found


def test_encoder_and_decoder_swapped_in_a_loader(monkeypatch):
    from polysem.saes import load

    real = load.assemble

    def swapped(*args, **kwargs):
        from dataclasses import replace

        sae = real(*args, **kwargs)
        return replace(sae, W_enc=sae.W_dec.T.contiguous(), W_dec=sae.W_enc.T.contiguous())

    monkeypatch.setattr(load, "assemble", swapped)
    assert {"sae: W_dec read back", "sae: W_enc read back"} <= broken("sae")


def test_skipping_the_duplicate_filter(monkeypatch):
    from polysem.plan.index import FeatureIndex

    monkeypatch.setattr(
        FeatureIndex, "duplicates", lambda self, target, alignment: np.zeros(len(alignment), dtype=bool)
    )
    assert broken("duplicates") == {"duplicates: duplicates drawn as sources"}


def test_not_flagging_duplicates(monkeypatch):
    from polysem import pairs

    monkeypatch.setattr(pairs, "DUPLICATE_TOKENS", 2.0)
    assert "duplicates: recall of the detector" in broken("duplicates")


@pytest.mark.parametrize("function", ["_normalize", "_denormalize"])
def test_forgetting_the_layer_norm_of_an_sae(monkeypatch, function):
    from polysem.saes import base as codec

    forgetful = {"_normalize": lambda sae, x: x, "_denormalize": lambda sae, out, x: out}[function]
    monkeypatch.setattr(codec, function, forgetful)
    assert "sae: FVU with layer-norm inputs" in broken("sae")


def test_a_direct_effect_that_passes_blocks(monkeypatch):
    """The total taken for the direct effect."""
    from polysem.linear import decompose as d

    def total(model, tokens, site, pushed, push, inside):
        return d._odd(d.odd_change(model, tokens, site=site, pushed=pushed, pushes=push), inside)

    monkeypatch.setattr(d, "_direct", total)
    line = "decomposition: direct effect against every later block held at its clean output"
    assert broken("decomposition") == {line}
    assert "paths: largest |DE / TE|, indirect-only world" in broken("paths")


def test_giving_out_gradients_that_are_rounding(monkeypatch):
    from polysem.act import gradient

    monkeypatch.setattr(gradient, "MIN_AGREEMENT", -2.0)
    assert broken("token gradient") == {"token gradient: gradients of all coordinates given out, centred"}


def test_a_gloss_as_its_own_instrument(monkeypatch):
    from polysem.selftest import traps
    from polysem.stats import reliability

    def own(effect, interference, first, second, clusters):
        return reliability.instrumented(effect, interference, first, first, clusters)

    monkeypatch.setattr(traps, "instrumented", own)
    assert broken("gloss noise") == {"gloss noise: slope, one gloss instrumented by the other"}


def test_calling_pairs_without_adjusting_their_p_values(monkeypatch):
    from polysem.selftest import null

    monkeypatch.setattr(null, "adjust_p", lambda p, *, method: p)
    assert broken("discoveries") == {"discoveries: false discovery rate of Benjamini-Hochberg at 0.05"}


def test_a_target_taken_for_its_own_pair_in_lambda(monkeypatch):
    from polysem.linear import compensation

    real = compensation._solve

    def all_cells(world, **rest):
        return real(world._replace(weights=np.ones_like(world.weights)), **rest)

    monkeypatch.setattr(compensation, "_solve", all_cells)
    assert "response: compensation index at lambda 1" in broken("response")


def test_hooks_that_stay(monkeypatch):
    from contextlib import contextmanager

    from polysem.models import hf, hooks

    @contextmanager
    def forgetful(model, actions):
        for tap, todo in actions.items():
            module = model.get_submodule(tap.path)
            if tap.side == "in":
                module.register_forward_pre_hook(hooks._on_input(todo), with_kwargs=True)
            else:
                module.register_forward_hook(hooks._on_output(todo))
        yield

    monkeypatch.setattr(hf, "hooked", forgetful)
    from polysem.selftest import identities

    identities.tiny_models.cache_clear()
    found = broken("edits")
    identities.tiny_models.cache_clear()
    # the infinite push of the last test pass stays, too, so that nothing after it can run
    assert found == {"edits: runs"} or "edits: hooks left in modules" in found


def test_positive_interference_taken_for_all_there_is(monkeypatch):
    """The share of positive effects, called agreement of signs: what it was before negative pairs were planned."""
    from polysem.stats import contrasts

    def share(view, *, sae, tokens, outcome):
        used = view.where(relation="pair", token_set=tokens)
        agreement = np.sign(view.columns[outcome][used]) / 2
        found = view.regress(agreement, np.ones((len(agreement), 1)), used).shifted(0.5)
        return {"p": float(found.p[0]), "estimate": float(found.estimate[0])}

    monkeypatch.setattr(contrasts, "sign_agreement", share)
    assert "signs: rejections where no sign is predicted, at 5 %" in broken("signs")


def test_no_negative_pairs(monkeypatch):
    from polysem.selftest import null

    real = null.noise_world
    monkeypatch.setattr(null, "noise_world", lambda *, negatives=False, **rest: real(**rest))
    assert "signs: found where effects have the sign of the interference" in broken("signs")


def test_a_direct_path_that_is_forgotten(monkeypatch):
    """All of the effect taken for what lies beyond the direct path. Larger studies than the quick check's, whose eight
    runs are too few to tell; the full check has 200."""
    from polysem import trials
    from polysem.selftest import effects

    real, more = effects.study_of, {"n_targets": 24, "sources_per_bin": 3}
    monkeypatch.setattr(effects, "study_of", lambda parts, **plan: real(parts, **plan | more))
    assert broken("dealt decoder") == set()

    def none(model, rows, edits, *, base, edited, seen, sweep):
        return base.expand(len(edited), -1)

    monkeypatch.setattr(trials, "direct_logits", none)
    assert broken("dealt decoder") == {
        "dealt decoder: 'yes' to T-out beyond the direct path, decoder rows dealt anew"
    }


def test_pairs_compared_with_the_wrong_control(monkeypatch):
    """Random features in the place of directions at the pairs' cosines: geometry taken for identity."""
    from polysem.selftest import effects

    worlds = {name: {"pair": planted["pair"]} for name, planted in effects.WORLDS.items()}
    monkeypatch.setattr(effects, "WORLDS", worlds)
    found = broken("apart")
    assert "apart: identity effect where there is only geometry" in found
    assert "apart: geometry effect where there is only geometry" in found


def test_attribution_without_co_firing(monkeypatch):
    """Mean activation times weight, whether the target fires or not: silent interference is then credited."""
    from polysem.layers.coactivity import Coactivity

    monkeypatch.setattr(
        Coactivity, "era", lambda seen, weight, *_: (seen.fires_i / seen.n_tokens)[:, None] * weight
    )
    assert broken("edges") == {"edges: edges that ERA credits although their ends never co-fire"}


def test_the_sign_of_help_turned_round(monkeypatch):
    from polysem.layers import worth

    real = worth._losses
    monkeypatch.setattr(worth, "_losses", lambda *given: -real(*given))
    assert broken("edges") == {"edges: sign of helpfulness beyond 3 standard errors"}


def test_an_edge_measured_at_the_wrong_token(monkeypatch):
    """The loss from the position before on: the edge's own next token is then not the last that counts."""
    from polysem.layers import worth

    real = worth._losses
    monkeypatch.setattr(
        worth, "_losses", lambda model, tokens, edits, where: real(model, tokens, edits, where + 1)
    )
    found = broken("interference")
    assert found == {"interference: help of an edge against its closed form, largest difference"}


def test_edges_judged_without_the_targets_own_threshold(monkeypatch):
    """A weight taken for what it does: silent interference is then half as effective as what makes a neuron fire."""
    from polysem.layers import worth

    monkeypatch.setattr(
        worth, "without", lambda target, pre, change, which: pre[:, which].clamp(min=0) - change
    )
    assert broken("edges") == {"edges: harmful edges more than twice as effective as every silent one"}


def test_squares_of_noise_counted_as_interaction(monkeypatch):
    """Every pair of drawn sets with itself among them: what a plain mean of squares does."""
    from polysem.joint import additivity

    monkeypatch.setattr(additivity, "_pair_weights", lambda m, exact: np.full((m, m), 1 / m**2))
    assert "joint: SAR_2, odd, pool of 9, triples 2" in broken("joint")


def test_the_cost_of_a_plan_without_what_pushes_share(monkeypatch):
    """Pushes priced one by one, as if none had anything in common with another."""
    from polysem.joint import wishes

    real = wishes.joint_linear

    def alone(directions, responses):
        linear = real(directions, responses)
        return type(linear)(linear.effects, np.diag(np.diag(linear.fisher)))

    monkeypatch.setattr(wishes, "joint_linear", alone)
    assert broken("joint") == {"joint: KL above the cheapest by"}


def test_texts_drawn_without_the_push_on_their_own_tokens(monkeypatch):
    """Steering the prompt and calling it steering the text: SAE-Reasoning's and others' mistake."""
    from polysem.models import generate

    real = generate._scoped
    monkeypatch.setattr(generate, "_scoped", lambda edit, scope, prompt, n: real(edit, "prompt", prompt, n))
    lines = broken("texts")
    assert {"texts: rate_up, per 100 tokens", "texts: pushes that did not run at each token"} <= lines


def test_moves_that_touch_the_clamped_feature(monkeypatch):
    """Recovery that simply writes the feature back is no evidence that the handle is insufficient."""
    from polysem.behaviour import handle

    monkeypatch.setattr(handle, "projector", lambda rows: np.eye(rows.shape[1]))
    lines = broken("handles")
    assert "handles: carried 1, beside 0.5: clamped pre-activation moved by" in lines
    assert "handles: carried 1, beside 0: share recovered, handle, off by" in lines
