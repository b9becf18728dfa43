"""Running text as rows of tokens.

A corpus is documents in a fixed order. Their tokens are laid end to end, a line break after each document,
and cut into rows of equal length, each with its own BOS where the SAE wants one; so every token has a place
`document:offset`, and the first rows of a corpus do not depend on how many are asked for. A folder is a sample of all its
files: they take turns, long ones in pieces, both in an order that follows from their names alone. Documents are read and
tokenized as they are needed. Memory: four bytes a token asked for, and one file.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from polysem.boundary import text as foreign
from polysem.boundary.door import Door, brief, telling
from polysem.boundary.files import local_path, regular
from polysem.boundary.records import DATASETS, dataset_of, text_rows
from polysem.errors import FormatError, MismatchError, UnknownReferenceError
from polysem.models.base import WhiteBoxModel
from polysem.positions import PositionPolicy
from polysem.registry import zoo_path
from polysem.seeds import rng_for, short_hash

log = logging.getLogger(__name__)

TEXT_SUFFIXES = (".txt", ".md")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".json")
IN_FOLDERS = (*TEXT_SUFFIXES, ".jsonl")
PACKED = (".gz", ".zst")
PIECE = 2_000
"""characters of a long text of a folder that come at one turn; eight times as many where the folder is LARGE"""
LARGE = 64 << 20
"""bytes of a folder; files are read again at every turn"""
LEAST = 0.1
"""share of the tokens asked for below which what came is no sample of what was meant"""
_ABOUT = re.compile(r"^(readme|source|licen[cs]e|notice|citation|changelog)\b", re.IGNORECASE)
_SET = Door("data set", "see its page on the Hub for subsets (config=), splits and columns")
_DOOR = Door("corpus file", "set corpus.ref in the study to a file or folder of text")
_LINES = Door(hint='write one {"text": "..."} a line')
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_ACCEPTED = (
    "zoo:NAME, a .txt, .md, .jsonl or .json file (packed or not), a folder of .txt, .md and .jsonl files, or "
    "datasets:OWNER/NAME?split=train"
)


@dataclass(frozen=True)
class Document:
    """One text and the name by which contexts refer to it."""

    name: str
    text: str


@dataclass(frozen=True)
class Laid:
    """The tokens of one document, the line break at its end included, and where they lie among all."""

    name: str
    ids: list[int]
    start: int
    """number of tokens of the documents before it"""


@dataclass(frozen=True)
class TokenRows:
    """Rows of one length, and where in the corpus they come from."""

    tokens: Int[np.ndarray, "n_rows context"]
    """int32, BOS in front where `n_special` is 1"""
    names: tuple[str, ...]
    """documents that the rows touch, in order"""
    starts: Int[np.ndarray, " n_documents"]
    """number of tokens before each document's first"""
    n_special: int
    """1 if every row begins with BOS, else 0"""

    @property
    def n_tokens(self) -> int:
        """Tokens of text, BOS not counted."""
        return self.tokens.shape[0] * (self.tokens.shape[1] - self.n_special)

    def sources(self, rows: Int[np.ndarray, " n"], positions: Int[np.ndarray, " n"]) -> list[str]:
        """`document:offset` of tokens by row and position in the row; a BOS counts as the token after it."""
        length = self.tokens.shape[1] - self.n_special
        places = rows.astype(np.int64) * length + np.maximum(positions - self.n_special, 0)
        documents = np.searchsorted(self.starts, places, side="right") - 1
        offsets = places - self.starts[documents]
        return [f"{self.names[n]}:{at}" for n, at in zip(documents.tolist(), offsets.tolist(), strict=True)]


def corpus_path(ref: str) -> Path:
    """The file or folder of a corpus reference.

    Raises:
        UnknownReferenceError: if there is nothing.
    """
    path = (
        zoo_path("texts", ref.removeprefix("zoo:")) if ref.startswith("zoo:") else local_path(ref, door=_DOOR)
    )
    if not path.exists():
        raise UnknownReferenceError(
            f"corpus {ref!r}: no such file or folder; expected {_ACCEPTED}",
            hint="set corpus.ref in the study, or --corpus of train-sae",
        )
    return path


