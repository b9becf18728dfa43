"""A sweep gives the logits of the plain forward pass, for every family, site, edit and mask."""

import logging

import pytest
import torch
from torch import Tensor

from polysem import onednn as linear_maps
from polysem.edits import Add, Clamp, Edit, Scale
from polysem.errors import MismatchError, NumericsError, SiteError
from polysem.models import clean as clean_runs
from polysem.models import sweep as sweeps
from polysem.models.hf import HFModel
from polysem.models.sweep import Sweep, sweep_of
from polysem.readouts import weighted_cosine
from polysem.types import Site
from polysem.worlds.linear import LinearWorld
from polysem.worlds.tiny import TINY_FAMILIES, tiny_model

ROWS, POS, LAYERS = 5, 9, 3
C_TOLERANCE = 1e-6
"""what a readout may differ by between two ways of summing the same float32 products"""
LOGIT_TOLERANCE = 3e-5
"""logits of the tiny models reach 10; float32 holds them to 1e-6, and three blocks add up"""
FUSED = ("gpt2", "gpt_neox", "llama", "qwen2", "qwen3")
VARIANTS = {family: {} for family in TINY_FAMILIES}
VARIANTS["gpt_neox sequential"] = {"use_parallel_residual": False}
VARIANTS["gpt_neox tanh"] = {"hidden_act": "gelu_new"}
VARIANTS["gpt2 by depth"] = {"scale_attn_by_inverse_layer_idx": True}
VARIANTS["llama biased"] = {"attention_bias": True, "mlp_bias": True}


@pytest.fixture(params=VARIANTS)
def model(request) -> HFModel:
    return tiny_model(request.param.split()[0], n_layers=LAYERS, **VARIANTS[request.param])


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompt(model: HFModel, *, rows: int = ROWS, pos: int = POS, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.spec.d_vocab, (1, pos), generator=generator).repeat(rows, 1)


def masks() -> dict[str, Tensor]:
    at = torch.arange(POS).repeat(ROWS, 1)
    ragged = torch.rand(ROWS, POS, generator=torch.Generator().manual_seed(2)) < 0.4
    ragged[0] = False
    return {"all": at >= 0, "all_but_first": at >= 1, "last": at >= POS - 1, "ragged": ragged, "none": at < 0}


def edits_at(site: Site, width: int, mask: Tensor) -> dict[str, Edit]:
    vector = draws(ROWS, width)
    unit = vector / vector.norm(dim=1, keepdim=True)
    index = torch.arange(ROWS) % width
    return {
        "Add": Add(site, vector, mask),
        "Scale": Scale(site, index, draws(ROWS, seed=3), mask),
        "Clamp": Clamp(site, unit, unit, draws(ROWS, seed=4), draws(ROWS, seed=5), mask),
    }


def assert_same(model: HFModel, sweep: Sweep, tokens: Tensor, edits: list[Edit], name: str) -> None:
    expected = model.logits(tokens, edits, last_only=True)[:, -1]
    seen = sweep.logits(tokens, edits)
    assert (seen - expected).abs().max() <= LOGIT_TOLERANCE, name
    target = [3, 7, 11]
    c = [weighted_cosine(z.double().softmax(-1), target, model.W_E) for z in (seen, expected)]
    assert torch.as_tensor(c[0] - c[1]).abs().max() <= C_TOLERANCE, name


@pytest.mark.parametrize(
    ("ways", "chosen"),
    [(("fused", "replay"), tuple(masks())), (("replay",), ("last", "ragged"))],
    ids=["shortest", "replay"],
)
def test_every_site_edit_and_mask_gives_the_plain_logits(model, ways, chosen):
    sweep, tokens = Sweep(model, ways=ways), prompt(model)
    assert "replay" in sweep.ways
    for site in model.sites():
        for mask_name in chosen:
            mask = masks()[mask_name]
            for kind, edit in edits_at(site, model.site_width(site), mask).items():
                assert_same(model, sweep, tokens, [edit], f"{site} {kind} {mask_name}")


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_which_families_have_the_fast_way(family):
    model = tiny_model(family, n_layers=LAYERS)
    sweep = Sweep(model)
    assert ("fused" in sweep.ways) == (model.spec.family in FUSED)
    stream = Add(Site(1, "hook_resid_post"), draws(ROWS, model.spec.d_model), masks()["all"])
    inside = Add(
        Site(1, "mlp.hook_pre"), draws(ROWS, model.site_width(Site(1, "mlp.hook_pre"))), masks()["all"]
    )
    tokens = prompt(model)[:1]
    assert sweep.way(tokens, [stream]) == sweep.ways[0]
    assert sweep.way(tokens, [inside]) == "replay"
    assert sweep.way(tokens, []) == "hooks"


