"""Categories of words: a table that a study may replace, and what of it a text or a token can say.

A category is a set of words. A token belongs to it if it is one of the words, whole and at the beginning of a word: with
a space in front, or, where a target's answers begin without one (chat), as it stands. Figures count as numbers either
way. Capitals do not matter.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Bool

from polysem.boundary.door import Door
from polysem.boundary.files import local_path
from polysem.boundary.text import parse_toml, read_toml
from polysem.errors import ConfigError, FormatError
from polysem.vocabulary import CATEGORIES

DEFAULT: tuple[str, ...] = tuple(CATEGORIES)
_WORD_TABLE = Door("table of words", "expected 'builtin' or a .toml file")
QUOTED = "( — as in )?«[^»]*»?"
"""pattern of what a gloss quotes, with the words that lead to it in glosses made from tokens"""
_FIGURES = re.compile(r"[0-9]+")
_WORDS = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Categories:
    """Words by category, in the order of the study."""

    words: Mapping[str, frozenset[str]]
    source: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.words)

    def of_token(self, token: str, *, word_start: bool) -> str | None:
        """The category of a token; None if it has none.

        Args:
            token: its text, with its space where it has one.
            word_start: whether a token that begins a word carries a space in front.
        """
        bare = token.strip().casefold()
        if not bare or (word_start and not token[0].isspace() and not _FIGURES.fullmatch(bare)):
            return None
        return self._of_word(bare)

    def _of_word(self, word: str) -> str | None:
        if _FIGURES.fullmatch(word):
            return "number" if "number" in self.words else None
        return next((name for name, words in self.words.items() if word in words), None)

    def inside(self, tokens: Sequence[str], *, word_start: bool) -> Bool[np.ndarray, "categories tokens"]:
        """Which tokens belong to which category."""
        found = [self.of_token(token, word_start=word_start) for token in tokens]
        return np.array(
            [[name == category for name in found] for category in self.words], dtype=bool
        ).reshape(len(self.words), len(tokens))


@cache
def builtin() -> Categories:
    """The categories that come with the library."""
    return load_categories("builtin", DEFAULT)


def words_of(text: str) -> set[str]:
    """The words of a text, in small letters: runs of letters and figures."""
    return set(_WORDS.findall(text.casefold()))


def own_words(gloss: str) -> str:
    """A gloss without the text that it quotes between guillemets: where a feature fired once is not what it is about."""
    return re.sub(QUOTED, " ", gloss)


def is_about(gloss: str | None, tokens: Sequence[str], wanted: frozenset[str]) -> bool:
    """Whether a feature's gloss, or a token that activates it, is or holds one of the words."""
    return not wanted.isdisjoint(words_of(f"{own_words(gloss or '')} {' '.join(tokens)}"))


def load_categories(table: str, names: Sequence[str]) -> Categories:
    """The categories of a table.

    Args:
        table: "builtin", or a .toml file: per category a string of words or a list of words.
        names: which of them, in order.

    Raises:
        UnknownReferenceError: no such file.
        FormatError: no table of words, or a word in two categories.
        ConfigError: a category that the table does not have, or one twice.
    """
    if len(set(names)) < len(names):
        raise ConfigError(f"categories.names holds a category twice: {', '.join(names)}")
    content, origin = read_words(table, builtin=("polysem", "categories.toml"))
    missing = [name for name in names if name not in content]
    if missing:
        raise ConfigError(
            f"{origin} has no category {', '.join(missing)}; it has {', '.join(content)}",
            hint="set categories.names",
        )
    words: dict[str, frozenset[str]] = {}
    owner: dict[str, str] = {}
    for name in names:
        given: Any = content[name].split() if isinstance(content[name], str) else content[name]
        if (
            not isinstance(given, list)
            or not given
            or not all(isinstance(w, str) and w.strip() for w in given)
        ):
            raise FormatError(f"{origin}: category {name} is no list of words: {str(content[name])[:60]!r}")
        words[name] = frozenset(w.strip().casefold() for w in given)
        for word in sorted(words[name]):
            if word in owner:
                raise FormatError(
                    f"{origin}: {word!r} is in {owner[word]} and in {name}; expected one category for a word"
                )
            owner[word] = name
    return Categories(words, origin)


def read_words(source: str, *, builtin: tuple[str, str]) -> tuple[dict[str, Any], str]:
    """The content of a table of words, and what to call it in a message.

    Args:
        source: "builtin", or a .toml file.
        builtin: package and file of the built-in one.

    Raises:
        UnknownReferenceError: no such file.
        FormatError: not TOML.
    """
    package, file = builtin
    if source == "builtin":
        text = files(package).joinpath(file).read_text(encoding="utf-8")
        return parse_toml(text, f"the built-in {file}", door=_WORD_TABLE), f"the built-in {file}"
    path = local_path(source, door=_WORD_TABLE)
    return read_toml(path, door=_WORD_TABLE), str(path)
