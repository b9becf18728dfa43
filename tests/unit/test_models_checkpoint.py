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

from polysem.errors import FormatError, MismatchError, UnknownReferenceError
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
        ("gpt_neox", {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.tensor([1.0])}),
        ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.tensor([1.0, 0.01]).bfloat16()}),
    ],
)
def test_buffers_of_older_files_may_be_left_out(family, spare, tmp_path):
    folder = save_tiny_model(family, tmp_path)
    rewrite(folder, lambda weights: weights | spare)
    assert torch.equal(load_model(str(folder)).logits(TOKENS), tiny_model(family).logits(TOKENS))


def test_rotary_frequencies_of_another_base_are_an_error(folder):
    # the file's own are made anew of config.json, and transformers says nothing
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda weights: weights | {name: torch.tensor([1.0, 500_000**-0.5])})
    with pytest.raises(FormatError, match=rf"{name} .*other rotary frequencies"):
        load_model(str(folder))


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


@pytest.mark.parametrize("left", ["adapter_config.json", "adapter_model.safetensors"])
def test_half_an_adapter_is_said_too(folder, caplog, left):
    lora(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if name != left:
            (folder / name).unlink()
    model = load_model(str(folder))
    assert "a PEFT adapter lies beside the weights" in caplog.text
    assert torch.equal(model.logits(TOKENS), tiny_model("llama").logits(TOKENS))


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


def split(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """Take the weights apart: the whole, and two parts by file."""
    whole = load_file(folder / "model.safetensors")
    names = sorted(whole)
    return whole, {
        f"model-0000{n + 1}-of-00002.safetensors": {name: whole[name] for name in names[n::2]} for n in (0, 1)
    }


def write_parts(folder: Path, parts: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    for file, tensors in parts.items():
        (folder / file).parent.mkdir(exist_ok=True)
        save_file(
            {name: tensor.clone() for name, tensor in tensors.items()},
            folder / file,
            metadata={"format": "pt"},
        )
    places = {name: file for file, tensors in parts.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_a_tensor_in_two_parts_is_an_error(folder):
    whole, parts = split(folder)
    first, second = parts.values()
    name = next(iter(first))
    second[name] = 2 * whole[name]
    write_parts(folder, parts)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FormatError, match=rf"the tensor {name} is in model-00001.* and in model-00002"):
        load_model(str(folder))


def test_a_list_of_parts_without_metadata_is_named_and_the_hint_works(folder):
    _, parts = split(folder)
    write_parts(folder, parts)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": whole["weight_map"]}))
    with pytest.raises(FormatError, match="it has no metadata") as caught:
        load_model(str(folder))
    assert 'add "metadata": {} to' in str(caught.value.hint)
    index.write_text(json.dumps(whole))
    assert torch.equal(load_model(str(folder)).logits(TOKENS), tiny_model("llama").logits(TOKENS))


def test_weights_written_over_change_no_logit(folder):
    model = load_model(str(folder))
    before = model.logits(TOKENS)
    file = folder / "model.safetensors"
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        stream.write(b"\0" * (file.stat().st_size // 2))
    assert torch.equal(model.logits(TOKENS), before)
    with file.open("r+b") as stream:
        stream.truncate(10)
    assert torch.equal(model.logits(TOKENS), before), "a mapped file would end the process here"


@pytest.mark.parametrize("kept", ["parts", "whole"])
def test_two_sets_of_weights_are_an_error_and_either_alone_loads(folder, kept):
    whole, parts = split(folder)
    write_parts(folder, parts)
    save_file(
        {name: 2 * tensor for name, tensor in whole.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(FormatError, match="holds two sets of weights") as caught:
        load_model(str(folder))
    choice = str(caught.value.hint).partition("keep one of them: ")[2].split(", or ")
    subprocess.run(choice[kept == "parts"], shell=True, check=True)
    same = torch.equal(load_model(str(folder)).logits(TOKENS), tiny_model("llama").logits(TOKENS))
    assert same == (kept == "parts")


def test_parts_in_a_folder_below_are_those_that_are_hashed(folder):
    _, parts = split(folder)
    first, second = parts
    write_parts(folder, {first: parts[first], f"more/{second}": parts[second]})
    (folder / "model.safetensors").unlink()
    before = load_model(str(folder))
    assert torch.equal(before.logits(TOKENS), tiny_model("llama").logits(TOKENS))
    write_parts(
        folder, {f"more/{second}": {name: 2 * t for name, t in parts[second].items()}, first: parts[first]}
    )
    assert load_model(str(folder)).spec.revision != before.spec.revision


def test_weights_of_another_name_are_not_read_in_place_of_the_models(folder):
    rewritten = {name: 2 * tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(rewritten, folder / "other.safetensors", metadata={"format": "pt"})
    configure(folder, transformers_weights="other.safetensors")
    with pytest.raises(FormatError, match=r"transformers_weights is 'other\.safetensors'"):
        load_model(str(folder))
    (folder / "other.safetensors").replace(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "transformers_weights"})
    )
    assert not torch.equal(load_model(str(folder)).logits(TOKENS), tiny_model("llama").logits(TOKENS))


def test_sizes_inside_a_multimodal_configuration_are_bounded(folder):
    configure(folder, model_type="gemma3", text_config={**TEXT, "num_hidden_layers": 10**9})
    for read in (load_model, load_outline):
        with pytest.raises(FormatError, match="num_hidden_layers is 1000000000"):
            read(str(folder))


def test_a_tokenizer_of_its_own_code_is_said(folder, caplog):
    file = folder / "tokenizer_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": ["own.Own", None]}})
    )
    load_model(str(folder))
    assert "a tokenizer of its own code (auto_map:" in caplog.text


def without(*names: str):
    return lambda folder: rewrite(folder, lambda w: {k: t for k, t in w.items() if k not in names})


def renamed(old: str, new: str):
    return lambda folder: rewrite(folder, lambda w: {k.replace(old, new): t for k, t in w.items()})


def beside(name: str, *shape: int):
    return lambda folder: rewrite(folder, lambda w: w | {name: torch.ones(*shape)})


def cut(n: int):
    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:n])

    return change


