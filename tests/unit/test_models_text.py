"""Text to ids and back, for the kinds of tokenizer that models come with."""

import shutil

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from polysem.errors import MismatchError
from polysem.models import load_model
from polysem.models.hf import HFModel
from polysem.worlds.tiny import tiny_model
from support.tiny import save_tiny_model


def with_tokenizer(backend: Tokenizer, **special: str) -> HFModel:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    return HFModel.from_parts(tiny_model("llama", vocab=512).model, tokenizer)


def byte_level() -> HFModel:
    """GPT-2's and Pythia's kind."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["<|endoftext|>", *alphabet, "Ġt", "he", "Ġthe"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "t"), ("h", "e"), ("Ġt", "he")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return with_tokenizer(backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def sentencepiece() -> HFModel:
    """Llama's and Gemma's kind: U+2581 for a space, bytes as <0xHH>."""
    pieces = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "t", "h", "e", "▁t", "he", "▁the"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    model = models.BPE(
        vocab={p: i for i, p in enumerate(pieces)}, merges=merges, unk_token="<unk>", byte_fallback=True
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return with_tokenizer(backend, bos_token="<s>", unk_token="<unk>")


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_bos_is_put_in_front_once_and_only_if_asked(make):
    model = make()
    plain = model.tokenize("the the", prepend_bos=False)
    assert model.bos_id not in plain
    assert model.tokenize("the the", prepend_bos=True) == [model.bos_id, *plain]
    assert model.detokenize(plain) == "the the"


def test_a_tokenizer_that_adds_bos_itself_does_not_add_a_second(shared):
    model = load_model(str(shared / "data" / "stories260k" / "hf"))
    assert model.tokenize("Once", prepend_bos=True).count(model.bos_id) == 1
    assert model.tokenize("Once", prepend_bos=False).count(model.bos_id) == 0


@pytest.mark.parametrize(("make", "written"), [(byte_level, "<|endoftext|>"), (sentencepiece, "<s>")])
def test_special_tokens_written_in_a_text_are_ordinary_characters(make, written):
    model = make()
    ids = model.tokenize(f"the {written} the", prepend_bos=False)
    assert model.bos_id not in ids
    assert model.detokenize(ids) == f"the {written} the"


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_token_strings_keep_spaces_and_mark_broken_bytes(make):
    model = make()
    ids = model.tokenize("the the é", prepend_bos=True)
    strings = model.token_strings(ids)
    assert strings[0] in ("<s>", "<|endoftext|>")
    assert " the" in strings
    assert strings[-2:] == ["\ufffd", "\ufffd"]  # the two bytes of é, each alone
    assert model.detokenize(ids).endswith("the the é")


SMALL_TEXT = "Hello world,  the <|endoftext|> é☃ new"
REAL = {
    "gpt2": (
        "tokenizer-gpt2/tokenizer.json",
        50_257,
        [50256, 15496, 995, 11, 220, 262, 1279, 91, 437, 1659, 5239, 91, 29, 38251, 24583, 225, 649],
    ),
    "gpt_neox": (
        "tokenizer-neox/20B_tokenizer.json",
        50_304,  # Pythia pads 50,277 tokens
        [0, 12092, 1533, 13, 50276, 783, 654, 93, 423, 1171, 1156, 49651, 3974, 31600, 214, 747],
    ),
}


@pytest.mark.parametrize("family", REAL)
def test_the_tokenizers_of_gpt2_and_pythia(family, shared, tmp_path):
    """As these repositories are: tokenizer.json leaves the special tokens to the class of the family."""
    file, vocab, expected = REAL[family]
    folder = save_tiny_model(family, tmp_path, vocab=vocab, d_model=8, n_layers=1)
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    shutil.copyfile(shared / "data" / file, folder / "tokenizer.json")
    model = load_model(str(folder))
    ids = model.tokenize(SMALL_TEXT, prepend_bos=True)
    assert ids == expected
    assert model.detokenize(ids) == "<|endoftext|>" + SMALL_TEXT
    strings = model.token_strings(ids)
    assert strings[:4] == ["<|endoftext|>", "Hello", " world", ","]
    assert strings[-3:] == ["\ufffd", "\ufffd", " new"]


def test_ids_without_a_token_are_empty_strings():
    assert byte_level().token_strings([400]) == [""]  # the vocabulary of the model is padded to 512


def test_without_a_bos_token_asking_for_one_is_an_error():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    model = with_tokenizer(backend, unk_token="<unk>")
    assert model.bos_id is None
    assert model.tokenize("the what", prepend_bos=False) == [1, 0]
    assert model.token_strings([1, 0]) == ["the", "<unk>"]
    with pytest.raises(MismatchError, match="no BOS"):
        model.tokenize("the", prepend_bos=True)


def test_tiny_models_read_any_text_and_give_it_back():
    model = tiny_model("gpt2")
    text = 'the man said: "it was - for all\ni know" - the king\'s sea, not ours!'
    ids = model.tokenize(text, prepend_bos=False)
    assert model.detokenize(ids) == text
    assert "".join(model.token_strings(ids)) == text
    assert len(ids) < len(text)
    assert max(model.tokenize("Ünïcode 123 & more", prepend_bos=False)) < 64


@pytest.mark.parametrize("vocab", [48, 64, 100, 200])
def test_tiny_tokenizers_fit_their_models(vocab):
    model = tiny_model("qwen3", vocab=vocab)
    assert model.spec.d_vocab == vocab
    assert max(model.tokenizer.get_vocab().values()) < vocab


def test_tiny_weights_depend_on_the_seed_only_and_give_peaked_logits():
    tokens = torch.randint(0, 64, (4, 12), generator=torch.Generator().manual_seed(0))
    first = tiny_model("llama").logits(tokens)
    torch.manual_seed(123)
    assert torch.equal(tiny_model("llama").logits(tokens), first)
    assert not torch.equal(tiny_model("llama", seed=1).logits(tokens), first)
    assert first.softmax(-1).amax(-1).mean() > 0.15  # flat would be 1/64
