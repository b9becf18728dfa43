"""Foreign text: decoded, and parsed as JSON, JSON lines, TOML or a table of cells.

JSON lines are split at byte 0x0A only: texts may hold U+2028 and U+0085, which `str.splitlines` would cut. Lone surrogates,
which JSON can spell and no file can hold, become U+FFFD and are counted.
"""

import ast
import codecs
import csv
import io
import json
import logging
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from polysem.boundary.codes import code_of, is_western
from polysem.boundary.door import Door, brief, telling
from polysem.boundary.files import LARGEST_SETTINGS, LARGEST_TEXT, open_regular, read_plain
from polysem.errors import typed

log = logging.getLogger(__name__)

DEPTH = 64
"""levels of nesting that are taken"""
WHOLE = 10**100
"""whole numbers from this on, of either sign, are refused; tokenizers say 10^30 where they mean none"""
LARGEST_JSON = 128 << 20
"""characters of one JSON value: 2 GB as Python objects at worst"""
MOST_PARTS = 8_000_000
"""lists and objects in one JSON value"""
CELL = 16 << 20
"""characters of a cell of a table"""
LITERAL = 1000
"""brackets of a Python literal"""
SURROGATE = "lone surrogates replaced"
DELIMITERS = ",;\t|"
_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")
_LONE = re.compile(r"[\ud800-\udfff]")
_SEP = re.compile(r"^\"?sep=(.)\"?\r?\n", re.IGNORECASE)
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_OTHERS = (
    (b"version https://git-lfs.github.com/spec/", "a git-LFS pointer, not the file itself", "git lfs pull"),
    (b"PK\x03\x04", "a zip archive (a workbook of a spreadsheet, perhaps)", "unpack it, or export it as CSV"),
    (b"PAR1", "a parquet file", "convert it to CSV or JSON lines"),
    (b"%PDF-", "a PDF", "give the file of data"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of an old office program", "export it as CSV"),
    (b"BZh", "packed by bzip2", "bunzip2 it, or pack it by gzip"),
    (b"\xfd7zXZ\x00", "packed by xz", "unxz it, or pack it by gzip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it"),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it"),
    (b"SQLite format 3\x00", "an SQLite database", "export the table as CSV"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "convert it to CSV, JSON lines or safetensors"),
    (b"ARROW1\x00\x00", "an Arrow file", "convert it to CSV or JSON lines"),
    (b"{\\rtf", "a document (RTF)", "save it as plain text"),
)
_PAGE = re.compile(
    rb"^\s*(<!--.{0,200}?-->\s*)?(<!doctype html|<html|<head|<body|<\?xml|<error>)", re.IGNORECASE | re.DOTALL
)
_SAID = re.compile(
    rb"^\s*(404:? not found|403:? forbidden|not found|entry not found|file not found|repository not found|access denied|forbidden|"
    rb"unauthorized|invalid username or password|access to (model|dataset) .{1,120} is restricted.*)[.!]?\s*$",
    re.IGNORECASE | re.DOTALL,
)
"""what a server says in place of a file, the whole of it"""


def check_kind(content: bytes, where: object, *, door: Door, page: bool = True) -> None:
    """Refuses what is plainly another kind of file, by name: a git-LFS pointer, a saved web page, an archive.

    Args:
        content: its first bytes.
        where: file, for errors.
        door: the kind of file.
        page: whether a web page is refused too.
    """
    bare = content[:256].removeprefix(codecs.BOM_UTF8)
    for magic, kind, hint in _OTHERS:
        if bare.startswith(magic):
            raise door.refuse(where, f"it is {kind}", hint=hint)
    if len(content) <= 256 and _SAID.match(bare):
        said = brief(bare.decode("utf-8", "replace").strip())
        raise door.refuse(
            where, f"it is what a server said in place of the file: {said}", hint="download it again"
        )
    if page and _PAGE.match(bare):
        raise door.refuse(
            where, "it is a web page, not data", hint="download the raw file, not the page about it"
        )


def decode(content: bytes, where: object, *, door: Door, western: bool = False) -> str:
    """Bytes as text: by their byte-order mark, else as UTF-8, else as UTF-16 where every other byte is zero.

    Args:
        content: the bytes.
        where: file, for errors.
        door: the kind of file.
        western: take what is not UTF-8 as Windows-1252, which spreadsheets write, where it reads as Western text.

    Raises:
        the door's error: not that; names the byte, and the code that it may be in.
    """
    mark = next(((bom, name) for bom, name in _BOMS if content.startswith(bom)), None)
    encoding = mark[1] if mark else _unmarked(content)
    body = content[len(mark[0]) :] if mark else content
    try:
        return body.decode(encoding)
    except UnicodeDecodeError as error:
        if western and encoding == "utf-8" and not mark and is_western(body):
            log.warning(
                "%s is not UTF-8; it is read as Windows-1252, which spreadsheets of the West write",
                door.called(where),
            )
            return body.decode("cp1252")
        code = code_of(body) if encoding == "utf-8" else None
        raise door.error(
            f"{door.called(where)} is not {encoding.upper()}: byte {error.start} is {error.object[error.start]:#04x}"
            + (f"; it may be text in {code}" if code else ""),
            hint=_as_unicode(where, code),
        ) from error


def _as_unicode(where: object, code: str | None) -> str:
    """The command that makes a file UTF-8."""
    file = typed(where)
    if code is None:
        return f"save it as UTF-8, or fetch it again; if it is text in SHIFT_JIS: iconv -f SHIFT_JIS -t UTF-8 {file} > plain.txt"
    if file.strip("'").endswith((".gz", ".zst")):
        return f"unpack it, then iconv -f {code} -t UTF-8 FILE > plain.txt"
    return f"iconv -f {code} -t UTF-8 {file} > plain.txt && mv plain.txt {file}"


def _unmarked(content: bytes) -> str:
    head = content[:64]
    if len(head) >= 4 and 2 * head[1::2].count(0) > len(head[1::2]) and all(head[::2]):
        return "utf-16-le"
    if len(head) >= 4 and 2 * head[::2].count(0) > len(head[::2]) and all(head[1::2]):
        return "utf-16-be"
    return "utf-8"


def read_text(path: Path, *, door: Door, ceiling: int = LARGEST_TEXT, page: bool = True) -> str:
    """The text of a file, plain or packed, with line breaks as it has them. Raises the door's errors."""
    content = read_plain(path, door=door, ceiling=ceiling)
    check_kind(content, path, door=door, page=page)
    return decode(content, path, door=door)


def parse_json(
    text: str | bytes,
    where: object,
    *,
    door: Door,
    counts: Counter[str] | None = None,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """The value of a JSON text, its depth and whole numbers bounded, lone surrogates replaced.

    Args:
        text: JSON, as text or bytes of any Unicode encoding.
        where: file and place, for errors.
        door: the kind of file.
        counts: takes the number of lone surrogates.
        pairs: makes each object of its pairs, where a name may stand twice.

    Raises:
        the door's error.
    """
    if isinstance(text, bytes):
        text = decode(text, where, door=door)
    n = text.count("[") + text.count("{")
    if len(text) > LARGEST_JSON or n > MOST_PARTS:
        raise door.refuse(
            where,
            f"one JSON value of {len(text):,} characters and {n:,} parts; at most {LARGEST_JSON:,} and {MOST_PARTS:,} are read",
            hint="write it as JSON lines, or split it into several files",
        )
    with telling(door, where, doing="is not JSON"):
        value = json.loads(text, parse_int=_whole, object_pairs_hook=pairs)
    if n > DEPTH and depth(value) > DEPTH:
        raise door.refuse(where, f"it is nested deeper than {DEPTH} levels")
    if _ESCAPED.search(text) or _LONE.search(text):
        value, odd = _without_surrogates(value)
        if odd and counts is not None:
            counts[SURROGATE] += odd
    return value


def _whole(digits: str) -> int:
    value = int(digits) if len(digits) <= 101 else WHOLE
    if abs(value) >= WHOLE:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return value


def depth(value: Any) -> int:
    """Levels of lists and maps in a parsed value."""
    level, n = [value], 0
    while level := [inner for outer in level for inner in _containers(outer)]:
        n += 1
        if n > DEPTH:
            break
    return n + isinstance(value, list | dict)


def _containers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [v for v in value.values() if isinstance(v, list | dict)]
    return [v for v in value if isinstance(v, list | dict)] if isinstance(value, list) else []


def _without_surrogates(value: Any) -> tuple[Any, int]:
    if isinstance(value, str):
        return _LONE.subn("�", value)
    if isinstance(value, list):
        pairs = [_without_surrogates(item) for item in value]
        return [item for item, _ in pairs], sum(n for _, n in pairs)
    if isinstance(value, dict):
        pairs = [(_without_surrogates(key), _without_surrogates(item)) for key, item in value.items()]
        return {k: v for (k, _), (v, _) in pairs}, sum(a + b for (_, a), (_, b) in pairs)
    return value, 0


def parse_literal(text: str, where: object, *, door: Door) -> Any:
    """The value of a Python literal, as pandas writes lists into a cell. Raises the door's error."""
    if len(text) > CELL or sum(map(text.count, "[({")) > LITERAL:
        raise door.refuse(where, f"a list of {len(text):,} characters, too long to be one")
    with telling(door, where, doing="is no list"):
        return ast.literal_eval(text)


def json_object(value: Any, where: object, *, door: Door) -> dict[str, Any]:
    """`value` if it is a JSON object. Raises the door's error for anything else."""
    if not isinstance(value, dict):
        raise door.refuse(where, f"expected a JSON object, got {type(value).__name__} {brief(value)}")
    return value


def read_json(path: Path, *, door: Door, ceiling: int = LARGEST_SETTINGS) -> dict[str, Any]:
    """The object in a JSON file of settings. Raises the door's errors."""
    return json_object(
        parse_json(read_text(path, door=door, ceiling=ceiling), path, door=door), path, door=door
    )


def read_yaml(path: Path, *, door: Door) -> dict[str, Any]:
    """The mapping that a YAML file of settings holds; plain values only. Raises the door's errors."""
    import yaml

    text = read_text(path, door=door, ceiling=LARGEST_SETTINGS)
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise door.refuse(path, f"not YAML: {brief(' '.join(str(error).split()))}") from error
    if not isinstance(found, dict | None):
        raise door.refuse(path, f"expected keys and values, got {type(found).__name__} {brief(found)}")
    return found or {}


def check_plain(path: Path, *, door: Door) -> None:
    """Refuses a file that other programs will read as plain UTF-8 and that is text of another kind. Raises the door's errors."""
    with open_regular(path, door=door) as stream, telling(door, path):
        head = stream.read(64)
    mark = next((name for bom, name in _BOMS if head.startswith(bom)), None)
    name, file = mark or _unmarked(head), typed(path)
    if name == "utf-8" and not mark:
        return
    if name == "utf-8":
        problem, hint = "begins with a byte-order mark", f"sed -i '1s/^\\xEF\\xBB\\xBF//' {file}"
    else:
        problem = f"is text in {name.upper()}"
        by = (
            name[:6] if mark else name.replace("-le", "le").replace("-be", "be")
        )  # of a mark iconv makes use itself
        hint = f"iconv -f {by} -t utf-8 {file} > plain.txt && mv plain.txt {file}"
    raise door.refuse(
        path, f"it {problem}; expected plain UTF-8, which is all that transformers reads", hint=hint
    )


def json_lines(
    text: str,
    where: object,
    *,
    door: Door,
    counts: Counter[str] | None = None,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of JSON lines; blank lines are left out. Raises the door's error."""
    for n, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield n, parse_json(line, f"{where}:{n}", door=door, counts=counts, pairs=pairs)


def is_lines(text: str, *, named_lines: bool) -> bool:
    """Whether a text is JSON lines rather than one JSON value: the text tells, the name decides between equals."""
    bare = text.lstrip()
    first, more, _ = bare.partition("\n")
    if bare.startswith("[") or first.strip() == "{":
        return False
    if named_lines or not more:
        return named_lines
    try:
        json.loads(first, parse_int=str)
    except (ValueError, RecursionError):
        return False
    return True


def parse_toml(text: str, where: object, *, door: Door) -> dict[str, Any]:
    """The content of TOML text, its depth and whole numbers bounded. Raises the door's error."""
    with telling(door, where, doing="is not TOML"):
        value = tomllib.loads(text)
        if depth(value) > DEPTH:
            raise door.refuse(where, f"it is nested deeper than {DEPTH} levels")
        _bounded(value)
    return value


def _bounded(value: Any) -> None:
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
        if isinstance(item, dict | list):
            _bounded(item)
        elif isinstance(item, int) and abs(item) >= WHOLE:
            raise ValueError("a whole number of more than 100 digits")


def read_toml(path: Path, *, door: Door) -> dict[str, Any]:
    """The content of a TOML file. Raises the door's errors."""
    return parse_toml(read_text(path, door=door, ceiling=LARGEST_SETTINGS), path, door=door)


def table_rows(
    content: bytes, where: object, *, door: Door, delimiter: str | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of a table of cells, as spreadsheets and programs write them.

    The delimiter is that of a `sep=` line, else `delimiter`'s if the line of names holds it, else the one of comma,
    semicolon, tab and bar that the line of names holds most of.

    Raises:
        the door's error: no line of names, a name twice, a row of other length, or no table at all.
    """
    text = decode(content, where, door=door, western=True)
    said = _SEP.match(text)
    offset, body = (1, text[said.end() :]) if said else (0, text)
    blank = len(body) - len(body.lstrip("\r\n"))  # lines before the names
    offset, body = offset + max(body[:blank].count("\n"), body[:blank].count("\r")), body[blank:]
    between = said[1] if said else _delimiter(body, delimiter)
    csv.field_size_limit(CELL)
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=between, strict=True)
    with telling(door, where, doing="is not a table"):
        header = [column.strip() for column in next(reader, [])]
    twice = sorted({column for column in header if header.count(column) > 1})
    if not any(header) or twice:
        raise door.refuse(where, f"no usable line of column names; repeated: {twice}, read: {brief(header)}")
    while True:
        with telling(door, f"{where}:{reader.line_num + offset}", doing="is not a table"):
            cells = next(reader, None)
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        n = reader.line_num + offset
        if len(cells) != len(header):
            raise door.refuse(
                f"{where}:{n}", f"{len(cells)} cells, expected {len(header)} ({brief(', '.join(header))})"
            )
        yield n, dict(zip(header, cells, strict=True))


def _delimiter(text: str, usual: str | None) -> str:
    line = re.sub(r'"[^"]*"', "", text[:65536].split("\n", 1)[0])
    if usual and usual in line:
        return usual
    return max(DELIMITERS, key=line.count) if any(mark in line for mark in DELIMITERS) else usual or ","