WRONG: Mapping[str, tuple[Any, str]] = {
    "no lm_head, not tied": (without("lm_head.weight"), "lack 1 tensors .*lm_head.weight"),
    "a bias unknown to the configuration": (beside("model.layers.0.self_attn.q_proj.bias", 16), "no place for .*q_proj.bias"),
    "a bias that is not there": (lambda f: configure(f, attention_bias=True), "lack .* tensors .*bias"),
    "an adapter among the weights": (beside("model.layers.0.self_attn.q_proj.lora_A.weight", 2, 16), "no place for .*lora_A"),
    "weights below an adapter": (renamed("q_proj.weight", "q_proj.base_layer.weight"), "lack .*q_proj.weight"),
    "weights of a compiled model": (renamed("model.", "_orig_mod.model."), "lack .*model"),
    "more layers": (lambda f: configure(f, num_hidden_layers=3), "lack .*layers.2"),
    "heads of another number": (lambda f: configure(f, num_key_value_heads=4), "of another shape"),
    "a smaller vocabulary": (lambda f: configure(f, vocab_size=60), "of another shape|tokens"),
    "a family of other tensors": (lambda f: configure(f, model_type="qwen2"), "lack .*bias"),
    "no tensors in the list": (
        lambda f: ((f / "model.safetensors").unlink(), write_parts(f, {})), "no weight_map with names",
    ),
    "a list that is no object": (
        lambda f: (write_parts(f, {}), (f / "model.safetensors").unlink(), (f / "model.safetensors.index.json").write_text("[]")),
        "expected a JSON object",
    ),
    "a header cut": (cut(100), "model.safetensors"),
    "nothing but a length": (cut(4), "model.safetensors"),
    "a pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a\n"), "git-LFS",
    ),
    "a list as configuration": (lambda f: (f / "config.json").write_text("[1]"), "expected a JSON object"),
    "layers in words": (lambda f: configure(f, num_hidden_layers="2"), "num_hidden_layers is"),
    "no heads": (lambda f: configure(f, num_attention_heads=0), "num_attention_heads is 0"),
    "positions without end": (lambda f: configure(f, max_position_embeddings=10**12), "max_position_embeddings is"),
    "an unknown activation": (lambda f: configure(f, hidden_act="nonsense"), "nonsense"),
    "an unknown scaling": (lambda f: configure(f, rope_scaling={"rope_type": "nonsense", "factor": 2.0}), "nonsense"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_weights_and_configuration_that_do_not_fit_are_named(folder, what):
    change, said = WRONG[what]
    change(folder)
    with pytest.raises((FormatError, UnknownReferenceError, MismatchError), match=f"(?s){said}"):
        load_model(str(folder))


MORE_QUANTISATIONS: Mapping[str, dict[str, Any]] = {
    name: {"quant_method": name}
    for name in (
        "hqq", "torchao", "mxfp4", "quanto", "eetq", "aqlm", "vptq", "higgs", "bitnet", "auto-round", "fbgemm_fp8", "spqr",
    )
}  # fmt: skip


@pytest.mark.parametrize("method", MORE_QUANTISATIONS)
@pytest.mark.parametrize("key", ["quantization_config", "compression_config", "quantization"])
def test_every_other_quantisation_is_refused_by_name(folder, method, key):
    configure(folder, **{key: MORE_QUANTISATIONS[method]})
    with pytest.raises(FormatError, match=rf"is quantised \(config.json: {key} {method}"):
        load_outline(str(folder))