def test_edits_of_several_layers_compose(model):
    sweep, tokens, mask = Sweep(model), prompt(model), masks()["ragged"]
    chain = [
        edits_at(Site(0, "hook_resid_post"), model.spec.d_model, mask)["Add"],
        edits_at(Site(1, "hook_resid_pre"), model.spec.d_model, mask)["Clamp"],
        edits_at(Site(1, "hook_attn_out"), model.spec.d_model, mask)["Scale"],
        edits_at(Site(2, "hook_mlp_out"), model.spec.d_model, mask)["Add"],
    ]
    assert_same(model, sweep, tokens, chain, "forwards")
    assert_same(model, sweep, tokens, chain[::-1], "backwards")
    same_site = [*edits_at(Site(0, "hook_resid_post"), model.spec.d_model, mask).values()]
    assert_same(model, sweep, tokens, same_site, "one site")
    assert_same(model, sweep, tokens, same_site[::-1], "one site, other order")


def test_rows_of_several_prompts_are_each_their_own(model):
    sweep = Sweep(model)
    tokens = prompt(model)
    tokens[1:3] = prompt(model, rows=2, seed=8)
    edit = edits_at(Site(1, "hook_resid_post"), model.spec.d_model, masks()["all_but_first"])["Add"]
    assert_same(model, sweep, tokens, [edit], "two prompts")


def test_single_tokens_and_single_rows(model):
    sweep = Sweep(model)
    for rows, pos in ((1, 1), (1, POS), (ROWS, 1)):
        for layer in range(LAYERS):
            edit = Add(
                Site(layer, "hook_resid_post"), draws(rows, model.spec.d_model), torch.ones(rows, pos).bool()
            )
            assert_same(model, sweep, prompt(model, rows=rows, pos=pos), [edit], f"{rows} x {pos}")


def test_a_long_prompt_runs_with_the_windows_it_really_had():
    """Beyond its window a Gemma layer does not see the first tokens; a wrong mask would show there."""
    for family in ("gemma2", "gemma3_text"):
        model = tiny_model(family, n_layers=LAYERS)
        tokens = prompt(model, pos=40)
        mask = torch.zeros(ROWS, 40, dtype=torch.bool)
        mask[:, :4] = True
        edit = Add(Site(0, "hook_resid_post"), 3 * draws(ROWS, model.spec.d_model), mask)
        assert_same(model, Sweep(model), tokens, [edit], family)


def test_a_mask_that_is_not_the_plain_triangle_keeps_the_fast_way_away():
    model = tiny_model(
        "qwen2", n_layers=LAYERS, use_sliding_window=True, sliding_window=6, max_window_layers=0
    )
    sweep, tokens = Sweep(model), prompt(model, pos=POS + 4)
    mask = torch.zeros(ROWS, POS + 4, dtype=torch.bool)
    mask[:, :3] = True
    edit = Add(Site(0, "hook_resid_post"), 3 * draws(ROWS, model.spec.d_model), mask)
    assert sweep.way(tokens[:1], [edit]) == "replay"
    assert_same(model, sweep, tokens, [edit], "window")


def test_float64_models_are_replayed_in_float64():
    model = tiny_model("gpt_neox", n_layers=LAYERS)
    model = HFModel.from_parts(model.model.double(), model.tokenizer)
    sweep = Sweep(model)
    edit = edits_at(Site(1, "hook_resid_post"), model.spec.d_model, masks()["all"])["Add"]
    seen = sweep.logits(prompt(model), [edit])
    expected = model.logits(prompt(model), [edit], last_only=True)[:, -1]
    assert sweep.ways == ("replay", "hooks")
    assert seen.dtype == torch.float64
    torch.testing.assert_close(seen, expected, rtol=1e-12, atol=1e-12)


def test_what_a_batch_gives_does_not_depend_on_the_batches_before_it(model):
    tokens, other = prompt(model), prompt(model, seed=6)
    edit = edits_at(Site(1, "hook_resid_post"), model.spec.d_model, masks()["all"])["Add"]
    fresh = Sweep(model).logits(tokens, [edit])
    used = Sweep(model)
    for batch in (other, tokens, other):
        used.logits(batch, [edit])
    assert torch.equal(used.logits(tokens, [edit]), fresh)


