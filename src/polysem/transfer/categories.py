"""Categories of words: a table that a study may replace, and what of it a vocabulary can say.

A category is a set of words. A token belongs to it if it is one of the words, whole and at the beginning of a word: with
a space in front, or, where a target's answers begin without one (chat), as it stands. Figures count as numbers either
way. Capitals do not matter.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from polysem.errors import ConfigError, FormatError, UnknownReferenceError

DEFAULT = ("location", "science", "number", "person", "emotion", "animal", "color", "time")
_FIGURES = re.compile(r"[0-9]+")


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

    def of_word(self, text: str) -> str | None:
        """The category of a word however it is written, for tokens that are only looked at and not predicted."""
        return self._of_word(text.strip().casefold())

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


@dataclass(frozen=True)
class Coverage:
    """How much of a category a tokenizer can say in one token."""

    category: str
    n_words: int
    n_words_covered: int
    n_tokens: int


def coverage(categories: Categories, vocabulary: Sequence[str], *, word_start: bool = True) -> list[Coverage]:
    """One row per category: words that are one token, and tokens that count."""
    found = [(categories.of_token(t, word_start=word_start), t.strip().casefold()) for t in vocabulary]
    rows = []
    for name, words in categories.words.items():
        tokens = [bare for category, bare in found if category == name]
        rows.append(Coverage(name, len(words), len(words & set(tokens)), len(tokens)))
    return rows


def check_coverage(rows: Iterable[Coverage], *, who: str) -> None:
    """Raises ConfigError if a category has no token at all in a vocabulary."""
    empty = [row.category for row in rows if row.n_tokens == 0]
    if empty:
        raise ConfigError(
            f"no token of {who} belongs to the categories {', '.join(empty)}: nothing could be read out",
            hint="leave these categories out of categories.names, or extend the table with words that are one token",
        )


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
    text, origin = _read(table, "categories.toml")
    content = _parse(text, origin)
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


@lru_cache(maxsize=4)
def _builtin(file: str) -> str:
    return files("polysem.transfer").joinpath(file).read_text(encoding="utf-8")


def load_sentences(source: str, names: Sequence[str], *, n: int) -> dict[str, list[str]]:
    """The first n sentences of every category.

    Args:
        source: "builtin", or a .toml file: per category a list of incomplete sentences.
        names: categories.
        n: at most so many of each.

    Raises:
        ConfigError: a category without sentences, or a sentence that stands twice.
    """
    text, origin = _read(source, "sentences.toml")
    content = _parse(text, origin)
    found: dict[str, list[str]] = {}
    for name in names:
        given = content.get(name, [])
        if (
            not isinstance(given, list)
            or not given
            or not all(isinstance(s, str) and s.strip() for s in given)
        ):
            raise ConfigError(f"{origin} has no sentences for category {name}; it has {', '.join(content)}")
        stripped = [s.rstrip() for s in given]
        twice = sorted({s for s in stripped if stripped.count(s) > 1})
        if twice:
            raise ConfigError(
                f"{origin}: category {name} holds {twice[0][:60]!r} twice ({len(twice)} such); sentences are the unit "
                "of intervals and must be distinct",
                hint="remove the duplicates",
            )
        found[name] = stripped[:n]
    return found


def _read(source: str, builtin: str) -> tuple[str, str]:
    if source == "builtin":
        return _builtin(builtin), f"the built-in {builtin}"
    path = Path(source).expanduser()
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UnknownReferenceError(
            f"{source} cannot be read: {getattr(error, 'strerror', None) or error}",
            hint="expected 'builtin' or a .toml file",
        ) from error


def _parse(text: str, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{origin} is not TOML: {error}") from error
