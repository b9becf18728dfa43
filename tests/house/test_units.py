"""What lies in `tests/unit` is a unit test: it runs no study and no command, loads nothing of a zoo and starts no server."""

import ast
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parents[1] / "unit"
RUNNERS = {"check_study", "make_beside", "run_study", "run_transfer", "verify_run"}
"""what makes or looks through whole runs, at whichever door it is taken"""
ELSEWHERE = {
    "polysem.cli.app": "tests/pipeline",
    "typer.testing": "tests/pipeline",
    "polysem_zoo": "tests/conformance or tests/pipeline",
    "polysem_zoo_real": "tests/conformance or tests/pipeline",
    "support.raw": "tests/served",
    "support.served": "tests/served",
    "uvicorn": "tests/served",
    "playwright": "tests/browser",
} | dict.fromkeys(RUNNERS, "tests/pipeline")
"""name of a module, or of something in one -> where a test that uses it belongs"""
LOADERS = {"load_model", "load_sae", "load_transcoders"}


def _used(tree: ast.AST) -> set[str]:
    """The names of `ELSEWHERE` that a file imports or asks for; a zoo also where one of its references is loaded."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=str(module), names=names):
                found |= {module, *(f"{module}.{alias.name}" for alias in names), *(a.name for a in names)}
            case ast.Attribute(attr=name) if name in RUNNERS:
                found.add(name)
            case ast.Call(func=called, args=[ast.Constant(value=str(name)), *_]) if (
                _name(called) == "importorskip"
            ):
                found.add(name)
            case ast.FunctionDef() if _loads_a_zoo(node):
                found.add("polysem_zoo")
    return found & ELSEWHERE.keys()


def _loads_a_zoo(function: ast.FunctionDef) -> bool:
    """Whether it gives a loader a reference into a zoo, and leaves that zoo where it is."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call) and node.args]
    loaded = [ast.unparse(call.args[0]) for call in calls if _name(call.func) in LOADERS]
    return "zoo_path" not in ast.unparse(function) and any(
        what.strip("frb'\"").startswith(("zoo:", "zoo-real:")) for what in loaded
    )


def _name(called: ast.expr) -> str:
    return ast.unparse(called).rpartition(".")[2]


@pytest.mark.parametrize("path", sorted(UNIT.rglob("*.py")), ids=lambda path: path.name)
def test_a_unit_test_runs_no_study_and_loads_no_zoo(path: Path) -> None:
    used = _used(ast.parse(path.read_text(encoding="utf-8")))
    assert not used, f"{path.name}: " + "; ".join(
        f"{name} belongs in {ELSEWHERE[name]}" for name in sorted(used)
    )


@pytest.mark.parametrize(
    "line",
    [
        "from polysem.engine import run_study",
        "import polysem\npolysem.run_study(1)",
        "from typer.testing import CliRunner",
        "import pytest\npytest.importorskip('polysem_zoo', reason='x')",
        "def test():\n    load_sae(f'zoo:{name}')",
        "def test():\n    polysem.models.load_model('zoo:gpt2', device='cpu')",
        "from support.served import Server",
        "from support import raw",
    ],
)
def test_what_does_not_belong_is_seen(line: str) -> None:
    assert _used(ast.parse(line))
