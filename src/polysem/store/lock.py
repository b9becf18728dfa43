"""One writer at a time: a lock file that says who holds it, and that a killed holder cannot keep.

The file is made whole in one step (a hard link to a finished file), so nobody ever reads half of it. Its
holder is gone if its process is gone: same host, and another boot, no such pid, or a pid that now belongs
to a process started later. On another host that cannot be known, and the lock is respected. Workers that
write different parts hold locks of their own, which exclude the lock of the whole and are excluded by it.
"""

import json
import os
import platform
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from polysem.errors import StoreError, typed

WHOLE = ".lock"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Holder:
    """A process, named so that no later one can be taken for it."""

    pid: int
    started: str
    """start of the process in clock ticks since boot, or "" where the system does not say"""
    boot: str
    """the system's boot id, or "" where there is none"""
    host: str

    @classmethod
    def here(cls) -> "Holder":
        """This process."""
        pid = os.getpid()
        return cls(pid=pid, started=_started(pid), boot=_boot(), host=platform.node())

    def is_gone(self) -> bool:
        """Whether the process has certainly ended."""
        if self.host != platform.node():
            return False
        if self.boot != _boot():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # alive, and somebody else's
        return self.started != _started(self.pid)


@contextmanager
def locked(folder: Path, name: str = WHOLE) -> Generator[None, None, None]:
    """Hold a lock of `folder` while the block runs.

    Args:
        folder: must exist.
        name: `WHOLE`, or another name beginning with it for a part; parts with different names do not
            exclude each other.

    Raises:
        StoreError: if a living process holds a lock that excludes this one.
    """
    path = folder / name
    _acquire(path)
    try:
        for other in _excluded_by(path):
            holder = _read(other)
            if holder is not None and not holder.is_gone():
                raise _held(other, holder)
        yield
    finally:
        if _read(path) == Holder.here():
            path.unlink()


def _excluded_by(path: Path) -> list[Path]:
    if path.name == WHOLE:
        return sorted(p for p in path.parent.glob(f"{WHOLE}-*") if not p.name.endswith(".new"))
    return [path.with_name(WHOLE)]


def _acquire(path: Path) -> None:
    me = Holder.here()
    mine = path.with_name(f"{path.name}-{me.pid}.new")
    try:
        mine.write_text(json.dumps(asdict(me)), encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"cannot write {mine}: {error.strerror}", hint="free some space, or choose another --out"
        ) from error
    try:
        while True:
            try:
                os.link(mine, path)
                return
            except FileExistsError:
                try:
                    seen = path.lstat()
                except FileNotFoundError:
                    continue  # given back in the meantime
                if not stat.S_ISREG(seen.st_mode):
                    raise StoreError(
                        f"{path} is no lock file, but a folder, a link or a device",
                        hint=f"rm -r {typed(path)}",
                    ) from None
                holder = _read(path)
            except OSError as error:
                raise StoreError(
                    f"cannot lock {path}: {error.strerror}",
                    hint="choose another --out, on another file system",
                ) from error
            if holder is not None and not holder.is_gone():
                raise _held(path, holder)
            _take_away(path, holder, mine.with_suffix(".gone"))
    finally:
        mine.unlink(missing_ok=True)


def _take_away(path: Path, seen: Holder | None, aside: Path) -> None:
    """Remove the lock of a process that is gone, and no other: somebody may have taken it over since it was
    read."""
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    taken = _read(aside)
    if taken != seen and taken is not None and not taken.is_gone():
        with suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _read(path: Path) -> Holder | None:
    """The holder of a lock; None where there is no lock, or one that no process of ours wrote."""
    try:
        holder = Holder(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    if holder is None or type(holder.pid) is not int or not 0 < holder.pid < 1 << 31:
        return None
    return holder if {type(holder.started), type(holder.boot), type(holder.host)} == {str} else None


def _held(path: Path, holder: Holder) -> StoreError:
    return StoreError(
        f"{path.parent} is being written by process {holder.pid} on {holder.host} ({path.name})",
        hint=f"wait for it, or stop it; if you are sure that it is gone, remove {path}",
    )


def _boot() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip() if _BOOT_ID.exists() else ""


def _started(pid: int) -> str:
    """Field 22 of /proc/PID/stat; the second field, the command, may hold spaces and ends with the last
    ')'."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError, UnicodeDecodeError):
        return ""
