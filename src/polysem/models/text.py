"""Text to token ids with tokenizers of `transformers`: text that spells a special token stays text, and a chat template is
tokenized whole.

Some tokenizers have their special tokens among the pieces of their model (Unigram), so that asking for them to be split
does not help: what is then found amid a text is spelt with other pieces. A template is not put together from parts:
tokenizers with a prefix space, and byte-pair merges over the edges, would give other tokens than the model was trained on.
"""

from typing import Any, NamedTuple

from polysem.errors import ConfigError, MismatchError
from polysem.models.base import WhiteBoxModel
from polysem.positions import Tokenized

_MESSAGE = "polysem"
"""a message that no chat template holds by itself"""


class Encoded(NamedTuple):
    """The tokens of a text."""

    ids: list[int]
    spans: list[tuple[int, int]]
    """of each token the characters [start, stop) of the text; empty if they were not asked for"""


def control_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that no text may become: special tokens, but for the one that stands for what is unknown."""
    flagged = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    begins_or_ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    unknown = {tokenizer.unk_token_id} - begins_or_ends
    return frozenset(flagged | set(tokenizer.all_special_ids)) - unknown - {None}


def encode_text(tokenizer: Any, text: str, *, control: frozenset[int], spans: bool = False) -> Encoded:
    """The tokens of a text without any special token.

    Raises:
        MismatchError: if spans are asked of a tokenizer that cannot say where its tokens lie.
    """
    if spans and not tokenizer.is_fast:
        raise MismatchError(
            "this tokenizer cannot say where its tokens lie in a text",
            hint="use a model with a tokenizer.json (a fast tokenizer)",
        )
    ids, places = _call(tokenizer, text, split=True, spans=spans)
    if control.isdisjoint(ids):
        return Encoded(ids, places)
    spelt = Encoded([], [])
    for n, token in enumerate(ids):
        pieces = _spelt(tokenizer, token, control) if token in control else [(token, 0)]
        spelt.ids.extend(piece for piece, _ in pieces)
        if spans:
            start, stop = places[n]
            ends = [*(min(stop, start + at) for _, at in pieces[1:]), stop]
            spelt.spans.extend(zip([start, *ends], ends, strict=False))
    return spelt


def _call(tokenizer: Any, text: str, *, split: bool, spans: bool) -> tuple[list[int], list[tuple[int, int]]]:
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=split,
        return_attention_mask=False,
        return_offsets_mapping=spans,
        verbose=False,  # texts longer than the context are cut by the caller, not a matter for a warning
    )
    return list(encoded["input_ids"]), list(encoded["offset_mapping"]) if spans else []


def _spelt(tokenizer: Any, token: int, control: frozenset[int]) -> list[tuple[int, int]]:
    """(id, first character) of the pieces that spell a special token without any special token."""
    text = tokenizer.convert_ids_to_tokens(token)
    whole = _pieces(tokenizer, text[:1], 0) + _pieces(tokenizer, text[1:], 1)
    if not control.isdisjoint(piece for piece, _ in whole):
        whole = [piece for at, letter in enumerate(text) for piece in _pieces(tokenizer, letter, at)]
    # a letter that is itself special has no other spelling
    return [piece for piece in whole if piece[0] not in control] or [(tokenizer.unk_token_id or 0, 0)]


def _pieces(tokenizer: Any, text: str, at: int) -> list[tuple[int, int]]:
    """(id, first character + `at`) by the tokenizer's model alone, below its normalizer: no space is put in front."""
    if not text:
        return []
    if tokenizer.is_fast:
        return [
            (piece.id, at + piece.offsets[0]) for piece in tokenizer.backend_tokenizer.model.tokenize(text)
        ]
    return [(tokenizer.convert_tokens_to_ids(letter), at + n) for n, letter in enumerate(text)]


class ChatRow(NamedTuple):
    """A user's message in a chat template, up to where the answer begins."""

    ids: list[int]
    """as the template and the tokenizer make them; a BOS only where the template writes one"""
    span: tuple[int, int]
    """tokens [start, stop) that hold the message"""


def chat_row(model: WhiteBoxModel, text: str) -> ChatRow:
    """A message in the model's chat template, tokenized whole; the message lies where its characters do.

    Raises:
        ConfigError: if the model's tokenizer has no chat template, or one that does not show the message once and as it
            is.
        MismatchError: if the tokenizer cannot say where its tokens lie.
    """
    tokenizer = _with_template(model)
    head, tail = _around(model, tokenizer)
    whole = _rendered(tokenizer, text)
    stop = len(whole) - len(tail)
    if not (whole.startswith(head) and whole.endswith(tail) and len(head) < stop):
        raise ConfigError(
            f"the chat template of {model.spec.ref} does not show the message {text[:40]!r} as it shows others",
            hint="set prompts.chat_template = false",
        )
    if not tokenizer.is_fast:
        raise MismatchError(
            f"the tokenizer of {model.spec.ref} cannot say where its tokens lie in a text",
            hint="use a model with a tokenizer.json (a fast tokenizer), or set prompts.chat_template = false",
        )
    ids, places = _call(tokenizer, whole, split=False, spans=True)
    first, last = _inside(places, len(head), stop)
    control = control_ids(tokenizer)
    if control.isdisjoint(ids[first:last]):
        return ChatRow(ids, (first, last))
    # The message spells a special token. The template's own are kept, and the message is text.
    plain = encode_text(tokenizer, whole, control=control, spans=True)
    begin, end = _inside(plain.spans, len(head), stop)
    return ChatRow([*ids[:first], *plain.ids[begin:end], *ids[last:]], (first, first + end - begin))


def _with_template(model: WhiteBoxModel) -> Any:
    tokenizer = model.tokenizer if isinstance(model, Tokenized) else None
    if tokenizer is None or not tokenizer.chat_template:
        raise ConfigError(
            f"the tokenizer of {model.spec.ref} has no chat template",
            hint="set prompts.chat_template = false, or name an instruction-tuned model",
        )
    return tokenizer


def _rendered(tokenizer: Any, text: str) -> str:
    message = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))


def _around(model: WhiteBoxModel, tokenizer: Any) -> tuple[str, str]:
    """What the template writes before and after a message."""
    parts = _rendered(tokenizer, _MESSAGE).split(_MESSAGE)
    if len(parts) != 2:
        raise ConfigError(
            f"the chat template of {model.spec.ref} shows a message {len(parts) - 1} times; expected once",
            hint="set prompts.chat_template = false",
        )
    return parts[0], parts[1]


def _inside(places: list[tuple[int, int]], start: int, stop: int) -> tuple[int, int]:
    """Tokens [first, last) that hold a character of [start, stop)."""
    held = [n for n, (a, b) in enumerate(places) if b > start and a < stop and b > a]
    return (held[0], held[-1] + 1) if held else (0, 0)
