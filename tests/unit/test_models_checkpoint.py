"""What lies beside the weights of a model folder: quantisation, adapters, custom code, other heads, a text model inside a
multimodal one. Nothing of it changes the numbers without a word."""

import json
import logging
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from polysem.errors import FormatError, UnknownReferenceError
from polysem.models import load_model
from polysem.models.base import quiet_transformers
from polysem.models.load import load_outline
from polysem.worlds.tiny import tiny_model, tiny_tokenizer
from support.tiny import save_tiny_model

TOKENS = torch.tensor([[0, 5, 9, 33]])
TEXT = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16,
    "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return save_tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


def configure(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def rewrite(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


QUANTISATIONS: Mapping[str, dict[str, Any]] = {
    "modelopt": {"quant_method": "modelopt", "quant_algo": "FP8"},
    "bitsandbytes": {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    },
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "version": "gemm"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "4": {"bits": 4},
}


@pytest.mark.parametrize("method", QUANTISATIONS)
def test_a_quantised_model_is_refused_by_name_before_anything_is_loaded(folder, method, monkeypatch):
    configure(folder, quantization_config=QUANTISATIONS[method])
    monkeypatch.setattr("polysem.models.load._read_weights", None)
    with pytest.raises(
        FormatError, match=rf"is quantised \(config.json: quantization_config.*{method}"
    ) as caught:
        load_model(str(folder), dtype="float32")
    assert "gguf:PATH" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}}),
        ("quantize_config.json", {"bits": 4, "group_size": 128}),
        ("quant_config.json", {"w_bit": 4, "quant_method": "awq"}),
    ],
)
def test_a_quantisation_that_is_declared_in_a_file_of_its_own_is_seen(folder, name, content):
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(FormatError, match=f"is quantised .{name}"):
        load_model(str(folder))


def test_a_quantisation_inside_the_text_configuration_is_seen(folder):
    configure(folder, text_config={"quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(FormatError, match="gptq"):
        load_model(str(folder))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_packed_weights_are_refused_though_nothing_declares_them(folder, dtype):
    name = "model.layers.0.mlp.gate_proj.weight"
    rewrite(folder, lambda weights: weights | {name: weights[name].to(dtype)})
    with pytest.raises(FormatError, match=rf"is quantised \(model.safetensors: {name} is"):
        load_model(str(folder))


def test_a_configuration_without_quantisation_may_say_so(folder):
    configure(folder, quantization_config=None)
    assert torch.equal(load_model(str(folder)).logits(TOKENS), tiny_model("llama").logits(TOKENS))


def test_tensors_without_a_place_are_an_error(folder):
    rewrite(folder, lambda w: w | {"model.layers.0.mlp.gate_proj.weight_scale": torch.tensor(0.01)})
    with pytest.raises(
        FormatError, match=r"hold 1 tensors .*first: model.layers.0.mlp.gate_proj.weight_scale"
    ):
        load_model(str(folder))


def test_a_configuration_with_fewer_layers_than_the_weights_is_an_error(folder):
    configure(folder, num_hidden_layers=1)
    with pytest.raises(FormatError, match=r"no place for \(first: model.layers.1"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("family", "spare"),
    [
        ("gpt2", {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8)}),
        ("gpt2", {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}),
        ("gpt_neox", {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(2)}),
        ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}),
    ],
)
def test_buffers_of_older_files_may_be_left_out(family, spare, tmp_path):
    folder = save_tiny_model(family, tmp_path)
    rewrite(folder, lambda weights: weights | spare)
    assert torch.equal(load_model(str(folder)).logits(TOKENS), tiny_model(family).logits(TOKENS))


def lora(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "r": 2,
                "lora_alpha": 4,
                "target_modules": ["q_proj"],
                "base_model_name_or_path": "some/other-model",
            }
        )
    )
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {f"{layer}.lora_A.weight": torch.ones(2, 16), f"{layer}.lora_B.weight": torch.ones(16, 2)},
        folder / "adapter_model.safetensors",
    )


def test_an_adapter_beside_the_weights_is_ignored_aloud_and_part_of_the_revision(folder, caplog):
    before = load_model(str(folder)).spec.revision
    lora(folder)
    with caplog.at_level(logging.WARNING, logger="polysem"):
        model = load_model(str(folder))
    assert torch.equal(model.logits(TOKENS), tiny_model("llama").logits(TOKENS))
    assert "adapter_config.json); it is ignored" in caplog.text
    assert model.spec.revision != before


