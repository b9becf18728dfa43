"""Docstrings keep their lines: what a formatter ran together once is found by its marks."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "tests", "benchmarks", "examples", "zoo/src", "zoo/training")
HEAD = re.compile(r"^\s*(Args|Raises|Returns|Yields):\s*(\S.*)?$")


def _documented(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """(line, docstring, names of the parameters) of all that has a docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue
        names = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            names = [argument.arg for argument in given]
        yield node.body[0].lineno, text, names


def run_together(text: str, names: list[str]) -> list[str]:
    """Lines of a docstring that hold what should stand on lines of its own: two entries of Args or Raises, a tree, or
    a heading inside a paragraph."""
    found, section = [], ""
    entry = "|".join(map(re.escape, names)) or r"(?!)"
    for line in text.splitlines():
        head = HEAD.match(line)
        if head:
            section = head[1]
            # "Raises: as `log_odds`." is a sentence; "Args: a: first. b: second." is a list in one line
            if head[2] and re.match(r"\w+:\s", head[2]):
                found.append(line)
            continue
        if not line.strip():
            section = ""
        second = {"Args": rf"[.;] ({entry}): ", "Raises": r"[.;] \w*(Error|Refused): "}.get(section)
        if second and re.search(second, line):
            found.append(line)
        if re.search(r"\S.*[├└]──", line) or re.search(r"\w[.,;)]? (Args|Raises|Returns|Yields):$", line):
            found.append(line)
    return found


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Gives x.\n\nArgs: a: first. b: second.", ["a", "b"]),
        ("Gives x.\n\nArgs:\n    a: first. b: second.", ["a", "b"]),
        ("Gives x.\n\nRaises:\n    StoreError: if one. ConfigError: if two.", []),
        ("Tree.\n\n    Base ├── One first ├── Two second", []),
        ("Gives x. Args:\n    a: first.", ["a"]),
    ],
)
def test_what_is_run_together_is_found(text: str, names: list[str]) -> None:
    assert run_together(text, names)


def test_no_docstring_is_run_together() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}: {bad.strip()}"
        for folder in FOLDERS
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for line, text, names in _documented(path)
        for bad in run_together(text, names)
    ]
    assert not found, "\n".join(found)