def test_other_models_go_through_their_own_forward():
    model = LinearWorld(draws(12, 4), draws(12, 4))
    sweep = sweep_of(model)
    assert sweep.ways == ("hooks",)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_what_does_not_fit_is_refused_with_the_words_of_the_plain_forward(family):
    model = tiny_model(family)
    sweep, tokens, mask = Sweep(model), prompt(model), masks()["all"]
    wrong = Add(Site(0, "hook_resid_post"), draws(ROWS, model.spec.d_model + 1), mask)
    with pytest.raises(MismatchError, match="vector has shape"):
        sweep.logits(tokens, [wrong])
    with pytest.raises(SiteError, match="layers 0 to 1"):
        sweep.logits(tokens, [Add(Site(7, "hook_resid_post"), draws(ROWS, 16), mask)])
    with pytest.raises(MismatchError, match="outside the vocabulary"):
        sweep.logits(tokens + 10_000, [Add(Site(0, "hook_resid_post"), draws(ROWS, 16), mask)])


def test_rows_that_blow_up_are_an_error_that_counts_them():
    model = tiny_model("gpt2")
    vector = draws(ROWS, 16)
    vector[2] = torch.inf
    with pytest.raises(NumericsError, match=r"1 of 5 rows \(first: row 2\)"):
        Sweep(model).logits(prompt(model), [Add(Site(0, "hook_resid_post"), vector, masks()["all"])])


def test_a_way_that_disagrees_is_given_up_with_a_warning(monkeypatch, caplog):
    """Broken on purpose: a residual stream scaled by 1.001 must not pass for the right one."""
    real = clean_runs.clean_run

    def broken(model, tokens):
        run = real(model, tokens)
        return clean_runs.CleanRun(tuple(1.001 * h for h in run.pre), run.mid, run.calls)

    monkeypatch.setattr(sweeps, "clean_run", broken)
    with caplog.at_level(logging.WARNING):
        sweep = Sweep(tiny_model("gpt2"))
    assert sweep.ways == ("hooks",)
    assert "the fused way of a sweep differs" in caplog.text
    assert "the replay way of a sweep differs" in caplog.text


def test_a_sweep_is_made_anew_when_weights_change():
    model = tiny_model("gpt2")
    first = sweep_of(model)
    assert sweep_of(model) is first
    with torch.no_grad():
        model.model.transformer.h[1].mlp.c_fc.weight.mul_(1.5)
    edit = edits_at(Site(0, "hook_resid_post"), 16, masks()["all"])["Add"]
    assert_same(model, sweep_of(model), prompt(model), [edit], "after the change")


def test_old_prompts_leave_when_the_cache_is_full(monkeypatch):
    model = tiny_model("gpt2")
    sweep = Sweep(model)
    edit = edits_at(Site(0, "hook_resid_post"), 16, masks()["all"])["Add"]
    sweep.logits(prompt(model), [edit])
    size = sweep._bytes
    monkeypatch.setattr(sweeps, "_CACHE_BYTES", 2 * size)
    for seed in range(2, 7):
        sweep.logits(prompt(model, seed=seed), [edit])
    assert len(sweep._clean) == 2
    assert sweep._bytes == 2 * size


def test_matrix_products_are_float32_by_either_library(monkeypatch):
    x, w, b = draws(40, 64), draws(50, 64, seed=1), draws(50, seed=2)
    exact = torch.nn.functional.linear(x.double(), w.double(), b.double())
    before = torch.get_float32_matmul_precision()
    for available in (linear_maps.onednn_is_exact(), False):
        monkeypatch.setattr(linear_maps, "onednn_is_exact", lambda found=available: found)
        for pack in (True, False):
            linear = linear_maps.Linear(w, b, pack=pack)
            torch.testing.assert_close(linear(x).double(), exact, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(linear(x, bias=False).double(), exact - b, rtol=1e-5, atol=1e-5)
            for gelu in ("none", "tanh"):
                expected = torch.nn.functional.gelu(exact, approximate=gelu)
                torch.testing.assert_close(linear(x, gelu=gelu).double(), expected, rtol=1e-5, atol=1e-5)
            assert linear(x[None]).shape == (1, 40, 50)
    assert torch.get_float32_matmul_precision() == before


def test_a_library_that_rounds_is_found_out(monkeypatch):
    monkeypatch.setattr(linear_maps, "_pointwise", lambda x, w, b, g: (x.bfloat16() @ w.bfloat16().T).float())
    monkeypatch.setattr(linear_maps, "_packed", lambda w: w)
    linear_maps.onednn_is_exact.cache_clear()
    try:
        assert not linear_maps.onednn_is_exact()
    finally:
        linear_maps.onednn_is_exact.cache_clear()
