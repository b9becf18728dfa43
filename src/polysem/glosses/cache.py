"""Vectors of texts on disk, found by what they are: hash of the embedder and hash of the text.

    CACHE/<hash of embedder's name and sha256>/<hash of the texts>.safetensors      texts [n 32] uint8
    (sha256), vectors [n d] float32

A file is written once, whole (temporary file, flushed, renamed), and never changed, so several runs may
share a cache and a killed run leaves nothing half-written. Files are small groups of texts; a lookup reads
the groups' hashes and the vectors it needs.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from polysem.errors import StoreError, typed
from polysem.seeds import short_hash
from polysem.store.io import read_arrays, to_disk


def text_hash(text: str) -> bytes:
    """sha256 of a text, 32 bytes."""
    return hashlib.sha256(text.encode()).digest()


class VectorCache:
    """The vectors of one embedder below a folder."""

    def __init__(self, folder: Path, *, name: str, sha256: str):
        self._folder = folder / short_hash(name, sha256)

    def find(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The vectors that are known, by text.

        Raises:
            StoreError: a file of the cache is damaged; names it.
        """
        wanted = {text_hash(text): text for text in texts}
        found: dict[str, np.ndarray] = {}
        for file in sorted(self._folder.glob("*.safetensors")):
            hashes, vectors = _read(file)
            for row, digest in enumerate(hashes):
                text = wanted.get(digest)
                if text is not None:
                    found.setdefault(text, vectors[row].copy())
        return found

    def add(self, vectors: Mapping[str, np.ndarray]) -> None:
        """Writes the vectors of some texts as one new file.

        Raises:
            StoreError: the folder cannot be written to (no room, no right).
        """
        from safetensors.numpy import save

        texts = sorted(vectors)
        hashes = [text_hash(text) for text in texts]
        content = save(
            {
                "texts": np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(len(texts), 32),
                "vectors": np.ascontiguousarray([vectors[text] for text in texts], dtype=np.float32),
            }
        )
        target = self._folder / f"{hashlib.sha256(b''.join(hashes)).hexdigest()[:32]}.safetensors"
        try:
            _write_whole(target, content)
        except OSError as error:
            raise StoreError(
                f"cannot write the cache of embeddings {target}: {error.strerror}",
                hint="free some room, or choose another folder",
            ) from error


def _read(file: Path) -> tuple[list[bytes], np.ndarray]:
    tensors = read_arrays(file, rebuild=f"rm {typed(file)}")
    if not {"texts", "vectors"} <= tensors.keys():
        raise StoreError(
            f"{file} is no cache of embeddings: it holds {', '.join(tensors)}", hint=f"rm {typed(file)}"
        )
    hashes, vectors = tensors["texts"], tensors["vectors"]
    if (
        hashes.ndim != 2
        or hashes.shape[1] != 32
        or len(hashes) != len(vectors)
        or not np.isfinite(vectors).all()
    ):
        raise StoreError(
            f"{file}: hashes {hashes.shape} and vectors {vectors.shape} do not belong together",
            hint=f"rm {typed(file)}",
        )
    return [row.tobytes() for row in hashes], vectors


def _write_whole(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            to_disk(stream.fileno())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
