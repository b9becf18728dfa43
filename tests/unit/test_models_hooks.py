"""Edits by hand, hooks that leave nothing behind, passes no longer than needed, clear refusals."""

import pytest
import torch
from torch import nn

from polysem.edits import Add, Clamp, Scale
from polysem.errors import MismatchError, NumericsError, SiteError, UnknownReferenceError
from polysem.models.anatomy import FAMILIES, anatomy_of
from polysem.models.hf import HFModel
from polysem.models.hooks import apply_edit, hooked
from polysem.types import Site
from polysem.worlds.tiny import tiny_model

SITE = Site(0, "hook_resid_post")
ALL = torch.ones(2, 3, dtype=torch.bool)


@pytest.fixture(scope="module")
def gpt2() -> HFModel:
    return tiny_model("gpt2")


def n_hooks(model: HFModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())


def tokens(batch: int = 2, pos: int = 3) -> torch.Tensor:
    return torch.arange(batch * pos).reshape(batch, pos) % 64


def test_add_by_hand():
    h = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    edited = apply_edit(h, Add(SITE, torch.tensor([[10.0, 20.0], [-1.0, 0.5]]), mask))
    expected = torch.tensor([[[10.0, 21.0], [2.0, 3.0], [14.0, 25.0]], [[6.0, 7.0], [8.0, 9.0], [9.0, 11.5]]])
    assert torch.equal(edited, expected)
    assert torch.equal(h, torch.arange(12.0).reshape(2, 3, 2))  # the argument is left alone


def test_scale_by_hand():
    h = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    edited = apply_edit(h, Scale(SITE, torch.tensor([1, 0]), torch.tensor([0.0, -3.0]), mask))
    expected = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [4.0, 5.0]], [[-18.0, 7.0], [8.0, 9.0], [10.0, 11.0]]])
    assert torch.equal(edited, expected)


def test_clamp_by_hand_and_as_a_projection():
    h = torch.tensor([[[3.0, 4.0]], [[1.0, 2.0]]])
    one = torch.ones(2, 1, dtype=torch.bool)
    reader, writer = torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    edit = Clamp(SITE, reader, writer, torch.tensor([10.0, 5.0]), torch.tensor([1.0, 0.0]), one)
    # row 0: 10 - 7 - 1 = 2 along (1, 0); row 1: 5 - 2 = 3 along (2, 0)
    assert torch.equal(apply_edit(h, edit), torch.tensor([[[5.0, 4.0]], [[7.0, 2.0]]]))
    unit = torch.tensor([[0.6, 0.8], [0.8, -0.6]])
    clamped = apply_edit(h, Clamp(SITE, unit, unit, torch.tensor([-2.0, 9.0]), torch.zeros(2), one))
    assert torch.allclose((clamped[:, 0] * unit).sum(1), torch.tensor([-2.0, 9.0]), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_edits_keep_the_dtype_and_round_once(dtype):
    h = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    vector = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    edited = apply_edit(h, Add(SITE, vector, ALL))
    assert edited.dtype == dtype
    assert torch.equal(
        edited,
        (h.double() + vector.double()[:, None])
        .to(torch.float32 if dtype != torch.float64 else dtype)
        .to(dtype),
    )


def test_hooks_see_keyword_inputs_and_keep_the_tail_of_tuples():
    class Inner(nn.Module):
        def forward(self, hidden_states, *, other):
            return hidden_states + other, "weights", None

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            return self.inner(hidden_states=x, other=1.0)

    from polysem.models.anatomy import Tap

    outer = Outer()
    with hooked(outer, {Tap("inner", "in"): [lambda h: 10 * h], Tap("inner", "out"): [lambda h: -h]}):
        assert outer(torch.tensor(2.0)) == (torch.tensor(-21.0), "weights", None)
    assert outer(torch.tensor(2.0)) == (torch.tensor(3.0), "weights", None)


def test_hooks_are_gone_after_a_forward_pass_that_fails(gpt2, monkeypatch):
    before = gpt2.logits(tokens())
    edit = Add(Site(0, "hook_resid_mid"), torch.ones(2, 16), ALL)

    def fail(*_args, **_kwargs):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(gpt2.model.transformer.h[1].mlp, "forward", fail)
        for call in (
            lambda: gpt2.logits(tokens(), [edit]),
            lambda: gpt2.capture(tokens(), [Site(1, "hook_resid_post")], [edit]),
            lambda: gpt2.vjp(tokens(), SITE, torch.ones(2, 64)),
        ):
            with pytest.raises(RuntimeError, match="out of memory"):
                call()
            assert n_hooks(gpt2) == 0
    assert torch.equal(gpt2.logits(tokens()), before)


def test_capture_stops_after_the_last_site_it_needs(gpt2, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("ran on")

    monkeypatch.setattr(gpt2.model.transformer.h[1], "forward", fail)
    found = gpt2.capture(tokens(), [Site(0, "hook_resid_post"), Site(0, "attn.hook_z")])
    assert [str(site) for site in found] == ["blocks.0.hook_resid_post", "blocks.0.attn.hook_z"]
    assert n_hooks(gpt2) == 0
    with pytest.raises(RuntimeError, match="ran on"):
        gpt2.capture(tokens(), [Site(1, "hook_resid_post")])


def test_last_only_unembeds_one_position(gpt2):
    seen = []
    handle = gpt2.model.lm_head.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape))
    try:
        gpt2.logits(tokens(), last_only=True)
        gpt2.logits(tokens())
    finally:
        handle.remove()
    assert seen == [(2, 1, 16), (2, 3, 16)]


