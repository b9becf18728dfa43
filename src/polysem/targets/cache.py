"""Responses of servers on disk, found by what was asked: sha256 of address, interface, body and repetition.

    CACHE/ab/abcdef….json.gz      {"request": …, "response": …}
    CACHE/sent/abcdef…            empty: this request was sent, and its response is not kept yet

A file is written once, whole, and never changed; a killed run leaves nothing half-written. What was answered
once is never asked again, whoever asks. Keys of servers are in no file. The marks below `sent` are written before a
request leaves: after a kill they say which responses a server may have charged for without our having them.
"""

import gzip
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polysem.boundary.door import Door, brief, telling
from polysem.boundary.files import read_plain
from polysem.boundary.text import parse_json
from polysem.errors import StoreError, typed
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
        again = f"rm {typed(path)}, then run the same command again: this one request is sent once more"
        door = Door("kept response", again, StoreError, StoreError)
        with telling(door, path, doing="is no kept response"):
            kept = parse_json(read_plain(path, door=door), path, door=door)["response"]
            if not isinstance(kept, str):
                raise TypeError(f"its response is {brief(kept)}")
            return kept

    def mark(self, key: str) -> None:
        """Note that a request is about to be sent."""
        path = self._mark(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise StoreError(
                f"{path} cannot be written: {error.strerror or error}",
                hint="nothing was sent; free space or choose another --out, then run the same command again",
            ) from error

    def unmark(self, key: str) -> None:
        """Note that the server has said what became of a request."""
        self._mark(key).unlink(missing_ok=True)

    def open_marks(self) -> list[str]:
        """Keys of requests that were sent and of which no response is kept, sorted."""
        folder = self._folder / "sent"
        names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        return [name for name in names if not self.has(name)]

    def _mark(self, key: str) -> Path:
        return self._folder / "sent" / key

    def add(self, key: str, request: Mapping[str, Any], response: str) -> None:
        """Keep a response, durably, before anything is made of it."""
        whole = json.dumps({"request": request, "response": response}, sort_keys=True, ensure_ascii=False)
        with io.replacing(self.path(key)) as stream:
            stream.write(gzip.compress(whole.encode(), compresslevel=4, mtime=0))
