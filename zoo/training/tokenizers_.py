"""The zoo's two tokenizers: a byte-level BPE shared by the source models, a Unigram with byte fallback for
the target."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 4096


def byte_bpe(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """GPT-2 style: byte-level BPE, one special token, no BOS added by itself."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tok.train_from_iterator(texts, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=end, eos_token=end, unk_token=end)


def unigram(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Llama style: metaspace pieces, bytes as fallback, `<s>` put in front of every text."""
    byte_pieces = [f"<0x{b:02X}>" for b in range(256)]
    tok = Tokenizer(models.Unigram())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCAB_SIZE - len(byte_pieces), special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>"
    )
    tok.train_from_iterator(texts, trainer)
    learned = sorted(tok.get_vocab().items(), key=lambda item: item[1])
    scores = _scores(tok)
    floor = min(scores.values()) - 10.0  # a byte is taken only where no piece fits
    specials, pieces = learned[:3], learned[3:]
    vocab = [(piece, 0.0) for piece, _ in specials]
    vocab += [(piece, floor) for piece in byte_pieces]
    vocab += [(piece, scores[piece]) for piece, _ in pieces]
    tok.model = models.Unigram(vocab, unk_id=0, byte_fallback=True)
    tok.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tok.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _scores(tok: Tokenizer) -> dict[str, float]:
    import json

    return dict(json.loads(tok.to_str())["model"]["vocab"])


BUILDERS = {"byte_bpe": byte_bpe, "unigram": unigram}


def load_or_train(kind: str, texts: Iterable[str], folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").exists():
        BUILDERS[kind](texts).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)