def documents(ref: str) -> Iterator[Document]:
    """The documents of a corpus, in order; blank ones are left out.

    A text file gives its blocks between blank lines, named `stem[n]` from 0; .jsonl and .json give their records,
    `stem[n]` by line (from 1) or item (from 0). In a folder, texts are named by relative path, pieces of long ones
    `path[n]`, and the files take turns. A data set gives its rows, `NAME[n]` from 0.

    Raises:
        ConfigError: `datasets` is needed and not installed.
        UnknownReferenceError: if there is no such file or folder, or it cannot be read.
        FormatError: if a file is empty, not UTF-8, or not what its suffix says; names file, line and value.
    """
    if ref.startswith(DATASETS):
        found = _rows(ref)
    else:
        path = corpus_path(ref)
        found = _turns(path, folder_files(path).read) if path.is_dir() else _file(path)
    return (document for document in found if document.text.strip())


def lay(ref: str, model: WhiteBoxModel) -> Iterator[Laid]:
    """The documents of a corpus as tokens, in order. Raises as `documents` does."""
    start = 0
    for document in documents(ref):
        # Without the break the last word of one document and the first of the next would read as one.
        ids = model.tokenize(document.text + "\n", prepend_bos=False)
        yield Laid(document.name, ids, start)
        start += len(ids)