def test_an_edit_between_attention_and_mlp_changes_the_stream_itself(gpt2):
    """Editing the input of the second norm would show at the norm and be lost from the stream."""
    vector = torch.linspace(-3, 3, 32).reshape(2, 16)  # not constant: a layer norm does not see a constant
    edit = Add(Site(0, "hook_resid_mid"), vector, ALL)
    wanted = [
        Site(0, "hook_resid_mid"),
        Site(0, "hook_attn_out"),
        Site(0, "hook_mlp_out"),
        Site(0, "hook_resid_post"),
    ]
    mid, attn, mlp, post = wanted
    plain, edited = gpt2.capture(tokens(), wanted), gpt2.capture(tokens(), wanted, [edit])
    torch.testing.assert_close(edited[mid], plain[mid] + vector[:, None])
    torch.testing.assert_close(edited[post], plain[mid] + vector[:, None] + edited[mlp])
    assert torch.equal(edited[attn], plain[attn])  # the name still means what attention computed
    assert not torch.allclose(edited[mlp], plain[mlp])


def test_edits_at_resid_pre_and_resid_mid_compose(gpt2):
    first = Clamp(
        Site(0, "hook_resid_pre"),
        *(torch.eye(16)[[3, 4]],) * 2,
        torch.tensor([7.0, 8.0]),
        torch.zeros(2),
        ALL,
    )
    second = Scale(Site(0, "hook_resid_mid"), torch.tensor([3, 4]), torch.tensor([2.0, 2.0]), ALL)
    mid = Site(0, "hook_resid_mid")
    after_first = gpt2.capture(tokens(), [mid], [first])[mid]
    both = gpt2.capture(tokens(), [mid], [second, first])[mid]
    torch.testing.assert_close(both[0, :, 3], 2 * after_first[0, :, 3])
    torch.testing.assert_close(both[1, :, 4], 2 * after_first[1, :, 4])


def test_a_captured_activation_is_the_callers_own(gpt2):
    captured = gpt2.capture(tokens(), [SITE])[SITE]
    before = captured.clone()
    gpt2.logits(tokens(), [Add(SITE, torch.ones(2, 16), ALL)])
    assert torch.equal(captured, before)


def test_sites_that_do_not_exist_say_why():
    neox, gpt2, llama = tiny_model("gpt_neox"), tiny_model("gpt2"), tiny_model("llama")
    with pytest.raises(SiteError, match="use_parallel_residual=True") as caught:
        neox.capture(tokens(), [Site(0, "hook_resid_mid")])
    assert "hook_resid_post" in str(caught.value.hint)
    with pytest.raises(SiteError, match="not gated"):
        gpt2.site_width(Site(0, "mlp.hook_pre_linear"))
    with pytest.raises(SiteError, match="layers 0 to 1, not 2"):
        llama.vjp(tokens(), Site(2, "hook_resid_mid"), torch.ones(2, 64))
    sequential = tiny_model("gpt_neox", use_parallel_residual=False)
    assert sequential.site_width(Site(0, "hook_resid_mid")) == 16
    assert Site(0, "hook_resid_mid") not in neox.sites()
    assert Site(0, "hook_resid_mid") in sequential.sites()


