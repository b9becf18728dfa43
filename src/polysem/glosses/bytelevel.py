"""Token strings as text. Many dashboards print byte-level tokens in GPT-2's alphabet of bytes: "âĢ", "Ļ" for
the two halves of "’".

Some mix that alphabet with characters that are text already, so only what spells a whole UTF-8 character in
the alphabet is decoded; a real "café" is left alone, because "é" is not followed by the letters that its
byte would need.
"""

import re
from functools import lru_cache

from polysem.glosses.wording import UNREADABLE

_HEX = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_LETTERS = "łŁı"
"""characters of the alphabet's upper half that are common letters: alone they are taken as letters"""


@lru_cache(maxsize=1)
def byte_of() -> dict[str, int]:
    """GPT-2's alphabet: the byte that each of 256 characters stands for.

    Source: `bytes_to_unicode` of openai/gpt-2, src/encoder.py: printable Latin-1 bytes stand for themselves,
        the others follow from U+0100.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(rest)}


@lru_cache(maxsize=1)
def _character() -> re.Pattern[str]:
    """One whole character beyond ASCII, spelled in the alphabet."""
    name = {b: re.escape(c) for c, b in byte_of().items()}
    follow = "[" + "".join(name[b] for b in range(0x80, 0xC0)) + "]"

    def lead(start: int, stop: int) -> str:
        return "[" + "".join(name[b] for b in range(start, stop)) + "]"

    return re.compile(
        f"{lead(0xC2, 0xE0)}{follow}|{lead(0xE0, 0xF0)}{follow}{{2}}|{lead(0xF0, 0xF5)}{follow}{{3}}"
    )


def _decode(spelled: str) -> str | None:
    try:
        return bytes(byte_of()[c] for c in spelled).decode("utf-8")
    except UnicodeDecodeError:  # an overlong form or a surrogate: not a character after all
        return None


def _hexadecimal(token: str) -> str:
    """A byte token of SentencePiece (`<0x0A>`) as the character or the letter of the alphabet that stands for it."""
    if not _HEX.fullmatch(token):
        return token
    byte = int(token[3:5], 16)
    return chr(byte) if byte < 0x80 else next(letter for letter, b in byte_of().items() if b == byte)


def text_of(token: str) -> str:
    """One token as text: spelled bytes decoded, U+FFFD for a part of a character, "▁" as a space."""
    token = _hexadecimal(token)
    if token.isascii():
        return token
    token = _spaces([token])[0]
    whole = _character().sub(lambda m: _decode(m[0]) or m[0], token)
    if whole != token:
        return whole
    in_alphabet = all(c in byte_of() for c in token)
    upper = [c for c in token if 0x80 <= byte_of().get(c, 0) < 0xA1 and c not in _LETTERS]
    return UNREADABLE if in_alphabet and upper else token


def mend(tokens: list[str]) -> list[str]:
    """The tokens of one text, readable: a character spread over several tokens stands in the first, the
    others lose their part of it.

    Returns as many tokens as were given.
    """
    tokens = [_hexadecimal(token) for token in tokens]
    joined = "".join(tokens)
    if joined.isascii():
        return tokens
    spaced = _spaces(tokens)
    joined = "".join(spaced)
    owner = [number for number, token in enumerate(spaced) for _ in token]
    parts = [""] * len(spaced)
    position = 0
    for match in _character().finditer(joined):
        decoded = _decode(match[0])
        if decoded is None:
            continue
        for at in range(position, match.start()):
            parts[owner[at]] += joined[at]
        parts[owner[match.start()]] += decoded
        position = match.end()
    for at in range(position, len(joined)):
        parts[owner[at]] += joined[at]
    return parts


def _spaces(tokens: list[str]) -> list[str]:
    """Tokens with tokenizers' signs for white space replaced by it, where the text has no space "
    "of its own."""
    if any(" " in token for token in tokens):
        return tokens
    return [t.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n") for t in tokens]
