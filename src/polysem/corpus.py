"""Running text as rows of tokens.

A corpus is documents in a fixed order. Their tokens are laid end to end and cut into rows of equal length,
each with its own BOS where the model wants one; so every row can be named by the document and token offset
at which it starts, and the first rows of a corpus do not depend on how many are asked for. Documents are
read and tokenized as they are needed.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from polysem.errors import FormatError, UnknownReferenceError
from polysem.models.base import WhiteBoxModel
from polysem.registry import zoo_path

TEXT_SUFFIXES = (".txt", ".md")


@dataclass(frozen=True)
class Document:
    """One text and the name by which contexts refer to it."""

    name: str
    text: str


@dataclass(frozen=True)
class Row:
    """A window of tokens, BOS included where used."""

    tokens: tuple[int, ...]
    source: str
    """document:offset of its first token after BOS"""


@dataclass(frozen=True)
class TokenRows:
    """Rows of one length."""

    tokens: np.ndarray
    """[n_rows, context] int64"""
    sources: tuple[str, ...]


def corpus_path(ref: str) -> Path:
    """The file or folder of a corpus reference.

    Raises:
        UnknownReferenceError: if there is nothing.
    """
    path = zoo_path("texts", ref.removeprefix("zoo:")) if ref.startswith("zoo:") else Path(ref).expanduser()
    if not path.exists():
        raise UnknownReferenceError(
            f"corpus {ref!r}: no such file or folder; expected zoo:NAME, a .txt, .md, .jsonl or .json file, or a "
            "folder of .txt and .md files",
            hint="set corpus.ref in the study",
        )
    return path


def documents(ref: str) -> Iterator[Document]:
    """The documents of a corpus, in order: blocks of a text file between blank lines count as one document
    each.

    Raises:
        UnknownReferenceError: if there is no such file or folder.
        FormatError: if a file is empty, not UTF-8, or not what its suffix says; names file, line and value.
    """
    path = corpus_path(ref)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in TEXT_SUFFIXES)
        if not files:
            raise FormatError(f"corpus folder {path} holds no {' or '.join(TEXT_SUFFIXES)} file")
        for file in files:
            yield Document(str(file.relative_to(path)), _read(file))
    elif path.suffix == ".jsonl":
        yield from _json_lines(path)
    elif path.suffix == ".json":
        yield from _json_list(path)
    elif path.suffix in TEXT_SUFFIXES:
        blocks = [block for block in _read(path).split("\n\n") if block.strip()]
        for n, block in enumerate(blocks):
            yield Document(f"{path.stem}[{n}]", block.strip())
    else:
        raise FormatError(f"corpus file {path}: suffix {path.suffix!r}; expected .txt, .md, .jsonl or .json")


def corpus_sha256(ref: str) -> str:
    """A hash over names and bytes of the corpus files, for manifests and checkpoints."""
    path = corpus_path(ref)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def iter_rows(ref: str, model: WhiteBoxModel, *, context: int, prepend_bos: bool) -> Iterator[Row]:
    """Rows of `context` tokens, without end until the corpus is read; what does not fill a row at the end
    is left out.

    Raises:
        FormatError: if BOS is asked for and the tokenizer has none.
    """
    bos = () if not prepend_bos else (_bos(model),)
    length = context - len(bos)
    held: list[int] = []
    begin = ""
    for document in documents(ref):
        ids = model.tokenize(document.text, prepend_bos=False)
        used = 0
        while used < len(ids):
            if not held:
                begin = f"{document.name}:{used}"
            take = min(length - len(held), len(ids) - used)
            held += ids[used : used + take]
            used += take
            if len(held) == length:
                yield Row((*bos, *held), begin)
                held = []


def token_rows(
    ref: str, model: WhiteBoxModel, *, n_tokens: int, context: int, prepend_bos: bool, skip: int = 0
) -> TokenRows:
    """As many whole rows as give `n_tokens` tokens (BOS not counted), or as the corpus has, after the first
    `skip` rows.

    Raises:
        FormatError: if the corpus has not one row.
    """
    n_rows = max(1, -(-n_tokens // (context - prepend_bos)))
    rows = list(islice(iter_rows(ref, model, context=context, prepend_bos=prepend_bos), skip, skip + n_rows))
    if not rows and not skip:
        raise FormatError(
            f"corpus {ref!r} has fewer than {context - prepend_bos} tokens, not one row of context {context}",
            hint="name a longer corpus, or lower corpus.context",
        )
    tokens = np.array([row.tokens for row in rows], dtype=np.int64).reshape(len(rows), context)
    return TokenRows(tokens, tuple(row.source for row in rows))


def _bos(model: WhiteBoxModel) -> int:
    if model.bos_id is None:
        raise FormatError(
            f"the tokenizer of {model.spec.ref} has no BOS token, but this SAE wants one before every row",
            hint="use an SAE trained without BOS, or give the tokenizer a bos_token",
        )
    return model.bos_id


def _read(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"corpus file {path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error
    except OSError as error:
        raise UnknownReferenceError(f"corpus file {path} cannot be read: {error.strerror}") from error
    if not text.strip():
        raise FormatError(f"corpus file {path} is empty")
    return text


def _json_lines(path: Path) -> Iterator[Document]:
    for n, line in enumerate(_read(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise FormatError(f"corpus file {path}, line {n}: not JSON: {error.msg}") from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise FormatError(
                f"corpus file {path}, line {n}: expected an object with a string `text`, not {line[:60]!r}"
            )
        yield Document(f"{path.stem}[{n}]", record["text"])


def _json_list(path: Path) -> Iterator[Document]:
    try:
        items = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise FormatError(f"corpus file {path}: not JSON: {error}") from error
    if not isinstance(items, list):
        raise FormatError(f"corpus file {path}: expected a list of strings, got {type(items).__name__}")
    for n, item in enumerate(items):
        if not isinstance(item, str):
            raise FormatError(f"corpus file {path}, item {n}: expected a string, got {str(item)[:80]!r}")
        yield Document(f"{path.stem}[{n}]", item)
