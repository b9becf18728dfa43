"""The tokenizer of a model of which no weights are here: counts, texts, and whether it puts BOS in front by itself."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from polysem.boundary.door import Door, telling
from polysem.errors import UnknownReferenceError
from polysem.registry import zoo_path
from polysem.targets.spelling import reader_of_tokens, spelling_of

_DOOR = Door(
    "tokenizer",
    "leave targets.tokenizer out: pools are then matched on tokens of the first source",
    UnknownReferenceError,
)


def puts_bos(tokenizer: Any) -> bool | None:
    """Whether a tokenizer of transformers puts its BOS in front of a text by itself; None if it has none."""
    if tokenizer.bos_token_id is None:
        return None
    return list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]


@dataclass(frozen=True)
class KnownTokenizer:
    """A tokenizer of transformers."""

    ref: str
    inner: Any

    def count(self, text: str) -> int:
        """Tokens of a text, without any that are put in front."""
        return len(self.inner(text, add_special_tokens=False)["input_ids"])

    def text(self, token_id: int) -> str:
        """The text of a token; "" for an id that it has not."""
        return self.vocabulary[token_id] if 0 <= token_id < len(self.vocabulary) else ""

    @property
    def bos(self) -> bool | None:
        """Whether it puts BOS in front by itself; None if it has no BOS."""
        return puts_bos(self.inner)

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The text of every token, by id."""
        pieces = [p or "" for p in self.inner.convert_ids_to_tokens(range(len(self.inner)))]
        spelling = spelling_of(pieces, word_start=False)
        # a byte-level vocabulary has pieces that begin with "Ġ", and none with a space
        read = reader_of_tokens(spelling, by_id=None, who=self.ref)
        return tuple(map(read, pieces))


def known_tokenizer(ref: str) -> KnownTokenizer:
    """The tokenizer of a Hub id, a folder, zoo:NAME, or a GGUF file (gguf:PATH, package:NAME).

    Raises:
        UnknownReferenceError: no such tokenizer.
    """
    from transformers import AutoTokenizer

    from polysem.models.gguf import gguf_folder, is_gguf

    if ref.startswith("zoo:"):
        place = str(zoo_path("models", ref.removeprefix("zoo:")))
    else:
        place = str(gguf_folder(ref)) if is_gguf(ref) else ref
    with telling(_DOOR, ref, doing="is no tokenizer that can be read"):
        return KnownTokenizer(ref, AutoTokenizer.from_pretrained(place, trust_remote_code=False))
