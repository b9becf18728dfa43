"""What a vocabulary can say of categories of words, and the sentences of each that a target is asked to go on with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from polysem.categories import Categories, read_words
from polysem.errors import ConfigError


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


def load_sentences(source: str, names: Sequence[str], *, n: int) -> dict[str, list[str]]:
    """The first n sentences of every category.

    Args:
        source: "builtin", or a .toml file: per category a list of incomplete sentences.
        n: at most so many of each.

    Raises:
        ConfigError: a category without sentences, or a sentence that stands twice.
    """
    content, origin = read_words(source, builtin=("polysem.transfer", "sentences.toml"))
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
