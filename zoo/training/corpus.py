"""The zoo's text and tokens: public-domain books, split by book, tokenized once per tokenizer.

A book belongs to the held-out set iff a hash of its file name says so; the split therefore does not depend
on order, seed or machine, and no held-out sentence is ever seen in training. Tokens of all books lie in one
flat uint16 array, each book preceded by the tokenizer's BOS.
"""

import hashlib
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

HELD_OUT_SHARE = 20  # one book in this many is held out


@dataclass(frozen=True)
class Book:
    name: str
    text: str

    @property
    def held_out(self) -> bool:
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % HELD_OUT_SHARE == 0


def read_books(archive: Path, *, held_out: bool | None = None) -> list[Book]:
    """Every book of the archive, or those of one side of the split, sorted by name, without its Markdown header (up to the
    first rule)."""
    books = []
    with tarfile.open(archive, "r:xz") as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            if not member.isfile() or not member.name.endswith(".md"):
                continue
            if held_out is not None and Book(Path(member.name).name, "").held_out != held_out:
                continue
            handle = tar.extractfile(member)
            assert handle is not None
            raw = handle.read().decode("utf-8")
            head, rule, body = raw.partition("-------")
            text = body if rule else head
            books.append(Book(Path(member.name).name, _plain(text)))
    if not books:
        raise SystemExit(f"{archive}: no .md book inside; expected the archive of classic books")
    return books


def _plain(text: str) -> str:
    """Prose of a Markdown book: marks of emphasis and headings removed, blank runs and spaces collapsed."""
    text = re.sub(r"^#+\s*", "", text, flags=re.MULTILINE)
    text = re.sub(r"^[-*_]{3,}\s*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"[*_\\]", "", text)
    text = text.replace("\u2019", "'").replace("\u2018", "'").replace("\u201c", '"').replace("\u201d", '"')
    text = re.sub(r"[ \t]+", " ", text)
    return re.sub(r"\n{2,}", "\n", text).strip() + "\n"


def split(books: list[Book]) -> tuple[list[Book], list[Book]]:
    """(training books, held-out books)."""
    return [b for b in books if not b.held_out], [b for b in books if b.held_out]


def token_stream(books: list[Book], tokenizer: PreTrainedTokenizerFast, cache: Path) -> np.ndarray:
    """All books as one uint16 array, BOS before each; cached at `cache` (a .npy file)."""
    if cache.exists():
        return np.load(cache, mmap_mode="r")
    pieces = []
    for book in books:
        paragraphs = book.text.split("\n")
        chunks = ["\n".join(paragraphs[k : k + 64]) + "\n" for k in range(0, len(paragraphs), 64)]
        encoded = tokenizer(chunks, add_special_tokens=False)["input_ids"]
        pieces.append(np.array([tokenizer.bos_token_id], dtype=np.uint16))
        pieces.extend(np.array(ids, dtype=np.uint16) for ids in encoded)
    stream = np.concatenate(pieces)
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_suffix(".partial.npy")
    np.save(partial, stream)
    partial.replace(cache)
    return np.load(cache, mmap_mode="r")


def sequences(
    stream: np.ndarray, *, context: int, bos: int, n_tokens: int | None = None, seed: int = 0
) -> np.ndarray:
    """[n, context] int64: BOS plus context-1 consecutive tokens, windows disjoint and shuffled by `seed`."""
    step = context - 1
    n = len(stream) // step
    windows = np.asarray(stream[: n * step]).reshape(n, step)
    order = np.random.default_rng(seed).permutation(n)
    if n_tokens is not None:
        order = order[: max(1, n_tokens // context)]
    rows = windows[order].astype(np.int64)
    return np.concatenate([np.full((len(rows), 1), bos, dtype=np.int64), rows], axis=1)