def test_site_widths_are_those_of_the_architecture():
    model = tiny_model("gemma2")  # 4 heads of 8, MLP of 48
    widths = {
        point: model.site_width(Site(0, point)) for point in ("attn.hook_z", "mlp.hook_pre", "mlp.hook_post")
    }
    assert widths == {"attn.hook_z": 32, "mlp.hook_pre": 48, "mlp.hook_post": 48}
    gpt2 = tiny_model("gpt2")
    assert gpt2.site_width(Site(0, "mlp.hook_pre")) == gpt2.site_width(Site(0, "mlp.hook_post")) == 48


def test_an_unknown_family_is_refused_with_the_list():
    from transformers import AutoConfig

    with pytest.raises(UnknownReferenceError, match=r"'opt' model.*gpt2, gpt_neox, llama, gemma2"):
        anatomy_of(AutoConfig.for_model("opt"), ref="some/model")
    assert {"gpt2", "gpt_neox", "llama", "gemma2", "qwen2", "qwen3"} <= set(FAMILIES)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (Add(SITE, torch.zeros(2, 15), ALL), r"vector has shape \(2, 15\), expected \(2, 16\)"),
        (Add(SITE, torch.zeros(1, 16), ALL[:1]), r"mask has shape \(1, 3\), expected \(2, 3\)"),
        (Scale(SITE, torch.tensor([0, 16]), torch.ones(2), ALL), "index 16 is outside 0 to 15"),
        (Scale(SITE, torch.tensor([-1, 0]), torch.ones(2), ALL), "index -1 is outside 0 to 15"),
        (
            Clamp(SITE, torch.zeros(2, 16), torch.zeros(2, 16), torch.zeros(2), torch.zeros(1), ALL),
            r"offset has shape \(1,\), expected \(2,\)",
        ),
    ],
)
def test_edits_that_do_not_fit_are_refused(gpt2, edit, match):
    with pytest.raises(MismatchError, match=match):
        gpt2.logits(tokens(), [edit])
    assert n_hooks(gpt2) == 0


def test_tokens_that_do_not_fit_are_refused(gpt2):
    with pytest.raises(MismatchError, match="token id 64 is outside the vocabulary of tiny:gpt2"):
        gpt2.logits(torch.tensor([[1, 64]]))
    with pytest.raises(MismatchError, match="token id -1"):
        gpt2.capture(torch.tensor([[1, -1]]), [SITE])
    with pytest.raises(MismatchError, match="rows of 129 tokens, but tiny:gpt2 has a context of 128"):
        gpt2.logits(torch.zeros(1, 129, dtype=torch.int64))
    with pytest.raises(MismatchError, match="at least one token"):
        gpt2.logits(torch.zeros(2, 0, dtype=torch.int64))
    with pytest.raises(MismatchError, match=r"cotangent has shape \(2, 63\), expected \(2, 64\)"):
        gpt2.vjp(tokens(), SITE, torch.zeros(2, 63))


def test_overflow_in_float16_is_an_error_that_names_the_dtype():
    tiny = tiny_model("gpt_neox")
    with torch.no_grad():
        tiny.model.gpt_neox.layers[0].mlp.dense_4h_to_h.bias.fill_(60_000.0)
        tiny.model.gpt_neox.layers[1].mlp.dense_4h_to_h.bias.fill_(60_000.0)
    assert tiny.logits(tokens()).isfinite().all()
    half = HFModel.from_parts(tiny.model.half(), tiny.tokenizer, ref="EleutherAI/pythia-70m-deduped")
    with pytest.raises(
        NumericsError, match=r"logits of EleutherAI/pythia-70m-deduped .*2 of 2 rows .*float16"
    ) as caught:
        half.logits(tokens())
    assert "float32" in str(caught.value.hint)
    with pytest.raises(NumericsError, match=r"activations at blocks\.1\.hook_resid_post"):
        half.capture(tokens(), [Site(1, "hook_resid_post")])


def test_an_edit_that_overflows_names_the_row(gpt2):
    vector = torch.zeros(2, 16)
    vector[1] = torch.inf
    with pytest.raises(NumericsError, match=r"1 of 2 rows \(first: row 1\)") as caught:
        gpt2.logits(tokens(), [Add(SITE, vector, ALL)])
    assert "dose" in str(caught.value.hint)
