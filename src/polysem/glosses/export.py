"""Where Neuronpedia's rows lie: a folder like the public bucket, a folder of dashboards, one file, or a web
address.

    ROOT/features/batch-0.jsonl.gz, ROOT/activations/..., ROOT/explanations[-NAME]/...     the bucket's layout
    ROOT/batch-0.json ...                                SAEDashboard batches, or lists of features
    FILE.json, FILE.jsonl.gz                             one list of rows
    https://HOST/PREFIX                                  batch-0, batch-1, ... until the server says 404

Batches are read one at a time; their order means nothing (the bucket's are sorted by the *text* of the
feature number, and offsets into an order that is not unique repeat and drop rows), so readers must not infer
numbers from positions.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import httpx

from polysem.boundary.door import Door
from polysem.boundary.files import exists, local_path, regular
from polysem.errors import FormatError, UnknownReferenceError
from polysem.glosses.raw import GlossRecord, read_rows, rows_of_bytes, suffix_of
from polysem.http import Retries, send
from polysem.keys import checked_address

BUCKET = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com/v1"
RowKind = Literal["features", "activations", "explanations"]
_DEADLINE, _CEILING = 900.0, 1 << 30
"""seconds and bytes of one batch"""
_BATCH = re.compile(r"batch-(\d+)\.")
_BUCKET_FOLDER = re.compile(r"(features|activations|explanations)(-|$)")
_DOOR = Door("export", "check the path after 'neuronpedia:' in the study")
_SHORT = re.compile(r"^[\w.\-]+/[\w.\-]+$")


@runtime_checkable
class Export(Protocol):
    """A place that holds an export."""

    @property
    def name(self) -> str: ...

    @property
    def keeps_kinds_apart(self) -> bool:
        """Whether features and activations lie apart; if not, `rows` of any kind gives all rows."""
        ...

    def rows(self, kind: RowKind) -> Iterator[GlossRecord]:
        """The rows of one kind; where a place does not keep kinds apart, all its rows."""
        ...


def open_export(
    reference: str, *, client: httpx.Client | None = None, retries: Retries | None = None
) -> Export:
    """The export at a folder, a file, an address, or (`gpt2-small/6-res-jb`) at Neuronpedia's public bucket.

    Raises:
        UnknownReferenceError: nothing of the kind.
    """
    if re.match(r"https?://", reference):
        return RemoteExport(
            checked_address(reference).rstrip("/"), client=client, retries=retries or Retries()
        )
    path = local_path(reference)
    if exists(path):
        if not path.is_dir():
            regular(path, door=_DOOR)  # no pipe, no device
        return LocalExport(path)
    if is_remote(reference):
        return RemoteExport(f"{BUCKET}/{reference}", client=client, retries=retries or Retries())
    raise UnknownReferenceError(
        f"no Neuronpedia export at {path}; expected a folder, a file, a web address, or "
        "MODEL/SOURCE as on neuronpedia.org",
        hint="check the path after 'neuronpedia:' in the study",
    )


def is_remote(reference: str) -> bool:
    """Whether a reference is an address, or has the form MODEL/SOURCE of one at the bucket and is nothing here."""
    address = re.match(r"https?://", reference) is not None
    return address or (_SHORT.match(reference) is not None and not exists(local_path(reference)))


@dataclass(frozen=True)
class LocalExport:
    """An export on disk."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def keeps_kinds_apart(self) -> bool:
        return self.path.is_dir() and any((self.path / kind).is_dir() for kind in ("features", "activations"))

    def rows(self, kind: RowKind) -> Iterator[GlossRecord]:
        """Rows of all batches in numeric order; of explanations also those of `explanations-*` folders.

        Raises:
            UnknownReferenceError: the folder holds no batches of this kind.
            FormatError: a batch number is missing between others, or a file is damaged.
        """
        for file in self._files(kind):
            yield from read_rows(file, may_be_empty=True)  # a last batch can be

    def _files(self, kind: RowKind) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        folders = sorted(p for p in self.path.iterdir() if p.is_dir() and _holds(p.name, kind))
        if folders:
            return [file for folder in folders for file in _batches(folder)]
        if any(p.is_dir() and _BUCKET_FOLDER.match(p.name) for p in self.path.iterdir()):
            raise UnknownReferenceError(
                f"the export {self.path} has no folder {kind!r}; it has "
                f"{', '.join(sorted(p.name for p in self.path.iterdir()))}",
                hint=f"download {kind}/batch-*.jsonl.gz from {BUCKET}/MODEL/SOURCE/{kind}/",
            )
        return _batches(self.path)


@dataclass(frozen=True)
class RemoteExport:
    """An export behind a web address."""

    name: str
    client: httpx.Client | None = None
    retries: Retries = field(default_factory=Retries)

    @property
    def keeps_kinds_apart(self) -> bool:
        return True

    def rows(self, kind: RowKind) -> Iterator[GlossRecord]:
        """Rows of batch-0, batch-1, ... until the first that the server does not have.

        Raises:
            UnknownReferenceError: no connection, a refusal, or not even batch-0.
            FormatError: a batch is damaged.
        """
        folder = self.name if _holds(self.name.rsplit("/", 1)[-1], kind) else f"{self.name}/{kind}"
        client = self.client or httpx.Client(timeout=_DEADLINE, follow_redirects=True)
        try:
            number = 0
            while (content := self._batch(client, f"{folder}/batch-{number}.jsonl.gz")) is not None:
                yield from rows_of_bytes(content, name=f"{folder}/batch-{number}.jsonl.gz")
                number += 1
        finally:
            if self.client is None:
                client.close()
        if number == 0:
            raise UnknownReferenceError(
                f"{folder}/batch-0.jsonl.gz does not exist (HTTP 404): no export of {kind} at this address",
                hint="look for the model and source on neuronpedia.org, or give a local folder",
            )

    def _batch(self, client: httpx.Client, url: str) -> bytes | None:
        reply = send(client, "GET", url, retries=self.retries, deadline=_DEADLINE, ceiling=_CEILING)
        if reply.status == httpx.codes.NOT_FOUND:
            return None
        if not reply.is_success or reply.is_html:
            raise UnknownReferenceError(
                f"{url}: HTTP {reply.status}: {reply.said}",
                hint="open the address in a browser, or give a local folder",
            )
        return reply.body


def _holds(folder: str, kind: RowKind) -> bool:
    return folder == kind or (kind == "explanations" and folder.startswith("explanations-"))


def _batches(folder: Path) -> list[Path]:
    """The files of a folder, by batch number. Raises FormatError where a number between is missing."""
    files = [p for p in folder.iterdir() if p.is_file() and suffix_of(p.name) in {".json", ".jsonl"}]
    if not files:
        raise UnknownReferenceError(
            f"folder {folder} holds no batches; expected batch-0.jsonl.gz, batch-1.jsonl.gz, ..."
        )
    numbered = {int(match[1]): p for p in files if (match := _BATCH.match(p.name))}
    absent = sorted(set(range(max(numbered, default=-1) + 1)) - set(numbered))
    if absent:
        raise FormatError(
            f"folder {folder}: batch {absent[0]} is missing ({len(numbered)} batches, the last is "
            f"{max(numbered)})",
            hint="download the missing batch; with parts missing, features would silently have no gloss",
        )
    return [numbered[n] for n in sorted(numbered)] if numbered else sorted(files)
