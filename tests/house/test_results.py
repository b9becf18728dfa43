"""Every class that holds tables and is met in a session is a `Result`, and every `Result` can do all that one does."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import polysem
from polysem.report.figures import Picture
from polysem.store.result import Result, Shown
from polysem.vocabulary import attribute

SOURCE = Path(__file__).resolve().parents[2] / "src" / "polysem"
PARTS = {
    "glosses/dashboards.py": {"Dashboards"},
    "plan/index.py": {"FeatureIndex"},
    "plan/layout.py": {"Plan"},
    "report/panels.py": {"LocusSection"},
    "selftest/studies.py": {"WorldStudy"},
    "side_effects/scene.py": {"Scene"},
    "stats/arms.py": {"Arms"},
    "transfer/run.py": {"MadeTransfer"},
    "worlds/noise.py": {"NoiseWorld"},
    "worlds/readout.py": {"ReadoutWorld"},
    "worlds/tables.py": {"WorldTables"},
}
"""what hands tables from one step to the next inside the library, and the worlds, which are inputs"""
DOORS = [name for name in polysem.__all__ if not name.startswith("_")]


def with_tables() -> list[tuple[str, str]]:
    """(file, class) of every public class one of whose fields is a table, or tables by name."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                held = (ast.unparse(part.annotation) for part in node.body if isinstance(part, ast.AnnAssign))
                if any("pa.Table" in annotation for annotation in held):
                    found.append((path.relative_to(SOURCE).as_posix(), node.name))
    return found


def results() -> list[type[Result]]:
    for path, name in with_tables():
        if name not in PARTS.get(path, ()):
            importlib.import_module(f"polysem.{path.removesuffix('.py').replace('/', '.')}")
    for module in ("api", "replicate", "report.source", "transfer.result"):
        importlib.import_module(f"polysem.{module}")
    todo, found = [Result], []
    while todo:
        todo += (below := todo.pop().__subclasses__())
        found += below
    return found


def test_every_class_with_tables_is_a_result_or_a_part():
    for path, name in with_tables():
        kind = getattr(importlib.import_module(f"polysem.{path.removesuffix('.py').replace('/', '.')}"), name)
        assert issubclass(kind, Result) != (name in PARTS.get(path, ())), f"{path}: {name}"
    assert {name for names in PARTS.values() for name in names} <= {name for _, name in with_tables()}


@pytest.mark.parametrize("door", DOORS)
def test_what_a_door_gives_shows_itself(door):
    annotation = str(inspect.signature(getattr(polysem, door)).return_annotation)
    given = {kind for kind in (Result, *results()) if kind.__name__ in annotation}
    plain = {"Path", "float", "Float", "SAE", "Model", "Table"}
    assert given or any(name in annotation for name in plain), f"{door} gives {annotation}"


@pytest.mark.parametrize("kind", results(), ids=lambda kind: kind.__name__)
def test_a_result_has_its_words_and_a_figure(kind):
    assert kind.__repr__ is Shown.__repr__, "@dataclass(repr=False)"
    assert kind._repr_html_ is Result._repr_html_
    if kind.__subclasses__():  # what a stage gives, of which a session has its own kind
        return
    draw = attribute(kind.figure)
    assert inspect.signature(draw).return_annotation in (Picture, "Picture")
    assert draw.__doc__
