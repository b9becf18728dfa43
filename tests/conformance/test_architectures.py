"""Set-ups of architectures that are easily got wrong: loaded from a folder, logits equal those of plain `transformers` bit
for bit, and the sweep's under an edit those of the whole pass."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from polysem.edits import Add
from polysem.models import load_model
from polysem.models.base import quiet_transformers
from polysem.models.sweep import sweep_of
from polysem.types import Site
from support.tiny import save_tiny_model

SWEEP_ATOL = 4e-6
"""float32: rows that share their first layers are summed in another order"""
_LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
SETUPS = {
    "qwen2 sliding windows": ("qwen2", _WINDOW),
    "qwen3 sliding windows": ("qwen3", _WINDOW),
    "llama-3.1 rope": ("llama", {"rope_scaling": {**_LLAMA_3, "rope_theta": 10000.0}}),
    "yarn rope": (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "rope_theta": 10000.0,
            }
        },
    ),
    "dynamic rope": (
        "llama",
        {
            "rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
            "max_position_embeddings": 32,
        },
    ),
    "attention bias": ("llama", {"attention_bias": True}),
    "mlp bias": ("llama", {"mlp_bias": True}),
    "odd head_dim": ("llama", {"head_dim": 10}),
    "gemma2 soft-caps": ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3 windows": ("gemma3_text", {"sliding_window": 5}),
    "gpt2 inverse-layer scaling": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    ),
    "serial neox": ("gpt_neox", {"use_parallel_residual": False}),
}


def tokens(n: int = 24) -> torch.Tensor:
    return torch.randint(0, 60, (3, n), generator=torch.Generator().manual_seed(3))


def plain(folder) -> torch.nn.Module:
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", SETUPS)
def test_logits_are_those_of_plain_transformers(name, tmp_path):
    family, settings = SETUPS[name]
    folder = save_tiny_model(family, tmp_path, n_layers=3, **settings)
    loaded = load_model(str(folder), device="cpu")
    with torch.no_grad():
        wanted = plain(folder)(tokens()).logits
    assert torch.equal(loaded.logits(tokens()), wanted)
    edit = Add(
        Site(1, "hook_resid_post"),
        torch.randn(3, loaded.spec.d_model, generator=torch.Generator().manual_seed(4)),
        torch.ones(3, 24, dtype=torch.bool),
    )
    row = tokens()[:1].expand(3, -1)
    whole = loaded.logits(row, [edit], last_only=True)[:, -1]
    torch.testing.assert_close(sweep_of(loaded).logits(row, [edit]), whole, rtol=0, atol=SWEEP_ATOL)
    assert not torch.equal(whole, loaded.logits(row, last_only=True)[:, -1])


@pytest.mark.parametrize(
    "name", [name for name in SETUPS if name != "dynamic rope"]
)  # that one begins beyond n_ctx
def test_the_setting_makes_a_difference(name, tmp_path):
    """Or the test above would hold for a loader that ignores it."""
    family, settings = SETUPS[name]
    usual = {} if name != "gpt2 inverse-layer scaling" else {"reorder_and_upcast_attn": True}
    with_it = save_tiny_model(family, tmp_path / "with", n_layers=3, **settings)
    without = save_tiny_model(family, tmp_path / "without", n_layers=3, **usual)
    logits = [load_model(str(folder), device="cpu") for folder in (with_it, without)]
    assert not torch.equal(*(model.logits(tokens()[:, :20]) for model in logits))


def test_a_checkpoints_own_head_is_kept_though_the_configuration_ties_it(tmp_path):
    folder = save_tiny_model("llama", tmp_path, tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    own = torch.randn(64, 16, generator=torch.Generator().manual_seed(5))
    save_file({**weights, "lm_head.weight": own}, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(str(folder), device="cpu")
    assert torch.equal(loaded.W_U, own)
    assert not torch.equal(loaded.W_E, own)
    with torch.no_grad():
        assert torch.equal(loaded.logits(tokens()), plain(folder)(tokens()).logits)
