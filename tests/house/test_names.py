"""One name, one meaning."""

import ast
from collections import Counter
from pathlib import Path

import polysem


def test_no_two_public_classes_have_one_name():
    files = Path(polysem.__file__).parent.rglob("*.py")
    bodies = (ast.parse(file.read_text(encoding="utf-8")).body for file in files)
    names = Counter(
        n.name for body in bodies for n in body if isinstance(n, ast.ClassDef) and n.name[0] != "_"
    )
    assert len(names) > 100
    assert [name for name, n in names.items() if n > 1] == []
