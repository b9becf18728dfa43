"""How a server spells tokens, told from those that it grants; and their texts.

    plain       " red"             llama.cpp, vLLM, OpenAI
    byte_level  "Ġred"             the vocabulary's own spelling of byte-level tokenizers (GPT-2's table of bytes)
    metaspace   "▁red"             ... of SentencePiece
    ids         "token_id:2217"    vLLM with --return-tokens-as-token-ids; a tokenizer is needed to read them
    stripped    "red"              the space is gone: whether a token begins a word is not told

The first three are turned into texts, the fourth where the study names the target's tokenizer; of the last nothing can
be read out of a completion, and that is said before the study is asked.
"""

import re
from collections.abc import Callable, Iterable
from functools import cache

from polysem.errors import ConfigError

SPELLINGS = ("plain", "byte_level", "metaspace", "ids", "stripped")
_ID = re.compile(r"token_id:([0-9]+)")
SHARE = 0.05
"""share of the granted tokens that must carry a mark of a spelling"""


def spelling_of(tokens: Iterable[str], *, word_start: bool) -> str:
    """The spelling of a server's tokens, of SPELLINGS.

    Args:
        tokens: as granted, of several answers.
        word_start: whether tokens that begin a word are among them, so that some must begin with a space.
    """
    found = [t for t in tokens if t]
    n = max(len(found), 1)
    if sum(_ID.fullmatch(t) is not None for t in found) > n / 2:
        return "ids"
    if any(t[0] == " " for t in found):
        return "plain"
    for name, mark in (("byte_level", "Ġ"), ("metaspace", "▁")):
        if sum(t[0] == mark for t in found) >= SHARE * n:
            return name
    words = sum(t.isalpha() for t in found)
    return "stripped" if word_start and words > n / 2 else "plain"


def reader_of_tokens(spelling: str, *, by_id: Callable[[int], str] | None, who: str) -> Callable[[str], str]:
    """What turns a token as it is spelled into its text.

    Args:
        by_id: the text of a token by its id; None where no tokenizer is known.
        who: names the target in errors.

    Raises:
        ConfigError: a spelling from which no text can be had.
    """
    match spelling:
        case "byte_level":
            return _from_byte_level
        case "metaspace":
            return lambda token: token.replace("▁", " ")
        case "ids" if by_id is not None:
            known = by_id

            def text(token: str) -> str:
                found = _ID.fullmatch(token)
                return known(int(found.group(1))) if found else token

            return text
        case "ids":
            raise ConfigError(
                f"{who}: tokens are spelled by number (token_id:N), which says nothing of their text",
                hint="name the model's tokenizer with target.tokenizer, or serve without --return-tokens-as-token-ids",
            )
        case "stripped":
            raise ConfigError(
                f"{who}: none of the granted tokens begins with a space: the server strips them, and whether a token begins "
                "a word cannot be told",
                hint="use kind = 'chat', where answers begin without one, or a server that keeps it",
            )
        case _:
            return str


@cache
def _bytes_of() -> dict[str, int]:
    """Character -> byte of GPT-2's table: printable bytes stand for themselves, the others for characters above 255."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in set(shown)]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}


def _from_byte_level(token: str) -> str:
    table = _bytes_of()
    if not all(c in table for c in token):
        return token  # a special token, which is not spelled in bytes
    raw = bytes(table[c] for c in token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"bytes:{raw.hex()}"
