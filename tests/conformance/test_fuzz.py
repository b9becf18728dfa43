"""Malformed inputs of every door: the product's own error or a value, never another exception, in bounded time and memory.

`support.foreign` has a good file for each; cases are that file cut, flipped, spliced, repeated, and filled with what breaks
parsers. The short form runs a few dozen cases a door; `test_many_malformed_inputs` runs 1,000 (slow).
"""

import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from polysem.errors import PolysemError
from support.foreign import CASES, FORGIVING, NEEDS, Case

LONGEST = 20.0
"""seconds"""
MOST = 2 << 30
"""bytes of memory that a case may add"""
POISON = [
    b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"1e400", b"NaN", b"-1", b"1" + b"0" * 400, b"\\ud800", b"\xff\xfe", b"\x00" * 64,
    b'"', b"null", b"true", b"1e9", b"~nouser/x", b"../../../../etc/passwd", b"/dev/zero", b"\xef\xbb\xbf", b"\r\n\r\n", b"{}", b"[]", b"0.5",
]  # fmt: skip


def damaged(good: bytes, rng: np.random.Generator) -> bytes:
    """`good`, broken in one of many ways."""
    at = int(rng.integers(len(good) + 1))
    poison = POISON[int(rng.integers(len(POISON)))]
    match int(rng.integers(8)):
        case 0:
            return good[:at]
        case 1:
            flipped = bytearray(good)
            for place in rng.integers(len(good), size=int(rng.integers(1, 8))):
                flipped[place] ^= 1 << int(rng.integers(8))
            return bytes(flipped)
        case 2:
            return good[:at] + poison + good[at:]
        case 3:
            return rng.bytes(int(rng.integers(200)))
        case 4:
            return poison
        case 5:
            return good[at:] + good[:at]
        case 6:
            return good * int(rng.integers(2, 5)) + good[:at]
        case _:
            return _value_replaced(good, poison, rng)


def _value_replaced(good: bytes, poison: bytes, rng: np.random.Generator) -> bytes:
    """A value behind a colon, an equals sign or a comma in place of the one that was there."""
    places = [n for n, byte in enumerate(good) if byte in b":=,"]
    if not places:
        return poison + good
    start = places[int(rng.integers(len(places)))] + 1
    ends = [n for n in (good.find(mark, start) for mark in (b",", b"}", b"\n")) if n > 0]
    return good[:start] + poison + good[min(ends, default=len(good)) :]


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _beside(whole: Path, place: Path, file: str) -> None:
    """All files of a folder but one."""
    for other in whole.rglob("*"):
        name = other.relative_to(whole)
        if other.is_dir():
            (place / name).mkdir(parents=True, exist_ok=True)
        elif name.as_posix() != file:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(other, place / name)
    (place / file).parent.mkdir(parents=True, exist_ok=True)


def _whole(case: Case, folder: Path) -> tuple[Path, bytes]:
    whole = folder / "whole"
    whole.mkdir()
    case.write(whole)
    return whole, (whole / case.file).read_bytes()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _fuzz(name: str, folder: Path, *, n: int) -> None:
    case = CASES[name]
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
    whole, good = _whole(case, folder)
    rng = np.random.default_rng(sum(name.encode()))
    before, refused = _memory(), 0
    for trial in range(n):
        place = folder / f"{trial}"
        _beside(whole, place, case.file)
        content = damaged(good, rng)
        (place / case.file).write_bytes(content)
        started = time.monotonic()
        try:
            case.read(place / case.file)
        except PolysemError:
            refused += 1
        except Exception as error:  # noqa: BLE001  (any other is what is looked for)
            pytest.fail(
                f"{name}, case {trial}: {type(error).__name__}: {error!s:.200} from {content[:120]!r}"
            )
        assert time.monotonic() - started < LONGEST, (trial, content[:120])
    assert _memory() - before < MOST
    assert name in FORGIVING or refused > n / 10, "damage that nothing notices is no test"


@pytest.mark.parametrize("name", CASES)
def test_malformed_inputs(name, tmp_path):
    _fuzz(name, tmp_path, n=40)


@pytest.mark.parametrize("name", CASES)
def test_many_malformed_inputs(name, tmp_path):
    _fuzz(name, tmp_path, n=1000)
