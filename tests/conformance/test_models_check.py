"""`check_model` finds models that break a promise: each of these is wrong in one way, and caught for it."""

from dataclasses import replace

import pytest
import torch

from polysem.edits import Add
from polysem.models.anatomy import Tap
from polysem.models.hf import HFModel
from polysem.models.hooks import apply_edit
from polysem.testing.conformance import check_model
from polysem.types import Site
from polysem.worlds import tiny


class _Subclassed(HFModel):
    """An HFModel with one method replaced; attributes are taken over."""

    def __init__(self, model: HFModel):
        self.__dict__.update(model.__dict__)


class UnscaledEmbedding(_Subclassed):
    @property
    def W_E(self):
        return self.model.get_input_embeddings().weight.detach()


class OverwritesEdits(_Subclassed):
    def logits(self, tokens, edits=(), *, last_only=False):
        return super().logits(tokens, list({edit.site: edit for edit in edits}.values()), last_only=last_only)

    def capture(self, tokens, sites, edits=()):
        return super().capture(tokens, sites, list({edit.site: edit for edit in edits}.values()))


class IgnoresMasks(_Subclassed):
    def edit_actions(self, tokens, edits, **options):
        edits = [Add(e.site, e.vector, torch.ones_like(e.mask)) if isinstance(e, Add) else e for e in edits]
        return super().edit_actions(tokens, edits, **options)


class GradientOfAnotherSite(_Subclassed):
    def vjp(self, tokens, site, cotangent):
        other = Site(site.layer, "hook_resid_pre") if site.point == "hook_resid_mid" else site
        return super().vjp(tokens, other, cotangent)


class GradientOfTheSum(_Subclassed):
    def vjp(self, tokens, site, cotangent):
        return super().vjp(tokens, site, torch.ones_like(cotangent))


class RemembersEdits(_Subclassed):
    def logits(self, tokens, edits=(), *, last_only=False):
        with torch.no_grad():
            self.model.get_output_embeddings().weight.add_(1e-3 * len(edits))
        return super().logits(tokens, edits, last_only=last_only)


class AddsBOSAlways(_Subclassed):
    def tokenize(self, text, *, prepend_bos):
        return super().tokenize(text, prepend_bos=True)


class AcceptsAnyLayer(_Subclassed):
    def tap(self, site):
        return super().tap(Site(0, site.point) if site.layer is not None else site)


@pytest.mark.parametrize(
    ("wrong", "family", "promise"),
    [
        (UnscaledEmbedding, "gemma2", r"hook_embed of token t is W_E\[t\]"),
        (OverwritesEdits, "gpt2", "Add then Scale, in this order"),
        (IgnoresMasks, "gpt2", "masked everywhere changes no bit"),
        (GradientOfAnotherSite, "llama", r"vjp at blocks\.0\.hook_resid_mid predicts"),
        (GradientOfTheSum, "qwen2", "vjp at hook_embed predicts"),
        (RemembersEdits, "qwen3", "changes no bit|is the same after everything"),
        (AddsBOSAlways, "gpt_neox", "without prepend_bos there is no BOS"),
        (AcceptsAnyLayer, "llama", "has no width"),
    ],
)
def test_a_model_that_breaks_a_promise_is_caught(wrong, family, promise):
    with pytest.raises(AssertionError, match=promise):
        check_model(wrong(tiny.tiny_model(family, n_layers=1, d_model=24)))


LAYER = "model.layers.{i}"


@pytest.mark.parametrize(
    ("family", "point", "tap", "promise"),
    [
        # attention's raw output taken for what it adds to the stream: wrong in a family with post-norms
        (
            "gemma2",
            "hook_attn_out",
            Tap(f"{LAYER}.self_attn", "out"),
            r"Add at blocks\.0\.hook_resid_mid changes",
        ),
        ("gemma2", "hook_mlp_out", Tap(f"{LAYER}.mlp", "out"), r"resid_post = resid_pre \+ attn_out"),
        # the stream taken behind the norm
        ("llama", "hook_resid_mid", Tap(f"{LAYER}.post_attention_layernorm", "out"), "hook_resid_mid"),
        (
            "llama",
            "hook_resid_pre",
            Tap(f"{LAYER}.input_layernorm", "out"),
            "resid_post = resid_pre|resid_mid",
        ),
    ],
)
def test_a_wrong_row_of_the_anatomy_is_caught(family, point, tap, promise):
    model = tiny.tiny_model(family, n_layers=1, d_model=24)
    model.anatomy = replace(model.anatomy, points={**model.anatomy.points, point: tap})
    with pytest.raises(AssertionError, match=promise):
        check_model(model)


def test_editing_only_the_input_of_the_second_norm_is_caught():
    """The naive way to write hook_resid_mid: the MLP sees the edit, the stream does not."""

    class Naive(_Subclassed):
        def edit_actions(self, tokens, edits, **options):
            mids = [edit for edit in edits if edit.site.point == "hook_resid_mid"]
            actions = super().edit_actions(tokens, [e for e in edits if e not in mids], **options)
            tap = self.tap(Site(0, "hook_resid_mid"))
            naive = [lambda h, edit=edit: apply_edit(h, edit) for edit in mids]
            return {**actions, tap: [*naive, *actions.get(tap, [])]}

    with pytest.raises(AssertionError, match="Add at attn_out = Add at resid_mid"):
        check_model(Naive(tiny.tiny_model("gpt2", n_layers=1, d_model=24)))