def token_rows(
    ref: str, model: WhiteBoxModel, *, n_tokens: int, context: int, positions: PositionPolicy
) -> TokenRows:
    """As many whole rows as give `n_tokens` tokens (BOS not counted), or as the corpus has; what does not
    fill a row at its end is left out.

    Args:
        ref: the corpus.
        model: whose tokenizer, BOS and context length hold.
        n_tokens: tokens of text wanted.
        context: tokens of a row, BOS included.
        positions: says what stands in front of every row.

    Raises:
        FormatError: if the corpus has not one row.
        MismatchError: if rows are longer than the model's context.
    """
    bos = positions.front
    if context > model.spec.n_ctx:
        raise MismatchError(
            f"corpus.context is {context} tokens, but {model.spec.ref} reads at most {model.spec.n_ctx}",
            hint=f"set corpus.context = {model.spec.n_ctx} in the study",
        )
    length = context - len(bos)
    n_wanted = max(1, -(-n_tokens // length))
    names, starts, parts, n_laid = [], [], [], 0
    for laid in lay(ref, model):
        names.append(laid.name)
        starts.append(laid.start)
        parts.append(np.array(laid.ids, dtype=np.int32))
        n_laid = laid.start + len(laid.ids)
        if n_laid >= n_wanted * length:
            break
    n_rows = min(n_wanted, n_laid // length)
    if not n_rows:
        raise FormatError(
            f"corpus {ref!r} has {n_laid} tokens, not one row: corpus.context is {context}",
            hint="name a longer corpus, or lower corpus.context",
        )
    _say_what_came(ref, n_laid, names, n_tokens=n_tokens)
    rows = np.concatenate(parts)[: n_rows * length].reshape(n_rows, length)
    front = np.tile(np.array(bos, dtype=np.int32), (n_rows, 1))
    return TokenRows(
        np.concatenate([front, rows], axis=1), tuple(names), np.array(starts, dtype=np.int64), len(bos)
    )


class FolderFiles(NamedTuple):
    """What of a folder is read, in the order of its turns, and what is not."""

    read: tuple[Path, ...]
    ignored: tuple[str, ...]
    """relative names"""


def folder_files(folder: Path) -> FolderFiles:
    """The files of a folder that are its text: .txt, .md and .jsonl, but for those about the data (README, LICENSE ...).

    Raises:
        FormatError: if there are none.
    """
    with telling(_DOOR, folder, doing="cannot be looked through"):
        every = sorted(p for p in folder.rglob("*") if not p.is_dir() and not _hidden(p.relative_to(folder)))
    texts = [p for p in every if _suffix(p) in IN_FOLDERS]
    data = [p for p in texts if not _ABOUT.match(p.name)] or texts
    if not data:
        raise FormatError(
            f"corpus folder {folder} holds no {' or '.join(IN_FOLDERS)} file; it holds {len(every)} others",
            hint="set corpus.ref in the study",
        )
    names = {p: p.relative_to(folder).as_posix() for p in every}
    order = sorted(data, key=lambda p: short_hash("corpus", names[p]))
    return FolderFiles(tuple(order), tuple(names[p] for p in every if p not in set(data)))


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _suffix(path: Path) -> str:
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix


def _say_what_came(ref: str, n_laid: int, names: list[str], *, n_tokens: int) -> None:
    """One line where less came than was asked for, or files were left out. Raises FormatError below LEAST."""
    path = None if ref.startswith(DATASETS) else corpus_path(ref)
    files = folder_files(path) if path and path.is_dir() else FolderFiles((path,) if path else (), ())
    said = []
    if n_laid < n_tokens:
        said.append(f"{n_laid:,} of the {n_tokens:,} tokens asked for are there")
    if files.ignored:
        shown = ", ".join(map(brief, files.ignored[:4])) + (" ..." if len(files.ignored) > 4 else "")
        n = len(files.ignored)
        said.append(f"{n} of {n + len(files.read)} files are not read: {shown}")
    if n_laid < LEAST * n_tokens:
        raise FormatError(
            f"corpus {ref!r}: {'; '.join(said)}",
            hint=f"name a longer corpus, or set corpus.n_tokens = {max(1, n_laid)} in the study if this is what you mean",
        )
    if said:
        log.warning("corpus %s: %s", ref, "; ".join(said))
    log.info("corpus %s: %d tokens of %d documents, %d files", ref, n_laid, len(set(names)), len(files.read))


def _rows(ref: str) -> Iterator[Document]:
    name, asked = dataset_of(ref)
    for n, text in enumerate(text_rows(name, asked, door=_SET)):
        yield Document(f"{name}[{n}]", text.replace("\r\n", "\n").replace("\r", "\n"))


def _turns(folder: Path, files: Sequence[Path]) -> Iterator[Document]:
    """One document or piece of every file, then the next of every file that has one."""
    piece = PIECE * (8 if sum(file.stat().st_size for file in files) > LARGE else 1)
    going = [_pieces(file, file.relative_to(folder).as_posix(), piece) for file in files]
    while going:
        left = []
        for documents_of in going:
            document = next(documents_of, None)
            if document is not None:
                left.append(documents_of)
                yield document
        going = left


def _pieces(file: Path, name: str, piece: int) -> Iterator[Document]:
    text = read_text(file, what=_DOOR.what)
    if _suffix(file) == ".jsonl":
        yield from _records(file, text, name, named_lines=True)
        return
    cuts = _cuts(text, piece)
    if len(cuts) == 2:
        yield Document(name, text)
        return
    del text  # read again at every turn: many long files would not fit into memory together
    for n in rng_for(0, "corpus", name).permutation(len(cuts) - 1).tolist():
        yield Document(f"{name}[{n}]", read_text(file, what=_DOOR.what)[cuts[n] : cuts[n + 1]].strip())


def _cuts(text: str, piece: int) -> list[int]:
    """Where the pieces of a text begin, and its end: after a blank line, else a line, else a word."""
    cuts = [0]
    while len(text) - cuts[-1] > 1.5 * piece:
        start, stop = cuts[-1] + piece // 2, cuts[-1] + piece
        found = (
            text.rfind(mark, start, stop) + len(mark)
            for mark in ("\n\n", "\n", " ")
            if mark in text[start:stop]
        )
        cuts.append(next(found, stop))
    return [*cuts, len(text)]


def _file(path: Path) -> Iterator[Document]:
    suffix, stem = _suffix(path), path.name.split(".")[0] if path.suffix in PACKED else path.stem
    if suffix not in SUFFIXES:
        regular(path, door=_DOOR)
        raise FormatError(
            f"corpus file {path}: suffix {path.suffix!r}; expected {', '.join(SUFFIXES)}",
            hint="set corpus.ref in the study",
        )
    text = read_text(path, what=_DOOR.what)
    if suffix in TEXT_SUFFIXES:
        blocks = (block.strip() for block in _BLANK_LINES.split(text))
        for n, block in enumerate(block for block in blocks if block):
            yield Document(f"{stem}[{n}]", block)
    else:
        yield from _records(path, text, stem, named_lines=suffix == ".jsonl")


def _records(path: Path, text: str, stem: str, *, named_lines: bool) -> Iterator[Document]:
    """JSON lines or one list, whichever the text is."""
    if foreign.is_lines(text, named_lines=named_lines):
        for n, record in json_lines(text, origin=f"corpus file {path}"):
            yield Document(f"{stem}[{n}]", record)
    else:
        for n, item in json_list(text, path, door=_DOOR):
            yield Document(f"{stem}[{n}]", item)


def one_a_line(path: Path, *, what: str) -> Iterator[tuple[int, str]]:
    """(number, text) of a file of texts, one a line: plain, or JSON, by line or as a list. Blank plain lines are left out.

    The content tells: a prompt of `{"text": "It was"}` is nobody's prompt, whatever the file is called.

    Raises:
        UnknownReferenceError: no such file.
        FormatError: blank, a table of cells, or JSON of something else; names file and line.
    """
    text, suffix = read_text(path, what=what), _suffix(path)
    if suffix in (".csv", ".tsv"):
        raise FormatError(
            f"{what} {path} is a table; expected one text a line", hint="write one text a line into a .txt"
        )
    bare = text.strip()
    if suffix not in (".json", ".jsonl") and not _is_json(
        bare if bare[0] == "[" else bare.partition("\n")[0]
    ):
        yield from ((n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip())
    elif foreign.is_lines(text, named_lines=suffix != ".json"):
        yield from json_lines(text, origin=f"{what} {path}")
    else:
        yield from json_list(text, path, door=Door(what, "check the path in the study"))


def _is_json(text: str) -> bool:
    """Whether a text is a JSON object with a string `text`, or a list of strings or of such objects."""
    try:
        value = foreign.parse_json(text, "", door=_LINES)
    except FormatError:
        return False
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(
        (isinstance(value, list) and isinstance(item, str))
        or (isinstance(item, dict) and isinstance(item.get("text"), str))
        for item in items
    )


def read_text(path: Path, *, what: str) -> str:
    """The text of a file in Unicode, packed or not, with line breaks as "\\n" and without a byte-order mark.

    Args:
        path: the file.
        what: what the file is, for errors.

    Raises:
        UnknownReferenceError: if it cannot be read.
        FormatError: if it is blank, not UTF-8, or too long; names the byte.
    """
    door = Door(what, "check the path in the study")
    text = foreign.read_text(path, door=door, page=False)
    if not text.strip():
        raise FormatError(f"{what} {path} is empty", hint=door.hint)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def json_lines(text: str, *, origin: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, its string `text`) of JSON lines; blank lines are left out. Logs how many lone surrogates became
    U+FFFD.

    Raises:
        FormatError: for a line that is no object with a string `text`; begins with `origin` and the line.
    """
    counts: Counter[str] = Counter()
    for n, record in foreign.json_lines(text, origin, door=_LINES, counts=counts):
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise _LINES.refuse(
                f"{origin}:{n}", f"expected an object with a string `text`, not {brief(record)}"
            )
        yield n, record["text"]
    for what, n in counts.items():
        log.warning("%s: %d %s by U+FFFD", origin, n, what)


def json_list(text: str, path: Path, *, door: Door) -> Iterator[tuple[int, str]]:
    """(position from 0, text) of a JSON list of strings, or of objects with a string `text`. Raises the door's error."""
    items = foreign.parse_json(text, path, door=door)
    if not isinstance(items, list):
        raise door.refuse(path, f"expected a list of strings, got {type(items).__name__}")
    for n, item in enumerate(items):
        found = item.get("text") if isinstance(item, dict) else item
        if not isinstance(found, str):
            raise door.refuse(path, f"item {n}: expected a string, got {brief(item)}")
        yield n, found
