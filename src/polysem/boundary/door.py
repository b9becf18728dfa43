"""How a kind of foreign file is named, and what becomes of whatever goes wrong with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from polysem.errors import FormatError, PolysemError, UnknownReferenceError

SHOWN = 160
"""characters of a foreign value or message that an error repeats"""


@dataclass(frozen=True)
class Door:
    """One kind of foreign file."""

    what: str = "file"
    """what it is called in errors"""
    hint: str = "fetch or copy the file again"
    error: type[PolysemError] = FormatError
    """for a file that is not what it must be"""
    missing: type[PolysemError] = UnknownReferenceError
    """for a file that is not there or cannot be opened"""

    def refuse(self, where: object, problem: str, *, hint: str | None = None) -> PolysemError:
        """The error for `where`, to raise."""
        return self.error(f"{self.called(where)}: {problem}", hint=hint or self.hint)

    def absent(self, where: object, problem: str) -> PolysemError:
        """The error for a file that cannot be opened, to raise."""
        return self.missing(f"{self.called(where)} {problem}", hint=self.hint)

    def called(self, where: object) -> str:
        """`what` and the place, in one line of bounded length."""
        name = brief(where, 400)
        return name if self.what == "file" or isinstance(where, str) else f"{self.what} {name}"


@contextmanager
def telling(door: Door, where: object, *, doing: str = "cannot be read") -> Iterator[None]:
    """Turns whatever a parser raises into the door's error.

    The parsers behind this are other people's; 26,000 damaged files drew fourteen kinds of exception from them, bare
    `Exception` and Rust panics included. So this is the one place that catches all.
    """
    try:
        yield
    except PolysemError:
        raise
    except OSError as error:
        raise door.absent(where, f"{doing}: {error.strerror or brief(error)}") from error
    except Exception as error:
        raise door.error(f"{door.called(where)} {doing}: {_said(error)}", hint=door.hint) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3's, which does not derive from Exception
            raise
        raise door.error(f"{door.called(where)} {doing}: {_said(error)}", hint=door.hint) from error


def _said(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    lines = str(error).strip().splitlines()
    return brief(lines[0]) if lines else type(error).__name__


def brief(value: object, most: int = SHOWN) -> str:
    """A foreign value as one line that a terminal can show: no control characters, no lone surrogates, bounded."""
    text = str(value) if isinstance(value, str | Path | BaseException) else repr(value)
    if len(text) > most:
        text = f"{text[: most * 2 // 3]}…{text[-most // 3 :]}"
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
