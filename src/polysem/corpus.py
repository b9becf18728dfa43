"""Running text as rows of tokens.

A corpus is documents in a fixed order. Their tokens are laid end to end, a line break after each document,
and cut into rows of equal length, each with its own BOS where the SAE wants one; so every token has a place
`document:offset`, and the first rows of a corpus do not depend on how many are asked for. Documents are read
and tokenized as they are needed. Memory: four bytes a token asked for, and one document.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from polysem.errors import FormatError, MismatchError, UnknownReferenceError
from polysem.models.base import WhiteBoxModel
from polysem.registry import zoo_path

TEXT_SUFFIXES = (".txt", ".md")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".json")
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_ACCEPTED = "zoo:NAME, a .txt, .md, .jsonl or .json file, or a folder of .txt and .md files"


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
    path = zoo_path("texts", ref.removeprefix("zoo:")) if ref.startswith("zoo:") else Path(ref).expanduser()
    if not path.exists():
        raise UnknownReferenceError(
            f"corpus {ref!r}: no such file or folder; expected {_ACCEPTED}",
            hint="set corpus.ref in the study",
        )
    return path


def documents(ref: str) -> Iterator[Document]:
    """The documents of a corpus, in order; blank ones are left out.

    A text file gives its blocks between blank lines, named `stem[n]` from 0; a folder gives its .txt and .md
    files, named by relative path; .jsonl and .json give their records, `stem[n]` by line (from 1) or item
    (from 0).

    Raises:
        UnknownReferenceError: if there is no such file or folder, or it cannot be read.
        FormatError: if a file is empty, not UTF-8, or not what its suffix says; names file, line and value.
    """
    path = corpus_path(ref)
    found = _folder(path) if path.is_dir() else _file(path)
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
    ref: str, model: WhiteBoxModel, *, n_tokens: int, context: int, prepend_bos: bool
) -> TokenRows:
    """As many whole rows as give `n_tokens` tokens (BOS not counted), or as the corpus has; what does not
    fill a row at its end is left out.

    Args:
        ref: the corpus.
        model: whose tokenizer, BOS and context length hold.
        n_tokens: tokens of text wanted.
        context: tokens of a row, BOS included.
        prepend_bos: put BOS in front of every row.

    Raises:
        FormatError: if the corpus has not one row.
        MismatchError: if rows are longer than the model's context, or it has no BOS to put in front.
    """
    bos = _bos(model) if prepend_bos else []
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
    rows = np.concatenate(parts)[: n_rows * length].reshape(n_rows, length)
    front = np.tile(np.array(bos, dtype=np.int32), (n_rows, 1))
    return TokenRows(
        np.concatenate([front, rows], axis=1), tuple(names), np.array(starts, dtype=np.int64), len(bos)
    )


def _bos(model: WhiteBoxModel) -> list[int]:
    if model.bos_id is None:
        raise MismatchError(
            f"the tokenizer of {model.spec.ref} has no BOS token, but this SAE wants one before every row",
            hint="use an SAE trained without BOS, or give the tokenizer a bos_token",
        )
    return [model.bos_id]


def _folder(path: Path) -> Iterator[Document]:
    files = sorted(p for p in path.rglob("*") if p.suffix in TEXT_SUFFIXES and p.is_file())
    if not files:
        raise FormatError(
            f"corpus folder {path} holds no {' or '.join(TEXT_SUFFIXES)} file",
            hint="set corpus.ref in the study",
        )
    for file in files:
        yield Document(file.relative_to(path).as_posix(), read_text(file, what="corpus file"))


def _file(path: Path) -> Iterator[Document]:
    if path.suffix not in SUFFIXES:
        raise FormatError(
            f"corpus file {path}: suffix {path.suffix!r}; expected {', '.join(SUFFIXES)}",
            hint="set corpus.ref in the study",
        )
    text = read_text(path, what="corpus file")
    if path.suffix == ".jsonl":
        for n, record in json_lines(text, origin=f"corpus file {path}"):
            yield Document(f"{path.stem}[{n}]", record)
    elif path.suffix == ".json":
        yield from _json_list(path, text)
    else:
        blocks = (block.strip() for block in _BLANK_LINES.split(text))
        for n, block in enumerate(block for block in blocks if block):
            yield Document(f"{path.stem}[{n}]", block)


def read_text(path: Path, *, what: str) -> str:
    """The text of a UTF-8 file, with line breaks as "\\n" and without a byte-order mark.

    Args:
        path: the file.
        what: what the file is, for errors.

    Raises:
        UnknownReferenceError: if it cannot be read.
        FormatError: if it is blank or not UTF-8; names the byte.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{what} {path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}",
            hint=f"convert it: iconv -f LATIN1 -t UTF-8 {path.name}",
        ) from error
    except OSError as error:
        raise UnknownReferenceError(
            f"{what} {path} cannot be read: {error.strerror}", hint="check the path in the study"
        ) from error
    if not text.strip():
        raise FormatError(f"{what} {path} is empty", hint="check the path in the study")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def json_lines(text: str, *, origin: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, its string `text`) of JSON lines; blank lines are left out.

    Raises:
        FormatError: for a line that is no object with a string `text`; begins with `origin` and the line.
    """
    # Not splitlines(): JSON strings may hold U+2028, U+0085 and other characters that it takes for breaks.
    for n, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise FormatError(f"{origin}, line {n}: not JSON: {error.msg}, in {line[:60]!r}") from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise FormatError(
                f"{origin}, line {n}: expected an object with a string `text`, not {line[:60]!r}"
            )
        yield n, record["text"]


def _json_list(path: Path, text: str) -> Iterator[Document]:
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        raise FormatError(f"corpus file {path}: not JSON: {error}") from error
    if not isinstance(items, list):
        raise FormatError(f"corpus file {path}: expected a list of strings, got {type(items).__name__}")
    for n, item in enumerate(items):
        if not isinstance(item, str):
            raise FormatError(f"corpus file {path}, item {n}: expected a string, got {item!r:.80}")
        yield Document(f"{path.stem}[{n}]", item)
