"""Responses of servers on disk, found by what was asked: sha256 of address, interface, body and repetition.

    CACHE/ab/abcdef….json.gz      {"request": …, "response": …}

A file is written once, whole, and never changed; a killed run leaves nothing half-written. What was answered
once is never asked again, whoever asks. Keys of servers are in no file.
"""

import gzip
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polysem.errors import StoreError
from polysem.store import io


class ResponseCache:
    """The responses below a folder."""

    def __init__(self, folder: Path):
        self._folder = folder

    @staticmethod
    def key(request: Mapping[str, Any]) -> str:
        """The name of a request: sha256 over its canonical JSON."""
        text = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json.gz"

    def has(self, key: str) -> bool:
        return self.path(key).is_file()

    def find(self, key: str) -> str | None:
        """The body of a kept response as it came; None if there is none.

        Raises:
            StoreError: the file is damaged; names it.
        """
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            return json.loads(gzip.decompress(path.read_bytes()))["response"]
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} is no kept response: {error}",
                hint=f"rm {path}, then run the same command again: this one request is sent once more",
            ) from error

    def add(self, key: str, request: Mapping[str, Any], response: str) -> None:
        """Keep a response, durably, before anything is made of it."""
        whole = json.dumps({"request": request, "response": response}, sort_keys=True, ensure_ascii=False)
        with io.replacing(self.path(key)) as stream:
            stream.write(gzip.compress(whole.encode(), compresslevel=4, mtime=0))
