"""Progress as a seam: libraries report, the command line draws."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Reporter(Protocol):
    """Where long work says how far it is."""

    def track(self, items: Iterable[T], *, total: int, label: str, done: int = 0) -> Iterator[T]:
        """`items`, one by one, while a bar labelled `label` runs from `done` to `total`."""
        ...

    def stage(self, label: str) -> AbstractContextManager[None]:
        """One stage of a study."""
        ...


class Silent:
    """Says nothing."""

    def track(self, items: Iterable[T], *, total: int, label: str, done: int = 0) -> Iterator[T]:
        yield from items

    def stage(self, label: str) -> AbstractContextManager[None]:
        return nullcontext()


SILENT = Silent()
