"""Paths and bytes: what may be opened, how much of it is read, and whether it stayed the same meanwhile."""

import os
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from polysem.boundary.door import Door, brief, telling
from polysem.errors import ConfigError

LARGEST_TEXT = 256 << 20
"""bytes of a text file that is parsed whole: about 2 GB as Python objects at worst"""
LARGEST_SETTINGS = 16 << 20
"""bytes of a file of settings"""
FREE = 16 << 20
"""unpacked bytes below which the ratio of compression does not matter"""
RATIO = 100
"""unpacked bytes a packed byte; text packs 3 to 20 times, a bomb 1,000 times"""
LONGEST_PATH = 4096
"""characters, as on Linux"""
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_CHUNK = 1 << 20
_PATH = Door("path", "check the path", ConfigError, ConfigError)


def local_path(text: str | os.PathLike[str], *, door: Door = _PATH) -> Path:
    """A path as a user writes it, `~` expanded.

    Raises:
        the door's error for a missing file: NUL, a home that does not exist, or a path too long to be one.
    """
    written = os.fspath(text)
    if "\0" in written:
        raise door.absent(written, "holds a NUL character, so it is no path")
    if len(written) > LONGEST_PATH or any(
        len(os.fsencode(_plain(part))) > 255 for part in written.split("/")
    ):
        raise door.absent(written, f"has {len(written)} characters, too many for a path")
    if written.startswith("~"):
        with telling(door, written, doing="is no path"):
            return Path(written).expanduser()
    return Path(written)


def exists(path: Path) -> bool:
    """Whether something is there; False for a path that the system refuses."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def regular(path: Path, *, door: Door) -> os.stat_result:
    """What the system says of a file that may be opened.

    Raises:
        the door's errors: nothing there, a link to nowhere, a folder, a device, a FIFO or a socket.
    """
    with telling(door, path, doing="cannot be opened"):
        if path.is_symlink() and not path.exists():
            raise door.absent(path, f"is a link to {brief(os.readlink(path))}, which is not there")
        if not path.exists():
            raise door.absent(path, f"is missing{_near(path)}")
        seen = path.stat()
    if not stat.S_ISREG(seen.st_mode):
        kind = "a folder" if stat.S_ISDIR(seen.st_mode) else "a device, a pipe or a socket"
        raise door.absent(path, f"is {kind}, expected a file")
    return seen


def read_bytes(path: Path, *, door: Door, ceiling: int = LARGEST_TEXT) -> bytes:
    """The bytes of a file as they lie on disk.

    Raises:
        the door's errors: not there, no file, unreadable, longer than `ceiling`, or changed meanwhile.
    """
    size = regular(path, door=door).st_size
    if size > ceiling:
        raise door.refuse(
            path, f"{size:,} bytes, at most {ceiling:,} are read", hint="split it into several files"
        )
    with steady(path, door=door), telling(door, path), path.open("rb") as stream:
        return stream.read(ceiling + 1)


def read_plain(path: Path, *, door: Door, ceiling: int = LARGEST_TEXT) -> bytes:
    """The bytes of a file, unpacked if they are gzip or zstd. Raises as `read_bytes` and `unpack`."""
    return unpack(read_bytes(path, door=door, ceiling=ceiling), path, door=door, ceiling=ceiling)


def unpack(content: bytes, where: object, *, door: Door, ceiling: int = LARGEST_TEXT) -> bytes:
    """Plain bytes. The first bytes decide, not the name: a web server may have unpacked a .gz on the way.

    Raises:
        the door's error: damaged or cut, longer than `ceiling`, or packed more than RATIO times.
    """
    if not content.startswith((GZIP, ZSTD)):
        return content
    allowed = min(ceiling, max(FREE, RATIO * len(content)))
    whole = bytearray()
    with telling(door, where, doing="is not whole"):
        for piece in _gunzip(content) if content.startswith(GZIP) else _unzstd(content):
            whole += piece
            if len(whole) > allowed:
                raise door.refuse(
                    where,
                    f"its {len(content):,} bytes unpack to more than {allowed:,}; nothing that long is read",
                    hint="unpack it by hand and look at it, or split it into several files",
                )
    return bytes(whole)


def _gunzip(content: bytes) -> Iterator[bytes]:
    rest = content
    while rest.startswith(GZIP):  # members may follow each other; zeros behind the last are padding
        inflate = zlib.decompressobj(wbits=31)
        while rest and not inflate.eof:
            yield inflate.decompress(rest, _CHUNK)
            rest = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
        if not inflate.eof:
            raise EOFError("it ends in the middle")
    if rest.strip(b"\0"):
        raise ValueError("something that is not gzip follows")


def _unzstd(content: bytes) -> Iterator[bytes]:
    import pyarrow as pa

    with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as stream:
        while piece := stream.read(_CHUNK):
            yield piece


@contextmanager
def steady(*paths: Path, door: Door) -> Iterator[None]:
    """Whatever is read of files in this block (their hashes too) is of one version of each.

    Raises:
        the door's errors: no file, or it was written to meanwhile.
    """
    before = [_version(regular(path, door=door)) for path in paths]
    yield
    for path, version in zip(paths, before, strict=True):
        if _version(regular(path, door=door)) != version:
            raise door.refuse(path, "it was written to while it was read", hint="run the same command again")


def _version(seen: os.stat_result) -> tuple[int, int, int, int]:
    return seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns


def inside(root: Path, name: object, *, door: Door, where: object) -> Path:
    """A file below `root` that a foreign list names by a relative path.

    Raises:
        the door's error: no text, absolute, with `..`, NUL or an over-long part, or a link that leads out.
    """
    text = name if isinstance(name, str) and len(name) <= LONGEST_PATH else ""
    parts = PurePosixPath(text).parts
    good = parts and not text.startswith("/") and ".." not in parts and "\0" not in text
    if not good or any(len(os.fsencode(_plain(part))) > 255 for part in parts):
        raise door.refuse(where, f"it names the file {brief(name)}, expected a path below {root}")
    path = root.joinpath(*parts)
    with telling(door, path, doing="cannot be looked at"):
        if not path.resolve().is_relative_to(root.resolve()):
            raise door.refuse(where, f"{brief(name)} is a link that leads out of {root}")
    return path


def open_regular(path: Path, *, door: Door) -> IO[bytes]:
    """A stream of a regular file; never blocks on a FIFO. Raises the door's errors."""
    regular(path, door=door)
    with telling(door, path):
        return path.open("rb")


def listing(folder: Path) -> str:
    """The names in a folder, for error messages."""
    try:
        names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    except OSError as error:
        return f"({error.strerror})"
    return (
        ", ".join(map(brief, names[:12])) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
        if names
        else "nothing"
    )


def _near(path: Path) -> str:
    return f"; the folder holds {listing(path.parent)}" if path.parent.is_dir() else ""


def _plain(text: str) -> str:
    return re.sub(r"[\ud800-\udfff]", "?", text)