def test_transformers_is_never_shown_the_adapter(folder, monkeypatch):
    """With `peft` installed it would take it, or the model that it names."""
    lora(folder)
    seen = []
    from polysem.models import load

    reading = load._read_weights
    monkeypatch.setattr(
        load,
        "_read_weights",
        lambda place, *a, **k: seen.append({p.name for p in place.iterdir()}) or reading(place, *a, **k),
    )
    load_model(str(folder))
    assert not any(name.startswith("adapter") for name in seen[0])
    assert {"config.json", "model.safetensors"} <= seen[0]


def test_an_adapter_alone_is_named(tmp_path):
    lora(tmp_path)
    with pytest.raises(FormatError, match="is a PEFT adapter of some/other-model, and no model"):
        load_model(str(tmp_path))


def test_code_that_is_not_run_is_named(folder, caplog):
    configure(folder, auto_map={"AutoModelForCausalLM": "modeling_other.OtherForCausalLM"})
    with caplog.at_level(logging.WARNING, logger="polysem"):
        load_model(str(folder))
    assert "modeling_other.OtherForCausalLM), which is never run" in caplog.text


def test_another_head_is_named_and_ignored(tmp_path, caplog):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    with quiet_transformers():
        LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="polysem"):
        load_model(str(tmp_path))
    assert "was saved as LlamaForSequenceClassification" in caplog.text
    assert "head of another task is ignored: score.weight" in caplog.text


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory) -> tuple[Path, torch.Tensor]:
    """A tiny Gemma 3 with a vision tower, and its logits."""
    folder = tmp_path_factory.mktemp("gemma3")
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    torch.manual_seed(0)
    with quiet_transformers():
        model = Gemma3ForConditionalGeneration(
            Gemma3Config(text_config=TEXT, vision_config=vision, mm_tokens_per_image=4)
        ).eval()
        model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    with torch.no_grad():
        return folder, model(input_ids=TOKENS).logits


@pytest.mark.parametrize("naming", ["of transformers 4", "of transformers 5", "with a head of its own"])
def test_of_a_multimodal_gemma_3_the_text_model_is_loaded(multimodal, naming, tmp_path, caplog):
    folder, logits = multimodal
    folder = Path(shutil.copytree(folder, tmp_path / "it"))

    own = load_file(folder / "model.safetensors")
    inner = {
        name: name.removeprefix("model.").replace("language_model.model.", "language_model.") for name in own
    }
    new = {name: f"model.{short}" for name, short in inner.items()}
    old = {
        name: short.replace("language_model.", "language_model.model.", 1) for name, short in inner.items()
    }
    spelt = new if naming == "of transformers 5" else old
    rewrite(folder, lambda weights: {spelt[name]: tensor for name, tensor in weights.items()})
    if naming == "with a head of its own":
        key = next(name for name in spelt.values() if name.endswith("embed_tokens.weight"))
        rewrite(folder, lambda weights: weights | {"language_model.lm_head.weight": weights[key].clone()})
    with caplog.at_level(logging.WARNING, logger="polysem"):
        model = load_model(str(folder), device="cpu")
    assert model.spec.family == "gemma3_text"
    assert torch.equal(model.logits(TOKENS), logits)
    assert "its text model alone is loaded" in caplog.text
    assert load_outline(str(folder)).sites() == model.sites()


def test_another_multimodal_model_is_refused_by_its_family(folder):
    configure(folder, model_type="paligemma", text_config={"model_type": "gemma2"})
    with pytest.raises(UnknownReferenceError, match="is a 'paligemma' model"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8-sig", "begins with a byte-order mark"),
        ("utf-16", "is text in UTF-16-LE"),
        ("utf-16-be", "UTF-16-BE"),
    ],
)
def test_text_of_another_kind_is_named_and_the_command_mends_it(folder, name, encoding, said):
    text = (folder / name).read_text(encoding="utf-8")
    (folder / name).write_bytes(text.encode(encoding))
    with pytest.raises(FormatError, match=said) as caught:
        load_outline(str(folder))
    subprocess.run(str(caught.value.hint), shell=True, check=True, cwd=folder)
    assert (folder / name).read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_that_points_nowhere_is_named(folder, name):
    (folder / name).unlink()
    (folder / name).symlink_to("../../blobs/0123abc")
    with pytest.raises(
        FormatError, match=rf"{name} is a link to \.\./\.\./blobs/0123abc, which is not there"
    ):
        load_model(str(folder))
