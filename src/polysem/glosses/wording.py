"""How glosses made from tokens are worded: for a person to read and for a sentence embedder to place.

Words come first and quoted, most active first; one snippet of text follows, because many words mean little
alone. Marks and white space, which embedders drop, are named in words.
"""

import re
from collections.abc import Iterable, Sequence

MAX_WORDS = 6
_NAMES = {
    "\n": "line break",
    "\n\n": "paragraph break",
    "\t": "tab",
    " ": "space",
    "": "space",
    ",": "comma",
    ".": "full stop",
    ";": "semicolon",
    ":": "colon",
    "?": "question mark",
    "!": "exclamation mark",
    "-": "hyphen",
    "--": "dash",
    "—": "dash",
    "–": "dash",
    "'": "apostrophe",
    "’": "apostrophe",
    '"': "quotation mark",
    "“": "opening quotation mark",
    "”": "closing quotation mark",
    "(": "opening bracket",
    ")": "closing bracket",
}
UNREADABLE = "\ufffd"


def named(word: str) -> str:
    """A word in quotation marks; a mark with its name; white space by its name alone."""
    bare = word.strip(" ")
    if not bare.strip():
        return _NAMES.get(bare, "line break" if "\n" in bare else "space")
    name = _NAMES.get(bare)
    return f'"{bare}" ({name})' if name else f'"{bare.strip()}"'


def distinct(words: Iterable[str]) -> list[str]:
    """The words in order, once each without regard to case; unreadable pieces of bytes are left out."""
    seen: dict[str, str] = {}
    for word in words:
        if UNREADABLE not in word:
            seen.setdefault(named(word).casefold(), word)
    return list(seen.values())


def as_in(words: Sequence[str], snippet: str | None) -> str:
    """`"sea", "ocean", "waves" — as in «… the open sea and …»`; "" if there are no readable words."""
    chosen = [named(word) for word in distinct(words)[:MAX_WORDS]]
    if not chosen:
        return ""
    listed = ", ".join(chosen)
    shown = re.sub(r"\s+", " ", snippet or "").strip()
    return f"{listed} — as in «{shown}»" if shown else listed


def promotes(tokens: Sequence[str]) -> str:
    """`promotes "sea", "ocean"`: a gloss from the tokens that the feature makes likelier; "" if "
    "none is readable."""
    chosen = [named(token) for token in distinct(tokens)[:MAX_WORDS]]
    return f"promotes {', '.join(chosen)}" if chosen else ""
