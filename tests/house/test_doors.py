"""Every function that reads a foreign file is damaged in `tests/conformance/test_fuzz.py`, or says here why it is not.

Seen, not declared: each good file is read once while calls of `polysem.boundary` are watched, and whoever stands behind a
call that was given that file, or its folder, counts.
"""

import ast
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

import pytest

from polysem.errors import PolysemError
from support.foreign import CASES, Case

SOURCE = Path(__file__).resolve().parents[2] / "src" / "polysem"
READERS = {
    "read_text", "read_bytes", "read_plain", "read_json", "read_toml", "read_yaml", "read_npy", "read_npz", "read_torch",
    "read_safetensors", "read_control_vector", "read_arrays", "map_npy", "check_safetensors", "check_plain",
    "open_regular", "regular", "unpack", "table_rows", "json_lines", "parse_json", "parse_toml", "parse_literal", "telling",
}  # fmt: skip
NOT_FUZZED = {
    "corpus.py:_is_json": "a text that documents has read",
    "engine/run.py:_read": "the calls of config.load_study",
    "explore/server.py:_add_live.start": "a request: tests/pipeline/test_explore_live.py sends odd ones",
    "features/harvest.py:_resume": "parts that the run wrote, of which the manifest has hashes",
    "glosses/embedders.py:SentenceTransformers.__init__": "a model of 90 MB that another library loads",
    "saes/load.py:_shape": "a file of the zoo's package",
    "saes/load.py:_vocabulary": "a file of the zoo's package",
}
"""`file:function` -> why no damaged file is given to it"""


def doors() -> set[str]:
    """`file:function` of whatever calls a reader."""
    return {
        f"{path.relative_to(SOURCE).as_posix()}:{name}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path.relative_to(SOURCE).parts[0] != "boundary"
        for name in _readers(ast.parse(path.read_text(encoding="utf-8")), "")
    }


def _readers(node: ast.AST, inside: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _readers(child, f"{inside}.{child.name}".removeprefix("."))
            continue
        match child:
            case ast.Call(func=ast.Name(id=name)) if name in READERS:
                yield inside
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=("foreign" | "text" | "tensors" | "io")), attr=name)
            ) if name in READERS:
                yield inside
        yield from _readers(child, inside)


def behind(case: Case, folder: Path) -> set[str]:
    """`file:function` of what stood behind a reader of the boundary that was given a case's file or its folder."""
    case.write(folder)
    file, found = folder / case.file, set()
    content = file.read_bytes().decode(errors="replace")
    places = {str(file), *map(str, file.parents)} - set(map(str, folder.parent.parents))

    def watch(frame: FrameType, event: str, _: object) -> None:
        if (
            event == "call"
            and "/polysem/boundary/" in frame.f_code.co_filename
            and _given(frame, file, places, content)
        ):
            while frame := frame.f_back:
                if frame.f_code.co_filename.startswith(str(SOURCE)):
                    path = Path(frame.f_code.co_filename).relative_to(SOURCE).as_posix()
                    found.add(f"{path}:{frame.f_code.co_qualname.replace('.<locals>', '')}")

    sys.setprofile(watch)
    try:
        with suppress(PolysemError):
            case.read(file)
    finally:
        sys.setprofile(None)
    return found


def _given(frame: FrameType, file: Path, places: set[str], content: str) -> bool:
    """Whether a call's path or text is the file's, or it stands for the folder that the file is in."""
    for value in frame.f_locals.values():
        if isinstance(value, Path) and (str(value) == str(file) or (value.is_dir() and str(value) in places)):
            return True
        if isinstance(value, str) and (str(file.parent) in value[:600] or value.strip() == content.strip()):
            return True
    return False


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    pytest.importorskip("gguf", reason="gguf is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return set().union(*(behind(case, tmp_path_factory.mktemp("door")) for case in CASES.values()))


def test_every_door_is_fuzzed(seen):
    assert doors() - seen - set(NOT_FUZZED) == set(), "add a case to tests/support/foreign.py"


def test_every_exception_is_still_one(seen):
    assert set(NOT_FUZZED) - (doors() - seen) == set()
